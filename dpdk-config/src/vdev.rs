//! A software device's string, `net_tap0,iface=dtap0`, taken apart and checked, so that a slip in
//! it is answered with the key at fault and not with a driver's -1.

use crate::af_packet;
use crate::error::DpdkError;
use crate::limits::{DEVICE_NAME_BYTES_MAX, INTERFACE_NAME_BYTES_MAX};

/// The drivers whose arguments are known here; others are passed on as they are.
const KNOWN_ARGUMENTS: &[(&str, &[&str])] = &[
    ("net_tap", &["iface", "mac", "persist", "remote"]),
    (
        "net_af_packet",
        &[
            "iface",
            "qpairs",
            "blocksz",
            "framesz",
            "framecnt",
            "qdisc_bypass",
        ],
    ),
];

/// A well-formed software device.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Vdev {
    /// As configured.
    pub text: String,
    /// `net_tap0`.
    pub name: String,
    /// What follows the name's comma, or nothing.
    pub arguments: String,
    /// The value of `iface=`.
    pub interface: Option<String>,
    /// The value of `framesz=`: bytes of a slot of `net_af_packet`.
    slot_bytes: Option<u32>,
}

impl Vdev {
    /// Takes `text` apart.
    pub fn parse(text: &str) -> Result<Vdev, DpdkError> {
        let (name, arguments) = text.split_once(',').unwrap_or((text, ""));
        check_name(text, name)?;
        let (mut interface, mut slot_bytes) = (None, None);
        for argument in arguments.split(',').filter(|_| text.contains(',')) {
            let (key, value) = check_argument(text, name, argument)?;
            if key == "iface" {
                interface = Some(value.to_owned());
            }
            if key == "framesz" && is_driver(name, "net_af_packet") {
                let bytes = value
                    .parse()
                    .map_err(|_| bad(text, "`framesz=` is no number"));
                slot_bytes = Some(bytes?);
            }
        }
        if is_driver(name, "net_af_packet") && interface.is_none() {
            return Err(bad(
                text,
                "net_af_packet needs `iface=` with an interface's name",
            ));
        }
        Ok(Vdev {
            text: text.to_owned(),
            name: name.to_owned(),
            arguments: arguments.to_owned(),
            interface,
            slot_bytes,
        })
    }

    /// The device with slots that take frames of `mtu`, where it has slots and their size was not
    /// said.
    pub fn sized_for(mut self, mtu: Option<u16>) -> Vdev {
        let needed = mtu.map(af_packet::slot_bytes_for);
        if let Some(bytes) = needed
            && self.slot_bytes() == Some(af_packet::SLOT_BYTES_DEFAULT)
            && bytes > af_packet::SLOT_BYTES_DEFAULT
            && !self.arguments.contains("sz=")
        {
            self.slot_bytes = Some(bytes);
            let block = af_packet::block_bytes_for(bytes);
            self.arguments += &format!(",framesz={bytes},blocksz={block}");
        }
        self
    }

    /// Bytes of a slot, if `net_af_packet` makes this device.
    pub fn slot_bytes(&self) -> Option<u32> {
        let default = af_packet::SLOT_BYTES_DEFAULT;
        is_driver(&self.name, "net_af_packet").then(|| self.slot_bytes.unwrap_or(default))
    }

    /// Whether this device sits on an interface that must exist before.
    pub fn needs_interface(&self) -> Option<&str> {
        self.interface
            .as_deref()
            .filter(|_| is_driver(&self.name, "net_af_packet"))
    }

    /// Whether `net_tap` makes this device.
    pub fn is_tap(&self) -> bool {
        is_driver(&self.name, "net_tap")
    }
}

/// DPDK finds a software device's driver by the name's beginning.
fn is_driver(name: &str, driver: &str) -> bool {
    name.starts_with(driver)
}

fn check_name(text: &str, name: &str) -> Result<(), DpdkError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if !name.starts_with("net_") || !name.chars().all(plain) {
        return Err(bad(
            text,
            "it must begin with a driver's name and a number, like `net_tap0`",
        ));
    }
    if name.len() > DEVICE_NAME_BYTES_MAX {
        return Err(bad(
            text,
            &format!("its name is longer than {DEVICE_NAME_BYTES_MAX} bytes"),
        ));
    }
    Ok(())
}

