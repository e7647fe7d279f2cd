//! `plover node`: one process per host. It puts the parts together: the poll core on a thread of
//! its own ([`setup`]), the driver of VMM and hasher on the main thread ([`driver`]), which follows
//! the core's commands through a sync ([`round`]), and a thread that answers `plover status`
//! ([`status`]).
//!
//! No packet and no page passes here.

mod card;
mod driver;
mod hasher_process;
mod idle;
mod journal;
mod machine;
mod ram_layout;
mod round;
mod setup;
pub mod status;
mod verifier;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

use crate::config::NodeConfig;

/// Runs a node until it is told to stop (SIGTERM, SIGINT) or cannot go on.
///
/// # Errors
/// What could not be set up, or why the node had to stop.
pub fn run(config: NodeConfig) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("watch for signals")?;
    }
    let core = config.poll.core;
    let parts = setup::prepare(config)?;
    let poll_stop = Arc::clone(&stop);
    let poll_core = parts.poll_core;
    let poll_thread = std::thread::Builder::new()
        .name("plover-poll".to_owned())
        .spawn(move || {
            setup::prepare_poll_thread(core);
            poll_core.run(&poll_stop);
            // Whatever ended the core ends the node: a primary without it is a dead primary.
            poll_stop.store(true, Ordering::Relaxed);
        })
        .context("start the poll thread")?;
    let result = parts.driver.run(&stop);
    stop.store(true, Ordering::Relaxed);
    if poll_thread.join().is_err() {
        anyhow::bail!("the poll core stopped by a panic; see the log above");
    }
    result
}
