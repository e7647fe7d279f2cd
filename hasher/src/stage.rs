//! The staging file: everything that turns the backup's memory into the primary's, complete and
//! checked, before any of it is applied.
//!
//! The node creates the file (a memfd) and holds it, so that it outlives this process. Layout:
//! a header of [`HEADER_BYTES`], the page records of `blocks`, the device state. The header is
//! written last and holds checksums of all, so a file either holds a whole set or none.
//! Applying is redo: it can be done any number of times, from the start.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use plover_types::{Certificate, LogIndex, Position, SyncId};

use crate::blocks::Record;
use crate::error::StageError;
use crate::guest_memory::{GuestMemory, Mapping};
use crate::limits::DEVICE_STATE_BYTES_MAX;
use crate::page_set::{MemoryMap, PageSet};

/// Bytes before the records.
pub const HEADER_BYTES: usize = 4096;

const MAGIC: [u8; 8] = *b"PLVSTAGE";
const VERSION: u64 = 1;

/// Bytes of the header that hold fields, before the checksum.
const FIELDS_BYTES: usize = 8 * 8 + 16 + 8;

/// What the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageHeader {
    /// The sync that was staged.
    pub sync: SyncId,
    /// The primary's delivered position at the sync point.
    pub position: Position,
    /// What both hashers agreed on.
    pub certificate: Certificate,
    /// Page records.
    pub records: u64,
    /// Their bytes.
    pub records_bytes: u64,
    /// Bytes of device state after them.
    pub state_bytes: u64,
}

/// The file being written.
#[derive(Debug)]
pub struct Stage {
    file: File,
    records: u64,
    records_bytes: u64,
    state_bytes: u64,
    body_crc: u32,
}

impl Stage {
    /// Takes the node's file as it is.
    #[must_use]
    pub fn new(file: OwnedFd) -> Self {
        let file = File::from(file);
        Self {
            file,
            records: 0,
            records_bytes: 0,
            state_bytes: 0,
            body_crc: 0,
        }
    }

    /// Drops what is staged and begins anew.
    ///
    /// # Errors
    /// If the file cannot be truncated.
    pub fn clear(&mut self) -> Result<(), StageError> {
        self.file.set_len(0).map_err(io_error("truncate"))?;
        (
            self.records,
            self.records_bytes,
            self.state_bytes,
            self.body_crc,
        ) = (0, 0, 0, 0);
        Ok(())
    }

    /// Adds page records, whose form and pages the caller has checked.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn append_records(&mut self, records: u64, bytes: &[u8]) -> Result<(), StageError> {
        assert_eq!(self.state_bytes, 0, "records come before the state");
        self.append(bytes)?;
        self.records += records;
        self.records_bytes += bytes.len() as u64;
        Ok(())
    }

    /// Adds device state.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn append_state(&mut self, bytes: &[u8]) -> Result<(), StageError> {
        self.append(bytes)?;
        self.state_bytes += bytes.len() as u64;
        Ok(())
    }

    /// Page records so far.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Bytes of device state so far.
    #[must_use]
    pub fn state_bytes(&self) -> u64 {
        self.state_bytes
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), StageError> {
        let at = HEADER_BYTES as u64 + self.records_bytes + self.state_bytes;
        self.file
            .write_all_at(bytes, at)
            .map_err(io_error("write"))?;
        self.body_crc = crc32c::crc32c_append(self.body_crc, bytes);
        Ok(())
    }

    /// What was appended so far, for verifying it before the header makes it count.
    ///
    /// # Errors
    /// If the file cannot be mapped.
    pub fn unsealed(&self) -> Result<StagedBody, StageError> {
        StagedBody::map(&self.file, self.records_bytes, self.state_bytes)
    }

    /// Writes the header: from here on the file holds a staged set.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn seal(
        &self,
        sync: SyncId,
        position: Position,
        certificate: Certificate,
    ) -> Result<StageHeader, StageError> {
        let header = StageHeader {
            sync,
            position,
            certificate,
            records: self.records,
            records_bytes: self.records_bytes,
            state_bytes: self.state_bytes,
        };
        let bytes = header.encode(self.body_crc);
        self.file
            .write_all_at(&bytes, 0)
            .map_err(io_error("write"))?;
        Ok(header)
    }

    /// Looks for a whole staged set, whoever wrote it, and checks all of it.
    ///
    /// # Errors
    /// If there is none, or it is damaged.
    pub fn open(&self, layout: &MemoryMap) -> Result<(StageHeader, StagedBody), StageError> {
        let mut bytes = [0; HEADER_BYTES];
        match self.file.read_exact_at(&mut bytes, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(StageError::Empty("the file is empty"));
            }
            other => other.map_err(io_error("read"))?,
        }
        let (header, body_crc) = StageHeader::decode(&bytes)?;
        let length = self.file.metadata().map_err(io_error("examine"))?.len();
        let body_bytes = header.records_bytes.checked_add(header.state_bytes);
        let need = body_bytes.and_then(|bytes| bytes.checked_add(HEADER_BYTES as u64));
        if need.is_none_or(|need| need > length) {
            return Err(StageError::Damaged("it is shorter than its header says"));
        }
        let body = StagedBody::map(&self.file, header.records_bytes, header.state_bytes)?;
        if body.checksum() != body_crc {
            return Err(StageError::Damaged("its body has another checksum"));
        }
        let mut records = 0;
        for record in body.records() {
            if !layout.all().contains(record?.page) {
                return Err(StageError::Damaged("it names a page outside the guest"));
            }
            records += 1;
        }
        if records != header.records {
            return Err(StageError::Damaged("it has another number of records"));
        }
        Ok((header, body))
    }
}

