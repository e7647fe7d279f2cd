//! Messages between the two hashers of a group, and their byte form.
//!
//! ```text
//! primary's hasher                              backup's hasher
//!   connects, Hello  ───────────────────────────▶
//!                    ◀───────────────────────────  Hello
//!   Key              ───────────────────────────▶            once per connection
//!   Begin, Pages     ───────────────────────────▶            each round
//!                    ◀───────────────────────────  Begin, Pages
//!                    ◀───────────────────────────  Digests…
//!   Ask              ───────────────────────────▶
//!                    ◀───────────────────────────  BlockDigests…
//!   Blocks… State…   ───────────────────────────▶
//!   Seal             ───────────────────────────▶
//!                    ◀───────────────────────────  Done
//!   Abort            ◀──────── at any time ──────▶  Abort
//! ```
//!
//! A frame is a header of 28 bytes (magic u32, version u16, kind u16, sync u64, payload length
//! u32, CRC32C of the payload u32, CRC32C of the header up to here u32), then the payload. All
//! little endian. The header has its own checksum, so that a damaged length makes nobody wait.
//! A peer of another version is refused at its first frame; any change of a byte form
//! makes a new version. Only the form is checked here; whether a page exists, and whether a
//! message is due, is checked in `exchange`.

use bytes::{BufMut, Bytes, BytesMut};
use plover_types::{Certificate, LogIndex, NodeId, PageDigest, Position, SyncId, SyncKind};

use crate::certificate::{CertificateKey, KEY_BYTES, StateTag};
use crate::error::ProtocolError;
use crate::limits::{
    DEVICE_STATE_BYTES_MAX, FRAME_BYTES_MAX, GROUP_NAME_BYTES_MAX, PAGES_MAX, REASON_BYTES_MAX,
    REGIONS_MAX,
};
use crate::page_set::PageSet;

/// "PLVH".
pub const MAGIC: u32 = u32::from_le_bytes(*b"PLVH");

/// The only version so far.
pub const VERSION: u16 = 1;

/// Bytes before the payload.
pub const HEADER_BYTES: usize = 28;

const CHECKED_HEADER_BYTES: usize = HEADER_BYTES - 4;

const SET_ALL: u8 = 0;
const SET_RUNS: u8 = 1;
const SET_BITS: u8 = 2;

/// How a side enters a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begin {
    /// Delta or fill, as the side's node said.
    pub kind: SyncKind,
    /// The last round fell to a mismatch: send the union whole.
    pub whole: bool,
    /// The last sync that this side completed and tracked on from; none after a tracker was lost.
    pub base: Option<SyncId>,
    /// The guest's layout, (first page, count).
    pub map: Vec<(u64, u64)>,
    /// First page (by count, not by number) of the slice of pages thought untouched. The
    /// primary's word counts.
    pub slice_cursor: u64,
    /// Pages in the slice.
    pub slice_pages: u64,
}

/// A set of pages in its byte form, not yet compared with any layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WireSet {
    /// Every page of the guest.
    All,
    /// These pages, all below [`PAGES_MAX`].
    Pages(PageSet),
}

/// The end of what the primary sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// The primary's delivered position at the sync point.
    pub position: Position,
    /// Over the union.
    pub certificate: Certificate,
    /// Over state, position and sync.
    pub state_tag: StateTag,
    /// Bytes of device state that were sent.
    pub state_bytes: u64,
    /// Page records that were sent.
    pub records: u64,
}

/// Why a side gave a round up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortCode {
    /// Anything but the others.
    Failed,
    /// The staged memory was not the primary's: the next round must send its union whole.
    Mismatch,
}

/// A message. Lists longer than a frame come in several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Who speaks.
    Hello {
        /// The replica group.
        group: String,
        /// The node.
        node: NodeId,
    },
    /// The secret of this connection.
    Key(CertificateKey),
    /// A round begins.
    Begin(Begin),
    /// Pages that the sender's side wrote.
    Pages(WireSet),
    /// CRC32Cs of the union's pages, in its order.
    Digests(Vec<PageDigest>),
    /// Pages whose block digests the primary wants.
    Ask(WireSet),
    /// Block digests of the pages asked for, in their order.
    BlockDigests(Bytes),
    /// Page records, see `blocks`.
    Blocks(Bytes),
    /// Device state, continued.
    State(Bytes),
    /// All was sent.
    Seal(Seal),
    /// All is staged and verified.
    Done,
    /// The round is over.
    Abort {
        /// Why, for the machine.
        code: AbortCode,
        /// Why, for the log.
        reason: String,
    },
}

