//! A guest's traffic through a card whose uplink gives back what it is given: DPDK's own driver
//! (testpmd with virtio_user) on the paths that its test plans name, and a frontend of our own that
//! checks every byte.
//!
//! The cases are those of the plans `perf_virtio_user_loopback`,
//! `loopback_multi_paths_port_restart` and `loopback_multi_queues`, for split rings; what they
//! measure is measured elsewhere, and `virtio_fwd`'s are in `reconnect.rs`. Here packets must come back, all of them and whole. No time is
//! asserted.

use anyhow::{Result, ensure};
use plover_tests::e2e;
use plover_tests::e2e::card::{Card, CardConfig};
use plover_tests::e2e::testpmd::{self, Testpmd};
use plover_tests::e2e::vm::pair_counts;
use plover_tests::frontend::{Guest, GuestConfig, Pieces};

/// Frame bytes that every path is tried with.
const SIZES: [usize; 7] = [64, 128, 256, 512, 1024, 1500, 1514];
/// The same for a card with an mtu of 9000.
const JUMBO_SIZES: [usize; 6] = [64, 1514, 2000, 4096, 9000, 9014];
/// Packets that circulate in testpmd's cases: few enough that no ring overflows.
const BURSTS: u64 = 4;
const BURST: u64 = 32;
/// Times that a port is stopped and started.
const RESTARTS: u64 = 20;
/// The same where a path is tried in another dress.
const FEW_RESTARTS: u64 = 3;

/// A way through the driver, as the plans name it.
struct DriverPath {
    name: &'static str,
    device: &'static str,
    options: &'static [&'static str],
}

const PATHS: [DriverPath; 5] = [
    DriverPath {
        name: "in-order mergeable",
        device: "packed_vq=0,in_order=1,mrg_rxbuf=1",
        options: &[],
    },
    DriverPath {
        name: "in-order non-mergeable",
        device: "packed_vq=0,in_order=1,mrg_rxbuf=0",
        options: &[],
    },
    DriverPath {
        name: "mergeable",
        device: "packed_vq=0,in_order=0,mrg_rxbuf=1",
        options: &[],
    },
    DriverPath {
        name: "non-mergeable",
        device: "packed_vq=0,in_order=0,mrg_rxbuf=0",
        options: &["--enable-hw-vlan-strip"],
    },
    DriverPath {
        name: "vectorized",
        device: "packed_vq=0,in_order=0,mrg_rxbuf=0,vectorized=1",
        options: &[],
    },
];

/// Packets circulate between driver and card until they are stopped, then all are taken.
fn circulate(testpmd: &mut Testpmd, bytes: usize) -> Result<()> {
    circulate_segments(testpmd, &[bytes], BURSTS)
}

/// The same for packets that the driver has in several segments.
fn circulate_segments(testpmd: &mut Testpmd, segments: &[usize], bursts: u64) -> Result<()> {
    let bytes: usize = segments.iter().sum();
    let before = testpmd.counts()?;
    let start = format!("start tx_first {bursts}");
    let lengths: Vec<_> = segments.iter().map(ToString::to_string).collect();
    let size = format!("set txpkts {}", lengths.join(","));
    testpmd.commands(&["set fwd mac", &size, &start])?;
    let sent = before.tx_packets + 20 * bursts * BURST;
    testpmd.wait_for_counts("the packets went round twenty times", |counts| {
        counts.tx_packets >= sent
    })?;
    testpmd.commands(&["stop", "set fwd rxonly", "start"])?;
    let counts = testpmd.wait_for_counts("all packets came back", |counts| {
        counts.rx_packets == counts.tx_packets
    })?;
    testpmd.command("stop")?;
    ensure!(counts.errors == 0, "packets were lost: {counts:?}");
    let (rx, tx) = (
        counts.rx_bytes - before.rx_bytes,
        counts.tx_bytes - before.tx_bytes,
    );
    ensure!(rx == tx, "{rx} bytes came back of {tx}");
    let packets = counts.tx_packets - before.tx_packets;
    ensure!(
        tx == packets * bytes as u64,
        "{packets} packets had {tx} bytes, not {bytes} each"
    );
    Ok(())
}

fn try_path(path: &DriverPath) -> Result<()> {
    try_path_on(&CardConfig::default(), path)
}

