//! `replication = "off"`: the guest's card on a DPDK port and nothing else. The poll core runs on a
//! thread of its own; the main thread waits for the end. No VMM is started: one connects to the
//! card's socket whenever it likes, and another one after it.
//!
//! State is in guest memory alone, so the process may be killed and started again at any time: it
//! takes its place at the same socket, and the rings go on from the used index found there.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use crossbeam_channel::{Sender, bounded, unbounded};
use dpdk_config::limits::FRAME_OVERHEAD_BYTES;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};
use tracing::info;
use vhost_user_plover_net::passthrough::{
    PassthroughCommand, PassthroughConfig, PassthroughCore, PassthroughSetup,
};
use vhost_user_plover_net::path::admit::Station;
use vhost_user_plover_net::{EventFd, NicConfig, VhostUserServer, channel};

use super::card::card_config;
use super::{poll_thread, ports, setup, status};
use crate::config::{PlainNicConfig, PollMode, SocketMode};

/// Packet buffers of the uplink: its two rings, its device's own, and what is on the way.
const UPLINK_MBUFS: u32 = 4096;

/// Held while a process serves the card; the kernel lets go of it however the process ends.
const LOCK: &str = "lock";

/// How often the main thread looks whether it is to stop.
const STOP_CHECK: Duration = Duration::from_millis(50);

/// Serves the card until `stop`.
pub(super) fn run(config: &PlainNicConfig, stop: &Arc<AtomicBool>) -> Result<()> {
    setup::create_state_dir(&config.state_dir)?;
    let _lock = lock(&config.state_dir)?;
    if config.guest.socket_mode == SocketMode::Listen {
        refuse_live_socket(&config.vhost_socket())?;
    }
    let eal = ports::start_eal(&config.eal, [&config.uplink.port]).context("start DPDK")?;
    let frame_bytes_max = usize::from(config.guest.mtu) + FRAME_OVERHEAD_BYTES as usize;
    let (uplink, pool) =
        ports::open_uplink(&eal, &config.uplink.port, config.guest.mtu, UPLINK_MBUFS)?;
    let (control, nic) = channel(NicConfig {
        // Nobody else looks at guest memory.
        on_memory: Box::new(drop),
        written_pages: None,
        card: card_config(&config.guest, true),
    })
    .context("make the guest's card")?;
    let (commands, received) = unbounded();
    let wake = Arc::new(EventFd::new().context("make the poll core's bell")?);
    let poll_core = PassthroughCore::new(PassthroughSetup {
        eal,
        uplink,
        pool,
        nic,
        config: PassthroughConfig {
            is_busy: config.poll.mode == PollMode::Busy,
            idle_sleep: Duration::from_micros(config.poll.idle_sleep_us.into()),
            station: Some(Station::new(config.guest.mac.bytes(), config.guest.mtu)),
            frame_bytes_max,
        },
        commands: received,
        wake: Arc::clone(&wake),
    });
    let asked = Asked {
        name: config.name.clone(),
        socket: config.vhost_socket().display().to_string(),
        commands,
        wake,
    };
    status::serve(&config.state_dir, move || asked.answer())?;
    let poll_stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&poll_stop);
    let poll_thread = poll_thread::start(config.poll.core, stop, move || poll_core.run(&stopped))?;
    let socket = config.vhost_socket();
    let server = match config.guest.socket_mode {
        SocketMode::Listen => VhostUserServer::start(&socket, control),
        SocketMode::Connect => VhostUserServer::start_as_client(&socket, control),
    };
    let server = server.context("serve the guest's card")?;
    info!(
        name = config.name,
        "replication is off: the VM is not protected"
    );
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(STOP_CHECK);
    }
    // The server needs the core's answers to take leave of the VMM.
    server.stop();
    poll_stop.store(true, Ordering::Relaxed);
    if poll_thread.join().is_err() {
        bail!("the poll core stopped by a panic; see the log above");
    }
    Ok(())
}

/// One process serves a card. Whoever finds the lock free finds dead sockets only.
fn lock(state_dir: &Path) -> Result<Flock<File>> {
    let path = state_dir.join(LOCK);
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        Errno::EWOULDBLOCK => anyhow::anyhow!(
            "another process serves {}; stop it, or set another state_dir",
            state_dir.display()
        ),
        error => anyhow::Error::new(error).context(format!("lock {}", path.display())),
    })
}

/// A socket of another card's process is not taken from it.
fn refuse_live_socket(path: &Path) -> Result<()> {
    if UnixStream::connect(path).is_ok() {
        bail!(
            "another process listens on {}; stop it, or set another guest.socket",
            path.display()
        );
    }
    Ok(())
}

/// How the card answers `plover status`.
struct Asked {
    name: String,
    socket: String,
    commands: Sender<PassthroughCommand>,
    wake: Arc<EventFd>,
}

impl Asked {
    fn answer(&self) -> Result<Value> {
        let (reply, status) = bounded(1);
        self.commands
            .send(PassthroughCommand::Status(reply))
            .context("the poll core has stopped")?;
        self.wake.signal();
        let status = status
            .recv_timeout(status::ANSWER_MAX)
            .context("the poll core does not answer")?;
        Ok(json!({
            "name": self.name,
            "replication": "off",
            "socket": self.socket,
            "status": status,
        }))
    }
}
