//! Where the headers of a frame are, and whether it is one that may be merged with others.

use super::Partial;
use super::checksum::Sum;

/// The version of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V4,
    V6,
}

/// What IP carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Tcp,
    Udp,
}

/// Where the headers of a frame begin, counted from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) version: Version,
    pub(super) protocol: Protocol,
    /// Of the IP header.
    pub(super) network: usize,
    /// Of the TCP or UDP header.
    pub(super) transport: usize,
    /// Of the payload.
    pub(super) payload: usize,
}

/// Finds the IP header behind Ethernet and up to two tags.
pub(super) fn network(frame: &[u8]) -> Option<(usize, Version)> {
    let mut at = ETHERTYPE;
    loop {
        match pair(frame, at)? {
            VLAN | QINQ if at < ETHERTYPE + 2 * TAG => at += TAG,
            IPV4 => return Some((at + 2, Version::V4)),
            IPV6 => return Some((at + 2, Version::V6)),
            _ => return None,
        }
    }
}

/// Where the checksum of the TCP segment or UDP datagram in a frame is: the one place both ends agree on
/// without telling each other. `None` if the frame carries neither, or a fragment, or IPv6 with more headers.
pub fn checksum_place(frame: &[u8]) -> Option<Partial> {
    let (network, version) = network(frame)?;
    let packet = frame.get(network..)?;
    let (protocol, transport) = match version {
        Version::V4 => {
            let header = packet.first_chunk::<V4_LEN>()?;
            let is_whole = pair(header, 6)? & !DONT_FRAGMENT == 0;
            is_whole.then_some((header[9], usize::from(header[0] & 0xf) * 4))?
        }
        Version::V6 => (packet.first_chunk::<V6_LEN>()?[6], V6_LEN),
    };
    let offset = match protocol {
        TCP => TCP_CHECKSUM,
        UDP => UDP_CHECKSUM,
        _ => return None,
    };
    let start = network + transport;
    pair(frame, start + usize::from(offset))?;
    Some(Partial {
        start: u16::try_from(start).ok()?,
        offset,
    })
}

/// The layout of a frame that may be part of a super-frame: whole and valid in every length and
/// checksum (but for the one that may be `unfinished`), nothing in it but what all frames of a run share or
/// count. `None` for any other.
pub(super) fn mergeable(frame: &[u8], unfinished: bool) -> Option<Layout> {
    let (network, version) = network(frame)?;
    let packet = frame.get(network..)?;
    let (protocol, transport) = match version {
        Version::V4 => plain_v4(packet)?,
        Version::V6 => plain_v6(packet)?,
    };
    let segment = packet.get(transport..)?;
    let (protocol, headers) = match protocol {
        TCP => (Protocol::Tcp, plain_tcp(segment)?),
        UDP => (Protocol::Udp, plain_udp(segment)?),
        _ => return None,
    };
    let layout = Layout {
        version,
        protocol,
        network,
        transport: network + transport,
        payload: network + transport + headers,
    };
    let is_whole = unfinished
        || pseudo_header(frame, &layout, segment.len())?
            .bytes(segment)
            .is_whole();
    (headers < segment.len() && is_whole).then_some(layout)
}

/// The sum of the pseudo-header of a segment that is so long (RFC 9293 §3.1, RFC 8200 §8.1).
pub(super) fn pseudo_header(frame: &[u8], layout: &Layout, len: usize) -> Option<Sum> {
    let addresses = match layout.version {
        Version::V4 => frame.get(layout.network + 12..layout.network + 20)?,
        Version::V6 => frame.get(layout.network + 8..layout.network + 40)?,
    };
    let protocol = match layout.protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
    };
    let len = u16::try_from(len).ok()?;
    Some(
        Sum::default()
            .bytes(addresses)
            .word(protocol.into())
            .word(len),
    )
}

/// No options, no fragment, right length, right checksum.
fn plain_v4(packet: &[u8]) -> Option<(u8, usize)> {
    let header = packet.first_chunk::<V4_LEN>()?;
    let is_plain = header[0] == 0x45
        && pair(header, 6)? & !DONT_FRAGMENT == 0
        && usize::from(pair(header, 2)?) == packet.len()
        && Sum::default().bytes(header).is_whole();
    is_plain.then_some((header[9], V4_LEN))
}

/// No extension headers, right length.
fn plain_v6(packet: &[u8]) -> Option<(u8, usize)> {
    let header = packet.first_chunk::<V6_LEN>()?;
    let is_plain = header[0] >> 4 == 6 && usize::from(pair(header, 4)?) + V6_LEN == packet.len();
    is_plain.then_some((header[6], V6_LEN))
}

/// Data of an open connection, with nothing to say but that.
fn plain_tcp(segment: &[u8]) -> Option<usize> {
    let header = segment.first_chunk::<TCP_LEN>()?;
    let len = usize::from(header[12] >> 4) * 4;
    let is_plain = header[TCP_FLAGS] & !PSH == ACK && header[12] & 0xf == 0 && len >= TCP_LEN;
    is_plain.then_some(len)
}

/// With a checksum and the right length.
fn plain_udp(segment: &[u8]) -> Option<usize> {
    let header = segment.first_chunk::<UDP_LEN>()?;
    let is_plain = usize::from(pair(header, 4)?) == segment.len() && pair(header, 6)? != 0;
    is_plain.then_some(UDP_LEN)
}

/// The number at this place.
pub(super) fn pair(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk::<2>()?))
}

/// The number at this place.
pub(super) fn quad(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk::<4>()?))
}

/// Overwrites bytes at this place; nothing happens if they do not fit.
pub(super) fn put(bytes: &mut [u8], at: usize, new: &[u8]) {
    if let Some(old) = bytes.get_mut(at..at + new.len()) {
        old.copy_from_slice(new);
    }
}

/// Writes the length and, for IPv4, the checksum of a packet into its header.
pub(super) fn finish_network(frame: &mut [u8], network: usize, version: Version) {
    // Every caller has made sure that it fits in 16 bits.
    let len = frame.len().saturating_sub(network) as u16;
    match version {
        Version::V4 => {
            put(frame, network + 2, &len.to_be_bytes());
            put(frame, network + 10, &[0; 2]);
            let header_len = frame.get(network).map_or(0, |b| usize::from(b & 0xf) * 4);
            let header = frame.get(network..network + header_len);
            let sum = Sum::default().bytes(header.unwrap_or_default());
            put(frame, network + 10, &sum.complement());
        }
        Version::V6 => {
            let len = len.saturating_sub(V6_LEN as u16);
            put(frame, network + 4, &len.to_be_bytes());
        }
    }
}

/// Bytes of headers without options.
pub(super) const V4_LEN: usize = 20;
pub(super) const V6_LEN: usize = 40;
pub(super) const TCP_LEN: usize = 20;
pub(super) const UDP_LEN: usize = 8;
/// Where the flags are in a TCP header, and those of concern here.
pub(super) const TCP_FLAGS: usize = 13;
pub(super) const FIN: u8 = 0x01;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;
pub(super) const CWR: u8 = 0x80;
/// Where the checksum is in a header of TCP and of UDP.
pub(super) const TCP_CHECKSUM: u16 = 16;
pub(super) const UDP_CHECKSUM: u16 = 6;
/// In the word of an IPv4 header that has the place of a fragment.
pub(super) const DONT_FRAGMENT: u16 = 0x4000;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ETHERTYPE: usize = 12;
const TAG: usize = 4;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const QINQ: u16 = 0x88a8;
