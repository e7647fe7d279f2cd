//! Times and counts of sessions and handshakes, each with its reason.

use std::time::Duration;

/// Version of the datagrams' byte form and of the handshake.
pub const SECURE_VERSION: u8 = 1;

/// Who made a session makes the next one after this long, so that a key that leaks later opens
/// no more than this much of what was recorded.
pub const REKEY_AFTER: Duration = Duration::from_secs(120);

/// If who made it does not, the other side does.
pub const REKEY_GRACE: Duration = Duration::from_secs(10);

/// A session seals and opens nothing after this long: a minute for handshakes that fail.
pub const REJECT_AFTER: Duration = Duration::from_secs(180);

/// Datagrams sealed under one key, after which a new session is made. With datagrams of at most
/// 9600 bytes this is 2^35.3 AES blocks, so what AES-GCM loses to being a permutation stays below
/// 2^-57, the bound that TLS 1.3 and QUIC keep to.
pub const REKEY_AFTER_DATAGRAMS: u64 = 1 << 26;

/// Datagrams sealed under one key, at most; far from where the 64-bit counter would wrap.
pub const REJECT_AFTER_DATAGRAMS: u64 = 1 << 28;

/// A datagram may come so many places late. A leader sends some hundred thousand a second, so
/// this is tens of milliseconds.
pub const REPLAY_WINDOW: usize = 8192;

/// First wait for a handshake's answer: above any round trip in one site.
pub const RETRY_FIRST: Duration = Duration::from_millis(10);

/// Longest wait between tries, so that a peer that comes back within reach is met soon.
pub const RETRY_MAX: Duration = Duration::from_secs(1);

/// An offered session that nobody confirmed holds back own tries for so long.
pub const OFFER_HOLDS: Duration = Duration::from_millis(100);

/// After so long without sending, something that came is answered with an empty datagram.
pub const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(5);

/// A peer that was sent something and has been silent for so long may have lost the session.
pub const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Hellos looked at per second and at once, for each peer's address: what a stranger that uses it
/// can make us compute. The other messages of a handshake are known by their random numbers first.
pub const HELLOS_PER_SECOND: u32 = 1000;
/// See [`HELLOS_PER_SECOND`].
pub const HELLOS_AT_ONCE: u32 = 64;

/// Handshakes per second and at once that a peer which has the keys may make us compute.
pub const HANDSHAKES_PER_SECOND: u32 = 20;
/// See [`HANDSHAKES_PER_SECOND`].
pub const HANDSHAKES_AT_ONCE: u32 = 10;

const _: () = assert!(REKEY_AFTER.as_secs() + REKEY_GRACE.as_secs() < REJECT_AFTER.as_secs());
const _: () = assert!(REKEY_AFTER_DATAGRAMS < REJECT_AFTER_DATAGRAMS);
const _: () = assert!(REPLAY_WINDOW.is_power_of_two() && REPLAY_WINDOW >= 2048);
const _: () = assert!(KEEP_ALIVE_AFTER.as_secs() < SILENCE_MAX.as_secs());
