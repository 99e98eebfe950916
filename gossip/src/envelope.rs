//! The bytes of chitchat's messages: what may come in, and the one kind we make ourselves.
//!
//! chitchat trusts its input: a key that does not begin with ASCII, a version that runs backwards, a
//! delta for the reader's own keys, or a thousand invented ids end its task, and a block that
//! inflates a thousandfold fills the memory. So every message is read here first and written anew
//! with only what a well-behaved weft would have sent. What is left out is counted; the rest counts
//! as if it had come alone, because a delta is a list of operations of which any prefix is a delta.
//!
//! ```text
//!  envelope   magic (2) | version (1) | kind (1) | ...          numbers are little-endian
//!    syn      digest | cluster                      syn-ack   digest | delta
//!    ack      delta                                 bad cluster   nothing
//!  digest     count (2), each: id | heartbeat (8) | last gc version (8) | max version (8)
//!  id         text | generation (8) | 4 or 6 (1) | address | port (2)
//!  delta      blocks: 1 | length (2) | zstd   or   2 | length (2) | bytes;   then 0
//!             in the blocks, operations:
//!               0 | id | last gc version (8) | from version, excluded (8)
//!               1 | key | value | version (8) | status (1)
//!               2 | max version (8)
//! ```
//!
//! Invariants: what [`admit`] returns cannot make chitchat panic, nor grow beyond the bounds of
//! [`Census`]; a message chitchat wrote about well-formed entries passes unchanged in meaning.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use chitchat::{ChitchatMessage, Deserializable};
use thiserror::Error;
use weft_wire::Malformed;
use weft_wire::codec::{Reader, Writer};

use crate::key::{MAX_KEY, MAX_VALUE};
use crate::run::{Run, address};

/// The most runs chitchat is told of, dead ones it still remembers included. Each costs 65 bytes of
/// every digest; with this many a digest leaves 20 KB of a message, enough for the longest entry.
pub(crate) const MAX_RUNS: usize = 700;
/// The most keys of one run, tombstones included.
pub(crate) const MAX_KEYS: usize = 60_000;
/// The longest envelope chitchat makes.
pub(crate) const MAX_ENVELOPE: usize = 65_507;

/// Why a message did not get through to chitchat.
#[derive(Debug, Error)]
pub(crate) enum EnvelopeError {
    /// The bytes are not what the format says.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// A block is not zstd.
    #[error("a block of the delta does not inflate")]
    Block(#[source] std::io::Error),
    /// chitchat has an objection of its own.
    #[error("chitchat refused it: {0:#}")]
    Chitchat(anyhow::Error),
}

/// What came through.
pub(crate) struct Admitted {
    pub(crate) message: ChitchatMessage,
    /// It holds a change we cannot use before we know what came before it: ask the sender.
    pub(crate) behind: bool,
    /// How many parts were left out.
    pub(crate) refused: u64,
    /// Peers were left out because there are too many.
    pub(crate) full: bool,
}

/// How much chitchat holds of each run, kept up with each message let through.
#[derive(Debug)]
pub(crate) struct Census {
    us: Run,
    runs: BTreeMap<Run, Holding>,
}

/// What chitchat holds of one run, an estimate from above between two looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Holding {
    pub(crate) keys: usize,
    pub(crate) max_version: u64,
}

impl Census {
    pub(crate) fn new(us: Run) -> Self {
        let runs = BTreeMap::from([(us, Holding::default())]);
        Self { us, runs }
    }

    /// Puts what is really there in the place of the estimate.
    pub(crate) fn replace(&mut self, runs: BTreeMap<Run, Holding>) {
        self.runs = runs;
    }

    /// Whether a digest may speak of this run.
    fn admit(&mut self, run: Run) -> bool {
        if self.runs.contains_key(&run) {
            return true;
        }
        let room = self.runs.len() < MAX_RUNS;
        if room {
            self.runs.insert(run, Holding::default());
        }
        room
    }

