//! The local copy's states, case by case.

use plover_types::{CopySet, Generation, LogIndex, Mode};

use super::*;

const ME: NodeId = NodeId(2);
const OTHER: NodeId = NodeId(1);
const SYNC: SyncId = SyncId(LogIndex(7));

fn role(primary: NodeId, valid: &[NodeId]) -> RoleEntry {
    let mode = if valid.len() == 2 {
        Mode::Protected
    } else {
        Mode::Unprotected
    };
    RoleEntry {
        generation: Generation(2),
        primary,
        mode,
        valid: CopySet::of(valid),
    }
}

fn flight(kind: SyncKind) -> SyncInFlight {
    SyncInFlight {
        id: SYNC,
        kind,
        ended: false,
    }
}

fn apply(copy: &mut LocalCopy, role: &RoleEntry, applied: &Applied) -> Vec<CopyCommand> {
    let mut commands = Vec::new();
    copy.on_applied(ME, Some(role), applied, true, |command| {
        commands.push(command);
    });
    commands
}

fn ended(kind: SyncKind) -> Applied {
    Applied::SyncEnded {
        sync: flight(kind),
        position: Position::start_of(LogIndex(7)),
        certificate: Certificate::default(),
    }
}

fn staged_backup() -> (LocalCopy, RoleEntry) {
    let role = role(OTHER, &[OTHER, ME]);
    let mut copy = LocalCopy::Running { loaded: None };
    let commands = apply(
        &mut copy,
        &role,
        &Applied::SyncBegan(flight(SyncKind::Delta)),
    );
    assert_eq!(
        commands,
        [CopyCommand::Begin {
            sync: SYNC,
            kind: SyncKind::Delta,
            side: Side::Backup
        }]
    );
    copy.on_event(CopyEvent::Staged {
        sync: SYNC,
        certificate: Certificate::default(),
    });
    assert!(matches!(copy, LocalCopy::Staged { .. }));
    (copy, role)
}

#[test]
fn a_staged_backup_loads_when_the_sync_ends_and_not_before() {
    let (mut copy, role) = staged_backup();
    copy.on_event(CopyEvent::Failed { sync: SYNC });
    assert!(
        matches!(copy, LocalCopy::Staged { .. }),
        "a promise is not taken back"
    );
    let commands = apply(&mut copy, &role, &ended(SyncKind::Delta));
    assert!(matches!(
        commands[..],
        [CopyCommand::Commit { sync: SYNC, .. }]
    ));
    assert!(!copy.serves());
    copy.on_event(CopyEvent::Loaded { sync: SYNC });
    assert_eq!(copy, LocalCopy::Running { loaded: Some(SYNC) });
}

#[test]
fn a_staged_backup_that_becomes_primary_goes_on_with_its_own_copy() {
    let (mut copy, _) = staged_backup();
    let role = role(ME, &[ME]);
    let applied = Applied::Role {
        replaced: Some(role),
        sync: Some(flight(SyncKind::Delta)),
    };
    assert_eq!(
        apply(&mut copy, &role, &applied),
        [CopyCommand::Abort {
            sync: SYNC,
            resume: true
        }]
    );
    assert!(copy.serves());
}

#[test]
fn a_role_that_arrives_while_loading_waits_for_the_load() {
    let (mut copy, old) = staged_backup();
    apply(&mut copy, &old, &ended(SyncKind::Delta));
    let role = role(ME, &[ME]);
    let applied = Applied::Role {
        replaced: Some(old),
        sync: None,
    };
    assert_eq!(apply(&mut copy, &role, &applied), []);
    assert!(!copy.serves() && copy.can_serve());
    copy.on_event(CopyEvent::Loaded { sync: SYNC });
    assert!(copy.serves());
}

#[test]
fn a_copy_that_the_role_does_not_list_is_stopped() {
    let mut copy = LocalCopy::Running { loaded: None };
    let role = role(OTHER, &[OTHER]);
    let applied = Applied::Role {
        replaced: Some(role),
        sync: None,
    };
    assert_eq!(apply(&mut copy, &role, &applied), [CopyCommand::Void]);
    copy.on_event(CopyEvent::Ready);
    assert_eq!(copy, LocalCopy::Ready);
}

#[test]
fn a_backup_without_the_staged_set_is_void_once_the_sync_ends() {
    let role = role(OTHER, &[OTHER, ME]);
    let mut copy = LocalCopy::Running { loaded: None };
    assert_eq!(
        apply(&mut copy, &role, &ended(SyncKind::Delta)),
        [CopyCommand::Void]
    );
}

#[test]
fn an_aborted_fill_leaves_a_copy_that_can_be_filled_again() {
    let role = role(OTHER, &[OTHER]);
    let mut copy = LocalCopy::Ready;
    apply(
        &mut copy,
        &role,
        &Applied::SyncBegan(flight(SyncKind::Fill)),
    );
    assert!(!copy.can_serve());
    let commands = apply(
        &mut copy,
        &role,
        &Applied::SyncAborted(flight(SyncKind::Fill)),
    );
    assert_eq!(
        commands,
        [CopyCommand::Abort {
            sync: SYNC,
            resume: false
        }]
    );
    assert_eq!(copy, LocalCopy::Ready);
}

#[test]
fn a_filled_copy_that_the_group_gives_up_is_stopped() {
    let role = role(OTHER, &[OTHER]);
    let mut copy = LocalCopy::Running { loaded: Some(SYNC) };
    let given_up = SyncInFlight {
        ended: true,
        ..flight(SyncKind::Fill)
    };
    assert_eq!(
        apply(&mut copy, &role, &Applied::SyncAborted(given_up)),
        [CopyCommand::Void]
    );
}

#[test]
fn events_of_another_sync_change_nothing() {
    let (mut copy, _) = staged_backup();
    let before = copy;
    copy.on_event(CopyEvent::Loaded {
        sync: SyncId(LogIndex(3)),
    });
    copy.on_event(CopyEvent::Booted);
    assert_eq!(copy, before);
    copy.on_event(CopyEvent::Lost);
    assert_eq!(copy, LocalCopy::Absent);
}

#[test]
fn a_first_primary_that_started_again_does_not_boot_its_guest_anew() {
    let first = role(ME, &[ME]);
    let applied = Applied::Role {
        replaced: None,
        sync: None,
    };
    let mut copy = LocalCopy::Ready;
    copy.on_applied(ME, Some(&first), &applied, false, |command| {
        panic!("{command:?} of a guest that may have run")
    });
    assert_eq!(copy, LocalCopy::Ready);
    copy.on_applied(ME, Some(&first), &applied, true, |command| {
        assert_eq!(command, CopyCommand::Boot);
    });
    assert_eq!(copy, LocalCopy::Booting);
}
