//! How a core that found nothing to do sleeps: until a kick, a command, an interrupt of a port, or
//! a bound. Shared by the cores; when one sleeps is its own decision.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use arrayvec::ArrayVec;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use crate::event_fd::EventFd;
use crate::guest_nic::GuestNic;
use crate::limits::{CARD_WAKE_FDS_MAX, INTERRUPT_SLEEP};

/// Ports of a core: the one to the peers, the one to the clients.
const PORTS_MAX: usize = 2;

/// Fds that a sleeping core waits for: command bell, ports, the card's.
const WAITS_MAX: usize = 1 + PORTS_MAX + CARD_WAKE_FDS_MAX;

/// How long a core sleeps at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Longest {
    /// Where a port has no interrupt.
    pub(crate) idle: Duration,
    /// Until something is due without anybody asking.
    pub(crate) due: Duration,
}

/// Sleeps, unless the guest has work already. `interrupts` are the ports' own: with one for each
/// port the core sleeps up to a tick, else one must be polled, every `longest.idle`.
///
/// # Panics
/// With more than two ports.
pub(crate) fn sleep(
    mut nic: Option<&mut GuestNic>,
    interrupts: &[Option<RawFd>],
    wake: &EventFd,
    longest: Longest,
) {
    assert!(interrupts.len() <= PORTS_MAX, "a core has two ports");
    if let Some(nic) = &mut nic
        && !nic.prepare_sleep()
    {
        return;
    }
    let unasked = if interrupts.iter().all(Option::is_some) {
        INTERRUPT_SLEEP
    } else {
        longest.idle
    };
    let mut waits = ArrayVec::<RawFd, WAITS_MAX>::new();
    waits.push(wake.as_raw_fd());
    waits.extend(interrupts.iter().copied().flatten());
    if let Some(nic) = &nic {
        waits.extend(nic.wake_fds());
    }
    let mut fds: ArrayVec<PollFd<'_>, WAITS_MAX> = waits
        .iter()
        .map(|fd| {
            // SAFETY: the fds belong to the card, the ports and the bell, which the caller owns
            // and does not touch until ppoll returns.
            let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
            PollFd::new(fd, PollFlags::POLLIN)
        })
        .collect();
    // A signal or an error only ends the sleep early.
    let _ = ppoll(
        &mut fds,
        Some(TimeSpec::from_duration(unasked.min(longest.due))),
        None,
    );
    wake.drain();
    if let Some(nic) = nic {
        nic.after_sleep();
    }
}
