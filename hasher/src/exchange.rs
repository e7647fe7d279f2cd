//! What the two sides tell each other in a round, each message checked against what is due and
//! against the guest's layout before it is used.
//!
//! Nothing here touches guest memory or decides when a step is due; see `sync_round`.

use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use plover_types::{PageDigest, PageIndex, SyncId, SyncKind};
use tokio::sync::Notify;

use crate::blocks::{BLOCK_DIGESTS_BYTES, BlockDigests, Record};
use crate::error::{ProtocolError, RoundError};
use crate::limits::{BLOCK_DIGESTS_FRAME_PAGES, DIGESTS_FRAME_PAGES, PEER_SILENCE_MAX};
use crate::link::{PeerLink, order};
use crate::page_set::{MemoryMap, PageSet};
use crate::protocol::{Begin, Message, WireSet};
use crate::written_pages::Written;

/// What both sides agreed to compare.
#[derive(Debug)]
pub struct Union {
    /// The pages, ascending.
    pub pages: Vec<PageIndex>,
    /// Those that either side wrote; the others are the slice's.
    pub written: PageSet,
    /// It is all memory.
    pub all_memory: bool,
    /// It is sent whole, without comparing.
    pub whole: bool,
}

/// How one side enters a round.
#[derive(Debug)]
pub struct Entry {
    /// Its words.
    pub begin: Begin,
    /// Its pages.
    pub pages: PageSet,
}

impl Entry {
    /// This side's entry.
    #[must_use]
    pub fn own(
        kind: SyncKind,
        whole: bool,
        written: Written,
        layout: &MemoryMap,
        slice: (u64, u64),
    ) -> Self {
        let (slice_cursor, slice_pages) = slice;
        let map = layout.ranges().to_vec();
        let base = written.base;
        let begin = Begin {
            kind,
            whole,
            base,
            map,
            slice_cursor,
            slice_pages,
        };
        let pages = if base.is_none() {
            layout.all().clone()
        } else {
            written.pages
        };
        Self { begin, pages }
    }

    /// Sends it.
    ///
    /// # Errors
    /// If the link fails.
    pub async fn send(&self, link: &mut PeerLink, sync: SyncId) -> Result<(), RoundError> {
        link.send(sync, &Message::Begin(self.begin.clone())).await?;
        let pages = match self.begin.base {
            None => WireSet::All,
            Some(_) => WireSet::Pages(self.pages.clone()),
        };
        link.send(sync, &Message::Pages(pages)).await
    }

    /// Receives the rest of the peer's, whose `Begin` has come.
    ///
    /// # Errors
    /// If the link fails, or the peer's guest is laid out differently or names pages it has not.
    pub async fn receive(
        link: &mut PeerLink,
        sync: SyncId,
        begin: Begin,
        layout: &MemoryMap,
    ) -> Result<Self, RoundError> {
        if begin.map != layout.ranges() {
            return Err(ProtocolError::Layout.into());
        }
        let pages = match link.receive(sync).await? {
            Message::Pages(set) => inside(set.into_pages(layout.all()), layout.all(), "pages")?,
            other => return Err(order(&other, "pages").into()),
        };
        Ok(Self { begin, pages })
    }
}

/// Receives the backup's `Begin`. Its node may have been later than ours.
///
/// # Errors
/// If the link fails or something else comes.
pub async fn receive_begin(
    link: &mut PeerLink,
    sync: SyncId,
    wait: Duration,
) -> Result<Begin, RoundError> {
    match link.receive_any(wait).await? {
        (got, Message::Begin(begin)) if got == sync => Ok(begin),
        (got, Message::Abort { code, reason }) if got == sync => {
            Err(RoundError::PeerAborted { code, reason })
        }
        (got, _) if got != sync => Err(ProtocolError::Sync { got, want: sync }.into()),
        (_, other) => Err(order(&other, "begin").into()),
    }
}

