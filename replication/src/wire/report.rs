//! The report that a node sends about its copy, and its byte form.
//!
//! | field | bytes |
//! |---|---|
//! | sequence, incarnation, generation, applied | 8 each |
//! | copy: state u8, sync u64 (0 where there is none), certificate 16 (only if staged) | 9 or 25 |
//! | delivered: index, packet | 8, 4 |
//! | sign: index, packet | 8, 4 |
//! | idle, uplink up | 1, 1 |
//! | hash of host facts | 8 |

use bytes::{BufMut, BytesMut};
use plover_types::{Certificate, Generation, LogIndex, Position, SyncId};

use super::WireError;
use super::fields::Fields;

pub(super) const KIND: u8 = 32;

const COPY_NONE: u8 = 0;
const COPY_READY: u8 = 1;
const COPY_RUNNING: u8 = 2;
const COPY_SYNCING: u8 = 3;
const COPY_STAGED: u8 = 4;
const COPY_LOADING: u8 = 5;
const COPY_LOADED: u8 = 6;
const COPY_FAILED: u8 = 7;
const COPY_VOID: u8 = 8;

/// What a node says of itself to the others, every tick and on change. The latest one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyReport {
    /// Grows with each report of a sender's life.
    pub sequence: u64,
    /// Random per start of the sender's process.
    pub incarnation: u64,
    /// The role that the sender has applied.
    pub generation: Generation,
    /// The last entry that the sender has applied.
    pub applied: LogIndex,
    /// What the sender's copy is doing.
    pub copy: CopyState,
    /// The next packet that the sender gives to its guest.
    pub delivered: Position,
    /// What that was when the guest last gave a sign of life: it moved an index of its rings.
    pub sign: Position,
    /// Whether the sender's copy is idle.
    pub idle: bool,
    /// Whether the sender's uplink has a carrier.
    pub uplink_up: bool,
    /// Hash of what must be equal on both hosts: configuration, CPUID, TSC rate, VMM version.
    pub host_facts_hash: u64,
}

/// What a node's copy of the VM is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyState {
    /// No copy here: a witness, or the VMM is not up.
    None,
    /// The VMM waits with a void copy that can be filled.
    Ready,
    /// The copy runs.
    Running,
    /// The copy takes part in this sync and has staged nothing yet.
    Syncing {
        /// The sync.
        sync: SyncId,
    },
    /// Everything of this sync is staged and verified here. A promise: see `epoch`.
    Staged {
        /// The sync.
        sync: SyncId,
        /// What both hashers agreed on.
        certificate: Certificate,
    },
    /// The staged set of this sync is being applied.
    Loading {
        /// The sync.
        sync: SyncId,
    },
    /// This sync is applied; the copy runs from there.
    Loaded {
        /// The sync.
        sync: SyncId,
    },
    /// This sync failed here; the copy runs on.
    Failed {
        /// The sync.
        sync: SyncId,
    },
    /// Stopped for good, until it is filled again.
    Void,
}

pub(super) fn encode(report: &CopyReport, out: &mut BytesMut) {
    out.put_u64_le(report.sequence);
    out.put_u64_le(report.incarnation);
    out.put_u64_le(report.generation.0);
    out.put_u64_le(report.applied.0);
    encode_copy(&report.copy, out);
    for position in [report.delivered, report.sign] {
        out.put_u64_le(position.index.0);
        out.put_u32_le(position.packet);
    }
    out.put_u8(report.idle.into());
    out.put_u8(report.uplink_up.into());
    out.put_u64_le(report.host_facts_hash);
}

fn encode_copy(copy: &CopyState, out: &mut BytesMut) {
    let (state, sync) = match *copy {
        CopyState::None => (COPY_NONE, None),
        CopyState::Ready => (COPY_READY, None),
        CopyState::Running => (COPY_RUNNING, None),
        CopyState::Syncing { sync } => (COPY_SYNCING, Some(sync)),
        CopyState::Staged { sync, .. } => (COPY_STAGED, Some(sync)),
        CopyState::Loading { sync } => (COPY_LOADING, Some(sync)),
        CopyState::Loaded { sync } => (COPY_LOADED, Some(sync)),
        CopyState::Failed { sync } => (COPY_FAILED, Some(sync)),
        CopyState::Void => (COPY_VOID, None),
    };
    out.put_u8(state);
    out.put_u64_le(sync.map_or(0, |sync| sync.0.0));
    if let CopyState::Staged { certificate, .. } = copy {
        out.put_slice(&certificate.0);
    }
}

pub(super) fn decode(fields: &mut Fields) -> Result<CopyReport, WireError> {
    Ok(CopyReport {
        sequence: fields.u64()?,
        incarnation: fields.u64()?,
        generation: Generation(fields.bounded("generation")?),
        applied: LogIndex(fields.bounded("applied")?),
        copy: decode_copy(fields)?,
        delivered: Position {
            index: LogIndex(fields.bounded("delivered index")?),
            packet: fields.u32()?,
        },
        sign: Position {
            index: LogIndex(fields.bounded("sign index")?),
            packet: fields.u32()?,
        },
        idle: fields.flag("idle")?,
        uplink_up: fields.flag("uplink up")?,
        host_facts_hash: fields.u64()?,
    })
}

fn decode_copy(fields: &mut Fields) -> Result<CopyState, WireError> {
    let state = fields.u8()?;
    if matches!(state, COPY_NONE | COPY_READY | COPY_RUNNING | COPY_VOID) {
        return match (state, fields.u64()?) {
            (COPY_NONE, 0) => Ok(CopyState::None),
            (COPY_READY, 0) => Ok(CopyState::Ready),
            (COPY_RUNNING, 0) => Ok(CopyState::Running),
            (COPY_VOID, 0) => Ok(CopyState::Void),
            (_, value) => Err(WireError::Field {
                field: "sync of a copy outside a sync",
                value,
            }),
        };
    }
    let sync = SyncId(LogIndex(fields.positive("sync")?));
    match state {
        COPY_SYNCING => Ok(CopyState::Syncing { sync }),
        COPY_STAGED => Ok(CopyState::Staged {
            sync,
            certificate: Certificate(fields.array()?),
        }),
        COPY_LOADING => Ok(CopyState::Loading { sync }),
        COPY_LOADED => Ok(CopyState::Loaded { sync }),
        COPY_FAILED => Ok(CopyState::Failed { sync }),
        other => Err(WireError::Field {
            field: "copy state",
            value: other.into(),
        }),
    }
}
