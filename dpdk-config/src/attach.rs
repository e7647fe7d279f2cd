//! A device on its way to being a port and back: attach, configure, start; stop, close, detach.
//! Moving packets is in [`crate::port`].

use std::ffi::{CStr, CString};
use std::path::Path;
use std::ptr;

use dpdk_sys as sys;
use nix::errno::Errno;

use crate::config::{Device, PortConfig};
use crate::eal::Eal;
use crate::error::{DpdkError, errno_of};
use crate::log::Capture;
use crate::mempool::Mempool;
use crate::offloads::PortOffloads;
use crate::tap_signals::TapSignalsOff;

/// The one queue pair that a port has.
pub(crate) const QUEUE: u16 = 0;

/// DPDK's `SOCKET_ID_ANY` as these calls take it.
const SOCKET_ANY: u32 = u32::MAX;

/// A device that DPDK has attached; detached on drop, whatever state it reached. All but
/// [`Attached::info`] is called under EAL's control lock.
#[derive(Debug)]
pub(crate) struct Attached {
    /// The device as configured, for messages.
    pub text: String,
    /// DPDK's number of the port.
    pub port: u16,
    /// What the port is configured to finish.
    pub offloads: PortOffloads,
    bus: &'static CStr,
    name: CString,
    started: bool,
    closed: bool,
}

impl Attached {
    /// Attaches the configured device and starts it.
    pub fn open(eal: &Eal, config: &PortConfig, pool: &Mempool) -> Result<Attached, DpdkError> {
        let device = config.device()?;
        check_exists(eal, &device)?;
        // Not for the driver to set.
        let mtu = match config.large_af_packet_mtu(&device) {
            Some(_) => None,
            None => config.mtu,
        };
        let is_tap = matches!(&device, Device::Virtual(vdev) if vdev.is_tap());
        let _signals = is_tap.then(TapSignalsOff::new);
        let capture = Capture::start();
        let mut attached = Attached::attach(&device, &capture)?;
        let set_up = attached.info().and_then(|info| {
            attached.configure(config, mtu, &info, pool)?;
            attached.start()
        });
        match set_up {
            Ok(()) => Ok(attached),
            Err(DpdkError::Port {
                device,
                step,
                source,
            }) => Err(DpdkError::Setup {
                device,
                step,
                log: capture.text(),
                source,
            }),
            Err(error) => Err(error),
        }
    }

    /// Asks the bus for the device.
    fn attach(device: &Device, capture: &Capture) -> Result<Attached, DpdkError> {
        let (bus, name, arguments, text) = match device {
            Device::Virtual(vdev) => (c"vdev", &vdev.name, vdev.arguments.as_str(), &vdev.text),
            Device::Pci(address) => (c"pci", address, "", address),
        };
        let failed = |source| DpdkError::Attach {
            device: text.clone(),
            log: capture.text(),
            source,
        };
        let c_string = |text: &str| CString::new(text).map_err(|_| failed(Errno::EINVAL));
        let (name, arguments) = (c_string(name)?, c_string(arguments)?);
        let mut port = 0;
        // SAFETY: EAL runs; the strings are C strings and copied.
        unsafe {
            // Attaching it again would succeed, and closing the second port would close the first.
            if sys::rte_eth_dev_get_port_by_name(name.as_ptr(), &raw mut port) == 0 {
                return Err(DpdkError::AlreadyOpen {
                    device: text.clone(),
                });
            }
            match sys::rte_eal_hotplug_add(bus.as_ptr(), name.as_ptr(), arguments.as_ptr()) {
                0 => {}
                status => return Err(failed(errno_of(status))),
            }
            let status = sys::rte_eth_dev_get_port_by_name(name.as_ptr(), &raw mut port);
            if status != 0 {
                sys::rte_eal_hotplug_remove(bus.as_ptr(), name.as_ptr());
                return Err(failed(errno_of(status)));
            }
        }
        Ok(Attached {
            text: text.clone(),
            port,
            offloads: PortOffloads::default(),
            bus,
            name,
            started: false,
            closed: false,
        })
    }

    /// What the driver says of the port.
    pub fn info(&self) -> Result<sys::rte_eth_dev_info, DpdkError> {
        let mut info = sys::rte_eth_dev_info::default();
        // SAFETY: the port exists, and `info` is filled in.
        let status = unsafe { sys::rte_eth_dev_info_get(self.port, &raw mut info) };
        self.check("asking the driver for its properties", status)?;
        Ok(info)
    }

