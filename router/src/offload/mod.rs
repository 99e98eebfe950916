//! Super-frames: many frames of one flow that cross the border to the kernel in one piece.
//!
//! ```text
//!  TAP ─▶ VnetHeader + super-frame ─ Cut ─▶ frames, each whole and valid ─▶ sealed, one datagram each
//!  TAP ◀─ VnetHeader + super-frame ◀─ Merge ─ frames of one flow, in order ◀─ opened
//! ```
//!
//! A system call, a way through the bridge and a way through TCP cost microseconds, whatever they
//! carry, so the kernel hands over up to 64 KiB at once, with checksums left undone, and takes as much.
//! On the wire there are only frames that any peer can inject by themselves. All that peers tell each other is
//! whether the checksum inside is *unfinished*, as the kernel handed the frame over: the seal keeps the bytes as
//! they are, so summing them up here and again there would only cost time.
//!
//! Invariants: what [`Cut`] makes of a super-frame are the frames the kernel itself would have made;
//! what [`Merge`] puts together, cut again, are the very frames that were put together (but for the
//! identification of packets that may not be fragmented, which means nothing). Nothing here allocates
//! per frame, reads a clock or panics, whatever the bytes.

mod checksum;
mod cut;
mod flow;
mod merge;
#[cfg(test)]
mod testing;

pub use cut::{Cut, CutError};
pub use flow::checksum_place;
pub use merge::{Merge, Merged};

/// What stands before each frame on a TAP that does offloads (`struct virtio_net_hdr`, ten bytes, in
/// the byte order of the machine).
///
/// ```text
///  | flags (1) | kind (1) | header length (2) | segment size (2) | checksum start (2) | its offset (2) |
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VnetHeader {
    /// The checksum is yet to be made; where, if so.
    pub checksum: Option<Partial>,
    /// What the frame is to be cut into, if it is a super-frame.
    pub segments: Option<Segments>,
}

/// A checksum whose field holds the sum of the pseudo-header only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partial {
    /// Where the summed bytes begin, in the frame; they end with it.
    pub start: u16,
    /// Where the field is, counted from there.
    pub offset: u16,
}

/// How a super-frame is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segments {
    /// What it carries.
    pub kind: Kind,
    /// Bytes of headers; a hint, which [`Cut`] does not trust.
    pub headers: u16,
    /// Payload of each frame but the last, which may have less.
    pub size: u16,
}

/// What a super-frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP, over either.
    Udp,
    /// Something we have not asked the kernel for.
    Other(u8),
}

impl VnetHeader {
    /// Bytes of the header.
    pub const LEN: usize = 10;

    /// Reads a header.
    pub fn parse(bytes: &[u8; Self::LEN]) -> Self {
        let [flags, kind, rest @ ..] = *bytes;
        let [h0, h1, s0, s1, c0, c1, o0, o1] = rest;
        let word = u16::from_ne_bytes;
        let kind = match kind & !ECN {
            0 => None,
            TCP4 => Some(Kind::Tcp4),
            TCP6 => Some(Kind::Tcp6),
            UDP => Some(Kind::Udp),
            other => Some(Kind::Other(other)),
        };
        Self {
            checksum: (flags & NEEDS_CHECKSUM != 0).then_some(Partial {
                start: word([c0, c1]),
                offset: word([o0, o1]),
            }),
            segments: kind.map(|kind| Segments {
                kind,
                headers: word([h0, h1]),
                size: word([s0, s1]),
            }),
        }
    }

    /// The header's bytes.
    pub fn emit(self) -> [u8; Self::LEN] {
        let (flags, [c0, c1], [o0, o1]) = match self.checksum {
            Some(at) => (
                NEEDS_CHECKSUM,
                at.start.to_ne_bytes(),
                at.offset.to_ne_bytes(),
            ),
            None => (0, [0; 2], [0; 2]),
        };
        let (kind, [h0, h1], [s0, s1]) = match self.segments {
            Some(Segments {
                kind,
                headers,
                size,
            }) => (kind.number(), headers.to_ne_bytes(), size.to_ne_bytes()),
            None => (0, [0; 2], [0; 2]),
        };
        [flags, kind, h0, h1, s0, s1, c0, c1, o0, o1]
    }
}

impl Kind {
    fn number(self) -> u8 {
        match self {
            Self::Tcp4 => TCP4,
            Self::Tcp6 => TCP6,
            Self::Udp => UDP,
            Self::Other(number) => number,
        }
    }
}

/// From linux/virtio_net.h.
const NEEDS_CHECKSUM: u8 = 1;
const TCP4: u8 = 1;
const TCP6: u8 = 4;
const UDP: u8 = 5;
/// The first frame of a TCP super-frame has CWR set; so says the TCP header too.
const ECN: u8 = 0x80;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_header_is_read_back(start: u16, offset: u16, headers: u16, size: u16, with: bool, cut: bool) {
            for kind in [Kind::Tcp4, Kind::Tcp6, Kind::Udp] {
                let header = VnetHeader {
                    checksum: with.then_some(Partial { start, offset }),
                    segments: cut.then_some(Segments { kind, headers, size }),
                };
                prop_assert_eq!(VnetHeader::parse(&header.emit()), header);
            }
        }
    }

    #[test]
    fn the_header_is_the_kernels() {
        let mut bytes = [1, 0x81, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes[2..4].copy_from_slice(&66_u16.to_ne_bytes());
        bytes[4..6].copy_from_slice(&1310_u16.to_ne_bytes());
        bytes[6..8].copy_from_slice(&34_u16.to_ne_bytes());
        bytes[8..10].copy_from_slice(&16_u16.to_ne_bytes());
        let header = VnetHeader::parse(&bytes);
        let segments = Segments {
            kind: Kind::Tcp4,
            headers: 66,
            size: 1310,
        };
        assert_eq!(header.segments, Some(segments));
        let partial = Partial {
            start: 34,
            offset: 16,
        };
        assert_eq!(header.checksum, Some(partial));
    }
}
