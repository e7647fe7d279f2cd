//! With `replication = "off"` all state of the card is in guest memory: either side may die under
//! traffic and come back, and traffic goes on. Rings go on from the used index.
//!
//! Frames that are on the way when one side dies may go with it. None may come twice, none may come
//! with other bytes, and no descriptor may be lost.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use plover_tests::e2e::card::{Card, CardConfig};
use plover_tests::e2e::testpmd::{self, Testpmd};
use plover_tests::e2e::{self, number_of};
use plover_tests::frontend::{Guest, GuestConfig, Pieces};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// How often each side dies; `make soak` sets the variable to 100.
const TIMES: (&str, u64) = ("PLOVER_RECONNECTS", 10);
/// Frames that come back between two deaths, at least.
const FRAMES: u64 = 500;
/// A backend is killed within this time after it woke up to as many frames as the guest has on the
/// way at once. It needs about as long for them.
const KILL_AFTER_NS: u64 = 150_000;
/// Packets that come back to testpmd before one side is killed.
const ROUND_TRIPS: u64 = 10_000;
/// Processes of testpmd, and of backends that each meets.
const TESTPMDS: usize = 3;
const SIZES: [usize; 4] = [64, 300, 1000, 1514];

/// Guests that use their rings in different ways.
fn guests() -> [GuestConfig; 3] {
    [
        GuestConfig::default(),
        GuestConfig {
            in_order: true,
            event_idx: false,
            ..GuestConfig::default()
        },
        GuestConfig {
            mergeable: false,
            pieces: Pieces::Indirect,
            ..GuestConfig::default()
        },
    ]
}

