//! The device as `vhost-user-backend` sees it: what it is ([`CardConfig`](super::CardConfig)), memory
//! tables, and nothing that touches packets. There is no worker thread: the poll core looks at rings and kick fds itself.

use std::io;
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::VhostUserBackend;
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic};
use vmm_sys_util::epoll::EventSet;

use super::session::Session;
use super::vring::Vring;
use crate::limits::QUEUE_SIZE_MAX;
use crate::ring::VmmMemory;

#[derive(Clone)]
pub(super) struct Backend(pub(super) Arc<Session>);

impl VhostUserBackend for Backend {
    type Bitmap = BitmapMmapRegion;
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        self.0.card().rings()
    }

    fn max_queue_size(&self) -> usize {
        usize::from(QUEUE_SIZE_MAX)
    }

    fn features(&self) -> u64 {
        self.0.card().features()
    }

    fn acked_features(&self, features: u64) {
        self.0.set_features(features);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        self.0.card().protocol_features()
    }

    fn get_config(&self, offset: u32, bytes: u32) -> Vec<u8> {
        self.0.card().config_space(offset, bytes)
    }

    fn set_event_idx(&self, _enabled: bool) {
        // Read off the acknowledged features when a ring is started.
    }

    fn update_memory(&self, memory: GuestMemoryAtomic<VmmMemory>) -> io::Result<()> {
        self.0
            .set_memory(&memory.memory().into_inner())
            .map_err(|refusal| {
                self.0.refuse(refusal);
                io::ErrorKind::InvalidInput.into()
            })
    }

    /// No worker threads of the crate's.
    fn queues_per_thread(&self) -> Vec<u64> {
        Vec::new()
    }

    /// The ring was stopped by its own hook already; here a failure can still reach the VMM.
    fn stop_vring(&self, _queue_index: u32) -> io::Result<()> {
        if self.0.is_refused() {
            Err(io::ErrorKind::TimedOut.into())
        } else {
            Ok(())
        }
    }

    fn handle_event(
        &self,
        _device_event: u16,
        _events: EventSet,
        _vrings: &[Vring],
        _thread_id: usize,
    ) -> io::Result<()> {
        // Never called: there are no worker threads.
        Err(io::ErrorKind::Unsupported.into())
    }
}
