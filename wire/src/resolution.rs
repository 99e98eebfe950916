//! Questions of who has an address, and their answers: ARP for IPv4 (RFC 826), neighbour discovery
//! for IPv6 (RFC 4861).
//!
//! Only the plain question is read, in the one form in which a host asks all others for an address
//! it knows nothing of. Whatever is different in any field is no [`Question`] and goes its way as a
//! frame: announcements (gratuitous ARP, RFC 5227 §3), probes whether an address is free (ARP from
//! 0.0.0.0, solicitations from ::), probes of one host (unicast), options nobody sends.
//!
//! Invariant: what [`Question::answer`] gives is a whole frame whose checksums are right, for the
//! asker alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::icmpv6::NeighborAdvertisementHeader;
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, ArpPacketSlice, EtherType, Icmpv6Slice, Icmpv6Type,
    IpNumber, Ipv6HeaderSlice, PacketBuilder,
};

use crate::frame::ETHERNET_HEADER;
use crate::{Frame, MacAddr};

/// Somebody asks all others who has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    asker: MacAddr,
    addresses: Addresses,
}

/// The asker's address and the one it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Addresses {
    Ipv4 { asker: Ipv4Addr, target: Ipv4Addr },
    Ipv6 { asker: Ipv6Addr, target: Ipv6Addr },
}

impl Question {
    /// Reads a question; `None` for every other frame.
    pub fn parse(frame: &Frame<'_>) -> Option<Self> {
        let addresses = match EtherType(frame.ethertype()) {
            EtherType::ARP => parse_arp(frame)?,
            EtherType::IPV6 => parse_solicitation(frame)?,
            _ => return None,
        };
        let asker = frame.src();
        let question = Self { asker, addresses };
        (!asker.is_multicast()).then_some(question)
    }

    /// Who asks.
    pub fn asker(&self) -> IpAddr {
        match self.addresses {
            Addresses::Ipv4 { asker, .. } => asker.into(),
            Addresses::Ipv6 { asker, .. } => asker.into(),
        }
    }

    /// The address whose owner is asked for.
    pub fn target(&self) -> IpAddr {
        match self.addresses {
            Addresses::Ipv4 { target, .. } => target.into(),
            Addresses::Ipv6 { target, .. } => target.into(),
        }
    }

    /// The frame by which `owner` would say that it has the address.
    ///
    /// For IPv6 it says so without overriding what the asker knows, as whoever speaks for another
    /// should (RFC 4861 §7.2.8): should the owner say something else, that counts.
    pub fn answer(&self, owner: MacAddr) -> Answer {
        let mut answer = Answer {
            bytes: [0; MAX_ANSWER],
            len: 0,
        };
        let frame = PacketBuilder::ethernet2(owner.to_bytes(), self.asker.to_bytes());
        // What does not fit is left out, and the answer stays empty; all of it fits, see MAX_ANSWER.
        let written = match self.addresses {
            Addresses::Ipv4 { asker, target } => ArpPacket::new(
                ArpHardwareId::ETHERNET,
                EtherType::IPV4,
                ArpOperation::REPLY,
                &owner.to_bytes(),
                &target.octets(),
                &self.asker.to_bytes(),
                &asker.octets(),
            )
            .ok()
            .and_then(|arp| frame.arp(arp).write_to_slice(&mut answer.bytes).ok()),
            Addresses::Ipv6 { asker, target } => frame
                .ipv6(target.octets(), asker.octets(), ON_LINK)
                .icmpv6(Icmpv6Type::NeighborAdvertisement(SPEAKS_FOR_ANOTHER))
                .write_to_slice(&mut answer.bytes, &advertised(target, owner))
                .ok(),
        };
        answer.len = written.unwrap_or(0);
        answer
    }
}

/// A frame that answers a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    bytes: [u8; MAX_ANSWER],
    len: usize,
}

impl Answer {
    /// The frame.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

fn parse_arp(frame: &Frame<'_>) -> Option<Addresses> {
    let arp = ArpPacketSlice::from_slice(frame.bytes().get(ETHERNET_HEADER..)?).ok()?;
    let plain = frame.dst().is_broadcast()
        && arp.hw_addr_type() == ArpHardwareId::ETHERNET
        && arp.proto_addr_type() == EtherType::IPV4
        && arp.operation() == ArpOperation::REQUEST
        && arp.sender_hw_addr() == frame.src().to_bytes();
    let ipv4 = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from);
    let asker = ipv4(arp.sender_protocol_addr())?;
    let target = ipv4(arp.target_protocol_addr())?;
    (plain && !asker.is_unspecified() && asker != target)
        .then_some(Addresses::Ipv4 { asker, target })
}

