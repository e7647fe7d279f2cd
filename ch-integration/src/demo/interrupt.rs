//! Ctrl-C: noticed, not obeyed at once, so that a run cleans up after itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;

/// Whether the user asked for the end.
#[derive(Clone, Debug)]
pub struct Interrupt {
    asked: Arc<AtomicBool>,
}

impl Interrupt {
    /// Watches for SIGINT, SIGTERM and SIGHUP. Call it before other threads start: they inherit
    /// the mask. A second signal ends the process where it is.
    pub fn watch() -> Result<Self> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            signals.add(signal);
        }
        signals.thread_block().context("block signals")?;
        let descriptor = SignalFd::new(&signals).context("make a signalfd")?;
        let asked = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&asked);
        std::thread::spawn(move || {
            while let Ok(Some(_)) = descriptor.read_signal() {
                if seen.swap(true, Ordering::Relaxed) {
                    eprintln!("plover demo: ended at once; `plover demo --clean` removes the rest");
                    std::process::exit(130);
                }
                eprintln!("\nplover demo: interrupted, cleaning up");
            }
        });
        Ok(Self { asked })
    }

    /// Has the user asked?
    pub fn asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// An error once the user has asked.
    pub fn check(&self) -> Result<()> {
        if self.asked() {
            bail!("interrupted");
        }
        Ok(())
    }

    /// Sleeps until `end`; an error if the user asks meanwhile.
    pub fn sleep_until(&self, end: Instant) -> Result<()> {
        loop {
            self.check()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
    }
}
