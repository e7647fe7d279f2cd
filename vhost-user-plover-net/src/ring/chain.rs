//! Walking a descriptor chain that the guest wrote. Each descriptor is read once, into locals;
//! every loop is bounded by the table it walks. What the buffers are used for is for the caller.

use std::ops::ControlFlow;
use std::ptr::NonNull;
use std::sync::Arc;

use super::fault::RingFault;
use super::guest_map::{GuestMap, GuestView};
use super::layout::DESCRIPTOR_BYTES;
use crate::limits::CHAIN_DESCRIPTORS_MAX;

const FLAG_NEXT: u16 = 1;
const FLAG_WRITE: u16 = 2;
const FLAG_INDIRECT: u16 = 4;

/// A descriptor as it lies in guest memory. Indirect tables may lie at any address, hence packed.
#[repr(C, packed)]
#[derive(Clone, Copy)]
pub struct Descriptor {
    address: u64,
    bytes: u32,
    flags: u16,
    next: u16,
}

const _: () = assert!(size_of::<Descriptor>() as u64 == DESCRIPTOR_BYTES);

/// What the device does with the buffers of a chain.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Transmit ring: we read.
    Read,
    /// Receive ring: we write.
    Write,
}

/// A buffer of a chain, in guest physical memory, not yet checked against it.
#[derive(Clone, Copy)]
pub struct Buffer {
    /// Where it starts.
    pub address: u64,
    /// Its length; not 0 where [`Chains::walk`] found it.
    pub bytes: u32,
}

#[derive(Clone, Copy)]
struct Table {
    start: NonNull<u8>,
    count: u16,
}

/// The descriptor table of one ring.
pub struct Chains {
    table: Table,
    indirect: bool,
    /// Where indirect tables are looked up.
    tables: GuestView,
}

impl Chains {
    /// # Safety
    /// `start` leads to `count` descriptors in a mapping that `map` keeps alive.
    pub unsafe fn new(map: Arc<GuestMap>, start: NonNull<u8>, count: u16, indirect: bool) -> Self {
        Self {
            table: Table { start, count },
            indirect,
            tables: GuestView::new(map),
        }
    }

    /// The descriptor that a chain starts with.
    #[inline(always)]
    pub fn first(&self, head: u16) -> Result<Descriptor, RingFault> {
        self.table.read(head)
    }

    /// Visits the buffers of the chain that starts with descriptor `first`, empty ones left out,
    /// until `visit` breaks or the chain ends.
    pub fn walk(
        &mut self,
        first: Descriptor,
        access: Access,
        mut visit: impl FnMut(Buffer) -> Result<ControlFlow<()>, RingFault>,
    ) -> Result<(), RingFault> {
        let mut table = self.table;
        let mut descriptor = first;
        let mut inside_indirect = false;
        let mut steps_left = table.count;
        loop {
            steps_left = steps_left.checked_sub(1).ok_or(RingFault::DescriptorLoop)?;
            if descriptor.flags & FLAG_INDIRECT != 0 {
                if inside_indirect {
                    return Err(RingFault::IndirectNested);
                }
                table = self.indirect_table(descriptor)?;
                steps_left = table.count;
                inside_indirect = true;
                descriptor = table.read(0)?;
                continue;
            }
            match (access, descriptor.flags & FLAG_WRITE != 0) {
                (Access::Write, false) => return Err(RingFault::ReadOnlyBuffer),
                (Access::Read, true) => return Err(RingFault::WriteOnlyBuffer),
                _ => {}
            }
            let buffer = Buffer {
                address: descriptor.address,
                bytes: descriptor.bytes,
            };
            if buffer.bytes > 0 && visit(buffer)?.is_break() {
                return Ok(());
            }
            if descriptor.flags & FLAG_NEXT == 0 {
                return Ok(());
            }
            descriptor = table.read(descriptor.next)?;
        }
    }

    fn indirect_table(&mut self, descriptor: Descriptor) -> Result<Table, RingFault> {
        let Descriptor {
            address,
            bytes,
            flags,
            ..
        } = descriptor;
        if !self.indirect {
            return Err(RingFault::IndirectNotNegotiated);
        }
        if flags & FLAG_NEXT != 0 {
            return Err(RingFault::IndirectWithNext);
        }
        let count = u64::from(bytes) / DESCRIPTOR_BYTES;
        let whole = u64::from(bytes).is_multiple_of(DESCRIPTOR_BYTES);
        if count == 0 || !whole || count > CHAIN_DESCRIPTORS_MAX as u64 {
            return Err(RingFault::IndirectLength { bytes });
        }
        let start = self
            .tables
            .whole(address, u64::from(bytes))
            .ok_or(RingFault::BufferOutsideMemory { address, bytes })?;
        Ok(Table {
            start,
            count: count as u16,
        })
    }
}

impl Descriptor {
    /// The one buffer of a chain of one descriptor for this access: how nearly all are.
    #[inline(always)]
    pub fn only_buffer(self, access: Access) -> Option<Buffer> {
        let flags = match access {
            Access::Read => 0,
            Access::Write => FLAG_WRITE,
        };
        (self.flags == flags).then_some(Buffer {
            address: self.address,
            bytes: self.bytes,
        })
    }
}

impl Table {
    #[inline(always)]
    fn read(&self, index: u16) -> Result<Descriptor, RingFault> {
        if index >= self.count {
            return Err(RingFault::DescriptorOutOfRange {
                index,
                count: self.count,
            });
        }
        // SAFETY: the table holds `count` descriptors in a live mapping and `index` is below
        // that; the type is packed, so any address is aligned. Volatile: the guest may rewrite
        // the descriptor at any time, and what is checked must be what is used.
        Ok(unsafe {
            self.start
                .cast::<Descriptor>()
                .add(index as usize)
                .read_volatile()
        })
    }
}
