//! The demo under the real Cloud Hypervisor, where there is one that can run: a host is killed
//! under load, and nothing acknowledged is lost.
//!
//! `PLOVER_CLOUD_HYPERVISOR` names it, else it is looked for in `$PATH`. Where KVM is software,
//! `PLOVER_GUEST_KERNEL`, `PLOVER_GUEST_INITRD` (the UDP counter) and `PLOVER_VMM_PRELOAD` are
//! needed as well.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use ch_integration::demo::check::Records;
use ch_integration::demo::events::{EventKind, SyncRecord};
use ch_integration::demo::{self, DemoOptions, DemoVmm};
use plover_tests::e2e;

const LOAD_SECONDS: u64 = 8;
/// Syncs until both sides know all writes since an earlier one: the fill, one more for a backup
/// whose memory was mapped with it, and one that may have been aborted.
const SYNCS_OVER_ALL_MEMORY_MAX: usize = 4;

/// Why it can't run here.
fn lack() -> Option<String> {
    let binary = std::env::var_os("PLOVER_CLOUD_HYPERVISOR").map_or_else(
        || {
            let folders = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&folders)
                .map(|folder| folder.join("cloud-hypervisor"))
                .find(|path| path.is_file())
        },
        |path| Some(PathBuf::from(path)),
    );
    if !binary.is_some_and(|path| path.is_file()) {
        return Some("no cloud-hypervisor".to_owned());
    }
    if !Path::new("/dev/kvm").exists() {
        return Some("no KVM for cloud-hypervisor".to_owned());
    }
    // Where KVM is software: whether a guest for it is named.
    let guest = DemoOptions::default().chosen_guest(DemoVmm::CloudHypervisor);
    guest.err().map(|error| format!("{error:#}"))
}

#[test]
fn cloud_hypervisor_loses_nothing_acknowledged_when_a_host_is_killed() -> Result<()> {
    if let Some(lack) = lack() {
        println!("skipped: {lack}");
        return Ok(());
    }
    let Some(_turn) = e2e::turn()? else {
        return Ok(());
    };
    let options = DemoOptions {
        vmm: Some(DemoVmm::CloudHypervisor),
        load_seconds: LOAD_SECONDS,
        node_binary: Some(demo::group::beside("plover")?),
        ..DemoOptions::default()
    };
    let outcome = demo::run(&options)?;
    let report = outcome.report.context("the run has no report")?;
    let dir = outcome.run_dir.display();
    ensure!(outcome.ok, "records in {dir}: {report:#?}");
    ensure!(report.lost == 0 && report.broken_connections == 0);
    ensure!(report.outages.len() == 1 && report.outages[0].survivor.is_some());
    let killed = &report.outages[0].node;
    eprintln!(
        "host {killed} killed, time without service {:?} us",
        report.outages[0].gap_us
    );
    check_tracking(&ended_syncs(&Records::load(&outcome.run_dir)?, killed))
}

/// The primary's records of syncs that ended. The killed host was primary from the start.
fn ended_syncs(records: &Records, primary: &str) -> Vec<SyncRecord> {
    records
        .nodes
        .iter()
        .filter(|(name, _)| *name == primary)
        .flat_map(|(_, events)| events)
        .filter_map(|event| match &event.kind {
            EventKind::Sync(sync) if sync.result == "ended" => Some(sync.clone()),
            _ => None,
        })
        .collect()
}

/// Restored again and again, mapped anew each time, its written pages are known all the same.
fn check_tracking(syncs: &[SyncRecord]) -> Result<()> {
    let untracked: u64 = syncs.iter().map(|sync| sync.untracked).sum();
    let all_memory = syncs.iter().filter(|sync| sync.all_memory).count();
    eprintln!(
        "{} syncs, {all_memory} over all memory, {untracked} pages differed that nobody logged",
        syncs.len()
    );
    ensure!(untracked == 0, "a hole in the tracking");
    if kernel_tracks() {
        ensure!(syncs.len() > SYNCS_OVER_ALL_MEMORY_MAX, "too few syncs");
        ensure!(
            all_memory <= SYNCS_OVER_ALL_MEMORY_MAX,
            "written pages are not tracked: the tracker's state is in each node's log"
        );
    }
    Ok(())
}

/// Linux 6.7 or newer.
fn kernel_tracks() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map(|part| part.trim().parse());
    matches!(
        (numbers.next(), numbers.next()),
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (6u32, 7u32)
    )
}
