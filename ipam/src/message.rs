//! What allocators say to each other, and the bytes of it.
//!
//! ```text
//!  | version (1) | family (1) | pool: first address (4 or 16), prefix (1) | kind (1) | fields of that kind ... |
//! ```
//!
//! All addresses of a message are of the family of its pool, IPv4 (4) or IPv6 (6), and have its length.
//!
//! Messages may be lost, repeated, reordered and delayed; none of them is the only carrier of a
//! fact. A grant is nothing but a [`Message::Ring`] that says so. Whatever refers to a ring names
//! it, so that a message from before two rings met does no harm after.

mod electors;
mod ring;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use weft_wire::codec::{Reader, Writer};
use weft_wire::{Malformed, PeerName};

use crate::addr::{Addr, Cidr, Family};
use crate::consensus::{Ballot, Decree};
use crate::digest::Digest;
use crate::ring::{MAX_FOUNDERS, Ring, RingId, RingKind};
use crate::saved::SavedRing;

pub(crate) use electors::{Ask, Council, read_voted, write_voted};
pub(crate) use ring::{read_first_ring, read_ring, write_ring};

/// The most addresses one message claims or denies.
pub(crate) const MAX_ADDRS: usize = 4_096;
/// 2 was of IPv4 alone, and had no family in its head.
const VERSION: u8 = 3;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    /// Have you the ring of this digest? Answered by `Same`, or `Ring` with the same nonce.
    Sync { nonce: u32, digest: Digest },
    /// We have just that ring, or neither has one.
    Same { nonce: u32 },
    /// Our ring; nonce 0 if it answers nothing.
    Ring { nonce: u32, ring: Option<Ring> },
    /// Give us space in this subnet.
    Space { ring: RingId, subnet: Cidr },
    /// There is none to give in that subnet.
    NoSpace {
        ring: RingId,
        subnet: Cidr,
        why: Denial,
    },
    /// Give us exactly these addresses; our containers hold them or ask for them.
    Claim { ring: RingId, addrs: Vec<Addr> },
    /// These we keep, or cannot give for now.
    Taken {
        ring: RingId,
        addrs: Vec<Addr>,
        why: Denial,
    },
    /// We gave our ring up for this one, whose digest is now that: tell us when you did, and have
    /// settled your addresses.
    Adopted { ring: RingId, digest: Digest },
    /// We have that ring, and none of our addresses is unsettled; its digest is that with us.
    Settled { ring: RingId, digest: Digest },
    /// We need a ring and may not found one: please do.
    Start,
    /// Promise to accept nothing below this ballot.
    Prepare { ballot: Ballot },
    /// Promised; and what was accepted before.
    Promise {
        ballot: Ballot,
        accepted: Option<(Ballot, Decree)>,
    },
    /// Accept this decree.
    Accept { ballot: Ballot, decree: Decree },
    /// Accepted.
    Accepted { ballot: Ballot },
    /// A higher ballot stands against yours.
    Outbid { ballot: Ballot, promised: Ballot },
    /// We do not vote.
    Abstain,
    /// Between the electors of a ring, and those they watch.
    Council { ring: RingId, say: Council },
}

/// Why a peer keeps what it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denial {
    /// It has nothing free, or uses the address itself.
    InUse,
    /// The address is set aside on every peer.
    Reserved,
    /// The ring is cut into as many ranges as it may have.
    RingFull,
    /// It has space, which too few electors acknowledged of late.
    Fenced,
}