/// Unites what both sides wrote. `primary` is the entry whose slice counts.
///
/// # Errors
/// If the two sides do not speak of the same kind of sync.
pub fn unite(layout: &MemoryMap, primary: &Entry, backup: &Entry) -> Result<Union, ProtocolError> {
    let (first, second) = (&primary.begin, &backup.begin);
    if first.kind != second.kind {
        let value = u64::from(second.kind == SyncKind::Fill);
        return Err(ProtocolError::Field {
            what: "begin",
            field: "fill",
            value,
        });
    }
    let tracked = first.base.is_some() && first.base == second.base;
    let all_memory = first.kind == SyncKind::Fill || !tracked;
    let mut written = primary.pages.clone();
    written.union_with(&backup.pages);
    let pages = if all_memory {
        layout.all().iter().collect()
    } else {
        let mut union = layout.slice(first.slice_cursor, first.slice_pages);
        union.union_with(&written);
        union.iter().collect()
    };
    let whole = first.whole || second.whole;
    Ok(Union {
        pages,
        written,
        all_memory,
        whole,
    })
}

/// Backup: sends the union's digests.
///
/// # Errors
/// If the link fails.
pub async fn send_digests(
    link: &mut PeerLink,
    sync: SyncId,
    crcs: &[PageDigest],
) -> Result<(), RoundError> {
    for part in crcs.chunks(DIGESTS_FRAME_PAGES) {
        link.send(sync, &Message::Digests(part.to_vec())).await?;
    }
    Ok(())
}

/// Primary: receives exactly as many digests as the union has pages.
///
/// # Errors
/// If the link fails, or more or something else comes.
pub async fn receive_digests(
    link: &mut PeerLink,
    sync: SyncId,
    pages: usize,
) -> Result<Vec<PageDigest>, RoundError> {
    let mut crcs = Vec::with_capacity(pages);
    while crcs.len() < pages {
        match link.receive(sync).await? {
            Message::Digests(part) if crcs.len() + part.len() <= pages => crcs.extend(part),
            Message::Digests(part) => {
                let value = (crcs.len() + part.len()) as u64;
                let what = "digests";
                return Err(ProtocolError::Field {
                    what,
                    field: "count",
                    value,
                }
                .into());
            }
            other => return Err(order(&other, "digests").into()),
        }
    }
    Ok(crcs)
}

/// Backup: receives the pages whose block digests the primary wants.
///
/// # Errors
/// If the link fails, or a page is not in the union.
pub async fn receive_ask(
    link: &mut PeerLink,
    sync: SyncId,
    union: &[PageIndex],
) -> Result<Vec<PageIndex>, RoundError> {
    let asked = match link.receive(sync).await? {
        Message::Ask(WireSet::Pages(asked)) => asked,
        Message::Ask(WireSet::All) => return Ok(union.to_vec()),
        other => return Err(order(&other, "ask").into()),
    };
    let union = union.iter().copied().collect();
    Ok(inside(asked, &union, "ask")?.iter().collect())
}

/// Backup: sends block digests, in the order of the pages asked for.
///
/// # Errors
/// If the link fails.
pub async fn send_block_digests(
    link: &mut PeerLink,
    sync: SyncId,
    pages: &[PageIndex],
    mut digests_of: impl FnMut(PageIndex) -> BlockDigests,
) -> Result<(), RoundError> {
    for part in pages.chunks(BLOCK_DIGESTS_FRAME_PAGES) {
        let mut bytes = Vec::with_capacity(part.len() * BLOCK_DIGESTS_BYTES);
        for page in part {
            digests_of(*page)
                .iter()
                .for_each(|crc| bytes.extend_from_slice(&crc.to_le_bytes()));
        }
        link.send(sync, &Message::BlockDigests(bytes.into()))
            .await?;
    }
    Ok(())
}

/// Primary: takes the block digests of page after page off the link.
#[derive(Debug, Default)]
pub struct BlockDigestReader {
    rest: Bytes,
}

