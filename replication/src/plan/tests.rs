use plover_types::{Certificate, Generation, LogIndex, Position};

use super::*;
use crate::epoch::Side;

const ME: NodeId = NodeId(1);
const OTHER: NodeId = NodeId(2);
const WITNESS: NodeId = NodeId(3);
const SYNC: SyncId = SyncId(LogIndex(9));

fn report(copy: CopyState) -> CopyReport {
    CopyReport {
        sequence: 1,
        incarnation: 1,
        generation: Generation(1),
        applied: LogIndex(20),
        copy,
        delivered: Position::default(),
        sign: Position::default(),
        idle: true,
        uplink_up: true,
        host_facts_hash: 5,
    }
}

/// A group in its first generation, with a sync in flight if one is given.
fn group(primary: NodeId, mode: Mode, valid: &[NodeId], sync: Option<SyncKind>) -> GroupState {
    let mut group = GroupState::default();
    let generation = Generation(1);
    let valid = CopySet::of(valid);
    let role = LogEntry::Role(RoleEntry {
        generation,
        primary,
        mode,
        valid,
    });
    group.apply(LogIndex(1), &role);
    if let Some(kind) = sync {
        group.apply(SYNC.0, &LogEntry::SyncBegin { generation, kind });
    }
    group
}

struct Scene {
    group: GroupState,
    copy: LocalCopy,
    other: Option<CopyReport>,
    other_answers: bool,
    change: fn(&mut View<'_>),
}

fn decide(scene: &Scene) -> Plan {
    let witness = report(CopyState::None);
    let peers = [
        Peer {
            id: OTHER,
            is_replica: true,
            report: scene.other.as_ref(),
            heard_at_tick: 7,
            answers: scene.other_answers,
            standing: Standing::Voter,
            has_log: true,
        },
        Peer {
            id: WITNESS,
            is_replica: false,
            report: Some(&witness),
            heard_at_tick: 7,
            answers: true,
            standing: Standing::Voter,
            has_log: true,
        },
    ];
    let mut view = View {
        own: ME,
        group: &scene.group,
        copy: &scene.copy,
        peers: &peers,
        host_facts_hash: 5,
        uplink_up: true,
        sync_wanted: true,
        failover: None,
        sync_age: Duration::ZERO,
        sync_timeout: Duration::from_secs(5),
        aborted_in_a_row: 0,
        aborted_max: 5,
        fill_allowed: true,
        guest_stands: false,
        guest_stands_alone: false,
        on_backup_loss: OnBackupLoss::Continue,
    };
    (scene.change)(&mut view);
    plan(&view)
}

fn protected(other: Option<CopyState>) -> Scene {
    Scene {
        group: group(ME, Mode::Protected, &[ME, OTHER], None),
        copy: LocalCopy::Running { loaded: None },
        other: other.map(report),
        other_answers: true,
        change: |_| {},
    }
}

fn is_role(plan: &Plan, mode: Mode) -> bool {
    matches!(plan, Plan::Propose(LogEntry::Role(role)) if role.mode == mode && role.primary == ME)
}

fn is_begin(plan: &Plan, wanted: SyncKind) -> bool {
    matches!(plan, Plan::Propose(LogEntry::SyncBegin { kind, .. }) if *kind == wanted)
}

fn is_abort(plan: &Plan) -> bool {
    matches!(plan, Plan::Propose(LogEntry::SyncAbort { sync: SYNC, .. }))
}

#[test]
fn a_protected_primary_syncs_with_a_backup_that_runs() {
    assert!(is_begin(
        &decide(&protected(Some(CopyState::Running))),
        SyncKind::Delta
    ));
    let unwanted = Scene {
        change: |view| view.sync_wanted = false,
        ..protected(Some(CopyState::Running))
    };
    assert_eq!(decide(&unwanted), Plan::Wait);
}

#[test]
fn a_silent_or_void_backup_is_given_up_or_waited_for_as_configured() {
    for other in [None, Some(CopyState::Void), Some(CopyState::None)] {
        assert!(
            is_role(&decide(&protected(other)), Mode::Unprotected),
            "{other:?}"
        );
        let stall = Scene {
            change: |view| view.on_backup_loss = OnBackupLoss::Stall,
            ..protected(other)
        };
        assert_eq!(decide(&stall), Plan::Wait, "{other:?}");
    }
    let refill = Scene {
        change: |view| view.on_backup_loss = OnBackupLoss::Stall,
        ..protected(Some(CopyState::Ready))
    };
    assert!(is_begin(&decide(&refill), SyncKind::Fill));
}

#[test]
fn a_backup_that_does_not_come_up_after_a_sync_is_given_up() {
    let loading = || protected(Some(CopyState::Loading { sync: SYNC }));
    assert_eq!(decide(&loading()), Plan::Wait);
    let late = Scene {
        change: |view| view.sync_age = Duration::from_secs(6),
        ..loading()
    };
    assert!(is_role(&decide(&late), Mode::Unprotected));
}

#[test]
fn a_primary_whose_uplink_is_dead_hands_over_to_one_whose_lives() {
    let dead = Scene {
        change: |view| view.uplink_up = false,
        ..protected(Some(CopyState::Running))
    };
    assert_eq!(decide(&dead), Plan::HandOver(OTHER));
    let mut both = report(CopyState::Running);
    both.uplink_up = false;
    let both = Scene {
        other: Some(both),
        ..dead
    };
    assert!(
        is_begin(&decide(&both), SyncKind::Delta),
        "no better place: go on"
    );
}

#[test]
fn an_unequal_host_is_not_filled() {
    let scene = |hash| Scene {
        group: group(ME, Mode::Unprotected, &[ME], None),
        copy: LocalCopy::Running { loaded: None },
        other: Some(CopyReport {
            host_facts_hash: hash,
            ..report(CopyState::Ready)
        }),
        other_answers: true,
        change: |_| {},
    };
    assert!(is_begin(&decide(&scene(5)), SyncKind::Fill));
    assert_eq!(decide(&scene(6)), Plan::Wait);
}

#[test]
fn a_sync_ends_when_both_certificates_are_the_same_and_is_given_up_otherwise() {
    let scene = |theirs: u8, index: u64| Scene {
        group: group(ME, Mode::Protected, &[ME, OTHER], Some(SyncKind::Delta)),
        copy: LocalCopy::Syncing {
            sync: SyncInFlight {
                id: SYNC,
                kind: SyncKind::Delta,
                ended: false,
            },
            side: Side::Primary,
            progress: Progress::CopiedOut {
                certificate: Certificate([1; 16]),
                position: Position::start_of(LogIndex(index)),
            },
        },
        other: Some(report(CopyState::Staged {
            sync: SYNC,
            certificate: Certificate([theirs; 16]),
        })),
        other_answers: true,
        change: |_| {},
    };
    assert!(matches!(
        decide(&scene(1, 9)),
        Plan::Propose(LogEntry::SyncEnd { sync: SYNC, .. })
    ));
    assert!(is_abort(&decide(&scene(2, 9))), "another certificate");
    assert!(
        is_abort(&decide(&scene(1, 10))),
        "a position beyond the sync"
    );
    let failed = Scene {
        other: Some(report(CopyState::Failed { sync: SYNC })),
        ..scene(1, 9)
    };
    assert!(is_abort(&decide(&failed)));
    let silent = Scene {
        other: None,
        change: |view| view.on_backup_loss = OnBackupLoss::Stall,
        ..scene(1, 9)
    };
    assert!(is_abort(&decide(&silent)));
}

#[test]
fn a_backup_that_leads_takes_over_once_its_copy_runs() {
    let scene = |copy, other: CopyState| Scene {
        group: group(OTHER, Mode::Protected, &[ME, OTHER], None),
        copy,
        other: Some(report(other)),
        other_answers: true,
        change: |_| {},
    };
    let running = LocalCopy::Running { loaded: Some(SYNC) };
    assert!(is_role(
        &decide(&scene(running, CopyState::None)),
        Mode::Unprotected
    ));
    let loading = LocalCopy::Loading { sync: SYNC };
    assert_eq!(decide(&scene(loading, CopyState::None)), Plan::Wait);
    assert_eq!(
        decide(&scene(loading, CopyState::Running)),
        Plan::HandOver(OTHER)
    );
    assert_eq!(
        decide(&scene(LocalCopy::Void, CopyState::Running)),
        Plan::HandOver(OTHER)
    );
    assert_eq!(
        decide(&scene(LocalCopy::Void, CopyState::Loading { sync: SYNC })),
        Plan::Wait
    );
    let died_lately = Scene {
        other_answers: false,
        ..scene(loading, CopyState::Running)
    };
    assert_eq!(decide(&died_lately), Plan::Wait, "its report outlives it");
}
