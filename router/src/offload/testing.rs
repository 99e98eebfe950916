//! Packets for tests, made and checked byte by byte without anything of what is tested.

use std::ops::Range;

use proptest::prelude::*;

use super::{Kind, Partial, Segments, VnetHeader};

/// A TCP or UDP packet as its sender means it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packet {
    /// How many tags, up to two.
    pub(super) tags: usize,
    pub(super) v6: bool,
    pub(super) udp: bool,
    pub(super) id: u16,
    pub(super) dont_fragment: bool,
    pub(super) tos: u8,
    pub(super) ttl: u8,
    pub(super) flow: u16,
    pub(super) ports: [u8; 4],
    pub(super) sequence: u32,
    pub(super) acknowledged: u32,
    pub(super) flags: u8,
    pub(super) window: u16,
    pub(super) options: Vec<u8>,
    pub(super) payload: Vec<u8>,
}

impl Packet {
    pub(super) fn tcp(len: usize) -> Self {
        Self {
            tags: 0,
            v6: false,
            udp: false,
            id: 0xfffe,
            dont_fragment: true,
            tos: 0,
            ttl: 64,
            flow: 7,
            ports: [1, 2, 3, 4],
            sequence: u32::MAX - 100,
            acknowledged: 9,
            flags: 0x10,
            window: 500,
            options: vec![1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8],
            payload: (0..len).map(|n| (n * 7 / 3) as u8).collect(),
        }
    }

    pub(super) fn udp(len: usize) -> Self {
        Self {
            udp: true,
            options: Vec::new(),
            ..Self::tcp(len)
        }
    }

    fn network(&self) -> usize {
        14 + 4 * self.tags
    }

    fn transport(&self) -> usize {
        self.network() + if self.v6 { 40 } else { 20 }
    }

    fn field(&self) -> usize {
        if self.udp { 6 } else { 16 }
    }

    /// The frame with every checksum made.
    pub(super) fn frame(&self) -> Vec<u8> {
        let (mut frame, pseudo) = self.without_checksum();
        let sum = naive_sum(&[&pseudo, &frame[self.transport()..]].concat());
        let checksum = if sum == 0xffff { 0xffff } else { !sum };
        let at = self.transport() + self.field();
        frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        frame
    }

    /// The frame as the kernel hands it over, to be cut into frames of `size` bytes of payload.
    pub(super) fn left_undone(&self, size: u16) -> (VnetHeader, Vec<u8>) {
        let (mut frame, pseudo) = self.without_checksum();
        let at = self.transport() + self.field();
        frame[at..at + 2].copy_from_slice(&naive_sum(&pseudo).to_be_bytes());
        let header = VnetHeader {
            checksum: Some(Partial {
                start: self.transport() as u16,
                offset: self.field() as u16,
            }),
            segments: Some(Segments {
                kind: match (self.udp, self.v6) {
                    (true, _) => Kind::Udp,
                    (false, false) => Kind::Tcp4,
                    (false, true) => Kind::Tcp6,
                },
                headers: (frame.len() - self.payload.len()) as u16,
                size,
            }),
        };
        (header, frame)
    }

    fn without_checksum(&self) -> (Vec<u8>, Vec<u8>) {
        let mut segment = self.ports.to_vec();
        if self.udp {
            segment.extend(((8 + self.payload.len()) as u16).to_be_bytes());
            segment.extend([0; 2]);
        } else {
            segment.extend(self.sequence.to_be_bytes());
            segment.extend(self.acknowledged.to_be_bytes());
            segment.push(((20 + self.options.len()) / 4 * 16) as u8);
            segment.push(self.flags);
            segment.extend(self.window.to_be_bytes());
            segment.extend([0; 4]);
            segment.extend(&self.options);
        }
        segment.extend(&self.payload);
        let protocol = if self.udp { 17 } else { 6 };
        let len = (segment.len() as u16).to_be_bytes();
        let (header, addresses) = self.network_header(protocol, segment.len());
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for tag in [[0x88, 0xa8, 0, 5], [0x81, 0, 0x20, 6]]
            .iter()
            .rev()
            .take(self.tags)
            .rev()
        {
            frame.extend(tag);
        }
        frame.extend(if self.v6 { [0x86, 0xdd] } else { [8, 0] });
        frame.extend(header);
        frame.extend(&segment);
        let pseudo = [&addresses[..], &[0, protocol], &len].concat();
        (frame, pseudo)
    }