impl Message {
    /// Its name, for errors.
    #[must_use]
    pub fn name(&self) -> &'static str {
        KIND_NAMES[usize::from(self.kind())]
    }

    fn kind(&self) -> u16 {
        match self {
            Self::Hello { .. } => 1,
            Self::Key(_) => 2,
            Self::Begin(_) => 3,
            Self::Pages(_) => 4,
            Self::Digests(_) => 5,
            Self::Ask(_) => 6,
            Self::BlockDigests(_) => 7,
            Self::Blocks(_) => 8,
            Self::State(_) => 9,
            Self::Seal(_) => 10,
            Self::Done => 11,
            Self::Abort { .. } => 12,
        }
    }

    /// The frame's header and payload. Bulk payloads are shared, not copied.
    #[must_use]
    pub fn encode(&self, sync: SyncId) -> (Bytes, Bytes) {
        let payload = self.payload();
        assert!(payload.len() <= FRAME_BYTES_MAX, "own message too long");
        let mut header = BytesMut::with_capacity(HEADER_BYTES);
        header.put_u32_le(MAGIC);
        header.put_u16_le(VERSION);
        header.put_u16_le(self.kind());
        header.put_u64_le(sync.0.0);
        header.put_u32_le(payload.len() as u32);
        header.put_u32_le(crc32c::crc32c(&payload));
        header.put_u32_le(crc32c::crc32c(&header));
        (header.freeze(), payload)
    }

    fn payload(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Self::Hello { group, node } => {
                out.put_u64_le(node.0);
                put_text(&mut out, group, GROUP_NAME_BYTES_MAX);
            }
            Self::Key(key) => out.put_slice(&key.0),
            Self::Begin(begin) => begin.put(&mut out),
            Self::Pages(set) | Self::Ask(set) => set.put(&mut out),
            Self::Digests(crcs) => crcs.iter().for_each(|crc| out.put_u32_le(crc.0)),
            Self::BlockDigests(bytes) | Self::Blocks(bytes) | Self::State(bytes) => {
                return bytes.clone();
            }
            Self::Seal(seal) => {
                put_position(&mut out, seal.position);
                out.put_slice(&seal.certificate.0);
                out.put_slice(&seal.state_tag.0);
                out.put_u64_le(seal.state_bytes);
                out.put_u64_le(seal.records);
            }
            Self::Done => {}
            Self::Abort { code, reason } => {
                out.put_u8(match code {
                    AbortCode::Failed => 1,
                    AbortCode::Mismatch => 2,
                });
                put_text(&mut out, reason, REASON_BYTES_MAX);
            }
        }
        out.freeze()
    }
}

const KIND_NAMES: [&str; 13] = [
    "nothing",
    "hello",
    "key",
    "begin",
    "pages",
    "digests",
    "ask",
    "block digests",
    "blocks",
    "state",
    "seal",
    "done",
    "abort",
];

/// A frame's header, checked but for the checksum, which needs the payload.
#[derive(Clone, Copy, Debug)]
pub struct FrameHeader {
    kind: u16,
    sync: SyncId,
    payload_bytes: usize,
    payload_crc: u32,
}

