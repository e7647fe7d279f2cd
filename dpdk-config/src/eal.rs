//! DPDK's environment: started once per process, never stopped.
//!
//! EAL pins the thread that starts it and makes it "lcore 0" with a mempool cache of its own. Here
//! that thread is a short-lived helper, so the caller keeps its affinity and its identity; a thread
//! that wants the cache asks for it with [`Eal::register_thread`]. EAL installs no signal handler
//! (what `net_tap` would do is told in [`crate::port`]). It is not cleaned up at the end: it could
//! not be started again, and mbufs that are still held stay valid until the process ends.

use std::cell::Cell;
use std::ffi::{CString, c_char, c_int};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::config::{EalConfig, HugePages};
use crate::error::{DpdkError, last_errno};
use crate::log::{self, Capture};

/// An address that no device has. Allowing only it keeps EAL from taking every NIC that is bound to
/// vfio; ports are attached one by one later.
const NO_PCI_DEVICE: &str = "ffff:ff:1f.7";

static STARTED: AtomicBool = AtomicBool::new(false);
static PCI: AtomicBool = AtomicBool::new(false);
static REGISTERED_THREADS: AtomicUsize = AtomicUsize::new(0);

/// DPDK's device and pool tables are changed by one thread at a time.
static CONTROL: Mutex<()> = Mutex::new(());

thread_local! {
    static THIS_THREAD_REGISTERED: Cell<bool> = const { Cell::new(false) };
}

/// Proof that EAL runs.
#[derive(Debug, Clone)]
pub struct Eal {
    _started: (),
}

impl Eal {
    /// Starts EAL; the second call in a process is an error, also after a failed first one.
    ///
    /// The calling thread is left as it was, unless `main_core` asks to pin it.
    pub fn init(config: &EalConfig) -> Result<Eal, DpdkError> {
        config.validate()?;
        let core = match config.main_core {
            Some(core) => core,
            None => first_allowed_core(),
        };
        let arguments = arguments(config, core);
        if STARTED.swap(true, Ordering::SeqCst) {
            return Err(DpdkError::AlreadyInitialised);
        }
        thread::Builder::new()
            .name("dpdk-init".into())
            .spawn(move || start(&arguments))
            .map_err(|_| DpdkError::InitThread)?
            .join()
            .map_err(|_| DpdkError::InitThread)??;
        PCI.store(config.pci, Ordering::SeqCst);
        if let Some(core) = config.main_core {
            pin(core)?;
        }
        Ok(Eal { _started: () })
    }

    /// Gives the calling thread a mempool cache until the guard is dropped. Without one every
    /// allocation and free goes to the pool's shared ring.
    pub fn register_thread(&self) -> Result<RegisteredThread, DpdkError> {
        if THIS_THREAD_REGISTERED.get() {
            return Err(DpdkError::RegisterThread {
                source: Errno::EEXIST,
            });
        }
        // SAFETY: EAL runs, and this thread has no identity in it yet.
        if unsafe { dpdk_sys::rte_thread_register() } != 0 {
            return Err(DpdkError::RegisterThread {
                source: last_errno(),
            });
        }
        THIS_THREAD_REGISTERED.set(true);
        REGISTERED_THREADS.fetch_add(1, Ordering::SeqCst);
        Ok(RegisteredThread {
            _this_thread: PhantomData,
        })
    }

    /// Whether PCI devices may be attached.
    pub(crate) fn uses_pci(&self) -> bool {
        PCI.load(Ordering::SeqCst)
    }

