//! Guests that leave checksums and segmentation to their card: what leaves the uplink is whole, and
//! a stream arrives as it was sent, across the loss of a host too.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ch_integration::demo::guest::{GUEST_IP, GUEST_PORT};
use ch_integration::demo::network::Host;
use plover_tests::e2e::capture::{Capture, Seen};
use plover_tests::e2e::{self, Cluster};

const VALUE_BYTES: usize = 3 << 20;
const REPLY_WAIT: Duration = Duration::from_secs(20);
/// Ethernet header; the guest sends no tags.
const ETHERNET_BYTES: usize = 14;

/// A connection to the guest's redis, made from the clients' namespace.
struct Redis(BufReader<TcpStream>);

impl Redis {
    fn connect(cluster: &Cluster) -> Result<Self> {
        let address: SocketAddr = format!("{GUEST_IP}:{GUEST_PORT}").parse()?;
        let client = cluster.group.network.client();
        let stream = client.enter(|| TcpStream::connect_timeout(&address, REPLY_WAIT))??;
        stream.set_read_timeout(Some(REPLY_WAIT))?;
        stream.set_write_timeout(Some(REPLY_WAIT))?;
        Ok(Self(BufReader::new(stream)))
    }

    fn set(&mut self, value: &[u8]) -> Result<()> {
        let stream = self.0.get_mut();
        write!(stream, "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${}\r\n", value.len())?;
        stream.write_all(value)?;
        stream.write_all(b"\r\n")?;
        ensure!(self.line()? == "+OK", "the value was refused");
        Ok(())
    }

    fn get(&mut self) -> Result<Vec<u8>> {
        self.0
            .get_mut()
            .write_all(b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n")?;
        let line = self.line()?;
        let bytes = line.strip_prefix('$').context("no value")?.parse()?;
        let mut value = vec![0; bytes];
        self.0.read_exact(&mut value)?;
        ensure!(self.line()?.is_empty(), "more than the value came");
        Ok(value)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line).context("read a reply")?;
        Ok(line.trim_end().to_owned())
    }
}

/// Bytes without a period that a frame's length could hide.
fn value() -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..VALUE_BYTES).map(|_| next()).collect()
}

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

#[test]
fn what_a_guest_leaves_unfinished_leaves_the_uplink_finished() -> Result<()> {
    let Some(_turn) = e2e::turn()? else {
        return Ok(());
    };
    let mut cluster = Cluster::start(&["guest.offloads=true"])?;
    let (primary, backup) = cluster.roles()?;
    for host in [primary, backup] {
        cluster.wait("the driver's features are known", |cluster| {
            cluster.log_has(host, "HOST_TSO4")
        })?;
    }
    let client = cluster.group.network.client();
    let mut capture = client.enter(|| Capture::start("cl0"))??;
    let mut redis = Redis::connect(&cluster)?;
    let value = value();
    redis.set(&value)?;
    capture.tcp()?;
    let before = cut(&cluster, primary)?;
    ensure!(redis.get()? == value, "the value came back changed");
    let packets = cut(&cluster, primary)? - before;
    let frames = from_guest(&capture.tcp()?, 1500)?.len();
    eprintln!("{frames} whole frames left, {packets} packets of the guest were cut");
    ensure!(packets > 0, "the guest cut its packets itself");

    cluster.group.kill_host(primary)?;
    cluster.wait("the backup serves", |cluster| {
        Ok(cluster.roles()?.0 == backup)
    })?;
    ensure!(redis.get()? == value, "the stream broke, or its bytes");
    from_guest(&capture.tcp()?, 1500)?;
    cluster.finish()?;
    Ok(())
}
