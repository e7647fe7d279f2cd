//! The demo's network on one machine: four hosts and a switch, each a network namespace.
//!
//! ```text
//!            plv-RUN-a                plv-RUN-b            plv-RUN-w     plv-RUN-cl
//!   dtap0 - upbr - up0       dtap0 - upbr - up0                            cl0
//!                   |                        |                              |
//!  plv-RUN-sw: [upsw ------------------------+------------------------------+]
//!              [repsw --- rep0 (a) ----- rep0 (b) ------ rep0 (w)]   replication
//!              [synsw --- sync0 (a) ---- sync0 (b)]                  hashers' TCP
//! ```
//!
//! `dtap0` is a persistent multi-queue tap, in the bridge before the node starts: DPDK's
//! net_tap opens it by name. When its process is killed, the tap stays and loses carrier.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use super::namespace::{self, Namespace};

/// Start of every namespace name of ours; the pid of the run follows.
const PREFIX: &str = "plv-";
/// MTU of the replication network, so that a burst needs few frames.
const REPLICATION_MTU: u32 = 9000;
/// The client's address on the guest's network.
pub const CLIENT_IP: &str = "10.78.0.1/24";
/// The guest of `kvm-pvm` has a network of its own.
pub const CLIENT_IP_COUNTER: &str = "10.9.0.1/24";
/// TCP port of the hashers.
pub const HASHER_PORT: u16 = 7700;

/// UDP port of the nodes.
const REPLICATION_PORT: u16 = 7401;

/// The id of a node that takes a lost one's place on a host is larger by this.
pub const REPLACED_ID_STEP: u64 = 10;

/// A host of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// First replica.
    A,
    /// Second replica.
    B,
    /// The witness.
    W,
}

impl Host {
    /// All three, in the order of their ids.
    pub const ALL: [Self; 3] = [Self::A, Self::B, Self::W];

    /// Its short name: of namespaces, folders and in events.
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
            Self::W => "w",
        }
    }

    /// Its node id in the group.
    pub fn id(self) -> u64 {
        match self {
            Self::A => 1,
            Self::B => 2,
            Self::W => 3,
        }
    }

    /// The host with this node id, or with that of a node that replaced it.
    pub fn from_id(id: u64) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|host| host.id() == id % REPLACED_ID_STEP)
    }

    /// The other replica.
    pub fn peer(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B | Self::W => Self::A,
        }
    }

    /// Has a copy of the VM.
    pub fn is_replica(self) -> bool {
        self != Self::W
    }

    /// MAC of its replication port.
    pub fn replication_mac(self) -> String {
        format!("02:70:6c:76:00:{:02x}", self.id())
    }

    /// IP address and UDP port of its replication port. The kernel of the host does not have it.
    pub fn replication_address(self) -> SocketAddr {
        let last = u8::try_from(self.id()).unwrap_or_default();
        SocketAddr::from(([10, 79, 0, last], REPLICATION_PORT))
    }

    /// Its address in the hashers' network.
    pub fn sync_ip(self) -> String {
        format!("10.77.0.{}", self.id())
    }
}

/// The namespaces of one run. Dropping it kills what is inside and removes them.
#[derive(Debug)]
pub struct Network {
    hosts: [Namespace; 3],
    client: Namespace,
    switch: Namespace,
    /// `<pid>-<n>`: in the names of everything that this run makes.
    pub run_name: String,
}

impl Network {
    /// Builds the whole network.
    pub fn create() -> Result<Self> {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let n = RUNS.fetch_add(1, Ordering::Relaxed);
        let run_name = format!("{}-{n}", std::process::id());
        let namespace = |host: &str| Namespace::create(&format!("{PREFIX}{run_name}-{host}"));
        let network = Self {
            hosts: [namespace("a")?, namespace("b")?, namespace("w")?],
            client: namespace("cl")?,
            switch: namespace("sw")?,
            run_name: run_name.clone(),
        };
        network.wire().context("wire the demo's network")?;
        Ok(network)
    }

    /// The namespace of a host.
    pub fn host(&self, host: Host) -> &Namespace {
        match host {
            Host::A => &self.hosts[0],
            Host::B => &self.hosts[1],
            Host::W => &self.hosts[2],
        }
    }

    /// The namespace of the clients.
    pub fn client(&self) -> &Namespace {
        &self.client
    }

    /// The namespace of the bridges.
    pub fn switch(&self) -> &Namespace {
        &self.switch
    }

