//! A guest that stands still on a host that lives: the backup takes over if its own goes on, and
//! only then.

use std::time::Duration;

use crate::group::{Group, Guest};
use plover_types::{Mode, NodeId, Offload, PacketBurst, PacketBurstBuilder};
use replication::core::{Action, Notice};

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const WATCHDOG: Duration = Duration::from_millis(500);

fn burst() -> PacketBurst {
    let mut builder = PacketBurstBuilder::new();
    builder
        .push(0, Offload::PLAIN, &[7; 64])
        .expect("it has room");
    builder.finish().expect("not empty")
}

/// Node 1 is the primary; each takes its input.
fn group() -> Group {
    let mut group = Group::protected();
    group.guest(A, Guest::Lives, WATCHDOG);
    group.guest(B, Guest::Lives, WATCHDOG);
    load(&mut group, 300);
    group
}

/// A packet every 10 ms, for so long.
fn load(group: &mut Group, millis: u64) {
    for _ in 0..millis / 10 {
        let primary = if group.may_transmit(B) { B } else { A };
        group.input(primary, burst());
        group.run_ms(10);
    }
}

/// Whether node 1 said something of its guest: that it stands alone, or not alone.
fn told(group: &Group) -> Option<bool> {
    group.last(A, |action| match action {
        Action::Note(Notice::GuestStands { is_alone }) => Some(*is_alone),
        _ => None,
    })
}

#[test]
fn a_backup_whose_guest_goes_on_takes_over_from_one_that_stands_still() {
    let mut group = group();
    group.guest(A, Guest::Stands, WATCHDOG);
    load(&mut group, 700);
    assert!(group.may_transmit(B), "nobody took over");
    assert_eq!(told(&group), Some(true));
    assert_eq!(group.core(A).counters().guest_stood, 1);
    assert_eq!(group.core(B).counters().failovers, 0, "it was asked to");
    group.guest(A, Guest::Lives, WATCHDOG);
    group.run_until("protected again", |group| group.mode() == Mode::Protected);
    load(&mut group, 2000);
    assert!(group.may_transmit(B));
    assert_eq!(group.two_leases, 0);
}

#[test]
fn a_sync_whose_pause_hangs_is_given_up_so_that_the_backup_can_show_that_it_goes_on() {
    let mut group = group();
    group.guest(A, Guest::Stands, WATCHDOG);
    load(&mut group, 50);
    group.want_sync(A);
    load(&mut group, 800);
    assert!(group.may_transmit(B), "nobody took over");
    let is_aborted =
        |action: &Action| matches!(action, Action::Note(Notice::SyncAborted(_))).then_some(());
    assert_eq!(group.last(A, is_aborted), Some(()), "no sync was at work");
    assert_eq!(group.two_leases, 0);
}

#[test]
fn nothing_is_done_about_guests_that_both_stand_still() {
    let mut group = group();
    group.guest(A, Guest::Stands, WATCHDOG);
    group.guest(B, Guest::Stands, WATCHDOG);
    load(&mut group, 900);
    assert_eq!(told(&group), None);
    load(&mut group, 3000);
    assert!(group.may_transmit(A));
    assert_eq!(told(&group), Some(false));
    assert_eq!(group.core(A).counters().guest_stood, 0);
}

#[test]
fn a_guest_that_goes_on_in_time_or_has_nothing_to_do_is_left_alone() {
    let mut group = group();
    for _ in 0..5 {
        group.guest(A, Guest::Stands, WATCHDOG);
        load(&mut group, 400);
        group.guest(A, Guest::Lives, WATCHDOG);
        load(&mut group, 50);
    }
    // No input, and a sync now and then.
    for _ in 0..20 {
        group.run_ms(100);
        group.want_sync(A);
    }
    assert!(group.may_transmit(A));
    assert_eq!(told(&group), None);
}

#[test]
fn without_a_watchdog_nobody_watches() {
    let mut group = group();
    group.guest(A, Guest::Stands, Duration::ZERO);
    load(&mut group, 3000);
    assert!(group.may_transmit(A));
    assert_eq!(told(&group), None);
}
