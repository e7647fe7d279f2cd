//! DPDK as a node uses it: the environment, and ports with their packet buffers.

use anyhow::{Context, Result};
use dpdk_config::limits::FRAME_OVERHEAD_BYTES;
use dpdk_config::{Eal, Mempool, Port};

use crate::config;

/// Mbufs that the poll thread keeps at hand.
const MBUF_CACHE: u32 = 256;

/// What ports carry by themselves.
const MTU_DEFAULT: u16 = 1500;

/// Starts DPDK for these ports.
pub(super) fn start_eal<'a>(
    config: &config::EalConfig,
    ports: impl IntoIterator<Item = &'a config::PortConfig>,
) -> Result<Eal, dpdk_config::DpdkError> {
    Eal::init(&dpdk_config::EalConfig {
        huge_pages: match config.huge_pages {
            config::HugePages::Off => dpdk_config::HugePages::Off,
            config::HugePages::On => dpdk_config::HugePages::On,
        },
        memory_mib: config.memory_mib,
        main_core: config.main_core.map(|core| core as usize),
        file_prefix: config.file_prefix.clone(),
        pci: ports.into_iter().any(|port| port.pci.is_some()),
    })
}

/// A port as it is to be opened.
pub(super) struct PortSetup<'a> {
    /// The device.
    pub(super) port: &'a config::PortConfig,
    /// Its pool's name.
    pub(super) name: &'a str,
    /// Packet buffers of its pool.
    pub(super) mbufs: u32,
    /// Bytes of the longest frame.
    pub(super) frame_bytes_max: usize,
}

/// Opens a port with a pool of its own, whose buffers take whole frames.
pub(super) fn open(eal: &Eal, setup: &PortSetup<'_>) -> Result<(Port, Mempool)> {
    let descriptors = dpdk_config::limits::DESCRIPTORS_DEFAULT;
    let config = setup.port;
    let port_config = dpdk_config::PortConfig {
        vdev: config.vdev.clone(),
        pci: config.pci.clone(),
        rx_descriptors: config.rx_descriptors.unwrap_or(descriptors),
        tx_descriptors: config.tx_descriptors.unwrap_or(descriptors),
        mtu: config.mtu,
        offloads: dpdk_config::OffloadUse::default(),
    };
    let default = dpdk_config::limits::DATA_ROOM_BYTES_DEFAULT;
    let slot = port_config.data_room_bytes_min() as usize;
    let room = u16::try_from(setup.frame_bytes_max.max(slot))
        .context("the mtu is larger than a packet buffer")?
        .max(default);
    let pool = Mempool::new(eal, setup.name, setup.mbufs, MBUF_CACHE, room)?;
    let port = Port::open(eal, &port_config, &pool)?;
    Ok((port, pool))
}

/// The port to the network: frames for any station, and room for a guest's of this MTU, whatever
/// the device's own default is.
pub(super) fn open_uplink(
    eal: &Eal,
    port: &config::PortConfig,
    guest_mtu: u16,
    mbufs: u32,
) -> Result<(Port, Mempool)> {
    let mut port = port.clone();
    if guest_mtu > MTU_DEFAULT {
        port.mtu.get_or_insert(guest_mtu);
    }
    let setup = PortSetup {
        port: &port,
        name: "uplink",
        mbufs,
        frame_bytes_max: usize::from(guest_mtu) + FRAME_OVERHEAD_BYTES as usize,
    };
    let (uplink, pool) = open(eal, &setup).context("open uplink.port")?;
    uplink
        .set_promiscuous(true)
        .context("let the uplink take the guest's frames")?;
    Ok((uplink, pool))
}