    /// Serialises changes to DPDK's tables.
    pub(crate) fn control() -> MutexGuard<'static, ()> {
        // The lock guards DPDK's tables, not data of ours that a panic could have left half done.
        CONTROL.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The calling thread's identity in EAL; bound to that thread.
#[derive(Debug)]
pub struct RegisteredThread {
    _this_thread: PhantomData<*const ()>,
}

impl Drop for RegisteredThread {
    fn drop(&mut self) {
        // SAFETY: the guard cannot leave the thread that registered.
        unsafe { dpdk_sys::rte_thread_unregister() };
        REGISTERED_THREADS.fetch_sub(1, Ordering::SeqCst);
        THIS_THREAD_REGISTERED.set(false);
    }
}

/// Whether a thread other than this one has a mempool cache.
pub(crate) fn other_threads_registered() -> bool {
    let own = usize::from(THIS_THREAD_REGISTERED.get());
    REGISTERED_THREADS.load(Ordering::SeqCst) > own
}

/// EAL's command line.
fn arguments(config: &EalConfig, core: usize) -> Vec<String> {
    let mut arguments: Vec<String> = ["plover", "--no-telemetry", "--log-level=warning"]
        .map(String::from)
        .into();
    let mut add = |words: &[&str]| arguments.extend(words.iter().map(|&word| word.to_owned()));
    add(&[
        "--lcores",
        &format!("0@{core}"),
        "-m",
        &config.memory_mib.to_string(),
    ]);
    match config.huge_pages {
        // --in-memory would insist on hugepages.
        HugePages::Off => add(&["--no-huge", "--no-shconf"]),
        HugePages::On => add(&["--in-memory"]),
    }
    if config.pci {
        add(&["--allow", NO_PCI_DEVICE]);
    } else {
        add(&["--no-pci", "--iova-mode=va"]);
    }
    if let Some(prefix) = &config.file_prefix {
        add(&["--file-prefix", prefix]);
    }
    arguments
}

/// Calls `rte_eal_init` on this thread, which EAL pins and keeps as its main one.
fn start(arguments: &[String]) -> Result<(), DpdkError> {
    let _control = Eal::control();
    log::redirect();
    let capture = Capture::start();
    let failed = |source| DpdkError::Init {
        arguments: arguments.join(" "),
        log: capture.text(),
        source,
    };
    let words: Result<Vec<CString>, _> = arguments
        .iter()
        .map(|word| CString::new(word.as_str()))
        .collect();
    let words = words.map_err(|_| failed(Errno::EINVAL))?;
    // EAL may keep pointers into its arguments: they live as long as the process.
    let argv: Vec<*mut c_char> = words.into_iter().map(CString::into_raw).collect();
    let argc = argv.len() as c_int;
    // SAFETY: argv holds argc C strings that are never freed.
    let status = unsafe { dpdk_sys::rte_eal_init(argc, argv.leak().as_mut_ptr()) };
    if status < 0 {
        Err(failed(last_errno()))
    } else {
        Ok(())
    }
}

/// The lowest core that this thread may run on: EAL wants a core, and refuses others.
fn first_allowed_core() -> usize {
    let Ok(allowed) = sched_getaffinity(Pid::from_raw(0)) else {
        return 0;
    };
    (0..CpuSet::count())
        .find(|&core| allowed.is_set(core) == Ok(true))
        .unwrap_or(0)
}

fn pin(core: usize) -> Result<(), DpdkError> {
    let failed = |source| DpdkError::Pin { core, source };
    let mut cores = CpuSet::new();
    cores.set(core).map_err(failed)?;
    sched_setaffinity(Pid::from_raw(0), &cores).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(config: &EalConfig) -> String {
        arguments(config, 3).join(" ")
    }

    #[test]
    fn without_hugepages_nothing_is_shared_and_no_bus_is_scanned() {
        let line = line(&EalConfig::default());
        for part in [
            "--no-huge --no-shconf",
            "--no-pci",
            "--no-telemetry",
            "0@3",
            "-m 64",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(!line.contains("--in-memory"), "{line}");
    }

    #[test]
    fn with_hugepages_and_pci_no_device_is_taken_at_start() {
        let config = EalConfig {
            huge_pages: HugePages::On,
            pci: true,
            file_prefix: Some("blue".into()),
            ..EalConfig::default()
        };
        let line = line(&config);
        for part in ["--in-memory", "--allow ffff:ff:1f.7", "--file-prefix blue"] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(
            !line.contains("--no-huge") && !line.contains("--no-pci"),
            "{line}"
        );
    }
}
