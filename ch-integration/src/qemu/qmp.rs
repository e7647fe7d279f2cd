//! A client of QEMU's monitor protocol, QMP: JSON lines over a socket.
//!
//! Own code rather than the crate `qapi`: that one types the answers after the newest QEMU's
//! schema, where Debian's 7.2 lacks fields; its blocking form has no timeout per call; and all
//! that is needed from QMP here is a dozen commands with one field read.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::VmmError;
use crate::limits;

/// A connection to QEMU's monitor.
pub(super) struct Qmp {
    socket: UnixStream,
    buffer: Vec<u8>,
    /// How much of `buffer` is known to hold no line end.
    searched: usize,
    events: VecDeque<Value>,
    next_id: u64,
    /// A command whose answer is asked for later, and that answer once it has come.
    later: Option<(u64, Option<Value>)>,
}

impl Qmp {
    /// Takes the greeting and negotiates. Returns QEMU's version, too.
    pub(super) fn connect(socket: UnixStream) -> Result<(Self, String), VmmError> {
        socket
            .set_write_timeout(Some(limits::CALL_TIMEOUT))
            .map_err(|source| VmmError::io("setting a timeout on QMP", source))?;
        let mut qmp = Self {
            socket,
            buffer: Vec::new(),
            searched: 0,
            events: VecDeque::new(),
            next_id: 1,
            later: None,
        };
        let what = "QMP greeting";
        let deadline = Deadline::after(limits::START_TIMEOUT);
        let greeting = qmp.read_message(what, deadline)?;
        let version =
            version(&greeting).ok_or_else(|| VmmError::malformed(what, "it names no version"))?;
        qmp.execute("qmp_capabilities", &json!({}), limits::START_TIMEOUT)?;
        Ok((qmp, version))
    }

    /// Runs one command and returns its answer. Events that come before it are kept.
    pub(super) fn execute(
        &mut self,
        command: &str,
        arguments: &Value,
        timeout: Duration,
    ) -> Result<Value, VmmError> {
        let deadline = Deadline::after(timeout);
        let id = self.send(command, arguments)?;
        self.answer(command, id, deadline)
    }

    /// Sends a command whose answer [`Qmp::answer_later`] takes. One at a time.
    pub(super) fn execute_later(
        &mut self,
        command: &str,
        arguments: &Value,
    ) -> Result<(), VmmError> {
        let id = self.send(command, arguments)?;
        self.later = Some((id, None));
        Ok(())
    }

    /// The answer to what [`Qmp::execute_later`] sent.
    pub(super) fn answer_later(&mut self, command: &str) -> Result<Value, VmmError> {
        match self.later.take() {
            Some((_, Some(message))) => outcome(command, message),
            Some((id, None)) => self.answer(command, id, Deadline::after(limits::CALL_TIMEOUT)),
            None => Err(VmmError::malformed(command, "it was not sent")),
        }
    }

    fn send(&mut self, command: &str, arguments: &Value) -> Result<u64, VmmError> {
        let id = self.next_id;
        self.next_id += 1;
        let mut line = json!({"execute": command, "arguments": arguments, "id": id}).to_string();
        line.push('\n');
        match self.socket.write_all(line.as_bytes()) {
            Ok(()) => Ok(id),
            Err(error) if is_timeout(&error) => {
                Err(VmmError::timeout(command, limits::CALL_TIMEOUT))
            }
            Err(source) => Err(VmmError::io(format!("sending {command}"), source)),
        }
    }

    /// The answer to the command that was sent as `id`. Answers to earlier ones that timed out
    /// are passed over.
    fn answer(&mut self, command: &str, id: u64, deadline: Deadline) -> Result<Value, VmmError> {
        loop {
            let message = self.read_message(command, deadline)?;
            if message.get("id").and_then(Value::as_u64) == Some(id) {
                return outcome(command, message);
            }
            self.keep(message);
        }
    }

    /// Waits for an event that `wanted` takes a value from. Other events are kept.
    pub(super) fn wait_event<T>(
        &mut self,
        what: &str,
        deadline: Deadline,
        wanted: impl Fn(&Value) -> Option<T>,
    ) -> Result<T, VmmError> {
        for index in 0..self.events.len() {
            if let Some(found) = wanted(&self.events[index]) {
                self.events.remove(index);
                return Ok(found);
            }
        }
        loop {
            let message = self.read_message(what, deadline)?;
            if message.get("event").is_some()
                && let Some(found) = wanted(&message)
            {
                return Ok(found);
            }
            self.keep(message);
        }
    }