fn seeded() -> StdRng {
    let seed = number_of("PLOVER_SEED", 1);
    println!("PLOVER_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// The card is killed in the middle of its work, and started again.
fn kill_backends(card: &CardConfig, config: &GuestConfig, times: u64) -> Result<()> {
    let mut random = seeded();
    let mut card = Card::start(card)?;
    let mut guest = Guest::boot(&card.socket(), config.clone())?;
    // Before it took any frame, in the middle, and when it had taken all.
    let mut deaths = [0; 3];
    for _ in 0..times {
        guest.exchange(FRAMES, &SIZES)?;
        guest.drain()?;
        // It wakes up to a full ring and dies somewhere in the work, or just before or after.
        let moment = Duration::from_nanos(random.random_range(0..KILL_AFTER_NS));
        let mut before = 0;
        card.kill_after(moment, || {
            guest.fill(&SIZES)?;
            before = guest.taken_unseen()?;
            Ok(())
        })?;
        let taken = guest.taken_unseen()? - before;
        deaths[match taken {
            0 => 0,
            _ if taken < guest.on_the_way() => 1,
            _ => 2,
        }] += 1;
        guest.lose_backend()?;
        // The guest does not notice at once: it fills its ring and takes what came.
        for _ in 0..random.random_range(0..4) {
            guest.turn(&SIZES)?;
        }
        card.launch()?;
        guest.connect()?;
    }
    guest.exchange(FRAMES, &SIZES)?;
    guest.account_for_descriptors(&SIZES)?;
    println!(
        "killed {times} times (before, in and after the work: {deaths:?}), {config:?}: {}",
        guest.describe()
    );
    ensure!(guest.ledger.overtaken == 0, "frames overtook each other");
    let status = card.stop()?;
    ensure!(
        status.success(),
        "the card ended with {status}:\n{}",
        card.log()
    );
    Ok(())
}

#[test]
fn traffic_goes_on_when_the_backend_is_killed_and_started_again() -> Result<()> {
    let Some(_turn) = e2e::turn_without_vm(None)? else {
        return Ok(());
    };
    let times = number_of(TIMES.0, TIMES.1).div_ceil(3);
    for (index, config) in guests().iter().enumerate() {
        let card = CardConfig {
            busy: index % 2 == 0,
            ..CardConfig::default()
        };
        kill_backends(&card, config, times)?;
    }
    Ok(())
}

#[test]
fn a_backend_that_connects_comes_back_after_its_death() -> Result<()> {
    let Some(_turn) = e2e::turn_without_vm(None)? else {
        return Ok(());
    };
    let config = GuestConfig {
        listens: true,
        ..GuestConfig::default()
    };
    kill_backends(
        &CardConfig::connecting(),
        &config,
        number_of(TIMES.0, TIMES.1).div_ceil(3),
    )
}

/// The VMM dies under traffic, and another one takes its place.
fn kill_vmms(card: &CardConfig, configs: &[GuestConfig], times: u64) -> Result<()> {
    let mut random = seeded();
    let card = Card::start(card)?;
    let mut guest = Guest::boot(&card.socket(), configs[0].clone())?;
    for round in 1..=times {
        guest.exchange(random.random_range(0..FRAMES), &SIZES)?;
        guest.fill(&SIZES)?;
        let ledger = guest.die();
        // Another kind of guest each time: nothing of the former one may stay.
        let next = &configs[usize::try_from(round)? % configs.len()];
        guest = Guest::boot_after(&card.socket(), next.clone(), ledger)?;
    }
    guest.exchange(FRAMES, &SIZES)?;
    guest.account_for_descriptors(&SIZES)?;
    println!("{times} VMMs: {}", guest.describe());
    ensure!(guest.ledger.overtaken == 0, "frames overtook each other");
    Ok(())
}

#[test]
fn traffic_goes_on_when_the_vmm_dies_and_another_comes() -> Result<()> {
    let Some(_turn) = e2e::turn_without_vm(None)? else {
        return Ok(());
    };
    let times = number_of(TIMES.0, TIMES.1).max(100);
    kill_vmms(&CardConfig::default(), &guests(), times)
}

#[test]
fn a_backend_that_connects_finds_the_next_vmm() -> Result<()> {
    let Some(_turn) = e2e::turn_without_vm(None)? else {
        return Ok(());
    };
    let listening = guests().map(|config| GuestConfig {
        listens: true,
        ..config
    });
    kill_vmms(
        &CardConfig::connecting(),
        &listening,
        number_of(TIMES.0, TIMES.1),
    )
}

/// Packets circulate through testpmd.
fn circulate(testpmd: &mut Testpmd) -> Result<()> {
    let before = testpmd.counts()?.rx_packets;
    testpmd.commands(&["set fwd mac", "start tx_first 4"])?;
    let counts = testpmd.wait_for_counts("packets go round", |counts| {
        counts.rx_packets > before + ROUND_TRIPS
    })?;
    println!("{counts:?}");
    Ok(())
}

/// As in the plan of DPDK's `virtio_fwd` suite for either end: testpmd is killed and started again.
#[test]
fn testpmd_dies_under_traffic_and_another_one_goes_on() -> Result<()> {
    let Some(_turn) = e2e::turn_without_vm(testpmd::lack())? else {
        return Ok(());
    };
    let card = Card::start(&CardConfig::default())?;
    for _ in 0..=TESTPMDS {
        let mut testpmd = Testpmd::start(&card.socket(), "queues=1", &[])?;
        circulate(&mut testpmd)?;
        testpmd.kill()?;
    }
    let fault = card.status()?["status"]["ring_fault"].clone();
    ensure!(fault.is_null(), "a ring was stopped: {fault}");
    Ok(())
}

/// The same suite's cases with virtio_user as the server: the backend is killed and started again
/// while testpmd lives, and testpmd while the backend lives.
#[test]
fn testpmd_as_server_meets_each_backend_and_each_backend_every_testpmd() -> Result<()> {
    let Some(_turn) = e2e::turn_without_vm(testpmd::lack())? else {
        return Ok(());
    };
    let mut card = Card::start(&CardConfig::connecting())?;
    for _ in 0..TESTPMDS {
        let mut testpmd = Testpmd::start(&card.socket(), "queues=1,server=1", &[])?;
        circulate(&mut testpmd)?;
        for _ in 0..TESTPMDS {
            card.kill_after(Duration::ZERO, || Ok(()))?;
            testpmd.command("stop")?;
            card.launch()?;
            wait_for_link(&mut testpmd)?;
            circulate(&mut testpmd)?;
        }
        testpmd.kill()?;
        // DPDK's server does not replace a dead socket.
        std::fs::remove_file(card.socket())?;
    }
    Ok(())
}

fn wait_for_link(testpmd: &mut Testpmd) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !testpmd
        .command("show port info 0")?
        .contains("Link status: up")
    {
        ensure!(Instant::now() < deadline, "testpmd's link stays down");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Connects to the card, and again as soon as it hangs up; whether somebody listened still.
fn connect_twice(socket: PathBuf) -> Result<JoinHandle<Result<bool>>> {
    let first = UnixStream::connect(&socket)?;
    let again = move || {
        let mut fds = [PollFd::new(first.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::NONE)?;
        Ok(UnixStream::connect(&socket).is_ok())
    };
    Ok(std::thread::spawn(again))
}

/// Cloud Hypervisor connects again at once, and gives up for good if that connection breaks, too.
#[test]
fn a_vmm_that_is_hung_up_on_finds_no_listener_that_is_about_to_go() -> Result<()> {
    let Some(_turn) = e2e::turn_without_vm(None)? else {
        return Ok(());
    };
    let mut card = Card::start(&CardConfig::default())?;
    for round in 0..2 * number_of(TIMES.0, TIMES.1) {
        let vmm = connect_twice(card.socket())?;
        // It has been accepted.
        card.status()?;
        if round % 2 == 0 {
            card.kill_after(Duration::ZERO, || Ok(()))?;
        } else {
            card.stop()?;
        }
        let found = vmm.join().map_err(|_| anyhow!("the VMM panicked"))??;
        ensure!(
            !found,
            "the dying backend took a connection, in round {round}"
        );
        card.launch()?;
        card.wait_until_served()?;
    }
    Ok(())
}

#[test]
fn a_second_process_does_not_take_the_card_from_the_first() -> Result<()> {
    let Some(_turn) = e2e::turn_without_vm(None)? else {
        return Ok(());
    };
    let mut card = Card::start(&CardConfig::default())?;
    let mut guest = Guest::boot(&card.socket(), GuestConfig::default())?;
    let plover = ch_integration::demo::group::beside("plover")?;
    let output = std::process::Command::new(plover)
        .arg("node")
        .arg(card.config_path())
        .output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{}", output.status);
    ensure!(complaint.contains("another process serves"), "{complaint}");
    guest.exchange(FRAMES, &SIZES)?;
    let status = card.stop()?;
    ensure!(status.code() == Some(0), "{status}");
    ensure!(!card.socket().exists(), "the socket was left behind");
    Ok(())
}
