//! Does to a running group what a plan says, and undoes it.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ch_integration::demo::namespace::Namespace;
use ch_integration::demo::network::Host;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::faults::{Fault, Process, Way, Whom, Wire};
use crate::e2e::{Child, Cluster};

/// How a fault ends.
#[derive(Clone, Copy, Debug)]
pub enum Undo {
    /// By itself, or never.
    Nothing,
    /// The process goes on.
    Continue(Pid),
    /// The wire is mended.
    Mend(Host, Wire, Way),
    /// The witness is started again.
    StartWitness,
}

/// Makes a fault happen. How it ends, and after which time.
pub fn begin(cluster: &mut Cluster, fault: &Fault) -> Result<(Undo, Duration)> {
    let (primary, backup) = cluster.roles()?;
    let host_of = |whom| match whom {
        Whom::Primary => primary,
        Whom::Backup => backup,
        Whom::Witness => Host::W,
    };
    match *fault {
        Fault::Stop {
            whom,
            process,
            lasts,
        } => {
            let pid = pid_of(cluster, host_of(whom), process)?;
            send(pid, Signal::SIGSTOP)?;
            Ok((Undo::Continue(pid), lasts))
        }
        Fault::Cut {
            whom,
            wire,
            way,
            lasts,
        } => {
            let host = host_of(whom);
            set_wire(cluster, host, wire, way, true)?;
            Ok((Undo::Mend(host, wire, way), lasts))
        }
        Fault::KillProcess { whom, process } => {
            let pid = pid_of(cluster, host_of(whom), process)?;
            send(pid, Signal::SIGKILL)?;
            Ok((Undo::Nothing, Duration::ZERO))
        }
        Fault::RestartWitness { after } => {
            cluster.group.kill_node(Host::W)?;
            Ok((Undo::StartWitness, after))
        }
        Fault::KillHost { whom } => {
            cluster.group.kill_host(host_of(whom))?;
            Ok((Undo::Nothing, Duration::ZERO))
        }
    }
}

/// Ends a fault.
pub fn end(cluster: &mut Cluster, undo: Undo) -> Result<()> {
    match undo {
        Undo::Nothing => Ok(()),
        Undo::Continue(pid) => send(pid, Signal::SIGCONT),
        Undo::Mend(host, wire, way) => set_wire(cluster, host, wire, way, false),
        Undo::StartWitness => cluster.group.start_node(Host::W),
    }
}

fn pid_of(cluster: &Cluster, host: Host, process: Process) -> Result<Pid> {
    match process {
        Process::Vmm => cluster.pid(host, Child::Vmm),
        Process::Hasher => cluster.pid(host, Child::Hasher),
        Process::Node => {
            let pid = cluster.group.node_pid(host).context("no such node")?;
            Ok(Pid::from_raw(i32::try_from(pid)?))
        }
    }
}

fn send(pid: Pid, signal: Signal) -> Result<()> {
    kill(pid, signal).with_context(|| format!("send {signal} to {pid}"))
}

/// Cuts a wire, or mends it, at the switch's port of the host.
fn set_wire(cluster: &Cluster, host: Host, wire: Wire, way: Way, is_cut: bool) -> Result<()> {
    let network = &cluster.group.network;
    let name = host.name();
    let port = match wire {
        Wire::Replication => format!("rep-{name}"),
        Wire::Hashers => format!("sync-{name}"),
        Wire::Uplink => format!("up-{name}"),
    };
    if way == Way::Unplugged {
        let state = if is_cut { "down" } else { "up" };
        let line = format!("link set {port} {state}\n");
        return network.switch().ip_batch(&line);
    }
    if matches!(way, Way::In | Way::Both) {
        swallow(network.switch(), &port, is_cut)?;
    }
    if matches!(way, Way::Out | Way::Both) {
        network.switch().ip_batch(&turn_away(&port, is_cut))?;
    }
    Ok(())
}

/// Lets the switch's port turn away all that its host sends: a locked port takes frames of known
/// stations only, and it knows none. (A queue inside the host would not do: DPDK's packet socket
/// passes it by.)
fn turn_away(port: &str, on: bool) -> String {
    let how = match on {
        true => "learning off locked on fdb_flush",
        false => "locked off learning on",
    };
    format!("link set {port} type bridge_slave {how}\n")
}

/// Lets an interface swallow what it is given to send: a queue with no place in it.
fn swallow(namespace: &Namespace, interface: &str, on: bool) -> Result<()> {
    let mut words = vec!["-n", namespace.name(), "qdisc"];
    match on {
        true => words.extend(["replace", "dev", interface, "root", "pfifo", "limit", "0"]),
        false => words.extend(["delete", "dev", interface, "root"]),
    }
    let output = Command::new("tc")
        .args(&words)
        .output()
        .context("run tc (iproute2)")?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("tc {}: {}", words.join(" "), complaint.trim());
    }
    Ok(())
}
