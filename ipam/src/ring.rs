//! Who owns which part of the pool: a map from tokens to entries, merged without ever asking.
//!
//! A *token* is the first address of a range; the range goes up to the next token, the last one up
//! to the end of the pool. Only the owner of a range changes it: it may cut it in pieces and give
//! pieces away, each time with a higher version. So two entries for one token that differ were
//! written one after the other, except after a takeover of a peer that was not dead, and the larger
//! of the two in the order (ruling, version, owner) wins in any case.
//!
//! A *claim* in the ring is a peer's word that a container of it holds an address whose owner it
//! cannot ask. Each is written by its claimant alone. Of several claimants of one address that can
//! reach each other the one with the smallest name keeps it until the owner can be asked.
//!
//! A takeover by the electors' ruling numbers the entries it writes with that ruling, which goes before
//! the version, and *covers* the part it took: entries of earlier rulings inside are void.
//!
//! How much of a range is *free* is advice for whoever looks for space: a stamped value that its
//! owner alone writes, merged too, but no part of the digest.
//!
//! Invariants: there is a token at the start of the pool and all are inside it, so every address
//! has exactly one owner; no entry is of an earlier ruling than what covers it. `merge` is total,
//! commutative, associative and idempotent.

mod claims;
mod covers;
mod roll;
mod takeover;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use thiserror::Error;
use weft_wire::PeerName;

use crate::addr::{Addr, Cidr, Position, Span};
use crate::digest::{Digest, Fnv};
use crate::saved::SavedRing;

pub use claims::Claim;
pub(crate) use claims::Claims;
use claims::check_claims;
pub(crate) use covers::{Covers, MAX_COVERS};
pub(crate) use roll::{MAX_ELECTORS, Roll, blocking, majority};
pub(crate) use takeover::Takeover;

/// The most entries a ring may have; up to 38 bytes each, so that with all else it fits a control
/// message ([`weft_wire::control::MAX_CONTROL`]).
pub const MAX_ENTRIES: usize = 18_000;
/// The most claims a ring may have, withdrawn ones included; up to 27 bytes each.
pub const MAX_CLAIMS: usize = 8_192;
/// The most founders a ring may have.
pub const MAX_FOUNDERS: usize = 4_096;
/// Nobody cuts ranges further from here on; what is left is room for cuts made elsewhere meanwhile.
const MAX_ENTRIES_TO_CUT: usize = MAX_ENTRIES / 2;
/// Nobody adds claims from here on, for the same reason.
const MAX_CLAIMS_TO_ADD: usize = MAX_CLAIMS / 2;
/// A takeover without a ruling skips versions, so that it wins over what the peer wrote last and we
/// never saw.
const TAKEOVER_STEP: u32 = 100;

/// How a ring came to be; of two rings that meet, the smaller kind survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RingKind {
    /// From a list of names given to every peer.
    Seed,
    /// Agreed by a majority.
    Consensus,
    /// Made by a peer that knew of no other.
    Lone,
}

/// The identity of a ring: rings with different ones were born apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RingId {
    /// How it was born.
    pub kind: RingKind,
    /// Random, or for a seeded ring a hash of the names.
    pub bits: u128,
}

impl fmt::Display for RingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            RingKind::Seed => "seed",
            RingKind::Consensus => "consensus",
            RingKind::Lone => "lone",
        };
        write!(f, "{kind}:{:032x}", self.bits)
    }
}

/// What the ring says about one range. Ordered as entries are merged: the larger one wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The ruling that took the range over the last time; 0 if none did.
    pub ruling: u32,
    /// Grows with every change of owner.
    pub version: u32,
    /// Who owns the range.
    pub owner: PeerName,
    /// Grows with every change of `free`.
    pub stamp: u32,
    /// How many addresses of the range the owner had free when it last said so; advice only.
    pub free: u32,
}

/// Why a range could not be given away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum GrantError {
    /// Part of it belongs to somebody else.
    #[error("the range is not all ours")]
    NotOwned,
    /// The ring is cut in too many pieces, or its versions are used up.
    #[error("the ring is cut into as many ranges as it may have")]
    Full,
}

