//! What the wrapper costs: packets per second through `net_null`, mbufs through a pool, and the
//! price of an empty poll on `net_tap`. Run as root, in a network namespace of its own:
//! `unshare --net cargo run --release -p dpdk-config --example burst_rate`

use std::time::Duration;

use dpdk_config::{BURST_PACKETS_MAX, Burst, Eal, EalConfig, Mempool, Port, PortConfig};
use nix::time::ClockId;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let eal = Eal::init(&EalConfig::default())?;
    let _cache = eal.register_thread()?;
    let pool = Mempool::new(&eal, "rate", 8191, 256, 2048)?;
    let mut burst = Burst::new();

    let mut null = Port::open(&eal, &PortConfig::vdev("net_null0,size=64"), &pool)?;
    let rate = per_second(|| {
        let received = null.rx_burst(&mut burst);
        null.tx_burst(&mut burst);
        received
    });
    println!("net_null, rx_burst + tx_burst: {:.0} Mpps", rate / 1e6);

    let mut failed = 0u64;
    let rate = per_second(|| {
        failed += u64::from(pool.alloc_bulk(&mut burst, BURST_PACKETS_MAX).is_err());
        burst.clear();
        BURST_PACKETS_MAX
    });
    println!(
        "alloc_bulk + clear: {:.0} M mbufs/s, {failed} failed",
        rate / 1e6
    );

    let mut tap = Port::open(&eal, &PortConfig::vdev("net_tap0,iface=plvrate0"), &pool)?;
    let rate = per_second(|| {
        tap.rx_burst(&mut burst);
        burst.clear();
        1
    });
    println!("net_tap, empty poll: {:.0} ns", 1e9 / rate);
    Ok(())
}

/// What `step` counts, per second of this thread's CPU time, over one second.
fn per_second(mut step: impl FnMut() -> usize) -> f64 {
    let (start, mut count) = (cpu_time(), 0);
    while cpu_time() - start < Duration::from_secs(1) {
        for _ in 0..1000 {
            count += step();
        }
    }
    count as f64 / (cpu_time() - start).as_secs_f64()
}

/// CPU time, so that what else runs on the machine counts less.
fn cpu_time() -> Duration {
    ClockId::CLOCK_THREAD_CPUTIME_ID
        .now()
        .map_or(Duration::ZERO, Duration::from)
}
