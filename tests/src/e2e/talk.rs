//! Clients that talk with a guest over several connections, each of which must live through what
//! happens to the card, and check what they are told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use ch_integration::demo::Service;
use ch_integration::demo::counter::{Asker, COUNTER_SERVER};
use ch_integration::demo::namespace::Namespace;

use super::redis::Redis;
use super::vm::PAIRS;

/// Connections at first.
const CONNECTIONS: u16 = 8;
/// A guest boots and answers within this time, or not at all.
const BOOT_WAIT: Duration = Duration::from_secs(180);
/// A VMM that has lost its backend finds another one within this time.
const ANSWER_WAIT: Duration = Duration::from_secs(60);
/// A datagram without a reply is given up.
const REPLY_WAIT: Duration = Duration::from_millis(300);

/// The connections.
pub enum Talk {
    /// Each counts for itself.
    Redis(Vec<Redis>),
    /// All count together. A count that was told is never taken back.
    Counter {
        /// The connections.
        askers: Vec<Asker>,
        /// The highest count told.
        told: u64,
    },
}

impl Talk {
    /// Waits until the guest answers, and connects.
    pub fn start(service: Service, client: &Namespace) -> Result<Self> {
        let mut talk = match service {
            Service::Redis => Self::Redis(vec![Redis::await_boot(client)?]),
            Service::Counter => Self::Counter {
                askers: vec![client.enter(|| Asker::new(counter()))??],
                told: 0,
            },
        };
        if let Self::Counter { askers, told } = &mut talk {
            ask(&mut askers[0], told, BOOT_WAIT).context("wait for the guest")?;
        }
        for _ in 1..CONNECTIONS {
            talk.connect(client)?;
        }
        Ok(talk)
    }

    /// Makes one more connection.
    pub fn connect(&mut self, client: &Namespace) -> Result<()> {
        match self {
            Self::Redis(all) => {
                let server = u16::try_from(all.len())? % PAIRS;
                all.push(Redis::connect_to(client, server)?);
            }
            Self::Counter { askers, .. } => {
                askers.push(client.enter(|| Asker::new(counter()))??);
            }
        }
        Ok(())
    }

    /// Each connection asks once and is answered.
    pub fn round(&mut self) -> Result<()> {
        match self {
            Self::Redis(all) => all.iter_mut().try_for_each(Redis::count),
            Self::Counter { askers, told } => askers
                .iter_mut()
                .try_for_each(|asker| ask(asker, told, ANSWER_WAIT)),
        }
    }

    /// Goes on talking on a thread of its own.
    pub fn go_on(mut self) -> Result<Talking> {
        let (rounds, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (its_rounds, its_stop) = (Arc::clone(&rounds), Arc::clone(&stop));
        let work = move || -> Result<Self> {
            while !its_stop.load(Ordering::Relaxed) {
                self.round()?;
                its_rounds.fetch_add(1, Ordering::Relaxed);
            }
            Ok(self)
        };
        let thread = std::thread::Builder::new()
            .name("talk".to_owned())
            .spawn(work)?;
        Ok(Talking {
            thread,
            rounds,
            stop,
        })
    }
}

/// Connections that talk.
pub struct Talking {
    thread: JoinHandle<Result<Talk>>,
    rounds: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Talking {
    /// Waits for so many rounds more.
    pub fn await_rounds(&self, more: u64) -> Result<()> {
        let wanted = self.rounds.load(Ordering::Relaxed) + more;
        let deadline = Instant::now() + 2 * ANSWER_WAIT;
        while self.rounds.load(Ordering::Relaxed) < wanted && !self.thread.is_finished() {
            ensure!(
                Instant::now() < deadline,
                "the guest does not answer any more"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Stops talking. An error if a connection broke or a count was wrong.
    pub fn stop(self) -> Result<Talk> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| anyhow!("the talk panicked"))?
    }

    /// Rounds so far.
    #[must_use]
    pub fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }
}

fn counter() -> SocketAddr {
    COUNTER_SERVER
        .parse()
        .unwrap_or_else(|_| unreachable!("a constant address"))
}

fn ask(asker: &mut Asker, told: &mut u64, wait: Duration) -> Result<()> {
    let deadline = Instant::now() + wait;
    while Instant::now() < deadline {
        if let Some(count) = asker.ask(REPLY_WAIT)? {
            ensure!(count > *told, "{count} was told after {told}");
            *told = count;
            return Ok(());
        }
    }
    bail!("no reply in {wait:?}")
}
