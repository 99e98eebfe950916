//! An Ethernet frame as the router looks at it, and the network it belongs to.
//!
//! [`Frame::new_checked`] is called once per frame; after it no accessor can fail. Only the header
//! is looked at: what a frame carries is the containers' affair. The one exception is ARP, because
//! the resolver's address exists on every host at once and must not be learned by neighbours
//! (see [`Frame::arp`]).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{
    ArpPacketSlice, EtherType, Ethernet2HeaderSlice, IpNumber, Ipv4HeaderSlice, Ipv6HeaderSlice,
};

use crate::{MacAddr, Malformed};

/// The number of an overlay network on the wire: 24 bits, 0 is the default network `weft`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Network(u32);

impl Network {
    /// The network every container joins unless told otherwise.
    pub const DEFAULT: Self = Self(0);

    /// From the three bytes of the wire.
    pub const fn from_bytes(bytes: [u8; 3]) -> Self {
        Self(u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]))
    }

    /// The three bytes of the wire.
    pub const fn to_bytes(self) -> [u8; 3] {
        let [_, a, b, c] = self.0.to_be_bytes();
        [a, b, c]
    }
}

impl From<Network> for u32 {
    fn from(network: Network) -> Self {
        network.0
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Network({})", self.0)
    }
}

/// Bytes of an Ethernet header without tags.
pub const ETHERNET_HEADER: usize = 14;

/// A view on a frame whose header is known to be complete.
#[derive(Debug, Clone)]
pub struct Frame<'a> {
    header: Ethernet2HeaderSlice<'a>,
    bytes: &'a [u8],
}

/// The two addresses an ARP packet for IPv4 speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    /// Who asks or answers.
    pub sender: Ipv4Addr,
    /// Who is asked for or answered.
    pub target: Ipv4Addr,
}

impl<'a> Frame<'a> {
    /// Checks that the Ethernet header is whole.
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let what = "Ethernet header";
        Ethernet2HeaderSlice::from_slice(bytes)
            .map(|header| Self { header, bytes })
            .map_err(|_| Malformed::Truncated { what })
    }

    /// Destination address.
    pub fn dst(&self) -> MacAddr {
        MacAddr::from_bytes(self.header.destination())
    }

    /// Source address.
    pub fn src(&self) -> MacAddr {
        MacAddr::from_bytes(self.header.source())
    }

    /// The type field behind the addresses; a tag's own type where the frame is tagged.
    pub fn ethertype(&self) -> u16 {
        self.header.ether_type().0
    }

    /// The whole frame, header included.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The address an untagged frame speaks from: the source of a packet, the sender of an ARP
    /// message, the address a neighbour advertisement is about; `None` for every other frame.
    pub fn sender(&self) -> Option<IpAddr> {
        let packet = self.bytes.get(ETHERNET_HEADER..)?;
        match self.header.ether_type() {
            EtherType::IPV4 => Some(
                Ipv4HeaderSlice::from_slice(packet)
                    .ok()?
                    .source_addr()
                    .into(),
            ),
            EtherType::IPV6 => {
                let header = Ipv6HeaderSlice::from_slice(packet).ok()?;
                let source = header.source_addr();
                Some(advertised(&header, packet).unwrap_or(source).into())
            }
            _ => self.arp().map(|arp| arp.sender.into()),
        }
    }

    /// The addresses of an untagged ARP packet for IPv4; `None` for every other frame.
    pub fn arp(&self) -> Option<Arp> {
        if self.header.ether_type() != EtherType::ARP {
            return None;
        }
        let arp = ArpPacketSlice::from_slice(self.bytes.get(ETHERNET_HEADER..)?).ok()?;
        let ipv4 = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from);
        Some(Arp {
            sender: ipv4(arp.sender_protocol_addr())?,
            target: ipv4(arp.target_protocol_addr())?,
        })
    }
}