/// Parts that do not make a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RingError {
    /// There is no entry for the start of the pool.
    #[error("the ring does not start where its pool starts")]
    Start,
    /// A token or claim lies outside of the pool.
    #[error("token or claim {0} is outside of the pool")]
    Outside(Addr),
    /// Tokens or claims are out of order or repeated.
    #[error("token or claim {0} is out of order")]
    Order(Addr),
    /// More entries, founders or claims than are allowed.
    #[error("the ring has too many entries, founders or claims")]
    TooMany,
    /// No founders, or out of order or repeated.
    #[error("the ring's founders are missing or out of order")]
    Founders,
    /// No electors, too many, or what was taken over is out of order.
    #[error("the ring's electors or what they ruled make no sense")]
    Electors,
    /// An entry is of an earlier ruling than the one that took its range over.
    #[error("token {0} is void")]
    Void(Addr),
}

/// The ring of one pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ring {
    pool: Cidr,
    id: RingId,
    founders: Vec<PeerName>,
    roll: Roll,
    covers: Covers,
    entries: BTreeMap<Addr, Entry>,
    claims: Claims,
}

impl Ring {
    /// The ring at its birth: the founders get aligned parts of the pool by repeated halving.
    pub(crate) fn born(pool: Cidr, id: RingId, founders: &BTreeSet<PeerName>) -> Self {
        let founders: Vec<_> = founders.iter().copied().take(MAX_FOUNDERS).collect();
        let mut entries = BTreeMap::new();
        divide(pool.span(), &founders, &mut entries);
        Self {
            pool,
            id,
            roll: Roll::born(&founders),
            founders,
            covers: Covers::default(),
            entries,
            claims: Claims::new(),
        }
    }

    /// The ring every peer makes that was given these names.
    pub(crate) fn seeded(pool: Cidr, names: &BTreeSet<PeerName>) -> Self {
        let hash = names.iter().fold(Fnv::new(), |h, n| h.write(&n.to_bytes()));
        let bits = hash.finish();
        let kind = RingKind::Seed;
        Self::born(pool, RingId { kind, bits }, names)
    }

    /// A ring from what came over the network or from the disk.
    ///
    /// # Errors
    /// An invariant of the ring does not hold.
    pub(crate) fn from_parts(pool: Cidr, parts: SavedRing) -> Result<Self, RingError> {
        let too_many = parts.entries.len() > MAX_ENTRIES
            || parts.founders.len() > MAX_FOUNDERS
            || parts.claims.len() > MAX_CLAIMS
            || parts.covers.len() > MAX_COVERS;
        if too_many {
            return Err(RingError::TooMany);
        }
        if parts.founders.is_empty() || !parts.founders.is_sorted_by(|a, b| a < b) {
            return Err(RingError::Founders);
        }
        let electors = parts.electors.into_iter().collect();
        let gone = parts.gone.into_iter().collect();
        let roll = Roll::from_parts(parts.rulings, electors, gone).ok_or(RingError::Electors)?;
        let covers = parts.covers.iter();
        let covers: Vec<_> = covers
            .map(|(first, last, ruling)| (Span::between(*first, *last), *ruling))
            .collect();
        let covers = Covers::from_parts(&covers).ok_or(RingError::Electors)?;
        Ok(Self {
            pool,
            id: parts.id,
            founders: parts.founders,
            roll,
            entries: check_entries(pool, &covers, &parts.entries)?,
            covers,
            claims: check_claims(pool, &parts.claims)?,
        })
    }

    pub(crate) const fn id(&self) -> RingId {
        self.id
    }

    pub(crate) fn founders(&self) -> &[PeerName] {
        &self.founders
    }

    pub(crate) const fn roll(&self) -> &Roll {
        &self.roll
    }

    pub(crate) const fn covers(&self) -> &Covers {
        &self.covers
    }

    pub(crate) const fn entries(&self) -> &BTreeMap<Addr, Entry> {
        &self.entries
    }