    fn holding(&mut self, run: Run) -> Option<&mut Holding> {
        self.runs.get_mut(&run)
    }
}

/// Reads a neighbour's message, leaving out what must not reach chitchat.
///
/// # Errors
/// The bytes are no envelope, so that no part of them can be used.
pub(crate) fn admit(bytes: &[u8], census: &mut Census) -> Result<Admitted, EnvelopeError> {
    let mut r = Reader::new(bytes);
    let mut sieve = Sieve {
        census,
        out: Writer::new(),
        behind: false,
        refused: 0,
        full: false,
    };
    let prefix: [u8; 3] = r.array("gossip envelope")?;
    let kind = r.u8("gossip message kind")?;
    sieve.out.raw(&prefix).u8(kind);
    match kind {
        SYN => {
            sieve.digest(&mut r)?;
            write_text(&mut sieve.out, text(&mut r, MAX_TEXT, "cluster name")?);
        }
        SYN_ACK => {
            sieve.digest(&mut r)?;
            sieve.delta(&mut r)?;
        }
        ACK => sieve.delta(&mut r)?,
        BAD_CLUSTER => {}
        value => {
            let value = value.into();
            let what = "gossip message kind";
            return Err(Malformed::Unknown { what, value }.into());
        }
    }
    r.finish("gossip envelope")?;
    let clean = sieve.out.into_bytes();
    let message = ChitchatMessage::deserialize(&mut clean.as_slice());
    Ok(Admitted {
        message: message.map_err(EnvelopeError::Chitchat)?,
        // An answer to our own digest is never ahead of it; asking again would only repeat it.
        behind: sieve.behind && kind == ACK,
        refused: sieve.refused,
        full: sieve.full,
    })
}

/// Reads one envelope and writes it anew.
struct Sieve<'a> {
    census: &'a mut Census,
    out: Writer,
    behind: bool,
    refused: u64,
    full: bool,
}

impl Sieve<'_> {
    fn digest(&mut self, r: &mut Reader<'_>) -> Result<(), Malformed> {
        let count = u16::from_le_bytes(r.array("digest length")?);
        let mut kept: u16 = 0;
        let mut lines = Writer::new();
        for _ in 0..count {
            let run = read_run(r)?;
            let versions = r.take(DIGEST_VERSIONS, "digest")?;
            let admitted = run.filter(|run| self.census.admit(*run));
            if let Some(run) = admitted {
                write_run(&mut lines, run);
                lines.raw(versions);
                kept += 1;
            } else {
                self.refused += 1;
                self.full |= run.is_some();
            }
        }
        self.out.raw(&kept.to_le_bytes()).raw(&lines.into_bytes());
        Ok(())
    }

    fn delta(&mut self, r: &mut Reader<'_>) -> Result<(), EnvelopeError> {
        let (inflated, cut) = inflate(r)?;
        let mut ops = Writer::new();
        let mut open: Option<Open> = None;
        let mut r = Reader::new(&inflated);
        while r.remaining() > 0 {
            let op = match Op::read(&mut r) {
                Ok(op) => op,
                // The rest was not inflated: what is complete is a delta all the same.
                Err(Malformed::Truncated { .. }) if cut => break,
                Err(error) => return Err(error.into()),
            };
            match op {
                Op::Node { run, gc, from } => {
                    self.close(open.take(), &mut ops);
                    open = self.open(run, gc, from, &mut ops);
                }
                Op::Set(set) => self.set(&set, open.as_mut(), &mut ops),
                Op::Max(max) => match &mut open {
                    Some(open) if max >= open.passed => open.passed = max,
                    Some(_) => self.refused += 1,
                    None => {}
                },
            }
        }
        self.close(open, &mut ops);
        write_blocks(&mut self.out, &ops.into_bytes());
        Ok(())
    }

    /// Begins the operations on one run; `None` if they are to be left out.
    fn open(&mut self, run: Option<Run>, gc: u64, from: u64, ops: &mut Writer) -> Option<Open> {
        // Nobody else writes our keys, and chitchat would count our versions on from a forged one.
        let Some(run) = run.filter(|run| *run != self.census.us) else {
            self.refused += 1;
            return None;
        };
        let known = self.census.holding(run).map(|holding| holding.max_version);
        if known.is_none_or(|known| from > known) {
            self.behind = true;
            return None;
        }
        Op::Node {
            run: Some(run),
            gc,
            from,
        }
        .write(ops);
        Some(Open {
            run,
            passed: 0,
            written: 0,
        })
    }

    fn set(&mut self, set: &Set<'_>, open: Option<&mut Open>, ops: &mut Writer) {
        let Some(open) = open else {
            return;
        };
        open.passed = open.passed.max(set.version);
        let room = self.census.holding(open.run).filter(|h| h.keys < MAX_KEYS);
        match room.filter(|_| set.is_sound()) {
            Some(holding) => {
                holding.keys += 1;
                open.written = set.version;
                Op::Set(*set).write(ops);
            }
            None => self.refused += 1,
        }
    }

    /// Ends the operations on one run. Where the last keys were left out, chitchat is told how far the
    /// versions went, or it would ask for them again and again.
    fn close(&mut self, open: Option<Open>, ops: &mut Writer) {
        let Some(open) = open else {
            return;
        };
        if open.passed > open.written {
            Op::Max(open.passed).write(ops);
        }
        if let Some(holding) = self.census.holding(open.run) {
            holding.max_version = holding.max_version.max(open.passed);
        }
    }
}

