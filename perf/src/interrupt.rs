//! SIGINT and SIGTERM end a measurement as an error does: what was started and reserved is undone.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

static ASKED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From here on the two signals are noted.
pub fn install() -> Result<()> {
    let flag = ASKED.get_or_init(Arc::default);
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, flag.clone()).context("note a signal")?;
    }
    Ok(())
}

/// An error once one of them has come.
pub fn check() -> Result<()> {
    let asked = ASKED.get().is_some_and(|flag| flag.load(Ordering::Relaxed));
    ensure!(!asked, "interrupted");
    Ok(())
}

/// Sleeps, but not through a signal.
pub fn sleep(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    loop {
        check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}
