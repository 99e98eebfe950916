//! Addresses and ranges of them: the arithmetic everything else here stands on.
//!
//! An [`Addr`] is a newtype, so that a wider address needs a change in this file and in the formats
//! only. A [`Cidr`] is what people write; a [`Span`] is half-open and may be any range, empty ones
//! included.
//!
//! Invariants: the host bits of a `Cidr` are zero; a `Span` never ends before it starts.

use std::fmt;
use std::net::{AddrParseError, Ipv4Addr};
use std::str::FromStr;

use thiserror::Error;

/// One address of a pool.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addr(u32);

impl Addr {
    /// From its bits, the network's byte order read as a number.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// Its bits as a number.
    pub const fn to_bits(self) -> u32 {
        self.0
    }

    pub(crate) const fn position(self) -> u64 {
        // Widening; `From` is not const.
        self.0 as u64
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(ip: Ipv4Addr) -> Self {
        Self(ip.to_bits())
    }
}

impl From<Addr> for Ipv4Addr {
    fn from(addr: Addr) -> Self {
        Self::from_bits(addr.0)
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Ipv4Addr::from(*self), f)
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Addr {
    type Err = AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<Ipv4Addr>().map(Self::from)
    }
}

/// A pool or subnet: a first address and how many of its bits are fixed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    first: Addr,
    prefix: u8,
}

/// Text or numbers that are no subnet.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CidrError {
    /// Not of the form address, slash, number.
    #[error("{text:?} is not a subnet, such as 10.32.0.0/12")]
    NotCidr {
        /// What was given.
        text: String,
    },
    /// A prefix length above 32.
    #[error("invalid subnet - prefix length {prefix} is above {BITS}")]
    Prefix {
        /// The prefix length.
        prefix: u8,
    },
    /// Bits behind the prefix are set.
    #[error("invalid subnet - bits after network prefix are not all zero: {addr}/{prefix}")]
    HostBits {
        /// The address.
        addr: Addr,
        /// The prefix length.
        prefix: u8,
    },
}

impl Cidr {
    /// The fewest addresses a subnet to allocate from may have: two of four are for containers.
    pub const MIN_SUBNET: u64 = 4;

    /// A subnet from its first address and prefix length.
    ///
    /// # Errors
    /// The prefix is above 32, or bits behind it are set.
    pub fn new(first: Addr, prefix: u8) -> Result<Self, CidrError> {
        let subnet = Self::containing(first, prefix).ok_or(CidrError::Prefix { prefix })?;
        if subnet.first == first {
            Ok(subnet)
        } else {
            Err(CidrError::HostBits {
                addr: first,
                prefix,
            })
        }
    }

    /// The subnet of this prefix length an address lies in; `None` for a prefix above 32.
    pub fn containing(addr: Addr, prefix: u8) -> Option<Self> {
        let host_bits = BITS.checked_sub(prefix)?;
        let mask = u32::MAX.checked_shl(host_bits.into()).unwrap_or(0);
        Some(Self {
            first: Addr(addr.0 & mask),
            prefix,
        })
    }

    /// The first address, which names the subnet.
    pub const fn first(self) -> Addr {
        self.first
    }

    /// How many bits are fixed, 0 to 32.
    pub const fn prefix(self) -> u8 {
        self.prefix
    }

    /// How many addresses there are, network and broadcast address included.
    pub fn size(self) -> u64 {
        self.span().size()
    }

    /// Whether an address is in the subnet.
    pub fn contains(self, addr: Addr) -> bool {
        self.span().contains(addr)
    }

    /// Whether the two have an address in common.
    pub fn overlaps(self, other: Self) -> bool {
        !self.span().intersect(other.span()).is_empty()
    }

    pub(crate) fn span(self) -> Span {
        let start = self.first.position();
        let size = 1_u64 << (BITS - self.prefix);
        Span {
            start,
            end: start + size,
        }
    }

    /// What containers may get: all but the network and the broadcast address. A subnet below
    /// [`Self::MIN_SUBNET`] has neither.
    pub(crate) fn hosts(self) -> Span {
        let Span { start, end } = self.span();
        if end - start < Self::MIN_SUBNET {
            return Span { start, end };
        }
        Span {
            start: start + 1,
            end: end - 1,
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = || {
            let (addr, prefix) = text.split_once('/')?;
            let digits = prefix.bytes().all(|c| c.is_ascii_digit());
            let prefix = prefix.parse().ok().filter(|_| digits)?;
            Some((addr.parse().ok()?, prefix))
        };
        let (addr, prefix) = parts().ok_or_else(|| CidrError::NotCidr {
            text: text.to_owned(),
        })?;
        Self::new(addr, prefix)
    }
}

/// The place of an address, or of the end of a range, as a number.
pub(crate) type Position = u64;

/// Addresses from `start` up to, not including, `end`; 64 bits, so that the end of the whole
/// address space has a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl Span {
    pub(crate) fn one(addr: Addr) -> Self {
        let start = addr.position();
        Self {
            start,
            end: start + 1,
        }
    }

