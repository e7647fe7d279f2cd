//! The device as `vhost-user-backend` sees it: features, memory tables, and nothing that touches
//! packets. There is no worker thread: the poll core looks at rings and kick fds itself.

use std::io;
use std::sync::Arc;

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::VhostUserBackend;
use vhost_user_backend::bitmap::BitmapMmapRegion;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic};
use vmm_sys_util::epoll::EventSet;

use super::session::Session;
use super::vring::Vring;
use crate::limits::{QUEUE_SIZE_MAX, RINGS};
use crate::ring::VmmMemory;

/// Offered to the guest and the VMM. No offloads: a packet is what is on the wire. The log is
/// offered because QEMU refuses to save any state with a backend that could not keep one.
pub(super) const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | VhostUserVirtioFeatures::LOG_ALL.bits()
    | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

#[derive(Clone)]
pub(super) struct Backend(pub(super) Arc<Session>);

impl VhostUserBackend for Backend {
    type Bitmap = BitmapMmapRegion;
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        RINGS
    }

    fn max_queue_size(&self) -> usize {
        usize::from(QUEUE_SIZE_MAX)
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn acked_features(&self, features: u64) {
        self.0.set_features(features);
    }

    /// DEVICE_STATE stays away: Cloud Hypervisor's snapshot would want state that we don't have.
    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::LOG_SHMFD
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
