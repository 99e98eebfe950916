//! Addresses and ranges of them: the arithmetic everything else here stands on.
//!
//! An [`Addr`] is a number of 128 bits. IPv6 addresses are what they are, and IPv4 addresses sit at
//! ::ffff:0:0/96 among them (RFC 4291 §2.5.5.2), so that nothing but reading and printing knows that
//! there are two families. A [`Cidr`] is what people write; a [`Span`] is half-open and may be any
//! range, empty ones included.
//!
//! Invariants: the host bits of a `Cidr` are zero, and its addresses are of one family; a `Span`
//! never ends before it starts. The last address of all (multicast) has no number behind it, so it
//! is in no span.

use std::fmt;
use std::net::{AddrParseError, IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use thiserror::Error;

/// One address of a pool.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addr(u128);

/// How an address is written, and how many bits of it people count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// 32 bits.
    V4,
    /// 128 bits.
    V6,
}

impl Family {
    /// How many bits an address has.
    pub(crate) const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => BITS,
        }
    }

    /// The bits in front of those.
    const fn fixed(self) -> u8 {
        BITS - self.bits()
    }
}

impl Addr {
    /// From its bits, the network's byte order read as a number; IPv4 addresses are at
    /// ::ffff:0:0/96.
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// Its bits as a number.
    pub const fn to_bits(self) -> u128 {
        self.0
    }

    /// The address as IPv4 has it, if it is one.
    pub const fn to_v4(self) -> Option<Ipv4Addr> {
        Ipv6Addr::from_bits(self.0).to_ipv4_mapped()
    }

    pub(crate) const fn family(self) -> Family {
        match self.0 >> 32 == MAPPED {
            true => Family::V4,
            false => Family::V6,
        }
    }

    pub(crate) const fn position(self) -> Position {
        self.0
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(ip: Ipv4Addr) -> Self {
        ip.to_ipv6_mapped().into()
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(ip: Ipv6Addr) -> Self {
        Self(ip.to_bits())
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> Self {
        Ipv6Addr::from_bits(addr.0).to_canonical()
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&IpAddr::from(*self), f)
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
        text.parse::<IpAddr>().map(Self::from)
    }
}

/// A pool or subnet: a first address and how many of its bits are fixed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    first: Addr,
    /// As its family counts.
    prefix: u8,
}

/// Text or numbers that are no subnet.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CidrError {
    /// Not of the form address, slash, number.
    #[error("{text:?} is not a subnet, such as 10.32.0.0/12 or fd57:1::/64")]
    NotCidr {
        /// What was given.
        text: String,
    },
    /// A prefix length that is too long, or so short that both families would be in it.
    #[error("invalid subnet - {}", PrefixFault { addr: *addr, prefix: *prefix })]
    Prefix {
        /// The address.
        addr: Addr,
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

/// What is wrong with a prefix length that names no subnet.
pub(crate) struct PrefixFault {
    pub(crate) addr: Addr,
    pub(crate) prefix: u8,
}

impl fmt::Display for PrefixFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { addr, prefix } = self;
        let longest = addr.family().bits();
        if *prefix > longest {
            return write!(f, "prefix length {prefix} of {addr} is above {longest}");
        }
        write!(
            f,
            "{addr}/{prefix} would have all IPv4 addresses in it (::ffff:0:0/96)"
        )
    }
}

/// Why addresses of a range are not for containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Unfit {
    /// No room for two containers.
    #[error("it has fewer than {} addresses", Cidr::MIN_SUBNET)]
    TooSmall,
    /// An IPv6 range that is most of the Internet.
    #[error("an IPv6 range has a prefix of {} bits at least", Cidr::MIN_PREFIX)]
    TooLarge,
    /// ::/8.
    #[error("addresses in ::/8 are set aside for special uses (RFC 4291): take one of fd00::/8")]
    Special,
    /// fe80::/10.
    #[error("addresses in fe80::/10 are each link's own (RFC 4291): take one of fd00::/8")]
    LinkLocal,
    /// ff00::/8.
    #[error("addresses in ff00::/8 are for multicast (RFC 4291): take one of fd00::/8")]
    Multicast,
}

impl Cidr {
    /// The fewest addresses a subnet to allocate from may have: two of four are for containers.
    pub const MIN_SUBNET: u128 = 4;
    /// The shortest prefix an IPv6 pool may have.
    pub const MIN_PREFIX: u8 = 8;

    /// A subnet from its first address and prefix length.
    ///
    /// # Errors
    /// The prefix is not one of [`Self::containing`], or bits behind it are set.
    pub fn new(first: Addr, prefix: u8) -> Result<Self, CidrError> {
        let addr = first;
        let subnet = Self::containing(addr, prefix).ok_or(CidrError::Prefix { addr, prefix })?;
        if subnet.first == first {
            Ok(subnet)
        } else {
            Err(CidrError::HostBits { addr, prefix })
        }
    }

