//! A card as its process: `plover node` on a configuration of its own, without replication or as a
//! group of one node.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use ch_integration::demo::group::beside;
use ch_integration::demo::namespace::Entrance;
use ch_integration::node::status;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// How long the process may take to come up or to end.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// The card's address in the configurations here.
pub const CARD_MAC: &str = "02:00:00:00:00:10";

/// What a card's configuration says beside its paths.
#[derive(Clone, Debug)]
pub struct CardConfig {
    /// `uplink.port.vdev`. `net_ring0` gives back what it is given.
    pub uplink: String,
    /// `poll.mode = "busy"`.
    pub busy: bool,
    /// Lines of `[guest]`.
    pub guest: String,
    /// The network namespace to run in; none: this one.
    pub inside: Option<Entrance>,
}

impl CardConfig {
    /// A card that connects to the socket, where the VMM listens.
    #[must_use]
    pub fn connecting() -> Self {
        Self {
            guest: "socket_mode = \"connect\"".to_owned(),
            ..Self::default()
        }
    }
}

impl Default for CardConfig {
    fn default() -> Self {
        Self {
            uplink: "net_ring0".to_owned(),
            busy: false,
            guest: String::new(),
            inside: None,
        }
    }
}

/// A card's process and its folder.
pub struct Card {
    folder: tempfile::TempDir,
    inside: Option<Entrance>,
    process: Option<Child>,
}

impl Card {
    /// Writes the configuration, starts the process, waits until it serves.
    pub fn start(config: &CardConfig) -> Result<Self> {
        let mode = if config.busy { "busy" } else { "adaptive" };
        let text = format!(
            "replication = \"off\"\n\
             [uplink.port]\nvdev = {:?}\n[guest]\nmac = \"{CARD_MAC}\"\n{}\n[poll]\nmode = \"{mode}\"\n",
            config.uplink, config.guest,
        );
        Self::start_on(|_| text, config.inside.clone())
    }

    /// As [`Self::start`], with all of the configuration but name and `state_dir`. It may name
    /// files in the folder that it is given.
    pub fn start_on(
        config: impl FnOnce(&Path) -> String,
        inside: Option<Entrance>,
    ) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("plover-nic").tempdir()?;
        let text = format!(
            "name = \"nic0\"\nstate_dir = {:?}\n{}",
            folder.path().join("state"),
            config(folder.path()),
        );
        fs::write(folder.path().join("nic.toml"), text)?;
        let mut card = Self {
            folder,
            inside,
            process: None,
        };
        card.launch()?;
        card.wait_until_served()?;
        Ok(card)
    }

    /// Starts the process on the paths that a former one may have left behind.
    pub fn launch(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "the card runs already");
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.folder.path().join("node.log"))?;
        let mut command = Command::new(beside("plover")?);
        command
            .arg("node")
            .arg(self.config_path())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let process = match &self.inside {
            None => command.spawn(),
            // A thread that has entered a namespace stays there.
            Some(inside) => std::thread::scope(|scope| {
                let started = scope.spawn(|| inside.enter().map(|()| command.spawn()));
                started.join().map_err(|_| anyhow!("a thread panicked"))?
            })?,
        };
        self.process = Some(process.context("start plover node")?);
        Ok(())
    }

    /// Waits until it answers and listens.
    pub fn wait_until_served(&mut self) -> Result<()> {
        let deadline = Instant::now() + WAIT_MAX;
        while self.status().is_err() || !self.socket_is_there() {
            let process = self.process.as_mut().context("the card was not started")?;
            if let Some(status) = process.try_wait()? {
                bail!("plover node ended: {status}\n{}", self.log());
            }
            ensure!(
                Instant::now() < deadline,
                "the card does not come up:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// The configuration's file.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.folder.path().join("nic.toml")
    }

    fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// The vhost-user socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.state_dir().join("vhost.sock")
    }

    /// A card that connects has no socket of its own.
    fn socket_is_there(&self) -> bool {
        self.log().contains("looking for a VMM") || self.socket().exists()
    }

    /// A folder for what else a test needs.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What the process said so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("node.log")).unwrap_or_default()
    }

    /// What it answers when it is asked.
    pub fn status(&self) -> Result<Value> {
        status::ask(&self.state_dir())
    }

    /// A number in the status, by its path as `/status/path/delivered`.
    pub fn number(&self, path: &str) -> Result<u64> {
        let status = self.status()?;
        let value = status.pointer(path).and_then(Value::as_u64);
        value.with_context(|| format!("the card's status has no {path}: {status}"))
    }

    /// Process id.
    pub fn pid(&self) -> Result<Pid> {
        let process = self.process.as_ref().context("the card does not run")?;
        Ok(Pid::from_raw(i32::try_from(process.id())?))
    }

    /// Stops the process while `prepare` makes work for it, lets it go on for a moment, and kills it:
    /// SIGKILL, nothing is cleaned up. The moment is spun away: it may be shorter than the kernel's
    /// shortest sleep.
    pub fn kill_after(
        &mut self,
        moment: Duration,
        prepare: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let pid = self.pid()?;
        kill(pid, Signal::SIGSTOP)?;
        prepare()?;
        kill(pid, Signal::SIGCONT)?;
        let end = Instant::now() + moment;
        while Instant::now() < end {
            std::hint::spin_loop();
        }
        kill(pid, Signal::SIGKILL)?;
        let mut process = self.process.take().context("the card does not run")?;
        let status = process.wait()?;
        ensure!(
            status.signal() == Some(Signal::SIGKILL as i32),
            "the card had ended before it was killed: {status}\n{}",
            self.log()
        );
        Ok(())
    }

    /// Waits for the process to end by itself; how it ended.
    pub fn await_end(&mut self) -> Result<ExitStatus> {
        let mut process = self.process.take().context("the card does not run")?;
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            if let Some(status) = process.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                process.kill()?;
                process.wait()?;
                bail!("the card did not end:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGTERM; how it ended.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        let pid = self.pid()?;
        kill(pid, Signal::SIGTERM)?;
        self.await_end()
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
        if std::thread::panicking() {
            eprintln!("the card's log:\n{}", self.log());
        }
    }
}