impl BlockDigestReader {
    /// The block digests of the next page asked for.
    ///
    /// # Errors
    /// If the link fails, or something else comes.
    pub async fn next(
        &mut self,
        link: &mut PeerLink,
        sync: SyncId,
    ) -> Result<BlockDigests, RoundError> {
        if self.rest.is_empty() {
            self.rest = match link.receive(sync).await? {
                Message::BlockDigests(bytes) => bytes,
                other => return Err(order(&other, "block digests").into()),
            };
        }
        let have = self.rest.len();
        if have < BLOCK_DIGESTS_BYTES {
            let (what, need) = ("block digests", BLOCK_DIGESTS_BYTES);
            return Err(ProtocolError::Short { what, have, need }.into());
        }
        let bytes = self.rest.split_to(BLOCK_DIGESTS_BYTES);
        let (words, _) = bytes.as_chunks::<4>();
        let mut digests = BlockDigests::default();
        for (digest, word) in digests.iter_mut().zip(words) {
            *digest = u32::from_le_bytes(*word);
        }
        Ok(digests)
    }

    /// Checks that no digests are left over.
    ///
    /// # Errors
    /// If the peer sent more than was asked for.
    pub fn finish(&self) -> Result<(), ProtocolError> {
        match self.rest.len() {
            0 => Ok(()),
            bytes => Err(ProtocolError::Trailing {
                what: "block digests",
                bytes,
            }),
        }
    }
}

/// Backup: checks records before they are staged.
#[derive(Debug)]
pub struct RecordCheck<'a> {
    union: std::slice::Iter<'a, PageIndex>,
}

/// What a checked frame of records holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordCount {
    /// Records.
    pub records: u64,
    /// Of these, pages of zeros.
    pub zero_pages: u64,
    /// Bytes of blocks.
    pub block_bytes: u64,
}

impl<'a> RecordCheck<'a> {
    /// Records must name pages of this union, each at most once, ascending.
    #[must_use]
    pub fn new(union: &'a [PageIndex]) -> Self {
        Self {
            union: union.iter(),
        }
    }

    /// Checks a frame.
    ///
    /// # Errors
    /// If a record is cut, out of order, or names a page outside the union.
    pub fn frame(&mut self, mut bytes: &[u8]) -> Result<RecordCount, ProtocolError> {
        let mut count = RecordCount::default();
        while !bytes.is_empty() {
            let (record, rest) = Record::split_first(bytes)?;
            let page = record.page;
            if !self.union.any(|in_union| *in_union == page) {
                let not_in = "in the union after the page before";
                return Err(ProtocolError::Page {
                    what: "blocks",
                    page,
                    not_in,
                });
            }
            count.records += 1;
            count.zero_pages += u64::from(record.is_zero_page());
            count.block_bytes += record.block_bytes() as u64;
            bytes = rest;
        }
        Ok(count)
    }
}

fn inside(pages: PageSet, all: &PageSet, what: &'static str) -> Result<PageSet, ProtocolError> {
    match pages.first_outside(all) {
        None => Ok(pages),
        Some(page) => Err(ProtocolError::Page {
            what,
            page,
            not_in: "in the guest's memory",
        }),
    }
}

/// Where the newest connection from the peer waits for the next round.
#[derive(Debug, Default)]
pub struct LinkSlot {
    newest: Mutex<Option<PeerLink>>,
    arrived: Notify,
}

impl LinkSlot {
    /// Leaves a connection, in place of an older one that nobody took.
    pub fn put(&self, link: PeerLink) {
        *self
            .newest
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(link);
        self.arrived.notify_one();
    }

    /// Takes the newest connection, if one came since the last call.
    #[must_use]
    pub fn take(&self) -> Option<PeerLink> {
        self.newest
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take()
    }

    async fn next(&self) -> PeerLink {
        loop {
            let arrived = self.arrived.notified();
            if let Some(link) = self.take() {
                return link;
            }
            arrived.await;
        }
    }
}

