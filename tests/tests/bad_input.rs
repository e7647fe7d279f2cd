//! Bad input from outside the processes: files, frames, streams. An error that names it, or a
//! counter; the VM and its clients notice nothing.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ch_integration::demo::group::beside;
use ch_integration::demo::network::{HASHER_PORT, Host};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, socket,
};
use plover_tests::e2e::frames::{self, Place, WRONG};
use plover_tests::e2e::{self, Cluster};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

const FRAMES_OF_A_KIND: usize = 100;
const SYNCS: usize = 10;

const WITNESS: &str = r#"
name = "w"
id = 3
state_dir = "STATE"
[group]
name = "demo"
id = 1
[[group.nodes]]
id = 1
kind = "replica"
address = "10.9.0.1:7401"
hasher = "127.0.0.1:7701"
[[group.nodes]]
id = 2
kind = "replica"
address = "10.9.0.2:7401"
hasher = "127.0.0.1:7702"
[[group.nodes]]
id = 3
kind = "witness"
address = "10.9.0.3:7401"
[replication]
port.vdev = "net_null0"
security = "off"
"#;

#[test]
fn a_configuration_with_a_mistake_is_refused_by_name() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let state = folder.path().join("state");
    let good = WITNESS.replace("STATE", &state.to_string_lossy());
    let cases = [
        (
            "an unknown key",
            format!("{good}election_timeout = 3\n"),
            "election_timeout",
        ),
        (
            "no port",
            good.replace("port.vdev = \"net_null0\"", ""),
            "port",
        ),
        (
            "an empty port",
            good.replace("port.vdev = \"net_null0\"", "port = {}"),
            "port",
        ),
        ("no TOML", format!("{good}]\n"), "node.toml"),
    ];
    for (what, text, named) in cases {
        let path = folder.path().join("node.toml");
        fs::write(&path, text)?;
        let mut command = Command::new("timeout");
        command
            .arg("20")
            .arg(beside("plover")?)
            .arg("node")
            .arg(&path);
        let output = command.output()?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        println!("{what}: {}, {}", output.status, complaint.trim());
        ensure!(output.status.code() == Some(1), "{what}: {}", output.status);
        ensure!(complaint.contains(named), "{what} is not named");
        ensure!(!state.exists(), "{what}: refused too late");
    }
    Ok(())
}

fn place(host: Host) -> Result<Place> {
    Place::new(&host.replication_mac(), host.replication_address())
}

/// Frames of garbage to each node, from a peer's address, by its cable to the switch.
fn send_frames(cluster: &Cluster) -> Result<()> {
    for (host, peer) in [(Host::A, Host::W), (Host::B, Host::A), (Host::W, Host::B)] {
        let (from, to, port) = (place(peer)?, place(host)?, format!("rep-{}", host.name()));
        for wrong in WRONG {
            let garbage = frames::garbage(wrong, from, to, FRAMES_OF_A_KIND)?;
            cluster
                .group
                .network
                .switch()
                .enter(|| frames::send(&port, &garbage))??;
        }
    }
    Ok(())
}

/// What a node counted of each kind of [`WRONG`].
fn refused(cluster: &Cluster, host: Host) -> Result<[u64; 4]> {
    let number = |path: &str| cluster.number(host, path);
    let secure = |name: &str| number(&format!("/status/guard/secure/{name}"));
    Ok([
        number("/status/net/foreign")?
            + number("/status/net/malformed")?
            + number("/status/net/checksums")?,
        number("/status/net/checksums")?,
        number("/status/net/strangers")?,
        secure("malformed")? + secure("other_version")? + secure("strangers")? + secure("forged")?,
    ])
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    StdRng::seed_from_u64(7).fill_bytes(&mut noise);
    noise
}

/// Sends noise, ends the stream, and reads what comes until the other side ends it too.
fn talk_to_hasher(address: SocketAddr) -> Result<usize> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(&noise(4096))?;
    // It may have hung up by now.
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            Err(error).context("the hasher keeps a session of noise")
        }
        _ => Ok(answer.len()),
    }
}

/// Connects beside the connection in use and sends noise. Refused at once, or left waiting for the
/// one that is served: both are right.
fn second_connection(path: &Path, kind: SockType) -> Result<OwnedFd> {
    let socket = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?).context("connect a second time")?;
    let _ = send(socket.as_raw_fd(), &noise(256), MsgFlags::MSG_NOSIGNAL);
    Ok(socket)
}

#[test]
fn garbage_on_every_interface_disturbs_nothing() -> Result<()> {
    let Some(_turn) = e2e::turn()? else {
        return Ok(());
    };
    let mut cluster = Cluster::start(&[])?;
    let generation = cluster.generation()?;

    let before = Host::ALL.map(|host| refused(&cluster, host));
    send_frames(&cluster)?;
    cluster.wait_for_syncs(SYNCS)?;
    for (host, before) in Host::ALL.into_iter().zip(before) {
        let (before, after) = (before?, refused(&cluster, host)?);
        let more: Vec<u64> = after
            .iter()
            .zip(before)
            .map(|(after, before)| after - before)
            .collect();
        println!(
            "node {}: frames of {WRONG:?} counted: {more:?}",
            host.name()
        );
        let all = more.iter().all(|count| *count >= FRAMES_OF_A_KIND as u64);
        ensure!(
            all,
            "not all {FRAMES_OF_A_KIND} of each kind were counted: {more:?}"
        );
    }

    for (host, from) in [(Host::A, Host::B), (Host::B, Host::A)] {
        let address = format!("{}:{HASHER_PORT}", host.sync_ip()).parse()?;
        let answer = cluster
            .group
            .network
            .host(from)
            .enter(|| talk_to_hasher(address))??;
        println!(
            "hasher {}: a session of noise ended by it, {answer} bytes answered",
            host.name()
        );
        cluster.wait_for_syncs(SYNCS)?;
        for (socket, kind) in [
            ("vhost.sock", SockType::Stream),
            ("hasher.sock", SockType::SeqPacket),
        ] {
            let connection = second_connection(&cluster.file(host, socket), kind)?;
            cluster.wait_for_syncs(SYNCS)?;
            drop(connection);
            cluster.wait_for_syncs(SYNCS)?;
            println!(
                "{socket} of node {}: a second connection with noise",
                host.name()
            );
        }
    }
    let view = &cluster.group.view;
    ensure!(
        view.protected && view.generation == generation,
        "the roles changed: {}",
        view.line()
    );
    cluster.finish()?;
    Ok(())
}
