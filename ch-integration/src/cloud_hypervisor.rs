//! Cloud Hypervisor as the VMM: driven by its REST API over a Unix socket.
//!
//! What lives here: the order of API calls for each step of [`Vmm`]. HTTP is in `http`, the
//! machine's description in `machine`, events in `events`, the wait for its virtio threads in
//! `workers`.
//!
//! ```text
//! primary   vm.create vm.boot | vm.pause vm.snapshot vm.resume | ...
//! backup    vm.restore vm.resume | vm.pause vm.delete vm.restore vm.resume | ...
//! ```
//! A snapshot holds no memory, since guest memory is a shared file with a name. It holds the
//! machine's description, too, which is not taken over: the backup restores with its own, so a
//! peer's bytes can't give this host's guest a device.

mod events;
mod http;
mod machine;
mod workers;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::config::VmmConfig;
use crate::error::VmmError;
use crate::launch::{Nic, RamFile, VmmProcess, last_lines, spawn};
use crate::limits;
use crate::refuse::{CloudHypervisorArgs, parse_ch_args};
use crate::state_blob;
use crate::vcpu_time::{VcpuClock, threads_named};
use crate::vmm::{ExitReason, GuestEvent, Launched, Vmm, VmmKind};
use events::Events;
use http::Api;

/// A guest in a Cloud Hypervisor process.
pub struct CloudHypervisorVmm {
    process: VmmProcess,
    api: Api,
    events: Events,
    version: String,
    machine: Value,
    snapshot_dir: PathBuf,
    state: State,
    resumed_at: Instant,
    vcpus: VcpuClock,
    guest_events: Vec<GuestEvent>,
    mapping_changed: bool,
    log_path: PathBuf,
    /// How it ended was said.
    told_end: bool,
    _ram: RamFile,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Running,
    Paused,
    /// The guest has powered itself off.
    Off,
    /// A load failed half way: there is no guest, and only another load can bring one.
    Void,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Waiting => "not booted yet",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Off => "powered off",
            Self::Void => "void after a failed load",
        }
    }
}

/// Starts Cloud Hypervisor without a guest.
pub(crate) fn launch(
    config: &VmmConfig,
    binary: &Path,
    nic: Option<&Nic<'_>>,
    run_dir: &Path,
    ram: RamFile,
) -> Result<Launched, VmmError> {
    let extra = parse_ch_args(&config.extra_args).map_err(VmmError::Refused)?;
    let socket = run_dir.join("api.sock");
    let listener = listen(&socket)?;
    let (events, events_end) = Events::pipe()?;
    let log_path = run_dir.join("cloud-hypervisor.log");
    let passed = [listener.as_fd(), events_end.as_fd()];
    let mut spawned = spawn(
        &mut command(config, binary, &extra, &log_path, passed)?,
        &passed,
    )?;
    // From here on only the process has them, so its end is seen on our ends.
    drop((listener, events_end));
    let mut api = Api::new(socket);
    let version = ping(&mut api)
        .map_err(|error| with_log(error, spawned.process.exit_reason(), &log_path))?;
    let (tracker, tracker_reason) = match spawned.tracker {
        Ok(tracker) => (Some(tracker), None),
        Err(reason) => (None, Some(reason)),
    };
    let vmm = CloudHypervisorVmm {
        process: spawned.process,
        api,
        events,
        version,
        machine: machine::describe(config, &extra, &ram, nic, run_dir),
        snapshot_dir: run_dir.join("snapshot"),
        state: State::Waiting,
        resumed_at: Instant::now(),
        vcpus: VcpuClock::default(),
        guest_events: Vec::new(),
        mapping_changed: false,
        log_path,
        told_end: false,
        _ram: ram,
    };
    Ok(Launched {
        vmm: Box::new(vmm),
        tracker,
        tracker_reason,
    })
}

/// We listen in its place and hand it the socket: a call can be sent before it is up.
fn listen(socket: &Path) -> Result<UnixListener, VmmError> {
    // A socket of an earlier run, or nothing.
    let _ = fs::remove_file(socket);
    UnixListener::bind(socket)
        .map_err(|source| VmmError::io(format!("listening on {socket:?}"), source))
}