fn try_path_on(card: &CardConfig, path: &DriverPath) -> Result<()> {
    let Some(_turn) = e2e::turn_without_vm(testpmd::lack())? else {
        return Ok(());
    };
    let card = Card::start(card)?;
    let mut testpmd = Testpmd::start(&card.socket(), path.device, path.options)?;
    for bytes in SIZES {
        circulate(&mut testpmd, bytes)?;
    }
    restart_port(&card, testpmd, path.name, RESTARTS)
}

fn restart_port(card: &Card, mut testpmd: Testpmd, name: &str, times: u64) -> Result<()> {
    // The port is stopped and started under traffic, and goes on each time.
    for _ in 0..times {
        testpmd.commands(&["port stop 0", "port start 0"])?;
        let sent = testpmd.counts()?.tx_packets;
        testpmd.commands(&["set fwd mac", "start tx_first 1"])?;
        testpmd.wait_for_counts("packets go round again", |counts| {
            counts.tx_packets >= sent + 5 * BURST
        })?;
        testpmd.command("stop")?;
    }
    let counts = testpmd.counts()?;
    println!("{name}: {counts:?}, {times} restarts");
    let fault = card.status()?["status"]["ring_fault"].clone();
    ensure!(fault.is_null(), "a ring was stopped: {fault}");
    testpmd.quit()
}

#[test]
fn testpmd_in_order_mergeable() -> Result<()> {
    try_path(&PATHS[0])
}

#[test]
fn testpmd_in_order_non_mergeable() -> Result<()> {
    try_path(&PATHS[1])
}

#[test]
fn testpmd_mergeable() -> Result<()> {
    try_path(&PATHS[2])
}

#[test]
fn testpmd_non_mergeable() -> Result<()> {
    try_path(&PATHS[3])
}

#[test]
fn testpmd_vectorized() -> Result<()> {
    try_path(&PATHS[4])
}

/// Eight queues, the most that a card has; each packet of a burst is a flow of its own, so that each
/// queue carries some.
#[test]
fn testpmd_several_queues() -> Result<()> {
    let Some(_turn) = e2e::turn_without_vm(testpmd::lack())? else {
        return Ok(());
    };
    let card = Card::start(&card("queue_pairs = 8"))?;
    let device = "packed_vq=0,in_order=1,mrg_rxbuf=1,queues=8";
    let options = [
        "--rxq=8",
        "--txq=8",
        "--txonly-multi-flow",
        "--total-num-mbufs=16384",
    ];
    let mut testpmd = Testpmd::start(&card.socket(), device, &options)?;
    circulate_segments(&mut testpmd, &[64], 1)?;
    circulate_segments(&mut testpmd, &[1514], 1)?;
    let pairs = pair_counts(&card.status()?)?;
    println!("packets to and from the driver, by pair: {pairs:?}");
    let used = |(delivered, taken): &(u64, u64)| *delivered > 0 && *taken > 0;
    ensure!(
        pairs.len() == 8 && pairs.iter().all(used),
        "a queue was not used"
    );
    restart_port(&card, testpmd, "eight queues", FEW_RESTARTS)
}

/// Packets larger than a buffer, as the plans send them to mergeable paths: in segments, and back
/// over several buffers.
#[test]
fn testpmd_jumbo_frames_in_mergeable_buffers() -> Result<()> {
    const SEGMENTS: [&[usize]; 3] = [&[64], &[2000; 4], &[2000, 2000, 2000, 2000, 1000]];
    for path in [&PATHS[0], &PATHS[2]] {
        try_jumbo(
            path,
            &[
                "--max-pkt-len=9018",
                "--tx-offloads=0x8000",
                "--enable-scatter",
            ],
            &SEGMENTS,
        )?;
    }
    Ok(())
}

/// Without mergeable buffers each has to take a whole packet.
#[test]
fn testpmd_jumbo_frames_in_large_buffers() -> Result<()> {
    const SEGMENTS: [&[usize]; 3] = [&[64], &[4096], &[9000]];
    for path in [&PATHS[1], &PATHS[3]] {
        try_jumbo(path, &["--max-pkt-len=9018", "--mbuf-size=9600"], &SEGMENTS)?;
    }
    Ok(())
}

