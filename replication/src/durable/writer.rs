//! The thread that writes the durable log, so that the poll core never waits for a disk.
//!
//! Requests wait in a bounded channel; all that wait are written as one record with one sync.

use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError};

use super::{DurableError, DurableLog, PersistRequest};

/// Requests that may wait. A disk that is this many behind is as good as down; the node stops
/// acknowledging, and the group goes on without it.
pub const REQUESTS_WAITING_MAX: usize = 1024;

/// Requests that are written as one record, and its bytes: one record has to fit a file.
const BATCH_REQUESTS_MAX: usize = 256;
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Why a request was not taken. It is handed back.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The disk is too far behind; try again later.
    #[error("{REQUESTS_WAITING_MAX} requests wait for the durable log already")]
    Full(Box<PersistRequest>),
    /// Writing has failed for good; [`DurableWriter::completed`] said why.
    #[error("the durable log takes no more requests")]
    Stopped(Box<PersistRequest>),
}

/// A handle of the writing thread. Dropping it lets the thread finish what was submitted.
#[derive(Debug)]
pub struct DurableWriter {
    requests: Option<Sender<PersistRequest>>,
    completions: Receiver<Result<u64, DurableError>>,
    thread: Option<JoinHandle<()>>,
    failed: bool,
}

impl DurableWriter {
    /// Starts the thread.
    ///
    /// # Errors
    /// The kernel starts no thread.
    pub fn start(log: DurableLog) -> Result<Self, DurableError> {
        let (requests, waiting) = crossbeam_channel::bounded(REQUESTS_WAITING_MAX);
        // At most one completion per request, and requests are bounded by those waiting plus a
        // batch: the thread cannot run far ahead of a caller that takes none.
        let (done, completions) = crossbeam_channel::unbounded();
        let thread = std::thread::Builder::new()
            .name("plover-log".to_owned())
            .spawn(move || write_all(log, &waiting, &done))
            .map_err(DurableError::Thread)?;
        Ok(Self {
            requests: Some(requests),
            completions,
            thread: Some(thread),
            failed: false,
        })
    }

    #[cfg(test)]
    pub(super) fn of_channels(
        requests: Sender<PersistRequest>,
        completions: Receiver<Result<u64, DurableError>>,
    ) -> Self {
        Self {
            requests: Some(requests),
            completions,
            thread: None,
            failed: false,
        }
    }

    /// Hands a request over. Never blocks.
    ///
    /// # Errors
    /// Too many wait, or writing has failed for good. The request comes back.
    pub fn submit(&self, request: PersistRequest) -> Result<(), SubmitError> {
        let Some(requests) = &self.requests else {
            return Err(SubmitError::Stopped(Box::new(request)));
        };
        requests.try_send(request).map_err(|error| match error {
            TrySendError::Full(request) => SubmitError::Full(Box::new(request)),
            TrySendError::Disconnected(request) => SubmitError::Stopped(Box::new(request)),
        })
    }

    /// What was finished since the last call, if anything: all requests up to this number are on
    /// disk; or why nothing more will be. The error comes once. Never blocks.
    pub fn completed(&mut self) -> Option<Result<u64, DurableError>> {
        let mut latest = None;
        loop {
            match self.completions.try_recv() {
                Ok(Ok(number)) => latest = Some(Ok(number)),
                Ok(Err(error)) => {
                    self.failed = true;
                    return Some(Err(error));
                }
                Err(TryRecvError::Empty) => return latest,
                Err(TryRecvError::Disconnected) if latest.is_none() && !self.failed => {
                    self.failed = true;
                    return Some(Err(DurableError::Stopped));
                }
                Err(TryRecvError::Disconnected) => return latest,
            }
        }
    }
}

impl Drop for DurableWriter {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // It ends once the channel is empty; if it panicked there is nobody left to tell.
            let _ = thread.join();
        }
    }
}

fn write_all(
    mut log: DurableLog,
    waiting: &Receiver<PersistRequest>,
    done: &Sender<Result<u64, DurableError>>,
) {
    let mut batch = Vec::with_capacity(BATCH_REQUESTS_MAX);
    while let Ok(first) = waiting.recv() {
        let mut number = first.number;
        let mut bytes = bytes_of(&first);
        batch.push(first);
        while batch.len() < BATCH_REQUESTS_MAX && bytes < BATCH_BYTES_MAX {
            let Ok(next) = waiting.try_recv() else { break };
            number = next.number;
            bytes += bytes_of(&next);
            batch.push(next);
        }
        let result = log.append(&batch).map(|()| number);
        batch.clear();
        let failed = result.is_err();
        if done.send(result).is_err() || failed {
            return;
        }
    }
}

fn bytes_of(request: &PersistRequest) -> usize {
    request.entries.iter().map(|entry| entry.data.len()).sum()
}
