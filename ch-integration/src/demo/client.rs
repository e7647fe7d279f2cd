//! The checking client: writes unique keys over several TCP connections, remembers each
//! first reply, never retries, and reads everything back over the same connections.
//! It records; whether something was lost is for the checker to say.
//!
//! The sockets are stock: TCP_NODELAY, and the kernel's own retransmission timer (200 ms at
//! least), so what a kill costs a client includes what TCP adds.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::history::{ClientEvent, JsonLines, now_ns};
use super::namespace::Entrance;
use super::resp::{Connection, Reply, command};

/// Keys read back with one request.
const READ_BATCH: usize = 64;

/// What the client does.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// The server.
    pub server: SocketAddr,
    /// Connections, each on a thread of its own.
    pub connections: u32,
    /// Requests under way per connection.
    pub depth: usize,
    /// Writes per second and connection; `None`: as fast as replies come.
    pub rate: Option<u32>,
    /// Seed of the values written.
    pub seed: u64,
}

/// Counters that the live line shows.
#[derive(Debug, Default)]
pub struct ClientCounters {
    /// Requests acknowledged.
    pub acknowledged: AtomicU64,
    /// Connections broken.
    pub broken: AtomicU64,
    /// When the last reply arrived.
    pub last_reply_ns: AtomicU64,
}

/// A client at work.
pub struct Client {
    stop: Arc<AtomicBool>,
    counters: Arc<ClientCounters>,
    history: Arc<JsonLines>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Client {
    /// Connects everywhere, then starts writing on all connections at once.
    pub fn start(options: &ClientOptions, at: &Entrance, history: Arc<JsonLines>) -> Self {
        let work = |conn: u32, shared: Shared, at: Entrance, options: ClientOptions| {
            at.enter()?;
            run_connection(conn, &options, &shared)
        };
        Self::start_threads(options, at, history, work)
    }

    /// Starts one thread per connection with work of any kind.
    pub(super) fn start_threads(
        options: &ClientOptions,
        at: &Entrance,
        history: Arc<JsonLines>,
        work: impl Fn(u32, Shared, Entrance, ClientOptions) -> Result<()> + Clone + Send + 'static,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let counters = Arc::new(ClientCounters::default());
        let together = Arc::new(Barrier::new(options.connections as usize));
        let threads = (0..options.connections)
            .map(|conn| {
                let shared = Shared {
                    stop: Arc::clone(&stop),
                    counters: Arc::clone(&counters),
                    history: Arc::clone(&history),
                    together: Arc::clone(&together),
                };
                let (work, at, options) = (work.clone(), at.clone(), options.clone());
                std::thread::spawn(move || work(conn, shared, at, options))
            })
            .collect();
        Self {
            stop,
            counters,
            history,
            threads,
        }
    }

    /// Its counters, live.
    pub fn counters(&self) -> &ClientCounters {
        &self.counters
    }

    /// Stops writing, reads everything back, flushes the history.
    pub fn finish(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let mut first_error = None;
        for thread in self.threads.drain(..) {
            let result = thread
                .join()
                .map_err(|_| anyhow!("a client thread panicked"));
            if let Err(error) = result.and_then(|result| result) {
                first_error.get_or_insert(error);
            }
        }
        self.history.flush()?;
        first_error.map_or(Ok(()), Err)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Best effort: the history is worth most when a run went wrong.
        let _ = self.history.flush();
    }
}

/// What the threads of a client share.
pub(super) struct Shared {
    pub(super) stop: Arc<AtomicBool>,
    pub(super) counters: Arc<ClientCounters>,
    pub(super) history: Arc<JsonLines>,
    pub(super) together: Arc<Barrier>,
}

impl Shared {
    pub(super) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(super) fn acknowledged(&self, t_ns: u64) {
        self.counters.acknowledged.fetch_add(1, Ordering::Relaxed);
        self.counters
            .last_reply_ns
            .fetch_max(t_ns, Ordering::Relaxed);
    }

    pub(super) fn broken(&self, conn: u32, error: &io::Error) -> Result<()> {
        self.counters.broken.fetch_add(1, Ordering::Relaxed);
        self.history.write(&ClientEvent::Broken {
            t_ns: now_ns(),
            conn,
            error: error.to_string(),
        })?;
        self.history.flush()
    }
}

/// The value of a write: what anyone with the seed can compute again.
pub fn value_of(seed: u64, conn: u32, seq: u64) -> String {
    let high = splitmix(seed ^ splitmix(u64::from(conn)) ^ splitmix(seq).rotate_left(17));
    format!("{high:016x}{:016x}", splitmix(high))
}

fn key_of(conn: u32, seq: u64) -> String {
    format!("c{conn}:{seq}")
}

fn splitmix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn run_connection(conn: u32, options: &ClientOptions, shared: &Shared) -> Result<()> {
    let connected = Connection::open(options.server);
    shared.together.wait();
    let mut writer = match connected {
        Ok(link) => Writer {
            conn,
            options,
            shared,
            link,
            waiting: VecDeque::new(),
            next_seq: 0,
        },
        Err(error) => return shared.broken(conn, &error),
    };
    if let Err(failure) = writer.write_all() {
        writer.record_unanswered()?;
        return match failure.downcast::<io::Error>() {
            Ok(error) => shared.broken(conn, &error),
            Err(other) => Err(other),
        };
    }
    match writer.read_back() {
        Ok(()) => shared.history.write(&ClientEvent::Done {
            t_ns: now_ns(),
            conn,
        }),
        Err(failure) => match failure.downcast::<io::Error>() {
            Ok(error) => shared.broken(conn, &error),
            Err(other) => Err(other),
        },
    }
}

struct Writer<'a> {
    conn: u32,
    options: &'a ClientOptions,
    shared: &'a Shared,
    link: Connection,
    /// (number, when sent), oldest first.
    waiting: VecDeque<(u64, u64)>,
    next_seq: u64,
}

