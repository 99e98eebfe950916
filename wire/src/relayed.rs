//! A control connection between two peers that cannot open one: its bytes, handed on by those in between.
//!
//! What is in [`Part`] is what would go over TCP: the same preambles and the same handshake, so who hands it on
//! reads nothing and forges nothing. Either end, and anybody in between, may lose some of it; then the next
//! piece does not open, and the connection ends.

use crate::codec::{Reader, Writer};
use crate::{Malformed, PeerName};

/// The most bytes of a connection that one message holds.
pub const MAX_RELAYED: usize = 8 << 10;

/// A piece of a relayed control connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relayed {
    /// The end that sent it.
    pub source: PeerName,
    /// The end it is for.
    pub destination: PeerName,
    /// How many more times it may be passed on.
    pub hops: u8,
    /// Which of the two's connections, a random number chosen by the end that dialled.
    pub stream: u64,
    /// Whether the source is the end that dialled.
    pub by_dialler: bool,
    /// What it brings.
    pub part: Part,
}

/// What a piece of a relayed control connection brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// The first bytes; only the end that dialled sends that.
    Open(Vec<u8>),
    /// The bytes that come next.
    Bytes(Vec<u8>),
    /// The connection is over, or unknown to the source.
    End,
}

const OPEN: u8 = 1;
const BYTES: u8 = 2;
const END: u8 = 3;

impl Relayed {
    /// Appends the fields.
    pub(crate) fn write(&self, w: &mut Writer) {
        w.u8(self.hops).peer(self.source).peer(self.destination);
        w.u64(self.stream).bool(self.by_dialler);
        match &self.part {
            Part::Open(bytes) => w.u8(OPEN).raw(bytes),
            Part::Bytes(bytes) => w.u8(BYTES).raw(bytes),
            Part::End => w.u8(END),
        };
    }

    /// Reads the fields.
    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (hops, source) = (r.u8("hop limit")?, r.peer("source peer")?);
        let destination = r.peer("destination peer")?;
        let (stream, by_dialler) = (r.u64("stream")?, r.bool("dialler flag")?);
        let part = match r.u8("part of a relayed connection")? {
            OPEN => Part::Open(bytes(r)?),
            BYTES => Part::Bytes(bytes(r)?),
            END => Part::End,
            value => {
                let (what, value) = ("part of a relayed connection", value.into());
                return Err(Malformed::Unknown { what, value });
            }
        };
        Ok(Self {
            source,
            destination,
            hops,
            stream,
            by_dialler,
            part,
        })
    }
}

fn bytes(r: &mut Reader<'_>) -> Result<Vec<u8>, Malformed> {
    let bytes = r.rest();
    if bytes.len() > MAX_RELAYED {
        return Err(Malformed::TooLong {
            what: "relayed bytes",
            value: bytes.len(),
            limit: MAX_RELAYED,
        });
    }
    Ok(bytes.to_vec())
}
