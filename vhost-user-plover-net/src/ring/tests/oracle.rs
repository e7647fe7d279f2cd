//! Chains of random, mostly broken descriptors, against rust-vmm's `virtio-queue` on the same
//! memory: what we accept, it reads in the same way.

use std::ops::ControlFlow;
use std::sync::Arc;

use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::super::chain::{Access, Chains};
use super::super::layout::RingLayout;
use crate::ring::{GuestMap, RingFault};
use crate::test_driver::{Driver, INDIRECT, NEXT, layout, memory};

const SIZE: u16 = 8;
const TABLE: u64 = 0x2_0000;

#[derive(Clone, Debug)]
struct Raw {
    address: u64,
    bytes: u32,
    flags: u16,
    next: u16,
}

fn raw() -> impl Strategy<Value = Raw> {
    let address = prop_oneof![Just(TABLE), Just(0x10_0000), any::<u64>()];
    let bytes = prop_oneof![Just(0), Just(16), Just(48), Just(128), 1..3000_u32];
    let flags = prop_oneof![4 => Just(NEXT), 3 => Just(0), 2 => Just(INDIRECT), 1 => 0..8_u16];
    (address, bytes, flags, 0..SIZE + 1).prop_map(|(address, bytes, flags, next)| Raw {
        address,
        bytes,
        flags,
        next,
    })
}

fn ours(driver: &Driver) -> Result<Vec<(u64, u32)>, RingFault> {
    let map = Arc::new(GuestMap::new(Arc::clone(&driver.memory)).unwrap());
    let RingLayout { size, .. } = driver.layout;
    let table = driver.layout.locate(&map).unwrap().descriptors;
    // SAFETY: located in `map`, of `size` descriptors.
    let mut chains = unsafe { Chains::new(map, table, size, true) };
    let mut buffers = Vec::new();
    let first = chains.first(0)?;
    chains.walk(first, Access::Read, |buffer| {
        buffers.push((buffer.address, buffer.bytes));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(buffers)
}

fn theirs(driver: &Driver) -> Vec<(u64, u32)> {
    let mut queue = Queue::new(SIZE).unwrap();
    queue
        .try_set_desc_table_address(GuestAddress(driver.layout.descriptors))
        .unwrap();
    queue
        .try_set_avail_ring_address(GuestAddress(driver.layout.available))
        .unwrap();
    queue
        .try_set_used_ring_address(GuestAddress(driver.layout.used))
        .unwrap();
    queue.set_ready(true);
    let chain = queue.pop_descriptor_chain(&*driver.memory).unwrap();
    let buffers = chain.map(|descriptor| (descriptor.addr().0, descriptor.len()));
    buffers.filter(|(_, bytes)| *bytes > 0).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn what_we_accept_virtio_queue_reads_in_the_same_way(
        direct in prop::collection::vec(raw(), SIZE as usize),
        indirect in prop::collection::vec(raw(), SIZE as usize),
    ) {
        let mut driver = Driver::new(&memory(), layout(0, SIZE));
        for (index, raw) in direct.iter().enumerate() {
            driver.describe(index as u16, (raw.address, raw.bytes), raw.flags, raw.next);
        }
        for (index, raw) in indirect.iter().enumerate() {
            driver.describe_in(TABLE, index as u16, (raw.address, raw.bytes), raw.flags, raw.next);
        }
        driver.offer(0);
        if let Ok(buffers) = ours(&driver) {
            prop_assert_eq!(buffers, theirs(&driver));
        }
    }
}
