//! `net_tap` and signals: alone in its process, because signal actions belong to the process.

mod common;

use common::{HostEnd, frame, open, own_network, pool, receive};

#[test]
fn a_tap_takes_no_signal_and_interrupts_no_thread() {
    own_network();
    let pool = pool("signals");
    let mut port = open("net_tap2,iface=plv2", &pool);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    for (field, why) in [("SigCgt:", "a handler"), ("SigIgn:", "an ignored signal")] {
        let mask = status
            .lines()
            .find_map(|line| line.strip_prefix(field))
            .unwrap();
        let mask = u64::from_str_radix(mask.trim(), 16).unwrap();
        assert_eq!(mask >> (libc::SIGRTMIN() - 1), 0, "{why} is left: {mask:x}");
    }
    let fd = port.rx_interrupt_fd().unwrap();
    // SAFETY: asks for the descriptor's flags.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    assert_eq!(flags & libc::O_ASYNC, 0, "the kernel is asked for signals");
    HostEnd::new("plv2").send(&frame(1, 60));
    assert_eq!(receive(&mut port, 1), [frame(1, 60)]);
}