impl StageHeader {
    fn encode(&self, body_crc: u32) -> [u8; HEADER_BYTES] {
        let words = [
            VERSION,
            self.sync.0.0,
            self.position.index.0,
            self.position.packet.into(),
            self.records,
            self.records_bytes,
            self.state_bytes,
        ];
        let mut fields = Vec::with_capacity(FIELDS_BYTES);
        fields.extend_from_slice(&MAGIC);
        words
            .iter()
            .for_each(|word| fields.extend_from_slice(&word.to_le_bytes()));
        fields.extend_from_slice(&self.certificate.0);
        fields.extend_from_slice(&u64::from(body_crc).to_le_bytes());
        let checksum = crc32c::crc32c(&fields);
        let mut bytes = [0; HEADER_BYTES];
        bytes[..FIELDS_BYTES].copy_from_slice(&fields);
        bytes[FIELDS_BYTES..FIELDS_BYTES + 4].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<(Self, u32), StageError> {
        if bytes[..8] != MAGIC {
            return Err(StageError::Empty("no header was written"));
        }
        let word = |n: usize| {
            let (words, _) = bytes.as_chunks::<8>();
            u64::from_le_bytes(words[n])
        };
        let checksum = crc32c::crc32c(&bytes[..FIELDS_BYTES]);
        if bytes[FIELDS_BYTES..FIELDS_BYTES + 4] != checksum.to_le_bytes() {
            return Err(StageError::Damaged("its header has another checksum"));
        }
        if word(1) != VERSION {
            return Err(StageError::Damaged("its header is of another version"));
        }
        let mut certificate = [0; 16];
        certificate.copy_from_slice(&bytes[64..80]);
        let packet = u32::try_from(word(4));
        let header = Self {
            sync: SyncId(LogIndex(word(2))),
            position: Position {
                index: LogIndex(word(3)),
                packet: packet.map_err(|_| StageError::Damaged("its position is too large"))?,
            },
            certificate: Certificate(certificate),
            records: word(5),
            records_bytes: word(6),
            state_bytes: word(7),
        };
        if header.state_bytes > DEVICE_STATE_BYTES_MAX as u64 {
            return Err(StageError::Damaged("its device state is too long"));
        }
        Ok((header, word(10) as u32))
    }
}

/// Records and device state of a staged set, mapped.
#[derive(Debug)]
pub struct StagedBody {
    mapping: Option<Mapping>,
    records_bytes: usize,
    state_bytes: usize,
}

impl StagedBody {
    fn map(file: &File, records_bytes: u64, state_bytes: u64) -> Result<Self, StageError> {
        let length = |bytes: u64| {
            usize::try_from(bytes).map_err(|_| StageError::Damaged("it is too long to be mapped"))
        };
        let (records_bytes, state_bytes) = (length(records_bytes)?, length(state_bytes)?);
        let bytes = records_bytes + state_bytes;
        let mapping = (bytes > 0)
            .then(|| Mapping::new(file, HEADER_BYTES as u64, bytes, false))
            .transpose()
            .map_err(io_error("map"))?;
        Ok(Self {
            mapping,
            records_bytes,
            state_bytes,
        })
    }

    fn bytes(&self) -> &[u8] {
        let Some(mapping) = &self.mapping else {
            return &[];
        };
        // SAFETY: a live mapping of this length; the file is written by this process only, and
        // never while a body is mapped (the stage is borrowed or at rest). The node, which holds
        // the file too, is trusted not to write it.
        unsafe { std::slice::from_raw_parts(mapping.start().as_ptr(), mapping.bytes()) }
    }

    fn checksum(&self) -> u32 {
        crc32c::crc32c(self.bytes())
    }

