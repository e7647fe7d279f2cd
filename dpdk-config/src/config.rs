//! What a configuration file says about DPDK, checked. Reading the file is the caller's; acting on
//! it is in [`crate::eal`] and [`crate::port`].

use serde::{Deserialize, Serialize};

use crate::af_packet;
use crate::error::DpdkError;
use crate::limits::{
    DESCRIPTORS_DEFAULT, DESCRIPTORS_MAX, DESCRIPTORS_MIN, FILE_PREFIX_BYTES_MAX,
    MEMORY_MIB_DEFAULT, MEMORY_MIB_MAX, MEMORY_MIB_MIN, MTU_BYTES_MAX, MTU_BYTES_MIN,
};
use crate::offloads::OffloadUse;
use crate::vdev::Vdev;

/// Whether DPDK's memory comes from hugepages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HugePages {
    /// Ordinary pages: runs anywhere, slower on real NICs.
    #[default]
    Off,
    /// Hugepages, which must be reserved before; nothing stays in a hugetlbfs folder.
    On,
}

/// How EAL starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EalConfig {
    /// Where memory comes from.
    pub huge_pages: HugePages,
    /// MiB of memory for pools and queues. Without hugepages this is all there will be.
    pub memory_mib: u32,
    /// Pins the thread that initialises EAL to this core. Nothing is pinned without it.
    pub main_core: Option<usize>,
    /// EAL's `--file-prefix`. Nothing is shared between processes, so it is rarely needed.
    pub file_prefix: Option<String>,
    /// Whether ports on the PCI bus are used. The bus is not even scanned otherwise.
    pub pci: bool,
}

impl Default for EalConfig {
    fn default() -> Self {
        EalConfig {
            huge_pages: HugePages::Off,
            memory_mib: MEMORY_MIB_DEFAULT,
            main_core: None,
            file_prefix: None,
            pci: false,
        }
    }
}

impl EalConfig {
    /// Checks the values against their bounds; [`crate::Eal::init`] does so too.
    pub fn validate(&self) -> Result<(), DpdkError> {
        if !(MEMORY_MIB_MIN..=MEMORY_MIB_MAX).contains(&self.memory_mib) {
            return Err(out_of_range(
                "memory_mib",
                self.memory_mib,
                MEMORY_MIB_MIN,
                MEMORY_MIB_MAX,
            ));
        }
        let Some(prefix) = &self.file_prefix else {
            return Ok(());
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if prefix.is_empty() || prefix.len() > FILE_PREFIX_BYTES_MAX || !prefix.chars().all(plain) {
            return Err(DpdkError::Config {
                key: "file_prefix",
                reason: format!(
                    "`{prefix}` is not 1 to {FILE_PREFIX_BYTES_MAX} letters, digits, `-` or `_`"
                ),
            });
        }
        Ok(())
    }
}

/// Which device a port is, and how it is set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedPortConfig")]
pub struct PortConfig {
    /// A software device in DPDK's own form: `net_tap0,iface=dtap0`.
    pub vdev: Option<String>,
    /// The PCI address of a NIC bound to vfio-pci: `0000:01:00.0`. Exactly one of the two is set.
    pub pci: Option<String>,
    /// Receive descriptors; the driver may round.
    pub rx_descriptors: u16,
    /// Transmit descriptors; the driver may round.
    pub tx_descriptors: u16,
    /// MTU to set; the device's own without it.
    pub mtu: Option<u16>,
    /// Which offloads are used.
    pub offloads: OffloadUse,
}

/// A [`PortConfig`] as it was written, before its keys were checked against each other.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct UncheckedPortConfig {
    vdev: Option<String>,
    pci: Option<String>,
    rx_descriptors: u16,
    tx_descriptors: u16,
    mtu: Option<u16>,
    offloads: OffloadUse,
}

impl Default for UncheckedPortConfig {
    fn default() -> Self {
        UncheckedPortConfig {
            vdev: None,
            pci: None,
            rx_descriptors: DESCRIPTORS_DEFAULT,
            tx_descriptors: DESCRIPTORS_DEFAULT,
            mtu: None,
            offloads: OffloadUse::default(),
        }
    }
}

impl TryFrom<UncheckedPortConfig> for PortConfig {
    type Error = DpdkError;

    fn try_from(unchecked: UncheckedPortConfig) -> Result<Self, DpdkError> {
        let UncheckedPortConfig {
            vdev,
            pci,
            rx_descriptors,
            tx_descriptors,
            mtu,
            offloads,
        } = unchecked;
        let config = PortConfig {
            vdev,
            pci,
            rx_descriptors,
            tx_descriptors,
            mtu,
            offloads,
        };
        config.validate()?;
        Ok(config)
    }
}

impl PortConfig {
    /// A software device with the default queues.
    pub fn vdev(device: impl Into<String>) -> Self {
        PortConfig {
            vdev: Some(device.into()),
            pci: None,
            rx_descriptors: DESCRIPTORS_DEFAULT,
            tx_descriptors: DESCRIPTORS_DEFAULT,
            mtu: None,
            offloads: OffloadUse::default(),
        }
    }

    /// Checks the keys and their values; reading a file and [`crate::Port::open`] do so too.
    pub fn validate(&self) -> Result<(), DpdkError> {
        self.device()?;
        for (key, value) in [
            ("rx_descriptors", self.rx_descriptors),
            ("tx_descriptors", self.tx_descriptors),
        ] {
            if !(DESCRIPTORS_MIN..=DESCRIPTORS_MAX).contains(&value) {
                return Err(out_of_range(key, value, DESCRIPTORS_MIN, DESCRIPTORS_MAX));
            }
        }
        match self.mtu {
            Some(mtu) if !(MTU_BYTES_MIN..=MTU_BYTES_MAX).contains(&mtu) => {
                Err(out_of_range("mtu", mtu, MTU_BYTES_MIN, MTU_BYTES_MAX))
            }
            _ => Ok(()),
        }
    }

