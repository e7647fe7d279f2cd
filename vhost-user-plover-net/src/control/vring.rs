//! A virtqueue as `vhost-user-backend` sees it. It gathers what the VMM says of the ring and
//! turns starts, stops and changes into commands to the poll core; the crate's own ring state
//! only keeps what the crate itself asks for (ready, enabled, kick).

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use tracing::{debug, info};
use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error as QueueError;
use vm_memory::GuestMemoryAtomic;

use super::mailbox::{Command, RingSetup};
use super::session::{Session, lock};
use crate::error::Refusal;
use crate::event_fd::EventFd;
use crate::limits::QUEUE_SIZE_MAX;
use crate::ring::{RingId, RingLayout, VmmMemory};

type Atomic = GuestMemoryAtomic<VmmMemory>;

thread_local! {
    /// The crate makes vrings itself and hands them nothing of ours, so the session travels past
    /// it for the length of that one call.
    static MAKING: RefCell<Option<Arc<Session>>> = const { RefCell::new(None) };
}

/// Runs `make`, which makes the vrings of `session`.
pub(super) fn making_vrings_of<T>(session: &Arc<Session>, make: impl FnOnce() -> T) -> T {
    MAKING.with_borrow_mut(|making| *making = Some(Arc::clone(session)));
    let made = make();
    MAKING.with_borrow_mut(|making| *making = None);
    made
}

#[derive(Clone)]
pub(super) struct Vring {
    inner: VringMutex<Atomic>,
    session: Arc<Session>,
    ring: RingId,
    known: Arc<Mutex<Known>>,
}

/// What the VMM has said of the ring.
struct Known {
    size: u16,
    /// Descriptor table, available ring, used ring.
    addresses: Option<(u64, u64, u64)>,
    kick: Option<EventFd>,
    call: Option<EventFd>,
    started: bool,
    enabled: bool,
    /// Where the ring stood when it was last stopped.
    index: u16,
}

impl Known {
    fn layout(&self) -> Option<RingLayout> {
        let (descriptors, available, used) = self.addresses?;
        Some(RingLayout {
            size: self.size,
            descriptors,
            available,
            used,
        })
    }
}

impl Vring {
    fn start(&self) {
        let mut known = lock(&self.known);
        if known.started || self.session.is_refused() {
            return;
        }
        let (Some(layout), Some(kick)) = (known.layout(), known.kick.take()) else {
            return self.session.refuse(Refusal::RingNotSetUp(self.ring));
        };
        // The memory table may have changed since the addresses came.
        if let Err(source) = self.session.check_layout(layout) {
            return self.session.refuse(Refusal::RingPlace {
                ring: self.ring,
                source,
            });
        }
        let setup = RingSetup {
            layout,
            features: self.session.ring_features(),
            enabled: known.enabled,
            kick,
            call: known.call.take(),
        };
        known.started = true;
        if self
            .session
            .call_or_refuse(Command::StartRing(self.ring, setup))
            .is_some()
        {
            info!(ring = %self.ring, size = layout.size, enabled = known.enabled, "ring started");
        }
    }

    fn stop(&self) {
        let mut known = lock(&self.known);
        if !std::mem::take(&mut known.started) {
            return;
        }
        if let Some(index) = self.session.call_or_refuse(Command::StopRing(self.ring)) {
            known.index = index;
            info!(ring = %self.ring, index, "ring stopped");
        }
    }

    fn take_fd(&self, what: &'static str, file: Option<&File>) -> Option<EventFd> {
        EventFd::from_vmm(file?)
            .map_err(|source| {
                self.session.refuse(Refusal::Fd {
                    ring: self.ring,
                    what,
                    source,
                });
            })
            .ok()
    }
}

impl<'a> VringStateGuard<'a, Atomic> for Vring {
    type G = MutexGuard<'a, VringState<Atomic>>;
}

impl<'a> VringStateMutGuard<'a, Atomic> for Vring {
    type G = MutexGuard<'a, VringState<Atomic>>;
}

