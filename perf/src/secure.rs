//! What authentication and encryption cost: datagrams between nodes, and the hashers' link over
//! loopback, each beside the same without.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use hasher::link::{Identity, PeerLink};
use hasher::protocol::Message;
use hasher::secure::LinkKeys;
use plover_keys::Identity as Secret;
use plover_types::{LogIndex, NodeId, SyncId};
use replication::secure::SecureLink;
use replication::wire::GroupId;
use tokio::net::TcpListener;

use crate::measured::Measured;

/// How often everything is measured.
pub const ROUNDS: usize = 9;

/// Payloads: one small packet's entry, a few, a full datagram, and the entry of 32 packets of 64
/// bytes, which crosses in two of them.
const PAYLOAD_BYTES: [usize; 4] = [64, 256, 1400, 2400];
/// Datagrams that are sealed, then opened, in one sample.
const DATAGRAMS: usize = 4000;
const HANDSHAKES: usize = 20;

const LINK_FRAME_BYTES: usize = 256 << 10;
const LINK_FRAMES: usize = 1024;

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);

/// Measures; nanoseconds a datagram, microseconds a handshake, gigabytes a second.
pub fn run(rounds: usize) -> Result<Vec<Measured>> {
    let mut rows = Vec::new();
    for bytes in PAYLOAD_BYTES {
        rows.extend(datagrams(bytes, rounds)?);
    }
    rows.push(handshakes(rounds)?);
    rows.extend(hasher_link(rounds)?);
    Ok(rows)
}

fn secret(node: NodeId) -> Secret {
    Secret::from_secret([node.0 as u8; 32])
}

fn link(own: NodeId, peer: NodeId) -> Result<SecureLink> {
    let peers = [(peer, *secret(peer).public())];
    let random = SecureLink::system_random()?;
    Ok(SecureLink::new(secret(own), &peers, GroupId(1), random)?)
}

/// Hands datagrams to and fro until nothing is under way. Returns whether there is a session.
fn meet(now: Duration, a: &mut SecureLink, b: &mut SecureLink) -> bool {
    let mut wire = Vec::new();
    a.poll(now, |_, bytes| wire.push((B, bytes.to_vec())));
    while let Some((to, mut bytes)) = wire.pop() {
        let (node, from) = if to == A { (&mut *a, B) } else { (&mut *b, A) };
        node.open(now, from, &mut bytes, |to, bytes| {
            wire.push((to, bytes.to_vec()));
        });
    }
    a.has_session(now, B) && b.has_session(now, A)
}

fn datagrams(bytes: usize, rounds: usize) -> Result<Vec<Measured>> {
    let now = Duration::from_secs(1);
    let (mut a, mut b) = (link(A, B)?, link(B, A)?);
    ensure!(meet(now, &mut a, &mut b), "no session");
    let payload = vec![7; bytes];
    let (first, second) = payload.split_at(bytes / 2);
    let parts: [&[u8]; 2] = [first, second];
    let room = || Vec::with_capacity(bytes + SecureLink::OVERHEAD_BYTES);
    let mut sealed: Vec<Vec<u8>> = std::iter::repeat_with(room).take(DATAGRAMS).collect();
    let (mut seal, mut open, mut copy) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        copy.push(ns_each(&mut sealed, |out| {
            out.clear();
            parts.iter().for_each(|part| out.extend_from_slice(part));
            black_box(&out);
        }));
        seal.push(ns_each(&mut sealed, |out| {
            out.clear();
            let _ = black_box(a.seal(now, B, &parts, out));
        }));
        open.push(ns_each(&mut sealed, |out| {
            black_box(b.open(now, A, out, |_, _| {}));
        }));
    }
    let expected = (rounds * DATAGRAMS) as u64;
    ensure!(b.counters().opened > expected, "not all were opened");
    let row =
        |what: &str, samples| Measured::new(format!("replication/{what}/{bytes}"), "ns", samples);
    Ok(vec![
        row("unsealed", copy),
        row("seal", seal),
        row("open", open),
    ])
}

fn ns_each(datagrams: &mut [Vec<u8>], mut act: impl FnMut(&mut Vec<u8>)) -> f64 {
    let start = Instant::now();
    datagrams.iter_mut().for_each(&mut act);
    start.elapsed().as_nanos() as f64 / datagrams.len() as f64
}

/// A whole handshake, both sides in one thread.
fn handshakes(rounds: usize) -> Result<Measured> {
    let mut samples = Vec::new();
    for _ in 0..rounds {
        let mut total = Duration::ZERO;
        for _ in 0..HANDSHAKES {
            let (mut a, mut b) = (link(A, B)?, link(B, A)?);
            let start = Instant::now();
            ensure!(meet(Duration::from_secs(1), &mut a, &mut b), "no session");
            total += start.elapsed();
        }
        samples.push(total.as_secs_f64() * 1e6 / HANDSHAKES as f64);
    }
    Ok(Measured::new("replication/handshake", "us", samples))
}

fn hasher_link(rounds: usize) -> Result<Vec<Measured>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start threads")?;
    let (mut plain, mut tls) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        plain.push(runtime.block_on(link_rate(false))?);
        tls.push(runtime.block_on(link_rate(true))?);
    }
    Ok(vec![
        Measured::new("hasher/link/plain", "GB/s", plain),
        Measured::new("hasher/link/tls", "GB/s", tls),
    ])
}

fn end(own: NodeId, peer: NodeId, secured: bool) -> Result<Identity> {
    let keys = || LinkKeys::new(&secret(own), secret(peer).public());
    Ok(Identity {
        group: "perf".to_owned(),
        node: own,
        keys: secured.then(keys).transpose()?,
    })
}

/// Frames of blocks one way over loopback, as in a fill.
async fn link_rate(secured: bool) -> Result<f64> {
    let sync = SyncId(LogIndex(1));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (own, peer) = (end(A, B, secured)?, end(B, A, secured)?);
    let receiver = tokio::spawn(async move {
        let (stream, _) = listener.accept().await?;
        let mut link = PeerLink::accept(stream, &peer).await?;
        for _ in 0..LINK_FRAMES {
            link.receive(sync).await?;
        }
        link.send(sync, &Message::Done).await?;
        anyhow::Ok(())
    });
    let mut link = PeerLink::connect(address, &own).await?;
    let blocks = Message::Blocks(Bytes::from(vec![5; LINK_FRAME_BYTES]));
    let start = Instant::now();
    for _ in 0..LINK_FRAMES {
        link.send(sync, &blocks).await?;
    }
    link.receive(sync).await?;
    let elapsed = start.elapsed().as_secs_f64();
    receiver.await??;
    Ok((LINK_FRAMES * LINK_FRAME_BYTES) as f64 / elapsed / 1e9)
}
