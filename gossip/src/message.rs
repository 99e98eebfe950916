//! What neighbours say to each other, and its bytes.
//!
//! ```text
//!  message   version (1) | kind (1) | ...                numbers without a length are LEB128
//!    rest      sum (16)                                  all runs, as one number
//!    buckets   64 × sum (8)                              the same in parts
//!    digest    mask (8) | runs, each: known, told        all runs of the parts in the mask; told: 1 if the
//!                                                       sender tells others of it, 0 if it only has it
//!    want      runs, each: known                         tell me these from there on
//!    news      1 if there is more, else 0 | blocks
//!  known     name (6) | generation | version | collected
//!  block     known of the run when it was sent, version = target
//!            | since | until | sets | 0
//!  set       version − the version before (> 0) | 0: deleted, 1: set | key | value if set
//!  text      length | bytes
//! ```
//!
//! Invariants: parsing is total, and gives only keys and values within their bounds, in rising versions;
//! `parse(emit(x)) == x`; no message is longer than [`MAX_MESSAGE`].

use weft_wire::Malformed;
use weft_wire::codec::{Reader, Writer};

use crate::key::{MAX_KEY, MAX_VALUE};
use crate::run::{BUCKETS, Run};
use crate::store::Known;

/// The longest message; control connections carry no longer ones.
pub(crate) const MAX_MESSAGE: usize = 65_507;
/// The most bytes of runs or blocks in one message.
pub(crate) const MAX_BODY: usize = 65_000;
/// The most runs that are asked for in one message.
pub(crate) const MAX_WANTED: usize = MAX_BODY / KNOWN_LEN;

/// A message between neighbours.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message<'a> {
    /// What I know is this, in a number.
    Rest(u128),
    /// What I know is this, in numbers of its parts.
    Buckets(Vec<u64>),
    /// What I know of these parts is this.
    Digest(u64, Vec<(Run, Known, bool)>),
    /// Tell me these runs, from there on.
    Want(Vec<(Run, Known)>),
    /// What is new of some runs; if there is more, it is to be asked for.
    News {
        /// There was more than fitted.
        more: bool,
        blocks: Vec<Block<'a>>,
    },
}

/// Writes of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Block<'a> {
    pub(crate) run: Run,
    /// Tombstones up to here were collected by the sender.
    pub(crate) collected: u64,
    /// It has all writes after this version,
    pub(crate) since: u64,
    /// up to this one.
    pub(crate) until: u64,
    /// The sender knows the run up to here.
    pub(crate) target: u64,
    pub(crate) sets: Vec<Set<'a>>,
}

/// One write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Set<'a> {
    pub(crate) key: &'a str,
    /// None deletes.
    pub(crate) value: Option<&'a str>,
    pub(crate) version: u64,
}

/// Reads a message.
///
/// # Errors
/// The bytes are not what the format says.
pub(crate) fn parse(bytes: &[u8]) -> Result<Message<'_>, Malformed> {
    if bytes.len() > MAX_MESSAGE {
        return Err(too_long("gossip message", bytes.len(), MAX_MESSAGE));
    }
    let mut r = Reader::new(bytes);
    let version = r.u8("gossip version")?;
    if version != VERSION {
        return Err(unknown("gossip version", version));
    }
    let message = match r.u8("gossip kind")? {
        REST => Message::Rest(r.u128("gossip sum")?),
        SUMS => {
            let sums = (0..BUCKETS).map(|_| r.u64("gossip sums"));
            Message::Buckets(sums.collect::<Result<_, _>>()?)
        }
        DIGEST => {
            let mask = r.u64("gossip mask")?;
            let mut runs = Vec::new();
            while r.remaining() > 0 {
                let (run, known) = read_known(&mut r)?;
                runs.push((run, known, r.bool("told")?));
            }
            Message::Digest(mask, runs)
        }
        WANT => Message::Want(read_runs(&mut r)?),
        NEWS => {
            let more = r.bool("gossip news")?;
            let mut blocks = Vec::new();
            while r.remaining() > 0 {
                blocks.push(read_block(&mut r)?);
            }
            Message::News { more, blocks }
        }
        value => return Err(unknown("gossip kind", value)),
    };
    r.finish("gossip message")?;
    Ok(message)
}

/// The bytes of a sum.
pub(crate) fn rest(sum: u128) -> Vec<u8> {
    let mut w = Writer::new();
    w.raw(&[VERSION, REST]).u128(sum);
    w.into_bytes()
}

/// The bytes of the sums of all parts.
pub(crate) fn buckets(sums: &[u64]) -> Vec<u8> {
    let mut w = Writer::new();
    w.raw(&[VERSION, SUMS]);
    for sum in sums {
        w.u64(*sum);
    }
    w.into_bytes()
}

