//! Reads the fields of a message, never past its end. Slices share the message's buffer.

use bytes::Bytes;

use super::WireError;
use super::limits::INDEX_AND_TERM_MAX;

pub(super) struct Fields {
    bytes: Bytes,
    at: usize,
}

impl Fields {
    pub(super) fn new(bytes: Bytes) -> Self {
        Self { bytes, at: 0 }
    }

    /// Fails if anything was left unread.
    pub(super) fn finish(self) -> Result<(), WireError> {
        match self.bytes.len() - self.at {
            0 => Ok(()),
            trailing => Err(WireError::Trailing(trailing)),
        }
    }

    fn advance(&mut self, count: usize) -> Result<usize, WireError> {
        let start = self.at;
        let have = self.bytes.len();
        if count > have - start {
            return Err(WireError::Short {
                have,
                need: start.saturating_add(count),
            });
        }
        self.at += count;
        Ok(start)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let start = self.advance(N)?;
        let mut out = [0; N];
        out.copy_from_slice(&self.bytes[start..start + N]);
        Ok(out)
    }

    pub(super) fn slice(&mut self, count: usize) -> Result<Bytes, WireError> {
        let start = self.advance(count)?;
        Ok(self.bytes.slice(start..start + count))
    }

    pub(super) fn u8(&mut self) -> Result<u8, WireError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn i64(&mut self) -> Result<i64, WireError> {
        self.array().map(i64::from_le_bytes)
    }

    pub(super) fn flag(&mut self, field: &'static str) -> Result<bool, WireError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(WireError::Field {
                field,
                value: other.into(),
            }),
        }
    }

    /// An index or a term that may be 0.
    pub(super) fn bounded(&mut self, field: &'static str) -> Result<u64, WireError> {
        match self.u64()? {
            value if value < INDEX_AND_TERM_MAX => Ok(value),
            value => Err(WireError::Field { field, value }),
        }
    }

    /// An index or a term that may not be 0.
    pub(super) fn positive(&mut self, field: &'static str) -> Result<u64, WireError> {
        match self.bounded(field)? {
            0 => Err(WireError::Field { field, value: 0 }),
            value => Ok(value),
        }
    }
}