    fn configure(
        &mut self,
        config: &PortConfig,
        mtu: Option<u16>,
        info: &sys::rte_eth_dev_info,
        pool: &Mempool,
    ) -> Result<(), DpdkError> {
        let mut conf = sys::rte_eth_conf::default();
        // net_tap then tells its descriptor. Other software ports have none, and a NIC's would
        // have to be armed before each sleep.
        let is_tap = is_driver(info, c"net_tap");
        conf.intr_conf.set_rxq(u32::from(is_tap));
        let capabilities = (info.rx_offload_capa, info.tx_offload_capa);
        self.offloads = PortOffloads::choose(config.offloads, is_tap, capabilities);
        (conf.rxmode.offloads, conf.txmode.offloads) = self.offloads.bits();
        if let Some(mtu) = mtu {
            conf.rxmode.mtu = mtu.into();
        }
        let (mut rx, mut tx) = (config.rx_descriptors, config.tx_descriptors);
        // SAFETY: the port exists and is stopped; the structures outlive the calls, which copy
        // them; the port keeps a handle of the pool as long as it is open.
        unsafe {
            let status = sys::rte_eth_dev_configure(self.port, 1, 1, &raw const conf);
            self.check("configuring one queue pair", status)?;
            if let Some(mtu) = mtu {
                let status = sys::rte_eth_dev_set_mtu(self.port, mtu);
                // A driver without a way of its own (net_ring) goes by the configuration.
                if status != -libc::ENOTSUP {
                    self.check("setting the mtu", status)?;
                }
            }
            let status = sys::rte_eth_dev_adjust_nb_rx_tx_desc(self.port, &raw mut rx, &raw mut tx);
            self.check("adjusting the number of descriptors", status)?;
            let status = sys::rte_eth_rx_queue_setup(
                self.port,
                QUEUE,
                rx,
                SOCKET_ANY,
                ptr::null(),
                pool.raw(),
            );
            self.check(
                "setting up the receive queue (is the mempool large enough?)",
                status,
            )?;
            let status = sys::rte_eth_tx_queue_setup(self.port, QUEUE, tx, SOCKET_ANY, ptr::null());
            self.check("setting up the transmit queue", status)
        }
    }

    fn start(&mut self) -> Result<(), DpdkError> {
        // SAFETY: the port is configured.
        self.check("starting", unsafe { sys::rte_eth_dev_start(self.port) })?;
        self.started = true;
        Ok(())
    }

    /// Stops, closes and detaches; once.
    pub fn close(&mut self) {
        if self.closed {
            return;
        }
        self.closed = true;
        // SAFETY: the port exists; whoever polled it owned the `Port` that closes it.
        unsafe {
            if self.started {
                sys::rte_eth_dev_stop(self.port);
            }
            sys::rte_eth_dev_close(self.port);
            let status = sys::rte_eal_hotplug_remove(self.bus.as_ptr(), self.name.as_ptr());
            if status != 0 {
                tracing::warn!(
                    device = self.text,
                    status,
                    "port was closed but not detached"
                );
            }
        }
    }

    /// Turns a driver's status into an error that names the device and the step.
    pub fn check(&self, step: &'static str, status: i32) -> Result<(), DpdkError> {
        if status >= 0 {
            return Ok(());
        }
        Err(DpdkError::Port {
            device: self.text.clone(),
            step,
            source: errno_of(status),
        })
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.close();
    }
}

/// Whether the port's driver has this name.
pub(crate) fn is_driver(info: &sys::rte_eth_dev_info, name: &CStr) -> bool {
    // SAFETY: a driver's name is a C string in the driver, which stays loaded.
    !info.driver_name.is_null() && unsafe { CStr::from_ptr(info.driver_name) } == name
}

/// Refuses a device whose ground is missing by name; the drivers only say -1.
fn check_exists(eal: &Eal, device: &Device) -> Result<(), DpdkError> {
    match device {
        Device::Virtual(vdev) => match vdev.needs_interface() {
            Some(name) if nix::net::if_::if_nametoindex(name).is_err() => {
                let (device, interface) = (vdev.text.clone(), name.to_owned());
                Err(DpdkError::NoInterface { device, interface })
            }
            _ => Ok(()),
        },
        Device::Pci(_) if !eal.uses_pci() => Err(DpdkError::Config {
            key: "pci",
            reason: "a port on the PCI bus needs `pci = true` where EAL is configured".into(),
        }),
        Device::Pci(address) if !Path::new("/sys/bus/pci/devices").join(address).exists() => {
            Err(DpdkError::NoPciDevice {
                address: address.clone(),
            })
        }
        Device::Pci(_) => Ok(()),
    }
}