    /// Takes a host off every network: what a power cut does to its cables. Without it the
    /// killed host's kernel would still answer its peers with resets.
    pub fn cut_off(&self, host: Host) -> Result<()> {
        let name = host.name();
        let mut lines = format!("link set rep-{name} down\n");
        if host.is_replica() {
            lines.push_str(&format!(
                "link set up-{name} down\nlink set sync-{name} down\n"
            ));
        }
        self.switch.ip_batch(&lines)
    }

    fn wire(&self) -> Result<()> {
        let mut lines = String::new();
        for bridge in ["upsw", "repsw", "synsw"] {
            lines.push_str(&quiet_bridge(bridge));
        }
        lines.push_str(&format!("link set repsw mtu {REPLICATION_MTU}\n"));
        lines.push_str(&veth(
            "upsw",
            "up-cl",
            "cl0",
            self.client.name(),
            1500,
            None,
        ));
        for host in Host::ALL {
            let (name, inside) = (host.name(), self.host(host).name());
            let mac = host.replication_mac();
            let mtu = REPLICATION_MTU;
            lines.push_str(&veth(
                "repsw",
                &format!("rep-{name}"),
                "rep0",
                inside,
                mtu,
                Some(&mac),
            ));
            if host.is_replica() {
                lines.push_str(&veth(
                    "upsw",
                    &format!("up-{name}"),
                    "up0",
                    inside,
                    1500,
                    None,
                ));
                let port = format!("sync-{name}");
                lines.push_str(&veth("synsw", &port, "sync0", inside, 1500, None));
            }
        }
        self.switch.ip_batch(&lines)?;
        for host in Host::ALL {
            self.host(host).ip_batch(&inside_host(host))?;
        }
        self.client.ip_batch(&format!(
            "link set lo up\naddr add {CLIENT_IP} dev cl0\naddr add {CLIENT_IP_COUNTER} dev cl0\n\
             link set cl0 up\n"
        ))
    }
}

/// A bridge that forwards at once and says nothing itself.
fn quiet_bridge(name: &str) -> String {
    format!(
        "link add {name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
         link set {name} up\n"
    )
}

fn veth(bridge: &str, port: &str, peer: &str, inside: &str, mtu: u32, mac: Option<&str>) -> String {
    let address = mac.map(|mac| format!("address {mac} ")).unwrap_or_default();
    format!(
        "link add {port} mtu {mtu} type veth peer name {peer} {address}mtu {mtu} netns {inside}\n\
         link set {port} master {bridge} up\n"
    )
}

fn inside_host(host: Host) -> String {
    let mut lines = String::from("link set lo up\nlink set rep0 up\n");
    if host.is_replica() {
        lines.push_str(&quiet_bridge("upbr"));
        lines.push_str("link set up0 master upbr up\n");
        lines.push_str("tuntap add dev dtap0 mode tap multi_queue\n");
        lines.push_str("link set dtap0 master upbr up\n");
        lines.push_str(&format!(
            "addr add {}/24 dev sync0\nlink set sync0 up\n",
            host.sync_ip()
        ));
    }
    lines
}

/// Removes the namespaces of runs whose process is gone. Returns their names.
pub fn clean_leftovers() -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for name in namespace::list() {
        let Some(pid) = pid_of(&name) else { continue };
        if !Path::new(&format!("/proc/{pid}")).exists() {
            namespace::remove(&name)?;
            removed.push(name);
        }
    }
    Ok(removed)
}

/// The run's pid in a namespace name of ours: `plv-<pid>-<n>-<host>`.
fn pid_of(name: &str) -> Option<u32> {
    let mut parts = name.strip_prefix(PREFIX)?.split('-');
    let pid = parts.next()?.parse().ok()?;
    let _run: u32 = parts.next()?.parse().ok()?;
    matches!(
        (parts.next()?, parts.next()),
        ("a" | "b" | "w" | "cl" | "sw", None)
    )
    .then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_namespaces_of_ours_are_ever_candidates_for_removal() {
        assert_eq!(pid_of("plv-4711-0-sw"), Some(4711));
        for foreign in [
            "plv-4711-0",
            "plv-x-0-a",
            "plv-4711-0-a-b",
            "web",
            "plv-4711-0-zz",
        ] {
            assert_eq!(pid_of(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn ids_and_hosts_match() {
        for host in Host::ALL {
            assert_eq!(Host::from_id(host.id()), Some(host));
        }
        assert_eq!(Host::from_id(0), None);
    }
}