impl FrameHeader {
    /// Checks and reads a header.
    ///
    /// # Errors
    /// Names what is wrong: magic, version, kind or length.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, ProtocolError> {
        let mut body = Body {
            what: "frame header",
            bytes,
            at: 0,
        };
        let magic = body.u32()?;
        if magic != MAGIC {
            return Err(ProtocolError::Magic(magic));
        }
        let version = body.u16()?;
        if version != VERSION {
            return Err(ProtocolError::Version(version));
        }
        let kind = body.u16()?;
        if kind == 0 || usize::from(kind) >= KIND_NAMES.len() {
            return Err(ProtocolError::Kind(kind));
        }
        let sync = SyncId(LogIndex(body.u64()?));
        let length = body.u32()?;
        let payload_crc = body.u32()?;
        if body.u32()? != crc32c::crc32c(&bytes[..CHECKED_HEADER_BYTES]) {
            return Err(ProtocolError::Checksum { kind });
        }
        if length as usize > FRAME_BYTES_MAX {
            return Err(ProtocolError::Long(length));
        }
        Ok(Self {
            kind,
            sync,
            payload_bytes: length as usize,
            payload_crc,
        })
    }

    /// Bytes of payload that follow.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    /// The sync that the frame belongs to; 0 before the first.
    #[must_use]
    pub fn sync(&self) -> SyncId {
        self.sync
    }

    /// Checks and reads the message.
    ///
    /// # Errors
    /// Names the first thing that is wrong.
    pub fn message(&self, payload: Bytes) -> Result<Message, ProtocolError> {
        if crc32c::crc32c(&payload) != self.payload_crc {
            return Err(ProtocolError::Checksum { kind: self.kind });
        }
        let what = KIND_NAMES[usize::from(self.kind)];
        let mut body = Body {
            what,
            bytes: &payload,
            at: 0,
        };
        let message = match self.kind {
            1 => Message::Hello {
                node: NodeId(body.u64()?),
                group: body.text(GROUP_NAME_BYTES_MAX)?,
            },
            2 => Message::Key(CertificateKey(body.array::<KEY_BYTES>()?)),
            3 => Message::Begin(Begin::read(&mut body)?),
            4 => Message::Pages(WireSet::read(&mut body)?),
            5 => Message::Digests(body.digests()?),
            6 => Message::Ask(WireSet::read(&mut body)?),
            7 => return Ok(Message::BlockDigests(payload)),
            8 => return Ok(Message::Blocks(payload)),
            9 => return Ok(Message::State(payload)),
            10 => Message::Seal(Seal {
                position: body.position()?,
                certificate: Certificate(body.array()?),
                state_tag: StateTag(body.array()?),
                state_bytes: body.at_most("state bytes", DEVICE_STATE_BYTES_MAX as u64)?,
                records: body.at_most("records", PAGES_MAX)?,
            }),
            11 => Message::Done,
            _ => Message::Abort {
                code: match body.u8()? {
                    1 => AbortCode::Failed,
                    2 => AbortCode::Mismatch,
                    other => return Err(body.field("code", other.into())),
                },
                reason: body.text(REASON_BYTES_MAX)?,
            },
        };
        body.end()?;
        Ok(message)
    }
}

impl Begin {
    fn put(&self, out: &mut BytesMut) {
        out.put_u8(match self.kind {
            SyncKind::Delta => 1,
            SyncKind::Fill => 2,
        });
        out.put_u8(self.whole.into());
        // Sync 0 does not exist: index 0 stands before the log's first entry.
        out.put_u64_le(self.base.map_or(0, |sync| sync.0.0));
        out.put_u64_le(self.slice_cursor);
        out.put_u64_le(self.slice_pages);
        out.put_u16_le(self.map.len() as u16);
        for (start, count) in &self.map {
            out.put_u64_le(*start);
            out.put_u64_le(*count);
        }
    }

    fn read(body: &mut Body<'_>) -> Result<Self, ProtocolError> {
        let kind = match body.u8()? {
            1 => SyncKind::Delta,
            2 => SyncKind::Fill,
            other => return Err(body.field("kind", other.into())),
        };
        let whole = match body.u8()? {
            0 => false,
            1 => true,
            other => return Err(body.field("whole", other.into())),
        };
        let base = body.u64()?;
        let slice_cursor = body.at_most("slice cursor", PAGES_MAX)?;
        let slice_pages = body.at_most("slice pages", PAGES_MAX)?;
        let ranges = body.u16()?;
        if usize::from(ranges) > REGIONS_MAX {
            return Err(body.field("ranges", ranges.into()));
        }
        let mut map = Vec::with_capacity(ranges.into());
        for _ in 0..ranges {
            map.push((body.u64()?, body.u64()?));
        }
        let base = (base != 0).then_some(SyncId(LogIndex(base)));
        Ok(Self {
            kind,
            whole,
            base,
            map,
            slice_cursor,
            slice_pages,
        })
    }
}

impl WireSet {
    /// The set's own pages, or all of the layout.
    #[must_use]
    pub fn into_pages(self, all: &PageSet) -> PageSet {
        match self {
            Self::All => all.clone(),
            Self::Pages(pages) => pages,
        }
    }

