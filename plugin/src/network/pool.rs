//! A subnet that a Docker network takes its addresses from, written into the id dockerd keeps for us.
//!
//! The plugin remembers no pools: all that is to be known of one stands in its id, so that a plugin
//! that was started anew, perhaps after a crash, knows each of them. Invariant: an id is read back as
//! what it was written from.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use thiserror::Error;
use weft_api::{Cidr, ParseCidrError};

/// Who assigns the addresses of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    /// Each host for its own containers.
    Local,
    /// A swarm's manager for the containers of all hosts.
    Global,
}

/// A pool as its id has it: `SPACE-SUBNET-RANGE-TAG`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pool {
    pub(crate) space: Space,
    /// Whose prefix length the addresses have.
    pub(crate) subnet: Cidr,
    /// The part of the subnet that addresses are taken from.
    pub(crate) range: Cidr,
    /// Tells two pools of one subnet apart.
    pub(crate) tag: u32,
}

/// Text that cannot be a pool.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum PoolError {
    /// An id we have not given.
    #[error("{0:?} is no address pool of this plugin")]
    NotOurs(String),
    /// An address space that is not ours.
    #[error("{0:?} is no address space of this plugin")]
    Space(String),
    /// The subnet or the range cannot be read.
    #[error("{0}")]
    Cidr(#[from] ParseCidrError),
    /// Bits behind the prefix are set.
    #[error("{0} is not a subnet: bits behind the first {prefix} are set", prefix = .0.prefix())]
    HostBits(Cidr),
    /// The range is not inside of the subnet.
    #[error("the range {range} is not a part of the subnet {subnet}")]
    Outside {
        /// The range.
        range: Cidr,
        /// The subnet.
        subnet: Cidr,
    },
}

impl Space {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Local => "weftlocal",
            Self::Global => "weftglobal",
        }
    }
}

impl FromStr for Space {
    type Err = PoolError;

    fn from_str(text: &str) -> Result<Self, PoolError> {
        let all = [Self::Local, Self::Global];
        let found = all.into_iter().find(|space| space.name() == text);
        found.ok_or_else(|| PoolError::Space(text.to_owned()))
    }
}

impl Pool {
    /// A pool of this subnet, or of this part of it.
    pub(crate) fn new(
        space: Space,
        subnet: Cidr,
        range: Option<Cidr>,
        tag: u32,
    ) -> Result<Self, PoolError> {
        let range = range.unwrap_or(subnet);
        for cidr in [subnet, range] {
            if network(cidr) != cidr.addr() {
                return Err(PoolError::HostBits(cidr));
            }
        }
        if range.prefix() < subnet.prefix() || !subnet.contains(range.addr()) {
            return Err(PoolError::Outside { range, subnet });
        }
        Ok(Self {
            space,
            subnet,
            range,
            tag,
        })
    }

    /// An address with the prefix length of the subnet.
    pub(crate) fn with_prefix(&self, addr: IpAddr) -> String {
        format!("{addr}/{}", self.subnet.prefix())
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (space, tag) = (self.space.name(), self.tag);
        write!(f, "{space}-{}-{}-{tag:08x}", self.subnet, self.range)
    }
}

impl FromStr for Pool {
    type Err = PoolError;

    fn from_str(text: &str) -> Result<Self, PoolError> {
        let not_ours = || PoolError::NotOurs(text.to_owned());
        let mut parts = text.split('-');
        let (Some(space), Some(subnet), Some(range), Some(tag), None) = (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ) else {
            return Err(not_ours());
        };
        let tag = u32::from_str_radix(tag, 16).map_err(|_| not_ours())?;
        Self::new(space.parse()?, subnet.parse()?, Some(range.parse()?), tag)
    }
}

/// The first address of a subnet.
pub(crate) fn network(cidr: Cidr) -> IpAddr {
    match cidr.addr() {
        IpAddr::V4(addr) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(cidr.prefix()));
            (addr & std::net::Ipv4Addr::from_bits(mask.unwrap_or(0))).into()
        }
        IpAddr::V6(addr) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(cidr.prefix()));
            (addr & std::net::Ipv6Addr::from_bits(mask.unwrap_or(0))).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(subnet: &str, range: Option<&str>) -> Result<Pool, PoolError> {
        let range = range.map(|range| range.parse().unwrap());
        Pool::new(Space::Local, subnet.parse().unwrap(), range, 7)
    }

    #[test]
    fn an_id_says_all_there_is_to_know() {
        let whole = pool("10.32.0.0/12", None).unwrap();
        assert_eq!(
            whole.to_string(),
            "weftlocal-10.32.0.0/12-10.32.0.0/12-00000007"
        );
        let part = pool("fd57:1::/64", Some("fd57:1::8000:0/100")).unwrap();
        assert_eq!(part.to_string().parse(), Ok(part));
    }

    #[test]
    fn other_ids_and_impossible_pools_are_refused() {
        let not_ours = "LocalDefault/172.18.0.0/16".parse::<Pool>();
        assert!(matches!(not_ours, Err(PoolError::NotOurs(_))));
        let space = "other-10.0.0.0/8-10.0.0.0/8-0".parse::<Pool>();
        assert_eq!(space, Err(PoolError::Space("other".to_owned())));
        for (subnet, range) in [
            ("10.32.0.1/12", None),
            ("10.32.0.0/16", Some("10.33.0.0/24")),
            ("10.32.0.0/16", Some("10.32.0.0/12")),
            ("10.32.0.0/16", Some("fd57::/64")),
        ] {
            assert!(pool(subnet, range).is_err(), "{subnet} {range:?}");
        }
    }

    proptest! {
        #[test]
        fn ids_are_read_back(addr: IpAddr, prefix in 0_u8..=32, tag: u32) {
            let subnet = Cidr::new(addr, prefix).unwrap();
            let subnet = Cidr::new(network(subnet), prefix).unwrap();
            let pool = Pool::new(Space::Global, subnet, None, tag).unwrap();
            prop_assert_eq!(pool.to_string().parse(), Ok(pool));
        }

        #[test]
        fn no_text_panics(text in "(weft(local|global))?[0-9a-f.:/-]{0,40}") {
            let _ = text.parse::<Pool>();
        }
    }
}
