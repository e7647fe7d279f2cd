//! A group of one replica: it leads at once, serves without a lease from others, commits what it
//! proposes in the same call, and never grows its log.

use std::time::Duration;

use plover_types::{Mode, NodeId, Offload, PacketBurst, PacketBurstBuilder, Position};
use replication::core::{Action, Core, CoreConfig, CoreError, Event, NodeSpec};
use replication::epoch::{CopyCommand, CopyEvent};
use replication::output_rule::OutputPolicy;
use replication::plan::OnBackupLoss;
use replication::storage::LogStorage;

const ME: NodeId = NodeId(1);
const TICK: Duration = Duration::from_millis(10);

fn config(nodes: u64) -> CoreConfig {
    CoreConfig {
        own: ME,
        nodes: (1..=nodes).map(NodeSpec::replica).collect(),
        joins: false,
        tick: TICK,
        election_ticks: 15,
        sync_timeout: Duration::from_secs(5),
        on_backup_loss: OnBackupLoss::Stall,
        is_durable: false,
        is_restarted: false,
        incarnation: 1,
        host_facts_hash: 0,
    }
}

fn start(config: CoreConfig) -> Result<Core, CoreError> {
    Core::new(config, LogStorage::new(&[ME]), Duration::ZERO)
}

/// A core whose guest runs, before its first tick.
fn serving() -> Core {
    let mut core = start(config(1)).expect("one replica is a group");
    core.step(Duration::ZERO, Event::Copy(CopyEvent::Ready));
    let boots = core
        .take_actions()
        .iter()
        .any(|action| matches!(action, Action::Copy(CopyCommand::Boot)));
    assert!(boots, "it is primary at once");
    core.step(Duration::ZERO, Event::Copy(CopyEvent::Booted));
    core
}

fn burst(number: u32) -> PacketBurst {
    let mut builder = PacketBurstBuilder::new();
    let mut packet = [0; 60];
    packet[..4].copy_from_slice(&number.to_le_bytes());
    builder.push(0, Offload::PLAIN, &packet).expect("valid");
    builder.finish().expect("not empty")
}

#[test]
fn it_serves_at_once_and_for_good_without_an_answer_from_anybody() {
    let mut core = serving();
    assert!(core.is_serving());
    let role = *core.group().role().expect("a role");
    assert_eq!((role.primary, role.mode), (ME, Mode::Unprotected));
    assert_eq!(core.output_policy(false), OutputPolicy::Pass);
    for tick in 1..1000 {
        let now = TICK * tick;
        core.step(now, Event::Tick);
        core.want_sync(now);
        assert!(core.may_transmit(now) && core.may_propose(), "tick {tick}");
    }
    assert!(
        core.group().sync().is_none(),
        "there is nobody to sync with"
    );
    let sends = core
        .take_actions()
        .iter()
        .any(|action| matches!(action, Action::Send(_)));
    assert!(!sends, "nor to talk to");
}

#[test]
fn what_is_proposed_is_delivered_in_order_in_the_same_turn() {
    let mut core = serving();
    let mut seen = Vec::new();
    for number in 0..5000 {
        core.propose(Duration::ZERO, burst(number)).expect("room");
        core.deliver(|_, packet| {
            seen.extend(packet.bytes.first_chunk().map(|it| u32::from_le_bytes(*it)));
            true
        });
    }
    assert!(seen.into_iter().eq(0..5000));
    let bytes_of_a_batch = 1 << 18;
    assert!(core.log_bytes() < bytes_of_a_batch, "{}", core.log_bytes());
}

#[test]
fn what_the_guest_has_no_room_for_stays_in_the_log() {
    let mut core = serving();
    let before = core.position();
    for number in 0..3000 {
        core.propose(Duration::ZERO, burst(number)).expect("room");
        core.deliver(|_, _| false);
    }
    assert_eq!(before.packet, 0);
    let mut count = 0;
    let given = core.deliver(|_, _| {
        count += 1;
        true
    });
    assert_eq!((given, count), (3000, 3000));
    assert_eq!(core.position(), Position::start_of(core.applied().next()));
}

#[test]
fn groups_of_other_sizes_and_lone_witnesses_are_refused_by_name() {
    assert!(matches!(start(config(0)), Err(CoreError::NodeCount(0))));
    assert!(matches!(start(config(2)), Err(CoreError::NodeCount(2))));
    assert!(matches!(start(config(4)), Err(CoreError::NodeCount(4))));
    let mut witness = config(1);
    witness.nodes[0].is_replica = false;
    assert!(matches!(start(witness), Err(CoreError::Alone(ME))));
    let durable = CoreConfig {
        is_durable: true,
        ..config(1)
    };
    assert!(matches!(start(durable), Err(CoreError::Alone(ME))));
}
