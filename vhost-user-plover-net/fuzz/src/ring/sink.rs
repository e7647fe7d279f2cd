//! Takes what a guest sent: all of it, a part of it, in pieces, or none.

use std::mem::MaybeUninit;

use vhost_user_plover_net::limits::{FRAME_BYTES_MAX, FRAME_BYTES_MIN};
use vhost_user_plover_net::ring::{FrameSink, GuestFrame};

use crate::input::Input;

/// A sink with whims.
pub struct Sink {
    /// Frames that it was given.
    pub taken: usize,
    /// Frames that it takes of each burst.
    room: usize,
    /// Frames that it said it takes and was not given yet.
    expected: usize,
    /// Bytes that it reads at a time.
    step: usize,
    /// Bytes that it leaves unread.
    rest: usize,
    buffer: Vec<MaybeUninit<u8>>,
}

impl Sink {
    pub fn new(input: &mut Input<'_>) -> Self {
        let (room, step, rest) = match input.u8() & 7 {
            0 => (input.below(40), 1 + input.below(3000), input.below(100)),
            1 => (usize::MAX, 1 + input.below(100), 0),
            _ => (usize::MAX, FRAME_BYTES_MAX, 0),
        };
        Self {
            taken: 0,
            room,
            expected: 0,
            step,
            rest,
            buffer: vec![MaybeUninit::new(0); FRAME_BYTES_MAX],
        }
    }
}

impl FrameSink for Sink {
    fn prepare(&mut self, frames: usize) -> usize {
        self.expected = frames.min(self.room);
        self.expected
    }

    fn take(&mut self, mut frame: GuestFrame<'_>) {
        assert!(self.expected > 0, "more frames than were asked for");
        self.expected -= 1;
        self.taken += 1;
        assert!((FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&frame.len()));
        while frame.len() > self.rest {
            let step = self.step.min(frame.len());
            let left = frame.len() - step;
            frame.read(&mut self.buffer[..step]);
            assert_eq!(frame.len(), left);
        }
    }
}
