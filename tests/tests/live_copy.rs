//! The backup is a live copy: it runs between syncs, is given the same packets in the same order,
//! does the same work, and so writes mostly the same pages.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ch_integration::demo::history::read_lines;
use ch_integration::demo::network::Host;
use plover_tests::e2e::deliveries::{self, Delivery};
use plover_tests::e2e::{self, Cluster};

const LOAD: Duration = Duration::from_secs(5);

/// A copy's counters.
struct Work {
    vcpu_ms: u64,
    delivered: u64,
    taken: u64,
    discarded: u64,
}

impl Work {
    fn of(cluster: &Cluster, host: Host) -> Result<Self> {
        Ok(Self {
            vcpu_ms: cluster.number(host, "/host/vcpu_time_ms")?,
            delivered: cluster.number(host, "/status/path/delivered")?,
            taken: cluster.number(host, "/status/path/taken")?,
            discarded: cluster.number(host, "/status/path/discarded")?,
        })
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            vcpu_ms: self.vcpu_ms - before.vcpu_ms,
            delivered: self.delivered - before.delivered,
            taken: self.taken - before.taken,
            discarded: self.discarded - before.discarded,
        }
    }
}

/// Looks at a copy for a while: in how many of the intervals between two syncs its vCPUs ran.
fn intervals_with_work(cluster: &Cluster, host: Host) -> Result<(usize, usize)> {
    let (mut ran, mut intervals) = (0, 0);
    let mut current: Option<(u64, u64, u64)> = None;
    let end = Instant::now() + LOAD;
    while Instant::now() < end {
        let status = cluster.status(host)?;
        let number = |path| {
            status
                .pointer(path)
                .and_then(serde_json::Value::as_u64)
                .unwrap_or(0)
        };
        let (sync, vcpu_ms) = (number("/status/last_sync"), number("/host/vcpu_time_ms"));
        current = match current {
            Some((last, first, _)) if last == sync => Some((sync, first, vcpu_ms)),
            earlier => {
                if let Some((_, first, last)) = earlier {
                    intervals += 1;
                    ran += usize::from(last > first);
                }
                Some((sync, vcpu_ms, vcpu_ms))
            }
        };
        std::thread::sleep(Duration::from_millis(4));
    }
    Ok((ran, intervals))
}

/// Medians over the syncs: pages written on either side, divergent ones, same-page rate in percent.
fn pages(cluster: &Cluster, host: Host) -> Result<(u64, u64, u64)> {
    let syncs = cluster.syncs(host)?;
    let good: Vec<_> = syncs
        .iter()
        .filter(|s| s.result == "ended" && s.union > 0 && !s.all_memory)
        .collect();
    ensure!(good.len() >= 10, "only {} syncs", good.len());
    Ok((
        e2e::median(good.iter().map(|sync| sync.union)),
        e2e::median(good.iter().map(|sync| sync.divergent)),
        e2e::median(
            good.iter()
                .map(|sync| 100 - 100 * sync.divergent / sync.union),
        ),
    ))
}

#[test]
fn the_backup_runs_and_is_given_the_same_packets_in_the_same_order() -> Result<()> {
    let Some(_turn) = e2e::turn()? else {
        return Ok(());
    };
    let record = "debug.record_deliveries=\"{state_dir}/deliveries.jsonl\"";
    let mut cluster = Cluster::start(&[record])?;
    let (primary, backup) = cluster.roles()?;
    let before = (Work::of(&cluster, primary)?, Work::of(&cluster, backup)?);
    let (ran, intervals) = intervals_with_work(&cluster, backup)?;
    let theirs = Work::of(&cluster, primary)?.since(&before.0);
    let ours = Work::of(&cluster, backup)?.since(&before.1);
    println!("its vCPUs were seen running in {ran} of {intervals} intervals between syncs");
    for (name, work) in [("primary", &theirs), ("backup", &ours)] {
        println!(
            "{name}: vCPU time {} ms, {} packets delivered, {} of its own taken, {} discarded",
            work.vcpu_ms, work.delivered, work.taken, work.discarded
        );
    }
    ensure!(ran > 0, "the backup's vCPUs never ran between two syncs");
    ensure!(ours.vcpu_ms > 0 && ours.taken > 0 && ours.discarded > 0);
    ensure!(
        ours.delivered * 2 > theirs.delivered,
        "it missed most packets"
    );
    let (written, divergent, same) = pages(&cluster, primary)?;
    cluster.finish()?;
    check_deliveries(&cluster)?;
    drop(cluster);

    let mut control = Cluster::start(&["debug.deliver_to_backup=false"])?;
    std::thread::sleep(LOAD);
    let (primary, _) = control.roles()?;
    let (control_written, control_divergent, control_same) = pages(&control, primary)?;
    control.finish()?;
    println!("pages per sync, medians: {written} written, {divergent} divergent, {same} % same");
    println!(
        "without delivery to the backup: {control_written} written, {control_divergent} divergent, \
         {control_same} % same"
    );
    ensure!(
        same > control_same,
        "delivery to the backup makes no difference"
    );
    Ok(())
}

fn check_deliveries(cluster: &Cluster) -> Result<()> {
    let read = |host| read_lines::<Delivery>(&cluster.file(host, "deliveries.jsonl"));
    let (first, second) = (read(Host::A)?, read(Host::B)?);
    let agreement = deliveries::compare(&first, &second);
    println!(
        "{} and {} deliveries recorded, {} positions on both, {} on one only, {} jumps back",
        first.len(),
        second.len(),
        agreement.shared,
        agreement.alone,
        agreement.jumps_back
    );
    ensure!(
        agreement.different.is_empty(),
        "other packets at {:?}",
        agreement.different
    );
    ensure!(agreement.shared >= 200, "too few to tell");
    Ok(())
}
