//! What an allocator must find again after a restart, and the bytes of it.
//!
//! ```text
//!  | "WRNG" | format (1) | us (6) | pool (6 or 18) | ring flag (1), ring | allocations | acceptor | votes | aside | check (16) |
//! ```
//!
//! The formats before are read too: the second was of IPv4 alone, so that pool and allocations had no
//! family; the first had neither votes nor addresses set aside.
//!
//! The check is a hash of all before it, so that a file with a hole in it is not taken for a small
//! ring. Invariant: `parse(emit(x)) == x`, and nothing of a damaged state is used.

use std::time::Instant;

use thiserror::Error;
use weft_wire::codec::{Reader, Writer};
use weft_wire::{Malformed, PeerName};

use crate::addr::{Addr, Cidr, Family, Unfit};
use crate::allocator::Allocator;
use crate::aside::Aside;
use crate::birth::Init;
use crate::consensus::{Acceptor, Election};
use crate::council::{Council, Votes};
use crate::digest::Fnv;
use crate::event::{Config, Event};
use crate::message::{
    read_accepted, read_addr, read_ballot, read_cidr, read_family, read_first_ring, read_pool,
    read_ring, unknown, write_accepted, write_addr, write_ballot, write_family, write_pool,
    write_ring,
};
use crate::ring::{Claim, Entry, Ring, RingError, RingId};
use crate::rules::Rule;
use crate::space::{ContainerId, Hold, Holding};

const MAGIC: [u8; 4] = *b"WRNG";
const FORMAT: u8 = 3;
/// From before there was IPv6.
const SECOND_FORMAT: u8 = 2;
/// From before there were electors.
const FIRST_FORMAT: u8 = 1;
const CHECK_LEN: usize = 16;

/// The whole state of one pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// Whose state it is.
    pub us: PeerName,
    /// Of which pool.
    pub pool: Cidr,
    /// The ring as we last knew it, if there was one.
    pub ring: Option<SavedRing>,
    /// Who holds which address on this host.
    pub allocations: Vec<Allocation>,
    /// What we promised while founders were being agreed upon.
    pub acceptor: Acceptor,
    /// What we promised and voted for as an elector.
    pub votes: Votes,
    /// Addresses that peers had in use when we took them over.
    pub aside: Vec<Aside>,
}

/// A ring in plain parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedRing {
    /// Which ring it is.
    pub id: RingId,
    /// Who got a part of the pool at its birth, in order.
    pub founders: Vec<PeerName>,
    /// How many rulings of the electors there were.
    pub rulings: u32,
    /// The electors by the last of them, in order.
    pub electors: Vec<PeerName>,
    /// Electors that are gone for good since, and who was told so.
    pub gone: Vec<(PeerName, PeerName)>,
    /// First and last address of what was taken over, in order, and by which ruling.
    pub covers: Vec<(Addr, Addr, u32)>,
    /// The tokens, in order, and what is said of the ranges they start.
    pub entries: Vec<(Addr, Entry)>,
    /// The claims, in order of address and claimant.
    pub claims: Vec<(Addr, PeerName, Claim)>,
}

/// One address in the hands of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// Who holds it.
    pub container: ContainerId,
    /// The address.
    pub addr: Addr,
    /// Prefix length of the subnet it was asked for in.
    pub prefix: u8,
    /// The peer whose address it really is, if the container lost it.
    pub conflict: Option<PeerName>,
}

/// A state that cannot be used, or a configuration that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LoadError {
    /// The state is about another pool.
    #[error(
        "the saved ring is for the range {saved}, not {pool}: start with that range, or reset first"
    )]
    OtherPool {
        /// The pool in the state.
        saved: Cidr,
        /// The pool asked for.
        pool: Cidr,
    },
    /// The state is another peer's.
    #[error("the saved ring is of peer {saved}, not {us}: start under that name, or reset first")]
    OtherPeer {
        /// The peer in the state.
        saved: PeerName,
        /// The peer we are.
        us: PeerName,
    },
    /// The ring in the state is none.
    #[error("the saved ring is damaged: put back a good copy of it, or reset")]
    Ring(#[from] RingError),
    /// An allocation in the state cannot be.
    #[error(
        "the saved allocation of {addr} is damaged or there twice: put back a good copy of the state, or reset"
    )]
    Allocation {
        /// Its address.
        addr: Addr,
    },
    /// Containers cannot have addresses of the pool.
    #[error("invalid range {pool} - {why}")]
    Unfit {
        /// The pool.
        pool: Cidr,
        /// Why not.
        why: Unfit,
    },
    /// Two pools have addresses in common.
    #[error("the ranges {pool} and {other} overlap: give the larger one only")]
    Overlap {
        /// One.
        pool: Cidr,
        /// The other.
        other: Cidr,
    },
    /// Seeds were to found the ring, and there are none.
    #[error("seed mode requires peer name list")]
    NoSeeds,
    /// The default subnet cannot be allocated from.
    #[error(
        "the default subnet {subnet} has no address in the range {pool}, or fewer than {}",
        Cidr::MIN_SUBNET
    )]
    DefaultSubnet {
        /// The subnet.
        subnet: Cidr,
        /// The pool.
        pool: Cidr,
    },
}