impl VringT<Atomic> for Vring {
    fn new(memory: Atomic, max_queue_size: u16) -> Result<Self, QueueError> {
        let session = MAKING
            .with_borrow(Clone::clone)
            .ok_or(QueueError::QueueNotReady)?;
        let ring = session.next_ring().ok_or(QueueError::InvalidMaxSize)?;
        let known = Known {
            size: QUEUE_SIZE_MAX,
            addresses: None,
            kick: None,
            call: None,
            started: false,
            enabled: false,
            index: 0,
        };
        Ok(Self {
            inner: VringMutex::new(memory, max_queue_size)?,
            session,
            ring,
            known: Arc::new(Mutex::new(known)),
        })
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, Atomic>>::G {
        self.inner.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, Atomic>>::G {
        self.inner.get_mut()
    }

    fn set_queue_size(&self, size: u16) {
        let mut known = lock(&self.known);
        if !RingLayout::size_is_valid(size) {
            self.session.refuse(Refusal::RingSize {
                ring: self.ring,
                size,
            });
        } else if known.started && known.size != size {
            self.session
                .refuse(Refusal::RingChangedWhileStarted(self.ring));
        } else {
            known.size = size;
        }
    }

    fn set_queue_info(
        &self,
        descriptors: u64,
        available: u64,
        used: u64,
    ) -> Result<(), QueueError> {
        let mut known = lock(&self.known);
        let addresses = Some((descriptors, available, used));
        if self.session.is_refused() {
            return Err(QueueError::QueueNotReady);
        }
        if known.started && known.addresses != addresses {
            self.session
                .refuse(Refusal::RingChangedWhileStarted(self.ring));
            return Err(QueueError::QueueNotReady);
        }
        let layout = RingLayout {
            size: known.size,
            descriptors,
            available,
            used,
        };
        if let Err(source) = self.session.check_layout(layout) {
            self.session.refuse(Refusal::RingPlace {
                ring: self.ring,
                source,
            });
            return Err(QueueError::AddressOverflow);
        }
        known.addresses = addresses;
        Ok(())
    }

    fn set_queue_ready(&self, ready: bool) {
        if ready {
            self.start();
        } else {
            self.stop();
        }
        self.inner.set_queue_ready(ready);
    }

    fn set_enabled(&self, enabled: bool) {
        let mut known = lock(&self.known);
        known.enabled = enabled;
        if known.started {
            self.session
                .call_or_refuse(Command::EnableRing(self.ring, enabled));
        }
        drop(known);
        self.inner.set_enabled(enabled);
    }

    fn set_kick(&self, file: Option<File>) {
        let mut known = lock(&self.known);
        if known.started && file.is_some() {
            return self
                .session
                .refuse(Refusal::RingChangedWhileStarted(self.ring));
        }
        known.kick = self.take_fd("kick", file.as_ref());
        drop(known);
        self.inner.set_kick(file);
    }

    fn set_call(&self, file: Option<File>) {
        let mut known = lock(&self.known);
        let call = self.take_fd("call", file.as_ref());
        if known.started {
            self.session
                .call_or_refuse(Command::SetCall(self.ring, call));
        } else {
            known.call = call;
        }
    }

    /// Where the VMM thinks the ring stands. Not used: a restored Cloud Hypervisor sends the
    /// available index, which would skip what the guest has posted. The used index in guest
    /// memory is the position.
    fn set_queue_next_avail(&self, base: u16) {
        debug!(ring = %self.ring, base, "base sent by the VMM");
        lock(&self.known).index = base;
    }

    fn queue_next_avail(&self) -> u16 {
        lock(&self.known).index
    }

    // The rest is what the crate's own ring processing would need, which does not run here.

    fn set_queue_next_used(&self, _index: u16) {}

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        Ok(lock(&self.known).index)
    }

    fn set_queue_event_idx(&self, _enabled: bool) {}

    fn set_err(&self, file: Option<File>) {
        self.inner.set_err(file);
    }

    fn add_used(&self, _descriptor: u16, _bytes: u32) -> Result<(), QueueError> {
        Err(QueueError::QueueNotReady)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        Err(QueueError::QueueNotReady)
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        Err(QueueError::QueueNotReady)
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        Err(QueueError::QueueNotReady)
    }

    fn read_kick(&self) -> io::Result<bool> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
