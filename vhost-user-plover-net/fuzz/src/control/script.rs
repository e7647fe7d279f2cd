//! A VMM and its guest that follow no rules.

use std::fs::File;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::message::{MEMORY_BYTES, Message, RING_SIZE, request, ring_base};
use crate::input::Input;

/// Steps of one connection.
const STEPS_MAX: usize = 60;
/// Fds of one message, more than it may carry.
const FDS_MAX: usize = 36;
/// How long a connection may take to end. Far more than it takes.
const END_TIMEOUT: Duration = Duration::from_secs(20);

/// One connection.
pub struct Script {
    stream: UnixStream,
    memory: File,
    kicks: [EventFd; 2],
    call: EventFd,
    offered: [u16; 2],
}

impl Script {
    pub fn new(stream: UnixStream) -> Self {
        let eventfd = || {
            EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).expect("an eventfd is left")
        };
        // Both ways: a script that fills the socket is not to hang on it.
        let timeout = Some(Duration::from_millis(200));
        stream.set_write_timeout(timeout).expect("not zero");
        Self {
            stream,
            memory: memfd(c"script", MEMORY_BYTES),
            kicks: [eventfd(), eventfd()],
            call: eventfd(),
            offered: [0; 2],
        }
    }

    /// Follows the script, hangs up, and waits until the server has too.
    pub fn run(mut self, input: &mut Input<'_>) {
        for _ in 0..STEPS_MAX {
            if input.is_empty() || self.step(input).is_none() {
                break;
            }
        }
        let _ = self.stream.shutdown(Shutdown::Write);
        let timeout = Some(END_TIMEOUT);
        self.stream.set_read_timeout(timeout).expect("not zero");
        let end = self.stream.read_to_end(&mut Vec::new());
        let ended = end
            .as_ref()
            .map_or_else(|error| error.kind() == ErrorKind::ConnectionReset, |_| true);
        assert!(ended, "the server does not hang up: {end:?}");
    }

    /// `None` when the connection is to end here.
    fn step(&mut self, input: &mut Input<'_>) -> Option<()> {
        match input.u8() % 16 {
            0..=2 => self.proper(input),
            3..=7 => {
                let message = Message::any(input);
                let fds = self.fds(&message, input);
                self.send(&message.bytes(), &fds);
            }
            8..=11 => self.traffic(input),
            12 => {
                let count = input.below(64);
                self.send(input.bytes(count), &[]);
            }
            13 => {
                // Ends in the middle of a message.
                let bytes = Message::any(input).bytes();
                self.send(&bytes[..input.below(bytes.len())], &[]);
                return None;
            }
            14 => std::thread::sleep(Duration::from_micros(u64::from(input.u8()) * 4)),
            _ => {
                let at = u64::from(input.u16());
                let count = input.below(64);
                self.write(at, input.bytes(count));
            }
        }
        self.drop_replies();
        Some(())
    }

    /// The set-up as it should be, from a step to another.
    fn proper(&mut self, input: &mut Input<'_>) {
        let sequence = Message::proper_sequence();
        let from = match input.u8() {
            choice if choice < 192 => 0,
            choice => usize::from(choice) % sequence.len(),
        };
        let count = match input.u8() {
            choice if choice < 128 => sequence.len(),
            choice => usize::from(choice) % sequence.len(),
        };
        for message in sequence.iter().skip(from).take(count) {
            let fds = self.proper_fds(message);
            self.send(&message.bytes(), &fds);
        }
    }

    fn proper_fds(&self, message: &Message) -> Vec<RawFd> {
        let ring = usize::from(message.body.first().copied().unwrap_or(0) & 1);
        match message.request {
            request::SET_MEM_TABLE => vec![self.memory.as_raw_fd()],
            request::SET_VRING_KICK => vec![self.kicks[ring].as_raw_fd()],
            request::SET_VRING_CALL | request::SET_VRING_ERR => vec![self.call.as_raw_fd()],
            _ => Vec::new(),
        }
    }

    /// The fds that belong to the message, or others, or too many.
    fn fds(&self, message: &Message, input: &mut Input<'_>) -> Vec<RawFd> {
        match input.u8() {
            0 => {
                let count = input.below(FDS_MAX);
                (0..count).map(|_| odd_fd(self, input)).collect()
            }
            1 => Vec::new(),
            2 => vec![odd_fd(self, input)],
            _ if message.request == request::SET_MEM_TABLE => {
                let regions = message.body.len().saturating_sub(8) / 32;
                vec![self.memory.as_raw_fd(); regions]
            }
            _ if message.request == request::SET_LOG_BASE => vec![self.memory.as_raw_fd()],
            _ => self.proper_fds(message),
        }
    }

    /// The guest sends and posts buffers, properly or not, and kicks.
    fn traffic(&mut self, input: &mut Input<'_>) {
        for ring in 0..2 {
            for _ in 0..input.below(20) {
                self.offer(ring, input);
            }
            let _ = self.kicks[ring].write(1);
        }
        if input.u8() == 0 {
            let ring = usize::from(input.u8() & 1);
            self.offered[ring] = input.u16();
            self.show(ring);
        }
    }

    fn offer(&mut self, ring: usize, input: &mut Input<'_>) {
        let base = ring_base(ring as u32);
        let index = self.offered[ring] % RING_SIZE;
        let mut address = 0x10_0000 + u64::from(index) * 0x800;
        let mut bytes = 0x800_u32;
        match input.u8() {
            0 => address = input.u64(),
            1 => bytes = input.u32(),
            choice => bytes = 12 + u32::from(choice) * 5,
        }
        let flags: u16 = if ring == 0 { 2 } else { 0 };
        let descriptor = [
            &address.to_le_bytes()[..],
            &bytes.to_le_bytes(),
            &flags.to_le_bytes(),
            &[0; 2],
        ];
        self.write(base + 16 * u64::from(index), &descriptor.concat());
        self.write(base + 0x1004 + 2 * u64::from(index), &index.to_le_bytes());
        self.offered[ring] = self.offered[ring].wrapping_add(1);
        self.show(ring);
    }

    fn show(&self, ring: usize) {
        let at = ring_base(ring as u32) + 0x1002;
        self.write(at, &self.offered[ring].to_le_bytes());
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        // A write to the file is one to the memory that is mapped from it.
        let _ = self.memory.write_all_at(bytes, at % (MEMORY_BYTES - 64));
    }

    /// Sends what the server still takes: it may have hung up.
    fn send(&mut self, bytes: &[u8], fds: &[RawFd]) {
        let parts = [IoSlice::new(bytes)];
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL;
        let sent = sendmsg::<()>(self.stream.as_raw_fd(), &parts, control, flags, None);
        if let Ok(sent) = sent {
            let _ = self.stream.write_all(&bytes[sent..]);
        }
    }

    fn drop_replies(&mut self) {
        let _ = self.stream.set_nonblocking(true);
        let mut replies = [0; 4096];
        while matches!(self.stream.read(&mut replies), Ok(1..)) {}
        let _ = self.stream.set_nonblocking(false);
    }
}