fn try_jumbo(path: &DriverPath, options: &[&str], sizes: &[&[usize]]) -> Result<()> {
    let Some(_turn) = e2e::turn_without_vm(testpmd::lack())? else {
        return Ok(());
    };
    let card = Card::start(&card("mtu = 9000"))?;
    let options = [path.options, options].concat();
    let mut testpmd = Testpmd::start(&card.socket(), path.device, &options)?;
    for segments in sizes {
        // Few enough that their buffers fit the ring.
        circulate_segments(&mut testpmd, segments, 1)?;
    }
    restart_port(&card, testpmd, path.name, FEW_RESTARTS)
}

/// Frames of these sizes through a guest of our own; every byte is checked, none may be lost. The
/// rings are stopped and started on the way.
fn loop_back_on(card: &CardConfig, guest: GuestConfig, sizes: &[usize]) -> Result<()> {
    const FRAMES: u64 = 20_000;
    let Some(_turn) = e2e::turn_without_vm(None)? else {
        return Ok(());
    };
    let card = Card::start(card)?;
    let pairs = guest.pairs;
    let wanted = guest.in_order;
    let mut guest = Guest::boot(&card.socket(), guest)?;
    guest.exchange(FRAMES, sizes)?;
    guest.drain()?;
    for _ in 0..RESTARTS {
        guest.exchange(300, sizes)?;
        guest.drain()?;
        guest.restart_rings()?;
    }
    guest.account_for_descriptors(sizes)?;
    let negotiated = guest.negotiated()?;
    println!("{negotiated:?}: {}", guest.describe());
    ensure!(
        negotiated.in_order == wanted,
        "order was not agreed as wanted"
    );
    ensure!(
        negotiated.multiqueue == (pairs > 1),
        "queues were not agreed as wanted"
    );
    ensure!(guest.ledger.lost == 0, "frames were lost");
    // Frames of two transmit rings may overtake each other.
    ensure!(
        pairs > 1 || guest.ledger.overtaken == 0,
        "frames overtook each other"
    );
    Ok(())
}

fn loop_back(guest: GuestConfig) -> Result<()> {
    loop_back_on(&CardConfig::default(), guest, &SIZES)
}

fn card(guest: &str) -> CardConfig {
    CardConfig {
        guest: guest.to_owned(),
        ..CardConfig::default()
    }
}

#[test]
fn every_byte_comes_back_in_mergeable_buffers() -> Result<()> {
    loop_back(GuestConfig::default())
}

#[test]
fn every_byte_comes_back_in_small_mergeable_buffers() -> Result<()> {
    loop_back(GuestConfig {
        buffer_bytes: 200,
        window: 30,
        ..GuestConfig::default()
    })
}

#[test]
fn every_byte_comes_back_in_order() -> Result<()> {
    loop_back(GuestConfig {
        in_order: true,
        ..GuestConfig::default()
    })
}

#[test]
fn every_byte_comes_back_in_non_mergeable_chains() -> Result<()> {
    loop_back(GuestConfig {
        mergeable: false,
        event_idx: false,
        pieces: Pieces::Two,
        ..GuestConfig::default()
    })
}

#[test]
fn every_byte_comes_back_through_indirect_descriptors() -> Result<()> {
    loop_back(GuestConfig {
        mergeable: false,
        in_order: true,
        pieces: Pieces::Indirect,
        ..GuestConfig::default()
    })
}

#[test]
fn every_byte_comes_back_over_several_queues() -> Result<()> {
    let guest = GuestConfig {
        pairs: 4,
        ..GuestConfig::default()
    };
    loop_back_on(&card("queue_pairs = 4"), guest, &SIZES)
}

#[test]
fn every_byte_of_jumbo_frames_comes_back_in_mergeable_buffers() -> Result<()> {
    let guest = GuestConfig {
        window: 40,
        ..GuestConfig::default()
    };
    loop_back_on(&card("mtu = 9000"), guest, &JUMBO_SIZES)
}

#[test]
fn every_byte_of_jumbo_frames_comes_back_in_large_buffers() -> Result<()> {
    let guest = GuestConfig {
        mergeable: false,
        buffer_bytes: 9100,
        ..GuestConfig::default()
    };
    loop_back_on(&card("mtu = 9000"), guest, &JUMBO_SIZES)
}
