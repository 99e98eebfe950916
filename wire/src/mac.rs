//! An Ethernet address.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Six bytes of Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MacAddr([u8; 6]);

impl MacAddr {
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// From bytes in wire order.
    pub const fn from_bytes(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// Bytes in wire order.
    pub const fn to_bytes(self) -> [u8; 6] {
        self.0
    }

    /// Group address: multicast, broadcast included (IEEE 802, I/G bit).
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// The broadcast address.
    pub fn is_broadcast(self) -> bool {
        self == Self::BROADCAST
    }

    /// `01:80:c2:00:00:00` to `…:0f`: addresses a bridge must not pass on (IEEE 802.1D, table 7-10).
    pub const fn is_link_local_group(self) -> bool {
        let [a, b, c, d, e, f] = self.0;
        a == 0x01 && b == 0x80 && c == 0xc2 && d == 0 && e == 0 && f < 0x10
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is not six hex bytes with colons between.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is not a MAC address, such as 3a:01:02:03:04:05")]
pub struct ParseMacError(String);

impl FromStr for MacAddr {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseMacError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(wrong)?;
            let hex = part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit());
            *byte = hex
                .then(|| u8::from_str_radix(part, 16).ok())
                .flatten()
                .ok_or_else(wrong)?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_is_read_back() {
        let mac = MacAddr::from_bytes([0x3a, 1, 2, 3, 4, 0xff]);
        assert_eq!(mac.to_string(), "3a:01:02:03:04:ff");
        assert_eq!("3a:01:02:03:04:ff".parse(), Ok(mac));
    }

    #[test]
    fn other_text_is_refused() {
        for text in [
            "",
            "3a:01",
            "3a:01:02:03:04:05:06",
            "3a:1:02:03:04:05",
            "+a:01:02:03:04:05",
        ] {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
    }

    #[test]
    fn kinds_of_address() {
        assert!(MacAddr::BROADCAST.is_multicast());
        let stp = MacAddr::from_bytes([1, 0x80, 0xc2, 0, 0, 0]);
        assert!(stp.is_link_local_group());
        assert!(!MacAddr::from_bytes([1, 0x80, 0xc2, 0, 0, 0x10]).is_link_local_group());
    }
}
