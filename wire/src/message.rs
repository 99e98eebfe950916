//! The inside of a packet once it is opened: a frame for one peer, a flooded frame, a piece of either, a
//! heartbeat, a probe.
//!
//! ```text
//!  unicast    | 1 | u hops | network (3) | source peer (6) | destination peer (6) | frame ... |
//!  flood      | 2 | hops   | network (3) | origin (6)      | number (4)           | frame ... |
//!  heartbeat  | 3 | flags  | stamp (8)                                                        |
//!  fragment   | 4 | index  | count (1) | size (2) | number (4)                    | piece ... |
//!  probe      | 5 | flags  | size (2) | number (4)                                | zeroes    |
//! ```
//!
//! `hops` is how many more times the frame may be passed on; the bit `u` above it says that the frame's
//! checksum is unfinished. A flooded frame is named by its origin
//! and number, so that each peer delivers it once and passes it on once, whatever the topology
//! looks like to whom. Frames are borrowed: parsing copies and allocates nothing.
//!
//! Fragments are one neighbour's affair with the next: the pieces of one number, one after another, are
//! a unicast or flood message that did not fit the path between the two.

use crate::codec::Reader;
use crate::packet::OVERHEAD;
use crate::{Malformed, Network, PeerName};

/// How often a frame may be passed on before it is dropped; no sane underlay needs more.
pub const HOP_LIMIT: u8 = 16;
/// The larger of the two frame headers, what a frame costs inside the seal.
pub const MAX_FRAME_HEADER: usize = UNICAST_LEN;

/// Bytes before the frame in a unicast message.
pub const UNICAST_LEN: usize = 17;
/// Bytes before the frame in a flood message.
pub const FLOOD_LEN: usize = 15;
/// Bytes of a heartbeat.
pub const HEARTBEAT_LEN: usize = 10;
/// Bytes before the piece in a fragment.
pub const FRAGMENT_LEN: usize = 9;
/// Bytes of an answer to a probe, and before the padding of a probe.
pub const PROBE_LEN: usize = 8;

const UNICAST: u8 = 1;
const FLOOD: u8 = 2;
const HEARTBEAT: u8 = 3;
const FRAGMENT: u8 = 4;
const PROBE: u8 = 5;
const FLAG_REPLY: u8 = 1;
/// The bit above the hops of a unicast header.
const UNFINISHED: u8 = 0x80;
/// The most hops a unicast header can tell.
pub const MAX_HOPS: u8 = 0x7f;

/// One opened message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// A frame for the containers of one peer.
    Unicast(UnicastHeader, &'a [u8]),
    /// A frame for everybody.
    Flood(FloodHeader, &'a [u8]),
    /// Is this path alive?
    Heartbeat(Heartbeat),
    /// A piece of a message that is too long for the path.
    Fragment(FragmentHeader, &'a [u8]),
    /// Does a datagram as long as this one get through?
    Probe(Probe),
}

/// What stands before a frame for one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnicastHeader {
    /// How many more times it may be passed on, at most [`MAX_HOPS`].
    pub hops: u8,
    /// The checksum of the TCP segment or UDP datagram in the frame holds the sum of the pseudo-header only, as
    /// between a kernel and a network card. The seal vouches for the bytes, so nobody on the way need sum
    /// them up; who injects the frame tells the kernel.
    pub unfinished: bool,
    /// The network the frame belongs to.
    pub network: Network,
    /// The peer that captured the frame.
    pub source: PeerName,
    /// The peer that shall inject it.
    pub destination: PeerName,
}

/// What stands before a flooded frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FloodHeader {
    /// How many more times it may be passed on.
    pub hops: u8,
    /// The network the frame belongs to.
    pub network: Network,
    /// The peer that captured the frame.
    pub origin: PeerName,
    /// The origin's count of flooded frames, in serial arithmetic.
    pub number: u32,
}

/// A question whether the path works, or its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    /// An answer, carrying the question's stamp.
    pub reply: bool,
    /// The asker's own clock in microseconds; means nothing to anybody else.
    pub stamp: u64,
}

/// What stands before a piece of a message.
///
/// A parsed one fits its piece: `index < count`, `count ≥ 2`, and the piece is `size` bytes long unless it
/// is the last one, which has at least one byte and at most `size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FragmentHeader {
    /// Which piece this is, counted from 0.
    pub index: u8,
    /// How many pieces there are.
    pub count: u8,
    /// Bytes of each piece but the last.
    pub size: u16,
    /// The sender's count of split messages; the same in all pieces of one.
    pub number: u32,
}

/// A question whether datagrams of a size get through, which is as long as that, or its short answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// An answer, carrying the question's size and number.
    pub reply: bool,
    /// Length in bytes of the whole datagram that is, or was, the question.
    pub size: u16,
    /// The asker's own; means nothing to anybody else.
    pub number: u32,
}

