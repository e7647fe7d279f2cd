//! Where and when a figure was made.

use std::process::Command;

use serde::{Deserialize, Serialize};

/// A machine at a time. What can't be found out is "unknown".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The CPU's name for itself.
    pub cpu: String,
    /// How many cores this process may use.
    pub cores: usize,
    /// The kernel's release.
    pub kernel: String,
    /// Hugepages as reserved when the figure was made.
    pub hugepages: String,
    /// When, in UTC.
    pub date: String,
    /// The repository's revision, with `-dirty` where the tree differs.
    pub git_revision: String,
    /// DPDK's version, as testpmd and our binaries are linked with.
    pub dpdk: String,
    /// How this program was built.
    pub build: String,
}

impl Machine {
    /// This one, now.
    pub fn here() -> Self {
        Self {
            cpu: cpu_model(),
            cores: std::thread::available_parallelism().map_or(0, Into::into),
            kernel: read_line("/proc/sys/kernel/osrelease"),
            hugepages: hugepages(),
            date: output("date", &["-u", "+%Y-%m-%d %H:%M"]),
            git_revision: output("git", &["describe", "--always", "--dirty"]),
            dpdk: output("pkg-config", &["--modversion", "libdpdk"]),
            build: if cfg!(debug_assertions) {
                "dev".to_owned()
            } else {
                "release".to_owned()
            },
        }
    }
}

fn unknown() -> String {
    "unknown".to_owned()
}

fn cpu_model() -> String {
    std::fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| field(&text, "model name"))
        .unwrap_or_else(unknown)
}

fn hugepages() -> String {
    let Ok(text) = std::fs::read_to_string("/proc/meminfo") else {
        return unknown();
    };
    let of = |name| field(&text, name).unwrap_or_else(unknown);
    format!("{} x {}", of("HugePages_Total"), of("Hugepagesize"))
}

/// The value of the first line `name : value`.
fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    let (_, value) = line.split_once(':')?;
    Some(value.trim().to_owned())
}

fn read_line(path: &str) -> String {
    std::fs::read_to_string(path).map_or_else(|_| unknown(), |text| text.trim().to_owned())
}

fn output(program: &str, arguments: &[&str]) -> String {
    Command::new(program)
        .args(arguments)
        .output()
        .ok()
        .filter(|output| output.status.success())
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .filter(|text| !text.is_empty())
        .unwrap_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_name() {
        let text = "vendor_id\t: A\nmodel name\t: AMD EPYC\nmodel name\t: other\n";
        assert_eq!(field(text, "model name").as_deref(), Some("AMD EPYC"));
        assert_eq!(field(text, "flags"), None);
    }

    #[test]
    fn what_is_not_there_is_unknown() {
        assert_eq!(output("no-such-program-anywhere", &[]), "unknown");
        assert_eq!(read_line("/no/such/file"), "unknown");
    }
}