impl SavedRing {
    pub(crate) fn from_ring(ring: &Ring) -> Self {
        let entries = ring.entries().iter();
        let claims = ring.claims().iter();
        let roll = ring.roll();
        let covers = ring.covers().iter().filter_map(|(span, ruling)| {
            let (first, last) = span.ends()?;
            Some((first, last, ruling))
        });
        Self {
            id: ring.id(),
            founders: ring.founders().to_vec(),
            rulings: roll.rulings(),
            electors: roll.named().iter().copied().collect(),
            gone: roll.gone().iter().map(|(p, by)| (*p, *by)).collect(),
            covers: covers.collect(),
            entries: entries.map(|(token, entry)| (*token, *entry)).collect(),
            claims: claims.map(|((a, p), claim)| (*a, *p, *claim)).collect(),
        }
    }

    pub(crate) fn into_ring(self, pool: Cidr) -> Result<Ring, RingError> {
        Ring::from_parts(pool, self)
    }
}

impl Saved {
    /// The state's bytes.
    pub fn emit(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.raw(&MAGIC).u8(FORMAT).peer(self.us);
        write_pool(&mut w, self.pool);
        w.bool(self.ring.is_some());
        if let Some(ring) = &self.ring {
            write_ring(&mut w, ring);
        }
        w.u32(u32::try_from(self.allocations.len()).unwrap_or(u32::MAX));
        for allocation in &self.allocations {
            w.text(allocation.container.as_str());
            // What is of no pool may be of another family than this one.
            write_family(&mut w, allocation.addr.family());
            write_addr(&mut w, allocation.addr).u8(allocation.prefix);
            w.bool(allocation.conflict.is_some());
            if let Some(peer) = allocation.conflict {
                w.peer(peer);
            }
        }
        w.bool(self.acceptor.promised.is_some());
        if let Some(ballot) = self.acceptor.promised {
            write_ballot(&mut w, ballot);
        }
        write_accepted(&mut w, self.acceptor.accepted.as_ref());
        self.votes.write(&mut w);
        Aside::write_all(&self.aside, &mut w);
        let mut bytes = w.into_bytes();
        let check = Fnv::new().write(&bytes).finish();
        bytes.extend(check.to_be_bytes());
        bytes
    }

    /// The format of a state that none of ours is; `None` if it is one we read, or no state at all.
    pub fn unknown_format(bytes: &[u8]) -> Option<u8> {
        let (format, _) = bytes.strip_prefix(&MAGIC)?.split_first()?;
        Some(*format).filter(|format| *format > FORMAT)
    }

    /// Reads a state.
    ///
    /// # Errors
    /// It is cut short, changed, or of another format.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let what = "saved ring";
        let (body, check) = bytes
            .split_last_chunk::<CHECK_LEN>()
            .ok_or(Malformed::Truncated { what })?;
        if Fnv::new().write(body).finish() != u128::from_be_bytes(*check) {
            return Err(unknown("check of the saved ring", 0));
        }
        let mut r = Reader::new(body);
        if r.array::<4>(what)? != MAGIC {
            return Err(unknown("start of the saved ring", 0));
        }
        let format = r.u8("format of the saved ring")?;
        if !(FIRST_FORMAT..=FORMAT).contains(&format) {
            return Err(unknown("format of the saved ring", format.into()));
        }
        let saved = Self::read(&mut r, format)?;
        r.finish(what)?;
        Ok(saved)
    }

    fn read(r: &mut Reader<'_>, format: u8) -> Result<Self, Malformed> {
        let us = r.peer("saved peer")?;
        let pool = match format {
            FIRST_FORMAT | SECOND_FORMAT => read_cidr(r, Family::V4, "saved pool")?,
            _ => read_pool(r, "saved pool")?,
        };
        let first = format == FIRST_FORMAT;
        let ring = match (r.bool("saved ring flag")?, first) {
            (true, true) => Some(read_first_ring(r, pool)?),
            (true, false) => Some(read_ring(r, pool)?),
            (false, _) => None,
        };
        let count = r.u32("number of allocations")?;
        let mut allocations = Vec::new();
        for _ in 0..count {
            allocations.push(Allocation::read(r, format)?);
        }
        let promised = match r.bool("promise flag")? {
            true => Some(read_ballot(r)?),
            false => None,
        };
        let accepted = read_accepted(r)?;
        let (votes, aside) = match first {
            true => (Votes::default(), Vec::new()),
            false => (
                Votes::read(r, pool.family())?,
                Aside::read_all(r, pool.family())?,
            ),
        };
        Ok(Self {
            us,
            pool,
            ring: ring.as_ref().map(SavedRing::from_ring),
            allocations,
            acceptor: Acceptor { promised, accepted },
            votes,
            aside,
        })
    }
}

