//! A round, from the written pages to a staged and verified set: [`run`] and the two sides'
//! steps, one after the other, as in the design's "a page's path".
//!
//! What a step does is in its own file; here is only the order, what goes from one to the next,
//! and what is undone when any of them fails. Applying comes after the commit, by the service.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use plover_types::{Position, SyncId, SyncKind};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::blocks::{BlockDigests, Record, append_difference, append_whole, block_digests};
use crate::certificate::PageTag;
use crate::compare::{Base, Differing, Frames, compare};
use crate::control::{Event, Side};
use crate::digest::{Digests, chunk_length, digest_one, digest_pages, run_chunks};
use crate::error::{ProtocolError, RoundError};
use crate::exchange::{
    BlockDigestReader, Entry, LinkSlot, RecordCheck, Union, await_primary, receive_ask,
    receive_begin, receive_digests, send_block_digests, send_digests, unite,
};
use crate::guest_memory::{GuestMemory, PageBuf};
use crate::limits::{
    ABORT_SEND_MAX, BLOCKS_FRAME_BYTES, DEVICE_STATE_BYTES_MAX, DEVICE_STATE_WAIT_MAX,
    PEER_BEGIN_MAX,
};
use crate::link::{Identity, PeerLink, order};
use crate::page_set::PageSet;
use crate::protocol::{AbortCode, Message, Seal, WireSet};
use crate::service::Events;
use crate::stage::{Stage, StageHeader, StagedBody};
use crate::state_pack::{pack, unpack};
use crate::stats::{RoundStats, Step};
use crate::written_pages::WrittenPages;

/// Everything a round needs; handed back by [`run`] whatever its end.
#[derive(Debug)]
pub struct Round {
    /// The sync.
    pub sync: SyncId,
    /// Which copy is ours.
    pub side: Side,
    /// What it starts from.
    pub kind: SyncKind,
    /// Our delivered position.
    pub position: Position,
    /// The guest's memory.
    pub memory: Arc<GuestMemory>,
    /// The account of written pages.
    pub written: WrittenPages,
    /// The staging file.
    pub stage: Stage,
    /// The connection of the last round, if it is still good.
    pub link: Option<PeerLink>,
    /// Connections from the peer.
    pub inbound: Arc<LinkSlot>,
    /// Who we are.
    pub identity: Identity,
    /// Where the peer listens.
    pub peer: SocketAddr,
    /// The round before fell to a mismatch.
    pub whole: bool,
    /// The slice of pages thought untouched: cursor, count.
    pub slice: (u64, u64),
    /// Worker threads for digests.
    pub threads: usize,
    /// To the node.
    pub events: Events,
    /// The primary's device state, when the node brings it.
    pub device_state: mpsc::Receiver<Vec<u8>>,
    /// What the round did.
    pub stats: RoundStats,
}

/// Why the node ends a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancel {
    /// It gave the sync up.
    Abort,
    /// It is gone.
    NodeGone,
}

/// How a round ended well. The service tells the node, once it has everything back.
#[derive(Debug)]
pub enum Ending {
    /// Primary: the backup has staged and verified everything.
    Sent,
    /// Backup: the staged set.
    Staged(StageHeader, StagedBody),
}

/// Runs a round to its end. If it fails, everything is as before it: its pages are dirty again,
/// nothing is staged, and the connection (which may be in mid-message) is closed.
pub async fn run(
    mut round: Round,
    cancel: oneshot::Receiver<Cancel>,
) -> (Round, Result<Ending, RoundError>) {
    let steps = async {
        round.stage.clear()?;
        match round.side {
            Side::Primary => primary(&mut round).await,
            Side::Backup => backup(&mut round).await,
        }
    };
    let result = tokio::select! {
        biased;
        cancelled = cancel => Err(match cancelled {
            Ok(Cancel::Abort) => RoundError::Aborted,
            Ok(Cancel::NodeGone) | Err(_) => RoundError::NodeGone,
        }),
        result = steps => result,
    };
    match &result {
        Err(error) => undo(&mut round, error).await,
        Ok(_) => round.link.iter_mut().for_each(PeerLink::at_rest),
    }
    (round, result)
}

