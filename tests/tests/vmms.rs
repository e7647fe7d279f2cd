//! Real VMMs on a card without replication, with a guest of two vCPUs and two queue pairs: traffic
//! on both pairs, in both directions; either side is killed under it and comes back, and the guest's
//! connections live.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ch_integration::demo::DemoVmm;
use plover_tests::e2e::cable::Cable;
use plover_tests::e2e::card::{Card, CardConfig};
use plover_tests::e2e::talk::Talk;
use plover_tests::e2e::vm::{Image, PAIRS, Vm, cloud_hypervisor_lack, pair_counts};
use plover_tests::e2e::{self, number_of};

/// Backends that are killed under a VM; `make soak` sets the variable to 100.
const TIMES: (&str, u64) = ("PLOVER_RECONNECTS", 3);
/// Of the VMMs, fewer: a guest takes seconds to boot.
const KILLS_PER_VMM: u64 = 25;
/// Rounds of all connections between two kills.
const ROUNDS: u64 = 20;
/// Connections until both pairs have some.
const CONNECTIONS_MAX: usize = 40;

/// Talks until all pairs carry packets in both directions.
fn use_all_pairs(card: &Card, cable: &Cable, talk: &mut Talk) -> Result<()> {
    for _ in 0..CONNECTIONS_MAX {
        talk.round()?;
        let pairs = pair_counts(&card.status()?)?;
        let all = pairs
            .iter()
            .all(|(delivered, taken)| *delivered > 0 && *taken > 0);
        if all && pairs.len() == usize::from(PAIRS) {
            eprintln!("packets to and from the guest, by pair: {pairs:?}");
            return Ok(());
        }
        talk.connect(&cable.client)?;
    }
    anyhow::bail!(
        "a pair is not used: {:?}\n{}",
        pair_counts(&card.status()?)?,
        card.log()
    )
}

fn card_on(cable: &Cable, listens: bool) -> Result<Card> {
    let mode = if listens { "listen" } else { "connect" };
    Card::start(&CardConfig {
        uplink: "net_af_packet0,iface=up0".to_owned(),
        guest: format!("queue_pairs = {PAIRS}\nsocket_mode = {mode:?}"),
        inside: Some(cable.host.entrance()),
        ..CardConfig::default()
    })
}

/// Boots `vms` VMs on one card, one after another; under each the card's process is killed `kills`
/// times. Then the VMM dies, and the next one takes its place.
fn kill_both_sides(vmm: DemoVmm, vmm_listens: bool, vms: u64, kills: u64) -> Result<()> {
    let cable = Cable::lay(1500)?;
    let mut card = card_on(&cable, !vmm_listens)?;
    let folder = card.folder().to_owned();
    let image = Image::of(vmm, &folder)?;
    let mut rounds = 0;
    for _ in 0..vms {
        let mut vm = Vm::start(vmm, &image, &card.socket(), vmm_listens, &folder)?;
        let mut talk = Talk::start(image.service, &cable.client)
            .with_context(|| format!("{}\n{}", vm.log(), card.log()))?;
        use_all_pairs(&card, &cable, &mut talk)?;
        let talking = talk.go_on()?;
        for _ in 0..kills {
            talking.await_rounds(ROUNDS)?;
            card.kill_after(Duration::ZERO, || Ok(()))?;
            card.launch()?;
        }
        talking.await_rounds(ROUNDS)?;
        rounds += talking.rounds();
        let mut talk = talking
            .stop()
            .with_context(|| format!("{}\n{}", vm.log(), card.log()))?;
        use_all_pairs(&card, &cable, &mut talk)?;
        vm.check()?;
        vm.kill()?;
        remove_dead_socket(&card.socket(), vmm_listens)?;
    }
    eprintln!(
        "{}: {rounds} rounds over {vms} VMMs and {} backends",
        vmm.name(),
        vms * kills + 1
    );
    ensure!(
        card.status()?["status"]["ring_fault"].is_null(),
        "a ring was stopped"
    );
    Ok(())
}

/// A VMM that listens and is killed leaves its socket behind; neither VMM replaces it.
fn remove_dead_socket(socket: &Path, vmm_listens: bool) -> Result<()> {
    if vmm_listens {
        std::fs::remove_file(socket)?;
    }
    Ok(())
}

fn vms_for(kills: u64) -> u64 {
    kills.div_ceil(KILLS_PER_VMM)
}

#[test]
fn qemu_finds_its_backend_again_with_two_queue_pairs() -> Result<()> {
    let Some(_turn) = e2e::turn()? else {
        return Ok(());
    };
    let kills = number_of(TIMES.0, TIMES.1);
    let vms = vms_for(kills);
    kill_both_sides(DemoVmm::Qemu, false, vms, kills / vms)
}

#[test]
fn cloud_hypervisor_finds_its_backend_again_and_a_backend_the_next_one() -> Result<()> {
    if let Some(lack) = cloud_hypervisor_lack() {
        println!("skipped: {lack}");
        return Ok(());
    }
    let Some(_turn) = e2e::turn()? else {
        return Ok(());
    };
    let kills = number_of(TIMES.0, TIMES.1);
    let vms = vms_for(kills) + 1;
    kill_both_sides(DemoVmm::CloudHypervisor, false, vms, kills)
}

#[test]
fn cloud_hypervisor_as_server_is_found_by_each_backend() -> Result<()> {
    if let Some(lack) = cloud_hypervisor_lack() {
        println!("skipped: {lack}");
        return Ok(());
    }
    let Some(_turn) = e2e::turn()? else {
        return Ok(());
    };
    kill_both_sides(
        DemoVmm::CloudHypervisor,
        true,
        2,
        number_of(TIMES.0, TIMES.1),
    )
}
