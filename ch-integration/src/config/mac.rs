//! An Ethernet address as text.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The Ethernet address of one station: six bytes, not a group address, not all zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

/// Why text is not a station's Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MacAddressError {
    /// It is not six bytes.
    #[error("{0:?} is not an Ethernet address; write six hex bytes, as 02:00:00:00:00:01")]
    Form(String),
    /// It names a group of stations, or none.
    #[error(
        "{0:?} is no station's Ethernet address; make the first byte even, as 02:00:00:00:00:01"
    )]
    NotStation(String),
}

impl MacAddress {
    /// The six bytes, as on the wire.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = MacAddressError;

    fn from_str(text: &str) -> Result<Self, MacAddressError> {
        let form = || MacAddressError::Form(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|part| part.len() == 2)
                .ok_or_else(form)?;
            let hex = part.bytes().all(|character| character.is_ascii_hexdigit());
            *byte = u8::from_str_radix(part, 16)
                .ok()
                .filter(|_| hex)
                .ok_or_else(form)?;
        }
        if parts.next().is_some() {
            return Err(form());
        }
        if bytes[0] & 1 != 0 || bytes == [0; 6] {
            return Err(MacAddressError::NotStation(text.to_owned()));
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for MacAddress {
    type Error = MacAddressError;

    fn try_from(text: String) -> Result<Self, MacAddressError> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_written_as_six_hex_bytes() {
        let mac: MacAddress = "02:aB:00:00:00:01".parse().unwrap();
        assert_eq!(mac.bytes(), [2, 0xab, 0, 0, 0, 1]);
        assert_eq!(mac.to_string(), "02:ab:00:00:00:01");
    }

    #[test]
    fn group_addresses_and_other_text_are_refused() {
        for text in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "02-00-00-00-00-01",
            "+2:0:",
        ] {
            let error = text.parse::<MacAddress>().unwrap_err();
            assert!(matches!(error, MacAddressError::Form(_)), "{text}");
        }
        for text in [
            "01:00:00:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
        ] {
            let error = text.parse::<MacAddress>().unwrap_err();
            assert!(matches!(error, MacAddressError::NotStation(_)), "{text}");
        }
    }
}