async fn undo(round: &mut Round, error: &RoundError) {
    round.written.undo();
    if let Err(error) = round.stage.clear() {
        tracing::error!(sync = %round.sync, %error, "what was staged cannot be dropped");
    }
    // Before its first message, or if the peer has begun the next round on it, the connection is
    // as good as before.
    if let Some(mut link) = round.link.take_if(|link| link.in_use()) {
        let code = match error {
            RoundError::Mismatch(_) => AbortCode::Mismatch,
            _ => AbortCode::Failed,
        };
        let abort = Message::Abort {
            code,
            reason: crate::error::chain(error),
        };
        let _ = timeout(ABORT_SEND_MAX, link.send(round.sync, &abort)).await;
    }
}

/// The primary's way: what differs is found, copied out, and sent while the VM runs again.
async fn primary(round: &mut Round) -> Result<Ending, RoundError> {
    let start = round.begin(Step::Collect);
    let union = round.collect_primary().await?;
    let start = round.next(Step::Collect, start, Step::Digest);
    let digests = round.digest(&union)?;
    let start = round.next(Step::Digest, start, Step::Exchange);
    let link = link_of(&mut round.link)?;
    let theirs = match union.whole {
        true => Vec::new(),
        false => receive_digests(link, round.sync, union.pages.len()).await?,
    };
    let start = round.next(Step::Exchange, start, Step::Compare);
    let differing = compare(&union, &digests, &theirs);
    round.count_divergent(&union, &differing);
    let start = round.next(Step::Compare, start, Step::Blocks);
    let frames = round.copy_out(&union, &differing).await?;
    let certifier = link_of(&mut round.link)?.certifier();
    let certificate = certifier.certify(round.sync, &union.pages, &digests.tags);
    round.stats.times.add(Step::Blocks, start);
    round.count_wire();
    let (sync, stats) = (round.sync, round.stats.clone());
    round.events.emit(&Event::CopiedOut {
        sync,
        certificate,
        stats,
    });
    // From here on guest memory is not read: the VM runs.
    let start = round.begin(Step::Send);
    round
        .send(frames, certificate, differing.len() as u64)
        .await?;
    round.stats.times.add(Step::Send, start);
    round.count_wire();
    Ok(Ending::Sent)
}

/// The backup's way: its digests go out, what differs comes in, is staged and verified. Guest
/// memory is only read.
async fn backup(round: &mut Round) -> Result<Ending, RoundError> {
    let start = round.begin(Step::Collect);
    let union = round.collect_backup().await?;
    let start = round.next(Step::Collect, start, Step::Digest);
    // A union that is sent whole replaces every tag.
    let mut digests = match union.whole {
        true => Digests {
            crcs: Vec::new(),
            tags: vec![PageTag::default(); union.pages.len()],
        },
        false => round.digest(&union)?,
    };
    let start = round.next(Step::Digest, start, Step::Exchange);
    let link = link_of(&mut round.link)?;
    send_digests(link, round.sync, &digests.crcs).await?;
    let start = round.next(Step::Exchange, start, Step::Blocks);
    if !union.whole {
        round.answer_ask(&union).await?;
    }
    let start = round.next(Step::Blocks, start, Step::Stage);
    let seal = round.stage_all(&union).await?;
    let start = round.next(Step::Stage, start, Step::Verify);
    let body = round.stage.unsealed()?;
    round.verify(&union, &mut digests.tags, &body, &seal)?;
    let header = round
        .stage
        .seal(round.sync, seal.position, seal.certificate)?;
    round.stats.times.add(Step::Verify, start);
    let link = link_of(&mut round.link)?;
    link.state_base = body.state().to_vec();
    link.send(round.sync, &Message::Done).await?;
    round.count_wire();
    Ok(Ending::Staged(header, body))
}

