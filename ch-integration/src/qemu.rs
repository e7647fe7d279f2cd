//! QEMU as the VMM: driven by QMP over a socket pair that the process inherits.
//!
//! What lives here: the order of QMP calls for each step of [`Vmm`]. The command line is in
//! `arguments`, the protocol in `qmp`, states in `snapshot`.

mod arguments;
mod qmp;
mod snapshot;

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::config::VmmConfig;
use crate::error::VmmError;
use crate::launch::{Nic, RamFile, VmmProcess, last_lines, spawn};
use crate::limits;
use crate::state_blob;
use crate::vcpu_time::VcpuClock;
use crate::vmm::{ExitReason, GuestEvent, Launched, Vmm, VmmKind};
use qmp::Qmp;
use snapshot::Snapshots;

/// A guest in a QEMU process.
pub struct QemuVmm {
    process: VmmProcess,
    qmp: Qmp,
    snapshots: Snapshots,
    version: String,
    vcpus: VcpuClock,
    state: State,
    /// The guest has powered itself off or asked for a reset, so QEMU lets it run again only
    /// after a machine reset.
    needs_reset: bool,
    guest_events: Vec<GuestEvent>,
    _ram: RamFile,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Running,
    Paused,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Waiting => "not booted yet",
            Self::Running => "running",
            Self::Paused => "paused",
        }
    }
}

/// Starts QEMU with the guest stopped before its first instruction.
pub(crate) fn launch(
    config: &VmmConfig,
    binary: &Path,
    nic: Option<&Nic<'_>>,
    run_dir: &Path,
    ram: RamFile,
) -> Result<Launched, VmmError> {
    let (ours, theirs) =
        UnixStream::pair().map_err(|source| VmmError::io("making the QMP socket pair", source))?;
    let log_path = run_dir.join("qemu.log");
    let log = std::fs::File::create(&log_path)
        .map_err(|source| VmmError::io(format!("creating {log_path:?}"), source))?;
    let log_err = log
        .try_clone()
        .map_err(|source| VmmError::io("copying a file", source))?;
    let mut command = Command::new(binary);
    command
        .args(arguments::arguments(
            config,
            &ram,
            nic,
            run_dir,
            theirs.as_fd(),
        ))
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(log_err);
    if let Some(preload) = &config.preload {
        command.env("LD_PRELOAD", preload);
    }
    let mut spawned = spawn(&mut command, &[theirs.as_fd()])?;
    drop(theirs);
    let connected = connect(ours, run_dir);
    let (qmp, snapshots, version, vcpu_tids) =
        connected.map_err(|error| with_log(error, spawned.process.exit_reason(), &log_path))?;
    let (tracker, tracker_reason) = match spawned.tracker {
        Ok(tracker) => (Some(tracker), None),
        Err(reason) => (None, Some(reason)),
    };
    let mut vcpus = VcpuClock::default();
    vcpus.run_on(spawned.process.pid(), &vcpu_tids);
    let vmm = QemuVmm {
        process: spawned.process,
        qmp,
        snapshots,
        version,
        vcpus,
        state: State::Waiting,
        needs_reset: false,
        guest_events: Vec::new(),
        _ram: ram,
    };
    Ok(Launched {
        vmm: Box::new(vmm),
        tracker,
        tracker_reason,
    })
}

type Connected = (Qmp, Snapshots, String, Vec<u32>);

fn connect(socket: UnixStream, run_dir: &Path) -> Result<Connected, VmmError> {
    let (mut qmp, version) = Qmp::connect(socket)?;
    qmp.execute(
        "migrate-set-capabilities",
        &json!({"capabilities": [{"capability": "x-ignore-shared", "state": true}]}),
        limits::START_TIMEOUT,
    )?;
    let cpus = qmp.execute("query-cpus-fast", &json!({}), limits::CALL_TIMEOUT)?;
    let vcpu_tids = thread_ids(&cpus)
        .ok_or_else(|| VmmError::malformed("query-cpus-fast", "no thread ids in it"))?;
    let snapshots = Snapshots::new(&mut qmp, run_dir)?;
    Ok((qmp, snapshots, version, vcpu_tids))
}

