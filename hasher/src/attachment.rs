//! What a node handed over: the guest's memory, the logs of written pages, the staging file, and
//! what is remembered between rounds. No IO with the peer here.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use plover_types::SyncId;

use crate::control::{Attach, Side};
use crate::error::{AttachError, StageError, chain};
use crate::guest_memory::GuestMemory;
use crate::limits::{DEVICE_STATE_BYTES_MAX, GROUP_NAME_BYTES_MAX};
use crate::stage::{Stage, StageHeader, StagedBody};
use crate::written_pages::backend_log::BackendLog;
use crate::written_pages::full::FullScan;
use crate::written_pages::uffd::UffdTracker;
use crate::written_pages::{Source, WrittenPages};

/// Guest memory and all that belongs to it. A round borrows `written` and `stage` while it runs.
#[derive(Debug)]
pub struct Attachment {
    /// The guest's memory.
    pub memory: Arc<GuestMemory>,
    /// The account of written pages.
    pub written: Option<WrittenPages>,
    /// The staging file.
    pub stage: Option<Stage>,
    /// The next round sends its union whole.
    pub whole_next: bool,
    /// Where the next slice of pages thought untouched starts.
    pub slice_cursor: u64,
    /// The staged set that this process knows of; one that it finds is another process's.
    pub known_staged: Option<SyncId>,
}

impl Attachment {
    /// Maps everything. `earlier` is what was attached before; if the node says that the VMM's
    /// new mapping goes on from it, and the layout is the same, its account is kept.
    ///
    /// # Errors
    /// Names the descriptor or region that is missing or wrong.
    pub fn new(
        attach: &Attach,
        fds: Vec<OwnedFd>,
        earlier: Option<Self>,
    ) -> Result<Self, AttachError> {
        if attach.group.is_empty() || attach.group.len() > GROUP_NAME_BYTES_MAX {
            return Err(AttachError::Group(attach.group.len()));
        }
        let mut fds = fds.into_iter();
        let files: Vec<_> = fds.by_ref().take(attach.regions.len()).collect();
        if files.len() < attach.regions.len() {
            return Err(AttachError::MissingFd("a memory region"));
        }
        let log = fds
            .next()
            .ok_or(AttachError::MissingFd("the backend's log"))?;
        let staging = fds
            .next()
            .ok_or(AttachError::MissingFd("the staging file"))?;
        let memory = Arc::new(GuestMemory::map(&attach.regions, files)?);
        let backend = BackendLog::map(log, memory.layout().end())?;
        let source = source(attach.tracked_pid, &mut fds, &memory)?;
        let layout = memory.layout().clone();
        let mut new = Self {
            written: None,
            stage: Some(Stage::new(staging)),
            whole_next: false,
            slice_cursor: 0,
            known_staged: None,
            memory,
        };
        let mut written = WrittenPages::new(source, backend, layout.clone());
        if let Some(earlier) = earlier.filter(|earlier| *earlier.memory.layout() == layout) {
            new.whole_next = earlier.whole_next;
            new.slice_cursor = earlier.slice_cursor;
            new.known_staged = earlier.known_staged;
            if let Some(account) = earlier.written.filter(|_| attach.continues) {
                written = written.continuing(account);
            }
        }
        new.written = Some(written);
        Ok(new)
    }

    /// Name of the source of written pages, and why it is not a better one.
    #[must_use]
    pub fn tracker(&self) -> (&'static str, Option<&str>) {
        self.written
            .as_ref()
            .map_or(("in use", None), WrittenPages::source)
    }

    /// A whole staged set that another process left, if there is one.
    pub fn found_staged(&mut self) -> Option<(StageHeader, StagedBody)> {
        let found = self.stage.as_ref()?.open(self.memory.layout());
        match found {
            Ok((header, _)) if self.known_staged == Some(header.sync) => None,
            Ok(found) => {
                self.known_staged = Some(found.0.sync);
                Some(found)
            }
            Err(StageError::Empty(_)) => None,
            Err(error) => {
                tracing::warn!(
                    error = chain(&error),
                    "the staging file's content is not used"
                );
                None
            }
        }
    }

