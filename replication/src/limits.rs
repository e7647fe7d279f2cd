//! Limits of the replicated log, each with its reason.

use std::time::Duration;

use plover_types::limits::ENTRY_BYTES_MAX;

/// Bytes of entries in one append message. A lagging follower catches up in messages of this
/// size; a longer entry goes alone.
pub const APPEND_BYTES_MAX: u64 = 64 * 1024;

/// Appends in flight to one follower: at 64 KiB each, 16 MiB, more than a 40 Gbit/s link holds
/// in a millisecond.
pub const APPENDS_IN_FLIGHT_MAX: usize = 256;

/// Bytes of proposed but uncommitted entries. Beyond it a proposal is refused and the burst
/// waits with the caller: this bounds what a leader without a quorum piles up.
pub const UNCOMMITTED_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Bytes of log kept in memory (all since the last finished sync). Beyond it `admit` drops new
/// input: a guest that takes no packets, or a group that finishes no sync, must not eat the host.
pub const LOG_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Packets offered for delivery at once: a DPDK burst, and what the guest's ring takes in a pass.
pub const RUN_PACKETS_MAX: usize = 32;

/// Entries by which the log may outgrow what is needed before it is compacted: a batch, so that
/// the snapshot behind it is not written for each entry.
pub const COMPACT_ENTRIES: u64 = 256;

/// Bytes by which a log that is only in memory may outgrow what is needed: its entries' memory is
/// used again while it still is in the processor's cache.
pub const COMPACT_BYTES: usize = 256 * 1024;

/// Entries that a compaction drops at least.
pub const COMPACT_ENTRIES_MIN: u64 = 4;

/// How long the group waits after a sync was given up before it starts another.
pub const RETRY_AFTER_ABORT: Duration = Duration::from_millis(50);

/// How long it waits after a failed fill, the first time: a fill pauses the primary, so a backup
/// that cannot be filled must not be tried again and again.
pub const RETRY_AFTER_FILL: Duration = Duration::from_secs(1);

/// The wait doubles with each failed fill, up to this.
pub const RETRY_AFTER_FILL_MAX: Duration = Duration::from_secs(10);

/// A fill may take this many times as long as another sync.
pub const FILL_TIMEOUTS: u32 = 12;

/// Ticks between the end of a follower's promise to grant no vote and the first node's election:
/// the first tick after a heartbeat may follow at once, on both of them. Without it the first
/// node's request would come while the others still refuse.
pub const ELECTION_GRACE_TICKS: usize = 2;

/// Syncs given up in a row after which the backup counts as lost: output must not wait for ever
/// on a backup whose node lives and whose hasher or VMM does not.
pub const ABORTED_IN_A_ROW_MAX: u32 = 5;

/// Entries that a newcomer may lack when it is given its vote: those that are under way.
pub const CAUGHT_UP_ENTRIES: u64 = 64;

/// Rounds of raft-rs's output that wait for the disk; beyond it messages from peers are refused, as
/// if they were lost on the way.
pub const AWAITING_PERSIST_MAX: usize = 256;

/// Heartbeat rounds whose send time is remembered for the lease. One starts each tick; a round
/// that is not acknowledged within this many ticks is older than any lease.
pub const LEASE_ROUNDS_MAX: usize = 64;

/// Ticks that a host which noticed them late makes up for.
pub const TICKS_MADE_UP_MAX: u32 = 2;

/// Assumed worst drift between two hosts' clocks, in parts per thousand of the time measured.
/// Crystal oscillators stay within 0.1; virtual clocks are given ten times the usual margin.
pub const CLOCK_DRIFT_PERMILLE: u32 = 10;

/// Ticks by which the election timeouts of two nodes differ: replicas first, the witness last.
/// Nothing is drawn at random, so two nodes do not split the vote, a worst case can be stated, and
/// a simulated group does the same for the same seed.
pub const ELECTION_STAGGER_TICKS: usize = 3;

/// Ticks from the end of the election timeout until the replica listed second asks for votes: with
/// them the detection time is counted that a configuration names.
pub const DETECTION_TICKS_BEYOND: u32 = (ELECTION_GRACE_TICKS + ELECTION_STAGGER_TICKS) as u32;

/// Ticks of an election timeout, at least: a few heartbeats may be lost, and the lease, which is
/// four ticks shorter, has to outlive them.
pub const ELECTION_TICKS_MIN: u32 = 10;

/// The election timeout in ticks with which a replica that last heard its leader asks for votes after
/// `detection` at the latest; none if there are too few ticks in it.
#[must_use]
pub fn election_ticks(detection: Duration, tick: Duration) -> Option<u32> {
    let ticks = u32::try_from(detection.as_micros().checked_div(tick.as_micros())?).ok()?;
    ticks
        .checked_sub(DETECTION_TICKS_BEYOND)
        .filter(|ticks| *ticks >= ELECTION_TICKS_MIN)
}

/// Election timeouts without a report after which a peer counts as lost.
pub const PEER_LOST_TIMEOUTS: u32 = 2;

