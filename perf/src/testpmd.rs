//! DPDK's testpmd, driven over its console: the frontend of every measurement, and the baseline.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::Process;

const PROGRAM: &str = "dpdk-testpmd";
const START_PATIENCE: Duration = Duration::from_secs(20);
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// Hugepage memory of one testpmd.
pub const MEMORY_MIB: usize = 128;

/// Which ports a testpmd has.
pub enum Role<'a> {
    /// The host's side: DPDK's vhost, alone.
    Vhost(&'a Path),
    /// The guest's side: a virtio driver in user space.
    Frontend(&'a Path),
    /// The other end of a shared-memory link, in a process of its own.
    Memif(&'a Path),
}

/// What is to be run.
pub struct Setup<'a> {
    /// Its ports.
    pub role: Role<'a>,
    /// testpmd's name of the forwarding mode.
    pub mode: &'a str,
    /// Size of the frames that it makes.
    pub frame_bytes: usize,
    /// Where its console thread runs; it is idle while packets move.
    pub console_core: usize,
    /// Where its polling thread runs.
    pub polling_core: usize,
    /// Tells DPDK processes apart.
    pub name: &'a str,
}

/// The counters of a port, and its rates since they were last asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PortStats {
    /// Packets received.
    pub received_packets: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Packets received in a second.
    pub received_per_second: f64,
    /// Packets sent in a second.
    pub sent_per_second: f64,
}

/// An error with the command that mends it, where there is no testpmd.
pub fn check_installed() -> Result<()> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let is_there = std::env::split_paths(&paths).any(|path| path.join(PROGRAM).exists());
    ensure!(
        is_there,
        "{PROGRAM}, the baseline, is not installed: apt-get install dpdk-dev"
    );
    Ok(())
}

/// A running testpmd.
pub struct Testpmd {
    process: Process,
}

impl Testpmd {
    /// Starts it; it forwards nothing yet.
    pub fn start(setup: &Setup<'_>) -> Result<Self> {
        let arguments = arguments(setup);
        let mut process = Process::start("stdbuf", &arguments)?;
        process.expect("Checking link statuses...", START_PATIENCE)?;
        process.expect("testpmd> ", START_PATIENCE)?;
        Ok(Self { process })
    }

    /// Begins to forward.
    pub fn forward(&mut self) -> Result<()> {
        self.process.say("start")?;
        self.process
            .expect("packet forwarding - ports", ANSWER_PATIENCE)?;
        Ok(())
    }

    /// Reads the port's counters.
    pub fn stats(&mut self) -> Result<PortStats> {
        self.process.say("show port stats 0")?;
        self.process
            .expect("NIC statistics for port 0", ANSWER_PATIENCE)?;
        let text = self.process.expect("Tx-bps:", ANSWER_PATIENCE)?;
        parse_stats(&text).with_context(|| format!("testpmd's statistics read:\n{text}"))
    }

    /// The process, to pause and resume it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

fn arguments(setup: &Setup<'_>) -> Vec<String> {
    let lcores = format!("0@{},1@{}", setup.console_core, setup.polling_core);
    let mut arguments: Vec<String> = ["-o0", PROGRAM, "--no-pci", "--in-memory", "--no-telemetry"]
        .map(str::to_owned)
        .into();
    let vdev = match setup.role {
        Role::Vhost(socket) => format!("net_vhost0,iface={},queues=1", socket.display()),
        Role::Frontend(socket) => {
            arguments.push("--single-file-segments".to_owned());
            format!("net_virtio_user0,path={},queues=1", socket.display())
        }
        // The longest ring: two ends that take turns on a core hand over a ring at each turn.
        Role::Memif(link) => format!(
            "net_memif0,role=client,id=0,socket={},socket-abstract=no,rsize=14",
            link.display()
        ),
    };
    arguments.extend([
        format!("--file-prefix={}", setup.name),
        "-m".to_owned(),
        MEMORY_MIB.to_string(),
        "--lcores".to_owned(),
        lcores,
        "--vdev".to_owned(),
        vdev,
        "--".to_owned(),
        "-i".to_owned(),
        format!("--forward-mode={}", setup.mode),
        format!("--txpkts={}", setup.frame_bytes),
        "--total-num-mbufs=8192".to_owned(),
        "--burst=32".to_owned(),
        "--no-flush-rx".to_owned(),
    ]);
    arguments
}

fn parse_stats(text: &str) -> Option<PortStats> {
    Some(PortStats {
        received_packets: number(text, "RX-packets:")?.parse().ok()?,
        sent_packets: number(text, "TX-packets:")?.parse().ok()?,
        received_per_second: number(text, "Rx-pps:")?.parse().ok()?,
        sent_per_second: number(text, "Tx-pps:")?.parse().ok()?,
    })
}

fn number<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let at = text.find(name)? + name.len();
    text[at..].split_whitespace().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATS: &str = "  ########################
  RX-packets: 71357920   RX-missed: 0          RX-bytes:  4566908608
  RX-errors: 0
  RX-nombuf:  0
  TX-packets: 12         TX-errors: 0          TX-bytes:  0

  Throughput (since last show)
  Rx-pps:     30965660          Rx-bps:  15854417560
  Tx-pps:            7          Tx-bps:";

    #[test]
    fn statistics_are_read() {
        let expected = PortStats {
            received_packets: 71_357_920,
            sent_packets: 12,
            received_per_second: 30_965_660.0,
            sent_per_second: 7.0,
        };
        assert_eq!(parse_stats(STATS), Some(expected));
    }

    #[test]
    fn statistics_that_are_none_are_refused() {
        assert_eq!(parse_stats(""), None);
        assert_eq!(parse_stats("RX-packets: many"), None);
        assert_eq!(parse_stats("RX-packets:"), None);
    }

    #[test]
    fn the_command_line_is_that_of_the_comparison() {
        let setup = Setup {
            role: Role::Frontend(Path::new("/s")),
            mode: "txonly",
            frame_bytes: 64,
            console_core: 1,
            polling_core: 0,
            name: "f",
        };
        assert_eq!(
            arguments(&setup).join(" "),
            "-o0 dpdk-testpmd --no-pci --in-memory --no-telemetry --single-file-segments \
             --file-prefix=f -m 128 --lcores 0@1,1@0 --vdev net_virtio_user0,path=/s,queues=1 -- \
             -i --forward-mode=txonly --txpkts=64 --total-num-mbufs=8192 --burst=32 --no-flush-rx"
        );
    }
}
