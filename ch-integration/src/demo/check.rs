//! Computes a run's table from what it left behind, without asking anything that ran.
//!
//! What it does not verify: that the guests' memories are equal (the memory reader's work), and
//! writes whose reply never came (they may be there or not; both are right).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::events::{EventKind, NodeEvent, SyncRecord};
use super::history::{
    CLIENT_FILE, ClientEvent, EVENTS_FILE, KILLS_FILE, Kill, RUN_FILE, RunRecord, read_lines,
};
use super::outage::{self, Outage};

/// The hosts whose events are looked for.
const NODES: [&str; 3] = ["a", "b", "w"];
/// Losses that are listed one by one; the count has them all.
const LISTED_MAX: usize = 20;

/// All that a run left behind.
#[derive(Clone, Debug, Default)]
pub struct Records {
    /// What the run was.
    pub run: RunRecord,
    /// The client's history.
    pub client: Vec<ClientEvent>,
    /// The kills.
    pub kills: Vec<Kill>,
    /// The events of each node.
    pub nodes: BTreeMap<String, Vec<NodeEvent>>,
}

impl Records {
    /// Reads a run's folder. Only the client's history must be there.
    pub fn load(folder: &Path) -> Result<Self> {
        let client = read_lines(&folder.join(CLIENT_FILE))?;
        let kills_path = folder.join(KILLS_FILE);
        let kills = if kills_path.exists() {
            read_lines(&kills_path)?
        } else {
            Vec::new()
        };
        let mut nodes = BTreeMap::new();
        for node in NODES {
            let path = folder.join(node).join(EVENTS_FILE);
            if path.exists() {
                nodes.insert(node.to_owned(), read_lines(&path)?);
            }
        }
        let run = match std::fs::read(folder.join(RUN_FILE)) {
            Ok(text) => serde_json::from_slice(&text).context("parse run.json")?,
            Err(_) => RunRecord::default(),
        };
        Ok(Self {
            run,
            client,
            kills,
            nodes,
        })
    }
}

/// A run's table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What the run was.
    pub run: RunRecord,
    /// Requests sent.
    pub sent: u64,
    /// Requests acknowledged.
    pub acknowledged: u64,
    /// Of those, acknowledged after the (last) kill.
    pub acknowledged_after_kill: u64,
    /// Acknowledged, and gone or different (or, with the counter, taken back).
    pub lost: u64,
    /// Acknowledged, but never read back, so nobody knows.
    pub not_read_back: u64,
    /// Some of the lost, by name.
    pub lost_examples: Vec<String>,
    /// Connections in the history.
    pub connections: u64,
    /// Connections that ended before their work was done.
    pub broken_connections: u64,
    /// What they said.
    pub broken_reasons: Vec<String>,
    /// Median time between consecutive replies, without the outages.
    pub steady_gap_us: Option<u64>,
    /// Median time from request to reply.
    pub reply_median_us: Option<u64>,
    /// Each kill, and what it cost.
    pub outages: Vec<Outage>,
    /// The syncs.
    pub syncs: SyncSummary,
    /// All of the above is as it must be.
    pub ok: bool,
}

/// The syncs of a run, summed up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SyncSummary {
    /// Syncs that ended.
    pub ended: u64,
    /// Syncs that were aborted.
    pub aborted: u64,
    /// Why, with how often.
    pub abort_reasons: BTreeMap<String, u64>,
    /// Pages in the union, median of the delta syncs.
    pub union_median: Option<u64>,
    /// Divergent pages, median of the delta syncs.
    pub divergent_median: Option<u64>,
    /// Fraction of the unions' pages that were the same on both sides.
    pub same_page_rate: Option<f64>,
    /// Pause of a copy, median.
    pub pause_median_us: Option<u64>,
    /// Pause of a copy, longest.
    pub pause_max_us: Option<u64>,
    /// Bytes that the hashers sent in delta syncs, both directions.
    pub bytes_sent: u64,
    /// Bytes of all pages written in delta syncs.
    pub bytes_dirty: u64,
    /// Bytes that the hashers sent in fills.
    pub fill_bytes_sent: u64,
}

