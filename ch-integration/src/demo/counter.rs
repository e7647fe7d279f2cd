//! The client of the UDP counter (the guest of `kvm-pvm`): one request under way per client.
//! A request without a reply is given up and another one sent; UDP promises nothing about it.
//! What counts is that no count, once told to a client, is ever taken back.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::client::{Client, ClientOptions, Shared};
use super::history::{ClientEvent, JsonLines, now_ns};
use super::namespace::Entrance;

/// The counter's address in the guest.
pub const COUNTER_SERVER: &str = "10.9.0.2:7";
/// Until a request is given up; a round trip takes up to 10 ms there, a failover less than this.
const REPLY_WAIT: Duration = Duration::from_secs(1);
/// A client without any reply for this long is broken.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Pages that each request makes the guest write. Few: on a software KVM the first touch of each
/// takes about 6 ms, after every sync anew.
const DIRTY_PAGES: u32 = 2;
/// Length of a request: command, space for the counters, and our own mark.
const REQUEST_BYTES: usize = 40;
const COUNTER_AT: usize = 8;
const MARK_AT: usize = 24;

/// Starts counting clients.
pub fn start(options: &ClientOptions, at: &Entrance, history: Arc<JsonLines>) -> Client {
    let work = |conn: u32, shared: Shared, at: Entrance, options: ClientOptions| {
        at.enter()?;
        run_client(conn, &options, &shared)
    };
    Client::start_threads(options, at, history, work)
}

/// Asks the counter once for a sign of life (which it counts).
pub fn ping(server: SocketAddr, wait: Duration) -> io::Result<()> {
    Asker::new(server)?
        .ask(wait)?
        .map(|_| ())
        .ok_or_else(|| io::Error::new(io::ErrorKind::TimedOut, "no reply"))
}

/// Asks from one port, again and again.
pub struct Asker {
    socket: UdpSocket,
    seq: u64,
}

impl Asker {
    /// From a port of the calling thread's network namespace.
    pub fn new(server: SocketAddr) -> io::Result<Self> {
        let socket = connected(server)?;
        Ok(Self { socket, seq: 0 })
    }

    /// The count, or none if there is no reply in time.
    pub fn ask(&mut self, wait: Duration) -> io::Result<Option<u64>> {
        let request = request_of(u32::MAX, self.seq);
        self.seq += 1;
        match self.socket.send(&request) {
            Err(error) if !passes(&error) => Err(error),
            _ => receive(&self.socket, &request, Instant::now() + wait),
        }
    }
}

fn run_client(conn: u32, options: &ClientOptions, shared: &Shared) -> Result<()> {
    let socket = connected(options.server);
    shared.together.wait();
    let socket = match socket {
        Ok(socket) => socket,
        Err(error) => return shared.broken(conn, &error),
    };
    let gap = options
        .rate
        .map(|rate| Duration::from_secs(1) / rate.max(1));
    let mut last_reply = Instant::now();
    let mut seq = 0;
    while !shared.stopping() {
        let (request, t_ns) = (request_of(conn, seq), now_ns());
        let reply = socket
            .send(&request)
            .and_then(|_| receive(&socket, &request, Instant::now() + REPLY_WAIT));
        let counter = match reply {
            Ok(counter) => counter,
            Err(error) => return shared.broken(conn, &error),
        };
        let acked_ns = counter.map(|_| now_ns());
        shared.history.write(&ClientEvent::Count {
            t_ns,
            acked_ns,
            conn,
            seq,
            counter,
        })?;
        seq += 1;
        if let Some(acked_ns) = acked_ns {
            shared.acknowledged(acked_ns);
            last_reply = Instant::now();
        } else if last_reply.elapsed() > SILENCE_MAX {
            let text = format!("no reply in {} s", SILENCE_MAX.as_secs());
            return shared.broken(conn, &io::Error::new(io::ErrorKind::TimedOut, text));
        }
        if let Some(gap) = gap {
            std::thread::sleep(gap);
        }
    }
    shared.history.write(&ClientEvent::Done {
        t_ns: now_ns(),
        conn,
    })
}

