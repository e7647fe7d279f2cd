//! The memory that entries are built in: chunks, each cut into entries one after another, and used
//! again once all of its entries are gone. In a steady state nothing is allocated.

use std::collections::VecDeque;

use bytes::BytesMut;

use crate::limits::ENTRY_BYTES_MAX;

/// Bytes of a chunk: a few of the longest entries. What an entry keeps alive beside itself is at
/// most this much, for as long as it is in the log.
pub(crate) const CHUNK_BYTES: usize = 512 * 1024;

/// Chunks kept for later when none of their entries is left.
const SPARE_CHUNKS: usize = 4;

const _: () = assert!(CHUNK_BYTES > 2 * ENTRY_BYTES_MAX);

/// Chunks that were filled, oldest first. A log drops its entries in order, so the oldest chunk
/// is the first that can be used again.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    /// The empty rest of each: it keeps the chunk.
    filled: VecDeque<BytesMut>,
}

impl Chunks {
    /// A chunk with all its room, for `rest`, the empty rest of the one before.
    pub(crate) fn replace(&mut self, rest: BytesMut) -> BytesMut {
        if rest.capacity() > 0 {
            self.filled.push_back(rest);
        }
        let chunk = self.reclaim();
        while self.filled.len() > SPARE_CHUNKS && self.reclaim().is_some() {}
        chunk.unwrap_or_else(|| BytesMut::with_capacity(CHUNK_BYTES))
    }

    /// The oldest chunk, if all its entries are gone.
    fn reclaim(&mut self) -> Option<BytesMut> {
        self.filled
            .front_mut()
            .is_some_and(|rest| rest.try_reclaim(CHUNK_BYTES))
            .then(|| self.filled.pop_front())
            .flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(mut chunk: BytesMut) -> (BytesMut, BytesMut) {
        chunk.resize(CHUNK_BYTES - 1, 7);
        let entries = chunk.split();
        (entries, chunk)
    }

    #[test]
    fn a_chunk_is_used_again_once_its_entries_are_gone_and_not_before() {
        let mut chunks = Chunks::default();
        let first = chunks.replace(BytesMut::new());
        let address = first.as_ptr();
        let (entries, rest) = filled(first);
        let entries = entries.freeze();
        let second = chunks.replace(rest);
        assert_ne!(second.as_ptr(), address);
        assert!(entries.iter().all(|byte| *byte == 7));
        drop(entries);
        let (_, rest) = filled(second);
        let third = chunks.replace(rest);
        assert_eq!((third.as_ptr(), third.capacity()), (address, CHUNK_BYTES));
    }

    #[test]
    fn what_a_long_log_needed_is_given_back() {
        let mut chunks = Chunks::default();
        let mut chunk = chunks.replace(BytesMut::new());
        let mut log = Vec::new();
        for _ in 0..20 {
            let (entries, rest) = filled(chunk);
            log.push(entries.freeze());
            chunk = chunks.replace(rest);
        }
        log.clear();
        let (_, rest) = filled(chunk);
        chunks.replace(rest);
        assert_eq!(chunks.filled.len(), SPARE_CHUNKS);
    }
}
