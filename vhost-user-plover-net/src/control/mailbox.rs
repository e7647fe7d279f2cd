//! The mailbox between the control thread and the poll core: commands one way, answers back.
//! The core takes commands between bursts and never waits; the control thread waits for each
//! answer. What a command replaces travels back in its answer, so that the core frees nothing.

use std::sync::Arc;
use std::time::Instant;

use arrayvec::ArrayVec;
use crossbeam_channel::{Receiver, Sender, bounded};
use thiserror::Error;

use crate::event_fd::EventFd;
use crate::limits::{CORE_ANSWER_TIMEOUT, MAILBOX_REQUESTS, QUEUE_PAIRS_MAX};
use crate::ring::{GuestMap, RingFeatures, RingId, RingLayout, WrittenPages};

/// What the control thread asks of the core.
pub enum Command {
    /// A VMM has connected.
    Connect,
    /// The VMM is gone: stop everything, forget its memory.
    Disconnect,
    /// From now on this is guest memory.
    SetMemory(Memory),
    /// Start a ring, at the used index found in guest memory.
    StartRing(RingId, RingSetup),
    /// Enable or disable a ring. Disabling drains the transmit ring first, while there is room.
    EnableRing(RingId, bool),
    /// Signal the guest through another fd.
    SetCall(RingId, Option<EventFd>),
    /// Stop a ring and say where. Drains the transmit ring first, while there is room.
    StopRing(RingId),
    /// Whether the VMM wants its own log of what we write.
    LogForVmm(bool),
}

/// Guest memory and the log of what is written to it.
pub struct Memory {
    /// The flat table.
    pub map: Arc<GuestMap>,
    /// The bitmap, at least as long as the map.
    pub written: Arc<WrittenPages>,
}

/// What a ring is started with.
pub struct RingSetup {
    /// Where it lies.
    pub layout: RingLayout,
    /// What was negotiated.
    pub features: RingFeatures,
    /// Whether it may run at once.
    pub enabled: bool,
    /// The guest's kicks.
    pub kick: EventFd,
    /// Calls to the guest. None: the guest polls.
    pub call: Option<EventFd>,
}

/// Fds of all rings of a card: a kick and a call each.
const RING_FDS_MAX: usize = 2 * 2 * QUEUE_PAIRS_MAX;

/// What a command replaced. The control thread drops it.
#[derive(Default)]
pub struct Replaced {
    /// A former memory table.
    pub memory: Option<Memory>,
    /// Fds of rings.
    pub fds: ArrayVec<EventFd, RING_FDS_MAX>,
}

/// A command with the number that its answer will carry.
pub struct Request {
    /// Counts up.
    pub number: u64,
    /// What is asked.
    pub command: Command,
}

/// The core's answer.
pub struct Answer {
    /// Number of the request.
    pub number: u64,
    /// The ring's used index, for [`Command::StopRing`].
    pub index: u16,
    /// What the command replaced.
    pub replaced: Replaced,
}

/// The core did not answer.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum MailboxError {
    /// Not in time.
    #[error("the poll core did not answer within {} s", CORE_ANSWER_TIMEOUT.as_secs())]
    Silent,
    /// It ended.
    #[error("the poll core has ended")]
    Gone,
}

/// The control thread's end.
pub struct Caller {
    requests: Sender<Request>,
    answers: Receiver<Answer>,
    doorbell: Arc<EventFd>,
    next_number: u64,
}

/// The core's end.
pub struct Callee {
    requests: Receiver<Request>,
    answers: Sender<Answer>,
    doorbell: Arc<EventFd>,
}

/// A mailbox.
pub fn mailbox() -> std::io::Result<(Caller, Callee)> {
    let (request_sender, request_receiver) = bounded(MAILBOX_REQUESTS);
    let (answer_sender, answer_receiver) = bounded(MAILBOX_REQUESTS);
    let doorbell = Arc::new(EventFd::new()?);
    let caller = Caller {
        requests: request_sender,
        answers: answer_receiver,
        doorbell: Arc::clone(&doorbell),
        next_number: 0,
    };
    Ok((
        caller,
        Callee {
            requests: request_receiver,
            answers: answer_sender,
            doorbell,
        },
    ))
}

impl Caller {
    /// Posts `command`, waits for the core's answer and drops what it replaced. Returns the
    /// ring's used index where the command asks for one.
    pub fn call(&mut self, command: Command) -> Result<u16, MailboxError> {
        let number = self.post(command)?;
        let deadline = Instant::now() + CORE_ANSWER_TIMEOUT;
        loop {
            let answer = self.answers.recv_deadline(deadline).map_err(|error| {
                if error.is_timeout() {
                    MailboxError::Silent
                } else {
                    MailboxError::Gone
                }
            })?;
            // Older numbers are answers that an earlier call gave up on.
            let Answer {
                number: answered,
                index,
                replaced,
            } = answer;
            drop(replaced);
            if answered == number {
                return Ok(index);
            }
        }
    }

    /// Posts `command` and rings. Returns the number that its answer will carry.
    pub(crate) fn post(&mut self, command: Command) -> Result<u64, MailboxError> {
        let number = self.next_number;
        self.next_number += 1;
        self.requests
            .try_send(Request { number, command })
            .map_err(|error| {
                if error.is_disconnected() {
                    MailboxError::Gone
                } else {
                    MailboxError::Silent
                }
            })?;
        self.doorbell.signal();
        Ok(number)
    }

    /// Answers that are there, without waiting.
    #[cfg(feature = "testing")]
    pub(crate) fn answers(&self) -> impl Iterator<Item = Answer> {
        self.answers.try_iter()
    }
}

impl Callee {
    /// The next command, if there is one.
    #[inline]
    pub fn take(&self) -> Option<Request> {
        // Without a control thread there are no commands; the rings go on.
        self.requests.try_recv().ok()
    }

    /// Whether no command waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Answers a request. False if nobody waits for it any more.
    #[must_use]
    pub fn answer(&self, answer: Answer) -> bool {
        self.answers.try_send(answer).is_ok()
    }

    /// Readable when a command was posted.
    #[must_use]
    pub fn doorbell(&self) -> &EventFd {
        &self.doorbell
    }
}
