//! etcd as Debian ships it, to hold ours against: a Raft over TCP that many run. Three members on
//! loopback, their data in a tmpfs so that no disk is waited for, and a client of ours that speaks
//! gRPC to the leader. What it counts is what a client sees: the value is put, a quorum has it.

mod grpc;
mod members;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use self::grpc::Client;
use self::members::Members;
use super::commits::{add_latencies, add_rate, entry_bytes};
use super::samples::Samples;
use crate::interrupt;
use crate::measured::Measured;

/// Puts that are under way at once when they are pipelined.
const UNDER_WAY: usize = 64;

/// Measures all of it, on the two cores.
pub fn run(cores: (usize, usize), is_quick: bool) -> Result<Vec<Measured>> {
    bind(cores)?;
    let (rounds, commits) = if is_quick { (3, 500) } else { (5, 2_000) };
    let members = Members::start()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime")?;
    let mut samples = Samples::default();
    runtime.block_on(async {
        let client = Client::connect(members.leader()?).await?;
        put_all(&client, &entry_bytes(1), commits, UNDER_WAY).await?;
        for _ in 0..rounds {
            for packets in [1, 32] {
                interrupt::check()?;
                let of = format!("etcd/{packets}x{}", super::PACKET_BYTES);
                let value = entry_bytes(packets);
                let latencies = one_by_one(&client, &value, commits).await?;
                add_latencies(&latencies, &of, &mut samples);
                let many = commits * 4;
                let time = put_all(&client, &value, many, UNDER_WAY).await?;
                add_rate(many, time, &of, &mut samples);
            }
        }
        Ok::<(), anyhow::Error>(())
    })?;
    let mut rows = samples.rows();
    for row in &mut rows {
        row.commands = members.commands();
    }
    Ok(rows)
}

/// Seconds that each put took, one after another.
async fn one_by_one(client: &Client, value: &Bytes, commits: usize) -> Result<Vec<f64>> {
    let mut latencies = Vec::with_capacity(commits);
    for number in 0..commits {
        let start = Instant::now();
        client.put(number as u64, value).await?;
        latencies.push(start.elapsed().as_secs_f64());
    }
    Ok(latencies)
}

/// How long so many puts take when so many are under way at once.
async fn put_all(
    client: &Client,
    value: &Bytes,
    commits: usize,
    at_once: usize,
) -> Result<Duration> {
    let start = Instant::now();
    let client = Arc::new(client.clone());
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..at_once {
        let (client, value) = (Arc::clone(&client), value.clone());
        tasks.spawn(async move {
            for number in (task..commits).step_by(at_once) {
                client.put(number as u64, &value).await?;
            }
            Ok::<(), anyhow::Error>(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.context("a client's task")??;
    }
    Ok(start.elapsed())
}

/// This process and those that it starts stay on these cores.
fn bind(cores: (usize, usize)) -> Result<()> {
    ensure!(cores.0 != cores.1, "two different cores are needed");
    let mut set = CpuSet::new();
    set.set(cores.0)
        .and_then(|()| set.set(cores.1))
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .context("bind to two cores")
}
