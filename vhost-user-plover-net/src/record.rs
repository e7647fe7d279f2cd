//! Debugging: writes down each delivered packet, so that a test can compare what two guests were
//! given. It writes to a file from the poll core, which nothing else does: not for production.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use plover_types::{Packet, Position};

/// A file with a JSON line for each delivered packet.
#[derive(Debug)]
pub struct DeliveryRecord(BufWriter<File>);

impl DeliveryRecord {
    /// Creates the file.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn create(path: &Path) -> io::Result<Self> {
        File::create(path).map(|file| Self(BufWriter::new(file)))
    }

    /// Notes a packet: its place in the log, its queue pair, its length and CRC32C.
    fn note(&mut self, position: Position, packet: &Packet<'_>) {
        // A full disk must not stop delivery; the test that reads the file will miss the line.
        let _ = writeln!(
            self.0,
            r#"{{"index":{},"packet":{},"pair":{},"bytes":{},"crc32c":{}}}"#,
            position.index,
            position.packet,
            packet.pair,
            packet.bytes.len(),
            crc32c::crc32c(packet.bytes),
        );
    }

    /// Notes packets that follow each other from `first` on.
    pub fn note_run(&mut self, first: Position, packets: &[Packet<'_>]) {
        for (number, packet) in (first.packet..).zip(packets) {
            let position = Position {
                packet: number,
                ..first
            };
            self.note(position, packet);
        }
    }

    /// Writes out what is buffered.
    pub fn flush(&mut self) {
        let _ = self.0.flush();
    }
}
