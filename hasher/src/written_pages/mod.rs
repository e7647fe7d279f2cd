//! Which pages this side wrote since the last completed sync, and the promise that none is
//! forgotten: collected pages stay pending until the round's end is known.
//!
//! Where the knowledge comes from is in the files beside this one: `uffd` (the VMM and its
//! vCPUs), `backend_log` (the vhost-user backend), `full` (nothing known: all memory).

pub mod backend_log;
pub mod full;
pub mod uffd;

use plover_types::SyncId;

use crate::error::chain;
use crate::page_set::{MemoryMap, PageSet};
use backend_log::BackendLog;
use full::FullScan;
use uffd::UffdTracker;

/// Where the VMM's own writes are learned from.
#[derive(Debug)]
pub enum Source {
    /// Write-protect tracking in the kernel.
    Userfaultfd(UffdTracker),
    /// No tracking: all memory, every round.
    FullScan(FullScan),
}

/// What a collect found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Pages that this side wrote, as far as it knows.
    pub pages: PageSet,
    /// The last sync since which it knows all; none if it lost track.
    pub base: Option<SyncId>,
    /// Why it lost track, if it did just now.
    pub lost: Option<String>,
}

/// The account of written pages of one side.
#[derive(Debug)]
pub struct WrittenPages {
    source: Source,
    backend: BackendLog,
    layout: MemoryMap,
    dirty: PageSet,
    pending: Option<Pending>,
    base: Option<SyncId>,
}

#[derive(Debug)]
struct Pending {
    sync: SyncId,
    pages: PageSet,
    tracked: bool,
}

impl WrittenPages {
    /// An account that knows nothing yet: its first union is all memory.
    #[must_use]
    pub fn new(source: Source, backend: BackendLog, layout: MemoryMap) -> Self {
        let dirty = PageSet::new();
        Self {
            source,
            backend,
            layout,
            dirty,
            pending: None,
            base: None,
        }
    }

    /// Goes on with what another account knew of the same memory, for a VMM that mapped it anew
    /// and has not run since.
    #[must_use]
    pub fn continuing(mut self, mut earlier: Self) -> Self {
        earlier.undo();
        self.dirty = earlier.dirty;
        self.base = earlier.base;
        self
    }

    /// Name of the source, and why it is not a better one.
    #[must_use]
    pub fn source(&self) -> (&'static str, Option<&str>) {
        match &self.source {
            Source::Userfaultfd(_) => ("userfaultfd", None),
            Source::FullScan(full) => ("full scan", Some(full.reason())),
        }
    }

    /// Takes what was written since the last collect. Marks are cleared first; whoever calls
    /// reads memory after, so that a write in between is in both rounds rather than in none.
    pub fn collect(&mut self, sync: SyncId) -> Written {
        self.undo();
        self.backend.take_into(&mut self.dirty);
        let mut lost = None;
        let tracked = match &mut self.source {
            Source::Userfaultfd(tracker) => match tracker.take_into(&mut self.dirty) {
                Ok(()) => true,
                Err(error) => {
                    lost = Some(chain(&error));
                    self.base = None;
                    // Marks are set anew while the VM is paused, so tracking can start over.
                    tracker.protect_anew().is_ok()
                }
            },
            Source::FullScan(_) => false,
        };
        self.dirty.intersect_with(self.layout.all());
        let pages = std::mem::take(&mut self.dirty);
        self.pending = Some(Pending {
            sync,
            pages: pages.clone(),
            tracked,
        });
        let base = self.base.filter(|_| tracked);
        Written { pages, base, lost }
    }

    /// The sync was completed: what it collected is equal on both sides now.
    pub fn complete(&mut self, sync: SyncId) {
        if self.base == Some(sync) && self.pending.is_none() {
            return;
        }
        match self.pending.take() {
            Some(pending) if pending.sync == sync => {
                self.base = pending.tracked.then_some(sync);
            }
            // Nothing was collected for this sync here (the round was before our time): what is
            // known does not start at it.
            other => {
                self.pending = other;
                self.base = None;
            }
        }
    }

    /// The round failed: what it collected is dirty again.
    pub fn undo(&mut self) {
        if let Some(pending) = self.pending.take() {
            self.dirty.union_with(&pending.pages);
        }
    }
}

#[cfg(test)]
mod tests {
    use plover_types::{LogIndex, PageIndex};

    use super::*;
    use crate::testing::memfd;

    fn account() -> (WrittenPages, BackendLog) {
        let layout = MemoryMap::new(&[(0, 100)]).expect("valid");
        let log = memfd(104);
        let ours = BackendLog::map(log.try_clone().expect("dup"), 100).expect("map");
        let backend = BackendLog::map(log, 100).expect("map");
        let source = Source::FullScan(FullScan::new("a test".to_owned()));
        (WrittenPages::new(source, ours, layout), backend)
    }

    fn sync(index: u64) -> SyncId {
        SyncId(LogIndex(index))
    }

    #[test]
    fn pages_of_a_failed_round_are_in_the_next_one() {
        let (mut account, backend) = account();
        backend.mark(PageIndex(3));
        assert_eq!(account.collect(sync(1)).pages.len(), 1);
        account.undo();
        backend.mark(PageIndex(70));
        let pages: Vec<u64> = account.collect(sync(2)).pages.iter().map(|p| p.0).collect();
        assert_eq!(pages, [3, 70]);
        account.complete(sync(2));
        assert!(account.collect(sync(3)).pages.is_empty());
    }

    #[test]
    fn completing_another_sync_keeps_the_pages() {
        let (mut account, backend) = account();
        backend.mark(PageIndex(3));
        account.collect(sync(1));
        account.complete(sync(9));
        assert_eq!(account.collect(sync(2)).pages.len(), 1);
    }

    #[test]
    fn pages_outside_the_guest_are_ignored() {
        let (mut account, backend) = account();
        backend.mark(PageIndex(103));
        assert!(account.collect(sync(1)).pages.is_empty());
    }
}
