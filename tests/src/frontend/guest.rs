//! A guest with a network card: memory, rings, and the frames that it sends to itself by way of an
//! uplink that gives back what it is given.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::connection::{Connection, Meeting};
use super::memory::Memory;
use super::ring::{DriverRing, HEADER_BYTES, Pieces, RingShape, memory_bytes};
use super::traffic::{Ledger, check_frame, write_frame};

const VERSION_1: u64 = 1 << 32;
const PROTOCOL_FEATURES: u64 = 1 << 30;
const MRG_RXBUF: u64 = 1 << 15;
const MQ: u64 = 1 << 22;
const CTRL_VQ: u64 = 1 << 17;
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const IN_ORDER: u64 = 1 << 35;

/// What is waited for comes within this time, or not at all.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Frames sent before the rings are looked at.
const BURST: usize = 32;

/// What a guest is like. Features are wishes: what the backend does not offer is not had.
#[derive(Clone, Debug)]
pub struct GuestConfig {
    /// The card's address: frames are sent to it.
    pub mac: [u8; 6],
    /// Descriptors of each ring.
    pub size: u16,
    /// Pairs of rings.
    pub pairs: u16,
    /// How buffers are described, in both directions.
    pub pieces: Pieces,
    /// A frame may spread over several receive buffers.
    pub mergeable: bool,
    /// Buffers come back in order.
    pub in_order: bool,
    /// Kicks by index.
    pub event_idx: bool,
    /// Frame bytes that a receive buffer has room for.
    pub buffer_bytes: u64,
    /// Frames on the way at most.
    pub window: usize,
    /// The VMM listens, and the backend comes.
    pub listens: bool,
}

impl Default for GuestConfig {
    fn default() -> Self {
        Self {
            mac: [2, 0, 0, 0, 0, 0x10],
            size: 256,
            pairs: 1,
            pieces: Pieces::One,
            mergeable: true,
            in_order: false,
            event_idx: true,
            buffer_bytes: 2048,
            window: 100,
            listens: false,
        }
    }
}

impl GuestConfig {
    fn wanted(&self) -> u64 {
        let optional = [
            (self.mergeable, MRG_RXBUF),
            (self.in_order, IN_ORDER),
            (self.event_idx, EVENT_IDX),
            (self.pairs > 1, MQ | CTRL_VQ),
        ];
        let always = VERSION_1 | PROTOCOL_FEATURES | INDIRECT_DESC;
        let chosen = optional.iter().filter(|(wanted, _)| *wanted);
        chosen.fold(always, |bits, (_, bit)| bits | bit)
    }
}

/// What was agreed with the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Frames may spread over buffers.
    pub mergeable: bool,
    /// Buffers come back in order.
    pub in_order: bool,
    /// Kicks by index.
    pub event_idx: bool,
    /// More than one pair.
    pub multiqueue: bool,
}

impl Negotiated {
    fn of(features: u64) -> Self {
        Self {
            mergeable: features & MRG_RXBUF != 0,
            in_order: features & IN_ORDER != 0,
            event_idx: features & EVENT_IDX != 0,
            multiqueue: features & MQ != 0,
        }
    }
}

/// A guest, and the connection of its VMM to the backend if there is one.
pub struct Guest {
    config: GuestConfig,
    meeting: Meeting,
    memory: Arc<Memory>,
    /// Receive and transmit rings in turn.
    rings: Vec<DriverRing>,
    connection: Option<Connection>,
    /// The frames.
    pub ledger: Ledger,
    frame: Vec<u8>,
    turn: usize,
}

impl Guest {
    /// A guest that boots: fresh memory, connected, with all receive buffers posted.
    pub fn boot(socket: &Path, config: GuestConfig) -> Result<Self> {
        Self::boot_after(socket, config, Ledger::default())
    }

    /// A guest that boots in place of one that sent the frames of `ledger`.
    pub fn boot_after(socket: &Path, config: GuestConfig, ledger: Ledger) -> Result<Self> {
        let count = 2 * config.pairs;
        let memory = Arc::new(Memory::new(memory_bytes(count, config.size))?);
        let rings = (0..count).map(|queue| {
            let shape = RingShape {
                queue,
                size: config.size,
                pieces: config.pieces,
                is_receive: queue % 2 == 0,
                event_idx: false,
                in_order: false,
            };
            DriverRing::new(&memory, shape)
        });
        let mut guest = Self {
            rings: rings.collect::<Result<_>>()?,
            meeting: Meeting::new(socket, config.listens)?,
            config,
            memory,
            connection: None,
            ledger,
            frame: Vec::new(),
            turn: 0,
        };
        guest.connect()?;
        Ok(guest)
    }

