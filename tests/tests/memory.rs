//! After each sync a reader that knows nothing of the hasher compares the whole memory of both
//! VMs, while both are paused. Planted differences must be seen by it, and found by the slice.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use ch_integration::demo::network::Host;
use hasher::limits::SLICE_DIVISOR;
use plover_tests::e2e::memory::{Difference, flip_byte, untouched_page};
use plover_tests::e2e::verifier::{SyncPoint, Verifier};
use plover_tests::e2e::{self, Cluster};

/// Syncs that are compared before anything is planted.
const SYNCS: usize = 25;
/// Between two syncs, comparison included.
const SYNC_WAIT: Duration = Duration::from_secs(20);

/// What the reader saw at one sync point.
struct Seen {
    sync: u64,
    difference: Difference,
    took: Duration,
    /// Pages that were changed here, after the comparison.
    planted: Vec<u64>,
}

/// Compares at each sync point until the group is gone. A word on `plant` has it change one byte
/// of each VM's memory by way of the file: the backup's is a corruption, the primary's a write that
/// no tracker sees.
fn read_all(
    mut verifier: Verifier,
    seen: &Sender<Seen>,
    plant: &Receiver<(Host, Host)>,
) -> Result<()> {
    loop {
        let point = verifier.next(Duration::from_secs(200))?;
        let start = Instant::now();
        let difference = point.compare()?;
        let took = start.elapsed();
        let planted = match plant.try_recv() {
            Ok((primary, backup)) => plant_both(&point, primary, backup)?,
            Err(_) => Vec::new(),
        };
        let sync = point.sync;
        drop(point);
        if seen
            .send(Seen {
                sync,
                difference,
                took,
                planted,
            })
            .is_err()
        {
            return Ok(());
        }
    }
}

/// Far from each other, so that the next slice cannot hold both.
fn plant_both(point: &SyncPoint, primary: Host, backup: Host) -> Result<Vec<u64>> {
    let [primary, backup] = [primary, backup].map(|host| &point.ram[&host.id()]);
    let pages = primary.metadata()?.len() / 4096;
    let first = untouched_page(primary, backup, pages / 4)?;
    let second = untouched_page(primary, backup, pages * 7 / 8)?;
    flip_byte(backup, first)?;
    flip_byte(primary, second)?;
    Ok(vec![first, second])
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
            .map_err(|_| anyhow!("no sync was compared for {SYNC_WAIT:?}"))
    };

    let setting = format!("debug.verifier_socket={:?}", socket.to_string_lossy());
    let mut cluster = Cluster::start(&[&setting])?;
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
    let planted = loop {
        let seen = next()?;
        ensure!(
            seen.difference.pages.is_empty(),
            "before the planting: {:?}",
            seen.difference
        );
        if !seen.planted.is_empty() {
            break seen.planted;
        }
    };
    let seen = next()?;
    ensure!(
        seen.difference.bytes > 0
            && seen
                .difference
                .pages
                .iter()
                .all(|page| planted.contains(page)),
        "planted {planted:?}, seen {:?}",
        seen.difference
    );
    println!(
        "planted one byte in each of pages {planted:?}; seen: {:?}",
        seen.difference
    );

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