    /// Bytes that the packet buffers of the port's pool must have room for, whatever frames are
    /// expected: `net_af_packet` wants room for its slots.
    pub fn data_room_bytes_min(&self) -> u32 {
        match self.device() {
            Ok(Device::Virtual(vdev)) => vdev.slot_bytes().unwrap_or_default(),
            _ => 0,
        }
    }

    /// The MTU that is beyond what `net_af_packet` would set by itself.
    pub(crate) fn large_af_packet_mtu(&self, device: &Device) -> Option<u16> {
        let is_af_packet = matches!(device, Device::Virtual(vdev) if vdev.slot_bytes().is_some());
        self.mtu
            .filter(|mtu| is_af_packet && *mtu > af_packet::DRIVER_MTU_MAX)
    }

    /// The one device that is configured.
    pub(crate) fn device(&self) -> Result<Device, DpdkError> {
        match (&self.vdev, &self.pci) {
            (Some(vdev), None) => Ok(Device::Virtual(Vdev::parse(vdev)?.sized_for(self.mtu))),
            (None, Some(pci)) => Ok(Device::Pci(check_pci_address(pci)?)),
            (Some(_), Some(_)) => Err(one_device("both are set; remove one of them")),
            (None, None) => Err(one_device("neither is set; a port needs a device")),
        }
    }
}

/// A device whose name is well formed.
#[derive(Debug)]
pub(crate) enum Device {
    /// Made by DPDK.
    Virtual(Vdev),
    /// Found on the bus: its address.
    Pci(String),
}

fn one_device(found: &str) -> DpdkError {
    DpdkError::Config {
        key: "vdev / pci",
        reason: format!("set exactly one of `vdev` and `pci`: {found}"),
    }
}

fn out_of_range<T: std::fmt::Display>(key: &'static str, value: T, min: T, max: T) -> DpdkError {
    DpdkError::Config {
        key,
        reason: format!("{value} is not within {min} to {max}"),
    }
}

/// `dddd:bb:dd.f` in hexadecimal digits.
fn check_pci_address(address: &str) -> Result<String, DpdkError> {
    let shape = "hhhh:hh:hh.h";
    let fits = address.len() == shape.len()
        && address
            .chars()
            .zip(shape.chars())
            .all(|(c, expected)| match expected {
                'h' => c.is_ascii_hexdigit(),
                expected => c == expected,
            });
    if fits {
        return Ok(address.to_ascii_lowercase());
    }
    Err(DpdkError::Config {
        key: "pci",
        reason: format!("`{address}` is not a PCI address like `0000:01:00.0`"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port_error(text: &str) -> String {
        toml::from_str::<PortConfig>(text).unwrap_err().to_string()
    }

    #[test]
    fn a_port_without_numbers_gets_the_defaults() {
        let port: PortConfig = toml::from_str("vdev = 'net_tap0,iface=dtap0'").unwrap();
        assert_eq!(port, PortConfig::vdev("net_tap0,iface=dtap0"));
        assert_eq!(port.rx_descriptors, DESCRIPTORS_DEFAULT);
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error = port_error("vdev = 'net_tap0'\nrx_descriptor = 64");
        assert!(error.contains("rx_descriptor"), "{error}");
        assert!(error.contains("unknown field"), "{error}");
        let error = toml::from_str::<EalConfig>("memory_mb = 64")
            .unwrap_err()
            .to_string();
        assert!(error.contains("memory_mb"), "{error}");
    }

    #[test]
    fn two_devices_or_none_are_refused_by_key() {
        let error = port_error("vdev = 'net_tap0'\npci = '0000:01:00.0'");
        assert!(
            error.contains("exactly one of `vdev` and `pci`: both"),
            "{error}"
        );
        let error = port_error("mtu = 1500");
        assert!(
            error.contains("exactly one of `vdev` and `pci`: neither"),
            "{error}"
        );
    }

    #[test]
    fn numbers_out_of_bounds_are_refused_by_key() {
        for (key, value) in [("rx_descriptors", 1), ("tx_descriptors", 5000), ("mtu", 20)] {
            let error = port_error(&format!("vdev = 'net_null0'\n{key} = {value}"));
            assert!(error.contains(&format!("`{key}`")), "{error}");
            assert!(error.contains(&value.to_string()), "{error}");
        }
        for config in [
            "memory_mib = 3",
            "memory_mib = 1000000",
            "file_prefix = 'a/b'",
        ] {
            let config: EalConfig = toml::from_str(config).unwrap();
            assert!(
                matches!(config.validate(), Err(DpdkError::Config { .. })),
                "{config:?}"
            );
        }
    }

    #[test]
    fn a_pci_address_has_its_shape() {
        assert_eq!(check_pci_address("0000:0A:1f.3").unwrap(), "0000:0a:1f.3");
        for bad in [
            "",
            "01:00.0",
            "0000:01:00-0",
            "0000:01:00.00",
            "0000:0g:00.0",
            "eth0",
        ] {
            let error = check_pci_address(bad).unwrap_err().to_string();
            assert!(error.contains("`pci`"), "{error}");
        }
    }

    #[test]
    fn hugepages_are_off_unless_asked_for() {
        let config: EalConfig = toml::from_str("").unwrap();
        assert_eq!(config, EalConfig::default());
        let config: EalConfig = toml::from_str("huge_pages = 'on'\nmain_core = 1").unwrap();
        assert_eq!(
            (config.huge_pages, config.main_core),
            (HugePages::On, Some(1))
        );
    }
}