    /// Connects the guest as it is, rings in mid-flight and all.
    pub fn connect(&mut self) -> Result<Negotiated> {
        self.connection = None;
        let rings = self.rings.len() as u64;
        let mut connection = Connection::open(self.meeting.meet()?, self.config.wanted(), rings)?;
        let negotiated = Negotiated::of(connection.features);
        for ring in &mut self.rings {
            ring.set_features(negotiated.event_idx, negotiated.in_order);
        }
        connection.start(&self.memory, &self.rings, self.config.size)?;
        self.connection = Some(connection);
        self.post_buffers()?;
        // What was offered before a backend died, nobody has kicked it about.
        for queue in 0..self.rings.len() {
            self.kick(queue)?;
        }
        Ok(negotiated)
    }

    /// What was agreed.
    pub fn negotiated(&self) -> Result<Negotiated> {
        let connection = self.connection.as_ref().context("not connected")?;
        Ok(Negotiated::of(connection.features))
    }

    /// The VMM dies, and its guest with it. What is left are the frames on the way.
    #[must_use]
    pub fn die(mut self) -> Ledger {
        // First: what dies last is not to give the backend time.
        self.connection = None;
        self.ledger.doubt_outstanding();
        self.ledger
    }

    /// The backend has died; the guest goes on as far as it can, until [`Self::connect`].
    pub fn lose_backend(&mut self) -> Result<()> {
        ensure!(
            self.has_lost_backend(),
            "the backend still holds the connection"
        );
        self.connection = None;
        self.ledger.doubt_outstanding();
        Ok(())
    }

    /// Whether the backend has hung up.
    #[must_use]
    pub fn has_lost_backend(&self) -> bool {
        self.connection.as_ref().is_none_or(Connection::is_gone)
    }

    /// Stops the rings by message and starts them again: a port that is stopped and started.
    pub fn restart_rings(&mut self) -> Result<()> {
        let connection = self.connection.as_mut().context("not connected")?;
        let bases = connection.stop(self.rings.len())?;
        for (queue, (base, ring)) in bases.iter().zip(&self.rings).enumerate() {
            let used = u32::from(ring.used_index()?);
            ensure!(
                *base == used,
                "ring {queue} says it stopped at {base}, and its used index is {used}"
            );
        }
        connection.start(&self.memory, &self.rings, self.config.size)?;
        for queue in 0..self.rings.len() {
            self.kick(queue)?;
        }
        Ok(())
    }

    fn kick(&self, queue: usize) -> Result<()> {
        self.connection
            .as_ref()
            .map_or(Ok(()), |connection| connection.kick(queue))
    }

    fn post_buffers(&mut self) -> Result<()> {
        for queue in (0..self.rings.len()).step_by(2) {
            self.rings[queue].post(self.config.buffer_bytes)?;
            if self.rings[queue].publish()? {
                self.kick(queue)?;
            }
        }
        Ok(())
    }

    /// One turn: sends as many frames as the window allows, of the sizes in turn, and takes what
    /// came. Returns how many came.
    pub fn turn(&mut self, sizes: &[usize]) -> Result<u64> {
        self.send(sizes)?;
        self.collect()
    }

    fn send(&mut self, sizes: &[usize]) -> Result<()> {
        let pair = self.turn % usize::from(self.config.pairs);
        self.turn += 1;
        let queue = 2 * pair + 1;
        let ring = &mut self.rings[queue];
        while let Some(used) = ring.next_used()? {
            ring.release(used.slot);
        }
        for _ in 0..BURST {
            if self.ledger.outstanding.len() >= self.config.window || ring.free() == 0 {
                break;
            }
            let number = self.ledger.send();
            let bytes = sizes[usize::try_from(number)? % sizes.len()];
            write_frame(self.config.mac, number, bytes, &mut self.frame);
            ring.send(&self.frame)?;
        }
        if ring.publish()? {
            self.kick(queue)?;
        }
        Ok(())
    }

    /// Sends as much as the window allows, and takes nothing.
    pub fn fill(&mut self, sizes: &[usize]) -> Result<()> {
        for _ in 0..self.config.window.div_ceil(BURST) {
            self.send(sizes)?;
        }
        Ok(())
    }

    /// How many of the frames in the transmit rings the backend has given back, and not been seen to.
    pub fn taken_unseen(&self) -> Result<usize> {
        let mut transmit = self.rings.iter().skip(1).step_by(2);
        transmit.try_fold(0, |sum, ring| Ok(sum + ring.unseen()?))
    }