    /// From one address up to another, that one included; just the first if they are out of order.
    pub(crate) fn between(first: Addr, last: Addr) -> Self {
        let start = first.position();
        let end = last.position().max(start) + 1;
        Self { start, end }
    }

    pub(crate) fn size(self) -> u64 {
        self.end - self.start
    }

    pub(crate) fn is_empty(self) -> bool {
        self.start == self.end
    }

    pub(crate) fn contains(self, addr: Addr) -> bool {
        (self.start..self.end).contains(&addr.position())
    }

    /// What both have; empty if nothing.
    pub(crate) fn intersect(self, other: Self) -> Self {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end).max(start);
        Self { start, end }
    }

    /// The first and the last address; `None` if there are none.
    pub(crate) fn ends(self) -> Option<(Addr, Addr)> {
        let last = self.end.checked_sub(1).filter(|last| *last >= self.start)?;
        Some((Self::addr_at(self.start)?, Self::addr_at(last)?))
    }

    /// The address at a position, `None` past the end of the address space.
    pub(crate) fn addr_at(position: u64) -> Option<Addr> {
        u32::try_from(position).ok().map(Addr)
    }

    /// The largest part that is a power of two in size and aligned to it; `None` if empty.
    pub(crate) fn largest_aligned(self) -> Option<Self> {
        (0..=BITS).rev().find_map(|bits| {
            let size = 1_u64 << bits;
            let start = self.start.checked_next_multiple_of(size)?;
            let end = start.checked_add(size)?;
            (end <= self.end).then_some(Self { start, end })
        })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (
            Self::addr_at(self.start),
            Self::addr_at(self.end.saturating_sub(1)),
        ) {
            (Some(first), Some(last)) => write!(f, "{first}-{last}"),
            (Some(_) | None, _) => f.write_str("nothing"),
        }
    }
}

const BITS: u8 = 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn a_subnet_is_read_and_printed() {
        for text in ["10.32.0.0/12", "0.0.0.0/0", "255.255.255.255/32"] {
            assert_eq!(cidr(text).to_string(), text);
        }
        assert_eq!(cidr("0.0.0.0/0").size(), 1 << 32);
        assert_eq!(cidr("10.32.0.0/12").size(), 1 << 20);
    }

    #[test]
    fn what_is_no_subnet_is_refused_in_words() {
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.0/",
            "/8",
            "10.0.0.0/+8",
            "10.0.0/8",
            "::/8",
        ] {
            assert!(
                matches!(text.parse::<Cidr>(), Err(CidrError::NotCidr { .. })),
                "{text}"
            );
        }
        assert_eq!(
            "10.32.0.1/12".parse::<Cidr>().unwrap_err().to_string(),
            "invalid subnet - bits after network prefix are not all zero: 10.32.0.1/12"
        );
        assert_eq!(
            "10.0.0.0/33".parse::<Cidr>(),
            Err(CidrError::Prefix { prefix: 33 })
        );
    }

    #[test]
    fn hosts_are_all_but_the_first_and_the_last() {
        let hosts = cidr("10.0.0.0/30").hosts();
        assert_eq!((hosts.start & 0xff, hosts.end & 0xff), (1, 3));
        assert_eq!(cidr("10.0.0.0/31").hosts().size(), 2);
    }

    #[test]
    fn subnets_overlap_when_one_holds_the_other() {
        assert!(cidr("10.0.0.0/8").overlaps(cidr("10.32.0.0/12")));
        assert!(cidr("10.32.0.0/12").overlaps(cidr("10.0.0.0/8")));
        assert!(!cidr("10.32.0.0/12").overlaps(cidr("10.48.0.0/12")));
    }

    proptest! {
        #[test]
        fn the_largest_aligned_part_is_aligned_inside_and_not_half_of_a_larger(
            start in 0_u64..5000, len in 1_u64..5000,
        ) {
            let span = Span { start, end: start + len };
            let part = span.largest_aligned().unwrap();
            prop_assert!(part.size().is_power_of_two());
            prop_assert_eq!(part.start % part.size(), 0);
            prop_assert_eq!(part.intersect(span), part);
            let twice = part.size() * 2;
            prop_assert!(span.start.next_multiple_of(twice) + twice > span.end);
        }

        #[test]
        fn an_address_lies_in_the_subnet_it_names(bits: u32, prefix in 0_u8..=32) {
            let addr = Addr::from_bits(bits);
            let subnet = Cidr::containing(addr, prefix).unwrap();
            prop_assert!(subnet.contains(addr));
            prop_assert_eq!(Cidr::new(subnet.first(), prefix), Ok(subnet));
            prop_assert_eq!(subnet.to_string().parse(), Ok(subnet));
        }
    }
}
