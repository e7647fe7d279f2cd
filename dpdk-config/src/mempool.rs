//! Pools of mbufs. Every packet buffer of a process comes from one and goes back to it.

use std::ffi::CString;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use dpdk_sys as sys;

use crate::eal::{Eal, other_threads_registered};
use crate::error::{AllocError, DpdkError, last_errno};
use crate::limits::MEMPOOL_NAME_BYTES_MAX;
use crate::log::Capture;
use crate::mbuf::{Burst, Mbuf};

/// A pool of mbufs; clones share it. Usable from every thread.
///
/// The pool is freed with its last handle, unless mbufs of it are still held or another thread is
/// registered with EAL (its cache may be in use): then it stays until the process ends.
#[derive(Clone)]
pub struct Mempool(Arc<Pool>);

struct Pool {
    raw: NonNull<sys::rte_mempool>,
    name: String,
    data_room_bytes: u16,
}

// SAFETY: the default pool is a multi-producer, multi-consumer ring, and caches belong to threads.
unsafe impl Send for Pool {}
// SAFETY: as above; all operations go through DPDK's thread-safe calls.
unsafe impl Sync for Pool {}

impl Mempool {
    /// Makes a pool of `mbufs` buffers with `data_room` bytes for a packet in each (a headroom
    /// comes on top). `cache` is the number of mbufs that a registered thread keeps at hand.
    ///
    /// `mbufs` should cover the ports' receive descriptors, what is held, and one cache per thread.
    pub fn new(
        _eal: &Eal,
        name: &str,
        mbufs: u32,
        cache: u32,
        data_room: u16,
    ) -> Result<Mempool, DpdkError> {
        let c_name = check_name(name)?;
        let _control = Eal::control();
        let capture = Capture::start();
        let room = data_room.saturating_add(sys::RTE_PKTMBUF_HEADROOM as u16);
        // SAFETY: EAL runs (`_eal`), the name is a C string, and DPDK checks the numbers.
        let raw = unsafe {
            sys::rte_pktmbuf_pool_create(c_name.as_ptr(), mbufs, cache, 0, room, SOCKET_ANY)
        };
        let raw = NonNull::new(raw).ok_or_else(|| DpdkError::MempoolCreate {
            name: name.to_owned(),
            mbufs,
            data_room_bytes: data_room,
            log: capture.text(),
            source: last_errno(),
        })?;
        Ok(Mempool(Arc::new(Pool {
            raw,
            name: name.to_owned(),
            data_room_bytes: data_room,
        })))
    }

    /// One empty mbuf. In a loop, take [`Mempool::alloc_bulk`].
    pub fn alloc(&self) -> Result<Mbuf, AllocError> {
        // SAFETY: the pool lives as long as `self`.
        let raw = unsafe { sys::rte_pktmbuf_alloc(self.raw()) };
        // SAFETY: what DPDK allocated is ours alone.
        NonNull::new(raw)
            .map(|raw| unsafe { Mbuf::from_raw(raw) })
            .ok_or(AllocError::Empty)
    }

    /// Appends `count` empty mbufs to `burst`: all of them, or none and an error.
    pub fn alloc_bulk(&self, burst: &mut Burst, count: usize) -> Result<(), AllocError> {
        if count > burst.room() {
            return Err(AllocError::BurstFull);
        }
        // SAFETY: the burst has room for `count` pointers, and DPDK fills in all or none.
        unsafe {
            let spare = burst.spare();
            if sys::rte_pktmbuf_alloc_bulk(self.raw(), spare, count as u32) != 0 {
                return Err(AllocError::Empty);
            }
            burst.grow(count);
        }
        Ok(())
    }

    /// Mbufs that are free now. Walks all caches: not for the data path.
    pub fn available(&self) -> u32 {
        // SAFETY: the pool lives as long as `self`.
        unsafe { sys::rte_mempool_avail_count(self.raw()) }
    }

    /// Bytes for packet data in each mbuf.
    pub fn data_room_bytes(&self) -> u16 {
        self.0.data_room_bytes
    }

    pub(crate) fn raw(&self) -> *mut sys::rte_mempool {
        self.0.raw.as_ptr()
    }
}

impl fmt::Debug for Mempool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mempool")
            .field("name", &self.0.name)
            .field("data_room_bytes", &self.0.data_room_bytes)
            .finish_non_exhaustive()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _control = Eal::control();
        // SAFETY: this is the last handle, so nobody allocates any more.
        let held = unsafe { sys::rte_mempool_in_use_count(self.raw.as_ptr()) };
        if held > 0 || other_threads_registered() {
            tracing::debug!(
                pool = self.name,
                held,
                "mempool stays until the process ends"
            );
            return;
        }
        // SAFETY: all mbufs are back, no port holds the pool (ports keep a handle), and no other
        // thread can be inside a cache of it.
        unsafe { sys::rte_mempool_free(self.raw.as_ptr()) };
    }
}

/// DPDK's `SOCKET_ID_ANY`: memory of whichever NUMA node has some.
const SOCKET_ANY: i32 = -1;

fn check_name(name: &str) -> Result<CString, DpdkError> {
    let reason = if name.is_empty() || name.len() > MEMPOOL_NAME_BYTES_MAX {
        format!("`{name}` is not 1 to {MEMPOOL_NAME_BYTES_MAX} bytes long")
    } else {
        match CString::new(name) {
            Ok(name) => return Ok(name),
            Err(_) => format!("`{name}` has a zero byte in it"),
        }
    };
    Err(DpdkError::Config {
        key: "mempool name",
        reason,
    })
}
