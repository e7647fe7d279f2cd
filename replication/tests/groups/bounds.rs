//! The log's memory is bounded, whatever a peer does.

use plover_types::{NodeId, Offload, PacketBurst, PacketBurstBuilder};
use replication::limits::{LOG_BYTES_MAX, UNCOMMITTED_BYTES_MAX};
use replication::plan::OnBackupLoss;

use crate::group::Group;

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);

const PACKET_BYTES: usize = 1500;
const BURST_PACKETS: usize = 64;

fn burst() -> PacketBurst {
    let mut builder = PacketBurstBuilder::new();
    for _ in 0..BURST_PACKETS {
        builder
            .push(0, Offload::PLAIN, &[7; PACKET_BYTES])
            .expect("valid");
    }
    builder.finish().expect("not empty")
}

/// Sixty seconds of input, as much as the log takes; the largest it became, and whether it ever
/// refused.
fn sixty_seconds(group: &mut Group) -> (usize, bool) {
    let (mut bytes_max, mut refused) = (0, false);
    let burst = burst();
    for _ in 0..60_000 / 20 {
        for _ in 0..4 {
            refused |= !group.input(A, burst.clone());
            bytes_max = bytes_max.max(group.core(A).log_bytes());
        }
        group.run_ms(20);
    }
    (bytes_max, refused)
}

#[test]
fn a_peer_that_stands_still_costs_a_bounded_log_and_nothing_acknowledged() {
    let mut group = Group::protected_or(OnBackupLoss::Stall);
    group.freeze(B, true);
    let (bytes_max, refused) = sixty_seconds(&mut group);
    let bound = LOG_BYTES_MAX + UNCOMMITTED_BYTES_MAX as usize;
    assert!(bytes_max <= bound, "{bytes_max} of {bound} bytes");
    assert!(
        refused,
        "input is refused where it is admitted, and counted there"
    );
    let applied = group.core(A).applied();
    assert!(group.core(A).group().role().is_some() && group.core(A).leader().0 == Some(A));
    group.freeze(B, false);
    group.run_until("B has what was committed", |group| {
        group.core(B).applied() >= applied
    });
}

#[test]
fn a_primary_that_goes_on_alone_keeps_a_short_log() {
    let mut group = Group::protected_or(OnBackupLoss::Continue);
    group.freeze(B, true);
    group.run_ms(1_000);
    let (bytes_max, refused) = sixty_seconds(&mut group);
    assert!(
        !refused && bytes_max < LOG_BYTES_MAX / 4,
        "{bytes_max} bytes"
    );
}
