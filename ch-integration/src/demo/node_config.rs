//! The configuration file of each node of a run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use plover_keys::PublicIdentity;

use super::network::{HASHER_PORT, Host};
use super::options::{DemoVmm, Guest, Setting};

/// The guest's MAC: the same on both replicas, and no tap's own.
const GUEST_MAC: &str = "52:54:00:70:6c:76";
/// Raft's tick and heartbeat.
const TICK_MS: u32 = 10;

/// What the nodes of a run have in common.
pub struct GroupPlan<'a> {
    /// `<pid>-<n>`.
    pub run_name: &'a str,
    /// The run's folder; each node has one in it.
    pub run_dir: &'a Path,
    /// The VMM.
    pub vmm: DemoVmm,
    /// The guest.
    pub guest: &'a Guest,
    /// Detection time.
    pub detection_ms: u32,
    /// Each node's public key.
    pub public_keys: &'a BTreeMap<Host, PublicIdentity>,
    /// What the command line adds.
    pub settings: &'a [Setting],
}

impl GroupPlan<'_> {
    /// The node's folder: its log, votes, sockets and events.
    pub fn state_dir(&self, host: Host) -> PathBuf {
        self.run_dir.join(host.name())
    }

    /// The file that the guest's memory lives in.
    pub fn ram_path(&self, host: Host) -> PathBuf {
        ram_dir(self.run_name, host).join("ram")
    }

    /// The node's configuration as TOML.
    pub fn config_of(&self, host: Host) -> String {
        let mut sections = self.common(host);
        if host.is_replica() {
            self.add_replica(host, &mut sections);
            for setting in self.settings {
                let state_dir = self.state_dir(host);
                let value = setting
                    .value
                    .replace("{state_dir}", &state_dir.to_string_lossy());
                sections
                    .entry(setting.section.clone())
                    .or_default()
                    .insert(setting.key.clone(), value);
            }
        }
        let mut text = format!(
            "# Written by `plover demo`.\nname = {}\nid = {}\nstate_dir = {}\n\
             on_backup_loss = \"continue\"\n",
            quoted(host.name()),
            host.id(),
            path(&self.state_dir(host)),
        );
        for (section, keys) in &sections {
            text.push_str(&format!("\n[{section}]\n"));
            for (key, value) in keys {
                text.push_str(&format!("{key} = {value}\n"));
            }
            if section == "group" {
                text.push_str(&self.peers());
            }
        }
        text
    }

    fn common(&self, host: Host) -> BTreeMap<String, BTreeMap<String, String>> {
        let mut sections = BTreeMap::new();
        let group = [("name", quoted("demo")), ("id", "1".to_owned())];
        sections.insert("group".to_owned(), keys(group));
        let replication = [
            ("port.vdev", quoted("net_af_packet0,iface=rep0")),
            ("tick_ms", TICK_MS.to_string()),
            ("detection_ms", self.detection_ms.to_string()),
        ];
        sections.insert("replication".to_owned(), keys(replication));
        let prefix = quoted(&format!("plover-{}-{}", self.run_name, host.name()));
        let eal = [("huge_pages", quoted("off")), ("file_prefix", prefix)];
        sections.insert("eal".to_owned(), keys(eal));
        sections.insert("poll".to_owned(), keys([("mode", quoted("adaptive"))]));
        sections
    }

    fn peers(&self) -> String {
        let mut text = String::new();
        for host in Host::ALL {
            let kind = if host.is_replica() {
                "replica"
            } else {
                "witness"
            };
            text.push_str(&format!(
                "\n[[group.nodes]]\nid = {}\nkind = \"{kind}\"\naddress = \"{}\"\n",
                host.id(),
                host.replication_address(),
            ));
            if let Some(public) = self.public_keys.get(&host) {
                text.push_str(&format!("public_key = \"{public}\"\n"));
            }
            if host.is_replica() {
                text.push_str(&format!("hasher = \"{}:{HASHER_PORT}\"\n", host.sync_ip()));
            }
        }
        text
    }

    fn add_replica(&self, host: Host, sections: &mut BTreeMap<String, BTreeMap<String, String>>) {
        let uplink = [("port.vdev", quoted("net_tap0,iface=dtap0"))];
        sections.insert("uplink".to_owned(), keys(uplink));
        sections.insert("guest".to_owned(), keys([("mac", quoted(GUEST_MAC))]));
        let mut vmm = keys([
            ("kind", quoted(self.vmm.name())),
            ("kernel", path(&self.guest.image.kernel)),
            ("initrd", path(&self.guest.image.initrd)),
            ("cmdline", quoted(&self.guest.cmdline)),
            ("memory_mib", self.guest.memory_mib.to_string()),
            ("ram_path", path(&self.ram_path(host))),
        ]);
        if let Some(library) = std::env::var_os("PLOVER_VMM_PRELOAD") {
            vmm.insert("preload".to_owned(), path(Path::new(&library)));
        }
        sections.insert("vmm".to_owned(), vmm);
    }
}

