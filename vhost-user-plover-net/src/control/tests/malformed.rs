//! What no VMM may send: the connection is dropped, counted, logged, and the next one is served.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vhost::vhost_user::{VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};

use super::bench::{
    Bench, Core, MEMORY_BYTES, VMM_BASE, Vmm, false_eventfd, guest_file, wait_until,
};

/// Whether the server hung up.
fn is_dropped(stream: &mut UnixStream) -> bool {
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

fn message(request: u32, flags: u32, size: u32, body: &[u8]) -> Vec<u8> {
    let header = [
        request.to_le_bytes(),
        flags.to_le_bytes(),
        size.to_le_bytes(),
    ]
    .concat();
    [&header, body].concat()
}

/// Serves a whole VMM, to show that the server lives.
fn serves(bench: &Bench) {
    let mut vmm = Vmm::on(bench.connect(), guest_file());
    vmm.start();
    vmm.post_buffer(0);
    vmm.send(0, &[5; 100]);
    wait_until("a frame comes back", || vmm.receive() == [vec![5; 100]]);
}

#[test]
fn malformed_messages_drop_the_connection_and_the_next_is_served() {
    let (bench, _core) = Bench::echoing();
    let bad = [
        ("unknown request", message(200, 1, 0, &[])),
        ("request 0", message(0, 1, 0, &[])),
        ("version 2", message(1, 2, 0, &[])),
        ("reserved flags", message(1, 0xf1, 0, &[])),
        ("a reply", message(3, 5, 0, &[])),
        (
            "body larger than a message may be",
            message(2, 1, u32::MAX, &[]),
        ),
        ("features of 4 bytes", message(2, 1, 4, &[0; 4])),
        (
            "features that were not offered",
            message(2, 1, 8, &[0xff; 8]),
        ),
        ("GET_FEATURES with a body", message(1, 1, 8, &[0; 8])),
        (
            "memory table without fds",
            message(5, 1, 40, &[1, 0, 0, 0].repeat(10)),
        ),
        ("memory table of no regions", message(5, 1, 8, &[0; 8])),
        (
            "memory table of 2^32-1 regions",
            message(5, 1, 8, &[255, 255, 255, 255, 0, 0, 0, 0]),
        ),
        ("ring 7", message(8, 1, 8, &[7, 0, 0, 0, 64, 0, 0, 0])),
        ("ring size 0", message(8, 1, 8, &[0; 8])),
        (
            "ring size 100",
            message(8, 1, 8, &[0, 0, 0, 0, 100, 0, 0, 0]),
        ),
        (
            "ring size 2048",
            message(8, 1, 8, &[0, 0, 0, 0, 0, 8, 0, 0]),
        ),
        (
            "ring size 32769",
            message(8, 1, 8, &[0, 0, 0, 0, 1, 0x80, 0, 0]),
        ),
        (
            "ring size 65600",
            message(8, 1, 8, &[0, 0, 0, 0, 64, 0, 1, 0]),
        ),
        ("addresses before memory", message(9, 1, 40, &[0; 40])),
        ("kick without its fd", message(12, 1, 8, &[0; 8])),
        ("call without its fd", message(13, 1, 8, &[0; 8])),
        (
            "an fd for a log that was not negotiated",
            message(6, 1, 16, &[0; 16]),
        ),
        (
            "stop of ring 9",
            message(11, 1, 8, &[9, 0, 0, 0, 0, 0, 0, 0]),
        ),
        ("half a header, then gone", vec![1, 0, 0]),
    ];
    for (number, (what, bytes)) in bad.iter().enumerate() {
        let mut stream = bench.connect();
        stream.write_all(bytes).unwrap();
        if bytes.len() < 12 {
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        }
        assert!(is_dropped(&mut stream), "{what}: still connected");
        wait_until(what, || {
            bench.server.counters().connections_refused.get() == number as u64 + 1
        });
    }
    assert_eq!(bench.server.counters().handler_panics.get(), 0);
    serves(&bench);
}

/// Runs `misbehave` on a VMM that has shaken hands, expects the connection dropped, then serves.
fn refuses(what: &str, misbehave: impl Fn(&mut Vmm)) {
    let (bench, _core) = Bench::echoing();
    let mut vmm = Vmm::on(bench.connect(), guest_file());
    vmm.handshake();
    misbehave(&mut vmm);
    wait_until(what, || {
        bench.server.counters().connections_refused.get() == 1
    });
    assert!(
        vmm.frontend.get_features().is_err(),
        "{what}: still connected"
    );
    assert_eq!(bench.server.counters().handler_panics.get(), 0);
    serves(&bench);
}

#[test]
fn memory_regions_that_can_not_be_used_are_refused() {
    let region = |change: fn(&mut VhostUserMemoryRegionInfo)| {
        move |vmm: &mut Vmm| {
            let mut region = vmm.region();
            change(&mut region);
            assert!(vmm.frontend.set_mem_table(&[region]).is_err());
        }
    };
    refuses(
        "past the end of the file",
        region(|r| r.memory_size += 4096),
    );
    refuses(
        "starting past the end of the file",
        region(|r| r.mmap_offset = MEMORY_BYTES),
    );
    refuses(
        "offset and size overflow",
        region(|r| r.mmap_offset = u64::MAX - 4095),
    );
    refuses("too high", region(|r| r.guest_phys_addr = 1 << 47));
    refuses(
        "wrapping around",
        region(|r| r.guest_phys_addr = u64::MAX - 4095),
    );
    refuses("not of whole pages", region(|r| r.memory_size -= 100));
    refuses(
        "not at a page",
        region(|r| {
            r.guest_phys_addr = 100;
            r.memory_size = 4096;
        }),
    );
    refuses("overlapping", |vmm| {
        let region = vmm.region();
        assert!(vmm.frontend.set_mem_table(&[region, region]).is_err());
    });
    refuses("in a file without a size", |vmm| {
        let zero = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/zero")
            .unwrap();
        let handle = std::os::fd::AsRawFd::as_raw_fd(&zero);
        let region = VhostUserMemoryRegionInfo {
            mmap_handle: handle,
            ..vmm.region()
        };
        assert!(vmm.frontend.set_mem_table(&[region]).is_err());
    });
}

#[test]
fn rings_that_can_not_be_used_are_refused() {
    let addresses = |change: fn(&mut VringConfigData)| {
        move |vmm: &mut Vmm| {
            vmm.frontend.set_mem_table(&[vmm.region()]).unwrap();
            vmm.frontend.set_vring_num(0, super::bench::SIZE).unwrap();
            let mut data = vmm.addresses(0);
            change(&mut data);
            assert!(vmm.frontend.set_vring_addr(0, &data).is_err());
        }
    };
    refuses("table outside", addresses(|d| d.desc_table_addr = 0x1000));
    refuses(
        "table reaching outside",
        addresses(|d| {
            d.desc_table_addr = VMM_BASE + MEMORY_BYTES - 16;
        }),
    );
    refuses(
        "available ring outside",
        addresses(|d| d.avail_ring_addr = u64::MAX - 1),
    );
    refuses(
        "available ring reaching outside",
        addresses(|d| {
            d.avail_ring_addr = VMM_BASE + MEMORY_BYTES - 2;
        }),
    );
    refuses(
        "used ring reaching outside",
        addresses(|d| {
            d.used_ring_addr = VMM_BASE + MEMORY_BYTES - 4;
        }),
    );
    refuses("table misaligned", addresses(|d| d.desc_table_addr += 8));
    refuses("used ring misaligned", addresses(|d| d.used_ring_addr += 2));
    refuses("kick before addresses", |vmm| {
        let _ = vmm.frontend.set_vring_kick(0, &vmm.kicks[0]);
    });
}

#[test]
fn fds_that_are_no_eventfds_are_refused() {
    refuses("kick", |vmm| {
        vmm.frontend.set_mem_table(&[vmm.region()]).unwrap();
        let _ = vmm.frontend.set_vring_kick(0, &false_eventfd());
    });
    refuses("call", |vmm| {
        vmm.set_up();
        let _ = vmm.frontend.set_vring_call(0, &false_eventfd());
    });
}

#[test]
fn a_log_past_the_end_of_its_file_is_refused() {
    let log = |bytes| {
        move |vmm: &mut Vmm| {
            let log = VhostUserDirtyLogRegion {
                mmap_size: bytes,
                mmap_offset: 0,
                mmap_handle: std::os::fd::AsRawFd::as_raw_fd(&vmm.file),
            };
            vmm.frontend
                .set_protocol_features(VhostUserProtocolFeatures::LOG_SHMFD)
                .unwrap();
            let _ = vmm.frontend.set_log_base(0, Some(log));
        }
    };
    refuses("longer", log(MEMORY_BYTES + 1));
    refuses("absurd", log(u64::MAX));
}

#[test]
fn a_started_ring_can_not_be_moved() {
    refuses("moved", |vmm| {
        vmm.set_up();
        let mut data = vmm.addresses(0);
        vmm.frontend.set_vring_addr(0, &data).unwrap();
        data.used_ring_addr += 4096;
        assert!(vmm.frontend.set_vring_addr(0, &data).is_err());
    });
    refuses("resized", |vmm| {
        vmm.set_up();
        let _ = vmm.frontend.set_vring_num(0, 32);
    });
}

#[test]
fn a_memory_table_that_lacks_a_running_ring_stops_the_ring_only() {
    let (bench, core) = Bench::echoing();
    let mut vmm = Vmm::on(bench.connect(), guest_file());
    vmm.start();
    let high = VhostUserMemoryRegionInfo {
        guest_phys_addr: 0x10_0000,
        memory_size: 0x10_0000,
        mmap_offset: 0x10_0000,
        ..vmm.region()
    };
    vmm.frontend.set_mem_table(&[high]).unwrap();
    assert!(vmm.frontend.get_features().is_ok());
    assert_eq!(core.join().counters().ring_faults.get(), 2);
}

#[test]
fn a_vmm_that_goes_away_after_any_message_leaves_the_server_serving() {
    let (bench, _core) = Bench::echoing();
    let steps: [fn(&mut Vmm); 9] = [
        Vmm::handshake,
        |vmm| drop(vmm.frontend.set_mem_table(&[vmm.region()]).unwrap()),
        |vmm| vmm.frontend.set_vring_num(1, super::bench::SIZE).unwrap(),
        |vmm| vmm.frontend.set_vring_base(1, 3).unwrap(),
        |vmm| vmm.frontend.set_vring_addr(1, &vmm.addresses(1)).unwrap(),
        |vmm| vmm.frontend.set_vring_call(1, &vmm.calls[1]).unwrap(),
        |vmm| vmm.frontend.set_vring_kick(1, &vmm.kicks[1]).unwrap(),
        |vmm| vmm.frontend.set_vring_enable(1, true).unwrap(),
        |vmm| assert_eq!(vmm.frontend.get_vring_base(1).unwrap(), 0),
    ];
    for last in 0..=steps.len() {
        let mut vmm = Vmm::on(bench.connect(), guest_file());
        steps[..last].iter().for_each(|step| step(&mut vmm));
    }
    serves(&bench);
    assert_eq!(bench.server.counters().connections_refused.get(), 0);
}

#[test]
fn a_core_that_is_silent_costs_the_connection_not_the_server() {
    let (bench, nic) = Bench::new();
    // Nobody runs the core: the first connection is given up.
    let mut stream = bench.connect();
    wait_until("the silent core is noticed", || is_dropped(&mut stream));
    let core = Core::start(nic);
    wait_until("it is counted", || {
        bench.server.counters().connections_refused.get() == 1
    });
    serves(&bench);
    drop(core);
}

#[test]
fn the_server_stops_with_and_without_a_vmm() {
    let (bench, core) = Bench::echoing();
    let socket = bench.socket();
    bench.server.stop();
    assert!(!socket.exists());
    drop(core);

    let (bench, _core) = Bench::echoing();
    let mut vmm = Vmm::on(bench.connect(), guest_file());
    vmm.start();
    bench.server.stop();
    assert!(vmm.frontend.get_features().is_err());
}

#[test]
fn more_fds_than_a_message_may_carry_are_refused_and_closed() {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::os::fd::AsRawFd;

    let (bench, _core) = Bench::echoing();
    serves(&bench);
    // Pipes are told apart from what other tests open: by their number.
    let (read, _write) = nix::unistd::pipe().unwrap();
    let link = std::fs::read_link(format!("/proc/self/fd/{}", read.as_raw_fd())).unwrap();
    let copies = || {
        let fds = std::fs::read_dir("/proc/self/fd").unwrap();
        fds.filter(|fd| {
            let path = fd.as_ref().unwrap().path();
            std::fs::read_link(path).is_ok_and(|found| found == link)
        })
        .count()
    };
    let before = copies();
    let mut stream = bench.connect();
    let fds = vec![read.as_raw_fd(); 33];
    let bytes = message(5, 1, 8, &[0; 8]);
    let parts = [std::io::IoSlice::new(&bytes)];
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(
        stream.as_raw_fd(),
        &parts,
        &rights,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .unwrap();
    assert!(is_dropped(&mut stream));
    wait_until("the fds are closed", || copies() == before);
    serves(&bench);
}