    /// Whether the ring is larger than any may be, which only a merge can make it.
    pub(crate) fn is_too_large(&self) -> bool {
        self.entries.len() > MAX_ENTRIES
            || self.claims.len() > MAX_CLAIMS
            || self.covers.len() > MAX_COVERS
    }

    /// Takes in what another peer knows of the same ring.
    pub(crate) fn merge(&mut self, other: &Self) {
        debug_assert_eq!(self.id, other.id, "rings born apart are not merged");
        for (token, theirs) in &other.entries {
            let ours = self.entries.entry(*token).or_insert(*theirs);
            *ours = (*ours).max(*theirs);
        }
        for (key, theirs) in &other.claims {
            let ours = self.claims.entry(*key).or_insert(*theirs);
            *ours = (*ours).max(*theirs);
        }
        self.roll.merge(&other.roll);
        self.covers.merge(&other.covers);
        self.drop_void();
        // Equal by birth; the smaller only so that the result never hangs on the order of merging.
        if other.founders < self.founders {
            self.founders.clone_from(&other.founders);
        }
        self.check();
    }

    /// Stands for all of the ring but the advice in it.
    pub(crate) fn digest(&self) -> Digest {
        let mut hash = Fnv::new()
            .write(&[self.id.kind as u8, self.pool.prefix()])
            .write_addr(self.pool.first())
            .write(&self.id.bits.to_be_bytes());
        for founder in &self.founders {
            hash = hash.write(&founder.to_bytes());
        }
        for (token, entry) in &self.entries {
            hash = hash
                .write_addr(*token)
                .write(&entry.owner.to_bytes())
                .write(&entry.ruling.to_be_bytes())
                .write(&entry.version.to_be_bytes());
        }
        hash = self.digest_of_rulings(hash);
        // Separates the two lists, whose items could be mistaken for each other.
        hash = hash.write(b"claims");
        for ((addr, claimant), claim) in &self.claims {
            hash = hash
                .write_addr(*addr)
                .write(&claimant.to_bytes())
                .write(&claim.stamp.to_be_bytes())
                .write(&[claim.held.into()]);
        }
        Digest(hash.finish())
    }