/// Checks all that RFC 4861 §7.1.1 asks for, and that there is no option but the asker's own address.
fn parse_solicitation(frame: &Frame<'_>) -> Option<Addresses> {
    let packet = frame.bytes().get(ETHERNET_HEADER..)?;
    let header = Ipv6HeaderSlice::from_slice(packet).ok()?;
    let len = usize::from(header.payload_length());
    let (source, destination) = (header.source(), header.destination());
    if header.next_header() != IpNumber::IPV6_ICMP
        || header.hop_limit() != ON_LINK
        || len != SOLICITATION
    {
        return None;
    }
    let icmp = Icmpv6Slice::from_slice(packet.get(IPV6_HEADER..IPV6_HEADER + len)?).ok()?;
    let (target, option) = icmp.payload().split_first_chunk::<16>()?;
    let (asker, target) = (Ipv6Addr::from(source), Ipv6Addr::from(*target));
    let group = solicited_node(target);
    let plain = matches!(icmp.icmp_type(), Icmpv6Type::NeighborSolicitation)
        && icmp.is_checksum_valid(source, destination)
        && Ipv6Addr::from(destination) == group
        && frame.dst() == group_mac(group)
        && !asker.is_unspecified()
        && !asker.is_multicast()
        && !target.is_multicast()
        && asker != target
        && option == link_layer_option(SOURCE_LINK_LAYER, frame.src());
    plain.then_some(Addresses::Ipv6 { asker, target })
}

/// The body of an advertisement: the address, and the MAC that has it.
fn advertised(target: Ipv6Addr, owner: MacAddr) -> [u8; 24] {
    let mut body = [0; 24];
    let (address, option) = body.split_at_mut(16);
    address.copy_from_slice(&target.octets());
    option.copy_from_slice(&link_layer_option(TARGET_LINK_LAYER, owner));
    body
}

/// ```text
/// | type | 1 (times 8 bytes) | MAC (6) |
/// ```
fn link_layer_option(kind: u8, mac: MacAddr) -> [u8; 8] {
    let [a, b, c, d, e, f] = mac.to_bytes();
    [kind, 1, a, b, c, d, e, f]
}

/// The group of all who might have an address (RFC 4291 §2.7.1).
fn solicited_node(addr: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = addr.octets();
    let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c];
    Ipv6Addr::from(group)
}

/// The Ethernet address of an IPv6 group (RFC 2464 §7).
fn group_mac(group: Ipv6Addr) -> MacAddr {
    let [.., a, b, c, d] = group.octets();
    MacAddr::from_bytes([0x33, 0x33, a, b, c, d])
}