/// Backup: waits until the primary begins this sync, on whichever connection it does so.
///
/// # Errors
/// If it begins a later sync (the connection is kept for it), or something else comes.
pub async fn await_primary(
    kept: &mut Option<PeerLink>,
    slot: &LinkSlot,
    sync: SyncId,
) -> Result<Begin, RoundError> {
    loop {
        if let Some(newest) = slot.take() {
            *kept = Some(newest);
        }
        let Some(link) = kept.as_mut().filter(|link| !link.initiated()) else {
            *kept = Some(slot.next().await);
            continue;
        };
        (link.sent_bytes, link.received_bytes) = (0, 0);
        let received = tokio::select! {
            received = link.receive_any(PEER_SILENCE_MAX) => received,
            newer = slot.next() => {
                *kept = Some(newer);
                continue;
            }
        };
        match received {
            Ok((got, Message::Begin(begin))) if got == sync => return Ok(begin),
            Ok((got, message)) if got > sync => {
                link.put_back(got, message);
                return Err(RoundError::PeerAhead(got));
            }
            Ok((got, other)) if got == sync => return Err(order(&other, "begin").into()),
            // Left over from an earlier round, or broken: the primary will connect anew.
            Ok(_) | Err(_) => *kept = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use plover_types::LogIndex;

    use super::*;
    use crate::blocks::append_whole;

    fn entry(base: Option<u64>, kind: SyncKind, pages: &[u64]) -> Entry {
        let layout = MemoryMap::new(&[(0, 64)]).expect("valid");
        let written = Written {
            pages: pages.iter().copied().map(PageIndex).collect(),
            base: base.map(|index| SyncId(LogIndex(index))),
            lost: None,
        };
        Entry::own(kind, false, written, &layout, (8, 2))
    }

    fn united(primary: &Entry, backup: &Entry) -> Vec<u64> {
        let layout = MemoryMap::new(&[(0, 64)]).expect("valid");
        let union = unite(&layout, primary, backup).expect("same kind");
        union.pages.iter().map(|page| page.0).collect()
    }

    #[test]
    fn the_union_is_what_either_side_wrote_and_the_slice() {
        let delta = SyncKind::Delta;
        let pages = united(
            &entry(Some(3), delta, &[1, 5]),
            &entry(Some(3), delta, &[5, 40]),
        );
        assert_eq!(pages, [1, 5, 8, 9, 40]);
    }

    #[test]
    fn a_fill_or_a_lost_track_makes_the_union_all_memory() {
        let (delta, fill) = (SyncKind::Delta, SyncKind::Fill);
        let all: Vec<u64> = (0..64).collect();
        assert_eq!(
            united(&entry(None, delta, &[]), &entry(Some(3), delta, &[1])),
            all
        );
        assert_eq!(
            united(&entry(Some(3), delta, &[]), &entry(None, delta, &[1])),
            all
        );
        assert_eq!(
            united(&entry(Some(3), delta, &[]), &entry(Some(2), delta, &[1])),
            all
        );
        assert_eq!(
            united(&entry(Some(3), fill, &[]), &entry(Some(3), fill, &[1])),
            all
        );
    }

    #[test]
    fn two_kinds_in_one_sync_are_refused() {
        let layout = MemoryMap::new(&[(0, 64)]).expect("valid");
        let (one, two) = (
            entry(None, SyncKind::Delta, &[]),
            entry(None, SyncKind::Fill, &[]),
        );
        assert!(unite(&layout, &one, &two).is_err());
    }

    #[test]
    fn records_outside_the_union_or_out_of_order_are_refused() {
        let union: Vec<_> = [1, 2, 5].map(PageIndex).to_vec();
        let frame = |pages: &[u64]| {
            let mut bytes = Vec::new();
            for page in pages {
                append_whole(&mut bytes, PageIndex(*page), &[1; 4096]);
            }
            bytes
        };
        let count = RecordCheck::new(&union)
            .frame(&frame(&[1, 5]))
            .expect("fine");
        assert_eq!((count.records, count.block_bytes), (2, 8192));
        assert!(RecordCheck::new(&union).frame(&frame(&[3])).is_err());
        assert!(RecordCheck::new(&union).frame(&frame(&[5, 1])).is_err());
        assert!(RecordCheck::new(&union).frame(&frame(&[2, 2])).is_err());
        let cut = frame(&[1]);
        assert!(
            RecordCheck::new(&union)
                .frame(&cut[..cut.len() - 1])
                .is_err()
        );
        let mut two_frames = RecordCheck::new(&union);
        two_frames.frame(&frame(&[2])).expect("fine");
        assert!(two_frames.frame(&frame(&[1])).is_err());
    }
}
