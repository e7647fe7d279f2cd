//! What the driver of VMM and hasher answers, at once: there is no VM behind these nodes, since
//! what is measured is the log.

use plover_types::Certificate;
use replication::core::Core;
use replication::epoch::{CopyCommand, CopyEvent, Side};

/// Both sides of a sync find the same.
const CERTIFICATE: Certificate = Certificate([7; 16]);

/// Does what a command asks of the core, and says what the driver reports.
pub fn answer(core: &mut Core, command: CopyCommand) -> Option<CopyEvent> {
    match command {
        CopyCommand::Boot => {
            core.lift_barrier(None);
            Some(CopyEvent::Booted)
        }
        CopyCommand::Begin { sync, side, .. } => Some(match side {
            Side::Primary => {
                // Input before the sync point belongs to the epoch.
                core.deliver_runs(|_, packets| packets.len());
                let position = core.position();
                core.lift_barrier(Some(sync));
                CopyEvent::CopiedOut {
                    sync,
                    certificate: CERTIFICATE,
                    position,
                }
            }
            Side::Backup => CopyEvent::Staged {
                sync,
                certificate: CERTIFICATE,
            },
        }),
        CopyCommand::Commit { sync, position } => {
            let is_there = core.seek(position);
            core.lift_barrier(Some(sync));
            Some(if is_there {
                CopyEvent::Loaded { sync }
            } else {
                CopyEvent::LoadFailed { sync }
            })
        }
        CopyCommand::Abort { sync, .. } => {
            core.lift_barrier(Some(sync));
            None
        }
        CopyCommand::Void => Some(CopyEvent::Ready),
        CopyCommand::Finish { .. } => None,
    }
}
