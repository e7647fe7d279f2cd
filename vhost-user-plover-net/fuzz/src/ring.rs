//! A card on arbitrary guest memory, and a script of everything that guest, VMM and poll core can
//! do to it. Whatever the script: no panic, no access outside of the memory table (the pages
//! around it do not survive one), every write is logged, the used index advances by what was
//! returned and only then, and each step ends.
//!
//! Not looked at here: two threads at a time (`tests/race.rs`), messages (`control`).

mod driver;
mod sink;
mod step;

use std::sync::Arc;

use vhost_user_plover_net::ring::{GuestMap, RingId, WrittenPages};
use vhost_user_plover_net::testing::{Command, Hand, Memory, card};
use vhost_user_plover_net::{EventFd, GuestNic};

use self::driver::Driver;
use crate::guest::{Guest, Region};
use crate::input::Input;

/// Steps of one script.
const STEPS_MAX: usize = 200;
/// Rings that the scripts use: those of two queue pairs.
const RINGS: usize = 4;
/// Rings of the first pair, which most scripts are about.
const FIRST_PAIR: usize = 2;

/// Runs the script that `data` is.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World::new(&mut input);
    let mut steps = 0;
    while !input.is_empty() && steps < STEPS_MAX {
        world.step(&mut input);
        steps += 1;
    }
    world.end();
}

struct World {
    guest: Guest,
    /// Memory of former tables: the card may not touch it.
    closed: Vec<Guest>,
    pages: Arc<WrittenPages>,
    drivers: [Driver; RINGS],
    features: u64,
    hand: Hand,
    nic: GuestNic,
    posted: u64,
    answered: u64,
    /// A second pair was started: its rings may lie in those of the first.
    second_pair: bool,
    /// Frames delivered and not yet published, if known.
    unpublished: Option<u64>,
}

impl World {
    fn new(input: &mut Input<'_>) -> Self {
        let (hand, nic) = card().expect("eventfds");
        let features = input.u64();
        let guest = Guest::new(input);
        let drivers = [0, 1, 2, 3].map(|number| Driver::new(number, &guest, input));
        let pages = pages_for(&guest);
        let mut world = Self {
            guest,
            closed: Vec::new(),
            pages,
            drivers,
            features,
            hand,
            nic,
            posted: 0,
            answered: 0,
            second_pair: false,
            unpublished: Some(0),
        };
        world.post(Command::Connect);
        // Most scripts are about rings that run.
        if !input.u8().is_multiple_of(8) {
            world.set_memory(u8::MAX);
            (0..FIRST_PAIR).for_each(|ring| world.start_ring(ring, true));
        }
        world
    }

    fn end(mut self) {
        self.nic.thaw();
        self.post(Command::Disconnect);
        let state = self.nic.state();
        assert!(!state.has_memory && !state.connected, "{state:?}");
        assert_eq!(self.nic.wake_fds().count(), 1, "no ring runs");
        self.guest.check_marks(&self.pages);
        self.guest.close();
        // Without memory nothing is done, and nothing is touched.
        assert_eq!(self.nic.take(usize::MAX, &mut |_| {}), 0);
        self.nic.publish();
        assert!(self.hand.faults().count() as u64 <= self.nic.counters().ring_faults.get());
    }

    /// Posts a command and has the card obey it.
    fn post(&mut self, command: Command) {
        // A hand that waits for answers has at most a few unanswered.
        if self.posted - self.answered > 8 {
            self.nic.take(0, &mut |_| {});
        }
        let ends = matches!(command, Command::Disconnect);
        if self.hand.post(command).is_ok() {
            self.posted += 1;
        }
        self.nic.take_commands();
        self.count_answers();
        if ends {
            self.answered = self.posted;
        }
    }

    fn count_answers(&mut self) {
        for (number, _) in self.hand.answers() {
            assert!(number < self.posted, "an answer that nobody waits for");
            self.answered += 1;
        }
    }

    fn set_memory(&mut self, mask: u8) {
        let map = GuestMap::new(self.guest.table(mask)).expect("few regions");
        self.post(Command::SetMemory(Memory {
            map: Arc::new(map),
            written: Arc::clone(&self.pages),
        }));
    }

    /// The VM has other memory from now on; what was there is gone.
    fn move_guest(&mut self, input: &mut Input<'_>) {
        let guest = Guest::new(input);
        let former = std::mem::replace(&mut self.guest, guest);
        // A log of its own: marks of the former memory would hide what is not marked in this.
        let former_pages = std::mem::replace(&mut self.pages, pages_for(&self.guest));
        self.set_memory(input.u8());
        former.check_marks(&former_pages);
        former.close();
        self.closed.push(former);
        for (number, driver) in self.drivers.iter_mut().enumerate() {
            *driver = Driver::new(number, &self.guest, input);
        }
        (0..FIRST_PAIR).for_each(|ring| self.start_ring(ring, true));
    }

    fn start_ring(&mut self, ring: usize, enabled: bool) {
        self.second_pair |= ring >= FIRST_PAIR;
        let (Ok(kick), Ok(call)) = (EventFd::new(), EventFd::new()) else {
            return;
        };
        let setup = self.drivers[ring].setup(self.features, enabled, kick, Some(call));
        self.post(Command::StartRing(ring_id(ring), setup));
    }
}

fn ring_id(number: usize) -> RingId {
    RingId::from_index(number).expect("two pairs are few")
}

/// A log for all of the guest's memory.
fn pages_for(guest: &Guest) -> Arc<WrittenPages> {
    let ends = guest.regions().iter().map(Region::end);
    let pages = WrittenPages::create(ends.max().unwrap_or(0));
    Arc::new(pages.expect("a bitmap"))
}
