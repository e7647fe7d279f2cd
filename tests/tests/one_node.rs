//! A VM whose input goes through a log of one node: sequenced, never protected, with nothing to wait
//! for. Its frames are as long as a large MTU allows, over two queue pairs.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use ch_integration::demo::DemoVmm;
use ch_integration::demo::group::beside;
use ch_integration::demo::guest::GUEST_PORT;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use plover_tests::e2e;
use plover_tests::e2e::cable::Cable;
use plover_tests::e2e::capture::Capture;
use plover_tests::e2e::card::Card;
use plover_tests::e2e::redis::{Redis, value};
use plover_tests::e2e::vm::{Image, PAIRS, pair_counts};

const MTU: usize = 9000;
/// Ethernet header; nobody sends tags here.
const ETHERNET_BYTES: usize = 14;
const VALUE_BYTES: usize = 3 << 20;
const CONNECTIONS: u16 = 16;

/// A group of one replica. `folder` is the node's own.
fn config(image: &Image, folder: &Path) -> String {
    let of = |section: &str| {
        let settings = image.settings().into_iter();
        let own = settings.filter_map(|setting| Some(setting.strip_prefix(section)?.to_owned()));
        own.collect::<Vec<_>>().join("\n")
    };
    format!(
        "id = 1\n\
         [group]\nname = \"alone\"\nid = 1\n\
         [[group.nodes]]\nid = 1\nkind = \"replica\"\n\
         [uplink.port]\nvdev = \"net_af_packet0,iface=up0\"\n\
         [eal]\nmemory_mib = 192\n[sync]\nheld_packets_max = 1024\n\
         [guest]\nmac = \"02:00:00:00:00:10\"\nmtu = {MTU}\n{}\n\
         [vmm]\nkind = \"qemu\"\nram_path = {:?}\n{}\n",
        of("guest."),
        folder.join("ram"),
        of("vmm."),
    )
}

/// Exit code and text of `plover status`.
fn status(card: &Card) -> Result<(Option<i32>, String)> {
    let mut command = std::process::Command::new(beside("plover")?);
    let output = command.arg("status").arg(card.config_path()).output()?;
    Ok((output.status.code(), String::from_utf8(output.stdout)?))
}

/// The longest frame from the guest and to it; all with their checksums right.
fn longest(capture: &mut Capture) -> Result<[usize; 2]> {
    let seen = capture.tcp()?;
    let broken = seen.iter().find(|seen| !seen.is_whole);
    ensure!(broken.is_none(), "a checksum is wrong: {broken:?}");
    let longest = |from_guest: bool| {
        let frames = seen
            .iter()
            .filter(|seen| (seen.source_port == GUEST_PORT) == from_guest);
        frames
            .map(|seen| seen.frame_bytes)
            .max()
            .context("nothing was captured")
    };
    Ok([longest(true)?, longest(false)?])
}

#[test]
fn a_vm_of_one_node_is_sequenced_and_never_protected_over_jumbo_frames() -> Result<()> {
    let Some(_turn) = e2e::turn()? else {
        return Ok(());
    };
    let cable = Cable::lay(u32::try_from(MTU)?)?;
    let images = tempfile::tempdir()?;
    let image = Image::of(DemoVmm::Qemu, images.path())?;
    let mut card = Card::start_on(|folder| config(&image, folder), Some(cable.host.entrance()))?;
    let mut redis = Redis::await_boot(&cable.client).with_context(|| card.log())?;

    let mut capture = cable.client.enter(|| Capture::start("cl0"))??;
    let value = value(VALUE_BYTES);
    redis.set(&value)?;
    ensure!(redis.get()? == value, "the value came back changed");
    let longest = longest(&mut capture)?;
    ensure!(
        longest == [ETHERNET_BYTES + MTU; 2],
        "the longest frames have {longest:?} bytes"
    );

    let mut counting = (0..CONNECTIONS)
        .map(|number| Redis::connect_to(&cable.client, number % PAIRS))
        .collect::<Result<Vec<_>>>()?;
    counting.iter_mut().try_for_each(Redis::count)?;
    let pairs = pair_counts(&card.status()?)?;
    eprintln!("packets to and from the guest, by pair: {pairs:?}");
    ensure!(
        pairs
            .iter()
            .all(|(delivered, taken)| *delivered > 0 && *taken > 0)
    );

    let (code, text) = status(&card)?;
    eprint!("{text}");
    ensure!(code == Some(3) && text.contains("its only node: this VM is not protected"));
    ensure!(text.contains("primary is node 1, unprotected") && text.contains("serving true"));
    // Every packet came through the log, and none waits.
    let status = &card.status()?["status"];
    let number = |path: &str| status.pointer(path).and_then(serde_json::Value::as_u64);
    ensure!(
        number("/path/proposed") > Some(0) && number("/held") == Some(0),
        "{status}"
    );
    ensure!(
        card.status()?["host"]["hasher_pid"].is_null(),
        "there is nothing to hash for"
    );

    // Its VM gone, the node has nothing left.
    let vmm = i32::try_from(card.number("/host/vmm_pid")?)?;
    kill(Pid::from_raw(vmm), Signal::SIGKILL)?;
    let ended = card.await_end()?;
    ensure!(ended.code() == Some(1), "{ended}");
    ensure!(
        card.log().contains("it was the only copy of this VM"),
        "{}",
        card.log()
    );
    Ok(())
}
