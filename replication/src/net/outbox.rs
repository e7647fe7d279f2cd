//! Frames of our own until the caller sends them, and how many there may be.

use std::time::Duration;

use arrayvec::ArrayVec;

use crate::limits::{OUTBOX_BYTES_MAX, OUTBOX_FRAMES_MAX};

/// A short queue of short frames.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    ends: ArrayVec<usize, OUTBOX_FRAMES_MAX>,
}

impl Outbox {
    /// Queues a frame. False: there is no room for it.
    pub(super) fn push(&mut self, frame: &[u8]) -> bool {
        if self.ends.is_full() || self.bytes.len() + frame.len() > OUTBOX_BYTES_MAX {
            return false;
        }
        self.bytes.extend_from_slice(frame);
        self.ends.push(self.bytes.len());
        true
    }

    #[inline]
    pub(super) fn drain(&mut self, mut send: impl FnMut(&[&[u8]])) {
        if self.ends.is_empty() {
            return;
        }
        let mut start = 0;
        for end in self.ends.drain(..) {
            send(&[&self.bytes[start..end]]);
            start = end;
        }
        self.bytes.clear();
    }
}

/// So many a second, counted in whole seconds.
#[derive(Debug)]
pub(super) struct Rate {
    per_second_max: u32,
    second: u64,
    count: u32,
}

impl Rate {
    pub(super) fn new(per_second_max: u32) -> Self {
        Self {
            per_second_max,
            second: 0,
            count: 0,
        }
    }

    /// Whether one more is allowed; then it counts.
    pub(super) fn allows(&mut self, now: Duration) -> bool {
        if self.second != now.as_secs() {
            (self.second, self.count) = (now.as_secs(), 0);
        }
        if self.count >= self.per_second_max {
            return false;
        }
        self.count += 1;
        true
    }
}
