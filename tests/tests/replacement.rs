//! A group's life: its work is handed over by plan, a host is lost for good and another takes its
//! place, and the next loss is survived as the first one was. Under load all the time: nothing is
//! lost, no connection breaks.

use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use ch_integration::demo::group::beside;
use ch_integration::demo::network::Host;
use plover_tests::e2e::{self, Cluster};
use serde_json::Value;

/// Syncs and answers that show that all goes on.
const SYNCS: usize = 3;
const ANSWERS: u64 = 100;

const REFUSED: Option<i32> = Some(4);

fn plover(cluster: &Cluster, host: Host, arguments: &[&str]) -> Result<Output> {
    let config = cluster.group.config_path(host);
    let output = Command::new(beside("plover")?)
        .args(arguments)
        .arg(config)
        .output()?;
    eprintln!(
        "plover {}: {}{}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stdout).trim(),
        String::from_utf8_lossy(&output.stderr).trim(),
    );
    Ok(output)
}

/// Asks the primary to hand over; returns the new primary.
fn fail_over(cluster: &mut Cluster) -> Result<Host> {
    let (primary, backup) = cluster.roles()?;
    let generation = cluster.generation()?;
    let output = plover(cluster, primary, &["failover", "--json"])?;
    ensure!(output.status.success(), "the failover was refused");
    let line = String::from_utf8(output.stdout)?;
    let done: Value = serde_json::from_str(line.trim()).context("the outcome is JSON")?;
    ensure!(done["phase"] == "done", "{done}");
    cluster.wait("the other replica is primary", |cluster| {
        Ok(cluster.roles()?.0 == backup)
    })?;
    cluster.wait_for_answers(ANSWERS)?;
    cluster.wait_protected_since(generation + 1)?;
    Ok(backup)
}

/// The host's node is lost with all that it had; another one takes its place.
fn replace(cluster: &mut Cluster, lost: Host) -> Result<()> {
    let (primary, _) = cluster.roles()?;
    let generation = cluster.generation()?;
    let (old_id, new_id) = cluster.group.prepare_replacement(lost)?;
    let lost_id = old_id.to_string();
    cluster.wait("the lost node counts as lost", |cluster| {
        let output = plover(cluster, primary, &["replace", "--lost", &lost_id])?;
        ensure!(
            output.status.success() || output.status.code() == REFUSED,
            "the request failed"
        );
        Ok(output.status.success())
    })?;
    cluster.group.start_node(lost)?;
    cluster.wait_protected_since(generation)?;
    let status = cluster.status(primary)?;
    let members = status["status"]["members"].to_string();
    eprintln!("members: {members}");
    ensure!(
        members.contains(&format!("\"node\":{new_id},")),
        "{members}"
    );
    ensure!(
        !members.contains(&format!("\"node\":{old_id},")),
        "{members}"
    );
    cluster.wait_for_syncs(SYNCS)
}

#[test]
fn a_group_hands_over_replaces_a_lost_host_and_survives_the_next_loss() -> Result<()> {
    let Some(_turn) = e2e::turn()? else {
        return Ok(());
    };
    let mut cluster = Cluster::start(&[])?;
    let primary = fail_over(&mut cluster)?;
    let (_, backup) = cluster.roles()?;

    eprintln!("*** SIGKILL to all of host {} ***", backup.name());
    cluster.group.kill_node(backup)?;
    cluster.wait("unprotected", |cluster| Ok(!cluster.group.view.protected))?;
    let refused = plover(&cluster, primary, &["failover"])?;
    ensure!(
        refused.status.code() == REFUSED,
        "nothing is there to take over"
    );
    replace(&mut cluster, backup)?;

    cluster.group.kill_host(primary)?;
    cluster.wait("the new node serves", |cluster| {
        Ok(cluster.roles()?.0 == backup)
    })?;
    cluster.wait_for_answers(ANSWERS)?;
    cluster.finish()?;
    Ok(())
}

#[test]
fn a_lost_witness_is_replaced() -> Result<()> {
    let Some(_turn) = e2e::turn()? else {
        return Ok(());
    };
    let mut cluster = Cluster::start(&[])?;
    let (primary, backup) = cluster.roles()?;
    cluster.group.kill_node(Host::W)?;
    let (old_id, new_id) = cluster.group.prepare_replacement(Host::W)?;
    let lost_id = old_id.to_string();
    cluster.wait("the witness counts as lost", |cluster| {
        let output = plover(cluster, primary, &["replace", "--lost", &lost_id])?;
        Ok(output.status.success())
    })?;
    cluster.group.start_node(Host::W)?;
    cluster.wait("the new witness votes", |cluster| {
        let status = cluster.status(primary)?;
        let members = status["status"]["members"].as_array().cloned();
        let is_voter = |member: &Value| member["node"] == new_id && member["standing"] == "voter";
        Ok(members.unwrap_or_default().iter().any(is_voter))
    })?;
    cluster.wait_for_syncs(SYNCS)?;
    cluster.group.kill_host(primary)?;
    cluster.wait("the backup serves, by the new witness's vote", |cluster| {
        Ok(cluster.roles()?.0 == backup)
    })?;
    cluster.wait_for_answers(ANSWERS)?;
    cluster.finish()?;
    Ok(())
}
