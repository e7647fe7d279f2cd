//! The network between the nodes of a group of three: a bridge with a cable to each of them, in a
//! network namespace of this process alone, which goes with it.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, unshare};

/// MTU of the cables: each message fits few frames, and each frame an mbuf.
const MTU: usize = 1500;

/// Moves this process into a namespace of its own and lays the cables. Returns the device of each
/// node. Before any other thread is started: they would stay outside.
pub fn lay(nodes: usize) -> Result<Vec<String>> {
    unshare(CloneFlags::CLONE_NEWNET)
        .context("make a network namespace for the group (needs CAP_SYS_ADMIN)")?;
    ip("link add name hub0 type bridge")?;
    ip("link set hub0 up")?;
    for node in 0..nodes {
        ip(&format!(
            "link add node{node} mtu {MTU} type veth peer name port{node} mtu {MTU}"
        ))?;
        ip(&format!("link set port{node} master hub0"))?;
        ip(&format!("link set port{node} up"))?;
        ip(&format!("link set node{node} up promisc on"))?;
    }
    let device = |node| format!("net_af_packet{node},iface=node{node},framecnt=512,qdisc_bypass=1");
    Ok((0..nodes).map(device).collect())
}

fn ip(arguments: &str) -> Result<()> {
    let status = Command::new("ip")
        .args(arguments.split(' '))
        .status()
        .context("run ip")?;
    ensure!(status.success(), "ip {arguments} failed");
    Ok(())
}
