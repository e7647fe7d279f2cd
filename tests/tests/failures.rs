//! What fails in ordinary life, each with its defined outcome, all under load: nothing is lost, no
//! connection breaks.

use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ch_integration::demo::network::Host;
use nix::sys::signal::Signal;
use plover_tests::e2e::{self, Child, Cluster};

/// Syncs that show that all goes on.
const SYNCS: usize = 5;
const ANSWERS: u64 = 200;

fn kill_hasher(cluster: &mut Cluster, host: Host) -> Result<()> {
    let before = cluster.pid(host, Child::Hasher)?;
    cluster.kill_child(host, Child::Hasher)?;
    cluster.wait("another hasher", |cluster| {
        Ok(cluster.pid(host, Child::Hasher)? != before)
    })?;
    cluster.wait("protected", |cluster| Ok(cluster.group.view.protected))?;
    cluster.wait_for_syncs(SYNCS)
}

#[test]
fn hashers_and_vmms_that_die_alone_are_replaced() -> Result<()> {
    let Some(_turn) = e2e::turn()? else {
        return Ok(());
    };
    let mut cluster = Cluster::start(&[])?;
    let (primary, backup) = cluster.roles()?;
    kill_hasher(&mut cluster, primary)?;
    kill_hasher(&mut cluster, backup)?;

    let generation = cluster.generation()?;
    cluster.kill_child(backup, Child::Vmm)?;
    cluster.wait_protected_since(generation)?;
    cluster.wait_for_syncs(SYNCS)?;
    ensure!(
        cluster.roles()?.0 == primary,
        "the backup's VMM is no reason to fail over"
    );

    let generation = cluster.generation()?;
    cluster.kill_child(primary, Child::Vmm)?;
    cluster.wait("the other replica is primary", |cluster| {
        Ok(cluster.roles()?.0 == backup)
    })?;
    cluster.wait_for_answers(ANSWERS)?;
    cluster.wait_protected_since(generation + 1)?;
    cluster.wait_for_syncs(SYNCS)?;
    cluster.finish()?;
    Ok(())
}

/// Frames that a host's node has put on its uplink, as the host's kernel counts them.
fn frames_sent(cluster: &Cluster, host: Host) -> Result<u64> {
    let namespace = cluster.group.network.host(host).name();
    let arguments = ["-n", namespace, "-s", "-j", "link", "show", "dev", "dtap0"];
    let output = Command::new("ip").args(arguments).output()?;
    let links: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let received = links
        .pointer("/0/stats64/rx/packets")
        .and_then(serde_json::Value::as_u64);
    received.context("ip does not tell what the tap received")
}

#[test]
fn a_primary_that_stood_still_is_fenced() -> Result<()> {
    let Some(_turn) = e2e::turn()? else {
        return Ok(());
    };
    let mut cluster = Cluster::start(&[])?;
    let (primary, backup) = cluster.roles()?;
    let generation = cluster.generation()?;
    ensure!(
        frames_sent(&cluster, primary)? > 0,
        "the count of frames counts nothing"
    );
    cluster.signal_node(primary, Signal::SIGSTOP)?;
    let sent = frames_sent(&cluster, primary)?;
    sleep(Duration::from_secs(2));
    ensure!(cluster.roles()?.0 == backup, "nobody took over within 2 s");
    cluster.signal_node(primary, Signal::SIGCONT)?;
    cluster.wait_for_answers(ANSWERS)?;
    cluster.wait_protected_since(generation + 1)?;
    cluster.wait_for_syncs(SYNCS)?;
    ensure!(
        cluster.roles()?.0 == backup,
        "the old primary is primary again"
    );
    let late = frames_sent(&cluster, primary)? - sent;
    println!("frames that the old primary sent after it stood still: {late}");
    ensure!(late == 0, "a fenced node sent {late} frames");
    cluster.finish()?;
    Ok(())
}

#[test]
fn a_witness_that_restarts_votes_again_and_the_group_outlives_the_backups_host() -> Result<()> {
    let Some(_turn) = e2e::turn()? else {
        return Ok(());
    };
    let mut cluster = Cluster::start(&[])?;
    let (primary, backup) = cluster.roles()?;
    ensure!(
        cluster.status_exit_code(primary)? == Some(0),
        "protected is exit code 0"
    );

    eprintln!("*** SIGKILL to the witness ***");
    cluster.group.kill_node(Host::W)?;
    cluster.wait_for_syncs(SYNCS)?;
    cluster.group.start_node(Host::W)?;
    cluster.wait("the witness follows the log again", |cluster| {
        let Ok(applied) = cluster.number(Host::W, "/status/applied") else {
            return Ok(false);
        };
        Ok(applied + 50 > cluster.number(primary, "/status/applied")?)
    })?;

    // From here on the majority is the primary and that witness.
    cluster.group.kill_host(backup)?;
    cluster.wait("unprotected", |cluster| Ok(!cluster.group.view.protected))?;
    cluster.wait_for_answers(ANSWERS)?;
    ensure!(cluster.roles()?.0 == primary);
    ensure!(
        cluster.status_exit_code(primary)? == Some(3),
        "unprotected is exit code 3"
    );
    cluster.finish()?;
    Ok(())
}
