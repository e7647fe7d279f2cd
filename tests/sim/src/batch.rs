//! Many seeds, on several threads, and what they saw together.

use std::fmt;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::coverage::Coverage;
use crate::{Options, Outcome, Violation, run};

/// A seed that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What it found.
    pub violation: Violation,
}

/// What many runs saw.
#[derive(Debug, Default)]
pub struct Batch {
    /// Seeds run.
    pub seeds: u64,
    /// Of them, those with a valid copy left at the end.
    pub survived: u64,
    /// Events of each run, in order once the batch is done.
    pub events: Vec<u64>,
    /// Syncs of each run.
    pub syncs: Vec<u64>,
    /// Faults of each run.
    pub faults: Vec<u64>,
    /// Packets answered.
    pub answers: u64,
    /// What they went through.
    pub coverage: Coverage,
    /// Seeds that failed.
    pub failures: Vec<Failure>,
    /// Time of all threads together.
    pub busy: Duration,
}

/// Failures after which a batch ends.
const FAILURES_MAX: usize = 5;

impl Batch {
    /// Runs seeds, on so many threads.
    #[must_use]
    pub fn run(seeds: &[Range<u64>], threads: usize) -> Self {
        let all: u64 = seeds.iter().map(|range| range.end - range.start).sum();
        let next = AtomicU64::new(0);
        let batch = Mutex::new(Self::default());
        std::thread::scope(|scope| {
            for _ in 0..threads.max(1) {
                scope.spawn(|| {
                    let own = Self::run_some(seeds, all, &next, &batch);
                    if let Ok(mut batch) = batch.lock() {
                        batch.add(own);
                    }
                });
            }
        });
        let mut batch = batch.into_inner().unwrap_or_default();
        for values in [&mut batch.events, &mut batch.syncs, &mut batch.faults] {
            values.sort_unstable();
        }
        batch
    }

    fn run_some(seeds: &[Range<u64>], all: u64, next: &AtomicU64, shared: &Mutex<Self>) -> Self {
        let mut own = Self::default();
        let start = Instant::now();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= all || own.failures.len() >= FAILURES_MAX {
                break;
            }
            let Some(seed) = nth(seeds, number) else {
                break;
            };
            let ended = run(Options::of_seed(seed));
            own.take(seed, &ended.outcome, ended.violation);
            // For whoever watches a long batch.
            if number > 0 && number.is_multiple_of(10_000) {
                let failed = shared.lock().map_or(0, |batch| batch.failures.len());
                println!("{number} seeds, {} failed", failed + own.failures.len());
            }
        }
        own.busy = start.elapsed();
        own
    }

    fn take(&mut self, seed: u64, outcome: &Outcome, violation: Option<Violation>) {
        self.seeds += 1;
        self.survived += u64::from(outcome.survived);
        self.events.push(outcome.events);
        self.syncs.push(outcome.syncs);
        self.faults.push(outcome.faults);
        self.answers += outcome.answers;
        self.coverage.add(&outcome.coverage);
        self.failures
            .extend(violation.map(|violation| Failure { seed, violation }));
    }

    fn add(&mut self, other: Self) {
        self.seeds += other.seeds;
        self.survived += other.survived;
        self.events.extend(other.events);
        self.syncs.extend(other.syncs);
        self.faults.extend(other.faults);
        self.answers += other.answers;
        self.coverage.add(&other.coverage);
        self.failures.extend(other.failures);
        self.busy += other.busy;
    }

    /// The value below which half of the runs are.
    #[must_use]
    pub fn median(values: &[u64]) -> u64 {
        values.get(values.len() / 2).copied().unwrap_or(0)
    }
}

fn nth(seeds: &[Range<u64>], mut number: u64) -> Option<u64> {
    for range in seeds {
        let length = range.end - range.start;
        if number < length {
            return Some(range.start + number);
        }
        number -= length;
    }
    None
}

/// A first seed that was not run before, most likely.
#[must_use]
pub fn fresh_seed() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    // Far from those that are always run, short enough to type.
    1_000_000_000 + now.as_secs() % 1_000_000 * 10_000
}

impl fmt::Display for Batch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let events: u64 = self.events.iter().sum();
        let seconds = self.busy.as_secs_f64().max(1e-9);
        writeln!(
            out,
            "{} seeds: {events} events, {} answers, a valid copy left in {}; \
             {:.1} s of one core, {:.0} events/s",
            self.seeds,
            self.answers,
            self.survived,
            seconds,
            events as f64 / seconds
        )?;
        writeln!(
            out,
            "  {:<10}{:>9}{:>9}{:>9}{:>9}{:>9}",
            "a seed", "least", "5 %", "median", "95 %", "most"
        )?;
        for (name, values) in [
            ("events", &self.events),
            ("syncs", &self.syncs),
            ("faults", &self.faults),
        ] {
            let at = |percent: usize| {
                let last = values.len().saturating_sub(1);
                values.get(last * percent / 100).copied().unwrap_or(0)
            };
            writeln!(
                out,
                "  {name:<10}{:>9}{:>9}{:>9}{:>9}{:>9}",
                at(0),
                at(5),
                Self::median(values),
                at(95),
                at(100)
            )?;
        }
        for failure in &self.failures {
            writeln!(
                out,
                "seed {} FAILED: {:?}\n  again, with its trace: make sim SEED={}",
                failure.seed, failure.violation, failure.seed
            )?;
        }
        Ok(())
    }
}
