//! The output rule: when a packet that the guest sent may leave this host.
//!
//! A packet of epoch *e* leaves the primary only when `SyncEnd` of a sync that closed *e* is
//! committed and applied, or when the committed role says unprotected; and always only under a
//! live lease. The lease is checked by the caller before each transmit burst
//! ([`Core::may_transmit`](crate::core::Core::may_transmit)); here is the bookkeeping of epochs.
//!
//! ```text
//!             push                 close(i)                end(i)
//!   guest ──────────▶ open epoch ───────────▶ closed by i ─────────▶ agreed ──▶ uplink
//!                         ▲                        │ abort(i)
//!                         └────────────────────────┘
//! ```

use std::collections::VecDeque;

use plover_types::{Mode, NodeId, RoleEntry, SyncId, SyncKind};

use crate::group::SyncInFlight;
use crate::planted::{Bug, planted};

/// What happens to a packet that the guest sends now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputPolicy {
    /// It waits for its epoch.
    Hold,
    /// It leaves at once (under the lease).
    Pass,
}

/// The policy that a committed role and a sync in flight demand of node `own`.
///
/// While a copy is being filled the group is unprotected, but from the pause of the fill on
/// (`closed`) output waits: once the role makes the group protected, it belongs to an epoch that
/// the new copy has not seen.
#[must_use]
pub fn policy(
    own: NodeId,
    role: Option<&RoleEntry>,
    sync: Option<&SyncInFlight>,
    closed: bool,
) -> OutputPolicy {
    let Some(role) = role else {
        return OutputPolicy::Hold;
    };
    let filling = sync.is_some_and(|sync| sync.kind == SyncKind::Fill);
    match role.mode {
        Mode::Unprotected
            if role.primary == own
                && (!(filling && closed) || planted(Bug::FillPassesAfterPause)) =>
        {
            OutputPolicy::Pass
        }
        _ => OutputPolicy::Hold,
    }
}

/// Guest output in the order in which it was sent: first what is agreed, then closed epochs,
/// then the open one.
#[derive(Debug)]
pub struct HoldQueue<T> {
    packets: VecDeque<T>,
    /// Packets from the front that may leave.
    agreed: usize,
    /// Ends of closed epochs, as counts from the front, in order.
    closed: VecDeque<(SyncId, usize)>,
    policy: OutputPolicy,
}

impl<T> Default for HoldQueue<T> {
    fn default() -> Self {
        Self {
            packets: VecDeque::new(),
            agreed: 0,
            closed: VecDeque::new(),
            policy: OutputPolicy::Hold,
        }
    }
}

impl<T> HoldQueue<T> {
    /// Takes a packet of the open epoch.
    pub fn push(&mut self, packet: T) {
        self.packets.push_back(packet);
        // An epoch that is closed waits for its sync, and so does what follows it.
        if self.policy == OutputPolicy::Pass && self.closed.is_empty() {
            self.agree_all();
        }
    }

    /// Takes packets of the open epoch, in order.
    pub fn extend(&mut self, packets: impl IntoIterator<Item = T>) {
        self.packets.extend(packets);
        if self.policy == OutputPolicy::Pass && self.closed.is_empty() {
            self.agree_all();
        }
    }

    /// Sets what happens to packets from now on. `Pass` also lets go what waits: it is set only
    /// when the committed role says unprotected.
    pub fn set_policy(&mut self, policy: OutputPolicy) {
        self.policy = policy;
        if policy == OutputPolicy::Pass {
            self.agree_all();
        }
    }

    /// The VM was paused for `sync`: what was sent before belongs to the epoch that it closes.
    pub fn close(&mut self, sync: SyncId) {
        self.closed.push_back((sync, self.packets.len()));
    }

    /// `SyncEnd(sync)` is applied: its epoch, and those before it, may leave.
    pub fn end(&mut self, sync: SyncId) {
        while let Some((closed, end)) = self.closed.front().copied() {
            if closed > sync {
                break;
            }
            self.agreed = self.agreed.max(end);
            self.closed.pop_front();
        }
    }

    /// The sync is given up: its epoch merges into the next.
    pub fn abort(&mut self, sync: SyncId) {
        self.closed.retain(|(closed, _)| *closed != sync);
    }

    /// Forgets everything: the copy that sent it was replaced, or is void.
    pub fn discard(&mut self) -> usize {
        let discarded = self.packets.len();
        self.packets.clear();
        self.closed.clear();
        self.agreed = 0;
        discarded
    }

    /// The next packet that may leave.
    pub fn pop_agreed(&mut self) -> Option<T> {
        if self.agreed == 0 {
            return None;
        }
        self.agreed -= 1;
        for (_, end) in &mut self.closed {
            *end -= 1;
        }
        self.packets.pop_front()
    }

    /// Gives up to `room` packets that may leave to `take`, in order. Returns how many.
    pub fn take_agreed(&mut self, room: usize, take: impl FnMut(T)) -> usize {
        let count = room.min(self.agreed);
        self.agreed -= count;
        for (_, end) in &mut self.closed {
            *end -= count;
        }
        self.packets.drain(..count).for_each(take);
        count
    }

    /// Puts back a packet that [`Self::pop_agreed`] gave out and the port did not take. Packets
    /// are put back in reverse order.
    pub fn unpop_agreed(&mut self, packet: T) {
        self.agreed += 1;
        for (_, end) in &mut self.closed {
            *end += 1;
        }
        self.packets.push_front(packet);
    }