/// A memfd of `bytes` bytes.
pub fn memfd(name: &std::ffi::CStr, bytes: u64) -> File {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create(name, flags).expect("a memfd is left"));
    file.set_len(bytes).expect("sparse");
    file
}

/// Fds of every kind. The wrong ones are opened once: they hold no state that matters.
fn odd_fd(script: &Script, input: &mut Input<'_>) -> RawFd {
    use std::sync::OnceLock;
    static ODD: OnceLock<Vec<OwnedFd>> = OnceLock::new();
    let odd = ODD.get_or_init(odd_fds);
    match input.below(odd.len() + 3) {
        0 => script.memory.as_raw_fd(),
        1 => script.call.as_raw_fd(),
        2 => script.kicks[usize::from(input.u8() & 1)].as_raw_fd(),
        other => odd[other - 3].as_raw_fd(),
    }
}

fn odd_fds() -> Vec<OwnedFd> {
    let sealed = memfd(c"sealed", MEMORY_BYTES);
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK;
    fcntl(&sealed, FcntlArg::F_ADD_SEALS(seals)).expect("it allows seals");
    let link = format!("/proc/self/fd/{}", sealed.as_raw_fd());
    let mut odd = vec![memfd(c"short", 4096).into(), memfd(c"empty", 0).into()];
    odd.push(sealed.into());
    // A file that can only be read, a folder, and devices.
    for path in [link.as_str(), "/", "/dev/null", "/dev/zero"] {
        odd.extend(File::open(path).map(OwnedFd::from));
    }
    odd.extend(UnixStream::pair().map(|(end, _)| OwnedFd::from(end)));
    odd.extend(nix::unistd::pipe().map(|(end, _)| end));
    odd
}
