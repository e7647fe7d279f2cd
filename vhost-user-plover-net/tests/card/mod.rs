//! What tests of a whole core share: a guest that sends and receives as fast as it can
//! (`net_virtio_user` in this process), and counts of what the core's thread asks of the allocator
//! and of the C library's locks.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::{CStr, c_int, c_void};
use std::path::Path;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dpdk_config::{Burst, Eal, Mempool, Port, PortConfig};

/// Packets are exchanged within this time, or they are lost.
const WAIT: Duration = Duration::from_secs(30);

/// Counts what watched threads allocate.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static LOCKS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static WATCHED: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: all of it is the system's; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(&ALLOCATIONS);
        // SAFETY: promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: promised by the caller.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(&ALLOCATIONS);
        // SAFETY: promised by the caller.
        unsafe { System.realloc(at, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(what: &AtomicU64) {
    if WATCHED.try_with(Cell::get).unwrap_or(false) {
        what.fetch_add(1, Ordering::Relaxed);
    }
}

/// From here on the calling thread is counted.
pub fn watch_this_thread() {
    WATCHED.set(true);
    // Whether counting works at all.
    let before = counted();
    let mut lock = libc::PTHREAD_MUTEX_INITIALIZER;
    // SAFETY: an own mutex, locked and unlocked once.
    unsafe {
        libc::pthread_mutex_lock(&raw mut lock);
        libc::pthread_mutex_unlock(&raw mut lock);
    }
    drop(std::hint::black_box(Box::new(1)));
    assert_eq!(counted(), (before.0 + 1, before.1 + 1));
}

/// Allocations and locks of watched threads so far.
pub fn counted() -> (u64, u64) {
    (
        ALLOCATIONS.load(Ordering::Relaxed),
        LOCKS.load(Ordering::Relaxed),
    )
}

type Lock = unsafe extern "C" fn(*mut c_void) -> c_int;

/// The C library's own function behind one of ours.
fn behind(known: &AtomicPtr<c_void>, name: &CStr) -> Lock {
    let mut found = known.load(Ordering::Relaxed);
    if found.is_null() {
        // SAFETY: a C string; the symbol is the C library's, which stays loaded.
        found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
        known.store(found, Ordering::Relaxed);
    }
    assert!(!found.is_null());
    // SAFETY: each of the functions below takes its lock's address and returns a status.
    unsafe { std::mem::transmute::<*mut c_void, Lock>(found) }
}

macro_rules! counting_locks {
    ($($name:ident),*) => {$(
        /// The C library's, counted.
        ///
        /// # Safety
        /// As the C library's.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(lock: *mut c_void) -> c_int {
            static REAL: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
            count(&LOCKS);
            let name = concat!(stringify!($name), "\0");
            let name = CStr::from_bytes_with_nul(name.as_bytes()).unwrap();
            // SAFETY: promised by the caller.
            unsafe { behind(&REAL, name)(lock) }
        }
    )*};
}

counting_locks!(
    pthread_mutex_lock,
    pthread_mutex_trylock,
    pthread_rwlock_rdlock,
    pthread_rwlock_wrlock,
    pthread_spin_lock
);

/// A guest that sends and receives.
pub struct Guest {
    port: Port,
    pool: Mempool,
    sending: Burst,
    received: Burst,
    pub sent: usize,
    pub taken: usize,
}

impl Guest {
    /// A guest on the card at `socket`.
    pub fn on(eal: &Eal, socket: &Path) -> Self {
        let pool = Mempool::new(eal, "guest", 4095, 256, 2048).unwrap();
        let device = format!("net_virtio_user0,path={},queues=1", socket.display());
        Self {
            port: Port::open(eal, &PortConfig::vdev(device), &pool).unwrap(),
            pool,
            sending: Burst::new(),
            received: Burst::new(),
            sent: 0,
            taken: 0,
        }
    }

    /// Forgets what was not sent yet.
    #[allow(dead_code, reason = "not every test needs it")]
    pub fn rest(&mut self) {
        self.sending.clear();
    }

    /// Sends and receives so many packets more, each way.
    pub fn exchange(&mut self, packets: usize) {
        let (sent, taken) = (self.sent + packets, self.taken + packets);
        let end = Instant::now() + WAIT;
        while self.sent < sent || self.taken < taken {
            self.work(Duration::from_millis(20));
            assert!(
                Instant::now() < end,
                "{} sent, {} received",
                self.sent,
                self.taken
            );
        }
    }

    /// Sends and receives for so long.
    pub fn work(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            let count = self.sending.room();
            if self.pool.alloc_bulk(&mut self.sending, count).is_ok() {
                for mbuf in self.sending.iter_mut().rev().take(count) {
                    mbuf.write(&[&[0x5a; 300]]).unwrap();
                }
            }
            self.sent += self.port.tx_burst(&mut self.sending);
            self.taken += self.port.rx_burst(&mut self.received);
            self.received.clear();
        }
    }
}
