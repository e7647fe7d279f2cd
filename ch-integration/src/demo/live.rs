//! What the nodes do right now, from the events they write: for the live line, for the wait
//! until the group is protected, and for a kill inside a step.

use std::path::Path;

use anyhow::Result;

use super::events::{EventKind, EventTail, NodeEvent, SyncRecord};
use super::history::EVENTS_FILE;
use super::network::Host;
use super::table::{bytes, micros};

/// The group as its nodes' events show it.
pub struct GroupView {
    tails: [(Host, EventTail); 3],
    /// Generation of the newest role.
    pub generation: u64,
    /// The primary, if a role names one.
    pub primary: Option<Host>,
    /// Do two copies stand for the VM?
    pub protected: bool,
    /// The newest sync's record.
    last_sync: Option<SyncRecord>,
    ended: u64,
    aborted: u64,
}

impl GroupView {
    /// Follows the nodes of a run.
    pub fn new(run_dir: &Path) -> Self {
        let tail = |host: Host| {
            (
                host,
                EventTail::new(&run_dir.join(host.name()).join(EVENTS_FILE)),
            )
        };
        Self {
            tails: Host::ALL.map(tail),
            generation: 0,
            primary: None,
            protected: false,
            last_sync: None,
            ended: 0,
            aborted: 0,
        }
    }

    /// Takes in what was written since, and hands it out.
    pub fn update(&mut self) -> Result<Vec<(Host, NodeEvent)>> {
        let mut news = Vec::new();
        for (host, tail) in &mut self.tails {
            let host = *host;
            news.extend(tail.poll()?.into_iter().map(|event| (host, event)));
        }
        news.sort_by_key(|(_, event)| event.t_ns);
        for (host, event) in &news {
            self.take(*host, event);
        }
        Ok(news)
    }

    fn take(&mut self, host: Host, event: &NodeEvent) {
        match &event.kind {
            EventKind::Role {
                generation,
                primary,
                mode,
                valid,
            } if *generation >= self.generation => {
                self.generation = *generation;
                self.primary = primary.and_then(Host::from_id);
                self.protected = mode == "protected" && valid.len() >= 2;
            }
            EventKind::Sync(sync) if self.primary.is_none_or(|primary| primary == host) => {
                match sync.result.as_str() {
                    "ended" => self.ended += 1,
                    _ => self.aborted += 1,
                }
                self.last_sync = Some(sync.clone());
            }
            _ => {}
        }
    }

    /// One line on the group's state.
    pub fn line(&self) -> String {
        let primary = self.primary.map_or("none", Host::name);
        let mode = if self.protected {
            "protected"
        } else {
            "UNPROTECTED"
        };
        let mut line = format!("primary {primary} {mode} (generation {})", self.generation);
        if let Some(sync) = &self.last_sync {
            line.push_str(&format!(
                " | epoch {} ({} syncs, {} aborted): {} dirty pages, {} divergent, {} sent, \
                 pause {}, {} held",
                sync.sync,
                self.ended,
                self.aborted,
                sync.union,
                sync.divergent,
                bytes(sync.bytes_sent),
                micros(Some(sync.pause_us)),
                sync.held,
            ));
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_role_decides_whichever_node_told_it() {
        let run = tempfile::tempdir().unwrap();
        for host in Host::ALL {
            std::fs::create_dir(run.path().join(host.name())).unwrap();
        }
        let mut view = GroupView::new(run.path());
        view.update().unwrap();
        assert!(!view.protected);
        let protected = r#"{"t_ns":5,"event":"role","generation":2,"primary":1,"mode":"protected","valid":[1,2]}"#;
        let older = r#"{"t_ns":6,"event":"role","generation":1,"primary":2,"mode":"unprotected","valid":[2]}"#;
        std::fs::write(run.path().join("a/events.jsonl"), format!("{protected}\n")).unwrap();
        std::fs::write(run.path().join("w/events.jsonl"), format!("{older}\n")).unwrap();
        view.update().unwrap();
        assert!(view.protected, "{}", view.line());
        assert_eq!(view.primary, Some(Host::A));
    }
}
