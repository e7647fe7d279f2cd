//! The MAC addresses of the next hops: who is known, who is to be asked for, who is forgotten.

use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use super::Mac;
use crate::limits::{
    NEIGHBOUR_ASK_AFTER, NEIGHBOUR_FORGET_AFTER, NEIGHBOUR_RETRY, NEIGHBOUR_RETRY_MAX,
};

/// What is known of a next hop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NeighbourState {
    /// Its MAC address is not known; it is asked for.
    #[default]
    Asked,
    /// It is known, and the hop was heard from not long ago.
    Known(Mac),
    /// It is known, and asked for again: the hop was not heard from for a while.
    Stale(Mac),
}

/// The table: as many places as there are next hops.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    hops: Vec<Hop>,
    /// The earliest of the hops' own.
    due: Duration,
}

#[derive(Debug)]
struct Hop {
    address: IpAddr,
    mac: Option<Mac>,
    heard: Duration,
    /// When to ask.
    due: Duration,
    /// Until the next question, if this one is not answered.
    retry: Duration,
}

impl Neighbours {
    /// Makes the table hold these hops; what is known of them stays known.
    pub(super) fn keep(&mut self, wanted: impl Iterator<Item = IpAddr>) {
        let mut hops: Vec<Hop> = Vec::new();
        for address in wanted {
            if hops.iter().any(|hop| hop.address == address) {
                continue;
            }
            let known = self.hops.iter().position(|hop| hop.address == address);
            hops.push(match known {
                Some(at) => self.hops.swap_remove(at),
                None => Hop {
                    address,
                    mac: None,
                    heard: Duration::ZERO,
                    due: Duration::ZERO,
                    retry: NEIGHBOUR_RETRY,
                },
            });
        }
        self.hops = hops;
        self.set_due();
    }

    #[inline]
    pub(super) fn mac(&self, address: IpAddr) -> Option<Mac> {
        self.hops.iter().find(|hop| hop.address == address)?.mac
    }

    pub(super) fn state(&self, address: IpAddr) -> NeighbourState {
        let hop = self.hops.iter().find(|hop| hop.address == address);
        match hop.and_then(|hop| Some((hop.mac?, hop.retry))) {
            None => NeighbourState::Asked,
            Some((mac, NEIGHBOUR_RETRY)) => NeighbourState::Known(mac),
            Some((mac, _)) => NeighbourState::Stale(mac),
        }
    }

    /// The hop itself says where it is. False: it is none of ours.
    pub(super) fn learn(&mut self, now: Duration, address: IpAddr, mac: Mac) -> bool {
        let Some(hop) = self.hops.iter_mut().find(|hop| hop.address == address) else {
            return false;
        };
        hop.mac = Some(mac);
        hop.hear(now);
        self.set_due();
        true
    }

    /// A frame from this hop came from this MAC address: if it is the known one, nothing needs to
    /// be asked. Cheap, since it is called for each datagram.
    #[inline]
    pub(super) fn confirm(&mut self, now: Duration, address: IpAddr, mac: &[u8]) {
        if let Some(hop) = self.hops.iter_mut().find(|hop| hop.address == address)
            && hop.mac.is_some_and(|known| known == mac)
        {
            hop.hear(now);
        }
    }

    /// When somebody is to be asked for. A hop that was heard from since may be due later.
    #[inline]
    pub(super) fn due(&self) -> Duration {
        self.due
    }

    /// Calls `ask` with each hop that is due, and with its MAC address while that may still be
    /// right.
    pub(super) fn poll(&mut self, now: Duration, mut ask: impl FnMut(IpAddr, Option<Mac>)) {
        for hop in self.hops.iter_mut().filter(|hop| hop.due <= now) {
            if now >= hop.heard + NEIGHBOUR_FORGET_AFTER {
                hop.mac = None;
            }
            ask(hop.address, hop.mac);
            hop.due = now + hop.retry;
            hop.retry = (hop.retry * 2).min(NEIGHBOUR_RETRY_MAX);
        }
        self.set_due();
    }

    fn set_due(&mut self) {
        let earliest = self.hops.iter().map(|hop| hop.due).min();
        self.due = earliest.unwrap_or(Duration::MAX);
    }
}

impl Hop {
    fn hear(&mut self, now: Duration) {
        self.heard = now;
        self.due = now + NEIGHBOUR_ASK_AFTER;
        self.retry = NEIGHBOUR_RETRY;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));
    const MAC: Mac = [2, 0, 0, 0, 0, 2];
    const MS: Duration = Duration::from_millis(1);

    fn asked(table: &mut Neighbours, now: Duration) -> Vec<Option<Mac>> {
        let mut asked = Vec::new();
        table.poll(now, |_, mac| asked.push(mac));
        asked
    }

    fn table() -> Neighbours {
        let mut table = Neighbours::default();
        table.keep([HOP, HOP].into_iter());
        table
    }

    #[test]
    fn a_hop_is_asked_for_again_and_again_and_ever_more_rarely() {
        let mut table = table();
        let mut times = Vec::new();
        for ms in 0..3_000 {
            if !asked(&mut table, MS * ms).is_empty() {
                times.push(ms);
            }
        }
        assert_eq!(times, [0, 20, 60, 140, 300, 620, 1260, 2260]);
        assert_eq!(table.state(HOP), NeighbourState::Asked);
    }

    #[test]
    fn a_hop_that_is_heard_from_is_not_asked_for() {
        let mut table = table();
        assert!(table.learn(MS, HOP, MAC));
        for second in 1..100 {
            let now = Duration::from_secs(second);
            table.confirm(now, HOP, &MAC);
            assert!(asked(&mut table, now).is_empty());
        }
        assert_eq!(table.state(HOP), NeighbourState::Known(MAC));
    }

    #[test]
    fn a_silent_hop_is_asked_for_and_then_forgotten() {
        let mut table = table();
        table.learn(Duration::ZERO, HOP, MAC);
        assert_eq!(asked(&mut table, NEIGHBOUR_ASK_AFTER), [Some(MAC)]);
        assert_eq!(table.state(HOP), NeighbourState::Stale(MAC));
        // From elsewhere: confirms nothing.
        table.confirm(NEIGHBOUR_ASK_AFTER, HOP, &[9; 6]);
        assert_eq!(asked(&mut table, NEIGHBOUR_FORGET_AFTER), [None]);
        assert_eq!(
            (table.state(HOP), table.mac(HOP)),
            (NeighbourState::Asked, None)
        );
        assert!(table.learn(NEIGHBOUR_FORGET_AFTER, HOP, [9; 6]));
        assert_eq!(table.mac(HOP), Some([9; 6]));
    }

    #[test]
    fn strangers_have_no_place() {
        let mut table = table();
        assert!(!table.learn(MS, IpAddr::V4([10, 0, 0, 3].into()), MAC));
        assert_eq!(table.hops.len(), 1);
        table.keep(std::iter::empty());
        assert_eq!((table.mac(HOP), table.due()), (None, Duration::MAX));
    }
}