impl Round {
    fn begin(&self, name: Step) -> Instant {
        self.events.emit(&Event::Step {
            sync: self.sync,
            name,
        });
        Instant::now()
    }

    fn next(&mut self, done: Step, start: Instant, name: Step) -> Instant {
        self.stats.times.add(done, start);
        self.begin(name)
    }

    async fn collect_primary(&mut self) -> Result<Union, RoundError> {
        let own = self.enter();
        let reused = self.link.as_ref().is_some_and(PeerLink::initiated);
        let theirs = match self.meet_backup(&own).await {
            // The peer may have closed it since the last round, or given a round up on it.
            Err(
                RoundError::Link { .. }
                | RoundError::Secure { .. }
                | RoundError::Protocol(ProtocolError::Sync { .. }),
            ) if reused => {
                self.link = None;
                self.meet_backup(&own).await?
            }
            other => other?,
        };
        let union = unite(self.memory.layout(), &own, &theirs)?;
        Ok(self.count_union(union, &own, &theirs, &own))
    }

    async fn meet_backup(&mut self, own: &Entry) -> Result<Entry, RoundError> {
        let mut link = match self.link.take().filter(PeerLink::initiated) {
            Some(link) => link,
            None => PeerLink::connect(self.peer, &self.identity).await?,
        };
        (link.sent_bytes, link.received_bytes) = (0, 0);
        let link = self.link.insert(link);
        own.send(link, self.sync).await?;
        let begin = receive_begin(link, self.sync, PEER_BEGIN_MAX).await?;
        Entry::receive(link, self.sync, begin, self.memory.layout()).await
    }

    async fn collect_backup(&mut self) -> Result<Union, RoundError> {
        let own = self.enter();
        let meeting = await_primary(&mut self.link, &self.inbound, self.sync);
        let begin = timeout(PEER_BEGIN_MAX, meeting)
            .await
            .unwrap_or(Err(RoundError::Silent(
                "the primary has not begun the round",
            )))?;
        let link = link_of(&mut self.link)?;
        let theirs = Entry::receive(link, self.sync, begin, self.memory.layout()).await?;
        own.send(link, self.sync).await?;
        let union = unite(self.memory.layout(), &theirs, &own)?;
        Ok(self.count_union(union, &own, &theirs, &theirs))
    }

    fn enter(&mut self) -> Entry {
        let written = self.written.collect(self.sync);
        if let Some(reason) = &written.lost {
            tracing::warn!(sync = %self.sync, reason, "lost track of written pages: comparing all");
        }
        Entry::own(
            self.kind,
            self.whole,
            written,
            self.memory.layout(),
            self.slice,
        )
    }

    fn count_union(&mut self, union: Union, own: &Entry, peer: &Entry, primary: &Entry) -> Union {
        let stats = &mut self.stats;
        stats.written_own_pages = own.pages.len();
        stats.written_peer_pages = peer.pages.len();
        stats.union_pages = union.pages.len() as u64;
        let page = plover_types::limits::PAGE_BYTES as u64;
        let written = union.written.len();
        stats.slice_pages = stats.union_pages - written.min(stats.union_pages);
        stats.dirty_bytes = written * page;
        stats.primary_dirty_bytes = primary.pages.len() * page;
        (stats.all_memory, stats.whole) = (union.all_memory, union.whole);
        union
    }

    fn digest(&mut self, union: &Union) -> Result<Digests, RoundError> {
        // Pages of a small union were written, so asking for holes would not pay.
        let holes = if union.all_memory {
            self.memory.holes()
        } else {
            PageSet::new()
        };
        let certifier = link_of(&mut self.link)?.certifier();
        Ok(digest_pages(
            &self.memory,
            &union.pages,
            &holes,
            certifier,
            self.threads,
        ))
    }

