//! What each step of the path costs, in cycles of the processor's clock. One turn in
//! [`MEASURED_TURNS`] is timed, step by step and never packet by packet: reading the clock nine
//! times in a turn of a hundred packets would already show, every eleventh turn does not.

use std::time::Instant;

use serde::Serialize;

/// One turn in so many is timed. A prime: rings and bursts are powers of two, and a rhythm of theirs
/// must not meet ours.
const MEASURED_TURNS: u32 = 11;

/// A step of the path, in the order in which a turn takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// A burst from the uplink.
    Rx,
    /// What is not for the guest is dropped; the rest goes into an entry, whole or by its header.
    Admit,
    /// Entries into the log.
    Propose,
    /// Messages from the peers and to them.
    Replicate,
    /// Into the guest's receive rings; what was kept for it is freed.
    Deliver,
    /// Out of the guest's transmit rings.
    Tx,
    /// Into the queue of held output.
    Hold,
    /// From the queue to the uplink.
    Release,
    /// Commands, and all that depends on time.
    Other,
}

const STEPS: [Step; 9] = [
    Step::Rx,
    Step::Admit,
    Step::Propose,
    Step::Replicate,
    Step::Deliver,
    Step::Tx,
    Step::Hold,
    Step::Release,
    Step::Other,
];

/// Sums of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    cycles: u64,
    packets: u64,
}

/// The clock of a core, and what it measured.
#[derive(Debug)]
pub(super) struct Costs {
    is_on: bool,
    turns_left: u32,
    /// Whether this turn is timed.
    is_timed: bool,
    /// When the last step ended.
    at: u64,
    /// Of this turn.
    turn: [Sum; STEPS.len()],
    /// Of all timed turns that had something to do.
    total: [Sum; STEPS.len()],
    turns: u64,
    started: (Instant, u64),
}

impl Costs {
    pub(super) fn new(is_on: bool) -> Self {
        Self {
            is_on,
            turns_left: MEASURED_TURNS,
            is_timed: false,
            at: 0,
            turn: Default::default(),
            total: Default::default(),
            turns: 0,
            started: (Instant::now(), cycles()),
        }
    }

    /// A turn begins.
    #[inline]
    pub(super) fn begin(&mut self) {
        self.turns_left -= 1;
        if self.turns_left == 0 {
            self.turns_left = MEASURED_TURNS;
            self.is_timed = self.is_on;
            self.turn = Default::default();
            self.at = cycles();
        }
    }

    /// A step is done; `packets` is how many it was done for.
    #[inline]
    pub(super) fn done(&mut self, step: Step, packets: usize) {
        if self.is_timed {
            let now = cycles();
            let sum = &mut self.turn[step as usize];
            sum.cycles += now.saturating_sub(self.at);
            sum.packets += packets as u64;
            self.at = now;
        }
    }

    /// The turn is over. One without any work says nothing of a packet.
    #[inline]
    pub(super) fn end(&mut self, had_work: bool) {
        if self.is_timed {
            self.is_timed = false;
            if had_work {
                self.turns += 1;
                for (total, turn) in self.total.iter_mut().zip(&self.turn) {
                    total.cycles += turn.cycles;
                    total.packets += turn.packets;
                }
            }
        }
    }

    /// What was measured so far.
    pub(super) fn report(&self) -> StepCosts {
        let (since, first) = self.started;
        let seconds = since.elapsed().as_secs_f64();
        let steps = STEPS.map(|step| {
            let Sum { cycles, packets } = self.total[step as usize];
            StepCost {
                step,
                packets,
                cycles,
                cycles_per_packet: (packets > 0).then(|| cycles as f64 / packets as f64),
            }
        });
        StepCosts {
            turns: self.turns,
            cycles_per_second: cycles().saturating_sub(first) as f64 / seconds.max(1e-9),
            steps: steps.to_vec(),
        }
    }
}

/// What the steps of the path cost, over the timed turns in which there was something to do.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StepCosts {
    /// Timed turns: one of eleven, those without work left out.
    pub turns: u64,
    /// The clock's rate.
    pub cycles_per_second: f64,
    /// The steps, in order.
    pub steps: Vec<StepCost>,
}

/// What one step costs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StepCost {
    /// The step.
    pub step: Step,
    /// Packets that it was done for.
    pub packets: u64,
    /// Cycles that it took.
    pub cycles: u64,
    /// Their ratio. What a step costs without a packet is in it, too.
    pub cycles_per_packet: Option<f64>,
}

/// The processor's time stamp counter.
#[cfg(target_arch = "x86_64")]
#[inline]
fn cycles() -> u64 {
    // SAFETY: every x86-64 processor has it; it only reads.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Nanoseconds, where there is no counter that one instruction reads.
#[cfg(not(target_arch = "x86_64"))]
fn cycles() -> u64 {
    use std::sync::OnceLock;
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(costs: &mut Costs, turns: u32, packets: usize) {
        for _ in 0..turns {
            costs.begin();
            costs.done(Step::Rx, packets);
            costs.done(Step::Admit, packets / 2);
            costs.end(packets > 0);
        }
    }

    #[test]
    fn one_turn_in_eleven_is_timed_and_idle_ones_do_not_count() {
        let mut costs = Costs::new(true);
        turns(&mut costs, MEASURED_TURNS * 10, 32);
        turns(&mut costs, MEASURED_TURNS * 10, 0);
        let report = costs.report();
        assert_eq!(report.turns, 10);
        let of = |step: Step| report.steps[step as usize];
        assert_eq!((of(Step::Rx).packets, of(Step::Admit).packets), (320, 160));
        assert!(of(Step::Rx).cycles > 0 && report.cycles_per_second > 0.0);
        assert_eq!(of(Step::Hold).cycles_per_packet, None);
        let order = report.steps.iter().map(|cost| cost.step as usize);
        assert!(order.eq(0..STEPS.len()));
    }

    #[test]
    fn a_clock_that_is_off_counts_nothing() {
        let mut costs = Costs::new(false);
        turns(&mut costs, MEASURED_TURNS * 10, 32);
        assert_eq!(costs.report().turns, 0);
    }
}
