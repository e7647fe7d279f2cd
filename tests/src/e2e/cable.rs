//! A host and its clients, each a network namespace, and the cable between them.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use ch_integration::demo::namespace::Namespace;
use ch_integration::demo::network::{CLIENT_IP, CLIENT_IP_COUNTER};

/// Runs of the demo in the same process count from 0.
static CABLES: AtomicU32 = AtomicU32::new(1000);

/// The two namespaces. Dropping it kills what is inside and removes them.
pub struct Cable {
    /// Where the node runs: `up0` is its end.
    pub host: Namespace,
    /// Where clients run: `cl0` is their end.
    pub client: Namespace,
}

impl Cable {
    /// Lays a cable for frames of this MTU. What clients send over it is finished: a port at the
    /// other end is given no open checksums and nothing to cut.
    pub fn lay(mtu: u32) -> Result<Self> {
        ch_integration::demo::clean_leftovers()?;
        let number = CABLES.fetch_add(1, Ordering::Relaxed);
        // The demo's names: it removes what a killed run leaves behind.
        let name = |end: &str| format!("plv-{}-{number}-{end}", std::process::id());
        let cable = Self {
            host: Namespace::create(&name("a"))?,
            client: Namespace::create(&name("cl"))?,
        };
        cable.host.ip_batch(&format!(
            "link add up0 mtu {mtu} type veth peer name cl0 mtu {mtu} netns {}\nlink set up0 up\n",
            cable.client.name()
        ))?;
        cable.client.ip_batch(&format!(
            "addr add {CLIENT_IP} dev cl0\naddr add {CLIENT_IP_COUNTER} dev cl0\nlink set cl0 up\n"
        ))?;
        cable.client.enter(|| finish_checksums("cl0"))??;
        Ok(cable)
    }
}

/// Turns transmit offloads of an interface off, as `ethtool -K NAME tx off` does; segmentation
/// goes with them.
fn finish_checksums(name: &str) -> Result<()> {
    /// `struct ethtool_value`.
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    const SET_TX_CHECKSUM: u32 = 0x17;
    let mut value = Value {
        command: SET_TX_CHECKSUM,
        data: 0,
    };
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").context("open a socket")?;
    // SAFETY: all zeros is a valid ifreq, and its name stays terminated; the request and the value
    // that it points to outlive the call.
    let status = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(15)) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_data = (&raw mut value).cast();
        libc::ioctl(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            libc::SIOCETHTOOL,
            &raw mut request,
        )
    };
    let error = std::io::Error::last_os_error();
    ensure!(status == 0, "turn offloads of {name} off: {error}");
    Ok(())
}