impl Message {
    pub(crate) fn emit(&self, pool: Cidr) -> Vec<u8> {
        let mut w = Writer::new();
        write_pool(w.u8(VERSION), pool);
        w.u8(self.kind());
        match self {
            Self::Sync { nonce, digest } => {
                w.u32(*nonce).raw(&digest.to_bytes());
            }
            Self::Same { nonce } => {
                w.u32(*nonce);
            }
            Self::Ring { nonce, ring } => {
                w.u32(*nonce).bool(ring.is_some());
                if let Some(ring) = ring {
                    write_ring(&mut w, &SavedRing::from_ring(ring));
                }
            }
            Self::Space { ring, subnet } => write_cidr(write_id(&mut w, *ring), *subnet),
            Self::NoSpace { ring, subnet, why } => {
                write_cidr(write_id(&mut w, *ring), *subnet);
                w.u8(why.code());
            }
            Self::Claim { ring, addrs } => write_addrs(write_id(&mut w, *ring), addrs),
            Self::Taken { ring, addrs, why } => {
                write_addrs(write_id(&mut w, *ring), addrs);
                w.u8(why.code());
            }
            Self::Adopted { ring, digest } | Self::Settled { ring, digest } => {
                write_id(&mut w, *ring).raw(&digest.to_bytes());
            }
            Self::Start | Self::Abstain => {}
            Self::Council { ring, say } => say.write(write_id(&mut w, *ring)),
            Self::Prepare { ballot } | Self::Accepted { ballot } => write_ballot(&mut w, *ballot),
            Self::Promise { ballot, accepted } => {
                write_ballot(&mut w, *ballot);
                write_accepted(&mut w, accepted.as_ref());
            }
            Self::Accept { ballot, decree } => {
                write_ballot(&mut w, *ballot);
                write_decree(&mut w, decree);
            }
            Self::Outbid { ballot, promised } => {
                write_ballot(&mut w, *ballot);
                write_ballot(&mut w, *promised);
            }
        }
        w.into_bytes()
    }

    /// Reads a message about our pool.
    ///
    /// # Errors
    /// It is cut short, about another pool, of an unknown kind, or holds what cannot be.
    pub(crate) fn parse(bytes: &[u8], pool: Cidr) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes);
        let theirs = read_head(&mut r)?;
        if theirs != pool {
            return Err(strange("address pool", theirs.first()));
        }
        let kind = r.u8("address message kind")?;
        let message = Self::read(kind, &mut r, pool)?;
        r.finish("address message")?;
        Ok(message)
    }

    fn read(kind: u8, r: &mut Reader<'_>, pool: Cidr) -> Result<Self, Malformed> {
        Ok(match kind {
            SYNC => Self::Sync {
                nonce: r.u32("nonce")?,
                digest: Digest::from_bytes(r.array("ring digest")?),
            },
            SAME => Self::Same {
                nonce: r.u32("nonce")?,
            },
            RING => Self::Ring {
                nonce: r.u32("nonce")?,
                ring: match r.bool("ring flag")? {
                    true => Some(read_ring(r, pool)?),
                    false => None,
                },
            },
            SPACE => Self::Space {
                ring: read_id(r)?,
                subnet: read_cidr(r, pool.family(), "subnet")?,
            },
            NO_SPACE => Self::NoSpace {
                ring: read_id(r)?,
                subnet: read_cidr(r, pool.family(), "subnet")?,
                why: Denial::read(r)?,
            },
            CLAIM => Self::Claim {
                ring: read_id(r)?,
                addrs: read_addrs(r, pool.family())?,
            },
            TAKEN => Self::Taken {
                ring: read_id(r)?,
                addrs: read_addrs(r, pool.family())?,
                why: Denial::read(r)?,
            },
            ADOPTED => Self::Adopted {
                ring: read_id(r)?,
                digest: Digest::from_bytes(r.array("ring digest")?),
            },
            SETTLED => Self::Settled {
                ring: read_id(r)?,
                digest: Digest::from_bytes(r.array("ring digest")?),
            },
            START => Self::Start,
            ABSTAIN => Self::Abstain,
            COUNCIL => Self::Council {
                ring: read_id(r)?,
                say: Council::read(r, pool.family())?,
            },
            other => Self::read_vote(other, r)?,
        })
    }

    fn read_vote(kind: u8, r: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(match kind {
            PREPARE => Self::Prepare {
                ballot: read_ballot(r)?,
            },
            PROMISE => Self::Promise {
                ballot: read_ballot(r)?,
                accepted: read_accepted(r)?,
            },
            ACCEPT => Self::Accept {
                ballot: read_ballot(r)?,
                decree: read_decree(r)?,
            },
            ACCEPTED => Self::Accepted {
                ballot: read_ballot(r)?,
            },
            OUTBID => Self::Outbid {
                ballot: read_ballot(r)?,
                promised: read_ballot(r)?,
            },
            other => return Err(unknown("address message kind", other.into())),
        })
    }

    const fn kind(&self) -> u8 {
        match self {
            Self::Sync { .. } => SYNC,
            Self::Same { .. } => SAME,
            Self::Ring { .. } => RING,
            Self::Space { .. } => SPACE,
            Self::NoSpace { .. } => NO_SPACE,
            Self::Claim { .. } => CLAIM,
            Self::Taken { .. } => TAKEN,
            Self::Adopted { .. } => ADOPTED,
            Self::Settled { .. } => SETTLED,
            Self::Start => START,
            Self::Prepare { .. } => PREPARE,
            Self::Promise { .. } => PROMISE,
            Self::Accept { .. } => ACCEPT,
            Self::Accepted { .. } => ACCEPTED,
            Self::Outbid { .. } => OUTBID,
            Self::Abstain => ABSTAIN,
            Self::Council { .. } => COUNCIL,
        }
    }
}

