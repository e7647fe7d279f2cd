//! A session: two keys, a counter, and which datagrams came. Datagrams are sealed and opened in
//! place with AES-256-GCM; the nonce is the counter, the header is authenticated with them.

use std::time::Duration;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use super::datagram::{HEADER_BYTES, Header, Kind, TAG_BYTES};
use super::limits::{REJECT_AFTER, REJECT_AFTER_DATAGRAMS, REKEY_AFTER_DATAGRAMS};
use super::window::ReplayWindow;

/// Why a datagram is not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Replayed,
    Forged,
}

pub(super) struct Session {
    /// What the peer writes into the datagrams that it sends us.
    pub(super) own_index: u32,
    peer_index: u32,
    seal_key: LessSafeKey,
    open_key: LessSafeKey,
    counter: u64,
    window: ReplayWindow,
    pub(super) made: Duration,
    /// This side began the handshake.
    pub(super) initiated: bool,
    /// The peer has used it.
    pub(super) heard: bool,
}

/// What a handshake agreed on.
pub(super) struct Agreed<'a> {
    pub(super) own_index: u32,
    pub(super) peer_index: u32,
    pub(super) seal_key: &'a [u8; 32],
    pub(super) open_key: &'a [u8; 32],
    pub(super) initiated: bool,
}

impl Session {
    /// None if the keys have not the cipher's length, which the types rule out.
    pub(super) fn new(now: Duration, agreed: &Agreed<'_>) -> Option<Self> {
        let key = |bytes| Some(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, bytes).ok()?));
        Some(Self {
            own_index: agreed.own_index,
            peer_index: agreed.peer_index,
            seal_key: key(agreed.seal_key)?,
            open_key: key(agreed.open_key)?,
            counter: 0,
            window: ReplayWindow::new(),
            made: now,
            initiated: agreed.initiated,
            heard: false,
        })
    }

    pub(super) fn is_usable(&self, now: Duration) -> bool {
        self.counter < REJECT_AFTER_DATAGRAMS && !self.is_over(now)
    }

    pub(super) fn is_over(&self, now: Duration) -> bool {
        now.saturating_sub(self.made) >= REJECT_AFTER
    }

    pub(super) fn is_used_up(&self) -> bool {
        self.counter >= REKEY_AFTER_DATAGRAMS
    }

    /// Appends a datagram with `parts` put together. None, and `out` as before, if it is longer
    /// than the cipher takes, or the session is used up.
    pub(super) fn seal(&mut self, parts: &[&[u8]], out: &mut Vec<u8>) -> Option<()> {
        if self.counter >= REJECT_AFTER_DATAGRAMS {
            return None;
        }
        let header = Header {
            kind: Kind::Data,
            index: self.peer_index,
            number: self.counter,
        }
        .encode();
        let start = out.len();
        out.extend_from_slice(&header);
        for part in parts {
            out.extend_from_slice(part);
        }
        // Never used again for this key, whatever comes of it.
        self.counter += 1;
        let sealed = self.seal_key.seal_in_place_separate_tag(
            nonce(self.counter - 1),
            Aad::from(header),
            &mut out[start + HEADER_BYTES..],
        );
        let Ok(tag) = sealed else {
            out.truncate(start);
            return None;
        };
        out.extend_from_slice(tag.as_ref());
        Some(())
    }

    /// Opens a datagram of this session, and marks it as come.
    pub(super) fn open<'a>(
        &mut self,
        counter: u64,
        datagram: &'a mut [u8],
    ) -> Result<&'a mut [u8], Refused> {
        if !self.window.is_new(counter) {
            return Err(Refused::Replayed);
        }
        let Some((header, sealed)) = datagram.split_first_chunk_mut::<HEADER_BYTES>() else {
            return Err(Refused::Forged);
        };
        let opened = self
            .open_key
            .open_in_place(nonce(counter), Aad::from(*header), sealed)
            .map_err(|_| Refused::Forged)?;
        self.window.mark(counter);
        self.heard = true;
        Ok(opened)
    }

    #[cfg(test)]
    pub(super) fn skip_to(&mut self, counter: u64) {
        self.counter = counter;
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("own_index", &self.own_index)
            .field("made", &self.made)
            .field("counter", &self.counter)
            .finish_non_exhaustive()
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[NONCE_LEN - 8..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

const _: () = assert!(TAG_BYTES == ring::aead::MAX_TAG_LEN);
