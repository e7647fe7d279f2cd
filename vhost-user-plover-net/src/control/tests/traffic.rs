//! What a VMM may do: set up, move packets, pause, stop, come back.

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use super::bench::{Bench, Core, SIZE, Vmm, guest_file, wait_until};
use crate::control::MemoryEvent;
use crate::guest_nic::{Delivery, NicState};

fn frame(number: u16) -> Vec<u8> {
    let length = 60 + usize::from(number) % 1400;
    (number + 1)
        .to_le_bytes()
        .into_iter()
        .cycle()
        .take(length)
        .collect()
}

/// Sends frames through the echoing core and checks that they come back in order.
fn round_trips(vmm: &mut Vmm, count: u16) {
    let mut returned = Vec::new();
    for number in 0..count {
        vmm.post_buffer(number);
        vmm.send(number, &frame(number));
        if number % 16 == 15 || number + 1 == count {
            let expected = usize::from(number) + 1;
            wait_until("the frames come back", || {
                returned.extend(vmm.receive());
                returned.len() >= expected
            });
        }
    }
    let expected: Vec<_> = (0..count).map(frame).collect();
    assert_eq!(returned, expected);
}

#[test]
fn frames_go_both_ways_and_the_guest_is_called() {
    let (bench, core) = Bench::echoing();
    let mut vmm = Vmm::on(bench.connect(), guest_file());
    vmm.start();
    round_trips(&mut vmm, 300);
    assert!(vmm.calls[0].read().is_ok() && vmm.calls[1].read().is_ok());
    let nic = core.join();
    assert_eq!(nic.counters().received_packets.get(), 300);
    assert_eq!(nic.counters().transmitted_packets.get(), 300);
    assert_eq!(nic.counters().ring_faults.get(), 0);
}

#[test]
fn the_memory_table_is_reported_with_its_files_and_the_bitmap() {
    let (bench, core) = Bench::echoing();
    let mut vmm = Vmm::on(bench.connect(), guest_file());
    vmm.start();
    round_trips(&mut vmm, 5);
    let events = bench.events.lock().unwrap();
    let [MemoryEvent::Mapped(map)] = &events[..] else {
        panic!("one table was sent")
    };
    let [region] = &map.regions[..] else {
        panic!("of one region")
    };
    assert_eq!(
        (region.guest_phys_addr, region.size, region.mmap_offset),
        (0, 0x20_0000, 0)
    );
    assert_eq!(region.file.metadata().unwrap().len(), 0x20_0000);
    assert!(map.written_pages.covers(0x20_0000));
    // Receive buffers, and both used rings.
    for page in [0x180, 0x6, 0xe] {
        assert!(map.written_pages.is_marked(page), "page {page:#x}");
    }
    assert!(
        !map.written_pages.is_marked(0x100),
        "frames sent by the guest are only read"
    );
    drop(events);
    drop(vmm);
    wait_until("the memory is gone", || {
        matches!(
            bench.events.lock().unwrap().last(),
            Some(MemoryEvent::Unmapped)
        )
    });
    drop(core);
}

#[test]
fn a_stop_answers_with_the_used_index_once_the_ring_is_drained() {
    for (room, expected) in [(64, 20), (8, 8), (0, 0)] {
        let (bench, mut nic) = Bench::new();
        let mut vmm = Vmm::on(bench.connect(), guest_file());
        let vmm = std::thread::scope(|scope| {
            let starting = scope.spawn(move || {
                vmm.start();
                vmm
            });
            while !starting.is_finished() {
                nic.take_commands();
            }
            starting.join().unwrap()
        });
        let mut vmm = vmm;
        (0..20).for_each(|number| vmm.send(number, &frame(number)));
        let mut taken = Vec::new();
        let mut turns = 0;
        let index = std::thread::scope(|scope| {
            let stopping = scope.spawn(|| vmm.frontend.get_vring_base(1).unwrap());
            while !stopping.is_finished() {
                nic.take_commands();
                // The core is busy elsewhere for a while: the VMM waits.
                turns += 1;
                if turns > 1000 {
                    nic.take(room, &mut |frame| taken.push(frame.to_vec()));
                }
            }
            stopping.join().unwrap()
        });
        // What ran before the stop came may have been taken already: there was no room then.
        assert_eq!(index, taken.len() as u32);
        assert!(taken.len() >= expected, "room {room}");
        assert_eq!(vmm.drivers[1].used_index(), index as u16);
        assert_eq!(
            taken,
            (0..taken.len() as u16).map(frame).collect::<Vec<_>>()
        );
        assert!(!nic.state().transmit_started && nic.state().receive_runs);
        assert_eq!(nic.take(64, &mut |_| panic!("the ring is stopped")), 0);
    }
}