    fn count_divergent(&mut self, union: &Union, differing: &[Differing]) {
        self.stats.divergent_pages = differing.len() as u64;
        if union.all_memory || union.whole {
            return;
        }
        let untracked = differing
            .iter()
            .filter(|page| !union.written.contains(page.page))
            .count();
        self.stats.untracked_pages = untracked as u64;
        if untracked > 0 {
            tracing::error!(sync = %self.sync, untracked, "pages differ that nobody logged");
        }
    }

    fn count_wire(&mut self) {
        if let Some(link) = &self.link {
            self.stats.wire_sent_bytes = link.sent_bytes;
            self.stats.wire_received_bytes = link.received_bytes;
        }
    }

    /// Copies what must be sent out of guest memory, as frames of records.
    async fn copy_out(
        &mut self,
        union: &Union,
        differing: &[Differing],
    ) -> Result<Vec<Bytes>, RoundError> {
        let link = link_of(&mut self.link)?;
        if !union.whole {
            let asked = differing.iter().filter(|page| page.base == Base::Unknown);
            let asked: PageSet = asked.map(|page| page.page).collect();
            link.send(self.sync, &Message::Ask(WireSet::Pages(asked)))
                .await?;
        }
        let mut answers = BlockDigestReader::default();
        let zero_digests = block_digests(&PageBuf::default().0);
        let mut copy = PageBuf::default();
        let mut frames = Frames::with_room(differing.len());
        for page in differing {
            self.memory.read_page(page.page, &mut copy);
            let out = frames.room();
            let carried = match page.base {
                Base::Unknown => {
                    let theirs = answers.next(link, self.sync).await?;
                    append_difference(out, page.page, &copy.0, &theirs)
                }
                Base::Zeros => append_difference(out, page.page, &copy.0, &zero_digests),
                Base::Irrelevant => append_whole(out, page.page, &copy.0),
            };
            self.stats.differing_bytes += carried as u64;
            self.stats.zero_pages += u64::from(carried == 0);
        }
        answers.finish()?;
        Ok(frames.finish())
    }

    async fn send(
        &mut self,
        frames: Vec<Bytes>,
        certificate: plover_types::Certificate,
        records: u64,
    ) -> Result<(), RoundError> {
        let link = link_of(&mut self.link)?;
        for frame in frames {
            link.send(self.sync, &Message::Blocks(frame)).await?;
        }
        let state = tokio::select! {
            state = timeout(DEVICE_STATE_WAIT_MAX, self.device_state.recv()) => state
                .map_err(|_| RoundError::DeviceState(DEVICE_STATE_WAIT_MAX))?
                .ok_or(RoundError::NodeGone)?,
            // Nothing but the peer's abort, or its end, can come now.
            early = link.receive(self.sync) => return Err(order(&early?, "nothing").into()),
        };
        let state_tag = link.certifier().state_tag(self.sync, self.position, &state);
        let packed = pack(&state, &link.state_base);
        for at in (0..packed.len()).step_by(BLOCKS_FRAME_BYTES) {
            let part = packed.slice(at..packed.len().min(at + BLOCKS_FRAME_BYTES));
            link.send(self.sync, &Message::State(part)).await?;
        }
        let position = self.position;
        let seal = Seal {
            position,
            certificate,
            state_tag,
            state_bytes: state.len() as u64,
            records,
        };
        link.send(self.sync, &Message::Seal(seal)).await?;
        match link.receive(self.sync).await? {
            Message::Done => {
                link.state_base = state;
                Ok(())
            }
            other => Err(order(&other, "done").into()),
        }
    }

    async fn answer_ask(&mut self, union: &Union) -> Result<(), RoundError> {
        let link = link_of(&mut self.link)?;
        let asked = receive_ask(link, self.sync, &union.pages).await?;
        let mut copy = PageBuf::default();
        let memory = &self.memory;
        send_block_digests(link, self.sync, &asked, |page| {
            memory.read_page(page, &mut copy);
            block_digests(&copy.0)
        })
        .await
    }

