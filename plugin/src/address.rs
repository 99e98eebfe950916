//! How people say which address they want.
//!
//! The grammar is Weave Net's, so that scripts move over: `ip:A.B.C.D/N` or bare `A.B.C.D/N` is
//! exactly that address, `net:A.B.C.D/N` any of that subnet, `net:default` one of the default subnet
//! of each family, IPv4 and IPv6, that there is a range of. No address at all means `net:default`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use thiserror::Error;
use weft_api::{Cidr, ParseCidrError};

/// Which address is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AddressSpec {
    /// This one.
    Exact(Cidr),
    /// Any of this subnet.
    Subnet(Cidr),
    /// Any of each default subnet: of IPv4, of IPv6.
    DefaultSubnet,
}

/// Text that asks for no address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParseAddressError {
    /// The part after `ip:` or `net:` is no CIDR.
    #[error("{0}")]
    Cidr(#[from] ParseCidrError),
    /// A single address was meant, but the prefix length is missing.
    #[error("{0} has no prefix length: write {0}/N, N being that of its subnet")]
    NoPrefix(IpAddr),
    /// A subnet was meant, but host bits are set.
    #[error("{0} is not a subnet: bits behind the first {prefix} are set", prefix = .0.prefix())]
    HostBits(Cidr),
}

impl AddressSpec {
    /// Whether an address somebody holds is one that this asks for.
    pub fn selects(self, held: Cidr, mut default_subnets: impl Iterator<Item = Cidr>) -> bool {
        match self {
            Self::Exact(cidr) => cidr.addr() == held.addr(),
            Self::Subnet(subnet) => subnet.contains(held.addr()),
            Self::DefaultSubnet => default_subnets.any(|s| s.contains(held.addr())),
        }
    }
}

impl FromStr for AddressSpec {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == DEFAULT {
            return Ok(Self::DefaultSubnet);
        }
        if let Some(subnet) = text.strip_prefix("net:") {
            let subnet: Cidr = subnet.parse()?;
            if !is_subnet(subnet) {
                return Err(ParseAddressError::HostBits(subnet));
            }
            return Ok(Self::Subnet(subnet));
        }
        let address = text.strip_prefix("ip:").unwrap_or(text);
        if let Ok(bare) = address.parse() {
            return Err(ParseAddressError::NoPrefix(bare));
        }
        Ok(Self::Exact(address.parse()?))
    }
}

impl fmt::Display for AddressSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(cidr) => write!(f, "ip:{cidr}"),
            Self::Subnet(subnet) => write!(f, "net:{subnet}"),
            Self::DefaultSubnet => f.write_str(DEFAULT),
        }
    }
}

fn is_subnet(cidr: Cidr) -> bool {
    match cidr.addr() {
        IpAddr::V4(addr) => addr.to_bits().trailing_zeros() + u32::from(cidr.prefix()) >= 32,
        IpAddr::V6(addr) => addr.to_bits().trailing_zeros() + u32::from(cidr.prefix()) >= 128,
    }
}

const DEFAULT: &str = "net:default";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spec(text: &str) -> AddressSpec {
        text.parse().unwrap()
    }

    #[test]
    fn the_four_forms_are_understood() {
        let cidr: Cidr = "10.2.1.7/24".parse().unwrap();
        assert_eq!(spec("10.2.1.7/24"), AddressSpec::Exact(cidr));
        assert_eq!(spec("ip:10.2.1.7/24"), AddressSpec::Exact(cidr));
        let subnet = "10.2.1.0/24".parse().unwrap();
        assert_eq!(spec("net:10.2.1.0/24"), AddressSpec::Subnet(subnet));
        assert_eq!(spec("net:default"), AddressSpec::DefaultSubnet);
        assert!("net:0.0.0.0/0".parse::<AddressSpec>().is_ok());
        assert!("net:fd00::/64".parse::<AddressSpec>().is_ok());
    }

    #[test]
    fn mistakes_are_explained() {
        let error = |text: &str| text.parse::<AddressSpec>().unwrap_err().to_string();
        assert_eq!(
            error("10.2.1.7"),
            "10.2.1.7 has no prefix length: write 10.2.1.7/N, N being that of its subnet"
        );
        assert_eq!(
            error("net:10.2.1.7/24"),
            "10.2.1.7/24 is not a subnet: bits behind the first 24 are set"
        );
        assert_eq!(
            error("web"),
            "\"web\" is not an address with a prefix length, such as 10.32.0.7/12"
        );
        assert!(error("10.2.1.7/33").contains("/33"));
    }

    #[test]
    fn held_addresses_are_selected_by_what_was_asked() {
        let held = "10.32.0.9/12".parse().unwrap();
        let default = ["10.32.0.0/12", "fd57:1::/64"].map(|text| text.parse().unwrap());
        let selects = |text, held| spec(text).selects(held, default.into_iter());
        assert!(selects("net:default", held));
        assert!(selects("net:default", "fd57:1::9/64".parse().unwrap()));
        assert!(!selects("net:default", "fd57:2::9/64".parse().unwrap()));
        assert!(!spec("net:default").selects(held, std::iter::empty()));
        assert!(selects("10.32.0.9/16", held));
        assert!(!selects("10.32.0.8/12", held));
        assert!(selects("net:10.32.0.0/24", held));
        assert!(!selects("net:10.33.0.0/24", held));
    }

    proptest! {
        #[test]
        fn display_is_read_back(addr: IpAddr, prefix in 0_u8..=32) {
            let spec = AddressSpec::Exact(Cidr::new(addr, prefix).unwrap());
            prop_assert_eq!(spec.to_string().parse(), Ok(spec));
        }

        #[test]
        fn no_text_panics(text in "(ip:|net:)?[0-9a-f.:/]{0,20}") {
            let _ = text.parse::<AddressSpec>();
        }
    }
}