/// The run whose operations are being read.
struct Open {
    run: Run,
    /// The highest version read.
    passed: u64,
    /// The highest version of a key written.
    written: u64,
}

/// One operation of a delta.
enum Op<'a> {
    /// What follows is of this run, complete from this version on. No run: an id no weft has.
    Node {
        run: Option<Run>,
        gc: u64,
        from: u64,
    },
    Set(Set<'a>),
    /// The run's versions went up to here.
    Max(u64),
}

/// A key set or deleted.
#[derive(Clone, Copy)]
pub(crate) struct Set<'a> {
    pub(crate) key: &'a str,
    pub(crate) value: &'a str,
    pub(crate) version: u64,
    pub(crate) status: u8,
}

impl Set<'_> {
    /// Whether some weft could have written this.
    fn is_sound(&self) -> bool {
        !self.key.is_empty()
            && self.key.is_ascii()
            && self.key.len() <= MAX_KEY
            && self.value.len() <= MAX_VALUE
    }
}

impl<'a> Op<'a> {
    fn read(r: &mut Reader<'a>) -> Result<Self, Malformed> {
        match r.u8("delta operation")? {
            OP_NODE => Ok(Self::Node {
                run: read_run(r)?,
                gc: number(r, "last gc version")?,
                from: number(r, "from version")?,
            }),
            OP_SET => Ok(Self::Set(Set {
                key: text(r, usize::MAX, "key")?,
                value: text(r, usize::MAX, "value")?,
                version: number(r, "version")?,
                status: r.u8("status")?,
            })),
            OP_MAX => Ok(Self::Max(number(r, "max version")?)),
            value => Err(Malformed::Unknown {
                what: "delta operation",
                value: value.into(),
            }),
        }
    }

    fn write(&self, w: &mut Writer) {
        match self {
            Self::Node { run, gc, from } => {
                if let Some(run) = run {
                    write_run(w.u8(OP_NODE), *run);
                    w.raw(&gc.to_le_bytes()).raw(&from.to_le_bytes());
                }
            }
            Self::Set(set) => {
                write_text(w.u8(OP_SET), set.key);
                write_text(w, set.value);
                w.raw(&set.version.to_le_bytes()).u8(set.status);
            }
            Self::Max(max) => {
                w.u8(OP_MAX).raw(&max.to_le_bytes());
            }
        }
    }
}

