//! Frames of every kind that containers may send, made byte by byte: tagged or not, TCP and UDP of both
//! versions as super-frames, alone and as fragments, tunnelled, and bytes of no known protocol.
//!
//! As a kernel hands them to a network card that does the rest: checksums of TCP and UDP are left undone.

use rand_chacha::ChaCha20Rng;
use rand_core::Rng;
use weft_router::offload::{Kind, Partial, Segments, VnetHeader};

/// A frame or super-frame, and what is still to be done to it. Its addresses are all zeroes.
pub(super) struct Sent {
    pub(super) header: VnetHeader,
    pub(super) frame: Vec<u8>,
}

/// The `number`th frame: kinds and tags come in turn, lengths and bytes as they happen. No frame it stands for has
/// more than `mtu` bytes behind its Ethernet header and one tag.
pub(super) fn random(number: usize, mtu: usize, rng: &mut ChaCha20Rng) -> Sent {
    let tags = TAGS[number % TAGS.len()];
    let mut frame = vec![0; 12];
    for tag in tags {
        frame.extend(tag.to_be_bytes());
        // Priority and number of the VLAN, which may not be 0.
        frame.extend((rng.next_u32() as u16 | 1).to_be_bytes());
    }
    // A link lets one tag go by.
    let room = mtu - 4 * tags.len().saturating_sub(1);
    let packet = Packet {
        frame,
        room,
        id: rng.next_u32() as u16,
    };
    match number / TAGS.len() % 9 {
        0 => packet.opaque(&[0x88, 0xb5], rng),
        1 => packet.tcp(Version::V4, 1, rng),
        2 => packet.tcp(Version::V4, 2 + below(40, rng), rng),
        3 => packet.tcp(Version::V6, 2 + below(40, rng), rng),
        4 => packet.udp(Version::V4, 1, rng),
        5 => packet.udp(Version::V4, 2 + below(30, rng), rng),
        6 => packet.udp(Version::V6, 2 + below(30, rng), rng),
        7 => packet.fragment(rng),
        _ => packet.tunnelled(rng),
    }
}

/// No tag, VLAN, QinQ, and two tags of the plain kind.
const TAGS: [&[u16]; 4] = [&[], &[0x8100], &[0x88a8, 0x8100], &[0x8100, 0x8100]];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    V4,
    V6,
}

/// A frame in the making: its tags are there, what it carries is not.
struct Packet {
    frame: Vec<u8>,
    /// Bytes behind the last tag and the Ethernet type.
    room: usize,
    id: u16,
}

impl Packet {
    fn opaque(mut self, kind: &[u8; 2], rng: &mut ChaCha20Rng) -> Sent {
        self.frame.extend(kind);
        let len = 46 + below(self.room - 45, rng);
        self.frame.extend(bytes(len, rng));
        self.done()
    }

    /// The first fragment of a UDP datagram that is longer, which looks like a whole one.
    fn fragment(mut self, rng: &mut ChaCha20Rng) -> Sent {
        let len = (self.room - V4_LEN) & !7;
        self.network(Version::V4, UDP, len, MORE_FRAGMENTS);
        self.frame.extend(bytes(len, rng));
        self.done()
    }

    /// IPv4 in IPv4.
    fn tunnelled(mut self, rng: &mut ChaCha20Rng) -> Sent {
        let len = V4_LEN + below(self.room - 2 * V4_LEN + 1, rng);
        self.network(Version::V4, IPIP, len, DONT_FRAGMENT);
        self.header_v4(TCP, len - V4_LEN, DONT_FRAGMENT);
        self.frame.extend(bytes(len - V4_LEN, rng));
        self.done()
    }

    fn tcp(mut self, version: Version, segments: usize, rng: &mut ChaCha20Rng) -> Sent {
        let size = self.segment(version, TCP_LEN, segments, rng);
        let payload = payload(size, segments, rng);
        self.network(version, TCP, TCP_LEN + payload, DONT_FRAGMENT);
        let transport = self.frame.len();
        self.frame.extend(bytes(12, rng));
        // Length of the header; ACK, and PSH now and then; window.
        self.frame
            .extend([0x50, 0x10 | rng.next_u32() as u8 & 8, 1, 2]);
        let kind = if version == Version::V4 {
            Kind::Tcp4
        } else {
            Kind::Tcp6
        };
        self.with_checksum(version, (transport, 16), TCP, TCP_LEN + payload);
        self.frame.extend([0; 2]);
        self.frame.extend(bytes(payload, rng));
        self.offloaded(
            (transport, 16),
            (segments > 1).then_some((kind, size, TCP_LEN)),
        )
    }