    /// Whether an epoch is closed and not yet ended or aborted.
    #[must_use]
    pub fn has_closed(&self) -> bool {
        !self.closed.is_empty()
    }

    /// Packets that wait for their epoch.
    #[must_use]
    pub fn held(&self) -> usize {
        self.packets.len() - self.agreed
    }

    /// Packets that may leave.
    #[must_use]
    pub fn agreed(&self) -> usize {
        self.agreed
    }

    /// All packets.
    #[must_use]
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    fn agree_all(&mut self) {
        self.agreed = self.packets.len();
        self.closed.clear();
    }
}

#[cfg(test)]
mod tests {
    use plover_types::{CopySet, Generation, LogIndex};
    use proptest::prelude::*;

    use super::*;

    fn sync(index: u64) -> SyncId {
        SyncId(LogIndex(index))
    }

    fn drain(queue: &mut HoldQueue<u32>) -> Vec<u32> {
        std::iter::from_fn(|| queue.pop_agreed()).collect()
    }

    #[test]
    fn nothing_leaves_before_its_epoch_ends() {
        let mut queue = HoldQueue::default();
        queue.push(1);
        queue.close(sync(5));
        queue.push(2);
        assert_eq!(drain(&mut queue), []);
        queue.end(sync(5));
        assert_eq!(drain(&mut queue), [1]);
        assert_eq!(queue.held(), 1);
    }

    #[test]
    fn an_aborted_epoch_leaves_with_the_next() {
        let mut queue = HoldQueue::default();
        queue.push(1);
        queue.close(sync(5));
        queue.abort(sync(5));
        queue.push(2);
        queue.close(sync(9));
        queue.push(3);
        queue.end(sync(5));
        assert_eq!(drain(&mut queue), []);
        queue.end(sync(9));
        assert_eq!(drain(&mut queue), [1, 2]);
    }

    #[test]
    fn unprotected_output_leaves_at_once_and_in_order() {
        let mut queue = HoldQueue::default();
        queue.push(1);
        queue.close(sync(5));
        queue.push(2);
        queue.set_policy(OutputPolicy::Pass);
        queue.push(3);
        assert_eq!(drain(&mut queue), [1, 2, 3]);
    }

    #[test]
    fn a_packet_that_the_port_refused_keeps_its_place_and_its_epoch() {
        let mut queue = HoldQueue::default();
        queue.push(1);
        queue.push(2);
        queue.close(sync(5));
        queue.push(3);
        queue.close(sync(8));
        queue.end(sync(5));
        let first = queue.pop_agreed().expect("agreed");
        queue.unpop_agreed(first);
        assert_eq!(drain(&mut queue), [1, 2]);
        queue.end(sync(8));
        assert_eq!(drain(&mut queue), [3]);
    }

    #[test]
    fn only_a_committed_unprotected_role_that_names_us_lets_output_pass() {
        let me = NodeId(1);
        let role = |mode, primary| RoleEntry {
            generation: Generation(1),
            primary,
            mode,
            valid: CopySet::of(&[me]),
        };
        let fill = SyncInFlight {
            id: sync(3),
            kind: SyncKind::Fill,
            ended: false,
        };
        let unprotected = role(Mode::Unprotected, me);
        assert_eq!(policy(me, None, None, false), OutputPolicy::Hold);
        assert_eq!(
            policy(me, Some(&unprotected), None, false),
            OutputPolicy::Pass
        );
        assert_eq!(
            policy(me, Some(&unprotected), Some(&fill), false),
            OutputPolicy::Pass
        );
        assert_eq!(
            policy(me, Some(&unprotected), Some(&fill), true),
            OutputPolicy::Hold
        );
        let protected = role(Mode::Protected, me);
        assert_eq!(
            policy(me, Some(&protected), None, false),
            OutputPolicy::Hold
        );
        let other = role(Mode::Unprotected, NodeId(2));
        assert_eq!(policy(me, Some(&other), None, false), OutputPolicy::Hold);
    }

    proptest! {
        /// Against a model that tags each packet with the syncs that closed it.
        #[test]
        fn packets_leave_in_order_and_only_when_agreed(steps in proptest::collection::vec(0u8..6, 1..200)) {
            let mut queue = HoldQueue::default();
            let mut next_packet = 0u32;
            let mut next_sync = 1u64;
            let mut in_flight: Option<(u64, u32)> = None;
            let mut agreed_to = 0u32;
            let mut left = 0u32;
            for step in steps {
                match step {
                    0..=1 => { queue.push(next_packet); next_packet += 1; }
                    2 => { queue.extend([next_packet, next_packet + 1]); next_packet += 2; }
                    3 if in_flight.is_none() => {
                        queue.close(sync(next_sync));
                        in_flight = Some((next_sync, next_packet));
                        next_sync += 1;
                    }
                    4 => if let Some((id, end)) = in_flight.take() { queue.end(sync(id)); agreed_to = end; },
                    5 => if let Some((id, _)) = in_flight.take() { queue.abort(sync(id)); },
                    _ => {}
                }
                let mut popped = Vec::new();
                if step % 2 == 0 {
                    popped.extend(queue.pop_agreed());
                } else {
                    queue.take_agreed(3, |packet| popped.push(packet));
                }
                for packet in popped {
                    prop_assert_eq!(packet, left);
                    prop_assert!(packet < agreed_to);
                    left += 1;
                }
                prop_assert_eq!(queue.len() as u32, next_packet - left);
                prop_assert_eq!(queue.agreed() as u32, agreed_to - left);
            }
        }
    }
}