    /// The subnet of this prefix length an address lies in; `None` for a prefix above the 32 or 128
    /// bits of the address, and for an IPv6 subnet that all IPv4 addresses would be in.
    pub fn containing(addr: Addr, prefix: u8) -> Option<Self> {
        let family = addr.family();
        let host_bits = family.bits().checked_sub(prefix)?;
        let mask = u128::MAX.checked_shl(host_bits.into()).unwrap_or(0);
        let mixed = family == Family::V6 && (MAPPED << 32) & mask == addr.0 & mask;
        (!mixed).then_some(Self {
            first: Addr(addr.0 & mask),
            prefix,
        })
    }

    /// The first address, which names the subnet.
    pub const fn first(self) -> Addr {
        self.first
    }

    /// How many bits are fixed, 0 to 32 of IPv4 and to 128 of IPv6.
    pub const fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether its addresses are IPv6 ones.
    pub const fn is_ipv6(self) -> bool {
        matches!(self.family(), Family::V6)
    }

    pub(crate) const fn family(self) -> Family {
        self.first.family()
    }

    /// How many addresses there are, those that no container gets included.
    pub fn size(self) -> u128 {
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

    /// Of these, the first of each family, that of IPv4 before that of IPv6.
    pub fn first_of_each_family(all: &[Self]) -> Vec<Self> {
        let of_family = |v6| all.iter().copied().find(|one| one.is_ipv6() == v6);
        [false, true].into_iter().filter_map(of_family).collect()
    }

    /// Why it can be no pool, if it cannot.
    pub fn unfit(self) -> Option<Unfit> {
        if self.size() < Self::MIN_SUBNET {
            return Some(Unfit::TooSmall);
        }
        if !self.is_ipv6() {
            return None;
        }
        if self.prefix < Self::MIN_PREFIX {
            return Some(Unfit::TooLarge);
        }
        let first = self.first.0 >> 112;
        match first >> 8 {
            0 => return Some(Unfit::Special),
            0xff => return Some(Unfit::Multicast),
            _ => {}
        }
        // The one holds the other, whichever is the larger.
        let in_common = self.prefix.min(10);
        ((first ^ 0xfe80) >> (16 - in_common) == 0).then_some(Unfit::LinkLocal)
    }

    pub(crate) fn span(self) -> Span {
        let start = self.first.position();
        let host_bits = BITS - self.family().fixed() - self.prefix;
        let size = 1_u128.checked_shl(host_bits.into()).unwrap_or(u128::MAX);
        Span {
            start,
            end: start.saturating_add(size),
        }
    }

    /// What containers may get: all but the first address, which names the subnet or stands for its
    /// routers (RFC 4291 §2.6.1), and IPv4's last, its broadcast address. A subnet below
    /// [`Self::MIN_SUBNET`] has neither.
    pub(crate) fn hosts(self) -> Span {
        let Span { start, end } = self.span();
        if end - start < Self::MIN_SUBNET {
            return Span { start, end };
        }
        let broadcast = match self.family() {
            Family::V4 => 1,
            Family::V6 => 0,
        };
        Span {
            start: start + 1,
            end: end - broadcast,
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
pub(crate) type Position = u128;

/// Addresses from `start` up to, not including, `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span {
    pub(crate) start: Position,
    pub(crate) end: Position,
}

impl Span {
    pub(crate) fn one(addr: Addr) -> Self {
        Self::between(addr, addr)
    }

    /// From one address up to another, that one included; just the first if they are out of order.
    pub(crate) fn between(first: Addr, last: Addr) -> Self {
        let start = first.position();
        let end = last.position().max(start).saturating_add(1);
        Self { start, end }
    }

    pub(crate) fn size(self) -> u128 {
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
        Some((Addr(self.start), Addr(last)))
    }

    /// The first address, or where it would be.
    pub(crate) const fn first(self) -> Addr {
        Addr(self.start)
    }

    /// The largest part that is a power of two in size and aligned to it; `None` if empty.
    pub(crate) fn largest_aligned(self) -> Option<Self> {
        let most = self.size().checked_ilog2()?;
        (0..=most).rev().find_map(|bits| {
            let size = 1_u128 << bits;
            let start = self.start.checked_next_multiple_of(size)?;
            let end = start.checked_add(size)?;
            (end <= self.end).then_some(Self { start, end })
        })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ends() {
            Some((first, last)) => write!(f, "{first}-{last}"),
            None => f.write_str("nothing"),
        }
    }
}

const BITS: u8 = 128;
/// What stands before the bits of an IPv4 address.
const MAPPED: u128 = 0xffff;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn a_subnet_is_read_and_printed() {
        for text in [
            "10.32.0.0/12",
            "0.0.0.0/0",
            "255.255.255.255/32",
            "fd57:1::/64",
            "8000::/1",
            "::1/128",
        ] {
            assert_eq!(cidr(text).to_string(), text);
        }
        assert_eq!(cidr("fd57:1::/64").size(), 1 << 64);
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
            "fd57::1::/64",
            "fd57:1::",
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
        for (text, why) in [
            ("10.0.0.0/33", "prefix length 33 of 10.0.0.0 is above 32"),
            ("fd57::/129", "prefix length 129 of fd57:: is above 128"),
            (
                "::/0",
                "::/0 would have all IPv4 addresses in it (::ffff:0:0/96)",
            ),
            (
                "::/80",
                "::/80 would have all IPv4 addresses in it (::ffff:0:0/96)",
            ),
        ] {
            let error = text.parse::<Cidr>().unwrap_err().to_string();
            assert_eq!(error, format!("invalid subnet - {why}"));
        }
    }

    #[test]
    fn hosts_are_all_but_the_first_and_the_last() {
        let hosts = cidr("10.0.0.0/30").hosts();
        assert_eq!((hosts.start & 0xff, hosts.end & 0xff), (1, 3));
        assert_eq!(cidr("10.0.0.0/31").hosts().size(), 2);
        // There is no broadcast address in IPv6.
        let hosts = cidr("fd57::/126").hosts();
        assert_eq!((hosts.start & 0xff, hosts.end & 0xff), (1, 4));
        assert_eq!(cidr("fd57::/127").hosts().size(), 2);
    }

    #[test]
    fn ranges_of_special_addresses_are_no_pools() {
        for (text, why) in [
            ("10.0.0.0/31", Some(Unfit::TooSmall)),
            ("fd57::/127", Some(Unfit::TooSmall)),
            ("f000::/4", Some(Unfit::TooLarge)),
            ("::/112", Some(Unfit::Special)),
            ("64:ff9b::/96", Some(Unfit::Special)),
            ("fe80::/64", Some(Unfit::LinkLocal)),
            ("febf:1::/64", Some(Unfit::LinkLocal)),
            ("fe00::/8", Some(Unfit::LinkLocal)),
            ("ff02::/16", Some(Unfit::Multicast)),
            ("ff00::/8", Some(Unfit::Multicast)),
            ("fec0::/10", None),
            ("fe00::/9", None),
            ("fd00::/8", None),
            ("fd57::/126", None),
            ("2001:db8::/32", None),
            ("0.0.0.0/0", None),
            ("10.0.0.0/30", None),
        ] {
            assert_eq!(cidr(text).unfit(), why, "{text}");
        }
    }

    #[test]
    fn an_ipv4_address_is_one_however_it_is_written() {
        let addr: Addr = "10.32.0.1".parse().unwrap();
        assert_eq!("::ffff:10.32.0.1".parse(), Ok(addr));
        assert_eq!(addr.to_string(), "10.32.0.1");
        assert_eq!(addr.to_v4(), Some(Ipv4Addr::new(10, 32, 0, 1)));
        let other: Addr = "fd57::1".parse().unwrap();
        assert_eq!((other.to_v4(), other.to_string()), (None, "fd57::1".into()));
        assert!(!cidr("0.0.0.0/0").contains(other));
        assert!(!cidr("8000::/1").overlaps(cidr("0.0.0.0/0")));
    }

    #[test]
    fn the_last_address_of_all_breaks_nothing() {
        let last = Addr::from_bits(u128::MAX);
        assert!(Span::one(last).is_empty());
        assert_eq!(Span::one(last).ends(), None);
        let all = cidr("8000::/1");
        assert_eq!(all.span().ends().unwrap().1, Addr(u128::MAX - 1));
        assert!(all.span().largest_aligned().is_some());
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
            start in 0_u128..5000, len in 1_u128..5000,
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
        fn an_address_lies_in_the_subnet_it_names(ip: IpAddr, prefix in 1_u8..=32) {
            let addr = Addr::from(ip);
            prop_assert_eq!(IpAddr::from(addr), ip.to_canonical());
            let with_ipv4 = (addr.0 ^ MAPPED << 32).leading_zeros() >= prefix.into();
            let subnet = Cidr::containing(addr, prefix);
            if addr.family() == Family::V6 && with_ipv4 {
                prop_assert_eq!(subnet, None);
                return Ok(());
            }
            let subnet = subnet.unwrap();
            prop_assert!(subnet.contains(addr) || addr.0 == u128::MAX);
            prop_assert_eq!(Cidr::new(subnet.first(), prefix), Ok(subnet));
            prop_assert_eq!(subnet.to_string().parse(), Ok(subnet));
        }
    }
}