/// A lost handover is tried again after this many election timeouts.
pub const HANDOVER_RETRY_TIMEOUTS: u32 = 2;

/// How long a next hop may be silent before it is asked for its MAC address again.
pub const NEIGHBOUR_ASK_AFTER: Duration = Duration::from_secs(20);

/// How long it may be silent until its MAC address is forgotten.
pub const NEIGHBOUR_FORGET_AFTER: Duration = Duration::from_secs(60);

/// A question that is not answered is asked again after this, and then after twice as long each
/// time: the first answer is wanted before the first election.
pub const NEIGHBOUR_RETRY: Duration = Duration::from_millis(20);

/// Up to this.
pub const NEIGHBOUR_RETRY_MAX: Duration = Duration::from_secs(1);

/// Questions for MAC addresses that we ask a second: at most three hops are asked for at once.
pub const QUESTIONS_PER_SECOND_MAX: u32 = 64;

/// Questions for our MAC address that are answered a second. Three nodes and a gateway ask a few
/// times a minute; whoever floods the link gets no more out of us than this.
pub const ANSWERS_PER_SECOND_MAX: u32 = 64;

/// Echo requests that are answered a second.
pub const ECHOES_PER_SECOND_MAX: u32 = 32;

/// Frames of our own (questions, answers, echoes, handshakes) that wait to be sent.
pub const OUTBOX_FRAMES_MAX: usize = 32;

/// Their bytes.
pub const OUTBOX_BYTES_MAX: usize = 32 * 1024;

/// Datagrams on their way to one peer at first, until acknowledgements tell what the way holds.
pub const WINDOW_DATAGRAMS_START: u32 = 64;

/// At least: a window that losses made small still carries a burst of input in one go.
pub const WINDOW_DATAGRAMS_MIN: u32 = 32;

/// At most. Two peers' windows together overrun no driver ring of 256 descriptors by more than what
/// it sends meanwhile, and a 10 Gbit/s link is full at 300 µs round trip.
pub const WINDOW_DATAGRAMS_MAX: u32 = 256;

/// Datagrams that one turn of the poll core sends to one peer: two peers' fit a driver ring of 256.
pub const DATAGRAMS_PER_TURN_MAX: usize = 64;

/// Numbers between the oldest datagram that is not acknowledged and the newest: what an
/// acknowledgement's bits cover.
pub const NUMBERS_MAX: usize = 512;

/// Messages between the oldest that is not acknowledged and the newest.
pub const MESSAGES_MAX: usize = 1024;

/// Bytes of messages that wait for one peer's acknowledgement. As much as may be uncommitted; what
/// does not fit is dropped, and raft-rs sends it again when the peer is back.
pub const SEND_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes of one peer's messages that are incomplete, or wait for one before them.
pub const RECEIVE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Messages of one peer that may be incomplete at once.
pub const REASSEMBLY_SLOTS_MAX: usize = 64;

/// Later datagrams that must have arrived before an earlier one counts as lost (RFC 9002 says why 3).
pub const REORDER_DATAGRAMS: u64 = 3;

/// A datagram that a later one overtook is lost after 9/8 of a round trip, and after this at least:
/// below it, a poll core's own turns are what is measured.
pub const REORDER_TIME_MIN: Duration = Duration::from_micros(250);

/// The last datagrams of a burst, which nothing follows, are sent again after a round trip, four times
/// its variation, and at least this much: a core that shares its processor answers late now and then.
pub const PROBE_MARGIN_MIN: Duration = Duration::from_millis(1);

/// The same before anything was measured.
pub const PROBE_UNMEASURED: Duration = Duration::from_millis(10);

/// Probes in a row that are not answered until everything for that peer is dropped. The wait doubles
/// with each: about 60 ms on a fast link, less than the shortest election timeout that is usual, and
/// what is older than that is better asked for anew by raft-rs.
pub const PROBES_MAX: u32 = 6;

/// How long an acknowledgement of a short message waits for a message that carries it.
pub const ACK_DELAY: Duration = Duration::from_micros(200);

/// Short messages that are acknowledged at once when so many wait for it.
pub const ACKS_DELAYED_MAX: u32 = 16;

/// Boot ids of a peer that are remembered, so that what its former lives sent is known as old.
pub const BOOTS_REMEMBERED: usize = 4;

const _: () = assert!(2 * DATAGRAMS_PER_TURN_MAX <= 256);
const _: () = assert!(WINDOW_DATAGRAMS_MAX as usize * 2 <= NUMBERS_MAX);
const _: () = assert!(ACK_DELAY.as_micros() < PROBE_MARGIN_MIN.as_micros());
const _: () = assert!(UNCOMMITTED_BYTES_MAX as usize >= 8 * ENTRY_BYTES_MAX);
const _: () = assert!(LOG_BYTES_MAX as u64 > UNCOMMITTED_BYTES_MAX);
const _: () = assert!(CLOCK_DRIFT_PERMILLE < 500);
