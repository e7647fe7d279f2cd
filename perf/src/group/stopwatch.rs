//! A clock that costs little to read: the processor's counter. Where it is not, the system's clock.

use std::time::{Duration, Instant};

/// How closely a node's time is looked at. Reading the clock takes time itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// Not at all.
    #[default]
    Off,
    /// Whole turns.
    Turns,
    /// The steps of each turn.
    Steps,
}

/// Counts of the counter, by step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    receive: u64,
    propose: u64,
    send: u64,
    turns: u64,
}

/// Time that a node spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Frames of peers: taken from the port, checked, put together, decoded, stepped.
    pub receive: Duration,
    /// A burst into the log.
    pub propose: Duration,
    /// What the core asks: messages encoded, cut into frames, handed to the port.
    pub send: Duration,
    /// Whole turns.
    pub turns: Duration,
}

/// A step of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// See [`Spent::receive`].
    Receive,
    /// See [`Spent::propose`].
    Propose,
    /// See [`Spent::send`].
    Send,
}

/// Measures a node's turns.
#[derive(Debug)]
pub struct Stopwatch {
    detail: Detail,
    counts: Counts,
    turn_began: u64,
    step_began: u64,
    /// Both clocks at the start: how long a count is.
    started: (Instant, u64),
}

impl Stopwatch {
    /// From now on.
    pub fn new(detail: Detail) -> Self {
        Self {
            detail,
            counts: Counts::default(),
            turn_began: 0,
            step_began: 0,
            started: (Instant::now(), count()),
        }
    }

    /// A turn begins.
    #[inline]
    pub fn begin(&mut self) {
        if self.detail != Detail::Off {
            self.turn_began = count();
            self.step_began = self.turn_began;
        }
    }

    /// A step is done.
    #[inline]
    pub fn done(&mut self, step: Step) {
        if self.detail == Detail::Steps {
            let now = count();
            let sum = match step {
                Step::Receive => &mut self.counts.receive,
                Step::Propose => &mut self.counts.propose,
                Step::Send => &mut self.counts.send,
            };
            *sum += now.saturating_sub(self.step_began);
            self.step_began = now;
        }
    }

    /// The turn is over.
    #[inline]
    pub fn end(&mut self) {
        if self.detail == Detail::Turns {
            self.counts.turns += count().saturating_sub(self.turn_began);
        }
    }

    /// All that was measured.
    pub fn spent(&self) -> Spent {
        let counted = count().saturating_sub(self.started.1).max(1);
        let seconds_each = self.started.0.elapsed().as_secs_f64() / counted as f64;
        let time = |counts: u64| Duration::from_secs_f64(counts as f64 * seconds_each);
        Spent {
            receive: time(self.counts.receive),
            propose: time(self.counts.propose),
            send: time(self.counts.send),
            turns: time(self.counts.turns),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn count() -> u64 {
    // SAFETY: every x86-64 processor has it; it only reads. Reading the system's clock takes more
    // than twice as long, which would be a tenth of what is measured.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn count() -> u64 {
    use std::sync::OnceLock;
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched(detail: Detail) -> Spent {
        let mut watch = Stopwatch::new(detail);
        watch.begin();
        std::thread::sleep(Duration::from_millis(2));
        watch.done(Step::Receive);
        watch.done(Step::Propose);
        watch.end();
        watch.spent()
    }

    #[test]
    fn only_what_is_asked_for_is_measured() {
        assert_eq!(watched(Detail::Off), Spent::default());
        let turns = watched(Detail::Turns);
        assert!(turns.turns > turns.receive && turns.receive.is_zero());
        let steps = watched(Detail::Steps);
        assert!(steps.receive > steps.propose && steps.turns.is_zero());
    }
}
