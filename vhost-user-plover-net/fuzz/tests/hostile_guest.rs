//! What a guest that misbehaves gets: its ring is stopped, counted and logged, by name and
//! reason; its connection, the process and the next VMM live on.

use std::io::Write;
use std::sync::{Arc, Mutex};

use plover_net_fuzz::control::station::{Station, wait_until};
use plover_net_fuzz::control::vmm::Vmm;

/// What was logged, by any thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn has(&self, what: &str) -> bool {
        let log = self.0.lock().expect("no one panics");
        String::from_utf8_lossy(&log).contains(what)
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no one panics").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_guest_that_misbehaves_has_its_ring_stopped_counted_and_logged_and_the_next_is_served() {
    let log = Log::default();
    let to = log.clone();
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || to.clone())
        .init();
    let station = Station::start();

    let mut vmm = Vmm::on(station.connect());
    vmm.start().unwrap();
    vmm.set_available_index(1, 40_000);
    wait_until("the ring is stopped and counted", || {
        station.nic_counters().ring_faults.get() == 1
    });
    wait_until("it is logged", || {
        log.has("ring stopped: the guest broke it")
            && log.has("ring=transmit")
            && log.has("the driver's index jumped to 40000")
    });

    // The connection lives: the VMM may set the broken ring up again.
    assert!(vmm.is_connected());
    assert_eq!(station.server().counters().connections_refused.get(), 0);
    vmm.stop_ring(1).unwrap();
    vmm.set_available_index(1, 0);
    vmm.start_ring(1).unwrap();
    vmm.post_buffer(0, 0x800);
    vmm.send(0, &[9; 64]);
    wait_until("a frame comes back", || vmm.receive() == [vec![9; 64]]);

    // And the next guest is served, after this one broke the other ring too.
    vmm.describe(0, 1, (u64::MAX - 10, 0x800), 2);
    vmm.offer(0, 1);
    vmm.send(1, &[9; 64]);
    wait_until("it is counted again", || {
        station.nic_counters().ring_faults.get() == 2
    });
    drop(vmm);
    station.serves();
    station.check();
}
