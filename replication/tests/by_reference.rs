//! Entries by reference in a group of one: a log of stubs, whose packets somebody keeps, delivers
//! what a written log delivers, whenever it is written out.

use std::collections::VecDeque;
use std::time::Duration;

use plover_types::{
    LogEntry, LogIndex, NodeId, Offload, PacketBurst, PacketBurstBuilder, PacketHeader, Position,
};
use proptest::prelude::*;
use replication::core::{Action, Core, CoreConfig, Event, NodeSpec};
use replication::epoch::{CopyCommand, CopyEvent};
use replication::input::{KeptPackets, NothingKept};
use replication::plan::OnBackupLoss;
use replication::storage::LogStorage;

fn core(nodes: u64) -> Core {
    let ids: Vec<_> = (1..=nodes).map(NodeId).collect();
    let config = CoreConfig {
        own: NodeId(1),
        nodes: ids
            .iter()
            .map(|id| {
                if id.0 < 3 {
                    NodeSpec::replica(id.0)
                } else {
                    NodeSpec::witness(id.0)
                }
            })
            .collect(),
        tick: Duration::from_millis(10),
        election_ticks: 15,
        sync_timeout: Duration::from_secs(5),
        on_backup_loss: OnBackupLoss::Continue,
        is_durable: false,
        is_restarted: false,
        joins: false,
        incarnation: 1,
        host_facts_hash: 0,
    };
    let mut core = Core::new(config, LogStorage::new(&ids), Duration::ZERO).expect("valid");
    core.step(Duration::ZERO, Event::Copy(CopyEvent::Ready));
    core.step(Duration::ZERO, Event::Copy(CopyEvent::Booted));
    core.take_actions();
    core
}

/// Packets of stubs, as a test keeps them.
#[derive(Default)]
struct Shelf {
    packets: Vec<Vec<u8>>,
    entries: VecDeque<(LogIndex, u64)>,
}

impl KeptPackets for Shelf {
    fn first_of(&self, index: LogIndex) -> Option<u64> {
        let found = self.entries.iter().find(|entry| entry.0 == index);
        found.map(|entry| entry.1)
    }

    fn packet(&self, number: u64) -> Option<&[u8]> {
        self.packets.get(number as usize).map(|it| &it[..])
    }
}

/// A group and who keeps its packets, if anybody does.
struct Group {
    core: Core,
    shelf: Option<Shelf>,
    /// Position, pair and bytes of each packet that was delivered.
    seen: Vec<(Position, u8, Vec<u8>)>,
}

impl Group {
    fn new(shelf: Option<Shelf>) -> Self {
        Self {
            core: core(1),
            shelf,
            seen: Vec::new(),
        }
    }

    /// Proposes one entry of such packets: pair, length, and whether it is to be kept.
    fn propose(&mut self, packets: &[(u8, usize, bool)], mark: u8) {
        // A new one: an entry would end with its chunk, which is not filled alike by both.
        let mut builder = PacketBurstBuilder::new();
        let first = self.shelf.as_ref().map_or(0, |it| it.packets.len() as u64);
        for (pair, bytes, is_kept) in packets {
            let packet = vec![mark; *bytes];
            match &mut self.shelf {
                Some(shelf) if *is_kept => {
                    let header = PacketHeader {
                        pair: *pair,
                        offload: Offload::PLAIN,
                        bytes: *bytes,
                    };
                    builder.push_kept(header).expect("valid");
                    shelf.packets.push(packet);
                }
                _ => {
                    let plain = Offload::PLAIN;
                    builder.push(*pair, plain, &packet).expect("valid");
                }
            }
        }
        let burst = builder.finish().expect("not empty");
        let index = self.core.propose(Duration::ZERO, burst).expect("room");
        if let Some(shelf) = &mut self.shelf {
            shelf.entries.push_back((index, first));
        }
    }

    /// Lets a guest take up to `room` packets.
    fn deliver(&mut self, mut room: usize) {
        let seen = &mut self.seen;
        let give = |first: Position, packets: &[plover_types::Packet<'_>]| {
            let taken = packets.len().min(room);
            room -= taken;
            for (packet, number) in packets[..taken].iter().zip(first.packet..) {
                let at = Position {
                    packet: number,
                    ..first
                };
                seen.push((at, packet.pair, packet.bytes.to_vec()));
            }
            taken
        };
        match &self.shelf {
            Some(shelf) => self.core.deliver_kept(shelf, give),
            None => self.core.deliver_runs(give),
        };
    }

    /// Writes everything out and keeps nothing more of it.
    fn write_out(&mut self) {
        if let Some(shelf) = &mut self.shelf {
            self.core.write_out(shelf);
            shelf.entries.clear();
        }
    }

