//! Finds, sends, checks and applies what differs between two copies of a VM.
//!
//! # A page's path
//!
//! 1. **collect**: [`written_pages`] says which pages the VMM ([`written_pages::uffd`]) and the
//!    backend ([`written_pages::backend_log`]) wrote; both sides' pages and a rotating slice of
//!    those thought untouched are the union ([`exchange::unite`]).
//! 2. **digest**: CRC32C and certificate tag of each page of the union, in one pass ([`digest`],
//!    [`certificate`]).
//! 3. **exchange**: the backup's CRC32Cs go to the primary ([`exchange`], byte forms in
//!    [`protocol`]).
//! 4. **compare**: the primary finds the pages that differ ([`compare`](mod@compare)).
//! 5. **blocks**: of those pages, digests of small blocks tell what to send; it is copied out
//!    ([`blocks`]). The primary's VM runs again.
//! 6. **send**: blocks, device state, and the certificate, over the [`link`] ([`secure`]).
//! 7. **stage**: the backup writes them into a file that the node holds ([`stage`]).
//! 8. **verify**: its memory with the staged blocks laid over it must have the primary's
//!    digests and certificate ([`sync_round`]).
//! 9. **apply**: after the commit, memory is written; repeatable ([`stage::StagedBody::apply`]).
//!
//! [`sync_round::run`] is steps 1 to 8 in order, with one undo arm. [`service`] does what the
//! node asks ([`control`], [`client`]). Bounds are in [`limits`], errors in [`error`].

pub mod attachment;
pub mod blocks;
pub mod certificate;
pub mod client;
pub mod compare;
pub mod config;
pub mod control;
pub mod digest;
pub mod error;
pub mod exchange;
pub mod guest_memory;
pub mod limits;
pub mod link;
pub mod listen;
pub mod page_hash;
pub mod page_set;
pub mod protocol;
pub mod secure;
pub mod service;
pub mod stage;
pub mod state_pack;
pub mod stats;
pub mod stream;
pub mod sync_round;
pub mod written_pages;

#[cfg(test)]
mod testing;