/// The bytes of what is known of some parts.
pub(crate) fn digest(mask: u64, runs: &[(Run, Known, bool)]) -> Vec<u8> {
    let mut w = Writer::new();
    w.raw(&[VERSION, DIGEST]).u64(mask);
    for (run, known, told) in runs {
        write_known(&mut w, *run, *known);
        w.bool(*told);
    }
    w.into_bytes()
}

/// The bytes of a wish for at most [`MAX_WANTED`] runs.
pub(crate) fn want(runs: &[(Run, Known)]) -> Vec<u8> {
    let mut w = Writer::new();
    w.raw(&[VERSION, WANT]);
    write_runs(&mut w, runs);
    w.into_bytes()
}

/// Blocks being gathered for one message.
#[derive(Debug, Default)]
pub(crate) struct News {
    blocks: Vec<u8>,
    /// A run found no room at all.
    more: bool,
}

impl News {
    pub(crate) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Adds what another one lacks of a run, as far as there is room; whether anything was added.
    ///
    /// How far the run goes is in its block, so the rest of it can be asked for; that runs were left out
    /// altogether is in the message.
    pub(crate) fn add<'a>(
        &mut self,
        run: Run,
        ours: Known,
        since: u64,
        sets: impl Iterator<Item = Set<'a>>,
    ) -> bool {
        let Some(mut room) = MAX_BODY.checked_sub(self.blocks.len() + BLOCK_LEN) else {
            self.more = true;
            return false;
        };
        let mut body = Writer::new();
        let (mut until, mut last) = (ours.version, since);
        for set in sets {
            let size = set.key.len() + set.value.map_or(0, str::len) + SET_LEN;
            if size > room {
                until = last;
                break;
            }
            room -= size;
            write_number(&mut body, set.version.saturating_sub(last));
            last = set.version;
            body.bool(set.value.is_some());
            write_text(&mut body, set.key);
            if let Some(value) = set.value {
                write_text(&mut body, value);
            }
        }
        if until == since && until < ours.version {
            self.more = true;
            return false;
        }
        let mut w = Writer::new();
        write_known(&mut w, run, ours);
        write_number(&mut w, since);
        write_number(&mut w, until);
        w.raw(&body.into_bytes()).u8(0);
        self.blocks.extend(w.into_bytes());
        true
    }

    /// The bytes, ready for any neighbour.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        let mut w = Writer::new();
        w.raw(&[VERSION, NEWS]).bool(self.more).raw(&self.blocks);
        w.into_bytes()
    }
}

fn read_block<'a>(r: &mut Reader<'a>) -> Result<Block<'a>, Malformed> {
    let (run, known) = read_known(r)?;
    let (since, until) = (number(r, "since")?, number(r, "until")?);
    let mut sets = Vec::new();
    let mut version = since;
    loop {
        let step = number(r, "write")?;
        if step == 0 {
            break;
        }
        version = version.checked_add(step).ok_or(unknown("write", 0))?;
        let is_set = r.bool("write")?;
        let key = text(r, MAX_KEY, "key")?;
        let value = match is_set {
            true => Some(text(r, MAX_VALUE, "value")?),
            false => None,
        };
        sets.push(Set {
            key,
            value,
            version,
        });
    }
    // What is said to be complete is: no write is beyond, and the sender has no less.
    if version > until || until > known.version {
        return Err(unknown("block", 0));
    }
    Ok(Block {
        run,
        collected: known.collected,
        since,
        until,
        target: known.version,
        sets,
    })
}

fn read_runs(r: &mut Reader<'_>) -> Result<Vec<(Run, Known)>, Malformed> {
    let mut runs = Vec::new();
    while r.remaining() > 0 {
        runs.push(read_known(r)?);
    }
    Ok(runs)
}

fn write_runs(w: &mut Writer, runs: &[(Run, Known)]) {
    for (run, known) in runs {
        write_known(w, *run, *known);
    }
}

fn read_known(r: &mut Reader<'_>) -> Result<(Run, Known), Malformed> {
    let name = r.peer("peer")?;
    let generation = number(r, "generation")?;
    let version = number(r, "version")?;
    let collected = number(r, "collected")?;
    let known = Known { version, collected };
    Ok((Run { name, generation }, known))
}

fn write_known(w: &mut Writer, run: Run, known: Known) {
    w.peer(run.name);
    write_number(w, run.generation);
    write_number(w, known.version);
    write_number(w, known.collected);
}

fn number(r: &mut Reader<'_>, what: &'static str) -> Result<u64, Malformed> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = r.u8(what)?;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            break;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            // A number has one spelling.
            return match byte == 0 && shift > 0 {
                true => Err(unknown(what, byte)),
                false => Ok(value),
            };
        }
    }
    Err(unknown(what, u8::MAX))
}

fn write_number(w: &mut Writer, mut value: u64) {
    while value >= 0x80 {
        w.u8(low_bits(value) | 0x80);
        value >>= 7;
    }
    w.u8(low_bits(value));
}

/// The low seven bits.
fn low_bits(value: u64) -> u8 {
    (value & 0x7f) as u8
}

