//! What a card without replication needs of its host.

use std::os::unix::net::UnixStream;
use std::path::Path;

use dpdk_config::preflight::{Check, Outcome, check as preflight};

use super::{driver_of, request};
use crate::config::{PlainNicConfig, PollMode, SocketMode};

/// Checks of replication only: no pages are looked for, no VMM is started.
const NOT_NEEDED: [&str; 2] = ["kernel", "clock"];

pub(super) fn check(config: &PlainNicConfig) -> Vec<Check> {
    let drivers = driver_of(&config.uplink.port).into_iter().collect();
    let mut checks = preflight(&request(&config.eal, drivers));
    checks.retain(|check| !NOT_NEEDED.contains(&check.name.as_str()));
    checks.extend(interface_check(config));
    checks.extend(core_check(config));
    if config.guest.socket_mode == SocketMode::Listen {
        checks.push(socket_check(&config.vhost_socket()));
    }
    checks.push(protection_check());
    checks
}

fn result(name: &str, outcome: Outcome, found: String, fix: Option<String>) -> Check {
    Check {
        name: name.to_owned(),
        outcome,
        found,
        fix,
    }
}

/// The interface that a device sits on and does not make itself.
fn interface_check(config: &PlainNicConfig) -> Option<Check> {
    let vdev = config.uplink.port.vdev.as_ref()?;
    if !vdev.starts_with("net_af_") {
        return None;
    }
    let name = vdev
        .split(',')
        .find_map(|part| part.strip_prefix("iface="))?;
    let exists = Path::new("/sys/class/net").join(name).exists();
    let (outcome, found, fix) = if exists {
        (Outcome::Ok, format!("{name} is there"), None)
    } else {
        let fix = "set iface= in uplink.port.vdev to one of `ip link`".to_owned();
        (Outcome::Failed, format!("no interface {name}"), Some(fix))
    };
    Some(result("uplink.port", outcome, found, fix))
}

/// A core that polls without a break wants to be named, and to exist.
fn core_check(config: &PlainNicConfig) -> Option<Check> {
    let Some(core) = config.poll.core else {
        return (config.poll.mode == PollMode::Busy).then(|| {
            result(
                "poll.core",
                Outcome::Warning,
                "poll.mode = \"busy\" without a core: the thread wanders".to_owned(),
                Some("set poll.core to a core that nothing else runs on".to_owned()),
            )
        });
    };
    let allowed = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).ok()?;
    let is_allowed = allowed.is_set(core as usize).unwrap_or(false);
    Some(if is_allowed {
        result(
            "poll.core",
            Outcome::Ok,
            format!("core {core} may be used"),
            None,
        )
    } else {
        result(
            "poll.core",
            Outcome::Failed,
            format!("core {core} is not there, or not allowed"),
            Some("set poll.core to one of `taskset -cp $$`".to_owned()),
        )
    })
}

fn socket_check(path: &Path) -> Check {
    let name = "guest.socket";
    if UnixStream::connect(path).is_ok() {
        return result(
            name,
            Outcome::Warning,
            format!("{} is served already", path.display()),
            Some("stop the process that serves it before this one starts".to_owned()),
        );
    }
    if path.exists() && !is_socket(path) {
        return result(
            name,
            Outcome::Failed,
            format!("{} is there and no socket", path.display()),
            Some("remove it, or set another guest.socket".to_owned()),
        );
    }
    result(name, Outcome::Ok, path.display().to_string(), None)
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

fn protection_check() -> Check {
    result(
        "replication",
        Outcome::Warning,
        "off: this VM is not protected".to_owned(),
        Some("configure a group to protect it; see README.md".to_owned()),
    )
}
