//! What `net_af_packet` leaves to us: it says that it carries frames of MTU 1500, and its slots
//! (`framesz`) may be larger. So beyond 1500 the MTU follows from slots and interface. The driver
//! refuses packet buffers with less room than its slots.

use nix::errno::Errno;

use crate::error::DpdkError;
use crate::kernel_interface::KernelInterface;
use crate::limits::FRAME_OVERHEAD_BYTES;
use crate::vdev::Vdev;

/// Bytes of a slot unless `framesz=` says otherwise.
pub(crate) const SLOT_BYTES_DEFAULT: u32 = 2048;

/// The largest MTU that the driver takes when it is asked to.
pub(crate) const DRIVER_MTU_MAX: u16 = 1500;

/// Bytes at a slot's start that hold no frame: the kernel's header, an address, and a gap.
const SLOT_HEADER_BYTES: u32 = 80;

/// Slots that make whole pages end to end come in this size.
const SLOT_UNIT_BYTES: u32 = 1024;

/// Bytes of slots that take frames of `mtu`.
pub(crate) fn slot_bytes_for(mtu: u16) -> u32 {
    (u32::from(mtu) + FRAME_OVERHEAD_BYTES + SLOT_HEADER_BYTES).next_multiple_of(SLOT_UNIT_BYTES)
}

/// Bytes of a block of such slots: whole pages, with nothing left over, since the driver counts
/// slots from the ring's start.
pub(crate) fn block_bytes_for(slot_bytes: u32) -> u32 {
    4 * slot_bytes
}

/// The MTU of a device that was asked for `wanted`, beyond what the driver itself would set.
pub(crate) fn large_mtu(
    vdev: &Vdev,
    wanted: u16,
    kernel: Option<&KernelInterface>,
) -> Result<u16, DpdkError> {
    let slot = vdev.slot_bytes().unwrap_or_default();
    if slot < slot_bytes_for(wanted) {
        return Err(refused(format!(
            "{wanted} needs slots of {} bytes, and `{}` has {slot}; leave framesz and blocksz out",
            slot_bytes_for(wanted),
            vdev.text
        )));
    }
    let interface = kernel.map_or(Err(Errno::ENODEV), KernelInterface::mtu);
    let interface =
        interface.map_err(|source| refused(format!("asking the interface: {source}")))?;
    if interface < u32::from(wanted) {
        let name = vdev.interface.as_deref().unwrap_or_default();
        return Err(refused(format!(
            "{wanted} is more than the interface's {interface}; ip link set {name} mtu {wanted}"
        )));
    }
    Ok(wanted)
}

fn refused(reason: String) -> DpdkError {
    DpdkError::Config { key: "mtu", reason }
}