impl UnicastHeader {
    /// The header's bytes; the frame follows.
    pub fn emit(self) -> [u8; UNICAST_LEN] {
        let mut out = [0; UNICAST_LEN];
        out[0] = UNICAST;
        out[1] = self.hops.min(MAX_HOPS) | if self.unfinished { UNFINISHED } else { 0 };
        out[2..5].copy_from_slice(&self.network.to_bytes());
        out[5..11].copy_from_slice(&self.source.to_bytes());
        out[11..17].copy_from_slice(&self.destination.to_bytes());
        out
    }
}

impl FloodHeader {
    /// The header's bytes; the frame follows.
    pub fn emit(self) -> [u8; FLOOD_LEN] {
        let mut out = [0; FLOOD_LEN];
        out[0] = FLOOD;
        out[1] = self.hops;
        out[2..5].copy_from_slice(&self.network.to_bytes());
        out[5..11].copy_from_slice(&self.origin.to_bytes());
        out[11..15].copy_from_slice(&self.number.to_be_bytes());
        out
    }
}

impl FragmentHeader {
    /// The header's bytes; the piece follows.
    pub fn emit(self) -> [u8; FRAGMENT_LEN] {
        let mut out = [0; FRAGMENT_LEN];
        out[0] = FRAGMENT;
        out[1] = self.index;
        out[2] = self.count;
        out[3..5].copy_from_slice(&self.size.to_be_bytes());
        out[5..9].copy_from_slice(&self.number.to_be_bytes());
        out
    }

    /// Whether a piece of this length can be the one the header speaks of.
    fn fits(self, len: usize) -> bool {
        let (size, last) = (usize::from(self.size), self.index + 1 == self.count);
        len == size || (last && (1..size).contains(&len))
    }
}

impl Probe {
    /// The message's bytes; in a question, zeroes follow up to its size.
    pub fn emit(self) -> [u8; PROBE_LEN] {
        let mut out = [0; PROBE_LEN];
        out[0] = PROBE;
        out[1] = if self.reply { FLAG_REPLY } else { 0 };
        out[2..4].copy_from_slice(&self.size.to_be_bytes());
        out[4..8].copy_from_slice(&self.number.to_be_bytes());
        out
    }

    /// What is to be sent back; nothing to an answer.
    pub fn answer(self) -> Option<Self> {
        (!self.reply).then_some(Self {
            reply: true,
            ..self
        })
    }
}

impl Heartbeat {
    /// What is to be sent back; nothing to an answer.
    pub fn answer(self) -> Option<Self> {
        (!self.reply).then_some(Self {
            reply: true,
            ..self
        })
    }

    /// The message's bytes.
    pub fn emit(self) -> [u8; HEARTBEAT_LEN] {
        let mut out = [0; HEARTBEAT_LEN];
        out[0] = HEARTBEAT;
        out[1] = if self.reply { FLAG_REPLY } else { 0 };
        out[2..10].copy_from_slice(&self.stamp.to_be_bytes());
        out
    }
}

impl<'a> Message<'a> {
    /// Reads an opened message.
    ///
    /// # Errors
    /// The kind is unknown, a header is cut short, a heartbeat has bytes behind it, a piece is not as long
    /// as its header says, or a probe is not as long as it says or padded with anything but zeroes.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes);
        match r.u8("message kind")? {
            UNICAST => {
                let hops = r.u8("hop limit")?;
                let header = UnicastHeader {
                    hops: hops & MAX_HOPS,
                    unfinished: hops & UNFINISHED != 0,
                    network: Network::from_bytes(r.array("network")?),
                    source: r.peer("source peer")?,
                    destination: r.peer("destination peer")?,
                };
                Ok(Self::Unicast(header, r.rest()))
            }
            FLOOD => {
                let header = FloodHeader {
                    hops: r.u8("hop limit")?,
                    network: Network::from_bytes(r.array("network")?),
                    origin: r.peer("origin")?,
                    number: r.u32("flood number")?,
                };
                Ok(Self::Flood(header, r.rest()))
            }
            HEARTBEAT => {
                let heartbeat = Heartbeat {
                    reply: r.bool("heartbeat flags")?,
                    stamp: r.u64("heartbeat stamp")?,
                };
                r.finish("heartbeat")?;
                Ok(Self::Heartbeat(heartbeat))
            }
            FRAGMENT => fragment(r),
            PROBE => probe(bytes.len(), r),
            value => Err(Malformed::Unknown {
                what: "message kind",
                value: value.into(),
            }),
        }
    }
}

