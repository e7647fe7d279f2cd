//! The way to the peers, as far as it can be told without opening the port.

use std::net::IpAddr;

use dpdk_config::preflight::{Check, Outcome};
use nix::ifaddrs::getifaddrs;
use replication::net::Mac;

use crate::config::NodeConfig;
use crate::limits::REPLICATION_MTU_MAX;

/// Where each peer is, and whether this host's kernel would answer in the node's place.
pub(super) fn checks(config: &NodeConfig) -> Vec<Check> {
    let Some(net) = config.net(Mac::default(), REPLICATION_MTU_MAX) else {
        return Vec::new();
    };
    let hops: Vec<_> = net
        .peers
        .iter()
        .map(|(node, address)| match net.hop_to(*node, address.ip()) {
            Ok(hop) if hop == address.ip() => format!("node {node} at {address}"),
            Ok(hop) => format!("node {node} at {address} by router {hop}"),
            Err(error) => error.to_string(),
        })
        .collect();
    let own = net.own.ip();
    let is_kernels = addresses().contains(&own);
    vec![Check {
        name: "replication address".to_owned(),
        outcome: if is_kernels {
            Outcome::Warning
        } else {
            Outcome::Ok
        },
        found: if is_kernels {
            format!("{own} is this host's own: its kernel would answer beside the node")
        } else {
            format!("{} to {}", net.own, hops.join(", "))
        },
        fix: is_kernels.then(|| {
            format!("ip address del {own} from its interface, or give the node another address")
        }),
    }]
}

/// What the kernel's interfaces have; none where it does not say.
fn addresses() -> Vec<IpAddr> {
    let all = getifaddrs().into_iter().flatten();
    all.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address
            .as_sockaddr_in()
            .map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| Some(IpAddr::V6(address.as_sockaddr_in6()?.ip())))
    })
    .collect()
}
