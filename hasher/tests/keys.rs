//! Who is let in: the peer with the configured key, and nobody else; why not is said by name.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use common::*;
use hasher::control::Side;
use hasher::protocol::Message;
use plover_types::NodeId;
use plover_types::SyncKind::Fill;

const PAGES: u64 = 64;

/// Two hosts; what the primary and the backup say when they try a round, and the backup's log.
fn refused(one: Security, two: Security) -> String {
    let (at_one, at_two) = (free_address(), free_address());
    let mut first = Host::new(PAGES, at_one, at_two, 1);
    let mut second = Host::new(PAGES, at_two, at_one, 2);
    (first.security, second.security) = (one, two);
    let (mut first, mut second) = started([first, second], false);
    first.begin(sync(5), Side::Primary, Fill);
    second.begin(sync(5), Side::Backup, Fill);
    let reason = first.wait_failed(sync(5));
    assert!(first.is_alive() && second.is_alive());
    reason
}

#[test]
fn hosts_with_each_others_keys_meet() {
    let (mut one, mut two) = pair(PAGES, false);
    one.ram.write(3 * PAGE as u64, b"secret");
    round(&mut one, &mut two, 1, Fill);
    assert_equal(&one.ram.bytes(), &two.ram.bytes());
}

#[test]
fn a_peer_with_another_key_is_not_sent_anything() {
    let reason = refused(Security::On { peer: 9 }, Security::On { peer: 1 });
    assert!(reason.contains("has another key"), "{reason}");
}

#[test]
fn a_peer_that_does_not_know_our_key_refuses_by_name() {
    let reason = refused(Security::On { peer: 2 }, Security::On { peer: 9 });
    assert!(reason.contains("refuses our key"), "{reason}");
}

#[test]
fn security_that_is_off_on_one_host_only_is_named() {
    let reason = refused(Security::Off, Security::On { peer: 1 });
    assert!(reason.contains("peer"), "{reason}");
    let reason = refused(Security::On { peer: 2 }, Security::Off);
    assert!(reason.contains("peer"), "{reason}");
}

#[test]
fn a_stranger_without_a_key_gets_no_hello() {
    let listen = free_address();
    let mut host = Host::new(PAGES, listen, free_address(), 2);
    host.start();
    host.attach(false, false);
    let mut stranger = TcpStream::connect(listen).expect("connect");
    stranger.set_read_timeout(Some(WAIT)).expect("timeout");
    let hello = Message::Hello {
        group: "g0".to_owned(),
        node: NodeId(1),
    };
    let (header, payload) = hello.encode(sync(0));
    stranger.write_all(&header).expect("write");
    stranger.write_all(&payload).expect("write");
    let mut answer = Vec::new();
    let _ = stranger.read_to_end(&mut answer);
    // An alert of TLS at most.
    assert!(answer.len() < 16, "{answer:?}");
    assert!(host.is_alive());
}

#[test]
fn the_key_is_in_no_argument_and_its_file_is_checked() {
    let dir = tempfile::tempdir().expect("folder");
    let file = dir.path().join("key");
    plover_keys::write_new(&file, &identity(1)).expect("key file");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).expect("mode");
    let output = Command::new(env!("CARGO_BIN_EXE_plover-hasher"))
        .args(["--socket", "/nonexistent/x", "--listen", "127.0.0.1:0"])
        .args(["--peer", "127.0.0.1:5", "--node-id", "1", "--key-file"])
        .arg(&file)
        .args(["--peer-key", &identity(2).public().to_string()])
        .stdin(Stdio::null())
        .output()
        .expect("run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("chmod 600"),
        "{said}"
    );
}
