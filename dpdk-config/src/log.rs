//! DPDK's log: to standard error, except while a step runs whose failure is to say what was logged.

use std::ffi::{c_char, c_void};
use std::io::{self, Write};
use std::slice;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes that are kept of a failed step's log; the first lines say most.
const CAPTURED_BYTES_MAX: usize = 2048;

/// What drivers log when nothing is wrong: net_tap without a free signal (see [`crate::port`]),
/// without the multiq queueing discipline (needed for flow rules only) and without secondary
/// processes.
const HARMLESS: &[&str] = &[
    "rt-signals are in use",
    "Specified qdisc kind is unknown",
    "multiq qdisc",
    "Disabling rte flow support",
    "Failed to send start req to secondary",
];

static CAPTURED: Mutex<Option<String>> = Mutex::new(None);

/// Sends DPDK's log here. Called before EAL starts.
pub(crate) fn redirect() {
    // SAFETY: the callback takes what it is given and keeps nothing of it. If no stream can be
    // made, DPDK's default stays.
    unsafe { dpdk_sys::plover_log_to(Some(write)) };
}

/// Keeps the log of one step. Steps follow each other under EAL's control lock.
pub(crate) struct Capture(());

impl Capture {
    pub fn start() -> Capture {
        *captured() = Some(String::new());
        Capture(())
    }

    /// What was logged, on one line, without what is always logged.
    pub fn text(&self) -> String {
        let captured = captured();
        let lines = captured.iter().flat_map(|text| text.lines());
        let telling = lines.filter(|line| !HARMLESS.iter().any(|harmless| line.contains(harmless)));
        let text = telling.map(str::trim).collect::<Vec<_>>().join("; ");
        if text.is_empty() {
            "it logged no reason".into()
        } else {
            text
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if let Some(log) = captured().take()
            && !log.is_empty()
        {
            tracing::debug!(log, "dpdk");
        }
    }
}

fn captured() -> MutexGuard<'static, Option<String>> {
    CAPTURED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes one message of DPDK's log, on whichever thread it arises.
unsafe extern "C" fn write(_cookie: *mut c_void, bytes: *const c_char, count: usize) -> isize {
    if bytes.is_null() || count == 0 {
        return 0;
    }
    // SAFETY: the C library passes `count` bytes that stay during the call.
    let message = unsafe { slice::from_raw_parts(bytes.cast::<u8>(), count) };
    match &mut *captured() {
        Some(text) if text.len() < CAPTURED_BYTES_MAX => {
            text.push_str(&String::from_utf8_lossy(message));
        }
        Some(_) => {}
        // Nobody is left to tell if standard error is closed.
        None => drop(io::stderr().write_all(message)),
    }
    count as isize
}