fn text<'a>(r: &mut Reader<'a>, limit: usize, what: &'static str) -> Result<&'a str, Malformed> {
    let len = usize::try_from(number(r, what)?).unwrap_or(usize::MAX);
    if len > limit {
        return Err(too_long(what, len, limit));
    }
    std::str::from_utf8(r.take(len, what)?).map_err(|_| Malformed::NotText { what })
}

fn write_text(w: &mut Writer, text: &str) {
    write_number(w, text.len() as u64);
    w.raw(text.as_bytes());
}

fn unknown(what: &'static str, value: u8) -> Malformed {
    let value = value.into();
    Malformed::Unknown { what, value }
}

fn too_long(what: &'static str, value: usize, limit: usize) -> Malformed {
    Malformed::TooLong { what, value, limit }
}

const VERSION: u8 = 1;
const REST: u8 = 0;
const SUMS: u8 = 1;
const DIGEST: u8 = 2;
const WANT: u8 = 3;
const NEWS: u8 = 4;

/// The most bytes of a run and how far it is known; usually it is half of that.
pub(crate) const KNOWN_LEN: usize = 6 + 3 * 10 + 1;
/// The most bytes of a block without its sets.
const BLOCK_LEN: usize = KNOWN_LEN + 2 * 10 + 1;
/// The most bytes of a set without key and value.
const SET_LEN: usize = 10 + 1 + 3 + 3;

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use weft_wire::PeerName;

    use super::*;

    fn runs() -> impl Strategy<Value = Vec<(Run, Known)>> {
        let run =
            any::<([u8; 6], u64, u64, u64)>().prop_map(|(name, generation, version, collected)| {
                let name = PeerName::from_bytes(name);
                (Run { name, generation }, Known { version, collected })
            });
        vec(run, 0..20)
    }

    fn read(bytes: &[u8], check: impl Fn(&Message<'_>)) {
        check(&parse(bytes).unwrap());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(runs in runs(), mask: u64, sum: u128, told: bool, sums in vec(any::<u64>(), 64)) {
            let known: Vec<_> = runs.iter().map(|(run, known)| (*run, *known, told)).collect();
            read(&rest(sum), |read| assert_eq!(*read, Message::Rest(sum)));
            read(&buckets(&sums), |read| assert_eq!(*read, Message::Buckets(sums.clone())));
            read(&digest(mask, &known), |read| assert_eq!(*read, Message::Digest(mask, known.clone())));
            read(&want(&runs), |read| assert_eq!(*read, Message::Want(runs.clone())));
        }

        #[test]
        fn blocks_are_read_as_far_as_there_was_room(
            keys in vec((".{0,40}", proptest::option::of(".{0,900}"), 1_u64..300), 0..200),
            since in 0_u64..1000,
        ) {
            let run = Run { name: PeerName::from_bytes([2; 6]), generation: 1_800_000_000 };
            let mut version = since;
            let sets: Vec<Set<'_>> = keys.iter().map(|(key, value, step)| {
                version += step;
                Set { key, value: value.as_deref(), version }
            }).collect();
            let ours = Known { version, collected: 3 };
            let mut news = News::default();
            prop_assert!(news.add(run, ours, since, sets.iter().copied()));
            let bytes = news.into_bytes();
            prop_assert!(bytes.len() <= MAX_MESSAGE);
            read(&bytes, |read| {
                let Message::News { more: false, blocks } = read else { panic!("{read:?}") };
                let block = &blocks[0];
                let all = block.sets.len() == sets.len();
                assert_eq!(block.sets, sets[..block.sets.len()]);
                assert_eq!((block.since, block.target), (since, version));
                let last = block.sets.last().map_or(since, |set| set.version);
                assert_eq!(block.until, if all { version } else { last });
            });
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..300), kind in 0_u8..6) {
            let bytes = [&[VERSION, kind], bytes.as_slice()].concat();
            let _ = parse(&bytes);
        }
    }

    #[test]
    fn a_run_without_room_is_said_to_be_left_out() {
        let run = |n| Run {
            name: PeerName::from_bytes([2; 6]),
            generation: n,
        };
        let value = "x".repeat(MAX_VALUE);
        let set = Set {
            key: "k",
            value: Some(&value),
            version: 1,
        };
        let ours = Known {
            version: 1,
            collected: 0,
        };
        let mut news = News::default();
        let added: Vec<_> = (0..5)
            .map(|n| news.add(run(n), ours, 0, [set].into_iter()))
            .collect();
        assert_eq!(added, [true, true, true, false, false]);
        let bytes = news.into_bytes();
        assert!(bytes.len() <= MAX_MESSAGE);
        read(&bytes, |read| {
            let Message::News { more: true, blocks } = read else {
                panic!("{read:?}")
            };
            assert_eq!(blocks.len(), 3);
        });
    }

    #[test]
    fn a_message_beyond_bounds_is_refused() {
        assert!(parse(&vec![0; MAX_MESSAGE + 1]).is_err());
    }
}