    fn network_header(&self, protocol: u8, len: usize) -> (Vec<u8>, Vec<u8>) {
        if self.v6 {
            let addresses: Vec<u8> = (0..32).map(|n| 0x20 + n).collect();
            let [f0, f1] = self.flow.to_be_bytes();
            let mut header = vec![0x60 | self.tos >> 4, self.tos << 4, f0, f1];
            header.extend((len as u16).to_be_bytes());
            header.extend([protocol, self.ttl]);
            header.extend(&addresses);
            return (header, addresses);
        }
        let addresses = vec![10, 32, 0, 1, 10, 40, 0, 2];
        let mut header = vec![0x45, self.tos];
        header.extend(((20 + len) as u16).to_be_bytes());
        header.extend(self.id.to_be_bytes());
        header.extend([if self.dont_fragment { 0x40 } else { 0 }, 0]);
        header.extend([self.ttl, protocol, 0, 0]);
        header.extend(&addresses);
        let sum = !naive_sum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        (header, addresses)
    }
}

/// What the packet would be, were each `size` bytes of it sent by themselves.
pub(super) fn naive_segments(packet: &Packet, size: usize) -> Vec<Vec<u8>> {
    let count = packet.payload.len().div_ceil(size);
    let parts = packet.payload.chunks(size).enumerate();
    let segment = |(n, part): (usize, &[u8])| {
        let mut segment = Packet {
            id: packet.id.wrapping_add(n as u16),
            sequence: packet.sequence.wrapping_add((n * size) as u32),
            payload: part.to_vec(),
            ..packet.clone()
        };
        if n + 1 < count {
            segment.flags &= !0x09;
        }
        if n > 0 {
            segment.flags &= !0x80;
        }
        segment.frame()
    };
    parts.map(segment).collect()
}

/// The sum by its definition: words of 16 bits, carries added again.
pub(super) fn naive_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) * 256 + u32::from(pair.get(1).copied().unwrap_or(0));
        if sum > 0xffff {
            sum -= 0xffff;
        }
    }
    sum as u16
}

/// Whether lengths and checksums of a TCP or UDP frame are right.
pub(super) fn is_valid(frame: &[u8]) -> bool {
    let mut at = 12;
    while matches!(frame[at..at + 2], [0x81, 0] | [0x88, 0xa8]) {
        at += 4;
    }
    let packet = &frame[at + 2..];
    let word = |at: usize| usize::from(packet[at]) * 256 + usize::from(packet[at + 1]);
    let (header, protocol, addresses) = if packet[0] >> 4 == 4 {
        if word(2) != packet.len() || naive_sum(&packet[..20]) != 0xffff {
            return false;
        }
        (20, packet[9], &packet[12..20])
    } else {
        if word(4) + 40 != packet.len() {
            return false;
        }
        (40, packet[6], &packet[8..40])
    };
    let segment = &packet[header..];
    if protocol == 17 && word(header + 4) != segment.len() {
        return false;
    }
    let len = (segment.len() as u16).to_be_bytes();
    naive_sum(&[addresses, &[0, protocol], &len, segment].concat()) == 0xffff
}

/// Any packet with so much payload.
pub(super) fn packet(len: Range<usize>) -> impl Strategy<Value = Packet> {
    let kind = (0_usize..=2, any::<[bool; 3]>());
    let network = any::<(u16, u8, u8, u16)>();
    let transport = any::<([u8; 4], u32, u32, u16)>();
    let options = (0_usize..=10).prop_flat_map(|n| prop::collection::vec(any::<u8>(), n * 4));
    let flags = prop::sample::select(vec![0x10_u8, 0x18, 0x90, 0x11, 0x99, 0x50]);
    let payload = len.prop_flat_map(|len| (Just(len), any::<[u8; 32]>()));
    (kind, network, transport, options, flags, payload).prop_map(
        |((tags, [v6, udp, dont_fragment]), network, transport, options, flags, payload)| {
            let (len, seed) = payload;
            Packet {
                tags,
                v6,
                udp,
                id: network.0,
                dont_fragment,
                tos: network.1,
                ttl: network.2,
                flow: network.3,
                ports: transport.0,
                sequence: transport.1,
                acknowledged: transport.2,
                flags,
                window: transport.3,
                options: if udp { Vec::new() } else { options },
                payload: (0..len)
                    .map(|n| seed[n % 32].wrapping_add((n / 32) as u8))
                    .collect(),
            }
        },
    )
}