#[test]
fn a_ring_stopped_and_started_goes_on_at_the_used_index_whatever_the_base_says() {
    let (bench, core) = Bench::echoing();
    let mut vmm = Vmm::on(bench.connect(), guest_file());
    vmm.start();
    for _ in 0..10 {
        round_trips(&mut vmm, 21);
        // Receive buffers that are posted and not used must survive.
        (0..5).for_each(|number| vmm.post_buffer(number));
        let stopped = [0, 1].map(|queue| vmm.frontend.get_vring_base(queue).unwrap() as u16);
        assert_eq!(stopped, [0, 1].map(|queue| vmm.drivers[queue].used_index()));
        (0..2).for_each(|queue| vmm.start_ring(queue));
        (0..5).for_each(|number| vmm.send(number, &frame(number)));
        let mut returned = Vec::new();
        wait_until("buffers posted before the stop are used", || {
            returned.extend(vmm.receive());
            returned.len() == 5
        });
    }
    assert_eq!(core.join().counters().ring_faults.get(), 0);
}

#[test]
fn disabling_drains_and_enabling_goes_on() {
    let (bench, core) = Bench::echoing();
    let mut vmm = Vmm::on(bench.connect(), guest_file());
    vmm.start();
    for _ in 0..10 {
        (0..20).for_each(|number| vmm.post_buffer(number));
        (0..20).for_each(|number| vmm.send(number, &frame(number)));
        vmm.frontend.set_vring_enable(1, false).unwrap();
        vmm.frontend.set_vring_enable(0, false).unwrap();
        assert_eq!(
            vmm.drivers[1].collect().len(),
            20,
            "drained before the answer"
        );
        let used = vmm.drivers[0].used_index();
        vmm.send(0, &frame(0));
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert_eq!(vmm.drivers[0].used_index(), used);
        assert_eq!(
            vmm.drivers[1].collect().len(),
            0,
            "a disabled ring is left alone"
        );
        vmm.post_buffer(20);
        vmm.frontend.set_vring_enable(0, true).unwrap();
        vmm.frontend.set_vring_enable(1, true).unwrap();
        let mut returned = Vec::new();
        wait_until("all frames came back", || {
            returned.extend(vmm.receive());
            vmm.drivers[1].collect();
            returned.len() == 21
        });
    }
    assert_eq!(core.join().counters().ring_faults.get(), 0);
}

#[test]
fn one_vmm_after_another_is_served_and_no_fd_is_lost() {
    let (bench, core) = Bench::echoing();
    let open_fds = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut before = 0;
    for connection in 0..30 {
        let mut vmm = Vmm::on(bench.connect(), guest_file());
        vmm.start();
        round_trips(&mut vmm, 3);
        drop(vmm);
        wait_until("the VMM's memory is let go", || {
            bench.events.lock().unwrap().len() == 2 * (connection + 1)
        });
        bench.events.lock().unwrap().iter().for_each(|_| ());
        if connection == 4 {
            before = open_fds();
        }
    }
    // Other tests of this process open fds too; a leak would be 25 or more.
    let held_by_events = 25;
    assert!(
        open_fds() < before + held_by_events + 20,
        "{before} -> {}",
        open_fds()
    );
    assert_eq!(bench.server.counters().connections_refused.get(), 0);
    drop(core);
}

#[test]
fn a_frozen_card_leaves_memory_alone_and_still_answers() {
    let (bench, mut nic) = Bench::new();
    let stream = bench.connect();
    let mut vmm = Vmm::on(stream, guest_file());
    let core = std::thread::spawn(move || {
        nic.freeze();
        Core::start(nic)
    });
    let core = core.join().unwrap();
    let before = crate::test_driver::snapshot(&vmm.memory);
    vmm.start();
    let answers = [0, 1].map(|queue| vmm.frontend.get_vring_base(queue).unwrap());
    assert_eq!(answers, [0, 0]);
    vmm.drivers[1].begin_at(9);
    (0..2).for_each(|queue| vmm.start_ring(queue));
    assert_eq!(
        vmm.frontend.get_vring_base(1).unwrap(),
        9,
        "never ran: as guest memory says"
    );
    vmm.drivers[1].begin_at(0);
    vmm.start_ring(1);
    vmm.send(0, &frame(0));
    let mut nic = core.join();
    assert_eq!(nic.deliver(&frame(0)), Delivery::Stopped);
    let frozen = nic.state();
    assert!(frozen.frozen && frozen.transmit_started && !frozen.transmit_runs);
    // Back to what it was but for what the guest itself wrote.
    let touched: Vec<u64> = crate::test_driver::snapshot(&vmm.memory)
        .iter()
        .zip(&before)
        .filter(|(now, then)| now != then)
        .map(|(now, _)| now.0)
        .collect();
    assert_eq!(
        touched,
        [0x9, 0xd, 0x100],
        "descriptor, available index, frame"
    );
    nic.thaw();
    assert!(nic.state().transmit_runs);
    assert_eq!(nic.take(8, &mut |taken| assert_eq!(taken, frame(0))), 1);
}

