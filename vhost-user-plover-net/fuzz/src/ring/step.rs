//! The steps of a script, and what must hold after each.

use plover_types::Offload;
use vhost_user_plover_net::limits::FRAME_BYTES_MAX;
use vhost_user_plover_net::ring::Frame;
use vhost_user_plover_net::testing::Command;
use vhost_user_plover_net::{EventFd, Undelivered};

use super::driver::address;
use super::sink::Sink;
use super::{RINGS, World, ring_id};
use crate::input::Input;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Frame lengths at which something changes.
const FRAMES: [usize; 10] = [
    1,
    14,
    60,
    64,
    1500,
    1514,
    1515,
    1516,
    FRAME_BYTES_MAX - 1,
    FRAME_BYTES_MAX,
];
/// Frames of one delivery.
const FRAMES_MAX: usize = 40;

impl World {
    pub(super) fn step(&mut self, input: &mut Input<'_>) {
        let step = input.u8();
        let second_pair = step >> 5 & 3 == 3;
        let ring = usize::from(step >> 7) + 2 * usize::from(second_pair);
        match step & 31 {
            0..=7 => self.drivers[ring].lay(&mut self.guest, input),
            8 | 9 => self.drivers[ring].describe(&mut self.guest, input),
            10 => self.drivers[ring].offer(&mut self.guest, input.u16()),
            11 => self.write_anywhere(ring, input),
            12 => self.drivers[ring].set_available_index(&mut self.guest, input.u16()),
            13 => self.drivers[ring].set_used_index(&mut self.guest, input.u16()),
            14 => self.drivers[ring].want_calls(&mut self.guest, input),
            15 => self.sleep(),
            16..=18 => self.deliver(input),
            19 => self.publish(),
            20..=23 => self.take(input),
            other => self.interrupt(other, ring, input),
        }
        self.check();
    }

    /// What may end a burst: delivered frames are published, or the ring is dropped.
    fn interrupt(&mut self, step: u8, ring: usize, input: &mut Input<'_>) {
        match step {
            24 => self.nic.freeze(),
            25 => self.nic.thaw(),
            26 => self.nic.resync(),
            27 => self.post(Command::StopRing(ring_id(ring))),
            28 => self.restart(ring, input),
            29 => self.post(Command::EnableRing(ring_id(ring), input.flag())),
            30 => match input.below(4) {
                0 => self.post(Command::SetCall(ring_id(ring), EventFd::new().ok())),
                1 => self.post(Command::SetCall(ring_id(ring), None)),
                2 => self.post(Command::LogForVmm(input.flag())),
                _ => self.post(Command::Disconnect),
            },
            _ if self.closed.len() < 4 && input.flag() => self.move_guest(input),
            _ => self.set_memory(input.u8()),
        }
        self.unpublished = None;
    }

    fn restart(&mut self, ring: usize, input: &mut Input<'_>) {
        if input.flag() {
            self.drivers[ring] = super::Driver::new(ring, &self.guest, input);
        }
        if input.flag() {
            self.features = input.u64();
        }
        self.start_ring(ring, !input.u8().is_multiple_of(8));
    }

    fn write_anywhere(&mut self, ring: usize, input: &mut Input<'_>) {
        let at = address(&self.guest, &self.drivers[ring].layout(), input);
        let count = input.below(64);
        self.guest.write(at, input.bytes(count));
    }

    fn deliver(&mut self, input: &mut Input<'_>) {
        let bytes = match input.u8() {
            choice if usize::from(choice) < FRAMES.len() => FRAMES[usize::from(choice)],
            _ => 1 + usize::from(input.u16()) % FRAME_BYTES_MAX.min(2000),
        };
        let offload = if input.flag() {
            let mut header = [0; 10];
            header.copy_from_slice(&[input.u64().to_le_bytes(), [0; 8]].concat()[..10]);
            Offload::from_bytes(&header)
        } else {
            Offload::PLAIN
        };
        let frames = vec![vec![input.u8(); bytes]; 1 + input.below(FRAMES_MAX)];
        let frames: Vec<_> = frames
            .iter()
            .map(|bytes| Frame { offload, bytes })
            .collect();
        let pair = input.u8() & 1;
        let before = self.received();
        let delivered = self.nic.deliver_burst(pair, &frames);
        assert!(delivered.frames <= frames.len());
        assert_eq!(delivered.stop.is_none(), delivered.frames == frames.len());
        let more = self.received() - before;
        self.unpublished = self.unpublished.map(|count| count + more);
        if delivered.stop == Some(Undelivered::Stopped) {
            self.unpublished = Some(0);
        }
    }

    /// Packets laid in so far.
    fn received(&self) -> u64 {
        self.nic.counters().received_packets.get()
    }

    fn publish(&mut self) {
        let before = self.drivers[RECEIVE].used_index(&self.guest);
        let ran = self.nic.state().receive_runs;
        self.nic.publish();
        let after = self.drivers[RECEIVE].used_index(&self.guest);
        let unpublished = self.unpublished.replace(0);
        let (Some(before), Some(after), false) = (before, after, self.second_pair) else {
            return;
        };
        let advanced = u64::from(after.wrapping_sub(before));
        let size = u64::from(self.drivers[RECEIVE].layout().size);
        let possible = match unpublished {
            _ if !ran || !self.nic.state().receive_runs => 0..=0,
            None => 0..=size,
            Some(0) => 0..=0,
            // A packet takes one chain at least.
            Some(packets) => packets..=size,
        };
        assert!(
            possible.contains(&advanced),
            "{unpublished:?} packets, {advanced} chains returned"
        );
    }

    fn take(&mut self, input: &mut Input<'_>) {
        let room = match input.u8() {
            255 => usize::MAX,
            room => usize::from(room),
        };
        let before = self.drivers[TRANSMIT].used_index(&self.guest);
        let returned_before = self.returned();
        let faults_before = self.nic.counters().ring_faults.get();
        let mut sink = Sink::new(input);
        let given = self.nic.take_burst(room, &mut sink);
        assert_eq!(given, sink.taken, "as many as the sink was given");
        assert!(given <= room);
        let after = self.drivers[TRANSMIT].used_index(&self.guest);
        if let (Some(before), Some(after), false) = (before, after, self.second_pair) {
            let advanced = u64::from(after.wrapping_sub(before));
            let returned = self.returned() - returned_before;
            let faulted = self.nic.counters().ring_faults.get() > faults_before;
            assert!(
                advanced == returned || (faulted && advanced == 0),
                "{returned} chains taken, {advanced} returned"
            );
        }
        self.count_answers();
    }

    /// Transmit chains taken so far.
    fn returned(&self) -> u64 {
        let counters = self.nic.counters();
        counters.transmitted_packets.get()
            + counters.transmit_too_long.get()
            + counters.transmit_too_short.get()
    }

    fn sleep(&mut self) {
        if self.nic.prepare_sleep() {
            assert!(self.nic.wake_fds().count() <= 1 + RINGS);
            self.nic.after_sleep();
        }
    }

    /// What holds at any time.
    fn check(&self) {
        let state = self.nic.state();
        assert!(!state.receive_runs || state.receive_started);
        assert!(!state.transmit_runs || state.transmit_started);
        if !self.second_pair {
            assert!(!state.receive_runs || state.receive_fault.is_none());
            assert!(!state.transmit_runs || state.transmit_fault.is_none());
        }
        let running = self.nic.wake_fds().count() - 1;
        assert!(!state.frozen || running == 0, "a ring runs while frozen");
    }
}
