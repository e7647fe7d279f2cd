//! A DPDK port as a guest's network card, without a configuration file or a node around it:
//!
//!     passthrough SOCKET DEVICE [CORE] [huge]
//!
//! `DEVICE` is a software device as DPDK writes it (`net_null0`, `net_tap0,iface=dtap0`). With a
//! core the thread is pinned to it and never sleeps. Prints its status every second.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use dpdk_config::{Eal, EalConfig, HugePages, Mempool, Port, PortConfig};
use vhost_user_plover_net::passthrough::{
    PassthroughCommand, PassthroughConfig, PassthroughCore, PassthroughSetup,
};
use vhost_user_plover_net::{CardConfig, EventFd, NicConfig, VhostUserServer, channel};

const MBUFS: u32 = 8191;
const MBUF_CACHE: u32 = 256;
const DATA_ROOM_BYTES: u16 = 2048;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "passthrough SOCKET DEVICE [CORE] [huge]";
    let socket = arguments.next().ok_or(usage)?;
    let device = arguments.next().ok_or(usage)?;
    let core = arguments.next().map(|core| core.parse()).transpose()?;
    let huge_pages = match arguments.next() {
        Some(_) => HugePages::On,
        None => HugePages::Off,
    };
    let eal = Eal::init(&EalConfig {
        huge_pages,
        main_core: core,
        ..EalConfig::default()
    })?;
    let pool = Mempool::new(&eal, "uplink", MBUFS, MBUF_CACHE, DATA_ROOM_BYTES)?;
    let uplink = Port::open(&eal, &PortConfig::vdev(device), &pool)?;
    let (control, nic) = channel(NicConfig {
        on_memory: Box::new(|_| ()),
        written_pages: None,
        card: CardConfig::default(),
    })?;
    let _server = VhostUserServer::start(socket.as_ref(), control)?;
    let (commands, receiver) = crossbeam_channel::unbounded();
    let wake = Arc::new(EventFd::new()?);
    let core = PassthroughCore::new(PassthroughSetup {
        config: PassthroughConfig {
            is_busy: core.is_some(),
            idle_sleep: Duration::from_micros(100),
            station: None,
            offloads: false,
            frame_bytes_max: uplink.frame_bytes_max(),
        },
        eal,
        uplink,
        pool,
        nic,
        commands: receiver,
        wake: Arc::clone(&wake),
    });
    std::thread::spawn(move || {
        let (reply, statuses) = crossbeam_channel::bounded(1);
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let asked = commands.send(PassthroughCommand::Status(reply.clone()));
            wake.signal();
            match asked.ok().and_then(|()| statuses.recv().ok()) {
                Some(status) => println!("{:?}", status.path),
                None => return,
            }
        }
    });
    core.run(&AtomicBool::new(false));
    Ok(())
}
