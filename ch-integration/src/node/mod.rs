//! `plover node`: one process per host. It puts the parts together: the poll core on a thread of
//! its own ([`setup`]), the driver of VMM and hasher on the main thread ([`driver`]), which follows
//! the core's commands through a sync ([`round`]), and a thread that answers `plover status`
//! ([`status`]). With `replication = "off"` it is only a network card ([`plain_nic`]).
//!
//! No packet and no page passes here.

mod card;
pub mod control;
mod driver;
mod hasher_process;
mod idle;
mod journal;
mod machine;
mod notices;
mod place;
mod plain_nic;
mod poll_thread;
mod ports;
mod ram_layout;
mod round;
mod setup;
pub mod status;
pub mod status_text;
mod verifier;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

use crate::config::{Config, NodeConfig};

/// Runs what `config` describes until it is told to stop (SIGTERM, SIGINT) or cannot go on.
///
/// # Errors
/// What could not be set up, or why it had to stop.
pub fn run(config: Config) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("watch for signals")?;
    }
    match config {
        Config::Node(config) => run_node(*config, &stop),
        Config::PlainNic(config) => plain_nic::run(&config, &stop),
    }
}

fn run_node(config: NodeConfig, stop: &Arc<AtomicBool>) -> Result<()> {
    let core = config.poll.core;
    let parts = setup::prepare(config)?;
    let poll_core = parts.poll_core;
    let poll_stop = Arc::clone(stop);
    let eal = parts.eal.clone();
    let poll_thread = poll_thread::start(core, stop, move || {
        // Without it every packet buffer comes from the pool's shared ring: slower, no more.
        let _cache = eal.register_thread();
        poll_core.run(&poll_stop);
    })?;
    let result = parts.driver.run(stop);
    stop.store(true, Ordering::Relaxed);
    if poll_thread.join().is_err() {
        anyhow::bail!("the poll core stopped by a panic; see the log above");
    }
    result
}
