//! A group whose nodes take turns on one thread.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use plover_types::{LogIndex, Mode, Offload, PacketBurst, PacketBurstBuilder};

use super::address::NODES;
use super::member::{Kind, Member};
use super::wire::Wire;
use crate::interrupt;

/// How long a group may take to elect a primary.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// How long an entry may take to be committed.
const COMMIT_PATIENCE: Duration = Duration::from_secs(10);
/// How many turns pass between two looks at signals and the clock.
const TURNS_BETWEEN_LOOKS: usize = 1 << 14;

/// Which nodes have a VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guests {
    /// Only the first: it is primary and unprotected, and its log is cut as it delivers.
    First,
    /// Both replicas: they are synced, and protected.
    Both,
}

/// A group on one thread.
pub struct Group {
    /// The nodes; those taken out are dead.
    pub members: Vec<Option<Member>>,
    /// What lies between them.
    pub wire: Wire,
    builder: PacketBurstBuilder,
}

impl Group {
    /// Three nodes, the first primary and serving.
    pub fn start(wire: Wire, kind: &Kind, guests: Guests) -> Result<Self> {
        let all: Vec<usize> = (0..NODES).collect();
        let mut group = Self::of(wire, kind, &all)?;
        group.serve(guests)?;
        Ok(group)
    }

    /// Those nodes of a group that are on this thread.
    pub fn of(mut wire: Wire, kind: &Kind, nodes: &[usize]) -> Result<Self> {
        wire.clear();
        let members = (0..NODES).map(|node| {
            let is_here = nodes.contains(&node);
            is_here.then(|| Member::start(node, kind)).transpose()
        });
        Ok(Self {
            members: members.collect::<Result<_>>()?,
            wire,
            builder: PacketBurstBuilder::new(),
        })
    }

    /// Gives the first node a guest, and the second if it is to be protected.
    pub fn serve(&mut self, guests: Guests) -> Result<()> {
        self.member(0)?.offer_guest();
        self.run_until(START_PATIENCE, |group| {
            let first = group.members[0].as_ref();
            first.is_some_and(|first| first.node().core().may_propose())
        })
        .context("no primary")?;
        if guests == Guests::Both {
            self.member(1)?.offer_guest();
            self.run_until(START_PATIENCE, |group| group.is_protected())
                .context("the backup is not filled")?;
        }
        Ok(())
    }

    /// A node that is not dead.
    pub fn member(&mut self, number: usize) -> Result<&mut Member> {
        self.members[number]
            .as_mut()
            .with_context(|| format!("node {} is dead", number + 1))
    }

    /// Whether the first node knows a backup.
    pub fn is_protected(&self) -> bool {
        self.members[0].as_ref().is_some_and(|first| {
            let role = first.node().core().group().role();
            role.is_some_and(|role| role.mode == Mode::Protected)
        })
    }

    /// A burst of packets, the first of which says `number`.
    pub fn burst(&mut self, packets: usize, bytes: usize, number: u64) -> Result<PacketBurst> {
        let mut packet = [7; 256];
        packet[..8].copy_from_slice(&number.to_le_bytes());
        // An entry ends with its chunk of memory; then it is made anew in the next one.
        for _ in 0..2 {
            for _ in 0..packets {
                self.builder.push(0, Offload::PLAIN, &packet[..bytes])?;
            }
            let burst = self.builder.finish().context("an empty burst")?;
            if self.builder.is_empty() {
                return Ok(burst);
            }
            while self.builder.finish().is_some() {}
        }
        bail!("{packets} packets do not fit one entry")
    }

    /// A turn of each node; the first one is offered a burst, which stays if it is refused.
    #[inline]
    pub fn round(&mut self, offer: &mut Option<PacketBurst>) -> Result<()> {
        let mut nothing = None;
        for member in self.members.iter_mut().flatten() {
            let offer = if member.number() == 0 {
                &mut *offer
            } else {
                &mut nothing
            };
            member.turn(&mut self.wire, offer)?;
        }
        Ok(())
    }

    /// Turns until the first node has applied an entry.
    #[inline]
    pub fn round_until_applied(
        &mut self,
        index: LogIndex,
        offer: &mut Option<PacketBurst>,
    ) -> Result<()> {
        let mut turns = 0usize;
        let mut start = None;
        while self.applied() < index {
            self.round(offer)?;
            turns += 1;
            if turns.is_multiple_of(TURNS_BETWEEN_LOOKS) {
                interrupt::check()?;
                let start = *start.get_or_insert_with(Instant::now);
                ensure!(
                    start.elapsed() < COMMIT_PATIENCE,
                    "an entry is not committed"
                );
            }
        }
        Ok(())
    }

    /// The last entry that the first node has applied.
    #[inline]
    pub fn applied(&self) -> LogIndex {
        self.members[0]
            .as_ref()
            .map_or(LogIndex(0), |first| first.node().core().applied())
    }

    /// Gives the guests what is committed.
    #[inline]
    pub fn deliver(&mut self) {
        for member in self.members.iter_mut().flatten() {
            let core = member.node_mut().core_mut();
            if core.copy().can_serve() {
                core.deliver_runs(|_, packets| packets.len());
            }
        }
    }

    /// Asks for a sync, as the poll core does when one is due.
    pub fn want_sync(&mut self) -> Result<()> {
        let node = self.member(0)?.node_mut();
        let now = node.now();
        node.core_mut().want_sync(now);
        Ok(())
    }

    /// Turns, with nothing offered, and looks after each round whether something is so. Returns
    /// when.
    pub fn watch(
        &mut self,
        patience: Duration,
        mut is_so: impl FnMut(&mut Self) -> bool,
    ) -> Result<Instant> {
        let end = Instant::now() + patience;
        loop {
            self.round(&mut None)?;
            self.deliver();
            let now = Instant::now();
            if is_so(self) {
                return Ok(now);
            }
            interrupt::check()?;
            ensure!(now < end, "it did not come within {} s", patience.as_secs());
        }
    }

    /// Turns, with nothing offered, until something is so.
    pub fn run_until(
        &mut self,
        patience: Duration,
        mut is_so: impl FnMut(&mut Self) -> bool,
    ) -> Result<()> {
        let end = Instant::now() + patience;
        while !is_so(self) {
            for _ in 0..64 {
                self.round(&mut None)?;
            }
            self.deliver();
            interrupt::check()?;
            if Instant::now() >= end {
                bail!("it did not come within {} s", patience.as_secs());
            }
        }
        Ok(())
    }
}