/// Checks a run.
pub fn check(records: &Records) -> Report {
    let mut report = Report {
        run: records.run.clone(),
        ..Report::default()
    };
    count_client(&records.client, &mut report);
    check_writes(&records.client, &mut report);
    check_counts(&records.client, &mut report);
    let replies = reply_times(&records.client);
    let kills = &records.kills;
    report.outages = kills
        .iter()
        .map(|kill| outage::of(kill, &replies, &records.nodes))
        .collect();
    if let Some(last) = kills.iter().map(|kill| kill.t_ns).max() {
        let after = replies.iter().filter(|t_ns| **t_ns > last).count();
        report.acknowledged_after_kill = u64::try_from(after).unwrap_or(u64::MAX);
    }
    report.steady_gap_us = median(gaps_us(&replies));
    report.syncs = sum_up_syncs(&records.nodes);
    report.ok = report.lost == 0
        && report.not_read_back == 0
        && report.broken_connections == 0
        && report.run.benchmark_failed.is_none()
        && report.acknowledged > 0
        && (kills.is_empty() || report.acknowledged_after_kill > 0);
    report
}

fn count_client(client: &[ClientEvent], report: &mut Report) {
    let mut connections = BTreeSet::new();
    let mut finished = BTreeSet::new();
    let mut round_trips = Vec::new();
    for event in client {
        match event {
            ClientEvent::Write {
                t_ns,
                acked_ns,
                conn,
                ..
            }
            | ClientEvent::Count {
                t_ns,
                acked_ns,
                conn,
                ..
            } => {
                report.sent += 1;
                connections.insert(*conn);
                if let Some(acked_ns) = acked_ns {
                    report.acknowledged += 1;
                    round_trips.push(acked_ns.saturating_sub(*t_ns) / 1000);
                }
            }
            ClientEvent::Broken { conn, error, .. } => {
                connections.insert(*conn);
                report
                    .broken_reasons
                    .push(format!("connection {conn}: {error}"));
            }
            ClientEvent::Done { conn, .. } => {
                finished.insert(*conn);
            }
            ClientEvent::Read { .. } => {}
        }
    }
    // A connection that the history forgets halfway counts as broken too.
    let all = connections.len().max(report.run.connections as usize);
    report.connections = u64::try_from(all).unwrap_or(u64::MAX);
    report.broken_connections = u64::try_from(all - finished.len().min(all)).unwrap_or(u64::MAX);
    report.reply_median_us = median(round_trips);
}

/// Every acknowledged write must have been read back with what was written.
fn check_writes(client: &[ClientEvent], report: &mut Report) {
    let mut read = BTreeMap::new();
    for event in client {
        if let ClientEvent::Read {
            conn, seq, value, ..
        } = event
        {
            read.insert((*conn, *seq), value.as_deref());
        }
    }
    for event in client {
        let ClientEvent::Write {
            conn,
            seq,
            value,
            acked_ns: Some(_),
            ..
        } = event
        else {
            continue;
        };
        match read.get(&(*conn, *seq)) {
            None => report.not_read_back += 1,
            Some(found) if *found == Some(value.as_str()) => {}
            Some(found) => {
                let found = found.unwrap_or("nothing");
                lose(
                    report,
                    format!("c{conn}:{seq} holds {found} instead of {value}"),
                );
            }
        }
    }
}

/// A count told to a client must stay: a request sent later gets a higher one.
fn check_counts(client: &[ClientEvent], report: &mut Report) {
    let mut told: Vec<(u64, u64, u64)> = Vec::new();
    for event in client {
        if let ClientEvent::Count {
            t_ns,
            acked_ns: Some(acked),
            counter: Some(counter),
            ..
        } = event
        {
            told.push((*t_ns, *acked, *counter));
        }
    }
    let mut by_reply: Vec<(u64, u64)> = told.iter().map(|(_, acked, n)| (*acked, *n)).collect();
    by_reply.sort_unstable();
    told.sort_unstable();
    let mut highest = 0;
    let mut replies = by_reply.into_iter().peekable();
    for (sent, _, counter) in told {
        while let Some((_, count)) = replies.next_if(|(acked, _)| *acked < sent) {
            highest = highest.max(count);
        }
        if counter <= highest {
            lose(
                report,
                format!("count {counter} after {highest} had been acknowledged"),
            );
        }
    }
}