impl Denial {
    const ALL: [Self; 4] = [Self::InUse, Self::Reserved, Self::RingFull, Self::Fenced];

    const fn code(self) -> u8 {
        self as u8 + 1
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let code = r.u8("reason of denial")?;
        let mut all = Self::ALL.into_iter();
        all.find(|denial| denial.code() == code)
            .ok_or_else(|| unknown("reason of denial", code.into()))
    }
}

/// The pool a message is about.
///
/// # Errors
/// It is cut short, of another version, or names what is no pool.
pub(crate) fn pool_of(bytes: &[u8]) -> Result<Cidr, Malformed> {
    read_head(&mut Reader::new(bytes))
}

fn read_head(r: &mut Reader<'_>) -> Result<Cidr, Malformed> {
    let version = r.u8("address message version")?;
    if version != VERSION {
        return Err(unknown("address message version", version.into()));
    }
    read_pool(r, "address pool")
}

/// A pool, with its family in front: that of all addresses that follow.
pub(crate) fn write_pool(w: &mut Writer, pool: Cidr) {
    write_family(w, pool.family());
    write_cidr(w, pool);
}

pub(crate) fn read_pool(r: &mut Reader<'_>, what: &'static str) -> Result<Cidr, Malformed> {
    let family = read_family(r)?;
    read_cidr(r, family, what)
}

pub(crate) fn write_family(w: &mut Writer, family: Family) {
    w.u8(match family {
        Family::V4 => 4,
        Family::V6 => 6,
    });
}

pub(crate) fn read_family(r: &mut Reader<'_>) -> Result<Family, Malformed> {
    match r.u8("family of addresses")? {
        4 => Ok(Family::V4),
        6 => Ok(Family::V6),
        other => Err(unknown("family of addresses", other.into())),
    }
}

pub(crate) fn write_cidr(w: &mut Writer, cidr: Cidr) {
    write_addr(w, cidr.first()).u8(cidr.prefix());
}

pub(crate) fn read_cidr(
    r: &mut Reader<'_>,
    family: Family,
    what: &'static str,
) -> Result<Cidr, Malformed> {
    let first = read_addr(r, family, what)?;
    let prefix = r.u8(what)?;
    Cidr::new(first, prefix).map_err(|_| unknown(what, prefix.into()))
}

pub(crate) fn write_addr(w: &mut Writer, addr: Addr) -> &mut Writer {
    match addr.to_v4() {
        Some(v4) => w.u32(v4.to_bits()),
        None => w.u128(addr.to_bits()),
    }
}

