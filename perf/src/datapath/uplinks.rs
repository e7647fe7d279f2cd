//! Passthrough over uplinks that lead out of the process: the guest sends as fast as it can, and
//! what reaches the far end of the uplink is counted there. The driver and what it talks to bound
//! these rates, so there is nothing to hold them against.
//!
//! Interfaces live in a network namespace of the backend's own, and go with it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::alternate::{Effort, Rounds};
use super::{MARGIN_MIB, Options, SMALLEST_BYTES, executables, figure};
use crate::hugepages::Hugepages;
use crate::interrupt;
use crate::measured::Measured;
use crate::placement;
use crate::process::Process;
use crate::testpmd::{self, MEMORY_MIB, Role, Setup, Testpmd};

/// A driver that leads out of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uplink {
    /// An interface of the kernel that the driver makes.
    Tap,
    /// Shared memory with another process.
    Memif,
    /// An interface of the kernel by its packet socket.
    AfPacket,
    /// The same by an XDP socket.
    AfXdp,
}

/// The interface that the driver works on.
const NEAR: &str = "plover0";
/// The other end of a veth pair.
const FAR: &str = "far0";
const START_PATIENCE: Duration = Duration::from_secs(20);
/// Time for links to come up, and for rings to fill after a pause.
const SETTLE: Duration = Duration::from_millis(300);
/// The frontend, the backend and perhaps a far end.
const PROCESSES_MAX: usize = 3;

impl Uplink {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Tap, Self::Memif, Self::AfPacket, Self::AfXdp];

    /// DPDK's name of the driver.
    pub fn driver(self) -> &'static str {
        match self {
            Self::Tap => "net_tap",
            Self::Memif => "net_memif",
            Self::AfPacket => "net_af_packet",
            Self::AfXdp => "net_af_xdp",
        }
    }

    /// The name of its figure.
    pub fn figure(self) -> String {
        format!("datapath/uplink/{}/guest-to-host", self.driver())
    }

    /// Where packets are counted.
    pub fn far_end(self) -> &'static str {
        match self {
            Self::Tap => "the kernel's interface",
            Self::Memif => "a testpmd that shares the frontend's core",
            Self::AfPacket | Self::AfXdp => "the far end of a veth pair",
        }
    }

    fn device(self, link: &Path) -> String {
        match self {
            Self::Memif => format!(
                "net_memif0,role=server,id=0,socket={},socket-abstract=no",
                link.display()
            ),
            Self::Tap | Self::AfPacket | Self::AfXdp => {
                format!("{}0,iface={NEAR}", self.driver())
            }
        }
    }

    /// What starts the backend in a namespace that has what the driver needs.
    fn wrapper(self) -> Vec<String> {
        let script = match self {
            Self::Memif => return Vec::new(),
            Self::Tap => "exec \"$@\"".to_owned(),
            Self::AfPacket | Self::AfXdp => format!(
                "ip link add {NEAR} type veth peer name {FAR} && ip link set {NEAR} up && \
                 ip link set {FAR} up && exec \"$@\""
            ),
        };
        let words = ["unshare", "--net", "--", "sh", "-c", &script, "sh"];
        words.map(str::to_owned).into()
    }
}

/// Measures each; one that can't be had is a row without a value that says why.
pub fn run(options: &Options, mut done: impl FnMut(Vec<Measured>) -> Result<()>) -> Result<()> {
    testpmd::check_installed()?;
    let cores = placement::choose_cores(options.cores)?;
    let _hugepages = Hugepages::reserve(PROCESSES_MAX * (MEMORY_MIB + MARGIN_MIB))?;
    for uplink in Uplink::ALL {
        eprintln!("guest-to-host over {} …", uplink.driver());
        let measured = measure(uplink, cores, options);
        interrupt::check()?;
        done(vec![measured.unwrap_or_else(|error| {
            Measured::failed(uplink.figure(), "Mpps", format!("{error:#}"))
        })])?;
    }
    Ok(())
}

fn measure(uplink: Uplink, cores: (usize, usize), options: &Options) -> Result<Measured> {
    let (rounds, window_ms) = if options.quick { (3, 250) } else { (5, 500) };
    let effort = Effort {
        starts: 1,
        rounds,
        window: Duration::from_millis(window_ms),
        patience: options.patience,
    };
    let mut samples = Rounds::new(1, cores, effort, &options.known_round_trips_ns)?;
    let mut running = Running::start(uplink, cores)?;
    for round in 0..effort.rounds {
        samples.measure(0, round, |window| running.sample(window))?;
    }
    let kept = samples.select(vec![None])?;
    let rates = kept.series[0].as_ref();
    let rates = rates.map(|series| series.values().copied().collect());
    let commands = running.commands();
    Ok(figure(uplink.figure(), "Mpps", rates, commands, &kept))
}

/// A frontend that sends, our backend, and what its uplink leads to. They go in this order.
struct Running {
    frontend: Testpmd,
    far_end: FarEnd,
    backend: Process,
    _folder: TempDir,
}