fn thread_ids(cpus: &Value) -> Option<Vec<u32>> {
    let ids = cpus.as_array()?.iter();
    ids.map(|cpu| u32::try_from(cpu.get("thread-id")?.as_u64()?).ok())
        .collect()
}

/// QEMU says why it would not start on its standard error, which is in the log.
fn with_log(error: VmmError, exited: Option<ExitReason>, log_path: &Path) -> VmmError {
    let last = last_lines(log_path);
    match exited {
        None if last.is_empty() => error,
        _ => VmmError::Answered {
            what: "starting QEMU".to_owned(),
            message: format!("{error}: {last}"),
        },
    }
}

impl QemuVmm {
    fn expect(&self, what: &'static str, states: &[State]) -> Result<(), VmmError> {
        if states.contains(&self.state) {
            return Ok(());
        }
        Err(VmmError::WrongState {
            what,
            state: self.state.name(),
        })
    }

    fn call(&mut self, command: &str) -> Result<(), VmmError> {
        let answer = self.qmp.execute(command, &json!({}), limits::CALL_TIMEOUT);
        self.noting_exit(command, answer.map(drop))
    }

    /// An error after the process has ended is the end's, not the call's.
    fn noting_exit<T>(&mut self, what: &str, result: Result<T, VmmError>) -> Result<T, VmmError> {
        result.map_err(|error| match self.process.exit_reason() {
            Some(reason) => VmmError::Exited {
                what: what.to_owned(),
                reason,
            },
            None => error,
        })
    }

    /// Resets the stopped machine, after which QEMU lets it run again. Its memory is not touched.
    fn reset_machine(&mut self) -> Result<(), VmmError> {
        let mut call = |command, arguments: Value| {
            self.qmp
                .execute(command, &arguments, limits::CALL_TIMEOUT)
                .map(drop)
        };
        // As long as a reset stops the guest (see `arguments`), ours would, too.
        call("set-action", json!({"reboot": "reset"}))?;
        call("system_reset", json!({}))?;
        let deadline = qmp::Deadline::after(limits::CALL_TIMEOUT);
        self.qmp.wait_event("system_reset", deadline, |event| {
            (event.get("event")?.as_str()? == "RESET").then_some(())
        })?;
        let back = json!({"reboot": "shutdown"});
        self.qmp
            .execute("set-action", &back, limits::CALL_TIMEOUT)
            .map(drop)
    }

    fn take_events(&mut self) -> Vec<GuestEvent> {
        let events = self.qmp.take_events();
        let events: Vec<_> = events.iter().filter_map(guest_event).collect();
        // Events of both kinds stop the guest for good (`-action` in `arguments`).
        self.needs_reset |= events.iter().any(|event| *event != GuestEvent::Panic);
        events
    }
}

