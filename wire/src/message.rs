//! The inside of a packet once it is opened: a frame for one peer, a flooded frame, a heartbeat.
//!
//! ```text
//!  unicast    | 1 | u hops | network (3) | source peer (6) | destination peer (6) | frame ... |
//!  flood      | 2 | hops   | network (3) | origin (6)      | number (4)           | frame ... |
//!  heartbeat  | 3 | flags  | stamp (8)                                                        |
//! ```
//!
//! `hops` is how many more times the frame may be passed on; the bit `u` above it says that the frame's
//! checksum is unfinished. A flooded frame is named by its origin
//! and number, so that each peer delivers it once and passes it on once, whatever the topology
//! looks like to whom. Frames are borrowed: parsing copies and allocates nothing.

use crate::codec::Reader;
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

const UNICAST: u8 = 1;
const FLOOD: u8 = 2;
const HEARTBEAT: u8 = 3;
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

impl Heartbeat {
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
    /// The kind is unknown, a header is cut short, or a heartbeat has bytes behind it.
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
            value => Err(Malformed::Unknown {
                what: "message kind",
                value: value.into(),
            }),
        }
    }
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
        fn any_bytes_parse_without_panic(bytes: Vec<u8>) {
            let _ = Message::parse(&bytes);
        }
    }
}
