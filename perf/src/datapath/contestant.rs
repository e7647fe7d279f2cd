//! The backends that are held against each other, each with a frontend of its own.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::scenario::{Direction, Scenario};
use crate::interrupt;
use crate::process::Process;
use crate::syscalls;
use crate::testpmd::{Role, Setup, Testpmd};

const START_PATIENCE: Duration = Duration::from_secs(20);
const END_PATIENCE: Duration = Duration::from_secs(10);
/// Time for rings to fill and caches to warm after a pause.
const SETTLE: Duration = Duration::from_millis(60);

/// A backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contestant {
    /// testpmd with DPDK's vhost: the baseline.
    Testpmd,
    /// The same once more, which tells how exact the instrument is.
    TestpmdAgain,
    /// The path of `plover node` with `replication = "off"` (`plover-perf card`).
    Passthrough,
    /// The same without a log of the pages that it writes.
    PassthroughUnlogged,
    /// The sequenced path through a log of so many nodes.
    Sequenced {
        /// One or three.
        nodes: usize,
    },
    /// The same with one node and without counting cycles by step.
    SequencedUncounted,
}

/// Where processes run and keep their files.
pub struct Place<'a> {
    /// The frontend's polling core and the backend's.
    pub cores: (usize, usize),
    /// A folder for sockets and configurations, removed afterwards.
    pub folder: &'a Path,
    /// Where our own executables are.
    pub executables: &'a Path,
}

/// A backend and its frontend, paused between samples.
pub struct Pair {
    backend: Backend,
    frontend: Testpmd,
    direction: Direction,
    commands: Vec<String>,
}

enum Backend {
    Testpmd(Testpmd),
    Own(Process),
}

impl Backend {
    fn process(&mut self) -> &mut Process {
        match self {
            Self::Testpmd(testpmd) => testpmd.process(),
            Self::Own(process) => process,
        }
    }
}

impl Contestant {
    /// As in the names of figures, and for files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Testpmd => "testpmd",
            Self::TestpmdAgain => "selftest",
            Self::Passthrough => "passthrough",
            Self::PassthroughUnlogged => "unlogged",
            Self::SequencedUncounted => "uncounted",
            Self::Sequenced { nodes: 1 } => "sequenced",
            Self::Sequenced { .. } => "sequenced-three",
        }
    }

    /// Starts backend and frontend, begins to forward, and pauses both.
    pub fn start(self, scenario: Scenario, place: &Place<'_>) -> Result<Pair> {
        let socket = place.folder.join(format!("{}.sock", self.name()));
        let mut backend = self.start_backend(scenario, place, &socket)?;
        backend.process().expect_file(&socket, START_PATIENCE)?;
        let mut frontend = Testpmd::start(&Setup {
            role: Role::Frontend(&socket),
            mode: scenario.frontend_mode(),
            frame_bytes: scenario.frontend_bytes(),
            console_core: place.cores.1,
            polling_core: place.cores.0,
            name: &prefix(self, "f"),
        })?;
        if let Backend::Testpmd(vhost) = &mut backend {
            vhost.forward()?;
        }
        frontend.forward()?;
        let commands = [backend.process().command(), frontend.process().command()]
            .map(str::to_owned)
            .into();
        let mut pair = Pair {
            backend,
            frontend,
            direction: scenario.direction,
            commands,
        };
        pair.pause()?;
        Ok(pair)
    }

    fn start_backend(
        self,
        scenario: Scenario,
        place: &Place<'_>,
        socket: &Path,
    ) -> Result<Backend> {
        let arguments = match self {
            Self::Testpmd | Self::TestpmdAgain => {
                return Testpmd::start(&Setup {
                    role: Role::Vhost(socket),
                    mode: scenario.vhost_mode(),
                    frame_bytes: scenario.frame_bytes,
                    console_core: place.cores.0,
                    polling_core: place.cores.1,
                    name: &prefix(self, "b"),
                })
                .map(Backend::Testpmd);
            }
            Self::Passthrough => vec![
                "card".to_owned(),
                format!("--control-core={}", place.cores.0),
            ],
            Self::PassthroughUnlogged => vec![
                "card".to_owned(),
                format!("--control-core={}", place.cores.0),
                "--no-page-log".to_owned(),
            ],
            Self::Sequenced { nodes } => {
                vec!["backend".to_owned(), format!("--nodes={nodes}")]
            }
            Self::SequencedUncounted => vec!["backend".to_owned(), "--no-costs".to_owned()],
        };
        let common = [
            format!("--socket={}", socket.display()),
            format!("--uplink={}", scenario.uplink()),
            format!("--core={}", place.cores.1),
        ];
        let arguments = [arguments, common.into()].concat();
        let program = place.executables.join("plover-perf");
        ensure!(
            program.exists(),
            "{} is not built: make build",
            program.display()
        );
        Process::start(&program.display().to_string(), &arguments).map(Backend::Own)
    }
}

/// Tells the DPDK processes of a run apart, and those of several runs.
fn prefix(contestant: Contestant, side: &str) -> String {
    format!("plover-perf-{}-{side}", contestant.name())
}

impl Pair {
    /// The command lines of both processes.
    pub fn commands(&self) -> &[String] {
        &self.commands
    }

    /// Millions of packets a second over a while, counted by the frontend with its own clock.
    pub fn sample(&mut self, window: Duration) -> Result<f64> {
        self.backend.process().resume()?;
        self.frontend.process().resume()?;
        interrupt::sleep(SETTLE)?;
        self.frontend.stats()?;
        interrupt::sleep(window)?;
        let stats = self.frontend.stats()?;
        self.pause()?;
        let rate = match self.direction {
            Direction::GuestToHost => stats.sent_per_second,
            Direction::HostToGuest | Direction::Forward => stats.received_per_second,
        };
        ensure!(
            rate > 0.0,
            "no packet moved {}",
            self.direction.name().replace('-', " ")
        );
        Ok(rate / 1e6)
    }

    /// System calls of the backend's poll core for each packet that moves meanwhile. Leaves both
    /// running.
    pub fn system_calls(&mut self, window: Duration) -> Result<f64> {
        self.backend.process().resume()?;
        self.frontend.process().resume()?;
        let process = self.backend.process().id();
        let core = syscalls::busiest_thread(process)?;
        let before = self.moved()?;
        let calls = syscalls::count(core, window)?;
        let packets = self.moved()? - before;
        ensure!(packets > 0, "no packet moved while calls were counted");
        Ok(calls as f64 / packets as f64)
    }

    /// Ends the backend; returns what it said.
    pub fn finish(mut self) -> Result<String> {
        self.backend.process().resume()?;
        self.backend.process().finish(END_PATIENCE)
    }

    fn moved(&mut self) -> Result<u64> {
        let stats = self.frontend.stats()?;
        Ok(match self.direction {
            Direction::GuestToHost => stats.sent_packets,
            Direction::HostToGuest | Direction::Forward => stats.received_packets,
        })
    }

    /// The frontend first: the backend then stands with what it had left to do.
    pub fn pause(&mut self) -> Result<()> {
        self.frontend.process().pause()?;
        self.backend.process().pause()
    }
}