    /// All events that have come and that nobody waited for. Never blocks.
    pub(super) fn take_events(&mut self) -> Vec<Value> {
        // A closed socket or bad line is the next command's error.
        while let Ok(Some(message)) = self.buffered_message("event").and_then(|message| {
            if message.is_some() || self.fill_without_waiting() == 0 {
                return Ok(message);
            }
            self.buffered_message("event")
        }) {
            self.keep(message);
        }
        self.events.drain(..).collect()
    }

    /// Drops the kept events called `name`.
    pub(super) fn forget_events(&mut self, name: &str) {
        self.events
            .retain(|event| event.get("event").and_then(Value::as_str) != Some(name));
    }

    /// Keeps what nobody waits for just now: an event, or the answer that is asked for later. The
    /// late answer to a command that timed out is dropped.
    fn keep(&mut self, message: Value) {
        let id = message.get("id").and_then(Value::as_u64);
        if message.get("event").is_some() {
            if self.events.len() == limits::EVENTS_MAX {
                self.events.pop_front();
            }
            self.events.push_back(message);
        } else if let Some((later, answer)) = &mut self.later
            && id == Some(*later)
        {
            *answer = Some(message);
        }
    }

    fn read_message(&mut self, what: &str, deadline: Deadline) -> Result<Value, VmmError> {
        loop {
            if let Some(message) = self.buffered_message(what)? {
                return Ok(message);
            }
            let Some(left) = deadline.left() else {
                return Err(VmmError::timeout(what, deadline.timeout));
            };
            self.socket
                .set_read_timeout(Some(left))
                .map_err(|source| VmmError::io("setting a timeout on QMP", source))?;
            match self.fill() {
                Ok(0) => return Err(VmmError::io(what, io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) if is_timeout(&error) || error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(VmmError::io(what, source)),
            }
        }
    }

    /// The next whole line of `buffer`, parsed.
    fn buffered_message(&mut self, what: &str) -> Result<Option<Value>, VmmError> {
        let Some(end) = self.buffer[self.searched..]
            .iter()
            .position(|byte| *byte == b'\n')
        else {
            self.searched = self.buffer.len();
            if self.buffer.len() > limits::QMP_LINE_BYTES_MAX {
                return Err(VmmError::malformed(what, "its line has no end"));
            }
            return Ok(None);
        };
        let end = self.searched + end;
        let message = serde_json::from_slice(&self.buffer[..end]);
        self.buffer.drain(..=end);
        self.searched = 0;
        message
            .map(Some)
            .map_err(|error| VmmError::malformed(what, error.to_string()))
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut chunk = [0; 4096];
        let bytes = self.socket.read(&mut chunk)?;
        self.buffer.extend_from_slice(&chunk[..bytes]);
        Ok(bytes)
    }

    fn fill_without_waiting(&mut self) -> usize {
        if self.socket.set_nonblocking(true).is_err() {
            return 0;
        }
        let bytes = self.fill().unwrap_or(0);
        // It was set a moment ago, so it can be reset.
        let _ = self.socket.set_nonblocking(false);
        bytes
    }
}

/// The moment at which a wait ends, and how long it was meant to be.
#[derive(Clone, Copy)]
pub(super) struct Deadline {
    at: Instant,
    timeout: Duration,
}

impl Deadline {
    pub(super) fn after(timeout: Duration) -> Self {
        Self {
            at: Instant::now() + timeout,
            timeout,
        }
    }

    /// Time left, if any. At least a millisecond, since a zero read timeout means none.
    fn left(&self) -> Option<Duration> {
        let left = self.at.checked_duration_since(Instant::now())?;
        (!left.is_zero()).then(|| left.max(Duration::from_millis(1)))
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// What an answer says: a value, or QEMU's error.
fn outcome(command: &str, mut answer: Value) -> Result<Value, VmmError> {
    if let Some(value) = answer.get_mut("return") {
        return Ok(value.take());
    }
    let message = answer
        .get("error")
        .and_then(|error| error.get("desc"))
        .and_then(Value::as_str);
    let message = message
        .unwrap_or("an error without a description")
        .to_owned();
    Err(VmmError::Answered {
        what: command.to_owned(),
        message,
    })
}

fn version(greeting: &Value) -> Option<String> {
    let version = greeting.get("QMP")?.get("version")?;
    let qemu = version.get("qemu")?;
    let number = |name: &str| qemu.get(name)?.as_u64();
    let package = version
        .get("package")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let version = format!(
        "{}.{}.{}",
        number("major")?,
        number("minor")?,
        number("micro")?
    );
    Some(if package.is_empty() {
        version
    } else {
        format!("{version} ({package})")
    })
}

#[cfg(test)]
mod tests;