pub(crate) fn read_addr(
    r: &mut Reader<'_>,
    family: Family,
    what: &'static str,
) -> Result<Addr, Malformed> {
    let addr = match family {
        Family::V4 => Ipv4Addr::from_bits(r.u32(what)?).into(),
        Family::V6 => Addr::from_bits(r.u128(what)?),
    };
    // An IPv4 address in the long form would be written in the short one.
    (addr.family() == family)
        .then_some(addr)
        .ok_or_else(|| strange(what, addr))
}

pub(crate) fn write_accepted(w: &mut Writer, accepted: Option<&(Ballot, Decree)>) {
    w.bool(accepted.is_some());
    if let Some((ballot, decree)) = accepted {
        write_ballot(w, *ballot);
        write_decree(w, decree);
    }
}

pub(crate) fn read_accepted(r: &mut Reader<'_>) -> Result<Option<(Ballot, Decree)>, Malformed> {
    Ok(match r.bool("accepted flag")? {
        true => Some((read_ballot(r)?, read_decree(r)?)),
        false => None,
    })
}

pub(crate) fn write_ballot(w: &mut Writer, ballot: Ballot) {
    w.u64(ballot.round).peer(ballot.proposer);
}

pub(crate) fn read_ballot(r: &mut Reader<'_>) -> Result<Ballot, Malformed> {
    Ok(Ballot {
        round: r.u64("ballot")?,
        proposer: r.peer("ballot")?,
    })
}

fn write_decree(w: &mut Writer, decree: &Decree) {
    write_peers(w.u128(decree.bits), decree.founders.iter());
}

fn read_decree(r: &mut Reader<'_>) -> Result<Decree, Malformed> {
    let bits = r.u128("decree")?;
    let founders: BTreeSet<_> = read_peers(r, MAX_FOUNDERS)?.into_iter().collect();
    if founders.is_empty() {
        return Err(unknown("founders of the decree", 0));
    }
    Ok(Decree { bits, founders })
}

pub(crate) fn write_id(w: &mut Writer, id: RingId) -> &mut Writer {
    let kind = match id.kind {
        RingKind::Seed => 1,
        RingKind::Consensus => 2,
        RingKind::Lone => 3,
    };
    w.u8(kind).u128(id.bits)
}

pub(crate) fn read_id(r: &mut Reader<'_>) -> Result<RingId, Malformed> {
    let kind = match r.u8("kind of ring")? {
        1 => RingKind::Seed,
        2 => RingKind::Consensus,
        3 => RingKind::Lone,
        other => return Err(unknown("kind of ring", other.into())),
    };
    let bits = r.u128("ring id")?;
    Ok(RingId { kind, bits })
}

pub(crate) fn write_peers<'a>(w: &mut Writer, peers: impl ExactSizeIterator<Item = &'a PeerName>) {
    w.u32(u32::try_from(peers.len()).unwrap_or(u32::MAX));
    for peer in peers {
        w.peer(*peer);
    }
}

pub(crate) fn read_peers(r: &mut Reader<'_>, most: usize) -> Result<Vec<PeerName>, Malformed> {
    let count = bounded(r.u32("number of peers")?, most, "list of peers")?;
    (0..count).map(|_| r.peer("listed peer")).collect()
}

pub(crate) fn write_addrs(w: &mut Writer, addrs: &[Addr]) {
    w.u32(u32::try_from(addrs.len()).unwrap_or(u32::MAX));
    for addr in addrs {
        write_addr(w, *addr);
    }
}

pub(crate) fn read_addrs(r: &mut Reader<'_>, family: Family) -> Result<Vec<Addr>, Malformed> {
    let count = bounded(r.u32("number of addresses")?, MAX_ADDRS, "address list")?;
    (0..count)
        .map(|_| read_addr(r, family, "address"))
        .collect()
}

pub(crate) fn bounded(value: u32, limit: usize, what: &'static str) -> Result<usize, Malformed> {
    let value = usize::try_from(value).unwrap_or(usize::MAX);
    if value > limit {
        return Err(Malformed::TooLong { what, value, limit });
    }
    Ok(value)
}

