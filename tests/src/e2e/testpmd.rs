//! DPDK's testpmd with a virtio_user port as the guest of a card, driven by its prompt.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

const TESTPMD: &str = "/usr/bin/dpdk-testpmd";
const PROMPT: &str = "testpmd> ";
/// A command is answered within this time, or testpmd hangs.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// The address of the guest's port; the card's own is in [`super::card::CARD_MAC`].
const PORT_MAC: &str = "02:00:00:00:00:20";

/// Why testpmd cannot be run here, if so.
#[must_use]
pub fn lack() -> Option<String> {
    (!Path::new(TESTPMD).exists()).then(|| "no dpdk-testpmd".to_owned())
}

/// A running testpmd.
pub struct Testpmd {
    process: Child,
    input: ChildStdin,
    output: Receiver<Vec<u8>>,
    /// All that it said.
    said: String,
    read: usize,
}

/// Counters of port 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCounts {
    /// Received.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Sent.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Lost for want of buffers or by error.
    pub errors: u64,
}

impl Testpmd {
    /// Starts testpmd with one virtio_user port on `socket`; `device` are further arguments of the
    /// port, as `mrg_rxbuf=0`, and `options` further ones of testpmd.
    ///
    /// Plain memory, which DPDK shares by a memfd as long as it is one segment: no hugepages.
    pub fn start(socket: &Path, device: &str, options: &[&str]) -> Result<Self> {
        let vdev = format!(
            "net_virtio_user0,path={},mac={PORT_MAC},{device}",
            socket.display()
        );
        let prefix = format!("plover-{}", socket_name(socket));
        let mut process = Command::new("stdbuf")
            .args([
                "-o0",
                TESTPMD,
                "--no-pci",
                "--no-huge",
                "--no-shconf",
                "--no-telemetry",
            ])
            .args(["-m", "128", "--lcores", &lcores(), "--file-prefix", &prefix])
            .args([
                "--vdev",
                &vdev,
                "--",
                "-i",
                "--no-flush-rx",
                "--total-num-mbufs=4096",
            ])
            .arg(format!("--eth-peer=0,{}", super::card::CARD_MAC))
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("start dpdk-testpmd")?;
        let input = process.stdin.take().context("testpmd has no input")?;
        let mut stdout = process.stdout.take().context("testpmd has no output")?;
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(bytes @ 1..) = stdout.read(&mut buffer) {
                if sender.send(buffer[..bytes].to_vec()).is_err() {
                    break;
                }
            }
        });
        let mut testpmd = Self {
            process,
            input,
            output,
            said: String::new(),
            read: 0,
        };
        let greeting = testpmd.wait_for(PROMPT).context("start dpdk-testpmd")?;
        ensure!(
            greeting.contains("Port 0: "),
            "testpmd has no port:\n{greeting}"
        );
        Ok(testpmd)
    }

    /// Gives a command and returns what is said until the next prompt.
    pub fn command(&mut self, command: &str) -> Result<String> {
        self.input
            .write_all(format!("{command}\n").as_bytes())
            .with_context(|| format!("testpmd: {command}"))?;
        self.wait_for(PROMPT)
            .with_context(|| format!("testpmd: {command}"))
    }

    /// Gives commands, one after another.
    pub fn commands(&mut self, commands: &[&str]) -> Result<()> {
        commands
            .iter()
            .try_for_each(|command| self.command(command).map(drop))
    }

    /// Reads until `text` was said, and returns what came up to it.
    pub fn wait_for(&mut self, text: &str) -> Result<String> {
        let deadline = Instant::now() + ANSWER_MAX;
        loop {
            if let Some(at) = self.said[self.read..].find(text) {
                let said = self.said[self.read..self.read + at].to_owned();
                self.read += at + text.len();
                return Ok(said);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.said.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Timeout) => bail!("it hangs; it said:\n{}", self.said),
                Err(RecvTimeoutError::Disconnected) => bail!("it ended; it said:\n{}", self.said),
            }
        }
    }

    /// The port's counters.
    pub fn counts(&mut self) -> Result<PortCounts> {
        let said = self.command("show port stats 0")?;
        let number = |name: &str| {
            let words: Vec<&str> = said.split_whitespace().collect();
            let at = words.iter().position(|word| *word == name);
            at.and_then(|at| words.get(at + 1)?.parse::<u64>().ok())
                .with_context(|| format!("testpmd tells no {name}:\n{said}"))
        };
        Ok(PortCounts {
            rx_packets: number("RX-packets:")?,
            rx_bytes: number("RX-bytes:")?,
            tx_packets: number("TX-packets:")?,
            tx_bytes: number("TX-bytes:")?,
            errors: number("RX-missed:")?
                + number("RX-errors:")?
                + number("RX-nombuf:")?
                + number("TX-errors:")?,
        })
    }

    /// Waits until the counters fit.
    pub fn wait_for_counts(
        &mut self,
        what: &str,
        fits: impl Fn(&PortCounts) -> bool,
    ) -> Result<PortCounts> {
        let deadline = Instant::now() + ANSWER_MAX;
        loop {
            let counts = self.counts()?;
            if fits(&counts) {
                return Ok(counts);
            }
            ensure!(
                Instant::now() < deadline,
                "waited in vain until {what}: {counts:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it in order.
    pub fn quit(mut self) -> Result<()> {
        self.input.write_all(b"quit\n").context("testpmd: quit")?;
        self.wait_for("Bye...").context("testpmd: quit")?;
        let status = self.process.wait()?;
        ensure!(status.success(), "testpmd ended with {status}");
        Ok(())
    }

    /// SIGKILL: a VMM that dies.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("testpmd said:\n{}", self.said);
        }
    }
}

/// The prompt's core and the forwarding one: the first two that this process may use.
fn lcores() -> String {
    let allowed = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0));
    let cores: Vec<usize> = match allowed {
        Ok(set) => (0..nix::sched::CpuSet::count())
            .filter(|core| set.is_set(*core).unwrap_or(false))
            .take(2)
            .collect(),
        Err(_) => vec![0],
    };
    let last = cores.last().copied().unwrap_or_default();
    let first = cores.first().copied().unwrap_or_default();
    format!("0@{first},1@{last}")
}

/// The folder's name: unlike that of any other test's.
fn socket_name(socket: &Path) -> String {
    let folder = socket.ancestors().nth(2).and_then(Path::file_name);
    folder.map_or_else(String::new, |name| name.to_string_lossy().replace('.', "-"))
}