const IPV6_HEADER: usize = 40;
/// ICMPv6 header, target, one option.
const SOLICITATION: usize = 8 + 16 + 8;
/// A hop limit that only a packet from the same link can have.
const ON_LINK: u8 = 255;
const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;
const SPEAKS_FOR_ANOTHER: NeighborAdvertisementHeader = NeighborAdvertisementHeader {
    router: false,
    solicited: true,
    r#override: false,
};
/// Bytes of the longest answer, which is as long as the solicitation.
const MAX_ANSWER: usize = ETHERNET_HEADER + IPV6_HEADER + SOLICITATION;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_arp_request_is_read_and_answered() {
        let bytes = arp_request();
        let question = parse(&bytes).unwrap();
        assert_eq!(question.asker(), "10.32.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(question.target(), "10.32.0.2".parse::<IpAddr>().unwrap());
        let expected = [
            &ASKER[..],
            &OWNER[..],
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2],
            &OWNER[..],
            &[10, 32, 0, 2],
            &ASKER[..],
            &[10, 32, 0, 1],
        ];
        let answer = question.answer(MacAddr::from_bytes(OWNER));
        assert_eq!(answer.bytes(), expected.concat());
    }

    #[test]
    fn announcements_and_probes_by_arp_are_no_questions() {
        for (at, bytes) in [
            (28, &[0, 0, 0, 0][..]),       // is the address free?
            (28, &[10, 32, 0, 2][..]),     // gratuitous
            (20, &[0, 2][..]),             // an answer
            (0, &[2, 0, 0, 0, 0, 9][..]),  // to one host
            (22, &[2, 0, 0, 0, 0, 9][..]), // in another's name
            (14, &[0, 6][..]),             // not Ethernet
            (16, &[0x86, 0xdd][..]),       // not IPv4
            (18, &[8][..]),                // other lengths
            (6, &[1][..]),                 // from a group
        ] {
            let mut frame = arp_request();
            frame[at..at + bytes.len()].copy_from_slice(bytes);
            assert_eq!(parse(&frame), None, "{bytes:?} at {at}");
        }
    }

    #[test]
    fn a_solicitation_is_read_and_answered() {
        let bytes = solicitation();
        let question = parse(&bytes).unwrap();
        assert_eq!(question.asker(), IpAddr::V6(FROM));
        assert_eq!(question.target(), IpAddr::V6(TARGET));
        let answer = question.answer(MacAddr::from_bytes(OWNER));
        let bytes = answer.bytes();
        assert_eq!(bytes.len(), 86);
        assert_eq!(bytes[..14], [&ASKER[..], &OWNER, &[0x86, 0xdd]].concat());
        let (ip, icmp) = bytes[14..].split_at(40);
        let ip = Ipv6HeaderSlice::from_slice(ip).unwrap();
        assert_eq!((ip.source_addr(), ip.destination_addr()), (TARGET, FROM));
        assert_eq!((ip.hop_limit(), ip.payload_length()), (255, 32));
        // Advertisement, code 0; solicited, neither router nor override.
        assert_eq!((&icmp[..2], icmp[4]), (&[136, 0][..], 0x40));
        assert_eq!(icmp[8..24], TARGET.octets());
        assert_eq!(icmp[24..], [&[2, 1][..], &OWNER].concat());
        let icmp = Icmpv6Slice::from_slice(icmp).unwrap();
        assert!(icmp.is_checksum_valid(TARGET.octets(), FROM.octets()));
    }

    #[test]
    fn probes_by_neighbour_discovery_are_no_questions() {
        let free = solicit(Ipv6Addr::UNSPECIFIED, TARGET, 255, SOURCE_LINK_LAYER);
        let own = solicit(TARGET, TARGET, 255, SOURCE_LINK_LAYER);
        let routed = solicit(FROM, TARGET, 254, SOURCE_LINK_LAYER);
        let option = solicit(FROM, TARGET, 255, 14);
        let group = solicit(FROM, "ff02::1".parse().unwrap(), 255, SOURCE_LINK_LAYER);
        for frame in [free, own, routed, option, group] {
            assert_eq!(parse(&frame), None, "{frame:?}");
        }
        // A wrong checksum, and a probe of one host.
        for at in [14 + 40 + 2, 0] {
            let mut frame = solicitation();
            frame[at] ^= 1;
            assert_eq!(parse(&frame), None);
        }
        let cut = solicitation();
        assert_eq!(parse(&cut[..85]), None);
    }

    proptest! {
        #[test]
        fn any_frame_is_read_without_panic(
            arp: bool, at in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), len in 14..90_usize,
        ) {
            let mut bytes = if arp { arp_request() } else { solicitation() };
            bytes.resize(len, 0);
            for (index, byte) in at {
                bytes[index.index(len)] = byte;
            }
            if let Some(question) = parse(&bytes) {
                let answer = question.answer(MacAddr::from_bytes(OWNER));
                prop_assert_eq!(&answer.bytes()[..6], &bytes[6..12]);
                prop_assert_eq!(&answer.bytes()[6..12], &OWNER);
            }
        }
    }

    fn parse(bytes: &[u8]) -> Option<Question> {
        Question::parse(&Frame::new_checked(bytes).unwrap())
    }

    fn arp_request() -> Vec<u8> {
        let parts = [
            &[0xff; 6][..],
            &ASKER,
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
            &ASKER,
            &[10, 32, 0, 1, 0, 0, 0, 0, 0, 0, 10, 32, 0, 2],
        ];
        parts.concat()
    }

    fn solicitation() -> Vec<u8> {
        solicit(FROM, TARGET, 255, SOURCE_LINK_LAYER)
    }

    fn solicit(from: Ipv6Addr, target: Ipv6Addr, hops: u8, option: u8) -> Vec<u8> {
        let group = solicited_node(target);
        let mut body = target.octets().to_vec();
        body.extend(link_layer_option(option, MacAddr::from_bytes(ASKER)));
        let mut frame = [0; 86];
        let len = PacketBuilder::ethernet2(ASKER, group_mac(group).to_bytes())
            .ipv6(from.octets(), group.octets(), hops)
            .icmpv6(Icmpv6Type::NeighborSolicitation)
            .write_to_slice(&mut frame, &body);
        assert_eq!(len.unwrap(), 86);
        frame.to_vec()
    }

    const ASKER: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const OWNER: [u8; 6] = [2, 0, 0, 0, 0, 2];
    const FROM: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
    const TARGET: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0x12, 0x3456);
}
