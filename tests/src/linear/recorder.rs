//! Clients of the guest's server that write down what they did and were told.
//!
//! Each is a thread with a TCP connection of its own and one request under way. A request whose
//! connection broke is never sent again: its outcome is unknown, and another client takes over.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use ch_integration::demo::history::now_ns;
use ch_integration::demo::namespace::Entrance;
use ch_integration::demo::resp::{Connection, Reply, command};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::history::{Action, Answer, Operation, Outcome};

/// Keys that are set and read.
const REGISTERS: [&str; 2] = ["register:0", "register:1"];
/// Keys that are counted up.
const COUNTERS: [&str; 2] = ["counter:0", "counter:1"];
/// Keys that are added to.
const STRINGS: [&str; 2] = ["string:0", "string:1"];
/// A client that lost its connection waits this long before another takes over.
const BETWEEN_CONNECTIONS: Duration = Duration::from_millis(200);

/// What the clients do.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// The server.
    pub server: SocketAddr,
    /// Clients at a time.
    pub clients: u32,
    /// Longest pause of a client between two requests.
    pub pause_max: Duration,
    /// Seed of what they ask for.
    pub seed: u64,
}

/// Clients at work.
pub struct Recorder {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
}

/// What they have in common.
struct Shared {
    stop: AtomicBool,
    next_client: AtomicU32,
    answered: AtomicU64,
    broken: Mutex<Vec<String>>,
    operations: Mutex<Vec<Operation>>,
}

/// All that was seen.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// What the clients did and were told.
    pub operations: Vec<Operation>,
    /// Connections that broke, with what they said.
    pub broken: Vec<String>,
}

impl Recorder {
    /// Lets clients work in the network namespace that `at` leads to.
    #[must_use]
    pub fn start(load: &Load, at: &Entrance) -> Self {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            next_client: AtomicU32::new(load.clients),
            answered: AtomicU64::new(0),
            broken: Mutex::new(Vec::new()),
            operations: Mutex::new(Vec::new()),
        });
        let threads = (0..load.clients)
            .map(|client| {
                let (shared, at, load) = (Arc::clone(&shared), at.clone(), *load);
                std::thread::spawn(move || {
                    at.enter()?;
                    work(client, &load, &shared);
                    Ok(())
                })
            })
            .collect();
        Self { shared, threads }
    }

    /// Requests answered so far.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// Lets each client read every key once more, and stops them.
    ///
    /// # Errors
    /// A client could not work at all.
    pub fn finish(mut self) -> Result<Recorded> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let ended = thread.join().map_err(|_| anyhow!("a client panicked"))?;
            ended.context("enter the clients' network")?;
        }
        Ok(Recorded {
            operations: std::mem::take(&mut *lock(&self.shared.operations)),
            broken: std::mem::take(&mut *lock(&self.shared.broken)),
        })
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn work(first: u32, load: &Load, shared: &Shared) {
    let mut random = StdRng::seed_from_u64(load.seed ^ (u64::from(first) << 32));
    let mut client = first;
    loop {
        match serve_connection(client, load, shared, &mut random) {
            Ok(()) => return,
            Err(error) => {
                let text = format!("client {client}: {error:#}");
                eprintln!("a connection broke: {text}");
                lock(&shared.broken).push(text);
            }
        }
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        std::thread::sleep(BETWEEN_CONNECTIONS);
        client = shared.next_client.fetch_add(1, Ordering::Relaxed);
    }
}

/// Works over one connection until told to stop, then reads every key.
fn serve_connection(client: u32, load: &Load, shared: &Shared, random: &mut StdRng) -> Result<()> {
    let mut link = Connection::open(load.server).context("connect")?;
    let mut written = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        let (key, action) = draw(client, &mut written, random);
        ask(&mut link, client, key, action, shared)?;
        let pause = u64::try_from(load.pause_max.as_micros()).unwrap_or(0);
        std::thread::sleep(Duration::from_micros(random.random_range(0..=pause)));
    }
    for key in REGISTERS.iter().chain(&COUNTERS).chain(&STRINGS) {
        ask(&mut link, client, key, Action::Get, shared)?;
    }
    Ok(())
}

/// The next request. Each value written is one of a kind, so that a reader tells whose it saw.
fn draw(client: u32, written: &mut u64, random: &mut StdRng) -> (&'static str, Action) {
    *written += 1;
    let key = random.random_range(0..2);
    let write = random.random_range(0..100);
    match random.random_range(0..3) {
        0 if write < 50 => (REGISTERS[key], Action::Set(format!("{client}.{written}"))),
        0 => (REGISTERS[key], Action::Get),
        1 if write < 70 => (COUNTERS[key], Action::Incr),
        1 => (COUNTERS[key], Action::Get),
        // So that it does not grow for ever.
        2 if write < 6 => (STRINGS[key], Action::Set(format!("{client}.{written}:"))),
        2 if write < 60 => (STRINGS[key], Action::Append(format!("{client}.{written},"))),
        _ => (STRINGS[key], Action::Get),
    }
}

/// Sends a request and writes down what came of it.
fn ask(
    link: &mut Connection,
    client: u32,
    key: &str,
    action: Action,
    shared: &Shared,
) -> Result<()> {
    let invoked_ns = now_ns();
    let asked = link
        .send(&request(key, &action))
        .and_then(|()| link.reply())
        .map_err(anyhow::Error::new)
        .and_then(|reply| answer_of(&action, reply));
    let at_ns = now_ns();
    let (outcome, result) = match asked {
        Ok(answer) => (Outcome::Answered { at_ns, answer }, Ok(())),
        Err(error) => (Outcome::Unknown, Err(error)),
    };
    if result.is_ok() {
        shared.answered.fetch_add(1, Ordering::Relaxed);
    }
    lock(&shared.operations).push(Operation {
        client,
        key: key.to_owned(),
        action,
        invoked_ns,
        outcome,
    });
    result
}

fn request(key: &str, action: &Action) -> Vec<u8> {
    let key = key.as_bytes();
    match action {
        Action::Get => command(&[b"GET", key]),
        Action::Set(text) => command(&[b"SET", key, text.as_bytes()]),
        Action::Incr => command(&[b"INCR", key]),
        Action::Append(text) => command(&[b"APPEND", key, text.as_bytes()]),
    }
}

/// What a reply says to a request; an error if it says nothing that fits.
fn answer_of(action: &Action, reply: Reply) -> Result<Answer> {
    match (action, reply) {
        (Action::Get, Reply::Text(value)) => Ok(Answer::Value(value)),
        (Action::Set(_), Reply::Status(text)) if text == "OK" => Ok(Answer::Done),
        (Action::Incr | Action::Append(_), Reply::Number(number)) => Ok(Answer::Number(number)),
        (Action::Incr, Reply::Error(text)) if text.contains("not an integer") => {
            Ok(Answer::Refused)
        }
        (action, reply) => Err(anyhow!("{action:?} was answered with {reply:?}")),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