impl Writer<'_> {
    /// Writes until told to stop, then waits for the replies under way.
    fn write_all(&mut self) -> Result<()> {
        let gap = self
            .options
            .rate
            .map(|rate| Duration::from_secs(1) / rate.max(1));
        let mut due = Instant::now();
        while !self.shared.stopping() {
            if let (Some(gap), true) = (gap, self.waiting.is_empty()) {
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                // After an outage: no burst to catch up.
                due = (due + gap).max(Instant::now());
            }
            while self.waiting.len() < self.options.depth.max(1) {
                self.send_one()?;
            }
            self.receive_one()?;
        }
        while !self.waiting.is_empty() {
            self.receive_one()?;
        }
        Ok(())
    }

    fn send_one(&mut self) -> Result<()> {
        let seq = self.next_seq;
        let value = value_of(self.options.seed, self.conn, seq);
        let request = command(&[b"SET", key_of(self.conn, seq).as_bytes(), value.as_bytes()]);
        self.next_seq += 1;
        self.waiting.push_back((seq, now_ns()));
        self.link.send(&request)?;
        Ok(())
    }

    fn receive_one(&mut self) -> Result<()> {
        let reply = self.link.reply()?;
        let acked_ns = now_ns();
        if reply != Reply::Status("OK".to_owned()) {
            let error = io::Error::other(format!("the server answered a SET with {reply:?}"));
            return Err(error.into());
        }
        let (seq, t_ns) = self.waiting.pop_front().context("a reply to no request")?;
        self.shared.acknowledged(acked_ns);
        self.record(seq, t_ns, Some(acked_ns))
    }

    fn record(&self, seq: u64, t_ns: u64, acked_ns: Option<u64>) -> Result<()> {
        let value = value_of(self.options.seed, self.conn, seq);
        let event = ClientEvent::Write {
            t_ns,
            acked_ns,
            conn: self.conn,
            seq,
            value,
        };
        self.shared.history.write(&event)
    }

    fn record_unanswered(&mut self) -> Result<()> {
        while let Some((seq, t_ns)) = self.waiting.pop_front() {
            self.record(seq, t_ns, None)?;
        }
        Ok(())
    }

    fn read_back(&mut self) -> Result<()> {
        let sequence: Vec<u64> = (0..self.next_seq).collect();
        for batch in sequence.chunks(READ_BATCH) {
            let keys: Vec<String> = batch.iter().map(|seq| key_of(self.conn, *seq)).collect();
            let mut words: Vec<&[u8]> = vec![b"MGET"];
            words.extend(keys.iter().map(String::as_bytes));
            self.link.send(&command(&words))?;
            let Reply::Array(values) = self.link.reply()? else {
                return Err(io::Error::other("the server answered an MGET with no array").into());
            };
            let t_ns = now_ns();
            for (seq, value) in batch.iter().zip(values) {
                let read = ClientEvent::Read {
                    t_ns,
                    conn: self.conn,
                    seq: *seq,
                    value,
                };
                self.shared.history.write(&read)?;
            }
        }
        Ok(())
    }
}

/// Asks the server once for a sign of life.
pub fn ping(server: SocketAddr, wait: Duration) -> io::Result<()> {
    let stream = TcpStream::connect_timeout(&server, wait)?;
    let mut link = Connection::over(stream, wait)?;
    link.send(&command(&[b"PING"]))?;
    match link.reply()? {
        Reply::Status(text) if text == "PONG" => Ok(()),
        other => Err(io::Error::other(format!(
            "PING was answered with {other:?}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::history::read_lines;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    #[test]
    fn values_differ_by_seed_connection_and_number() {
        let all = [
            value_of(1, 0, 0),
            value_of(2, 0, 0),
            value_of(1, 1, 0),
            value_of(1, 0, 1),
        ];
        for (i, value) in all.iter().enumerate() {
            assert_eq!(all.iter().position(|other| other == value), Some(i));
        }
    }

    /// A server that acknowledges a number of writes, then closes.
    fn server_that_closes_after(writes: usize) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = [0u8; 4096];
            for _ in 0..writes {
                let _ = stream.read(&mut bytes).unwrap();
                stream.write_all(b"+OK\r\n").unwrap();
            }
            let _ = stream.read(&mut bytes);
        });
        address
    }

    #[test]
    fn a_connection_that_the_server_closes_is_recorded_as_broken_and_never_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("client.jsonl");
        let history = Arc::new(JsonLines::create(&path).unwrap());
        let options = ClientOptions {
            server: server_that_closes_after(3),
            connections: 1,
            depth: 1,
            rate: None,
            seed: 1,
        };
        let client = Client::start(&options, &Entrance::here(), history);
        while client.counters().broken.load(Ordering::Relaxed) == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        client.finish().unwrap();
        let events: Vec<ClientEvent> = read_lines(&path).unwrap();
        let acknowledged = |event: &&ClientEvent| {
            matches!(
                event,
                ClientEvent::Write {
                    acked_ns: Some(_),
                    ..
                }
            )
        };
        assert_eq!(events.iter().filter(acknowledged).count(), 3);
        assert!(
            events
                .iter()
                .any(|event| matches!(event, ClientEvent::Write { acked_ns: None, .. }))
        );
        assert!(matches!(
            events.last(),
            Some(ClientEvent::Broken { conn: 0, .. })
        ));
    }
}