fn check_argument<'a>(
    text: &str,
    name: &str,
    argument: &'a str,
) -> Result<(&'a str, &'a str), DpdkError> {
    let Some((key, value)) = argument
        .split_once('=')
        .filter(|(k, v)| !k.is_empty() && !v.is_empty())
    else {
        return Err(bad(
            text,
            &format!("argument `{argument}` is not of the form `key=value`"),
        ));
    };
    if argument
        .chars()
        .any(|c| c.is_whitespace() || c.is_control())
    {
        return Err(bad(text, &format!("argument `{key}` has a blank in it")));
    }
    if let Some((driver, known)) = KNOWN_ARGUMENTS.iter().find(|(d, _)| is_driver(name, d))
        && !known.contains(&key)
    {
        let known = known.join(", ");
        return Err(bad(
            text,
            &format!("{driver} has no argument `{key}`; it has: {known}"),
        ));
    }
    match key {
        "iface" if value.len() > INTERFACE_NAME_BYTES_MAX || value.contains('/') => Err(bad(
            text,
            &format!("`iface={value}` is not an interface's name"),
        )),
        "mac" if value != "fixed" && !is_mac(value) => Err(bad(
            text,
            &format!("`mac={value}` is not `fixed` or like `02:00:00:00:00:01`"),
        )),
        _ => Ok((key, value)),
    }
}

fn is_mac(value: &str) -> bool {
    value.split(':').count() == 6
        && value
            .split(':')
            .all(|b| b.len() == 2 && b.chars().all(|c| c.is_ascii_hexdigit()))
}

fn bad(text: &str, reason: &str) -> DpdkError {
    DpdkError::Config {
        key: "vdev",
        reason: format!("`{text}`: {reason}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_string_is_taken_apart() {
        let vdev = Vdev::parse("net_tap0,iface=dtap0,mac=02:00:00:00:00:01").unwrap();
        assert_eq!(vdev.name, "net_tap0");
        assert_eq!(vdev.arguments, "iface=dtap0,mac=02:00:00:00:00:01");
        assert_eq!(vdev.interface.as_deref(), Some("dtap0"));
        assert!(vdev.is_tap());
        assert_eq!(Vdev::parse("net_null0").unwrap().arguments, "");
        assert_eq!(
            Vdev::parse("net_af_packet1,iface=eth0")
                .unwrap()
                .needs_interface(),
            Some("eth0")
        );
        assert_eq!(vdev.needs_interface(), None);
    }

    #[test]
    fn slots_fit_the_frames_that_are_expected() {
        let sized = |text: &str, mtu| Vdev::parse(text).unwrap().sized_for(mtu);
        let vdev = sized("net_af_packet0,iface=eth0", Some(9000));
        assert_eq!(vdev.slot_bytes(), Some(9216));
        assert_eq!(vdev.arguments, "iface=eth0,framesz=9216,blocksz=36864");
        for mtu in [None, Some(1500), Some(1900)] {
            let vdev = sized("net_af_packet0,iface=eth0", mtu);
            assert_eq!(
                (vdev.slot_bytes(), &*vdev.arguments),
                (Some(2048), "iface=eth0")
            );
        }
        // What the operator says stays as it is.
        let vdev = sized("net_af_packet0,iface=eth0,framesz=4096", Some(9000));
        assert_eq!(
            (vdev.slot_bytes(), &*vdev.arguments),
            (Some(4096), "iface=eth0,framesz=4096")
        );
        assert_eq!(sized("net_tap0,iface=t", Some(9000)).slot_bytes(), None);
        assert!(Vdev::parse("net_af_packet0,iface=eth0,framesz=big").is_err());
    }

    #[test]
    fn a_bad_device_string_is_refused_with_what_is_wrong_in_it() {
        for (text, part) in [
            ("", "driver's name"),
            ("eth0", "driver's name"),
            ("net_tap 0", "driver's name"),
            ("net_tap0,", "``"),
            ("net_tap0,iface", "`iface`"),
            ("net_tap0,iface=", "`iface=`"),
            ("net_tap0,ifaec=x", "no argument `ifaec`"),
            ("net_tap0,iface=fifteen-letters", ""),
            ("net_tap0,iface=sixteen-letters-", "interface's name"),
            ("net_tap0,mac=2:0:0:0:0:1", "`mac="),
            ("net_tap0,iface=a b", "blank"),
            ("net_tap0,iface=a\0b", "blank"),
            ("net_af_packet0", "`iface=`"),
        ] {
            match Vdev::parse(text) {
                Ok(_) => assert!(part.is_empty(), "{text} was taken"),
                Err(error) => {
                    let error = error.to_string();
                    assert!(error.contains("`vdev`"), "{error}");
                    assert!(!part.is_empty() && error.contains(part), "{text}: {error}");
                }
            }
        }
        assert!(Vdev::parse(&format!("net_ring{}", "0".repeat(64))).is_err());
    }
}