#[test]
fn replaced_memory_is_read_afresh_and_every_ring_is_called() {
    let (bench, core) = Bench::echoing();
    let mut vmm = Vmm::on(bench.connect(), guest_file());
    vmm.start();
    round_trips(&mut vmm, 10);
    let mut nic = core.join();
    nic.freeze();
    // As an applied sync does: other indexes, other rings, call fds quiet.
    let _ = (vmm.calls[0].read(), vmm.calls[1].read());
    vmm.drivers[0].begin_at(500);
    vmm.drivers[1].begin_at(700);
    vmm.post_buffer(1);
    nic.resync();
    assert!(vmm.calls[0].read().is_err(), "not before the thaw");
    nic.thaw();
    assert!(vmm.calls[0].read().is_ok() && vmm.calls[1].read().is_ok());
    assert_eq!(nic.deliver(&frame(1)), Delivery::Delivered);
    nic.publish();
    assert_eq!(vmm.receive(), [frame(1)]);
    vmm.send(3, &frame(3));
    assert_eq!(nic.take(9, &mut |taken| assert_eq!(taken, frame(3))), 1);
    assert_eq!(vmm.drivers[1].used_index(), 701);
    assert_eq!(nic.counters().ring_faults.get(), 0);
}

#[test]
fn memory_replaced_without_a_word_is_a_fault_and_a_resync_heals_it() {
    let (bench, core) = Bench::echoing();
    let mut vmm = Vmm::on(bench.connect(), guest_file());
    vmm.start();
    let mut nic = core.join();
    vmm.drivers[1].begin_at(700);
    assert_eq!(nic.take(9, &mut |_| ()), 0);
    assert!(nic.state().transmit_fault.is_some());
    assert_eq!(nic.counters().ring_faults.get(), 1);
    assert_eq!(nic.take(9, &mut |_| ()), 0);
    assert_eq!(nic.counters().ring_faults.get(), 1, "counted once");
    nic.resync();
    assert_eq!(
        nic.state(),
        NicState {
            connected: true,
            has_memory: true,
            receive_started: true,
            receive_runs: true,
            transmit_started: true,
            transmit_runs: true,
            pairs_running: 1,
            ..NicState::default()
        }
    );
}

#[test]
fn a_sleeping_core_is_woken_by_a_kick_and_by_a_command() {
    let (bench, core) = Bench::echoing();
    let mut vmm = Vmm::on(bench.connect(), guest_file());
    vmm.start();
    let mut nic = core.join();
    assert!(nic.prepare_sleep());
    assert_eq!(nic.wake_fds().count(), 3);
    nic.after_sleep();
    vmm.send(0, &frame(0));
    assert!(!nic.prepare_sleep(), "there is work");
    nic.take(1, &mut |_| ());
    // No buffer: then a posted one is worth waking up for, else not.
    assert_eq!(nic.deliver(&frame(0)), Delivery::NoBuffer);
    assert!(nic.prepare_sleep());
    assert_eq!(
        vmm.drivers[0].available_event(),
        vmm.drivers[0].used_index()
    );
    nic.after_sleep();
}

#[test]
fn a_hostile_guest_stops_its_ring_and_the_next_vmm_is_served() {
    let (bench, core) = Bench::echoing();
    let mut vmm = Vmm::on(bench.connect(), guest_file());
    vmm.start();
    vmm.drivers[1].set_available_index(SIZE + 1);
    vmm.kicks[1].write(1).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    // The ring is stopped, the connection is not, and a new set-up heals the ring.
    assert_eq!(vmm.frontend.get_vring_base(1).unwrap(), 0);
    vmm.drivers[1].begin_at(0);
    vmm.start_ring(1);
    round_trips(&mut vmm, 5);
    drop(vmm);
    let mut vmm = Vmm::on(bench.connect(), guest_file());
    vmm.start();
    round_trips(&mut vmm, 5);
    assert_eq!(core.join().counters().ring_faults.get(), 1);
}