    /// Takes what came; every frame is checked whole.
    pub fn collect(&mut self) -> Result<u64> {
        let mut came = 0;
        for queue in (0..self.rings.len()).step_by(2) {
            while self.receive(queue)? {
                came += 1;
            }
        }
        if came > 0 {
            self.post_buffers()?;
        }
        Ok(came)
    }

    fn receive(&mut self, queue: usize) -> Result<bool> {
        let ring = &mut self.rings[queue];
        let Some(first) = ring.next_used()? else {
            return Ok(false);
        };
        let buffers = ring.buffers_of(first.slot)?;
        self.frame.clear();
        let payload = u64::from(first.bytes).checked_sub(HEADER_BYTES);
        let payload = payload.context("a packet is shorter than its header")?;
        ring.append(
            first.slot,
            HEADER_BYTES,
            usize::try_from(payload)?,
            &mut self.frame,
        )?;
        ring.release(first.slot);
        for _ in 1..buffers {
            // The used index is stored once a packet is whole.
            let next = ring.next_used()?.context("a packet lacks buffers")?;
            ring.append(next.slot, 0, next.bytes as usize, &mut self.frame)?;
            ring.release(next.slot);
        }
        self.ledger
            .receive(check_frame(self.config.mac, &self.frame)?)?;
        Ok(true)
    }

    /// Sends and takes until `count` more frames have come.
    pub fn exchange(&mut self, count: u64, sizes: &[usize]) -> Result<()> {
        let wanted = self.ledger.received + count;
        self.until("enough frames came back", |guest| {
            guest.turn(sizes)?;
            Ok(guest.ledger.received >= wanted)
        })
    }

    /// Takes until nothing is on the way any more.
    pub fn drain(&mut self) -> Result<()> {
        self.until("all frames came back", |guest| {
            guest.collect()?;
            guest.reclaim()?;
            Ok(guest.ledger.outstanding.is_empty() && guest.transmit_is_free())
        })
    }

    fn reclaim(&mut self) -> Result<()> {
        for ring in self.rings.iter_mut().skip(1).step_by(2) {
            while let Some(used) = ring.next_used()? {
                ring.release(used.slot);
            }
        }
        Ok(())
    }

    fn transmit_is_free(&self) -> bool {
        let mut transmit = self.rings.iter().skip(1).step_by(2);
        transmit.all(|ring| ring.free() == ring.slots())
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        let mut progress = (start, self.ledger.received);
        while !done(self)? {
            if self.ledger.received != progress.1 {
                progress = (Instant::now(), self.ledger.received);
            }
            if progress.0.elapsed() > WAIT_MAX || start.elapsed() > 4 * WAIT_MAX {
                bail!(
                    "waited in vain until {what}: {}; rings (free, out): {:?}; backend gone: {}",
                    self.describe(),
                    self.rings
                        .iter()
                        .map(|ring| (ring.free(), ring.out()))
                        .collect::<Vec<_>>(),
                    self.has_lost_backend()
                );
            }
            // Where the two sides share a core, the other one needs it.
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Frames on the way.
    #[must_use]
    pub fn on_the_way(&self) -> usize {
        self.ledger.outstanding.len()
    }

    /// What became of the frames, in a line.
    #[must_use]
    pub fn describe(&self) -> String {
        let ledger = &self.ledger;
        format!(
            "{} sent, {} came back, {} lost, {} on the way",
            ledger.next,
            ledger.received,
            ledger.lost,
            ledger.outstanding.len()
        )
    }

    /// Every descriptor is with one side or the other, and every receive buffer goes round again:
    /// sends until each has come back once more.
    pub fn account_for_descriptors(&mut self, sizes: &[usize]) -> Result<()> {
        self.drain()?;
        for ring in &self.rings {
            ensure!(
                ring.free() + ring.out() == ring.slots(),
                "a descriptor is gone: {} free, {} out of {}",
                ring.free(),
                ring.out(),
                ring.slots()
            );
        }
        // The card chooses the receive ring; one that it does not choose now is no concern.
        let before: Vec<u64> = self.rings.iter().map(DriverRing::returns).collect();
        self.exchange(4 * u64::from(self.config.size), sizes)?;
        let target: Vec<u64> = self
            .rings
            .iter()
            .zip(before)
            .map(|(ring, before)| ring.fewest_returns() + u64::from(ring.returns() > before))
            .collect();
        self.until("every descriptor came back once more", |guest| {
            guest.turn(sizes)?;
            let returned = guest.rings.iter().zip(&target);
            Ok(returned
                .into_iter()
                .all(|(ring, target)| ring.fewest_returns() >= *target))
        })?;
        self.drain()
    }
}