    fn stubs(&self) -> usize {
        let indexes = 1..=self.core.applied().0;
        let entries = indexes.filter_map(|index| self.core.log_entry(LogIndex(index)));
        entries.filter(|(_, data)| LogEntry::is_stub(data)).count()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Propose(Vec<(u8, usize, bool)>),
    Deliver(usize),
    WriteOut,
}

fn step() -> impl Strategy<Value = Step> {
    let packet = (0..3_u8, 14..1600_usize, any::<bool>());
    prop_oneof![
        4 => proptest::collection::vec(packet, 1..40).prop_map(Step::Propose),
        3 => (0..100_usize).prop_map(Step::Deliver),
        1 => Just(Step::WriteOut),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_copy_is_given_the_same_whichever_way(steps in proptest::collection::vec(step(), 1..60)) {
        let (mut kept, mut written) = (Group::new(Some(Shelf::default())), Group::new(None));
        for (mark, step) in (0_u8..).zip(&steps) {
            for group in [&mut kept, &mut written] {
                match step {
                    Step::Propose(packets) => group.propose(packets, mark),
                    Step::Deliver(room) => group.deliver(*room),
                    Step::WriteOut => group.write_out(),
                }
            }
            if matches!(step, Step::WriteOut) {
                prop_assert_eq!(kept.stubs(), 0);
            }
            prop_assert_eq!(kept.core.position(), written.core.position());
        }
        kept.deliver(usize::MAX);
        written.deliver(usize::MAX);
        prop_assert!(kept.seen == written.seen);
        prop_assert_eq!(kept.core.counters().input_missed, 0);
    }

    #[test]
    fn written_out_the_log_is_the_one_that_was_written(
        entries in proptest::collection::vec(
            proptest::collection::vec((0..3_u8, 14..1600_usize, any::<bool>()), 1..40), 1..20),
    ) {
        let (mut kept, mut written) = (Group::new(Some(Shelf::default())), Group::new(None));
        for (mark, packets) in (0_u8..).zip(&entries) {
            kept.propose(packets, mark);
            written.propose(packets, mark);
        }
        kept.write_out();
        prop_assert_eq!(kept.stubs(), 0);
        let last = written.core.applied();
        prop_assert_eq!(kept.core.applied(), last);
        // What comes before the first input is dropped on the way.
        for index in (last.0 + 1 - entries.len() as u64..=last.0).map(LogIndex) {
            prop_assert_eq!(kept.core.log_entry(index), written.core.log_entry(index));
        }
    }
}

#[test]
fn a_copy_whose_packets_nobody_has_is_void_and_goes_on_to_nothing() {
    for delivered in [0, 1] {
        let mut group = Group::new(Some(Shelf::default()));
        group.propose(&[(0, 500, true), (0, 600, true)], 1);
        group.propose(&[(0, 700, false)], 2);
        group.deliver(delivered);
        if let Some(shelf) = &mut group.shelf {
            shelf.packets.truncate(1);
            if delivered == 0 {
                shelf.entries.clear();
            }
        }
        group.deliver(usize::MAX);
        assert_eq!(group.core.counters().input_missed, 1);
        let voided = group
            .core
            .take_actions()
            .iter()
            .any(|action| matches!(action, Action::Copy(CopyCommand::Void)));
        assert!(voided && !group.core.is_serving());
        assert!(group.seen.len() <= 1, "nothing behind the gap");
    }
}

#[test]
fn what_was_delivered_is_dropped_where_it_cannot_be_written_out() {
    let mut group = Group::new(Some(Shelf::default()));
    for mark in 0..10 {
        group.propose(&[(0, 1500, true)], mark);
    }
    group.deliver(4);
    assert_eq!(group.stubs(), 10);
    if let Some(shelf) = &mut group.shelf {
        shelf.entries.drain(..4);
    }
    group.write_out();
    assert_eq!(group.stubs(), 0);
    group.deliver(usize::MAX);
    let marks = group.seen.iter().map(|(_, _, bytes)| bytes[0]);
    assert!(marks.eq(0..10));
}

fn stub() -> PacketBurst {
    let mut builder = PacketBurstBuilder::new();
    let header = PacketHeader {
        pair: 0,
        offload: Offload::PLAIN,
        bytes: 60,
    };
    builder.push_kept(header).expect("valid");
    builder.finish().expect("not empty")
}

#[test]
#[should_panic(expected = "a stub in a log that others read")]
fn a_log_that_others_read_takes_no_stubs() {
    let mut core = core(3);
    assert!(!core.takes_stubs());
    let _ = core.propose(Duration::ZERO, stub());
}

#[test]
fn a_stub_that_is_refused_comes_back() {
    let mut core = core(1);
    core.step(Duration::ZERO, Event::Copy(CopyEvent::Lost));
    let back = core.propose(Duration::ZERO, stub()).expect_err("no copy");
    assert_eq!((back.kept_packets(), core.write_out(&NothingKept)), (1, 0));
}