impl Allocation {
    fn read(r: &mut Reader<'_>, format: u8) -> Result<Self, Malformed> {
        let container = ContainerId::new(r.text(ContainerId::MAX, "container id")?);
        let family = match format {
            FIRST_FORMAT | SECOND_FORMAT => Family::V4,
            _ => read_family(r)?,
        };
        Ok(Self {
            container,
            addr: read_addr(r, family, "allocated address")?,
            prefix: r.u8("allocated prefix")?,
            conflict: match r.bool("conflict flag")? {
                true => Some(r.peer("conflicting peer")?),
                false => None,
            },
        })
    }
}

impl Allocator {
    /// All that must be found again, as it is at this moment.
    pub(crate) fn saved(&self) -> Saved {
        let allocations = self.space.iter().map(|(container, addr, holding)| {
            let conflict = match holding.hold {
                Hold::Settled | Hold::Unsettled => None,
                Hold::Conflict(peer) => Some(peer),
            };
            Allocation {
                container: container.clone(),
                addr,
                prefix: holding.prefix,
                conflict,
            }
        });
        Saved {
            us: self.config.us,
            pool: self.config.pool,
            ring: self.ring.as_ref().map(SavedRing::from_ring),
            allocations: allocations.collect(),
            acceptor: self.election.acceptor().clone(),
            votes: self.council.votes().clone(),
            aside: self.space.aside(self.clock.last()),
        }
    }

    /// Puts a saved state in place of ours, which is new.
    pub(crate) fn load(&mut self, saved: Saved, now: Instant) -> Result<(), LoadError> {
        let (us, pool) = (self.config.us, self.config.pool);
        if saved.us != us {
            let saved = saved.us;
            return Err(LoadError::OtherPeer { saved, us });
        }
        if saved.pool != pool {
            let saved = saved.pool;
            return Err(LoadError::OtherPool { saved, pool });
        }
        for allocation in saved.allocations {
            self.load_allocation(allocation)?;
        }
        self.election = Election::new(saved.acceptor);
        if self.config.rules.keep(Rule::Votes) {
            self.council = Council::new(saved.votes);
        }
        self.space.load_aside(saved.aside, self.clock.uptime(now));
        if let Some(ring) = saved.ring {
            let ring = ring.into_ring(pool)?;
            self.digest = ring.digest();
            self.ring = Some(ring);
            self.review_electors(now);
            self.review_holdings(now);
            self.announce();
        }
        self.flush();
        Ok(())
    }

    /// Takes all holdings of another pool's allocator over that are in this pool, as if we had found
    /// them on the disk: what the ring says is not ours is claimed.
    pub(crate) fn take_holdings(&mut self, other: &mut Self, now: Instant) {
        let pool = self.config.pool;
        let held = other.space.iter();
        let held: Vec<_> = held
            .filter(|(_, addr, _)| pool.contains(*addr))
            .map(|(container, addr, holding)| (container.clone(), addr, holding))
            .collect();
        if held.is_empty() {
            return;
        }
        for (container, addr, holding) in held {
            // Two containers may share an address of no pool; the first one keeps it.
            if self.space.holder(addr).is_none_or(|by| *by == container) {
                let hold = match holding.hold {
                    Hold::Settled | Hold::Unsettled => Hold::Settled,
                    lost @ Hold::Conflict(_) => lost,
                };
                other.space.free(&container, addr);
                self.space
                    .hold(&container, addr, Holding { hold, ..holding });
            }
        }
        self.dirty();
        self.review_holdings(now);
        self.work(now);
        other.dirty();
        other.work(now);
    }