    /// All ranges in order.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (Span, Entry)> {
        let ends = self.entries.keys().skip(1).map(|token| token.position());
        let ends = ends.chain([self.pool.span().end]);
        self.entries.iter().zip(ends).map(|((token, entry), end)| {
            let start = token.position();
            (Span { start, end }, *entry)
        })
    }

    /// Who owns an address; `None` outside of the pool.
    pub(crate) fn owner_of(&self, addr: Addr) -> Option<PeerName> {
        let (_, entry) = self.entries.range(..=addr).next_back()?;
        self.pool.contains(addr).then_some(entry.owner)
    }

    /// A peer's ranges in order, neighbouring ones joined.
    pub(crate) fn owned_by(&self, peer: PeerName) -> Vec<Span> {
        let mut spans: Vec<Span> = Vec::new();
        for (span, _) in self.ranges().filter(|(_, entry)| entry.owner == peer) {
            match spans.last_mut() {
                Some(last) if last.end == span.start => last.end = span.end,
                Some(_) | None => spans.push(span),
            }
        }
        spans
    }

    /// How many addresses each owner has.
    pub(crate) fn owners(&self) -> BTreeMap<PeerName, u128> {
        let mut owners = BTreeMap::new();
        for (span, entry) in self.ranges() {
            *owners.entry(entry.owner).or_default() += span.size();
        }
        owners
    }

    /// Gives a range of ours away.
    ///
    /// # Errors
    /// Not all of it is ours, or the ring cannot be cut any further; nothing is changed then.
    pub(crate) fn grant(
        &mut self,
        span: Span,
        from: PeerName,
        to: PeerName,
    ) -> Result<(), GrantError> {
        let strange = |(other, entry): (Span, Entry)| {
            entry.owner != from && !other.intersect(span).is_empty()
        };
        if span.is_empty() || self.ranges().any(strange) {
            return Err(GrantError::NotOwned);
        }
        let used_up = |(other, entry): (Span, Entry)| {
            entry.version > u32::MAX - TAKEOVER_STEP && !other.intersect(span).is_empty()
        };
        if self.entries.len() + 2 > MAX_ENTRIES_TO_CUT || self.ranges().any(used_up) {
            return Err(GrantError::Full);
        }
        self.cut_at(span.start);
        self.cut_at(span.end);
        for (token, entry) in &mut self.entries {
            if span.contains(*token) {
                *entry = entry.owned_anew(to, 1);
            }
        }
        self.check();
        Ok(())
    }

    /// Writes down how much of its ranges a peer has free; only that peer may say so.
    pub(crate) fn advise(&mut self, us: PeerName, free: impl Fn(Span) -> u128) {
        let ranges: Vec<_> = self.ranges().filter(|(_, e)| e.owner == us).collect();
        for (span, _) in ranges {
            let free = u32::try_from(free(span)).unwrap_or(u32::MAX);
            let entry = self.entries.get_mut(&span.first());
            if let Some(entry) = entry.filter(|entry| entry.free != free) {
                entry.free = free;
                entry.stamp = entry.stamp.saturating_add(1);
            }
        }
    }

    /// Whether there is a token at the start of the pool and none outside of it; what
    /// `from_parts` makes sure of and nothing may lose.
    fn check(&self) {
        debug_assert_eq!(self.entries.keys().next(), Some(&self.pool.first()));
        debug_assert!(self.entries.keys().all(|t| self.pool.contains(*t)));
        debug_assert!(!self.founders.is_empty());
        let void = |(t, e): (&Addr, &Entry)| e.ruling < self.covers.at(t.position());
        debug_assert!(!self.entries.iter().any(void));
    }

    fn cut_at(&mut self, position: Position) {
        let token = Addr::from_bits(position);
        if !self.pool.contains(token) {
            return; // the end of the pool, where no range starts
        }
        let before = self.entries.range(..=token).next_back();
        if let Some((_, entry)) = before {
            let entry = Entry {
                stamp: 0,
                free: 0,
                ..*entry
            };
            self.entries.entry(token).or_insert(entry);
        }
    }
}

impl Entry {
    fn owned_anew(self, owner: PeerName, step: u32) -> Self {
        Self {
            ruling: self.ruling,
            version: self.version.saturating_add(step),
            owner,
            stamp: 0,
            free: 0,
        }
    }
}

fn check_entries(
    pool: Cidr,
    covers: &Covers,
    list: &[(Addr, Entry)],
) -> Result<BTreeMap<Addr, Entry>, RingError> {
    if list.first().map(|(token, _)| *token) != Some(pool.first()) {
        return Err(RingError::Start);
    }
    let mut entries = BTreeMap::new();
    for (token, entry) in list {
        if !pool.contains(*token) {
            return Err(RingError::Outside(*token));
        }
        if entries
            .last_key_value()
            .is_some_and(|(last, _)| last >= token)
        {
            return Err(RingError::Order(*token));
        }
        if entry.ruling < covers.at(token.position()) {
            return Err(RingError::Void(*token));
        }
        entries.insert(*token, *entry);
    }
    Ok(entries)
}

fn divide(span: Span, peers: &[PeerName], entries: &mut BTreeMap<Addr, Entry>) {
    let Some(owner) = peers.first() else {
        return;
    };
    if peers.len() == 1 || span.size() == 1 {
        let entry = Entry {
            ruling: 0,
            version: 1,
            owner: *owner,
            stamp: 0,
            free: u32::try_from(span.size()).unwrap_or(u32::MAX),
        };
        entries.insert(span.first(), entry);
        return;
    }
    let middle = span.start + span.size() / 2;
    let (low, high) = peers.split_at(peers.len().div_ceil(2));
    let lower = Span {
        end: middle,
        ..span
    };
    let upper = Span {
        start: middle,
        ..span
    };
    divide(lower, low, entries);
    divide(upper, high, entries);
}

#[cfg(test)]
mod tests;