/// Who counts what comes out of the uplink.
enum FarEnd {
    /// The kernel, for an interface in the backend's namespace.
    Interface(&'static str),
    Testpmd(Testpmd),
}

impl Running {
    fn start(uplink: Uplink, cores: (usize, usize)) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("plover-perf-")
            .tempdir()
            .context("make a folder for sockets")?;
        let socket = folder.path().join("card.sock");
        let link = folder.path().join("link.sock");
        let mut backend = start_backend(uplink, cores, &socket, &link)?;
        backend.expect_file(&socket, START_PATIENCE)?;
        let far_end = match uplink {
            Uplink::Tap => FarEnd::Interface(NEAR),
            Uplink::AfPacket | Uplink::AfXdp => FarEnd::Interface(FAR),
            Uplink::Memif => {
                let mut far_end = start_testpmd(Role::Memif(&link), "rxonly", cores)?;
                far_end.forward()?;
                FarEnd::Testpmd(far_end)
            }
        };
        let mut frontend = start_testpmd(Role::Frontend(&socket), "txonly", cores)?;
        frontend.forward()?;
        let mut running = Self {
            frontend,
            far_end,
            backend,
            _folder: folder,
        };
        running.each(Process::pause)?;
        Ok(running)
    }

    /// Does something to each process, the frontend first: the others then stand with little left
    /// to do.
    fn each(&mut self, action: fn(&mut Process) -> Result<()>) -> Result<()> {
        action(self.frontend.process())?;
        if let FarEnd::Testpmd(testpmd) = &mut self.far_end {
            action(testpmd.process())?;
        }
        action(&mut self.backend)
    }

    /// Millions of packets a second that came out of the uplink over a while.
    fn sample(&mut self, window: Duration) -> Result<f64> {
        self.each(Process::resume)?;
        interrupt::sleep(SETTLE)?;
        let before = self.arrived()?;
        let start = Instant::now();
        interrupt::sleep(window)?;
        let packets = self.arrived()?.saturating_sub(before);
        let rate = packets as f64 / start.elapsed().as_secs_f64() / 1e6;
        self.each(Process::pause)?;
        ensure!(packets > 0, "no packet came out of the uplink");
        Ok(rate)
    }

    fn arrived(&mut self) -> Result<u64> {
        match &mut self.far_end {
            FarEnd::Testpmd(testpmd) => Ok(testpmd.stats()?.received_packets),
            FarEnd::Interface(name) => {
                let path = PathBuf::from(format!("/proc/{}/net/dev", self.backend.id()));
                let text = std::fs::read_to_string(&path)
                    .with_context(|| format!("read {}", path.display()))?;
                received(&text, name)
                    .with_context(|| format!("{} has no {name}:\n{text}", path.display()))
            }
        }
    }

    fn commands(&mut self) -> Vec<String> {
        let mut commands = vec![
            self.backend.command().to_owned(),
            self.frontend.process().command().to_owned(),
        ];
        if let FarEnd::Testpmd(testpmd) = &mut self.far_end {
            commands.push(testpmd.process().command().to_owned());
        }
        commands
    }
}

fn start_backend(
    uplink: Uplink,
    cores: (usize, usize),
    socket: &Path,
    link: &Path,
) -> Result<Process> {
    let program = executables()?.join("plover-perf");
    let mut words = uplink.wrapper();
    words.extend([
        program.display().to_string(),
        "card".to_owned(),
        format!("--control-core={}", cores.0),
        format!("--socket={}", socket.display()),
        format!("--uplink={}", uplink.device(link)),
        format!("--core={}", cores.1),
    ]);
    let (first, arguments) = words.split_first().context("no command")?;
    Process::start(first, arguments)
}

fn start_testpmd(role: Role<'_>, mode: &str, cores: (usize, usize)) -> Result<Testpmd> {
    Testpmd::start(&Setup {
        role,
        mode,
        frame_bytes: SMALLEST_BYTES,
        console_core: cores.1,
        polling_core: cores.0,
        name: &format!("plover-perf-uplink-{mode}"),
    })
}

/// The packets that an interface has received, as /proc/PID/net/dev tells them: after its name
/// come bytes, then packets.
fn received(text: &str, interface: &str) -> Option<u64> {
    let of_interface = |line: &str| -> Option<u64> {
        let (name, counters) = line.split_once(':')?;
        if name.trim() != interface {
            return None;
        }
        counters.split_whitespace().nth(1)?.parse().ok()
    };
    text.lines().find_map(of_interface)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICES: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop
    lo:       0       0    0    0    0     0          0         0        0       0    0    0
plover0: 131244032 2050688    0    0    0     0          0         0      586       7    0    0
  far0:12 34 0";

    #[test]
    fn received_packets_are_read() {
        assert_eq!(received(DEVICES, "plover0"), Some(2_050_688));
        assert_eq!(received(DEVICES, "far0"), Some(34));
        assert_eq!(received(DEVICES, "lo"), Some(0));
        assert_eq!(received(DEVICES, "plover"), None);
        assert_eq!(received("plover0: 1 many", "plover0"), None);
    }

    #[test]
    fn interfaces_get_a_namespace_of_their_own() {
        for uplink in Uplink::ALL {
            let wrapper = uplink.wrapper().join(" ");
            let has_interface = uplink.device(Path::new("/l")).contains("iface=");
            assert_eq!(wrapper.starts_with("unshare --net"), has_interface);
        }
    }
}