fn connected(server: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(server)?;
    Ok(socket)
}

/// `D`, the pages to write, zeros where the counters come, then client and number.
fn request_of(conn: u32, seq: u64) -> [u8; REQUEST_BYTES] {
    let mut request = [0u8; REQUEST_BYTES];
    request[0] = b'D';
    request[1..5].copy_from_slice(&DIRTY_PAGES.to_le_bytes());
    request[MARK_AT..MARK_AT + 8].copy_from_slice(&u64::from(conn).to_le_bytes());
    request[MARK_AT + 8..].copy_from_slice(&seq.to_le_bytes());
    request
}

/// The counter in the reply to `request`; replies to requests given up before are passed over.
fn receive(
    socket: &UdpSocket,
    request: &[u8; REQUEST_BYTES],
    deadline: Instant,
) -> io::Result<Option<u64>> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        let mut reply = [0u8; 2048];
        match socket.recv(&mut reply) {
            Ok(length) => {
                if let Some(counter) = counter_in(&reply[..length], request) {
                    return Ok(Some(counter));
                }
            }
            Err(error) if passes(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

fn counter_in(reply: &[u8], request: &[u8; REQUEST_BYTES]) -> Option<u64> {
    if reply.get(MARK_AT..REQUEST_BYTES)? != &request[MARK_AT..] {
        return None;
    }
    let bytes = reply.get(COUNTER_AT..COUNTER_AT + 8)?;
    bytes.try_into().ok().map(u64::from_le_bytes)
}

/// Errors that end no client: a timeout, and what the network says while nobody serves.
fn passes(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionRefused, HostUnreachable, Interrupted, NetworkUnreachable, TimedOut, WouldBlock,
    };
    matches!(
        error.kind(),
        WouldBlock
            | TimedOut
            | Interrupted
            | ConnectionRefused
            | HostUnreachable
            | NetworkUnreachable
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::history::read_lines;
    use std::sync::atomic::Ordering;

    #[test]
    fn only_the_reply_to_this_request_counts() {
        let request = request_of(3, 7);
        let mut reply = request;
        reply[COUNTER_AT..COUNTER_AT + 8].copy_from_slice(&99u64.to_le_bytes());
        assert_eq!(counter_in(&reply, &request), Some(99));
        assert_eq!(
            counter_in(&reply, &request_of(3, 8)),
            None,
            "a reply that came late"
        );
        assert_eq!(counter_in(&reply[..30], &request), None, "a short one");
    }

    #[test]
    fn a_request_without_a_reply_is_given_up_and_another_one_counts() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut request = [0u8; 2048];
            for counter in 1u64.. {
                let Ok((length, from)) = server.recv_from(&mut request) else {
                    return;
                };
                request[COUNTER_AT..COUNTER_AT + 8].copy_from_slice(&counter.to_le_bytes());
                if counter > 1 {
                    let _ = server.send_to(&request[..length], from);
                }
            }
        });
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("client.jsonl");
        let options = ClientOptions {
            server: address,
            connections: 1,
            depth: 1,
            rate: Some(500),
            seed: 1,
        };
        let history = Arc::new(JsonLines::create(&path).unwrap());
        let client = start(&options, &Entrance::here(), history);
        while client.counters().acknowledged.load(Ordering::Relaxed) < 3 {
            std::thread::sleep(Duration::from_millis(5));
        }
        client.finish().unwrap();
        let events: Vec<ClientEvent> = read_lines(&path).unwrap();
        assert!(matches!(
            &events[0],
            ClientEvent::Count {
                seq: 0,
                counter: None,
                ..
            }
        ));
        assert!(matches!(
            &events[1],
            ClientEvent::Count {
                seq: 1,
                counter: Some(2),
                ..
            }
        ));
        assert!(matches!(
            events.last(),
            Some(ClientEvent::Done { conn: 0, .. })
        ));
    }
}