fn command(
    config: &VmmConfig,
    binary: &Path,
    extra: &CloudHypervisorArgs,
    log_path: &Path,
    [listener, events_end]: [std::os::fd::BorrowedFd<'_>; 2],
) -> Result<Command, VmmError> {
    use std::os::fd::AsRawFd;
    let log = fs::File::create(log_path)
        .map_err(|source| VmmError::io(format!("creating {log_path:?}"), source))?;
    let log_err = log
        .try_clone()
        .map_err(|source| VmmError::io("copying a file", source))?;
    let mut command = Command::new(binary);
    command
        .arg("--api-socket")
        .arg(format!("fd={}", listener.as_raw_fd()))
        .arg("--event-monitor")
        .arg(format!("fd={}", events_end.as_raw_fd()))
        // A guest that powers off leaves the process alive: others decide.
        .arg("--no-shutdown")
        .args(&extra.process)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(log_err);
    if let Some(preload) = &config.preload {
        command.env("LD_PRELOAD", preload);
    }
    Ok(command)
}

fn ping(api: &mut Api) -> Result<String, VmmError> {
    let answer = api.get("vmm.ping", limits::START_TIMEOUT)?;
    let version = answer.get("version").and_then(Value::as_str);
    version
        .map(str::to_owned)
        .ok_or_else(|| VmmError::malformed("vmm.ping", "it names no version"))
}

/// Cloud Hypervisor says why it would not start on its standard error, which is in the log.
fn with_log(error: VmmError, exited: Option<ExitReason>, log_path: &Path) -> VmmError {
    let last = last_lines(log_path);
    match exited {
        None if last.is_empty() => error,
        _ => VmmError::Answered {
            what: "starting Cloud Hypervisor".to_owned(),
            message: format!("{error}: {last}"),
        },
    }
}

impl CloudHypervisorVmm {
    fn expect(&self, what: &'static str, states: &[State]) -> Result<(), VmmError> {
        if states.contains(&self.state) {
            return Ok(());
        }
        Err(VmmError::WrongState {
            what,
            state: self.state.name(),
        })
    }

    fn call(
        &mut self,
        call: &str,
        body: Option<&Value>,
        timeout: Duration,
    ) -> Result<(), VmmError> {
        let answer = self.api.put(call, body, timeout);
        self.noting_exit(call, answer)
    }

    /// An error after the process has ended is the end's, not the call's.
    fn noting_exit<T>(&mut self, what: &str, result: Result<T, VmmError>) -> Result<T, VmmError> {
        result.map_err(|error| match self.ended() {
            Some(reason) => VmmError::Exited {
                what: what.to_owned(),
                reason,
            },
            None => error,
        })
    }

    /// How the process ended, if it did. Its last words are told before its successor's log takes
    /// the place of its own.
    fn ended(&mut self) -> Option<ExitReason> {
        let reason = self.process.exit_reason()?;
        if !std::mem::replace(&mut self.told_end, true) {
            let last = last_lines(&self.log_path);
            tracing::warn!(%reason, last, "Cloud Hypervisor ended");
        }
        Some(reason)
    }

    /// Looks for the threads that run the vCPUs now.
    fn find_vcpus(&mut self) -> Result<(), VmmError> {
        let pid = self.process.pid();
        let threads = threads_named(pid, workers::is_vcpu)?;
        let tids: Vec<u32> = threads.into_iter().map(|(tid, _)| tid).collect();
        self.vcpus.run_on(pid, &tids);
        Ok(())
    }

    /// Takes in what the guest did, for who asks later.
    fn note_events(&mut self) -> Result<(), VmmError> {
        let events = self.events.take();
        if events.is_empty() {
            return Ok(());
        }
        if events.last() == Some(&GuestEvent::Shutdown) {
            self.state = State::Off;
        }
        self.guest_events.extend(events);
        self.find_vcpus()
    }

    /// Deletes the guest that is there.
    fn delete(&mut self) -> Result<(), VmmError> {
        self.note_events()?;
        self.state = State::Void;
        self.events.expect_delete();
        // The vCPU threads end now; their time is seen before.
        self.vcpus.total(self.process.pid())?;
        self.call("vm.delete", None, limits::MACHINE_TIMEOUT)
    }

    fn snapshot_url(&self) -> String {
        format!("file://{}", self.snapshot_dir.display())
    }

    fn empty_snapshot_dir(&self) -> Result<(), VmmError> {
        let failed = |source| VmmError::io(format!("emptying {:?}", self.snapshot_dir), source);
        fs::create_dir_all(&self.snapshot_dir).map_err(failed)?;
        for entry in fs::read_dir(&self.snapshot_dir).map_err(failed)? {
            fs::remove_file(entry.map_err(failed)?.path()).map_err(failed)?;
        }
        Ok(())
    }

    fn write_snapshot(&self, state: &[u8]) -> Result<(), VmmError> {
        self.empty_snapshot_dir()?;
        let machine = self.machine.to_string();
        for (name, bytes) in [("config.json", machine.as_bytes()), ("state.json", state)] {
            let path = self.snapshot_dir.join(name);
            fs::write(&path, bytes)
                .map_err(|source| VmmError::io(format!("writing {path:?}"), source))?;
        }
        Ok(())
    }

    /// Keeps apart what must not come close: see `limits::PAUSE_GAP`.
    fn wait_until_pausable(&self) -> Result<(), VmmError> {
        let since = self.resumed_at.elapsed();
        if let Some(left) = limits::PAUSE_GAP.checked_sub(since) {
            std::thread::sleep(left);
        }
        workers::wait_until_ready(self.process.pid())
    }
}

impl Vmm for CloudHypervisorVmm {
    fn kind(&self) -> VmmKind {
        VmmKind::CloudHypervisor
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn pid(&self) -> u32 {
        self.process.pid()
    }

    fn boot(&mut self) -> Result<(), VmmError> {
        self.expect("booting", &[State::Waiting])?;
        let machine = self.machine.clone();
        self.call("vm.create", Some(&machine), limits::MACHINE_TIMEOUT)?;
        self.call("vm.boot", None, limits::MACHINE_TIMEOUT)?;
        self.state = State::Running;
        self.mapping_changed = true;
        self.resumed_at = Instant::now();
        self.find_vcpus()
    }

    fn pause(&mut self) -> Result<(), VmmError> {
        self.note_events()?;
        self.expect("pausing", &[State::Running, State::Paused, State::Off])?;
        // A guest that has powered itself off runs no more than a paused one.
        if self.state != State::Running {
            return Ok(());
        }
        let pausable = self.wait_until_pausable();
        self.noting_exit("vm.pause", pausable)?;
        self.call("vm.pause", None, limits::CALL_TIMEOUT)?;
        self.state = State::Paused;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), VmmError> {
        self.expect("resuming", &[State::Running, State::Paused])?;
        if self.state == State::Running {
            return Ok(());
        }
        self.call("vm.resume", None, limits::CALL_TIMEOUT)?;
        self.resumed_at = Instant::now();
        self.state = State::Running;
        self.mapping_changed = false;
        // Seen now and then, in case these threads end with the guest's own power-off.
        self.vcpus.total(self.process.pid())?;
        // The guest runs; taking its events here keeps their pipe from filling up.
        self.note_events()
    }

    fn capture(&mut self) -> Result<Vec<u8>, VmmError> {
        self.expect("capturing", &[State::Paused])?;
        self.empty_snapshot_dir()?;
        let target = json!({"destination_url": self.snapshot_url()});
        self.call("vm.snapshot", Some(&target), limits::CALL_TIMEOUT)?;
        let path = self.snapshot_dir.join("state.json");
        let payload =
            fs::read(&path).map_err(|source| VmmError::io(format!("reading {path:?}"), source))?;
        Ok(state_blob::encode(
            VmmKind::CloudHypervisor,
            &self.version,
            &payload,
        )?)
    }

    fn load(&mut self, state: &[u8]) -> Result<(), VmmError> {
        self.expect(
            "loading",
            &[State::Paused, State::Waiting, State::Off, State::Void],
        )?;
        let blob = state_blob::decode(state)?;
        if blob.kind != VmmKind::CloudHypervisor {
            return Err(VmmError::StateKind {
                found: blob.kind,
                own: VmmKind::CloudHypervisor,
            });
        }
        self.write_snapshot(blob.payload)?;
        if matches!(self.state, State::Paused | State::Off) {
            self.delete()?;
        }
        self.state = State::Void;
        let source = json!({"source_url": self.snapshot_url()});
        self.call("vm.restore", Some(&source), limits::MACHINE_TIMEOUT)?;
        self.state = State::Paused;
        self.mapping_changed = true;
        self.find_vcpus()
    }

    fn maps_ram(&self) -> bool {
        !matches!(self.state, State::Waiting | State::Void)
    }

    fn ram_mapping_changed(&self) -> bool {
        self.mapping_changed
    }

    fn vcpu_time(&self) -> Result<Duration, VmmError> {
        self.vcpus.total(self.process.pid())
    }

    fn vcpus_run(&self) -> Result<bool, VmmError> {
        self.vcpus.any_runs(self.process.pid())
    }

    fn has_exited(&mut self) -> Option<ExitReason> {
        self.ended()
    }

    fn guest_events(&mut self) -> Vec<GuestEvent> {
        if let Err(error) = self.note_events() {
            tracing::warn!(%error, "looking for the vCPUs after a guest's event");
        }
        std::mem::take(&mut self.guest_events)
    }

    fn kill(&mut self) {
        self.process.kill();
    }
}