    /// Writes what is staged for this sync into memory. Returns the number of pages.
    ///
    /// # Errors
    /// If nothing is staged, or for another sync, or the set is damaged; nothing was written then.
    pub fn apply(&mut self, sync: SyncId) -> Result<usize, StageError> {
        let stage = self
            .stage
            .as_ref()
            .ok_or(StageError::Empty("a round is under way"))?;
        let (header, body) = stage.open(self.memory.layout())?;
        if header.sync != sync {
            return Err(StageError::OtherSync {
                staged: header.sync,
                wanted: sync,
            });
        }
        body.apply(&self.memory)
    }

    /// The sync was committed. A primary's slice of `slice_pages` was checked by it.
    pub fn completed(&mut self, sync: SyncId, side: Side, slice_pages: u64) {
        if let Some(written) = &mut self.written {
            written.complete(sync);
        }
        self.whole_next = false;
        if side == Side::Primary {
            let pages = self.memory.layout().pages();
            self.slice_cursor = (self.slice_cursor + slice_pages) % pages;
        }
    }

    /// The sync was given up after its round ended well.
    pub fn give_up(&mut self) {
        if let Some(written) = &mut self.written {
            written.undo();
        }
        self.known_staged = None;
        if let Some(Err(error)) = self.stage.as_mut().map(Stage::clear) {
            tracing::error!(error = chain(&error), "what was staged cannot be dropped");
        }
    }
}

fn source(
    tracked_pid: Option<u32>,
    fds: &mut impl Iterator<Item = OwnedFd>,
    memory: &GuestMemory,
) -> Result<Source, AttachError> {
    let Some(pid) = tracked_pid else {
        let reason = "no userfaultfd of a VMM that maps it was given".to_owned();
        return Ok(Source::FullScan(FullScan::new(reason)));
    };
    let uffd = fds
        .next()
        .ok_or(AttachError::MissingFd("the userfaultfd"))?;
    let pidfd = fds
        .next()
        .ok_or(AttachError::MissingFd("the VMM's pidfd"))?;
    Ok(
        match UffdTracker::start(uffd, pidfd, pid, memory.extents().collect()) {
            Ok(tracker) => Source::Userfaultfd(tracker),
            Err(error) => {
                let reason = chain(&error);
                tracing::warn!(
                    reason,
                    "written pages cannot be tracked: comparing all memory"
                );
                Source::FullScan(FullScan::new(reason))
            }
        },
    )
}

/// Reads a device state that the node passed as a file.
///
/// # Errors
/// If there is no file, or it is too long or cannot be read.
pub fn read_state(fds: Vec<OwnedFd>) -> Result<Vec<u8>, AttachError> {
    let file = fds
        .into_iter()
        .next()
        .ok_or(AttachError::MissingFd("the device state"))?;
    let file = File::from(file);
    let io = |doing| move |source| AttachError::Io { doing, source };
    let length = file
        .metadata()
        .map_err(io("examine the device state"))?
        .len();
    let fits = usize::try_from(length)
        .ok()
        .filter(|bytes| *bytes <= DEVICE_STATE_BYTES_MAX);
    let Some(bytes) = fits else {
        let need = DEVICE_STATE_BYTES_MAX as u64;
        return Err(AttachError::Regions(format!(
            "device state of {length} bytes, over {need}"
        )));
    };
    let mut state = vec![0; bytes];
    file.read_exact_at(&mut state, 0)
        .map_err(io("read the device state"))?;
    Ok(state)
}

/// A file with a device state, to be passed to the node.
///
/// # Errors
/// If it cannot be created or written.
pub fn state_file(state: &[u8]) -> Result<OwnedFd, AttachError> {
    let io = |source| AttachError::Io {
        doing: "write the device state",
        source,
    };
    let file = memfd_create("plover-device-state", MFdFlags::MFD_CLOEXEC)
        .map_err(|error| io(error.into()))?;
    let mut file = File::from(file);
    file.write_all(state).map_err(io)?;
    Ok(file.into())
}
