//! Keeps `net_tap` from using signals. Why is told at the head of [`crate::port`].

use std::mem::MaybeUninit;
use std::ptr;

use libc::{SIG_DFL, SIG_IGN, c_int, sighandler_t};

/// While this lives every realtime signal that had its default action is ignored, so `net_tap`
/// finds none free. Held with EAL's control lock, for the few milliseconds of opening a port; a
/// child process that is started just then inherits ignored realtime signals, which is harmless.
pub(crate) struct TapSignalsOff {
    ignored: Vec<c_int>,
}

impl TapSignalsOff {
    pub fn new() -> TapSignalsOff {
        // The driver's own range.
        let signals = libc::SIGRTMIN() + 1..libc::SIGRTMAX();
        TapSignalsOff {
            ignored: signals.filter(|&s| replace(s, SIG_DFL, SIG_IGN)).collect(),
        }
    }
}

impl Drop for TapSignalsOff {
    fn drop(&mut self) {
        for &signal in &self.ignored {
            replace(signal, SIG_IGN, SIG_DFL);
        }
    }
}

/// Sets the signal's action to `to` if it is `from`; tells whether it was.
fn replace(signal: c_int, from: sighandler_t, to: sighandler_t) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: an all-zero sigaction is valid, and `action` outlives the calls. SIG_DFL and SIG_IGN
    // run no code.
    unsafe {
        if libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) != 0 {
            return false;
        }
        let mut action = action.assume_init();
        if action.sa_sigaction != from {
            return false;
        }
        action.sa_sigaction = to;
        libc::sigaction(signal, &raw const action, ptr::null_mut()) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_signals_with_the_default_action_change_and_they_change_back() {
        let (free, taken) = (libc::SIGRTMIN() + 3, libc::SIGRTMIN() + 4);
        assert!(replace(taken, SIG_DFL, SIG_IGN), "free before the test");
        let off = TapSignalsOff::new();
        assert!(off.ignored.contains(&free) && !off.ignored.contains(&taken));
        drop(off);
        assert!(
            replace(free, SIG_DFL, SIG_DFL),
            "back to the default action"
        );
        assert!(replace(taken, SIG_IGN, SIG_DFL), "left alone");
    }
}