impl Vmm for QemuVmm {
    fn kind(&self) -> VmmKind {
        VmmKind::Qemu
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn pid(&self) -> u32 {
        self.process.pid()
    }

    fn boot(&mut self) -> Result<(), VmmError> {
        self.expect("booting", &[State::Waiting])?;
        self.call("cont")?;
        self.state = State::Running;
        Ok(())
    }

    fn pause(&mut self) -> Result<(), VmmError> {
        self.expect("pausing", &[State::Running, State::Paused])?;
        self.call("stop")?;
        self.state = State::Paused;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), VmmError> {
        self.expect("resuming", &[State::Running, State::Paused])?;
        self.call("cont")?;
        self.state = State::Running;
        // The next capture's file is made ready here, where it costs the guest no pause. A
        // failure shows there again.
        if let Err(error) = self.snapshots.prepare(&mut self.qmp) {
            tracing::warn!(%error, "preparing the next capture");
        }
        Ok(())
    }

    fn capture(&mut self) -> Result<Vec<u8>, VmmError> {
        self.expect("capturing", &[State::Paused])?;
        let payload = self.snapshots.capture(&mut self.qmp);
        let payload = self.noting_exit("snapshot-save", payload)?;
        Ok(state_blob::encode(VmmKind::Qemu, &self.version, &payload)?)
    }

    fn load(&mut self, state: &[u8]) -> Result<(), VmmError> {
        self.expect("loading", &[State::Paused, State::Waiting])?;
        let blob = state_blob::decode(state)?;
        if blob.kind != VmmKind::Qemu {
            return Err(VmmError::StateKind {
                found: blob.kind,
                own: VmmKind::Qemu,
            });
        }
        // What came since anybody asked, so that `needs_reset` is up to date.
        let events = self.take_events();
        self.guest_events.extend(events);
        if self.needs_reset {
            let reset = self.reset_machine();
            self.noting_exit("system_reset", reset)?;
        }
        let loaded = self.snapshots.load(&mut self.qmp, blob.payload);
        self.noting_exit("snapshot-load", loaded)?;
        self.needs_reset = false;
        self.state = State::Paused;
        Ok(())
    }

    fn maps_ram(&self) -> bool {
        true
    }

    fn ram_mapping_changed(&self) -> bool {
        false
    }

    fn vcpu_time(&self) -> Result<Duration, VmmError> {
        self.vcpus.total(self.process.pid())
    }

    fn vcpus_run(&self) -> Result<bool, VmmError> {
        self.vcpus.any_runs(self.process.pid())
    }

    fn has_exited(&mut self) -> Option<ExitReason> {
        self.process.exit_reason()
    }

    fn guest_events(&mut self) -> Vec<GuestEvent> {
        let mut events = std::mem::take(&mut self.guest_events);
        events.extend(self.take_events());
        events
    }

    fn kill(&mut self) {
        self.process.kill();
    }
}

/// What a QMP event says about the guest. Resets and shutdowns that we asked for are none.
fn guest_event(event: &Value) -> Option<GuestEvent> {
    let data = event.get("data");
    let by_guest = || data?.get("guest")?.as_bool();
    let reason = data
        .and_then(|data| data.get("reason"))
        .and_then(Value::as_str);
    match event.get("event")?.as_str()? {
        "SHUTDOWN" if by_guest() == Some(true) => Some(match reason {
            Some("guest-reset") => GuestEvent::Reset,
            Some("guest-panic") => GuestEvent::Panic,
            _ => GuestEvent::Shutdown,
        }),
        "RESET" if by_guest() == Some(true) => Some(GuestEvent::Reset),
        "GUEST_PANICKED" => Some(GuestEvent::Panic),
        _ => None,
    }
}

pub(crate) fn serial_log(run_dir: &Path) -> PathBuf {
    run_dir.join("serial.log")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_events_are_told_from_those_we_caused() {
        let event = |name: &str, data: Value| guest_event(&json!({"event": name, "data": data}));
        let reset = json!({"guest": true, "reason": "guest-reset"});
        assert_eq!(event("SHUTDOWN", reset), Some(GuestEvent::Reset));
        let off = json!({"guest": true, "reason": "guest-shutdown"});
        assert_eq!(event("SHUTDOWN", off), Some(GuestEvent::Shutdown));
        assert_eq!(event("GUEST_PANICKED", json!({})), Some(GuestEvent::Panic));
        let ours = json!({"guest": false, "reason": "host-qmp-system-reset"});
        assert_eq!(event("RESET", ours), None);
        assert_eq!(event("STOP", json!({})), None);
        assert_eq!(guest_event(&json!({"event": 7})), None);
    }

    #[test]
    fn thread_ids_are_read_or_refused() {
        let cpus = json!([{"thread-id": 7}, {"thread-id": 8}]);
        assert_eq!(thread_ids(&cpus), Some(vec![7, 8]));
        assert_eq!(thread_ids(&json!([{"thread-id": -1}])), None);
        assert_eq!(thread_ids(&json!({})), None);
    }
}
