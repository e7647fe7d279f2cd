//! A card without a server: commands are posted by hand, on the thread that owns the card. For
//! fuzz targets and tests outside of this crate; nothing here runs in production.

use std::io;

use crossbeam_channel::{Receiver, bounded};

use crate::control::mailbox::{Answer, Caller, mailbox};
pub use crate::control::mailbox::{Command, MailboxError, Memory, RingSetup};
use crate::guest_nic::{FaultReport, GuestNic};
use crate::limits::FAULT_REPORTS;

/// The control side of a card, in the hand of a test.
pub struct Hand {
    caller: Caller,
    faults: Receiver<FaultReport>,
}

/// Makes a card and the hand that drives it.
///
/// # Errors
/// There is no eventfd left.
pub fn card() -> io::Result<(Hand, GuestNic)> {
    let (caller, callee) = mailbox()?;
    let (sender, faults) = bounded(FAULT_REPORTS);
    Ok((Hand { caller, faults }, GuestNic::new(callee, sender)))
}

impl Hand {
    /// Posts `command`; the card obeys it in its next `take_commands`.
    ///
    /// # Errors
    /// The mailbox is full, or the card is gone.
    pub fn post(&mut self, command: Command) -> Result<u64, MailboxError> {
        self.caller.post(command)
    }

    /// Answers that have come: the number of the request, and the ring's used index where it
    /// asked for one. What the commands replaced is dropped here, as the control thread does.
    pub fn answers(&self) -> impl Iterator<Item = (u64, u16)> {
        self.caller
            .answers()
            .map(|Answer { number, index, .. }| (number, index))
    }

    /// Faults that the card has reported since the last call.
    pub fn faults(&self) -> impl Iterator<Item = FaultReport> {
        self.faults.try_iter()
    }
}
