//! What fails in ordinary life, each with its defined outcome, all under load: nothing is lost, no
//! connection breaks.

use anyhow::{Result, ensure};
use ch_integration::demo::network::Host;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
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

    stop_vmm(&mut cluster, backup)?;
    cluster.finish()?;
    Ok(())
}

/// The primary's VMM stands still, and its node lives. It is found by its guest, which does nothing
/// while the backup's does: long before a sync's pause gives up.
fn stop_vmm(cluster: &mut Cluster, primary: Host) -> Result<()> {
    let generation = cluster.generation()?;
    let stopped = cluster.signal_child(primary, Child::Vmm, Signal::SIGSTOP)?;
    cluster.wait("the other replica is primary", |cluster| {
        Ok(cluster.roles()?.0 == primary.peer())
    })?;
    cluster.wait_for_answers(ANSWERS)?;
    // What it would go on with counts for nothing: its copy is void, or its VMM killed.
    match kill(stopped, Signal::SIGCONT) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => return Err(error.into()),
    }
    cluster.wait_protected_since(generation + 1)?;
    // Its driver had waited for the VMM, and tells only now.
    ensure!(
        cluster.log_has(primary, "the guest here does nothing")?,
        "something else found it"
    );
    cluster.wait_for_syncs(SYNCS)
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