/// An `Ack` of our own making: changes told without being asked, which spares the two messages
/// before it. A neighbour that lacks what came before asks for a full exchange.
#[derive(Debug, Default)]
pub(crate) struct Push {
    ops: Writer,
    len: usize,
}

impl Push {
    /// Adds the changes of a run after version `from`, in the order of their versions. False if not
    /// all had room: then those that did are a beginning, and the rest must be asked for.
    pub(crate) fn add<'a>(
        &mut self,
        run: Run,
        last_gc: u64,
        from: u64,
        sets: impl Iterator<Item = Set<'a>>,
    ) -> bool {
        let node = Op::Node {
            run: Some(run),
            gc: last_gc,
            from,
        };
        node.write(&mut self.ops);
        self.len += RUN_OP_LEN;
        for set in sets {
            self.len += set.key.len() + set.value.len() + SET_OP_LEN;
            if self.len > MAX_PUSH {
                return false;
            }
            Op::Set(set).write(&mut self.ops);
        }
        true
    }

    /// The envelope, ready for any neighbour.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        let mut out = Writer::new();
        out.raw(&PREFIX).u8(ACK);
        write_blocks(&mut out, &self.ops.into_bytes());
        out.into_bytes()
    }
}

/// All operations of a delta; and whether some were left in the blocks because of [`MAX_INFLATED`].
fn inflate(r: &mut Reader<'_>) -> Result<(Vec<u8>, bool), EnvelopeError> {
    let mut ops = Vec::new();
    let mut cut = false;
    loop {
        let kind = r.u8("delta block")?;
        if kind == BLOCK_END {
            return Ok((ops, cut));
        }
        let len = u16::from_le_bytes(r.array("delta block")?);
        let block = r.take(len.into(), "delta block")?;
        cut |= ops.len() > MAX_INFLATED;
        match kind {
            BLOCK_ZSTD | BLOCK_PLAIN if cut => {}
            BLOCK_ZSTD => {
                let inflated = zstd::bulk::decompress(block, MAX_BLOCK);
                ops.extend(inflated.map_err(EnvelopeError::Block)?);
            }
            BLOCK_PLAIN => ops.extend(block),
            value => {
                let (what, value) = ("delta block", value.into());
                return Err(Malformed::Unknown { what, value }.into());
            }
        }
    }
}

fn write_blocks(w: &mut Writer, ops: &[u8]) {
    for block in ops.chunks(MAX_BLOCK) {
        // A chunk is never longer than its length field can say.
        let len = u16::try_from(block.len()).unwrap_or(u16::MAX);
        w.u8(BLOCK_PLAIN).raw(&len.to_le_bytes()).raw(block);
    }
    w.u8(BLOCK_END);
}

fn read_run(r: &mut Reader<'_>) -> Result<Option<Run>, Malformed> {
    let node_id = text(r, usize::MAX, "node id")?;
    let generation = number(r, "generation")?;
    let ip = match r.u8("address family")? {
        4 => IpAddr::from(r.array::<4>("address")?),
        6 => IpAddr::from(r.array::<16>("address")?),
        value => {
            let (what, value) = ("address family", value.into());
            return Err(Malformed::Unknown { what, value });
        }
    };
    let port = u16::from_le_bytes(r.array("port")?);
    let gossip_address = SocketAddr::new(ip, port);
    Ok(Run::from_parts(node_id, generation, gossip_address))
}

fn write_run(w: &mut Writer, run: Run) {
    let (id, at) = (run.id(), address(run.name));
    write_text(w, &id.node_id);
    w.raw(&run.generation.to_le_bytes());
    match at.ip() {
        IpAddr::V4(v4) => w.u8(4).raw(&v4.octets()),
        IpAddr::V6(v6) => w.u8(6).raw(&v6.octets()),
    };
    w.raw(&at.port().to_le_bytes());
}

fn number(r: &mut Reader<'_>, what: &'static str) -> Result<u64, Malformed> {
    Ok(u64::from_le_bytes(r.array(what)?))
}

