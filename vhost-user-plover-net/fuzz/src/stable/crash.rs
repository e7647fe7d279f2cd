//! Keeps the input that fails: by a panic, or by a fault that ends the process.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicUsize, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// The input that runs, for the signal handler, which may only look at atomics.
static INPUT: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
static INPUT_BYTES: AtomicUsize = AtomicUsize::new(0);
static ARTIFACT: AtomicI32 = AtomicI32::new(-1);

/// Writes the running input to `artifacts/NAME-crash` when it ends the process.
pub struct Guard {
    path: std::path::PathBuf,
}

impl Guard {
    /// For the target `name`.
    pub fn new(name: &str) -> std::io::Result<Self> {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("artifacts");
        std::fs::create_dir_all(&folder)?;
        let path = folder.join(format!("{name}-crash"));
        ARTIFACT.store(File::create(&path)?.into_raw_fd(), Ordering::Relaxed);
        let action = SigAction::new(
            SigHandler::Handler(keep_input),
            SaFlags::SA_RESETHAND,
            SigSet::empty(),
        );
        for signal in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGABRT] {
            // SAFETY: the handler only reads atomics, writes to an fd and returns; the second
            // fault of the same kind then ends the process.
            unsafe { sigaction(signal, &action) }?;
        }
        Ok(Self { path })
    }

    /// Runs `scenario`; `input` is kept if it fails.
    pub fn watching(&self, input: &[u8], scenario: impl FnOnce()) {
        INPUT_BYTES.store(input.len(), Ordering::Relaxed);
        INPUT.store(input.as_ptr().cast_mut(), Ordering::Release);
        let result = catch_unwind(AssertUnwindSafe(scenario));
        if let Err(panic) = result {
            write_input();
            eprintln!("the input is kept in {}", self.path.display());
            resume_unwind(panic);
        }
        INPUT.store(std::ptr::null_mut(), Ordering::Release);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Nothing failed, or the panic's input is written already.
        let fd = ARTIFACT.swap(-1, Ordering::Relaxed);
        // SAFETY: `new` took it out of the file that owned it.
        let file = unsafe { File::from_raw_fd(fd) };
        if file.metadata().is_ok_and(|data| data.len() == 0) {
            let _ = std::fs::remove_file(&self.path);
        }
        debug_assert!(file.as_raw_fd() >= 0);
    }
}

extern "C" fn keep_input(_signal: libc::c_int) {
    write_input();
}

fn write_input() {
    let input = INPUT.load(Ordering::Acquire);
    let fd: RawFd = ARTIFACT.load(Ordering::Relaxed);
    if !input.is_null() && fd >= 0 {
        // SAFETY: the input outlives the scenario that runs on it.
        unsafe { libc::write(fd, input.cast(), INPUT_BYTES.load(Ordering::Relaxed)) };
    }
}
