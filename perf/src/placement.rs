//! How near to each other two cores are: the time of a cache line's round trip between them.
//!
//! The cores of a virtual machine may sit near to each other or far, and move; the same code then
//! differs up to three times. So the round trip is measured before and after each sample, and like
//! is kept with like. Where near ends is not a number written here but the widest gap in what was
//! measured.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::stats;

/// Round trips that follow each other so much slower or faster are of different classes.
const GAP_RATIO: f64 = 1.5;
const BATCHES: usize = 7;
const TRIPS: u64 = 500;
/// A core that does not answer for so long is held by someone else.
const PATIENCE: Duration = Duration::from_secs(2);

/// The round trips under which samples were taken.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Placement {
    /// The two cores.
    pub cores: (usize, usize),
    /// The class whose samples were kept: 0 is the nearest that was seen.
    pub class: usize,
    /// How many classes were seen.
    pub classes: usize,
    /// Shortest round trip of the class, in ns.
    pub round_trip_ns_min: f64,
    /// Longest round trip of the class, in ns.
    pub round_trip_ns_max: f64,
    /// Samples thrown away, since before or after them the cores were of another class.
    pub discarded: usize,
}

/// Round trips sorted into classes. Made anew whenever there are more of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Classes {
    /// First and last round trip of each class, ascending.
    pub ranges: Vec<(f64, f64)>,
}

impl Classes {
    /// Cuts at each gap that is wide enough.
    pub fn of(round_trips_ns: &[f64]) -> Self {
        let mut sorted = round_trips_ns.to_vec();
        sorted.sort_by(f64::total_cmp);
        let mut ranges: Vec<(f64, f64)> = Vec::new();
        for value in sorted {
            match ranges.last_mut() {
                Some((_, last)) if value <= *last * GAP_RATIO => *last = value,
                _ => ranges.push((value, value)),
            }
        }
        Self { ranges }
    }

    /// The class of a round trip that the classes were made of.
    pub fn find(&self, round_trip_ns: f64) -> Option<usize> {
        self.ranges
            .iter()
            .position(|(first, last)| (*first..=*last).contains(&round_trip_ns))
    }
}

/// The line that two cores hand to and fro, alone in its cache line and its neighbour's.
#[repr(align(128))]
struct Line(AtomicU64);

/// Nanoseconds of a round trip between two cores: the median of a few batches.
pub fn round_trip_ns(cores: (usize, usize)) -> Result<f64> {
    let line = Line(AtomicU64::new(0));
    let end = Instant::now() + PATIENCE;
    std::thread::scope(|scope| {
        let echo = scope.spawn(|| echo(&line.0, cores.1, end));
        let samples = scope.spawn(|| serve(&line.0, cores.0, end)).join();
        let echoed = echo.join();
        let samples = samples.map_err(|_| anyhow::anyhow!("the probe died"))??;
        echoed.map_err(|_| anyhow::anyhow!("the probe's echo died"))??;
        stats::median(&samples).context("no round trips")
    })
}

/// Odd numbers go out, the next even one comes back.
fn serve(line: &AtomicU64, core: usize, end: Instant) -> Result<Vec<f64>> {
    pin(core)?;
    let mut value = 0;
    let mut samples = Vec::with_capacity(BATCHES);
    for batch in 0..=BATCHES {
        let start = Instant::now();
        for _ in 0..TRIPS {
            line.store(value + 1, Ordering::Release);
            wait_for(line, value + 2, end)?;
            value += 2;
        }
        // The first batch waits for the other thread to be there.
        if batch > 0 {
            samples.push(start.elapsed().as_nanos() as f64 / TRIPS as f64);
        }
    }
    Ok(samples)
}

fn echo(line: &AtomicU64, core: usize, end: Instant) -> Result<()> {
    pin(core)?;
    let trips = TRIPS * (BATCHES as u64 + 1);
    for trip in 0..trips {
        wait_for(line, trip * 2 + 1, end)?;
        line.store(trip * 2 + 2, Ordering::Release);
    }
    Ok(())
}

fn wait_for(line: &AtomicU64, value: u64, end: Instant) -> Result<()> {
    let mut spins = 0u32;
    while line.load(Ordering::Acquire) != value {
        spins = spins.wrapping_add(1);
        if spins.is_multiple_of(1 << 16) {
            ensure!(
                Instant::now() < end,
                "the two cores did not meet within {} s: something else holds one of them",
                PATIENCE.as_secs()
            );
        }
        spin_loop();
    }
    Ok(())
}

fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .with_context(|| format!("bind a thread to core {core}"))
}

/// The cores to measure on: those asked for, else the nearest two of the first few.
pub fn choose_cores(wanted: Option<(usize, usize)>) -> Result<(usize, usize)> {
    if let Some((first, second)) = wanted {
        ensure!(first != second, "two different cores are needed");
        return Ok((first, second));
    }
    let allowed = nix::sched::sched_getaffinity(Pid::from_raw(0)).context("read own cores")?;
    let cores: Vec<usize> = (0..CpuSet::count())
        .filter(|core| allowed.is_set(*core).unwrap_or(false))
        .take(CORES_TRIED)
        .collect();
    ensure!(
        cores.len() >= 2,
        "a data path is measured on two cores, and there is one"
    );
    nearest(&cores)
}

/// More cores than this are not tried: pairs grow with the square.
const CORES_TRIED: usize = 8;

fn nearest(cores: &[usize]) -> Result<(usize, usize)> {
    let mut best = (f64::INFINITY, (cores[0], cores[1]));
    for (at, first) in cores.iter().enumerate() {
        for second in &cores[at + 1..] {
            let pair = (*first, *second);
            let time = if cores.len() == 2 {
                0.0
            } else {
                round_trip_ns(pair)?
            };
            if time < best.0 {
                best = (time, pair);
            }
        }
    }
    Ok(best.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_cut_where_the_gaps_are() {
        let classes = Classes::of(&[210.0, 60.0, 55.0, 70.0, 190.0, 900.0]);
        assert_eq!(
            classes.ranges,
            [(55.0, 70.0), (190.0, 210.0), (900.0, 900.0)]
        );
        assert_eq!(classes.find(60.0), Some(0));
        assert_eq!(classes.find(200.0), Some(1));
        assert_eq!(classes.find(100.0), None);
    }

    #[test]
    fn one_class_where_nothing_differs_and_none_of_none() {
        assert_eq!(Classes::of(&[50.0, 51.0, 60.0]).ranges, [(50.0, 60.0)]);
        assert!(Classes::of(&[]).ranges.is_empty());
    }

    #[test]
    fn a_chain_of_small_steps_is_one_class() {
        let steps = [100.0, 130.0, 170.0, 220.0, 290.0];
        assert_eq!(Classes::of(&steps).ranges.len(), 1);
    }

    #[test]
    fn one_core_twice_is_refused() {
        assert!(choose_cores(Some((1, 1))).is_err());
        assert_eq!(choose_cores(Some((3, 1))).ok(), Some((3, 1)));
    }
}