/// Folder of a host's guest memory.
pub fn ram_dir(run_name: &str, host: Host) -> PathBuf {
    PathBuf::from(format!("/dev/shm/plover-demo-{run_name}-{}", host.name()))
}

/// The run's pid in a folder name made by [`ram_dir`].
pub fn pid_of_ram_dir(name: &str) -> Option<u32> {
    name.strip_prefix("plover-demo-")?
        .split('-')
        .next()?
        .parse()
        .ok()
}

fn keys<const N: usize>(pairs: [(&str, String); N]) -> BTreeMap<String, String> {
    pairs
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

/// A TOML string. What JSON escapes, TOML's basic strings escape alike.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use plover_keys::Identity;

    use super::super::guest::GuestImage;
    use super::super::options::Service;
    use super::*;
    use crate::config::NodeConfig;

    fn config_of(host: Host) -> String {
        let image = GuestImage {
            kernel: "/boot/vmlinuz".into(),
            initrd: "/cache/guest.cpio".into(),
            description: String::new(),
        };
        let cmdline = "console=ttyS0".to_owned();
        let guest = Guest {
            image,
            cmdline,
            memory_mib: 256,
            service: Service::Redis,
        };
        let settings = [
            "debug.deliver_to_backup=false".parse().unwrap(),
            "debug.record_deliveries=\"{state_dir}/d\"".parse().unwrap(),
        ];
        let public = |host: Host| *Identity::from_secret([host.id() as u8; 32]).public();
        let public_keys = Host::ALL.map(|host| (host, public(host))).into();
        let plan = GroupPlan {
            run_name: "4711-0",
            run_dir: Path::new("/var/tmp/plover-demo/4711-0"),
            vmm: DemoVmm::Qemu,
            guest: &guest,
            detection_ms: 250,
            public_keys: &public_keys,
            settings: &settings,
        };
        plan.config_of(host)
    }

    #[test]
    fn every_file_is_a_configuration_that_a_node_accepts() {
        for host in Host::ALL {
            let text = config_of(host);
            let config = NodeConfig::parse(Path::new("demo.toml"), &text).unwrap();
            assert_eq!(u64::from(config.id), host.id());
            assert_eq!(config.vmm.is_some(), host.is_replica());
            assert_eq!(config.debug.deliver_to_backup, !host.is_replica());
        }
    }

    #[test]
    fn a_replica_has_a_vm_and_the_settings_of_the_command_line() {
        let text = config_of(Host::B);
        assert!(
            text.contains("id = 2\nstate_dir = \"/var/tmp/plover-demo/4711-0/b\""),
            "{text}"
        );
        assert!(text.contains("[vmm]\n") && text.contains("[uplink]\n"));
        assert!(text.contains("[debug]\ndeliver_to_backup = false\n"));
        assert!(text.contains("record_deliveries = \"/var/tmp/plover-demo/4711-0/b/d\"\n"));
        assert!(text.contains("hasher = \"10.77.0.1:7700\""));
    }

    #[test]
    fn the_witness_has_no_vm() {
        let text = config_of(Host::W);
        assert!(!text.contains("[vmm]") && !text.contains("[uplink]") && !text.contains("[debug]"));
        assert_eq!(text.matches("[[group.nodes]]").count(), 3);
    }

    #[test]
    fn the_pid_is_found_in_the_name_of_a_folder() {
        let dir = ram_dir("4711-0", Host::A);
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(pid_of_ram_dir(&name), Some(4711));
        assert_eq!(pid_of_ram_dir("plover-x"), None);
    }
}
