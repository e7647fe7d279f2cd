//! The lease: until when a leader may transmit.
//!
//! A heartbeat round is named by a number that travels in the heartbeat and comes back in its
//! response. Once a quorum acknowledged round *r*, no other node can win an election before
//! `sent(r) + (election_ticks - TICKS_MADE_UP_MAX - 2) * tick`: each acknowledging follower heard
//! the leader at `sent(r)` or later and refuses votes for `election_ticks` of its own ticks after
//! that (raft-rs, check-quorum), of which so many may come early ([`ticks`](crate::ticks)). From
//! that the margin for clock drift is taken off. Check-quorum alone is no lease: it steps down up to a timeout too late.
//!
//! A group of one node has a quorum in itself: nobody else can ever win an election, and its lease
//! does not end.
//!
//! What does not live here: who is leader. A lease only counts for a node that leads.

use std::collections::VecDeque;
use std::time::Duration;

use plover_types::NodeId;

use crate::limits::{CLOCK_DRIFT_PERMILLE, LEASE_ROUNDS_MAX, TICKS_MADE_UP_MAX};
use crate::planted::{Bug, planted};

#[derive(Debug)]
struct Round {
    number: u64,
    sent: Duration,
    acknowledged: Vec<NodeId>,
}

/// Heartbeat rounds and the lease that they earn. Times are the driver's monotonic clock.
#[derive(Debug)]
pub struct Lease {
    rounds: VecDeque<Round>,
    next_number: u64,
    /// Nobody else is there to elect another.
    is_alone: bool,
    length: Duration,
    until: Duration,
}

impl Lease {
    /// A lease for a group of `nodes` nodes that elect after `election_ticks` ticks of `tick`.
    #[must_use]
    pub fn new(nodes: usize, tick: Duration, election_ticks: u32) -> Self {
        let promised = tick * election_ticks.saturating_sub(TICKS_MADE_UP_MAX + 2);
        let mut length = promised - promised * CLOCK_DRIFT_PERMILLE / 1000;
        if planted(Bug::LeaseWithoutMargin) {
            length = tick * election_ticks;
        }
        Self {
            rounds: VecDeque::with_capacity(LEASE_ROUNDS_MAX),
            next_number: 1,
            is_alone: nodes == 1,
            length,
            until: Duration::ZERO,
        }
    }

    /// Starts the round that goes out now, and names it.
    pub fn start_round(&mut self, now: Duration) -> u64 {
        if self.rounds.len() == LEASE_ROUNDS_MAX {
            self.rounds.pop_front();
        }
        let number = self.next_number;
        self.next_number += 1;
        self.rounds.push_back(Round {
            number,
            sent: now,
            acknowledged: Vec::new(),
        });
        number
    }

    /// A follower answered a round. Unknown rounds and repeated answers count for nothing.
    /// `is_quorum`: whether these followers and the leader can decide.
    pub fn acknowledge(
        &mut self,
        from: NodeId,
        number: u64,
        is_quorum: impl Fn(&[NodeId]) -> bool,
    ) {
        let Some(at) = self.rounds.iter().position(|round| round.number == number) else {
            return;
        };
        let round = &mut self.rounds[at];
        if !round.acknowledged.contains(&from) {
            round.acknowledged.push(from);
        }
        if is_quorum(&round.acknowledged) {
            self.until = self.until.max(round.sent + self.length);
            self.rounds.drain(..=at);
        }
    }

    /// Leadership was lost or newly won, or others belong to the group: what was earned under another
    /// term or from another quorum is worth nothing.
    pub fn reset(&mut self) {
        self.rounds.clear();
        self.until = Duration::ZERO;
    }

    /// Whether the lease holds at `now`.
    #[must_use]
    pub fn holds(&self, now: Duration) -> bool {
        self.is_alone || now < self.until
    }

    /// The end of the lease, on the driver's clock.
    #[must_use]
    pub fn until(&self) -> Duration {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn majority_of_three(followers: &[NodeId]) -> bool {
        !followers.is_empty()
    }

    const TICK: Duration = Duration::from_millis(10);

    fn ms(value: u64) -> Duration {
        Duration::from_millis(value)
    }

    #[test]
    fn a_group_of_one_holds_its_lease_without_a_round() {
        let mut lease = Lease::new(1, TICK, 15);
        assert!(lease.holds(ms(0)) && lease.holds(ms(1_000_000)));
        lease.reset();
        assert!(lease.holds(ms(5)));
    }

    #[test]
    fn a_quorum_of_acknowledgements_extends_the_lease_from_the_send_time() {
        let mut lease = Lease::new(3, TICK, 15);
        let round = lease.start_round(ms(1000));
        assert!(!lease.holds(ms(1000)));
        lease.acknowledge(NodeId(2), round, majority_of_three);
        assert!(lease.holds(ms(1108)));
        assert!(!lease.holds(ms(1109)), "110 ms less 1 % of drift");
    }

    #[test]
    fn a_late_answer_to_an_old_round_does_not_shorten_or_stretch_it() {
        let mut lease = Lease::new(3, TICK, 15);
        let old = lease.start_round(ms(0));
        let new = lease.start_round(ms(100));
        lease.acknowledge(NodeId(2), new, majority_of_three);
        let until = lease.until();
        lease.acknowledge(NodeId(3), old, majority_of_three);
        assert_eq!(lease.until(), until);
    }

    #[test]
    fn in_a_group_of_five_one_follower_twice_is_no_quorum() {
        let mut lease = Lease::new(5, TICK, 15);
        let round = lease.start_round(ms(0));
        let of_five = |followers: &[NodeId]| followers.len() >= 2;
        lease.acknowledge(NodeId(2), round, of_five);
        lease.acknowledge(NodeId(2), round, of_five);
        assert!(!lease.holds(ms(1)));
        lease.acknowledge(NodeId(3), round, of_five);
        assert!(lease.holds(ms(1)));
    }

    #[test]
    fn a_reset_forgets_rounds_that_are_still_out() {
        let mut lease = Lease::new(3, TICK, 15);
        let round = lease.start_round(ms(0));
        lease.reset();
        lease.acknowledge(NodeId(2), round, majority_of_three);
        assert!(!lease.holds(ms(1)));
    }
}
