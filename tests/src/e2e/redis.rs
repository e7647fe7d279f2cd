//! Connections to a guest's redis that check what they are told.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ch_integration::demo::guest::{GUEST_IP, GUEST_PORT};
use ch_integration::demo::namespace::Namespace;

/// Longer than TCP takes to go on after the seconds in which a VMM finds its backend again.
const REPLY_WAIT: Duration = Duration::from_secs(30);
/// One try to connect.
const CONNECT_WAIT: Duration = Duration::from_millis(500);
/// A guest under emulation boots in this time, on a busy machine too.
const BOOT_WAIT: Duration = Duration::from_secs(120);

/// A connection, made from a namespace. It outlives whatever happens to the card, or it fails.
pub struct Redis {
    stream: BufReader<TcpStream>,
    counted: u64,
}

impl Redis {
    /// Connects to the guest's first server.
    pub fn connect(client: &Namespace) -> Result<Self> {
        Self::connect_to(client, 0)
    }

    /// Connects to one of the guest's servers; a guest has one a vCPU.
    pub fn connect_to(client: &Namespace, server: u16) -> Result<Self> {
        let address: SocketAddr = format!("{GUEST_IP}:{}", GUEST_PORT + server).parse()?;
        let stream = client.enter(|| TcpStream::connect_timeout(&address, REPLY_WAIT))??;
        Self::over(stream)
    }

    /// Waits until the guest's first server answers.
    pub fn await_boot(client: &Namespace) -> Result<Self> {
        let address: SocketAddr = format!("{GUEST_IP}:{GUEST_PORT}").parse()?;
        let deadline = Instant::now() + BOOT_WAIT;
        loop {
            match client.enter(|| TcpStream::connect_timeout(&address, CONNECT_WAIT))? {
                Ok(stream) => return Self::over(stream),
                Err(error) => ensure!(Instant::now() < deadline, "the guest is not there: {error}"),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn over(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(REPLY_WAIT))?;
        stream.set_write_timeout(Some(REPLY_WAIT))?;
        Ok(Self {
            stream: BufReader::new(stream),
            counted: 0,
        })
    }

    /// Port of this side.
    pub fn local_port(&self) -> Result<u16> {
        Ok(self.stream.get_ref().local_addr()?.port())
    }

    /// Stores a value.
    pub fn set(&mut self, value: &[u8]) -> Result<()> {
        let stream = self.stream.get_mut();
        write!(stream, "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${}\r\n", value.len())?;
        stream.write_all(value)?;
        stream.write_all(b"\r\n")?;
        ensure!(self.line()? == "+OK", "the value was refused");
        Ok(())
    }

    /// Reads the value back.
    pub fn get(&mut self) -> Result<Vec<u8>> {
        self.stream
            .get_mut()
            .write_all(b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n")?;
        let line = self.line()?;
        let bytes = line.strip_prefix('$').context("no value")?.parse()?;
        let mut value = vec![0; bytes];
        self.stream.read_exact(&mut value)?;
        ensure!(self.line()?.is_empty(), "more than the value came");
        Ok(value)
    }

    /// Counts up by one, in a counter of this connection's own. The guest must not have counted
    /// twice, nor have forgotten.
    pub fn count(&mut self) -> Result<()> {
        let key = format!("c{}", self.local_port()?);
        let request = format!("*2\r\n$4\r\nINCR\r\n${}\r\n{key}\r\n", key.len());
        self.stream.get_mut().write_all(request.as_bytes())?;
        self.counted += 1;
        let line = self.line()?;
        ensure!(
            line == format!(":{}", self.counted),
            "counted {}, was told {line}",
            self.counted
        );
        Ok(())
    }

    /// How often it counted.
    #[must_use]
    pub fn counted(&self) -> u64 {
        self.counted
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line).context("read a reply")?;
        Ok(line.trim_end().to_owned())
    }
}

/// So many bytes without a period that a frame's length could hide.
#[must_use]
pub fn value(bytes: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..bytes).map(|_| next()).collect()
}
