//! Cloud Hypervisor's event monitor, a stream of JSON objects on a pipe: what it says about the
//! guest.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use nix::fcntl::OFlag;
use serde_json::Value;

use crate::error::VmmError;
use crate::limits;
use crate::vmm::GuestEvent;

/// The reading end, and what was read.
pub(super) struct Events {
    pipe: std::fs::File,
    buffer: Vec<u8>,
    seen: VecDeque<GuestEvent>,
    /// Our own `vm.delete`s whose event has not come yet. Such a call shuts the guest down first,
    /// which is not the guest's doing.
    deletes: u32,
}

impl Events {
    /// A pipe: our end, never waited on, and the VMM's.
    pub(super) fn pipe() -> Result<(Self, OwnedFd), VmmError> {
        let (ours, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
            .map_err(|error| VmmError::io("making the event pipe", error.into()))?;
        let events = Self {
            pipe: ours.into(),
            buffer: Vec::new(),
            seen: VecDeque::new(),
            deletes: 0,
        };
        Ok((events, theirs))
    }

    /// We are about to delete the guest. What it did before has been taken.
    pub(super) fn expect_delete(&mut self) {
        self.deletes += 1;
    }

    /// Empties the pipe.
    fn collect(&mut self) {
        let mut chunk = [0; 4096];
        loop {
            match self.pipe.read(&mut chunk) {
                Ok(0) => break,
                Ok(bytes) => self.buffer.extend_from_slice(&chunk[..bytes]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
            self.parse();
        }
    }

    /// What the guest did since the last call.
    pub(super) fn take(&mut self) -> Vec<GuestEvent> {
        self.collect();
        self.seen.drain(..).collect()
    }

    fn parse(&mut self) {
        let mut stream = serde_json::Deserializer::from_slice(&self.buffer).into_iter::<Value>();
        let mut names = Vec::new();
        let broken = loop {
            match stream.next() {
                Some(Ok(event)) => names.extend(name(&event)),
                Some(Err(error)) => break !error.is_eof(),
                None => break false,
            }
        };
        let used = stream.byte_offset();
        self.buffer.drain(..used);
        if broken || self.buffer.len() > limits::EVENT_BYTES_MAX {
            tracing::warn!("Cloud Hypervisor's event stream is broken; events were dropped");
            self.buffer.clear();
        }
        for (source, event) in names {
            self.note(&source, &event);
        }
    }

    fn note(&mut self, source: &str, event: &str) {
        let seen = match (source, event) {
            ("vm", "deleted") => {
                self.deletes = self.deletes.saturating_sub(1);
                return;
            }
            ("vm", "shutdown") if self.deletes == 0 => GuestEvent::Shutdown,
            ("vm", "rebooting") => GuestEvent::Reset,
            ("guest", "panic") => GuestEvent::Panic,
            _ => return,
        };
        if self.seen.len() == limits::EVENTS_MAX {
            self.seen.pop_front();
        }
        self.seen.push_back(seen);
    }
}

fn name(event: &Value) -> Option<(String, String)> {
    let text = |key: &str| event.get(key)?.as_str().map(str::to_owned);
    Some((text("source")?, text("event")?))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn event(source: &str, event: &str) -> String {
        format!(
            "{{\n  \"timestamp\": {{\"secs\": 0, \"nanos\": 1}},\n  \"source\": \"{source}\",\n  \
             \"event\": \"{event}\",\n  \"properties\": null\n}}\n\n"
        )
    }

    fn pipe() -> (Events, std::fs::File) {
        let (events, theirs) = Events::pipe().unwrap();
        (events, theirs.into())
    }

    #[test]
    fn the_guest_s_doings_are_told_even_from_pieces() {
        let (mut events, mut pipe) = pipe();
        let text = [
            event("vm", "booted"),
            event("guest", "panic"),
            event("vm", "rebooting"),
            event("vm", "shutdown"),
        ]
        .concat();
        let mut seen = Vec::new();
        for piece in text.as_bytes().chunks(7) {
            pipe.write_all(piece).unwrap();
            seen.extend(events.take());
        }
        assert_eq!(
            seen,
            [GuestEvent::Panic, GuestEvent::Reset, GuestEvent::Shutdown]
        );
    }

    #[test]
    fn a_shutdown_by_our_own_delete_is_not_the_guest_s() {
        let (mut events, mut pipe) = pipe();
        events.expect_delete();
        let text = event("vm", "shutdown") + &event("vm", "deleted") + &event("vm", "restored");
        pipe.write_all(text.as_bytes()).unwrap();
        assert_eq!(events.take(), []);
        pipe.write_all(event("vm", "shutdown").as_bytes()).unwrap();
        assert_eq!(events.take(), [GuestEvent::Shutdown]);
    }

    #[test]
    fn a_shutdown_before_our_delete_is_the_guest_s() {
        let (mut events, mut pipe) = pipe();
        pipe.write_all(event("vm", "shutdown").as_bytes()).unwrap();
        assert_eq!(events.take(), [GuestEvent::Shutdown]);
        events.expect_delete();
        pipe.write_all(event("vm", "deleted").as_bytes()).unwrap();
        assert_eq!(events.take(), []);
    }

    #[test]
    fn bytes_that_are_no_events_are_dropped_and_the_stream_goes_on() {
        let (mut events, mut pipe) = pipe();
        pipe.write_all(b"}}}not json").unwrap();
        assert_eq!(events.take(), []);
        pipe.write_all(event("vm", "rebooting").as_bytes()).unwrap();
        assert_eq!(events.take(), [GuestEvent::Reset]);
    }
}
