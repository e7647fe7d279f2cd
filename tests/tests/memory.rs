//! After each sync a reader that knows nothing of the hasher compares the whole memory of both
//! VMs, while both are paused. Planted differences must be seen by it, and found by the slice.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use ch_integration::demo::guest::GUEST_CMDLINE;
use ch_integration::demo::network::Host;
use hasher::limits::SLICE_DIVISOR;
use plover_tests::e2e::memory::{Difference, flip_byte};
use plover_tests::e2e::verifier::Verifier;
use plover_tests::e2e::{self, Cluster};

/// Syncs that are compared before anything is planted.
const SYNCS: usize = 25;
/// Between two syncs, comparison included.
const SYNC_WAIT: Duration = Duration::from_secs(20);

/// Kept from the guests' kernels, so that what is planted there stays: no guest reads or writes it.
const RESERVED: &str = "memmap=1M$80M memmap=1M$224M";
/// A page of each reserved piece: the backup's and the primary's. Far from each other, so that one
/// slice cannot hold both.
const PLANTED: [u64; 2] = [(80 << 20) / 4096 + 100, (224 << 20) / 4096 + 100];

/// What the reader saw at one sync point.
struct Seen {
    sync: u64,
    difference: Difference,
    took: Duration,
    /// Bytes were changed here, after the comparison.
    has_planted: bool,
}

/// Reads at each sync point until nobody listens or a reading fails.
fn read_all(mut verifier: Verifier, seen: &Sender<Result<Seen>>, plant: &Receiver<(Host, Host)>) {
    loop {
        let reading = read_one(&mut verifier, plant);
        let is_last = reading.is_err();
        if seen.send(reading).is_err() || is_last {
            return;
        }
    }
}

/// Compares at the next sync point. A word on `plant` has it change one byte of each VM's memory
/// by way of the file: the backup's is a corruption, the primary's a write that no tracker sees.
fn read_one(verifier: &mut Verifier, plant: &Receiver<(Host, Host)>) -> Result<Seen> {
    let point = verifier.next(Duration::from_secs(200))?;
    let start = Instant::now();
    let difference = point.compare()?;
    let took = start.elapsed();
    let roles = plant.try_recv();
    if let Ok((primary, backup)) = roles {
        flip_byte(&point.ram[&backup.id()], PLANTED[0])?;
        flip_byte(&point.ram[&primary.id()], PLANTED[1])?;
    }
    Ok(Seen {
        sync: point.sync,
        difference,
        took,
        has_planted: roles.is_ok(),
    })
}

#[test]
fn both_memories_are_equal_after_each_sync_and_planted_differences_are_found() -> Result<()> {
    let Some(_turn) = e2e::turn()? else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("verifier.sock");
    let verifier = Verifier::listen(&socket)?;
    let (seen_sender, seen) = channel();
    let (plant, plant_receiver) = channel();
    let reader = thread::spawn(move || read_all(verifier, &seen_sender, &plant_receiver));
    let next = || {
        seen.recv_timeout(SYNC_WAIT)
            .map_err(|error| anyhow!("no sync was compared for {SYNC_WAIT:?}: {error}"))?
            .context("read both memories")
    };

    let verifier = format!("debug.verifier_socket={:?}", socket.to_string_lossy());
    let cmdline = format!("vmm.cmdline=\"{GUEST_CMDLINE} {RESERVED}\"");
    let mut cluster = Cluster::start(&[&verifier, &cmdline])?;
    let (primary, backup) = cluster.roles()?;
    let before_load = seen.try_iter().count();

    let mut times = Vec::new();
    for _ in 0..SYNCS {
        let seen = next()?;
        ensure!(
            seen.difference.pages.is_empty(),
            "sync {}: {:?}",
            seen.sync,
            seen.difference
        );
        times.push(u64::try_from(seen.took.as_millis())?);
        ensure!(
            seen.difference.compared == 256 << 20,
            "not the whole memory"
        );
    }
    println!(
        "{SYNCS} syncs under load (and {before_load} before) compared over 256 MiB: no difference; \
         {} ms each",
        e2e::median(times)
    );

    plant.send((primary, backup)).context("tell the reader")?;
    loop {
        let seen = next()?;
        ensure!(
            seen.difference.pages.is_empty(),
            "before the planting: {:?}",
            seen.difference
        );
        if seen.has_planted {
            break;
        }
    }
    let difference = next()?.difference;
    ensure!(
        difference.bytes > 0 && difference.pages.iter().all(|page| PLANTED.contains(page)),
        "planted {PLANTED:?}, seen {difference:?}",
    );
    println!("planted one byte in each of pages {PLANTED:?}; seen: {difference:?}");

    let mut rounds = 1;
    while !next()?.difference.pages.is_empty() {
        rounds += 1;
        ensure!(
            rounds <= SLICE_DIVISOR + 1,
            "the slice has been everywhere and missed them"
        );
    }
    for _ in 0..3 {
        ensure!(next()?.difference.pages.is_empty(), "different again");
    }
    // A node tells of a sync once it has left the reader.
    let found: u64 = cluster
        .syncs(primary)?
        .iter()
        .map(|sync| sync.untracked)
        .sum();
    println!(
        "repaired after {rounds} rounds of {SLICE_DIVISOR}; pages only the slice found: {found}"
    );
    ensure!(found == 2, "the slice found {found} of 2");

    cluster.finish()?;
    drop((cluster, seen));
    // It sees that nobody listens at the next sync; there is none: its wait is bounded.
    drop(reader);
    Ok(())
}