    /// The device state.
    #[must_use]
    pub fn state(&self) -> &[u8] {
        let (_, state) = self.bytes().split_at(self.records_bytes);
        debug_assert_eq!(state.len(), self.state_bytes);
        state
    }

    /// The records, in order. Ends after the first bad one.
    pub fn records(&self) -> impl Iterator<Item = Result<Record<'_>, StageError>> {
        let mut rest = &self.bytes()[..self.records_bytes];
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let split = Record::split_first(rest);
            rest = split.as_ref().map_or(&[][..], |(_, rest)| *rest);
            Some(split.map(|(record, _)| record).map_err(StageError::from))
        })
    }

    /// Writes every record into guest memory. May be repeated after any interruption. Returns
    /// the number of pages.
    ///
    /// # Errors
    /// If a record is bad. [`Stage::open`] has checked them all, so nothing was written then.
    pub fn apply(&self, memory: &GuestMemory) -> Result<usize, StageError> {
        let named = self.records().map(|record| Ok(record?.page));
        memory.prepare_writes(&named.collect::<Result<PageSet, StageError>>()?);
        let mut pages = 0;
        for record in self.records() {
            record?.apply(memory);
            pages += 1;
        }
        Ok(pages)
    }
}

fn io_error(doing: &'static str) -> impl Fn(io::Error) -> StageError {
    move |source| StageError::Io { doing, source }
}

#[cfg(test)]
mod tests {
    use plover_types::PageIndex;

    use super::*;
    use crate::blocks::append_whole;
    use crate::guest_memory::PageBuf;
    use crate::testing::{guest, memfd};

    const SYNC: SyncId = SyncId(LogIndex(12));

    fn staged(file: OwnedFd) -> (Stage, StageHeader) {
        let mut stage = Stage::new(file);
        let mut records = Vec::new();
        append_whole(&mut records, PageIndex(1), &[5; 4096]);
        append_whole(&mut records, PageIndex(3), &[0; 4096]);
        stage.clear().expect("clear");
        stage.append_records(2, &records).expect("records");
        stage.append_state(b"device state").expect("state");
        let position = Position {
            index: LogIndex(11),
            packet: 2,
        };
        let header = stage
            .seal(SYNC, position, Certificate([3; 16]))
            .expect("seal");
        (stage, header)
    }

    #[test]
    fn another_process_finds_the_staged_set_and_applies_it_twice() {
        let memory = guest(&[(0, 4)]);
        memory.write(PageIndex(3), 0, &[9; 4096]);
        let file = memfd(0);
        let (_, header) = staged(file.try_clone().expect("dup"));
        let found = Stage::new(file);
        for _ in 0..2 {
            let (again, body) = found.open(memory.layout()).expect("whole");
            assert_eq!(again, header);
            assert_eq!(body.state(), b"device state");
            assert_eq!(body.apply(&memory).expect("apply"), 2);
            let mut page = PageBuf::default();
            memory.read_page(PageIndex(1), &mut page);
            assert!(page.0.iter().all(|byte| *byte == 5));
            memory.read_page(PageIndex(3), &mut page);
            assert!(page.0.iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn a_set_without_its_header_is_no_set() {
        let memory = guest(&[(0, 4)]);
        let (mut stage, _) = staged(memfd(0));
        stage.clear().expect("clear");
        assert!(matches!(
            stage.open(memory.layout()),
            Err(StageError::Empty(_))
        ));
        stage.append_state(b"x").expect("state");
        assert!(matches!(
            stage.open(memory.layout()),
            Err(StageError::Empty(_))
        ));
    }

    #[test]
    fn every_damaged_byte_is_noticed() {
        let memory = guest(&[(0, 4)]);
        let (stage, header) = staged(memfd(0));
        let body =
            HEADER_BYTES..HEADER_BYTES + (header.records_bytes + header.state_bytes) as usize;
        for at in (0..FIELDS_BYTES + 4).chain(body.step_by(7)) {
            let mut byte = [0];
            stage
                .file
                .read_exact_at(&mut byte, at as u64)
                .expect("read");
            stage
                .file
                .write_all_at(&[byte[0] ^ 0x10], at as u64)
                .expect("write");
            assert!(stage.open(memory.layout()).is_err(), "byte {at}");
            stage.file.write_all_at(&byte, at as u64).expect("write");
        }
        assert!(stage.open(memory.layout()).is_ok());
        stage.file.set_len(HEADER_BYTES as u64 + 4).expect("cut");
        assert!(stage.open(memory.layout()).is_err());
    }

    #[test]
    fn a_page_outside_the_guest_is_noticed() {
        let (stage, _) = staged(memfd(0));
        assert!(stage.open(guest(&[(0, 3)]).layout()).is_err());
    }
}