    fn load_allocation(&mut self, allocation: Allocation) -> Result<(), LoadError> {
        let Allocation {
            container,
            addr,
            prefix,
            conflict,
        } = allocation;
        let twice = self.space.holder(addr).is_some() || self.space.get(&container, addr).is_some();
        if twice || Cidr::containing(addr, prefix).is_none() {
            return Err(LoadError::Allocation { addr });
        }
        let hold = conflict.map_or(Hold::Settled, Hold::Conflict);
        self.space.hold(&container, addr, Holding { prefix, hold });
        if let Some(holder) = conflict {
            self.effect(Event::Conflict {
                container,
                addr,
                holder,
            });
        }
        Ok(())
    }
}

/// Whether a configuration makes sense.
pub(crate) fn check_config(config: &Config) -> Result<(), LoadError> {
    let pool = config.pool;
    let subnet = config.default_subnet;
    if let Some(why) = pool.unfit() {
        return Err(LoadError::Unfit { pool, why });
    }
    if subnet.size() < Cidr::MIN_SUBNET || !subnet.overlaps(pool) {
        return Err(LoadError::DefaultSubnet { subnet, pool });
    }
    if matches!(&config.init, Init::Seed(names) if names.is_empty()) {
        return Err(LoadError::NoSeeds);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::consensus::{Ballot, Decree};
    use crate::council::Ruling;

    fn sample() -> Saved {
        sample_of("10.32.0.0/12", "10.32.0.1")
    }

    fn sample_of(pool: &str, held: &str) -> Saved {
        let us = PeerName::from_bytes([2, 0, 0, 0, 0, 1]);
        let pool: Cidr = pool.parse().unwrap();
        let ring = Ring::seeded(pool, &BTreeSet::from([us]));
        let allocation = |name: &str, conflict| Allocation {
            container: ContainerId::new(name),
            addr: held.parse().unwrap(),
            prefix: 12,
            conflict,
        };
        let ballot = Ballot {
            round: 3,
            proposer: us,
        };
        let founders = BTreeSet::from([us]);
        let decree = Decree { bits: 1, founders };
        let ruling = Ruling {
            taken: BTreeSet::from([us]),
            heir: us,
            electors: BTreeSet::from([us]),
            spans: vec![(pool.first(), pool.first())],
        };
        Saved {
            us,
            pool,
            ring: Some(SavedRing::from_ring(&ring)),
            allocations: vec![allocation("a", None), allocation("", Some(us))],
            acceptor: Acceptor {
                promised: Some(ballot),
                accepted: Some((ballot, decree)),
            },
            votes: Votes {
                about: Some((ring.id(), 4)),
                acceptor: Acceptor {
                    promised: Some(ballot),
                    accepted: Some((ballot, ruling)),
                },
            },
            aside: vec![Aside {
                peers: vec![us],
                addrs: vec![pool.first()],
                seconds: 7,
            }],
        }
    }

    #[test]
    fn what_is_saved_is_read_back() {
        let empty = Saved {
            ring: None,
            allocations: Vec::new(),
            acceptor: Acceptor::default(),
            votes: Votes::default(),
            aside: Vec::new(),
            ..sample()
        };
        // What is of no pool is kept beside any, whatever its family.
        let six = sample_of("fd57:1::/64", "fd57:1::7");
        let mixed = [("10.32.0.0/12", "fd57::7"), ("fd57:1::/64", "10.1.1.1")];
        let [one, other] = mixed.map(|(pool, held)| sample_of(pool, held));
        for saved in [sample(), empty, six, one, other] {
            assert_eq!(Saved::parse(&saved.emit()), Ok(saved));
        }
    }

    #[test]
    fn a_state_of_the_first_format_is_read() {
        let saved = Saved {
            votes: Votes::default(),
            aside: Vec::new(),
            ..sample()
        };
        let ring = saved.ring.clone().unwrap();
        let entry = ring.entries[0].1;
        let mut w = Writer::new();
        crate::message::write_cidr(w.raw(&MAGIC).u8(1).peer(saved.us), saved.pool);
        w.bool(true).u8(1).u128(ring.id.bits);
        w.u32(1).peer(saved.us).u32(1);
        write_addr(&mut w, saved.pool.first()).u32(entry.version);
        w.peer(entry.owner).u32(entry.stamp).u32(entry.free).u32(0);
        w.u32(2);
        for (name, flag) in [("a", false), ("", true)] {
            write_addr(w.text(name), saved.allocations[0].addr);
            w.u8(12).bool(flag);
        }
        w.peer(saved.us).bool(true);
        let (ballot, decree) = saved.acceptor.accepted.clone().unwrap();
        write_ballot(&mut w, ballot);
        write_accepted(&mut w, Some(&(ballot, decree)));
        let mut bytes = w.into_bytes();
        bytes.extend(Fnv::new().write(&bytes).finish().to_be_bytes());
        assert_eq!(Saved::parse(&bytes), Ok(saved));
    }

    /// As a router from before there was IPv6 wrote it, for 10.32.0.0/24.
    const OLD: &str = "\
         57524e47020200000000010a200000180101a372a3ce7a09c6bcf299dd5258216a4800000002020000000001\
         02000000000200000000000000020200000000010200000000020000000000000000000000020a2000000000\
         00000000000102000000000100000000000000800a2000800000000000000001020000000002000000000000\
         0080000000000000000300026462c0a80909100000037765620a200007180000036f6c640a2000c818010200\
         0000000200000101a372a3ce7a09c6bcf299dd5258216a480000000400010000000000000003020000000001\
         0000000102000000000102000000000100000001020000000001000000010a2000000a20007f000000010000\
         0001020000000001000000010a200009000000000000000704c1438fd19a82acf5f94c7188637433";

    #[test]
    fn a_state_of_the_second_format_is_read_and_written_anew() {
        let hex = OLD.as_bytes().chunks(2);
        let hex = hex.map(|pair| std::str::from_utf8(pair).unwrap());
        let bytes: Vec<_> = hex
            .map(|pair| u8::from_str_radix(pair, 16).unwrap())
            .collect();
        assert_eq!(bytes[4], SECOND_FORMAT);
        let saved = Saved::parse(&bytes).unwrap();
        let [us, other] = [1, 2].map(|n| PeerName::from_bytes([2, 0, 0, 0, 0, n]));
        assert_eq!(
            (saved.us, saved.pool.to_string()),
            (us, "10.32.0.0/24".into())
        );
        let held: Vec<_> = saved
            .allocations
            .iter()
            .map(|a| {
                (
                    a.container.as_str(),
                    a.addr.to_string(),
                    a.prefix,
                    a.conflict,
                )
            })
            .collect();
        assert_eq!(
            held,
            [
                ("db", "192.168.9.9".into(), 16, None),
                ("web", "10.32.0.7".into(), 24, None),
                ("old", "10.32.0.200".into(), 24, Some(other)),
            ]
        );
        let ring = saved.ring.clone().unwrap();
        let owners = ring.entries.iter().map(|(t, e)| (t.to_string(), e.owner));
        let owners: Vec<_> = owners.collect();
        assert_eq!(
            owners,
            [("10.32.0.0".into(), us), ("10.32.0.128".into(), other)]
        );
        let (_, ruling) = saved.votes.acceptor.accepted.clone().unwrap();
        let spans =
            [("10.32.0.0", "10.32.0.127")].map(|(a, b)| (a.parse().unwrap(), b.parse().unwrap()));
        assert_eq!(ruling.spans, spans);
        assert_eq!(saved.aside[0].addrs, ["10.32.0.9".parse().unwrap()]);
        assert_eq!(Saved::parse(&saved.emit()), Ok(saved));
    }

    #[test]
    fn a_state_cut_short_anywhere_is_refused() {
        let bytes = sample().emit();
        for len in 0..bytes.len() {
            assert!(Saved::parse(&bytes[..len]).is_err(), "cut at {len}");
        }
    }

    proptest! {
        #[test]
        fn a_state_with_a_bit_changed_is_refused(at: prop::sample::Index, bit in 0..8_u8) {
            let mut bytes = sample().emit();
            let at = at.index(bytes.len());
            bytes[at] ^= 1_u8 << bit;
            prop_assert!(Saved::parse(&bytes).is_err());
        }

        #[test]
        fn any_bytes_parse_without_panic(mut bytes: Vec<u8>) {
            let _ = Saved::parse(&bytes);
            let mut whole = MAGIC.to_vec();
            whole.append(&mut bytes);
            whole.extend(Fnv::new().write(&whole).finish().to_be_bytes());
            let _ = Saved::parse(&whole);
        }
    }
}
