//! The little of redis' protocol that the checking clients speak: commands out, replies in.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// How long a connection waits for a reply before it counts as broken.
const REPLY_WAIT: Duration = Duration::from_secs(60);
/// How often a waiting connection looks whether it should stop.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A request in redis' wire form.
#[must_use]
pub fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut request = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        request.extend_from_slice(word);
        request.extend_from_slice(b"\r\n");
    }
    request
}

/// A reply, as far as the client needs them.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// `OK` and the like.
    Status(String),
    /// The request was refused.
    Error(String),
    /// A whole number.
    Number(i64),
    /// A string; `None`: there is nothing.
    Text(Option<String>),
    /// Several strings.
    Array(Vec<Option<String>>),
}

/// A connection: one reply for each request, in their order.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    wait: Duration,
}

impl Connection {
    /// Connects.
    pub fn open(server: SocketAddr) -> io::Result<Self> {
        Self::over(TcpStream::connect_timeout(&server, REPLY_WAIT)?, REPLY_WAIT)
    }

    /// Speaks over a stream; a reply is waited for this long.
    pub fn over(stream: TcpStream, wait: Duration) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LOOK_EVERY.min(wait)))?;
        stream.set_write_timeout(Some(REPLY_WAIT))?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
            wait,
        })
    }

    /// Sends a request.
    pub fn send(&mut self, request: &[u8]) -> io::Result<()> {
        self.stream.write_all(request)
    }

    /// Waits for the next reply.
    pub fn reply(&mut self) -> io::Result<Reply> {
        let deadline = Instant::now() + self.wait;
        loop {
            if let Some((reply, used)) = parse_reply(&self.buffer)? {
                self.buffer.drain(..used);
                return Ok(reply);
            }
            let mut piece = [0u8; 16384];
            match self.stream.read(&mut piece) {
                Ok(0) => {
                    return Err(io::Error::new(
                        ErrorKind::UnexpectedEof,
                        "closed by the peer",
                    ));
                }
                Ok(length) => self.buffer.extend_from_slice(&piece[..length]),
                Err(error) if is_wait(&error) => {
                    if Instant::now() > deadline {
                        let text = format!("no reply in {} s", self.wait.as_secs());
                        return Err(io::Error::new(ErrorKind::TimedOut, text));
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn is_wait(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

/// The first whole reply in `bytes` and its length; `None`: not all of it is here yet.
fn parse_reply(bytes: &[u8]) -> io::Result<Option<(Reply, usize)>> {
    let Some((line, mut at)) = line_at(bytes, 0) else {
        return Ok(None);
    };
    match line.split_at_checked(1) {
        Some(("+", text)) => Ok(Some((Reply::Status(text.to_owned()), at))),
        Some(("-", text)) => Ok(Some((Reply::Error(text.to_owned()), at))),
        Some((":", text)) => match text.parse() {
            Ok(value) => Ok(Some((Reply::Number(value), at))),
            Err(_) => Err(io::Error::other(format!("not a number: {text:?}"))),
        },
        Some(("$", _)) => Ok(bulk_at(bytes, 0)?.map(|(text, end)| (Reply::Text(text), end))),
        Some(("*", count)) => {
            let mut values = Vec::new();
            for _ in 0..number(count)? {
                let Some((value, end)) = bulk_at(bytes, at)? else {
                    return Ok(None);
                };
                values.push(value);
                at = end;
            }
            Ok(Some((Reply::Array(values), at)))
        }
        _ => Err(io::Error::other(format!(
            "a reply that is not known: {line:?}"
        ))),
    }
}

fn bulk_at(bytes: &[u8], at: usize) -> io::Result<Option<(Option<String>, usize)>> {
    let Some((line, start)) = line_at(bytes, at) else {
        return Ok(None);
    };
    let Some(length) = line.strip_prefix('$') else {
        return Err(io::Error::other(format!(
            "no string where one belongs: {line:?}"
        )));
    };
    let length = number(length)?;
    let Ok(length) = usize::try_from(length) else {
        return Ok(Some((None, start)));
    };
    let Some(content) = bytes.get(start..start + length + 2) else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(&content[..length]).into_owned();
    Ok(Some((Some(text), start + length + 2)))
}

/// The line that begins at `at`, and where the next begins.
fn line_at(bytes: &[u8], at: usize) -> Option<(String, usize)> {
    let rest = bytes.get(at..)?;
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    Some((
        String::from_utf8_lossy(&rest[..end]).into_owned(),
        at + end + 2,
    ))
}

/// A count or length; redis keeps both below 512 MiB.
fn number(text: &str) -> io::Result<i64> {
    match text.parse() {
        Ok(value) if value <= 512 << 20 => Ok(value),
        _ => Err(io::Error::other(format!("not a length: {text:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_read_whole_or_not_at_all() {
        let array = b"*3\r\n$2\r\nhi\r\n$-1\r\n$0\r\n\r\n+OK\r\n";
        for cut in 0..array.len() - 5 {
            assert_eq!(parse_reply(&array[..cut]).unwrap(), None, "cut at {cut}");
        }
        let (reply, used) = parse_reply(array).unwrap().unwrap();
        let values = vec![Some("hi".to_owned()), None, Some(String::new())];
        assert_eq!((reply, used), (Reply::Array(values), array.len() - 5));
        let error = Reply::Error("OOM".to_owned());
        assert_eq!(parse_reply(b"-OOM\r\n").unwrap().unwrap().0, error);
        assert_eq!(
            parse_reply(b":-12\r\n").unwrap().unwrap(),
            (Reply::Number(-12), 6)
        );
        assert_eq!(parse_reply(b"$3\r\nab").unwrap(), None);
        let text = Reply::Text(Some("abc".to_owned()));
        assert_eq!(parse_reply(b"$3\r\nabc\r\n").unwrap().unwrap(), (text, 9));
        let nothing = parse_reply(b"$-1\r\n").unwrap().unwrap();
        assert_eq!(nothing, (Reply::Text(None), 5));
        assert!(parse_reply(b":x\r\n").is_err());
        assert!(parse_reply(b"?\r\n").is_err());
        assert!(parse_reply(b"*9999999999999\r\n").is_err());
    }
}
