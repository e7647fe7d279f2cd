//! A client of Cloud Hypervisor's REST API: HTTP/1.1 on a Unix socket, one connection kept open.
//!
//! Own code over the parser `httparse` rather than the crate `cloud-hypervisor-client`: that one
//! brings hyper with all features, hyperlocal, url and an async runtime into a thread that makes
//! six kinds of calls, one at a time, and its generated types follow the newest API document.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::error::VmmError;
use crate::limits;

/// Headers that an answer may have; Cloud Hypervisor sends four.
const HEADERS_MAX: usize = 16;

/// A connection to the API, opened when first needed and again after an error.
pub(super) struct Api {
    socket: PathBuf,
    connection: Option<UnixStream>,
}

/// An answer whose head has been checked.
struct Answer {
    status: u16,
    body: Vec<u8>,
}

impl Api {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            connection: None,
        }
    }

    /// `GET`s `call` and returns the JSON it answers.
    pub(super) fn get(&mut self, call: &str, timeout: Duration) -> Result<Value, VmmError> {
        let answer = self.request("GET", call, &[], timeout)?;
        let body = succeeded(call, answer)?;
        serde_json::from_slice(&body).map_err(|error| VmmError::malformed(call, error.to_string()))
    }

    /// `PUT`s `body` to `call`.
    pub(super) fn put(
        &mut self,
        call: &str,
        body: Option<&Value>,
        timeout: Duration,
    ) -> Result<(), VmmError> {
        let body = body.map(ToString::to_string).unwrap_or_default();
        let answer = self.request("PUT", call, body.as_bytes(), timeout)?;
        succeeded(call, answer).map(drop)
    }

    fn request(
        &mut self,
        method: &str,
        call: &str,
        body: &[u8],
        timeout: Duration,
    ) -> Result<Answer, VmmError> {
        // An answer that comes late must not be taken for the next call's: the connection is put
        // back only after a whole answer.
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => UnixStream::connect(&self.socket).map_err(|source| {
                VmmError::io(format!("connecting to {:?}", self.socket), source)
            })?,
        };
        let deadline = Instant::now() + timeout;
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => VmmError::timeout(call, timeout),
            _ => VmmError::io(call, source),
        };
        send(&mut connection, method, call, body, timeout).map_err(failed)?;
        let mut reader = Reader {
            connection: &mut connection,
            buffer: Vec::new(),
            deadline,
        };
        let answer = reader.answer().map_err(|error| match error {
            AnswerError::Io(source) => failed(source),
            AnswerError::Malformed(detail) => VmmError::malformed(call, detail),
        })?;
        self.connection = Some(connection);
        Ok(answer)
    }
}

fn send(
    connection: &mut UnixStream,
    method: &str,
    call: &str,
    body: &[u8],
    timeout: Duration,
) -> io::Result<()> {
    let mut request = format!(
        "{method} /api/v1/{call} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
    )
    .into_bytes();
    if !body.is_empty() {
        let headers = format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        );
        request.extend_from_slice(headers.as_bytes());
    }
    request.extend_from_slice(b"\r\n");
    request.extend_from_slice(body);
    connection.set_write_timeout(Some(timeout))?;
    connection.write_all(&request)
}

/// 200 and 204 are success; else the body is the VMM's own words.
fn succeeded(call: &str, answer: Answer) -> Result<Vec<u8>, VmmError> {
    if matches!(answer.status, 200 | 204) {
        return Ok(answer.body);
    }
    // A JSON list of an error and its causes, or text.
    let message = match serde_json::from_slice::<Vec<String>>(&answer.body) {
        Ok(causes) => causes.join(": "),
        Err(_) => String::from_utf8_lossy(&answer.body).into_owned(),
    };
    let message = format!("{} ({})", message.trim(), answer.status);
    Err(VmmError::Answered {
        what: call.to_owned(),
        message,
    })
}

enum AnswerError {
    Io(io::Error),
    Malformed(String),
}

impl From<io::Error> for AnswerError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl AnswerError {
    fn malformed(detail: impl Into<String>) -> Self {
        Self::Malformed(detail.into())
    }
}

struct Head {
    status: u16,
    head_bytes: usize,
    body_bytes: usize,
}

struct Reader<'a> {
    connection: &'a mut UnixStream,
    buffer: Vec<u8>,
    deadline: Instant,
}

impl Reader<'_> {
    fn answer(&mut self) -> Result<Answer, AnswerError> {
        let head = loop {
            if let Some(head) = parse_head(&self.buffer)? {
                break head;
            }
            if self.buffer.len() > limits::HTTP_HEAD_BYTES_MAX {
                return Err(AnswerError::malformed("its head has no end"));
            }
            self.fill()?;
        };
        if head.body_bytes > limits::HTTP_BODY_BYTES_MAX {
            return Err(AnswerError::malformed(format!(
                "{} bytes of body",
                head.body_bytes
            )));
        }
        while self.buffer.len() < head.head_bytes + head.body_bytes {
            self.fill()?;
        }
        if self.buffer.len() > head.head_bytes + head.body_bytes {
            return Err(AnswerError::malformed("more bytes than it names"));
        }
        let body = self.buffer.split_off(head.head_bytes);
        Ok(Answer {
            status: head.status,
            body,
        })
    }

    fn fill(&mut self) -> Result<(), AnswerError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        // A zero read timeout would mean none.
        let left = if left.is_zero() {
            Err(io::ErrorKind::TimedOut)
        } else {
            Ok(left)
        };
        self.connection
            .set_read_timeout(Some(left.map_err(io::Error::from)?))?;
        let mut chunk = [0; 4096];
        match self.connection.read(&mut chunk) {
            Ok(0) => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(bytes) => {
                self.buffer.extend_from_slice(&chunk[..bytes]);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The head at the start of `bytes`, once it is whole.
fn parse_head(bytes: &[u8]) -> Result<Option<Head>, AnswerError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let head_bytes = match response
        .parse(bytes)
        .map_err(|error| AnswerError::malformed(error.to_string()))?
    {
        httparse::Status::Complete(head_bytes) => head_bytes,
        httparse::Status::Partial => return Ok(None),
    };
    let status = response
        .code
        .ok_or_else(|| AnswerError::malformed("no status"))?;
    let length = response
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let body_bytes = match length {
        None => 0,
        Some(header) => std::str::from_utf8(header.value)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .ok_or_else(|| AnswerError::malformed("its length is no number"))?,
    };
    Ok(Some(Head {
        status,
        head_bytes,
        body_bytes,
    }))
}

#[cfg(test)]
mod tests;