    async fn stage_all(&mut self, union: &Union) -> Result<Seal, RoundError> {
        let link = link_of(&mut self.link)?;
        let mut check = RecordCheck::new(&union.pages);
        let mut packed = Vec::new();
        loop {
            match link.receive(self.sync).await? {
                Message::Blocks(frame) if packed.is_empty() => {
                    let count = check.frame(&frame)?;
                    self.stats.divergent_pages += count.records;
                    self.stats.zero_pages += count.zero_pages;
                    self.stats.differing_bytes += count.block_bytes;
                    self.stage.append_records(count.records, &frame)?;
                }
                Message::State(part) => {
                    let bytes = packed.len() + part.len();
                    if bytes > DEVICE_STATE_BYTES_MAX {
                        let (what, field, value) = ("state", "bytes", bytes as u64);
                        return Err(ProtocolError::Field { what, field, value }.into());
                    }
                    packed.extend_from_slice(&part);
                }
                Message::Seal(seal) => {
                    let state = unpack(&packed, seal.state_bytes, &link.state_base)?;
                    self.stage.append_state(&state)?;
                    return Ok(seal);
                }
                other => return Err(order(&other, "blocks, state or seal").into()),
            }
        }
    }

    /// Checks our memory with the staged blocks laid over it against what the primary says of
    /// its own: each staged page's CRC32C, the certificate over the union, the state's tag.
    fn verify(
        &mut self,
        union: &Union,
        tags: &mut [PageTag],
        body: &StagedBody,
        seal: &Seal,
    ) -> Result<(), RoundError> {
        let told = (seal.records, seal.state_bytes);
        if told != (self.stage.records(), self.stage.state_bytes()) {
            return Err(RoundError::Mismatch("not everything arrived"));
        }
        let certifier = link_of(&mut self.link)?.certifier().clone();
        let records = body.records().collect::<Result<Vec<_>, _>>()?;
        let memory = &self.memory;
        let mut checked = vec![None; records.len()];
        let chunk = chunk_length(records.len(), self.threads);
        run_chunks(
            records.chunks(chunk).zip(checked.chunks_mut(chunk)),
            |(records, checked)| {
                for (record, checked) in records.iter().zip(checked) {
                    *checked = overlaid(memory, record, &certifier);
                }
            },
        );
        for (record, tag) in records.iter().zip(checked) {
            let tag = tag.ok_or(RoundError::Mismatch("a staged page has another digest"))?;
            let at = union.pages.binary_search(&record.page);
            let at = at.map_err(|_| RoundError::Mismatch("a staged page is not in the union"))?;
            tags[at] = tag;
        }
        if certifier.certify(self.sync, &union.pages, tags) != seal.certificate {
            return Err(RoundError::Mismatch("the certificate is another"));
        }
        if certifier.state_tag(self.sync, seal.position, body.state()) != seal.state_tag {
            return Err(RoundError::Mismatch("the device state has another tag"));
        }
        Ok(())
    }
}

/// The tag of a page with a record laid over it, or none if its CRC32C is not the primary's.
fn overlaid(
    memory: &GuestMemory,
    record: &Record<'_>,
    certifier: &crate::certificate::Certifier,
) -> Option<PageTag> {
    let mut page = PageBuf::default();
    if !record.is_whole() {
        memory.read_page(record.page, &mut page);
    }
    record.overlay(&mut page);
    let (crc, tag) = digest_one(&page.0, certifier);
    (crc == record.crc).then_some(tag)
}

fn link_of(link: &mut Option<PeerLink>) -> Result<&mut PeerLink, RoundError> {
    link.as_mut().ok_or_else(|| RoundError::Link {
        doing: "using it",
        source: std::io::ErrorKind::NotConnected.into(),
    })
}

const _: () = assert!(size_of::<BlockDigests>() == crate::blocks::BLOCK_DIGESTS_BYTES);