pub(crate) const fn unknown(what: &'static str, value: u64) -> Malformed {
    Malformed::Unknown { what, value }
}

/// An address that cannot be where it is; its last 64 bits tell it from others.
pub(crate) fn strange(what: &'static str, addr: Addr) -> Malformed {
    let [.., a, b, c, d, e, f, g, h] = addr.to_bits().to_be_bytes();
    unknown(what, u64::from_be_bytes([a, b, c, d, e, f, g, h]))
}

const SYNC: u8 = 1;
const SAME: u8 = 2;
const RING: u8 = 3;
const SPACE: u8 = 4;
const NO_SPACE: u8 = 5;
const CLAIM: u8 = 6;
const TAKEN: u8 = 7;
const ADOPTED: u8 = 8;
const SETTLED: u8 = 9;
const START: u8 = 10;
const PREPARE: u8 = 11;
const PROMISE: u8 = 12;
const ACCEPT: u8 = 13;
const ACCEPTED: u8 = 14;
const OUTBID: u8 = 15;
const ABSTAIN: u8 = 16;
const COUNCIL: u8 = 17;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ring::{MAX_CLAIMS, MAX_COVERS, MAX_ENTRIES};

    /// The first is of IPv4, the other of IPv6.
    fn pools() -> [Cidr; 2] {
        ["10.32.0.0/12", "fd57:1::/64"].map(|text| text.parse().unwrap())
    }

    fn peer(n: u8) -> PeerName {
        PeerName::from_bytes([2, 0, 0, 0, 0, n])
    }

    fn addr(pool: Cidr, host: u128) -> Addr {
        Addr::from_bits(pool.first().to_bits() + host)
    }

    fn ring(pool: Cidr) -> Ring {
        let mut ring = Ring::seeded(pool, &BTreeSet::from([peer(1), peer(2), peer(3)]));
        ring.claim(addr(pool, 9), peer(7)).unwrap();
        ring
    }

    fn samples(pool: Cidr) -> Vec<Message> {
        let ring_id = ring(pool).id();
        let ballot = Ballot {
            round: 7,
            proposer: peer(1),
        };
        let decree = Decree {
            bits: 5,
            founders: BTreeSet::from([peer(1), peer(9)]),
        };
        let subnet = Cidr::containing(addr(pool, 1 << 18), pool.prefix() + 4).unwrap();
        let addrs = vec![addr(pool, 1), addr(pool, pool.size() - 1)];
        let digest = ring(pool).digest();
        vec![
            Message::Sync { nonce: 3, digest },
            Message::Same { nonce: u32::MAX },
            Message::Ring {
                nonce: 0,
                ring: None,
            },
            Message::Ring {
                nonce: 1,
                ring: Some(ring(pool)),
            },
            Message::Space {
                ring: ring_id,
                subnet,
            },
            Message::NoSpace {
                ring: ring_id,
                subnet,
                why: Denial::InUse,
            },
            Message::Claim {
                ring: ring_id,
                addrs: addrs.clone(),
            },
            Message::Taken {
                ring: ring_id,
                addrs,
                why: Denial::RingFull,
            },
            Message::Adopted {
                ring: ring_id,
                digest,
            },
            Message::Settled {
                ring: ring_id,
                digest,
            },
            Message::Start,
            Message::Prepare { ballot },
            Message::Promise {
                ballot,
                accepted: None,
            },
            Message::Promise {
                ballot,
                accepted: Some((ballot, decree.clone())),
            },
            Message::Accept { ballot, decree },
            Message::Accepted { ballot },
            Message::Outbid {
                ballot,
                promised: ballot,
            },
            Message::Abstain,
            Message::Council {
                ring: ring_id,
                say: Council::Refused { nonce: 1 },
            },
        ]
        .into_iter()
        .chain(electors::samples(
            ring_id,
            digest,
            [1, 9].map(|host| addr(pool, host)),
        ))
        .collect()
    }

    #[test]
    fn every_message_is_read_back() {
        for pool in pools() {
            for message in samples(pool) {
                let bytes = message.emit(pool);
                assert_eq!(Message::parse(&bytes, pool), Ok(message));
            }
        }
    }

    #[test]
    fn every_message_cut_short_or_too_long_is_refused() {
        let both = pools().map(|pool| samples(pool).into_iter().map(move |m| (pool, m)));
        for (pool, message) in both.into_iter().flatten() {
            let mut bytes = message.emit(pool);
            for len in 0..bytes.len() {
                assert!(Message::parse(&bytes[..len], pool).is_err(), "{message:?}");
            }
            bytes.push(0);
            assert!(Message::parse(&bytes, pool).is_err(), "{message:?}");
        }
    }

    #[test]
    fn a_message_about_another_pool_is_refused() {
        let [pool, other] = pools();
        for strange in ["10.0.0.0/8".parse().unwrap(), other] {
            let bytes = Message::Start.emit(strange);
            assert!(Message::parse(&bytes, pool).is_err());
        }
    }

    #[test]
    fn a_message_of_the_version_before_is_refused_as_such() {
        // As it was written for 10.32.0.0/12: version, pool, kind, nonce.
        let bytes = [2, 10, 32, 0, 0, 12, SAME, 0, 0, 0, 1];
        let refused = pool_of(&bytes).unwrap_err().to_string();
        assert!(refused.contains("address message version"), "{refused}");
    }

    #[test]
    fn an_ipv4_address_in_the_length_of_ipv6_is_refused() {
        let mut w = Writer::new();
        w.u8(VERSION).u8(6).u128(pools()[0].first().to_bits());
        w.u8(12).u8(START);
        assert!(pool_of(&w.into_bytes()).is_err());
    }

    #[test]
    fn a_ring_that_cannot_be_is_refused() {
        let [pool, _] = pools();
        let bytes = Message::Ring {
            nonce: 0,
            ring: Some(ring(pool)),
        }
        .emit(pool);
        let rulings = 4 + 4 + 3 * 6 + 4 + 4;
        let token = 8 + 4 + 1 + 17 + 4 + 3 * 6 + rulings + 4;
        let mut moved = bytes.clone();
        moved[token] ^= 1;
        assert!(Message::parse(&moved, pool).is_err());
        let mut huge = bytes;
        huge[token - 4] = 0xff;
        assert!(matches!(
            Message::parse(&huge, pool),
            Err(Malformed::TooLong { .. })
        ));
    }

    #[test]
    fn the_largest_ring_fits_a_control_message() {
        let largest = 300 + MAX_FOUNDERS * 6 + MAX_COVERS * 36 + MAX_ENTRIES * 38 + MAX_CLAIMS * 27;
        assert!(largest < weft_wire::control::MAX_CONTROL);
    }

    proptest! {
        #[test]
        fn any_bytes_parse_without_panic(bytes: Vec<u8>) {
            let mut whole = Vec::new();
            for pool in pools() {
                let _ = Message::parse(&bytes, pool);
                let mut head = Message::Start.emit(pool);
                head.pop();
                for kind in 0..24 {
                    whole.clear();
                    whole.extend(&head);
                    whole.push(kind);
                    whole.extend(&bytes);
                    let _ = Message::parse(&whole, pool);
                }
            }
        }

        #[test]
        fn a_message_with_a_byte_changed_parses_without_panic(
            which in 0..28_usize, v6: bool, at: prop::sample::Index, with: u8,
        ) {
            let pool = pools()[usize::from(v6)];
            let mut bytes = samples(pool)[which].emit(pool);
            let at = at.index(bytes.len());
            bytes[at] = with;
            if let Ok(message) = Message::parse(&bytes, pool) {
                let again = message.emit(pool);
                prop_assert_eq!(Message::parse(&again, pool), Ok(message));
            }
        }
    }
}