    fn udp(mut self, version: Version, segments: usize, rng: &mut ChaCha20Rng) -> Sent {
        let size = self.segment(version, UDP_LEN, segments, rng);
        let payload = payload(size, segments, rng);
        self.network(version, UDP, UDP_LEN + payload, DONT_FRAGMENT);
        let transport = self.frame.len();
        self.frame.extend(bytes(4, rng));
        self.frame.extend(length(UDP_LEN + payload));
        self.with_checksum(version, (transport, 6), UDP, UDP_LEN + payload);
        self.frame.extend(bytes(payload, rng));
        self.offloaded(
            (transport, 6),
            (segments > 1).then_some((Kind::Udp, size, UDP_LEN)),
        )
    }

    /// Payload of each segment: as much as goes in, or less.
    fn segment(
        &self,
        version: Version,
        headers: usize,
        segments: usize,
        rng: &mut ChaCha20Rng,
    ) -> usize {
        let network = if version == Version::V4 {
            V4_LEN
        } else {
            V6_LEN
        };
        let most = (self.room - network - headers).min(60_000 / segments);
        if rng.next_u32().is_multiple_of(2) {
            most
        } else {
            100 + below(most - 99, rng)
        }
    }

    fn network(&mut self, version: Version, protocol: u8, len: usize, flags: u8) {
        match version {
            Version::V4 => {
                self.frame.extend([8, 0]);
                self.header_v4(protocol, len, flags);
            }
            Version::V6 => {
                self.frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                self.frame.extend(length(len));
                self.frame.extend([protocol, 64]);
                self.frame.extend([0xfd; 16]);
                self.frame.extend([0xfe, 0xdc].repeat(8));
            }
        }
    }

    fn header_v4(&mut self, protocol: u8, len: usize, flags: u8) {
        let [high, low] = self.id.to_be_bytes();
        let [l0, l1] = length(V4_LEN + len);
        let mut header = [
            0x45, 0, l0, l1, high, low, flags, 0, 64, protocol, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2,
        ];
        let sum = !sum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        self.frame.extend(header);
    }

    /// Goes on with a checksum that has the pseudo-header's sum only.
    fn with_checksum(
        &mut self,
        version: Version,
        (transport, offset): (usize, usize),
        protocol: u8,
        len: usize,
    ) {
        assert_eq!(self.frame.len(), transport + offset);
        let addresses = if version == Version::V4 { 8 } else { 32 };
        let mut pseudo = self.frame[transport - addresses..transport].to_vec();
        pseudo.extend([0, protocol]);
        pseudo.extend(length(len));
        self.frame.extend(sum(&pseudo).to_be_bytes());
    }

    fn done(self) -> Sent {
        Sent {
            header: VnetHeader::default(),
            frame: self.frame,
        }
    }

    fn offloaded(
        self,
        (transport, offset): (usize, u16),
        segments: Option<(Kind, usize, usize)>,
    ) -> Sent {
        let header = VnetHeader {
            checksum: Some(Partial {
                start: transport as u16,
                offset,
            }),
            segments: segments.map(|(kind, size, headers)| Segments {
                kind,
                headers: (transport + headers) as u16,
                size: size as u16,
            }),
        };
        Sent {
            header,
            frame: self.frame,
        }
    }
}

/// Of so many segments, of which the last may be shorter.
fn payload(size: usize, segments: usize, rng: &mut ChaCha20Rng) -> usize {
    size * segments - below(size, rng)
}

fn below(limit: usize, rng: &mut ChaCha20Rng) -> usize {
    rng.next_u32() as usize % limit
}

fn bytes(len: usize, rng: &mut ChaCha20Rng) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rng.fill_bytes(&mut bytes);
    bytes
}

fn length(len: usize) -> [u8; 2] {
    u16::try_from(len).unwrap().to_be_bytes()
}

/// Ones' complement sum of words (RFC 1071).
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

const V4_LEN: usize = 20;
const V6_LEN: usize = 40;
const TCP_LEN: usize = 20;
const UDP_LEN: usize = 8;
const TCP: u8 = 6;
const UDP: u8 = 17;
const IPIP: u8 = 4;
const DONT_FRAGMENT: u8 = 0x40;
const MORE_FRAGMENTS: u8 = 0x20;