fn text<'a>(r: &mut Reader<'a>, limit: usize, what: &'static str) -> Result<&'a str, Malformed> {
    let len = usize::from(u16::from_le_bytes(r.array(what)?));
    if len > limit {
        let value = len;
        return Err(Malformed::TooLong { what, value, limit });
    }
    std::str::from_utf8(r.take(len, what)?).map_err(|_| Malformed::NotText { what })
}

/// Writes text that is within its bounds: all that is written here was read or checked before.
fn write_text(w: &mut Writer, text: &str) {
    let len = u16::try_from(text.len()).unwrap_or(u16::MAX);
    w.raw(&len.to_le_bytes()).raw(text.as_bytes());
}

/// chitchat's magic number 45,139 and its protocol version 0.
const PREFIX: [u8; 3] = [0x53, 0xb0, 0];
const SYN: u8 = 0;
const SYN_ACK: u8 = 1;
const ACK: u8 = 2;
const BAD_CLUSTER: u8 = 3;

const OP_NODE: u8 = 0;
const OP_SET: u8 = 1;
const OP_MAX: u8 = 2;

/// The status of a key that holds a value.
pub(crate) const STATUS_SET: u8 = 0;
/// The status of a key that was deleted.
pub(crate) const STATUS_DELETED: u8 = 1;
/// The status of a key that will be deleted; weft writes none, but passes it on.
pub(crate) const STATUS_EXPIRING: u8 = 2;

const BLOCK_END: u8 = 0;
const BLOCK_ZSTD: u8 = 1;
const BLOCK_PLAIN: u8 = 2;

/// Bytes of heartbeat, last gc version and max version in a digest.
const DIGEST_VERSIONS: usize = 24;
/// The longest block chitchat inflates.
const MAX_BLOCK: usize = 65_535;
/// Operations beyond this stay in their blocks and come with the next exchange. A message of 64 KiB
/// with our kind of keys inflates to about 1 MiB.
const MAX_INFLATED: usize = 4 << 20;
/// The longest cluster name read, in bytes.
const MAX_TEXT: usize = 1024;
/// Bytes of operations in one push; more is left to a full exchange, which compresses.
const MAX_PUSH: usize = 32 * 1024;
/// Bytes of an operation that begins a run.
const RUN_OP_LEN: usize = 58;
/// Bytes of an operation that sets a key, beside key and value.
const SET_OP_LEN: usize = 14;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delta_that_inflates_beyond_bounds_is_read_up_to_there() {
        let name = weft_wire::PeerName::from_bytes([2, 0, 0, 0, 0, 1]);
        let [us, run] = [1, 2].map(|generation| Run { name, generation });
        let value = "x".repeat(MAX_VALUE);
        let mut ops = Writer::new();
        let node = Op::Node {
            run: Some(run),
            gc: 0,
            from: 0,
        };
        node.write(&mut ops);
        for version in 1..=1000 {
            let set = Set {
                key: "key",
                value: &value,
                version,
                status: STATUS_SET,
            };
            Op::Set(set).write(&mut ops);
        }
        let mut message = Writer::new();
        message.raw(&PREFIX).u8(ACK);
        for block in ops.into_bytes().chunks(MAX_BLOCK) {
            let block = zstd::bulk::compress(block, 0).unwrap();
            let len = u16::try_from(block.len()).unwrap();
            message.u8(BLOCK_ZSTD).raw(&len.to_le_bytes()).raw(&block);
        }
        let message = message.u8(BLOCK_END).clone().into_bytes();
        assert!(message.len() < MAX_ENVELOPE);
        let (inflated, cut) = inflate(&mut Reader::new(&message[4..])).unwrap();
        assert!(cut && inflated.len() <= MAX_INFLATED + 2 * MAX_BLOCK);
        let mut census = Census::new(us);
        assert!(census.admit(run));
        admit(&message, &mut census).unwrap();
        let read = census.holding(run).unwrap().max_version;
        assert!((200..300).contains(&read), "up to version {read}");
    }
}