fn lose(report: &mut Report, what: String) {
    report.lost += 1;
    if report.lost_examples.len() < LISTED_MAX {
        report.lost_examples.push(what);
    }
}

/// When replies to writes arrived, over all connections, in order.
fn reply_times(client: &[ClientEvent]) -> Vec<u64> {
    let mut times: Vec<u64> = client
        .iter()
        .filter_map(|event| match event {
            ClientEvent::Write { acked_ns, .. } | ClientEvent::Count { acked_ns, .. } => *acked_ns,
            _ => None,
        })
        .collect();
    times.sort_unstable();
    times
}

fn gaps_us(times: &[u64]) -> Vec<u64> {
    times
        .windows(2)
        .map(|pair| (pair[1] - pair[0]) / 1000)
        .collect()
}

/// The middle value; `None` of nothing.
pub fn median(mut values: Vec<u64>) -> Option<u64> {
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

fn sum_up_syncs(nodes: &BTreeMap<String, Vec<NodeEvent>>) -> SyncSummary {
    let mut summary = SyncSummary::default();
    let mut pauses = Vec::new();
    // Both replicas tell of a sync: each of its own pause and bytes, both of the same pages.
    let mut merged: BTreeMap<u64, SyncRecord> = BTreeMap::new();
    for event in nodes.values().flatten() {
        let EventKind::Sync(sync) = &event.kind else {
            continue;
        };
        if sync.pause_us > 0 && sync.kind != "fill" {
            pauses.push(sync.pause_us);
        }
        merged
            .entry(sync.sync)
            .and_modify(|known| merge(known, sync))
            .or_insert(sync.clone());
    }
    let (mut unions, mut divergents) = (Vec::new(), Vec::new());
    let (mut pages, mut different) = (0, 0);
    for sync in merged.values() {
        if sync.result != "ended" {
            summary.aborted += 1;
            let reason = sync
                .reason
                .clone()
                .unwrap_or_else(|| "no reason given".to_owned());
            *summary.abort_reasons.entry(reason).or_default() += 1;
        } else {
            summary.ended += 1;
        }
        if sync.kind == "fill" {
            summary.fill_bytes_sent += sync.bytes_sent;
            continue;
        }
        // What an aborted sync sent was sent too.
        summary.bytes_sent += sync.bytes_sent;
        if sync.result == "ended" {
            summary.bytes_dirty += sync.bytes_dirty;
            unions.push(sync.union);
            divergents.push(sync.divergent);
            pages += sync.union;
            different += sync.divergent;
        }
    }
    summary.union_median = median(unions);
    summary.divergent_median = median(divergents);
    summary.same_page_rate = (pages > 0).then(|| 1.0 - ratio(different, pages));
    summary.pause_max_us = pauses.iter().copied().max();
    summary.pause_median_us = median(pauses);
    summary
}

fn merge(known: &mut SyncRecord, other: &SyncRecord) {
    known.bytes_sent += other.bytes_sent;
    known.union = known.union.max(other.union);
    known.divergent = known.divergent.max(other.divergent);
    known.bytes_dirty = known.bytes_dirty.max(other.bytes_dirty);
    if other.result == "ended" {
        known.result.clone_from(&other.result);
    }
    if known.reason.is_none() {
        known.reason.clone_from(&other.reason);
    }
}

/// A quotient for display.
#[expect(
    clippy::cast_precision_loss,
    reason = "a ratio for people needs no 53 bits"
)]
pub fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

#[cfg(test)]
mod tests;
