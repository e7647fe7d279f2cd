//! The card's packets, burst by burst: into the receive rings, out of the transmit rings.

use std::mem::MaybeUninit;

use super::GuestNic;
use crate::limits::{QUEUE_SIZE_MAX, RING_BURST_MAX};
use crate::ring::{Frame, FrameSink, GuestFrame, RingId, TakenBurst, ToLay, Unlaid};

/// Bursts that one ring can have waiting: no more are taken from it in a row.
const BURSTS_MAX: usize = QUEUE_SIZE_MAX as usize / RING_BURST_MAX;

/// Why a frame was not laid in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undelivered {
    /// The guest has posted too little room: try again later.
    NoBuffer,
    /// No receive ring runs.
    Stopped,
}

/// What became of a burst of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Frames done with, from the first on. The guest sees them after [`GuestNic::publish`]. Those
    /// too long for any buffer of its are among them; they are dropped by counter.
    pub frames: usize,
    /// Why the others are not.
    pub stop: Option<Undelivered>,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It is in the ring; the guest sees it after [`GuestNic::publish`].
    Delivered,
    /// The guest has posted too little room: try again later.
    NoBuffer,
    /// The receive ring does not run.
    Stopped,
}

impl GuestNic {
    /// Lays frames into the receive ring of `pair`, or of the first pair where that one does not
    /// run. The guest sees them after [`Self::publish`].
    #[inline]
    pub fn deliver_burst(&mut self, pair: u8, frames: &[impl ToLay]) -> Delivered {
        let mut delivered = Delivered {
            frames: 0,
            stop: None,
        };
        let wanted = usize::from(pair);
        let number = match self.used().get(wanted) {
            Some(pair) if pair.receive.runs() => wanted,
            _ => 0,
        };
        while delivered.frames < frames.len() && delivered.stop.is_none() {
            self.deliver_some(number, frames, &mut delivered);
        }
        delivered
    }

    #[inline(always)]
    fn deliver_some(&mut self, number: usize, frames: &[impl ToLay], delivered: &mut Delivered) {
        let pair = &mut self.pairs[number];
        let Some(ring) = pair.receive.running() else {
            delivered.stop = Some(Undelivered::Stopped);
            return;
        };
        let laid = ring.deliver_burst(&mut self.receive_scratch, &frames[delivered.frames..]);
        delivered.frames += laid.frames;
        pair.counts.delivered += (laid.frames - laid.too_long) as u64;
        let counters = &self.counters;
        counters
            .received_packets
            .add((laid.frames - laid.too_long) as u64);
        counters.received_bytes.add(laid.bytes);
        if laid.too_long > 0 {
            counters.receive_too_long.add(laid.too_long as u64);
        }
        pair.receive_starved = laid.stop == Some(Unlaid::NoBuffer);
        match laid.stop {
            None => {}
            Some(Unlaid::NoBuffer) => {
                counters.receive_waits.add(1);
                delivered.stop = Some(Undelivered::NoBuffer);
            }
            Some(Unlaid::Fault(fault)) => {
                // What was laid in before the broken chain is shown all the same.
                let _ = pair.receive.publish(counters);
                self.fail(RingId::receive(number as u8), fault);
                delivered.stop = Some(Undelivered::Stopped);
            }
        }
    }

    /// Shows the guest what was delivered since the last call, with one store of the used index
    /// and at most one call for each pair.
    #[inline]
    pub fn publish(&mut self) {
        for number in 0..self.pairs_used {
            if let Err(fault) = self.pairs[number].receive.publish(&self.counters) {
                self.fail(RingId::receive(number as u8), fault);
            }
        }
    }

    /// Takes up to `room` frames from the transmit rings and gives each to `sink`; the descriptors
    /// go back to the guest at once. Returns how many `sink` was given.
    #[inline]
    pub fn take_burst(&mut self, room: usize, sink: &mut impl FrameSink) -> usize {
        let mut given = 0;
        // Another pair goes first each time: with little room none waits for the others.
        self.first_to_take += 1;
        if self.first_to_take >= self.pairs_used {
            self.first_to_take = 0;
        }
        for turn in 0..self.pairs_used {
            let number = (self.first_to_take + turn) % self.pairs_used;
            given += self.take_from(number, room - given, sink);
            if self.pairs[number].draining.is_some()
                && (given == room || self.pairs[number].transmit.offered() == 0)
            {
                self.finish_draining(number);
            }
        }
        given
    }

    #[inline(always)]
    fn take_from(&mut self, number: usize, room: usize, sink: &mut impl FrameSink) -> usize {
        let mut given = 0;
        for _ in 0..BURSTS_MAX {
            let Some(ring) = self.pairs[number].transmit.running() else {
                break;
            };
            let taken =
                ring.take_burst(number as u8, &mut self.transmit_scratch, room - given, sink);
            if taken.chains() == 0 && taken.fault.is_none() {
                break;
            }
            given += taken.frames;
            self.count_and_return(number, taken);
            if taken.chains() < RING_BURST_MAX {
                break;
            }
        }
        given
    }

    #[inline(always)]
    fn count_and_return(&mut self, number: usize, taken: TakenBurst) {
        let counters = &self.counters;
        counters.transmitted_packets.add(taken.frames as u64);
        self.pairs[number].counts.taken += taken.frames as u64;
        counters.transmitted_bytes.add(taken.bytes);
        if taken.frames != taken.chains() {
            counters.transmit_too_long.add(taken.too_long as u64);
            counters.transmit_too_short.add(taken.too_short as u64);
        }
        // What was taken before a fault was given on, so the guest gets it back all the same.
        let published = self.pairs[number].transmit.publish(counters);
        if let Some(fault) = published.err().or(taken.fault) {
            self.fail(RingId::transmit(number as u8), fault);
        }
    }

    /// Lays a plain frame into the receive ring of pair 0. The guest sees it after
    /// [`Self::publish`].
    #[inline]
    pub fn deliver(&mut self, frame: &[u8]) -> Delivery {
        let frame = Frame {
            offload: plover_types::Offload::PLAIN,
            bytes: frame,
        };
        match self.deliver_burst(0, &[frame]).stop {
            None => Delivery::Delivered,
            Some(Undelivered::NoBuffer) => Delivery::NoBuffer,
            Some(Undelivered::Stopped) => Delivery::Stopped,
        }
    }

    /// As [`Self::take_burst`], with each frame in one piece and its offload left out.
    #[inline]
    pub fn take(&mut self, room: usize, sink: &mut dyn FnMut(&[u8])) -> usize {
        /// Copies a frame to show it.
        struct Shown<'a> {
            frame: Vec<u8>,
            sink: &'a mut dyn FnMut(&[u8]),
        }
        impl FrameSink for Shown<'_> {
            fn prepare(&mut self, frames: usize) -> usize {
                frames
            }

            fn take(&mut self, mut frame: GuestFrame<'_>) {
                let bytes = frame.len();
                let to = &mut self.frame[..bytes];
                // SAFETY: the same bytes; what is written there is initialised.
                frame.read(unsafe { &mut *(std::ptr::from_mut(to) as *mut [MaybeUninit<u8>]) });
                (self.sink)(&self.frame[..bytes]);
            }
        }
        let mut shown = Shown {
            frame: std::mem::take(&mut self.frame),
            sink,
        };
        let taken = self.take_burst(room, &mut shown);
        self.frame = shown.frame;
        taken
    }
}
