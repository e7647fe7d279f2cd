//! What a packet costs the allocator between admission and release: nothing. An entry costs a
//! bounded number of small allocations inside raft-rs, however many packets it holds; its bytes
//! lie in memory that is used again.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use plover_types::{LogIndex, NodeId, Offload, PacketBurstBuilder, PacketHeader};
use replication::core::{Core, CoreConfig, Event, NodeSpec};
use replication::epoch::CopyEvent;
use replication::input::KeptPackets;
use replication::output_rule::{HoldQueue, OutputPolicy};
use replication::plan::OnBackupLoss;
use replication::secure::{Identity, SecureLink};
use replication::storage::LogStorage;
use replication::wire::GroupId;

/// What raft-rs, and the batch in which the log is compacted, allocate for an entry, on average.
const ALLOCATIONS_PER_ENTRY_MAX: f64 = 4.0;

/// Entries before counting starts: queues and the log's memory reach their size.
const WARM_UP_ENTRIES: usize = 4_000;
const ENTRIES: usize = 4_096;
const FRAME: [u8; 64] = [7; 64];

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // Other threads of the test harness, and this one at its end, do not matter.
    let _ = ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1));
}

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as promised by the caller.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: as promised by the caller.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn serving_core() -> Core {
    let config = CoreConfig {
        own: NodeId(1),
        nodes: vec![NodeSpec::replica(1)],
        joins: false,
        tick: Duration::from_millis(10),
        election_ticks: 15,
        sync_timeout: Duration::from_secs(5),
        on_backup_loss: OnBackupLoss::Continue,
        is_durable: false,
        is_restarted: false,
        incarnation: 1,
        host_facts_hash: 0,
    };
    let mut core = Core::new(config, LogStorage::new(&[NodeId(1)]), Duration::ZERO).expect("valid");
    core.step(Duration::ZERO, Event::Copy(CopyEvent::Ready));
    core.step(Duration::ZERO, Event::Copy(CopyEvent::Booted));
    core
}

/// Keeps one packet, for as often as it is asked for.
struct Same;

impl KeptPackets for Same {
    fn first_of(&self, _index: LogIndex) -> Option<u64> {
        Some(0)
    }

    fn packet(&self, _number: u64) -> Option<&[u8]> {
        Some(&FRAME)
    }
}

/// Allocations per entry of so many packets, from admission to release.
fn allocations_per_entry(packets: usize, is_kept: bool) -> f64 {
    let mut core = serving_core();
    let mut builder = PacketBurstBuilder::new();
    let mut hold = HoldQueue::default();
    hold.set_policy(OutputPolicy::Pass);
    let mut turn = || {
        for _ in 0..packets {
            let header = PacketHeader {
                pair: 0,
                offload: Offload::PLAIN,
                bytes: FRAME.len(),
            };
            if is_kept {
                builder.push_kept(header).expect("valid");
            } else {
                builder.push(0, Offload::PLAIN, &FRAME).expect("valid");
            }
        }
        while let Some(entry) = builder.finish() {
            core.propose(Duration::ZERO, entry).expect("room");
        }
        let delivered = core.deliver_kept(&Same, |_, packets| packets.len());
        // What the guest answers.
        hold.extend((0..delivered).map(|number| number as u64));
        let released = hold.take_agreed(usize::MAX, |_| {});
        assert_eq!((delivered, released), (packets, packets));
        let actions = core.take_actions();
        core.recycle(actions);
    };
    for _ in 0..WARM_UP_ENTRIES {
        turn();
    }
    let before = ALLOCATIONS.get();
    for _ in 0..ENTRIES {
        turn();
    }
    (ALLOCATIONS.get() - before) as f64 / ENTRIES as f64
}

#[test]
fn a_packet_allocates_nothing_and_an_entry_little() {
    for is_kept in [false, true] {
        let one = allocations_per_entry(1, is_kept);
        let many = allocations_per_entry(128, is_kept);
        println!("allocations an entry: {one:.3} with 1 packet, {many:.3} with 128");
        assert!(one <= ALLOCATIONS_PER_ENTRY_MAX, "{one}");
        // The log is compacted by bytes, so in other batches; and an entry ends with its chunk.
        let per_packet = (many - one).max(0.0) / 127.0;
        assert!(per_packet < 0.01, "{per_packet} allocations a packet");
    }
}

/// Two links with a session, handed to and fro.
fn secured_pair() -> [SecureLink; 2] {
    let secret = |node| Identity::from_secret([node; 32]);
    let link = |own, peer: u8| {
        let peers = [(NodeId(peer.into()), *secret(peer).public())];
        let random = SecureLink::system_random().expect("random numbers");
        SecureLink::new(secret(own), &peers, GroupId(1), random).expect("valid")
    };
    let mut links = [link(1, 2), link(2, 1)];
    let mut wire = Vec::new();
    links[0].poll(Duration::ZERO, |to, bytes| wire.push((to, bytes.to_vec())));
    while let Some((to, mut bytes)) = wire.pop() {
        let (at, from) = (to.0 as usize - 1, NodeId(3 - to.0));
        links[at].open(Duration::ZERO, from, &mut bytes, |to, bytes| {
            wire.push((to, bytes.to_vec()));
        });
    }
    links
}

#[test]
fn sealing_and_opening_a_datagram_allocates_nothing() {
    let [mut one, mut other] = secured_pair();
    let mut datagram = Vec::with_capacity(1500);
    let before = ALLOCATIONS.get();
    for number in 0_u64..10_000 {
        datagram.clear();
        let parts: [&[u8]; 2] = [&number.to_le_bytes(), &FRAME];
        one.seal(Duration::ZERO, NodeId(2), &parts, &mut datagram)
            .expect("a session");
        let opened = other.open(Duration::ZERO, NodeId(1), &mut datagram, |_, _| {});
        assert_eq!(opened.map(|(_, bytes)| bytes.len()), Some(72));
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
}
