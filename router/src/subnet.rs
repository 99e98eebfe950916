//! A range of underlay addresses, as the operator writes it for `--trusted-subnets`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use thiserror::Error;

/// An IPv4 or IPv6 prefix; no bit is set behind the prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subnet {
    base: IpAddr,
    len: u8,
}

impl Subnet {
    /// The one that `addr` lies in with this length of the prefix; none if that does not fit.
    pub fn around(addr: IpAddr, len: u8) -> Option<Self> {
        let addr = addr.to_canonical();
        (len <= bits(addr)).then(|| Self {
            base: mask(addr, len),
            len,
        })
    }

    /// Whether it is of IPv4.
    pub fn is_ipv4(self) -> bool {
        self.base.is_ipv4()
    }

    /// Whether `addr` lies in it. An IPv4 address written as IPv6 (`::ffff:a.b.c.d`) counts as IPv4.
    pub fn contains(self, addr: IpAddr) -> bool {
        let addr = addr.to_canonical();
        addr.is_ipv4() == self.base.is_ipv4() && mask(addr, self.len) == self.base
    }

    /// Whether the two have an address in common.
    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.contains(other.base) || other.contains(self.base)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.len)
    }
}

/// Text that is no subnet.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParseSubnetError {
    /// Not `address/length` at all, or a length that does not fit the address.
    #[error("{0:?} is not a subnet, such as 10.0.0.0/8 or fd00::/16")]
    Form(String),
    /// Bits behind the prefix are set, so one of the two is a mistake.
    #[error("{text:?} has bits set behind its prefix; the subnet would be {meant}")]
    HostBits {
        /// As it was written.
        text: String,
        /// The same prefix, without the bits.
        meant: Subnet,
    },
}

impl FromStr for Subnet {
    type Err = ParseSubnetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (addr, len) = text.split_once('/')?;
            let addr: IpAddr = addr.parse().ok()?;
            let len: u8 = len.parse().ok()?;
            (len <= bits(addr)).then_some((addr, len))
        };
        let (addr, len) = parse().ok_or_else(|| ParseSubnetError::Form(text.to_owned()))?;
        let base = mask(addr, len);
        let subnet = Self { base, len };
        if base != addr {
            let text = text.to_owned();
            return Err(ParseSubnetError::HostBits {
                text,
                meant: subnet,
            });
        }
        Ok(subnet)
    }
}

fn bits(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

fn mask(addr: IpAddr, len: u8) -> IpAddr {
    match addr {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_contains_its_addresses_and_no_others() {
        let subnet: Subnet = "10.32.0.0/12".parse().unwrap();
        assert!(subnet.contains("10.47.255.255".parse().unwrap()));
        assert!(subnet.contains("::ffff:10.32.0.1".parse().unwrap()));
        assert!(!subnet.contains("10.48.0.0".parse().unwrap()));
        assert!(!subnet.contains("fd00::1".parse().unwrap()));
        let all: Subnet = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("203.0.113.9".parse().unwrap()));
        let v6: Subnet = "fd00::/8".parse().unwrap();
        assert!(v6.contains("fdff::1".parse().unwrap()));
        assert_eq!(v6.to_string(), "fd00::/8");
    }

    #[test]
    fn what_is_no_subnet_is_refused_in_words() {
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.0/33",
            "x/8",
            "fd00::/129",
            "10.0.0.0/-1",
        ] {
            let error = text.parse::<Subnet>().unwrap_err();
            assert!(error.to_string().contains("10.0.0.0/8"), "{error}");
        }
        let error = "10.0.0.1/8".parse::<Subnet>().unwrap_err();
        assert!(
            error.to_string().ends_with("would be 10.0.0.0/8"),
            "{error}"
        );
    }
}