    fn put(&self, out: &mut BytesMut) {
        let Self::Pages(set) = self else {
            out.put_u8(SET_ALL);
            return;
        };
        let words = set.words();
        let bits_bytes = 4 + words.len() * 8;
        let runs: usize = set.runs().take(bits_bytes / 8 + 1).count();
        if runs * 8 + 4 <= bits_bytes {
            out.put_u8(SET_RUNS);
            out.put_u32_le(runs as u32);
            for (start, count) in set.runs() {
                out.put_u32_le(start as u32);
                out.put_u32_le(count as u32);
            }
        } else {
            out.put_u8(SET_BITS);
            out.put_u32_le(words.len() as u32);
            words.iter().for_each(|word| out.put_u64_le(*word));
        }
    }

    fn read(body: &mut Body<'_>) -> Result<Self, ProtocolError> {
        match body.u8()? {
            SET_ALL => Ok(Self::All),
            SET_RUNS => {
                let runs = body.u32()?;
                let mut set = PageSet::new();
                let mut end = 0;
                for _ in 0..runs {
                    let (start, count) = (u64::from(body.u32()?), u64::from(body.u32()?));
                    if start < end || count == 0 || start + count > PAGES_MAX {
                        return Err(body.field("run", start));
                    }
                    set.insert_range(start, count);
                    end = start + count;
                }
                Ok(Self::Pages(set))
            }
            SET_BITS => {
                let words = u64::from(body.u32()?);
                if words > PAGES_MAX / 64 {
                    return Err(body.field("words", words));
                }
                let bytes = body.take(words as usize * 8)?;
                let (words, _) = bytes.as_chunks::<8>();
                let words = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
                Ok(Self::Pages(PageSet::from_words(words)))
            }
            other => Err(body.field("form", other.into())),
        }
    }
}

fn put_position(out: &mut BytesMut, position: Position) {
    out.put_u64_le(position.index.0);
    out.put_u32_le(position.packet);
}

fn put_text(out: &mut BytesMut, text: &str, bytes_max: usize) {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    out.put_u16_le(end as u16);
    out.put_slice(&text.as_bytes()[..end]);
}

/// Reads fields of a payload, never past its end.
struct Body<'a> {
    what: &'static str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Body<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], ProtocolError> {
        let have = self.bytes.len();
        let need = self.at.saturating_add(count);
        let bytes = self.bytes.get(self.at..need);
        let bytes = bytes.ok_or(ProtocolError::Short {
            what: self.what,
            have,
            need,
        })?;
        self.at = need;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtocolError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u8(&mut self) -> Result<u8, ProtocolError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, ProtocolError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, ProtocolError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, ProtocolError> {
        self.array().map(u64::from_le_bytes)
    }

    fn at_most(&mut self, name: &'static str, most: u64) -> Result<u64, ProtocolError> {
        let value = self.u64()?;
        if value > most {
            return Err(self.field(name, value));
        }
        Ok(value)
    }

    fn position(&mut self) -> Result<Position, ProtocolError> {
        Ok(Position {
            index: LogIndex(self.u64()?),
            packet: self.u32()?,
        })
    }

    fn text(&mut self, bytes_max: usize) -> Result<String, ProtocolError> {
        let length = self.u16()?;
        if usize::from(length) > bytes_max {
            return Err(self.field("text length", length.into()));
        }
        let bytes = self.take(length.into())?;
        std::str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|error| self.field("text, not UTF-8 at byte", error.valid_up_to() as u64))
    }

    fn digests(&mut self) -> Result<Vec<PageDigest>, ProtocolError> {
        let (digests, odd) = self.bytes.as_chunks::<4>();
        if !odd.is_empty() || digests.is_empty() {
            return Err(self.field("length", self.bytes.len() as u64));
        }
        self.at = self.bytes.len();
        Ok(digests
            .iter()
            .map(|crc| PageDigest(u32::from_le_bytes(*crc)))
            .collect())
    }

    fn field(&self, field: &'static str, value: u64) -> ProtocolError {
        ProtocolError::Field {
            what: self.what,
            field,
            value,
        }
    }

    fn end(&self) -> Result<(), ProtocolError> {
        match self.bytes.len() - self.at {
            0 => Ok(()),
            bytes => Err(ProtocolError::Trailing {
                what: self.what,
                bytes,
            }),
        }
    }
}

#[cfg(test)]
mod tests;
