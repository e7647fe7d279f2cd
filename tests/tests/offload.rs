//! Guests that leave checksums and segmentation to their card and have two queue pairs: what leaves
//! the uplink is whole, a stream arrives as it was sent, and both pairs carry packets both ways,
//! across the loss of a host too.

use anyhow::{Context, Result, bail, ensure};
use ch_integration::demo::guest::GUEST_PORT;
use ch_integration::demo::network::Host;
use plover_tests::e2e::capture::{Capture, Seen};
use plover_tests::e2e::redis::{Redis, value};
use plover_tests::e2e::vm::{PAIRS, pair_counts};
use plover_tests::e2e::{self, Cluster};

const VALUE_BYTES: usize = 3 << 20;
/// Ethernet header; the guest sends no tags.
const ETHERNET_BYTES: usize = 14;
/// Connections that count: enough for both queue pairs to have some.
const CONNECTIONS: u16 = 16;

/// The guest's frames with a payload; each is whole, and none longer than its MTU.
fn from_guest(seen: &[Seen], mtu: usize) -> Result<Vec<Seen>> {
    let all = seen.iter().filter(|seen| seen.source_port == GUEST_PORT);
    if let Some(broken) = all.clone().find(|seen| !seen.is_whole) {
        bail!("a checksum is wrong: {broken:?}");
    }
    let frames: Vec<Seen> = all.filter(|seen| seen.payload_bytes > 0).copied().collect();
    let longest = frames.iter().map(|seen| seen.frame_bytes).max();
    let longest = longest.context("nothing was captured")?;
    ensure!(
        longest <= ETHERNET_BYTES + mtu,
        "a frame of {longest} bytes"
    );
    Ok(frames)
}

/// Large packets of the guest that were cut into frames.
fn cut(cluster: &Cluster, host: Host) -> Result<u64> {
    cluster.number(host, "/status/path/transmit_cut")
}

/// All pairs of the node's copy carry packets in both directions.
fn check_pairs(cluster: &Cluster, host: Host) -> Result<()> {
    let pairs = pair_counts(&cluster.status(host)?)?;
    eprintln!("packets to and from the guest, by pair: {pairs:?}");
    let used = |(delivered, taken): &(u64, u64)| *delivered > 0 && *taken > 0;
    ensure!(pairs.len() == usize::from(PAIRS) && pairs.iter().all(used));
    Ok(())
}

#[test]
fn what_a_guest_leaves_unfinished_leaves_the_uplink_finished() -> Result<()> {
    let Some(_turn) = e2e::turn()? else {
        return Ok(());
    };
    let vcpus = format!("vmm.vcpus={PAIRS}");
    let pairs = format!("guest.queue_pairs={PAIRS}");
    let mut cluster = Cluster::start(&["guest.offloads=true", &vcpus, &pairs])?;
    let (primary, backup) = cluster.roles()?;
    for host in [primary, backup] {
        cluster.wait("the driver's features are known", |cluster| {
            cluster.log_has(host, "HOST_TSO4")
        })?;
    }
    let client = cluster.group.network.client();
    let mut capture = client.enter(|| Capture::start("cl0"))??;
    let mut redis = Redis::connect(client)?;
    let value = value(VALUE_BYTES);
    redis.set(&value)?;
    capture.tcp()?;
    let before = cut(&cluster, primary)?;
    ensure!(redis.get()? == value, "the value came back changed");
    let packets = cut(&cluster, primary)? - before;
    let mut counting = (0..CONNECTIONS)
        .map(|number| Redis::connect_to(client, number % PAIRS))
        .collect::<Result<Vec<_>>>()?;
    counting.iter_mut().try_for_each(Redis::count)?;
    check_pairs(&cluster, primary)?;
    let frames = from_guest(&capture.tcp()?, 1500)?.len();
    eprintln!("{frames} whole frames left, {packets} packets of the guest were cut");
    ensure!(packets > 0, "the guest cut its packets itself");

    cluster.group.kill_host(primary)?;
    cluster.wait("the backup serves", |cluster| {
        Ok(cluster.roles()?.0 == backup)
    })?;
    ensure!(redis.get()? == value, "the stream broke, or its bytes");
    from_guest(&capture.tcp()?, 1500)?;
    counting.iter_mut().try_for_each(Redis::count)?;
    check_pairs(&cluster, backup)?;
    cluster.finish()?;
    Ok(())
}
