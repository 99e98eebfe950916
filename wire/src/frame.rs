//! An Ethernet frame as the router looks at it, and the network it belongs to.
//!
//! [`Frame::new_checked`] is called once per frame; after it no accessor can fail. Only the header
//! is looked at: what a frame carries is the containers' affair. The one exception is ARP, because
//! the resolver's address exists on every host at once and must not be learned by neighbours
//! (see [`Frame::arp`]).

use std::fmt;
use std::net::Ipv4Addr;

use etherparse::{ArpPacketSlice, Ethernet2HeaderSlice, Ipv4HeaderSlice};

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

    /// The IPv4 address an untagged frame speaks from: the source of a packet, the sender of an ARP
    /// message; `None` for every other frame.
    pub fn ipv4_sender(&self) -> Option<Ipv4Addr> {
        if self.header.ether_type() != etherparse::EtherType::IPV4 {
            return self.arp().map(|arp| arp.sender);
        }
        let packet = self.bytes.get(ETHERNET_HEADER..)?;
        Some(Ipv4HeaderSlice::from_slice(packet).ok()?.source_addr())
    }

    /// The addresses of an untagged ARP packet for IPv4; `None` for every other frame.
    pub fn arp(&self) -> Option<Arp> {
        if self.header.ether_type() != etherparse::EtherType::ARP {
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
        let sender = Frame::new_checked(&bytes).unwrap().ipv4_sender();
        assert_eq!(sender, Some(Ipv4Addr::new(10, 32, 0, 1)));
        assert_eq!(Frame::new_checked(&bytes[..30]).unwrap().arp(), None);
    }

    #[test]
    fn a_packet_shows_who_sends_it() {
        let mut bytes = vec![2; 12];
        bytes.extend([8, 0, 0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0]);
        bytes.extend([10, 32, 0, 1, 10, 32, 0, 2]);
        let frame = Frame::new_checked(&bytes).unwrap();
        assert_eq!(frame.ipv4_sender(), Some(Ipv4Addr::new(10, 32, 0, 1)));
        assert_eq!(
            Frame::new_checked(&bytes[..33]).unwrap().ipv4_sender(),
            None
        );
    }

    #[test]
    fn networks_are_three_bytes() {
        let network = Network::from_bytes([1, 2, 3]);
        assert_eq!(network.to_bytes(), [1, 2, 3]);
        assert_eq!(network.to_string(), "66051");
        assert_eq!(Network::DEFAULT.to_bytes(), [0, 0, 0]);
    }
}
