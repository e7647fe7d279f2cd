//! The table at the end of a run, for people.

use std::fmt;

use super::check::{Report, SyncSummary, ratio};
use super::outage::Outage;

/// A report as text.
pub struct Table<'a>(pub &'a Report);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        writeln!(f)?;
        if !report.run.vmm.is_empty() {
            let by = if report.run.kvm {
                "KVM"
            } else {
                "emulation (TCG)"
            };
            row(f, "VMM", format!("{}, by {by}", report.run.vmm))?;
            row(f, "guest", &report.run.guest)?;
        }
        row(f, "requests acknowledged", report.acknowledged)?;
        row(f, "requests lost", report.lost)?;
        if report.not_read_back > 0 {
            row(f, "acknowledged, not read back", report.not_read_back)?;
        }
        let connections = format!("{} of {}", report.broken_connections, report.connections);
        row(f, "connections broken", connections)?;
        row(f, "time to a reply, median", micros(report.reply_median_us))?;
        for outage in &report.outages {
            write_outage(f, outage, report)?;
        }
        write_syncs(f, &report.syncs)?;
        if let Some(why) = &report.run.benchmark_failed {
            row(f, "BROKEN", format!("redis-benchmark: {why}"))?;
        }
        for example in &report.lost_examples {
            row(f, "LOST", example)?;
        }
        for reason in &report.broken_reasons {
            row(f, "BROKEN", reason)?;
        }
        let verdict = if report.ok {
            "nothing acknowledged was lost"
        } else {
            "FAILED"
        };
        row(f, "verdict", verdict)
    }
}

fn write_outage(f: &mut fmt::Formatter<'_>, outage: &Outage, report: &Report) -> fmt::Result {
    let survivor = outage.survivor.as_deref().unwrap_or("nobody");
    let inside: Vec<String> = outage
        .inside
        .iter()
        .map(|(node, step)| format!("{step} on {node}"))
        .collect();
    let at = if inside.is_empty() {
        "between syncs".to_owned()
    } else {
        format!("inside a sync: {}", inside.join(", "))
    };
    row(
        f,
        "killed",
        format!("host {}, {at}; {survivor} serves on", outage.node),
    )?;
    row(f, "time without service", micros(outage.gap_us))?;
    row(f, "  detection", micros(outage.detection_us))?;
    if let Some(us) = outage.heartbeat_to_campaign_us {
        let setting = report.run.detection_ms;
        let text = format!("{} (detection_ms {setting})", micros(Some(us)));
        row(f, "  (last heartbeat to campaign)", text)?;
    }
    row(f, "  election", micros(outage.election_us))?;
    row(f, "  takeover", micros(outage.takeover_us))?;
    row(f, "  first answer", micros(outage.first_answer_us))?;
    if let Some(segments) = report.run.client_retransmits {
        row(
            f,
            "  (client's TCP sent again)",
            format!("{segments} segments in the whole run"),
        )?;
    }
    row(f, "replies after the kill", report.acknowledged_after_kill)?;
    row(f, "between replies, median", micros(report.steady_gap_us))
}

fn write_syncs(f: &mut fmt::Formatter<'_>, syncs: &SyncSummary) -> fmt::Result {
    row(
        f,
        "syncs",
        format!("{} ended, {} aborted", syncs.ended, syncs.aborted),
    )?;
    for (reason, times) in &syncs.abort_reasons {
        row(f, "  aborted", format!("{times} x {reason}"))?;
    }
    if let (Some(union), Some(divergent)) = (syncs.union_median, syncs.divergent_median) {
        let text = format!("{union} written, {divergent} different (medians)");
        row(f, "pages in a sync", text)?;
    }
    if let Some(rate) = syncs.same_page_rate {
        row(f, "same-page rate", format!("{:.1} %", rate * 100.0))?;
    }
    if let (Some(median), Some(longest)) = (syncs.pause_median_us, syncs.pause_max_us) {
        let text = format!(
            "{} (longest {})",
            micros(Some(median)),
            micros(Some(longest))
        );
        row(f, "pause, median", text)?;
    }
    if syncs.bytes_dirty > 0 {
        let (sent, dirty) = (syncs.bytes_sent, syncs.bytes_dirty);
        let times = if sent > 0 { ratio(dirty, sent) } else { 0.0 };
        let text = format!("{} against {} ({times:.1} x)", bytes(sent), bytes(dirty));
        row(f, "bytes sent / dirty pages", text)?;
    }
    Ok(())
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, value: impl fmt::Display) -> fmt::Result {
    writeln!(f, "  {name:<30} {value}")
}

/// A time for people.
pub fn micros(us: Option<u64>) -> String {
    match us {
        None => "not known".to_owned(),
        Some(us) if us < 10_000 => format!("{:.2} ms", ratio(us, 1000)),
        Some(us) => format!("{} ms", us / 1000),
    }
}

/// A number of bytes for people.
pub fn bytes(count: u64) -> String {
    match count {
        0..10_000 => format!("{count} B"),
        10_000..10_000_000 => format!("{} kB", count / 1000),
        _ => format!("{:.1} MB", ratio(count, 1_000_000)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_what_failed() {
        let report = Report {
            lost: 1,
            lost_examples: vec!["c0:7 holds nothing instead of x".to_owned()],
            ..Report::default()
        };
        let text = Table(&report).to_string();
        assert!(text.contains("FAILED") && text.contains("c0:7"), "{text}");
        assert!(
            text.lines()
                .any(|line| { line.starts_with("  requests lost") && line.ends_with(" 1") })
        );
    }
}