fn fragment(mut r: Reader<'_>) -> Result<Message<'_>, Malformed> {
    let header = FragmentHeader {
        index: r.u8("fragment index")?,
        count: r.u8("fragment count")?,
        size: r.u16("fragment size")?,
        number: r.u32("fragment number")?,
    };
    let piece = r.rest();
    let wrong = |what, value| Err(Malformed::Unknown { what, value });
    if header.count < 2 || header.index >= header.count {
        return wrong("fragment index", header.index.into());
    }
    if header.size == 0 || !header.fits(piece.len()) {
        return wrong("fragment size", header.size.into());
    }
    Ok(Message::Fragment(header, piece))
}

fn probe(len: usize, mut r: Reader<'_>) -> Result<Message<'_>, Malformed> {
    let probe = Probe {
        reply: r.bool("probe flags")?,
        size: r.u16("probe size")?,
        number: r.u32("probe number")?,
    };
    if !probe.reply {
        if len + OVERHEAD != usize::from(probe.size) {
            return Err(Malformed::Unknown {
                what: "probe size",
                value: probe.size.into(),
            });
        }
        if let Some(byte) = r.rest().iter().find(|byte| **byte != 0) {
            return Err(Malformed::Unknown {
                what: "probe padding",
                value: (*byte).into(),
            });
        }
    }
    r.finish("probe")?;
    Ok(Message::Probe(probe))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn peer() -> impl Strategy<Value = PeerName> {
        any::<[u8; 6]>().prop_map(PeerName::from_bytes)
    }

    fn network() -> impl Strategy<Value = Network> {
        any::<[u8; 3]>().prop_map(Network::from_bytes)
    }

    proptest! {
        #[test]
        fn unicast_is_read_back(hops in 0..=MAX_HOPS, unfinished: bool, network in network(), source in peer(), destination in peer(), frame: Vec<u8>) {
            let header = UnicastHeader { hops, unfinished, network, source, destination };
            let bytes = [&header.emit()[..], &frame].concat();
            prop_assert_eq!(Message::parse(&bytes), Ok(Message::Unicast(header, &frame)));
        }

        #[test]
        fn flood_is_read_back(hops: u8, network in network(), origin in peer(), number: u32, frame: Vec<u8>) {
            let header = FloodHeader { hops, network, origin, number };
            let bytes = [&header.emit()[..], &frame].concat();
            prop_assert_eq!(Message::parse(&bytes), Ok(Message::Flood(header, &frame)));
        }

        #[test]
        fn heartbeat_is_read_back(reply: bool, stamp: u64) {
            let heartbeat = Heartbeat { reply, stamp };
            let bytes = heartbeat.emit();
            prop_assert_eq!(Message::parse(&bytes), Ok(Message::Heartbeat(heartbeat)));
        }

        #[test]
        fn a_fragment_is_read_back_if_it_fits_its_header(index: u8, count: u8, size in 0_u16..40, number: u32, len in 0_usize..40) {
            let header = FragmentHeader { index, count, size, number };
            let piece = vec![7; len];
            let bytes = [&header.emit()[..], &piece].concat();
            let (least, last) = (1_usize, count > 0 && index == count - 1);
            let fits = count >= 2 && index < count && size > 0
                && if last { (least..=size.into()).contains(&len) } else { len == usize::from(size) };
            let parsed = Message::parse(&bytes);
            prop_assert_eq!(parsed.ok(), fits.then_some(Message::Fragment(header, &piece)));
        }

        #[test]
        fn a_probe_is_read_back_if_it_is_as_long_as_it_says(size in 0_u16..100, len in 0_usize..100, number: u32) {
            let probe = Probe { reply: false, size, number };
            let mut bytes = probe.emit().to_vec();
            bytes.resize(len.max(PROBE_LEN), 0);
            let fits = bytes.len() + OVERHEAD == usize::from(size);
            prop_assert_eq!(Message::parse(&bytes).ok(), fits.then_some(Message::Probe(probe)));
            let answer = probe.answer().unwrap();
            let bytes = answer.emit();
            prop_assert_eq!(Message::parse(&bytes), Ok(Message::Probe(answer)));
            prop_assert_eq!(answer.answer(), None);
        }

        #[test]
        fn any_bytes_parse_without_panic(bytes: Vec<u8>) {
            let _ = Message::parse(&bytes);
        }
    }

    #[test]
    fn a_probe_carries_nothing_but_zeroes_and_its_answer_nothing_at_all() {
        let question = Probe {
            reply: false,
            size: 60,
            number: 1,
        };
        let mut bytes = question.emit().to_vec();
        bytes.resize(60 - OVERHEAD, 0);
        assert!(Message::parse(&bytes).is_ok());
        bytes[20] = 1;
        assert!(Message::parse(&bytes).is_err());
        let mut answer = question.answer().unwrap().emit().to_vec();
        answer.push(0);
        assert!(Message::parse(&answer).is_err());
    }
}
