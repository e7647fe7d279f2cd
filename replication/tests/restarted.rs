//! A node with a disk that starts again on another configuration: its log counts for more.

use plover_types::{NodeId, Standing};
use replication::core::{CoreConfig, NodeSpec};
use replication::link::{LinkConfig, Security};
use replication::node::{Durability, Node, NodeSetup};
use replication::plan::OnBackupLoss;
use replication::wire::GroupId;
use tempfile::TempDir;

/// Starts the witness, node 3, of a group with these replicas.
fn start(replicas: [u64; 2], folder: &TempDir) -> Node {
    let [first, second] = replicas.map(NodeSpec::replica);
    let core = CoreConfig {
        own: NodeId(3),
        nodes: vec![first, second, NodeSpec::witness(3)],
        joins: false,
        tick: std::time::Duration::from_millis(10),
        election_ticks: 15,
        sync_timeout: std::time::Duration::from_secs(5),
        on_backup_loss: OnBackupLoss::Continue,
        is_durable: true,
        is_restarted: false,
        incarnation: 1,
        host_facts_hash: 0,
    };
    let setup = NodeSetup {
        core,
        link: LinkConfig {
            group: GroupId(7),
            boot: 1,
            net: None,
            security: Security::Off,
        },
        state_dir: folder.path(),
        durability: Durability::Disk,
        locate: Box::new(|_| None),
    };
    Node::start(setup).expect("a valid setup")
}

#[test]
fn a_configuration_that_names_a_newcomer_makes_it_no_voter() {
    let folder = tempfile::tempdir().expect("a folder");
    drop(start([1, 2], &folder));
    // An operator replaces node 1 by node 4 in all files, as told. What the log says of it comes
    // later, and may not be committed.
    let node = start([4, 2], &folder);
    let members = node.core().group().members();
    assert_eq!(members.standing(NodeId(1)), Some(Standing::Voter));
    assert_eq!(members.standing(NodeId(4)), None);
}
