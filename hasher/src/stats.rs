//! What a round did and how long each step took.

use std::time::Instant;

use serde::{Deserialize, Serialize};

/// The steps of a round, in order. A side passes through those that are its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Written pages are taken, exchanged and united.
    Collect,
    /// Every page of the union is digested.
    Digest,
    /// The backup's page digests go to the primary.
    Exchange,
    /// The primary compares them with its own.
    Compare,
    /// Block digests of differing pages come; differing blocks are copied out.
    Blocks,
    /// Blocks, device state and certificate go to the backup.
    Send,
    /// The backup writes them into the staging file.
    Stage,
    /// The backup checks digests and certificate over its memory with the staged blocks on it.
    Verify,
    /// The backup's memory is written.
    Apply,
}

/// Every step, in order.
pub const STEPS: [Step; 9] = [
    Step::Collect,
    Step::Digest,
    Step::Exchange,
    Step::Compare,
    Step::Blocks,
    Step::Send,
    Step::Stage,
    Step::Verify,
    Step::Apply,
];

/// Microseconds in each step; 0 for steps that this side has not done (yet).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "named after the steps")]
pub struct StepTimes {
    pub collect_us: u64,
    pub digest_us: u64,
    pub exchange_us: u64,
    pub compare_us: u64,
    pub blocks_us: u64,
    pub send_us: u64,
    pub stage_us: u64,
    pub verify_us: u64,
    pub apply_us: u64,
}

impl StepTimes {
    /// Adds the time since `start` to a step.
    pub fn add(&mut self, step: Step, start: Instant) {
        let field = match step {
            Step::Collect => &mut self.collect_us,
            Step::Digest => &mut self.digest_us,
            Step::Exchange => &mut self.exchange_us,
            Step::Compare => &mut self.compare_us,
            Step::Blocks => &mut self.blocks_us,
            Step::Send => &mut self.send_us,
            Step::Stage => &mut self.stage_us,
            Step::Verify => &mut self.verify_us,
            Step::Apply => &mut self.apply_us,
        };
        *field += u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    }
}

/// One side's figures of a round.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RoundStats {
    /// Pages that this side wrote (all, if it lost track).
    pub written_own_pages: u64,
    /// Pages that the peer's side wrote (all, if it lost track).
    pub written_peer_pages: u64,
    /// Pages compared: either side's and the slice's.
    pub union_pages: u64,
    /// Pages that only the rotating slice put into the union.
    pub slice_pages: u64,
    /// The union was all memory, because of a fill or a lost tracker.
    pub all_memory: bool,
    /// The union was sent whole, because of a mismatch before.
    pub whole: bool,
    /// Pages of the union that differed.
    pub divergent_pages: u64,
    /// Of these, pages that only the slice put into the union: the trackers missed them.
    pub untracked_pages: u64,
    /// Of the divergent pages, those that hold only zeros and were named, not sent.
    pub zero_pages: u64,
    /// Bytes of the blocks that differed.
    pub differing_bytes: u64,
    /// Bytes sent to the peer in this round, headers included.
    pub wire_sent_bytes: u64,
    /// Bytes received from the peer in this round, headers included.
    pub wire_received_bytes: u64,
    /// Bytes of all pages that either side wrote.
    pub dirty_bytes: u64,
    /// Bytes of all pages that the primary wrote: what a primary-backup system sends.
    pub primary_dirty_bytes: u64,
    /// Time in each step.
    pub times: StepTimes,
}