/// The address a neighbour advertisement says its sender has (RFC 4861 §4.4), which need not be the
/// one it comes from.
fn advertised(header: &Ipv6HeaderSlice<'_>, packet: &[u8]) -> Option<Ipv6Addr> {
    let message = packet.get(IPV6_HEADER..)?;
    let is_advertisement =
        header.next_header() == IpNumber::IPV6_ICMP && message.first() == Some(&ADVERTISEMENT);
    let target = message.get(ICMPV6_HEADER..)?.first_chunk::<16>()?;
    is_advertisement.then_some(Ipv6Addr::from(*target))
}

const IPV6_HEADER: usize = 40;
const ICMPV6_HEADER: usize = 8;
/// The type of a neighbour advertisement.
const ADVERTISEMENT: u8 = 136;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_fields_are_where_ethernet_has_them() {
        let mut bytes = vec![1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15, 16, 0x88, 0xb5];
        bytes.extend_from_slice(b"payload");
        let frame = Frame::new_checked(&bytes).unwrap();
        assert_eq!(frame.dst().to_string(), "01:02:03:04:05:06");
        assert_eq!(frame.src().to_string(), "0b:0c:0d:0e:0f:10");
        assert_eq!(frame.ethertype(), 0x88b5);
        assert_eq!(frame.arp(), None);
        assert!(Frame::new_checked(&bytes[..13]).is_err());
    }

    #[test]
    fn arp_shows_its_two_addresses() {
        let mut bytes = vec![0xff; 6];
        bytes.extend([2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        bytes.extend([2, 0, 0, 0, 0, 1, 10, 32, 0, 1]);
        bytes.extend([0, 0, 0, 0, 0, 0, 169, 254, 67, 83]);
        let arp = Frame::new_checked(&bytes).unwrap().arp().unwrap();
        assert_eq!(arp.sender, Ipv4Addr::new(10, 32, 0, 1));
        assert_eq!(arp.target, Ipv4Addr::new(169, 254, 67, 83));
        let sender = Frame::new_checked(&bytes).unwrap().sender();
        assert_eq!(sender, Some(arp.sender.into()));
        assert_eq!(Frame::new_checked(&bytes[..30]).unwrap().arp(), None);
    }

    #[test]
    fn a_packet_shows_who_sends_it() {
        let mut bytes = vec![2; 12];
        bytes.extend([8, 0, 0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0]);
        bytes.extend([10, 32, 0, 1, 10, 32, 0, 2]);
        let frame = Frame::new_checked(&bytes).unwrap();
        assert_eq!(frame.sender(), Some(Ipv4Addr::new(10, 32, 0, 1).into()));
        assert_eq!(Frame::new_checked(&bytes[..33]).unwrap().sender(), None);
    }

    #[test]
    fn an_ipv6_packet_shows_who_sends_it_and_an_advertisement_whom_it_is_about() {
        let ip = |n| Ipv6Addr::new(0xfd57, 0, 0, 0, 0, 0, 0, n);
        let packet = |kind: u8| {
            let mut bytes = vec![2; 12];
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 24, 58, 255]);
            bytes.extend([ip(1).octets(), ip(2).octets()].concat());
            bytes.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
            bytes.extend(ip(3).octets());
            bytes
        };
        let sender = |bytes: &[u8]| Frame::new_checked(bytes).unwrap().sender();
        assert_eq!(sender(&packet(128)), Some(ip(1).into()));
        assert_eq!(sender(&packet(136)), Some(ip(3).into()));
        // Cut short, it is about nobody.
        assert_eq!(sender(&packet(136)[..77]), Some(ip(1).into()));
        assert_eq!(sender(&packet(136)[..53]), None);
    }

    #[test]
    fn networks_are_three_bytes() {
        let network = Network::from_bytes([1, 2, 3]);
        assert_eq!(network.to_bytes(), [1, 2, 3]);
        assert_eq!(network.to_string(), "66051");
        assert_eq!(Network::DEFAULT.to_bytes(), [0, 0, 0]);
    }
}
