//! An address with its prefix length, as people write it: `10.32.0.7/12`.
//!
//! It serves for a container's address (host bits set) and for a subnet (host bits clear); which of
//! the two is meant is the field's business, and `ipam` checks it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// An IP address and how many of its first bits name the subnet.
///
/// Invariant: the prefix is at most 32 for IPv4 and 128 for IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    addr: IpAddr,
    prefix: u8,
}

/// Text or numbers that are no CIDR.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParseCidrError {
    /// Not `ADDRESS/LENGTH`.
    #[error("{0:?} is not an address with a prefix length, such as 10.32.0.7/12")]
    Form(String),
    /// The prefix is longer than the address.
    #[error("/{prefix} is longer than the address {addr}")]
    Prefix {
        /// The address.
        addr: IpAddr,
        /// The prefix length that does not fit it.
        prefix: u8,
    },
}

impl Cidr {
    /// An address and its prefix length in bits.
    ///
    /// # Errors
    /// The prefix is longer than the address.
    pub fn new(addr: IpAddr, prefix: u8) -> Result<Self, ParseCidrError> {
        if prefix > bits(addr) {
            return Err(ParseCidrError::Prefix { addr, prefix });
        }
        Ok(Self { addr, prefix })
    }

    /// An address and its prefix length in bits; what is longer than the address counts as its length.
    pub fn of(addr: IpAddr, prefix: u8) -> Self {
        Self {
            addr,
            prefix: prefix.min(bits(addr)),
        }
    }

    /// The address, host bits included.
    pub const fn addr(self) -> IpAddr {
        self.addr
    }

    /// The prefix length in bits.
    pub const fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether an address lies in the subnet; never across address families.
    pub fn contains(self, addr: IpAddr) -> bool {
        match (self.addr, addr) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                let differ = ours.to_bits() ^ theirs.to_bits();
                differ.leading_zeros() >= self.prefix.into()
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
                let differ = ours.to_bits() ^ theirs.to_bits();
                differ.leading_zeros() >= self.prefix.into()
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }

    /// How many addresses the subnet has; a whole IPv6 /0 saturates.
    pub fn size(self) -> u128 {
        1_u128
            .checked_shl((bits(self.addr) - self.prefix).into())
            .unwrap_or(u128::MAX)
    }
}

/// How many bits an address has.
const fn bits(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = ParseCidrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseCidrError::Form(text.to_owned());
        let (addr, prefix) = text.split_once('/').ok_or_else(wrong)?;
        if !prefix.bytes().all(|c| c.is_ascii_digit()) {
            return Err(wrong());
        }
        let addr = addr.parse().map_err(|_| wrong())?;
        Self::new(addr, prefix.parse().map_err(|_| wrong())?)
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        crate::text::serialize(self, to)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        crate::text::deserialize(from)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn text_form_is_read_back(addr: IpAddr, prefix in 0_u8..=32) {
            let cidr = Cidr::new(addr, prefix).unwrap();
            prop_assert_eq!(cidr.to_string().parse(), Ok(cidr));
            prop_assert!(cidr.contains(addr));
        }

        #[test]
        fn no_text_panics(text in "[0-9a-f.:/]{0,24}") {
            let _ = text.parse::<Cidr>();
        }
    }

    #[test]
    fn other_text_is_refused() {
        for text in [
            "",
            "10.0.0.1",
            "10.0.0.1/",
            "10.0.0.1/33",
            "10.0.0/8",
            "::1/129",
            "10.0.0.1/+8",
        ] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_subnet_contains_its_own_family_only() {
        let pool: Cidr = "10.32.0.0/12".parse().unwrap();
        assert!(pool.contains("10.47.255.255".parse().unwrap()));
        assert!(!pool.contains("10.48.0.0".parse().unwrap()));
        assert!(!pool.contains("::".parse().unwrap()));
        assert_eq!(pool.size(), 1 << 20);
        assert_eq!("::/0".parse::<Cidr>().unwrap().size(), u128::MAX);
    }
}
