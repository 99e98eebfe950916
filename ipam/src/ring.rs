//! Who owns which part of the pool: a map from tokens to entries, merged without ever asking.
//!
//! A *token* is the first address of a range; the range goes up to the next token, the last one up
//! to the end of the pool. Only the owner of a range changes it: it may cut it in pieces and give
//! pieces away, each time with a higher version. So two entries for one token that differ were
//! written one after the other, except after a takeover of a peer that was not dead, and the larger
//! of the two in the order (version, owner) wins in any case.
//!
//! A *claim* in the ring is a peer's word that a container of it holds an address whose owner it
//! cannot ask. Each is written by its claimant alone. Of several claimants of one address that can
//! reach each other the one with the smallest name keeps it until the owner can be asked.
//!
//! How much of a range is *free* is advice for whoever looks for space: a stamped value that its
//! owner alone writes, merged too, but no part of the digest.
//!
//! Invariants: there is a token at the start of the pool and all are inside it, so every address
//! has exactly one owner. `merge` is total, commutative, associative and idempotent.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use thiserror::Error;
use weft_wire::PeerName;

use crate::addr::{Addr, Cidr, Span};
use crate::digest::{Digest, Fnv};

/// The most entries a ring may have; 22 bytes each, so that with founders and claims it fits a
/// control message ([`weft_wire::control::MAX_CONTROL`]).
pub const MAX_ENTRIES: usize = 36_000;
/// The most claims a ring may have, withdrawn ones included; 15 bytes each.
pub const MAX_CLAIMS: usize = 8_192;
/// The most founders a ring may have.
pub const MAX_FOUNDERS: usize = 4_096;
/// Nobody cuts ranges further from here on; what is left is room for cuts made elsewhere meanwhile.
const MAX_ENTRIES_TO_CUT: usize = MAX_ENTRIES / 2;
/// Nobody adds claims from here on, for the same reason.
const MAX_CLAIMS_TO_ADD: usize = MAX_CLAIMS / 2;
/// A takeover skips versions, so that it wins over what the peer wrote last and we never saw.
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
    /// Grows with every change of owner.
    pub version: u32,
    /// Who owns the range.
    pub owner: PeerName,
    /// Grows with every change of `free`.
    pub stamp: u32,
    /// How many addresses of the range the owner had free when it last said so; advice only.
    pub free: u32,
}

/// A peer's word on one address. Ordered as claims are merged: the larger one wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// Grows with every change.
    pub stamp: u32,
    /// Whether a container of the claimant holds the address.
    pub held: bool,
}

/// Whose word on which address.
pub(crate) type Claims = BTreeMap<(Addr, PeerName), Claim>;

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
}

/// The ring of one pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ring {
    pool: Cidr,
    id: RingId,
    founders: Vec<PeerName>,
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
            founders,
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
    pub(crate) fn from_parts(
        pool: Cidr,
        id: RingId,
        founders: Vec<PeerName>,
        entries: &[(Addr, Entry)],
        claims: &[(Addr, PeerName, Claim)],
    ) -> Result<Self, RingError> {
        let too_many = entries.len() > MAX_ENTRIES
            || founders.len() > MAX_FOUNDERS
            || claims.len() > MAX_CLAIMS;
        if too_many {
            return Err(RingError::TooMany);
        }
        if founders.is_empty() || !founders.is_sorted_by(|a, b| a < b) {
            return Err(RingError::Founders);
        }
        if entries.first().map(|(token, _)| *token) != Some(pool.first()) {
            return Err(RingError::Start);
        }
        let mut map = BTreeMap::new();
        for (token, entry) in entries {
            if !pool.contains(*token) {
                return Err(RingError::Outside(*token));
            }
            if map.last_key_value().is_some_and(|(last, _)| last >= token) {
                return Err(RingError::Order(*token));
            }
            map.insert(*token, *entry);
        }
        Ok(Self {
            pool,
            id,
            founders,
            entries: map,
            claims: check_claims(pool, claims)?,
        })
    }

    pub(crate) const fn id(&self) -> RingId {
        self.id
    }

    pub(crate) fn founders(&self) -> &[PeerName] {
        &self.founders
    }

    pub(crate) const fn entries(&self) -> &BTreeMap<Addr, Entry> {
        &self.entries
    }

    pub(crate) const fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Whether the ring is larger than any may be, which only a merge can make it.
    pub(crate) fn is_too_large(&self) -> bool {
        self.entries.len() > MAX_ENTRIES || self.claims.len() > MAX_CLAIMS
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
            .write(&self.pool.first().to_bits().to_be_bytes())
            .write(&self.id.bits.to_be_bytes());
        for founder in &self.founders {
            hash = hash.write(&founder.to_bytes());
        }
        for (token, entry) in &self.entries {
            hash = hash
                .write(&token.to_bits().to_be_bytes())
                .write(&entry.owner.to_bytes())
                .write(&entry.version.to_be_bytes());
        }
        // Separates the two lists, whose items could be mistaken for each other.
        hash = hash.write(b"claims");
        for ((addr, claimant), claim) in &self.claims {
            hash = hash
                .write(&addr.to_bits().to_be_bytes())
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
    pub(crate) fn owners(&self) -> BTreeMap<PeerName, u64> {
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

    /// Makes every range of one peer another's; says how many addresses that were.
    pub(crate) fn take_over(&mut self, from: PeerName, to: PeerName, by: Takeover) -> u64 {
        let taken = self.owned_by(from).into_iter().map(Span::size).sum();
        let step = match by {
            Takeover::Owner => 1,
            Takeover::Stranger => TAKEOVER_STEP,
        };
        for entry in self.entries.values_mut().filter(|e| e.owner == from) {
            *entry = entry.owned_anew(to, step);
        }
        taken
    }

    /// Gives our word that a container here holds an address.
    ///
    /// # Errors
    /// There are as many claims as there may be.
    pub(crate) fn claim(&mut self, addr: Addr, us: PeerName) -> Result<(), GrantError> {
        if self.claims.len() >= MAX_CLAIMS_TO_ADD && !self.claims.contains_key(&(addr, us)) {
            return Err(GrantError::Full);
        }
        self.set_claim(addr, us, true);
        Ok(())
    }

    /// Takes our word back.
    pub(crate) fn withdraw(&mut self, addr: Addr, us: PeerName) {
        if self.is_claimed_by(addr, us) {
            self.set_claim(addr, us, false);
        }
    }

    pub(crate) fn is_claimed_by(&self, addr: Addr, peer: PeerName) -> bool {
        self.claims.get(&(addr, peer)).is_some_and(|c| c.held)
    }

    /// Everybody whose word stands on an address.
    pub(crate) fn claimants(&self, addr: Addr) -> impl Iterator<Item = PeerName> + use<'_> {
        let all = (addr, PeerName::from_bytes([0; 6]))..=(addr, PeerName::from_bytes([0xff; 6]));
        let held = self.claims.range(all).filter(|(_, claim)| claim.held);
        held.map(|((_, claimant), _)| *claimant)
    }

    /// Writes down how much of its ranges a peer has free; only that peer may say so.
    pub(crate) fn advise(&mut self, us: PeerName, free: impl Fn(Span) -> u64) {
        let ranges: Vec<_> = self.ranges().filter(|(_, e)| e.owner == us).collect();
        for (span, _) in ranges {
            let free = u32::try_from(free(span)).unwrap_or(u32::MAX);
            let token = Span::addr_at(span.start);
            let entry = token.and_then(|token| self.entries.get_mut(&token));
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
    }

    fn set_claim(&mut self, addr: Addr, us: PeerName, held: bool) {
        let claim = self.claims.entry((addr, us));
        let claim = claim.or_insert(Claim { stamp: 0, held });
        claim.held = held;
        claim.stamp = claim.stamp.saturating_add(1);
    }

    fn cut_at(&mut self, position: u64) {
        let Some(token) = Span::addr_at(position).filter(|token| self.pool.contains(*token)) else {
            return; // the end of the pool, where no range starts
        };
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

/// Who gives a peer's ranges to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takeover {
    /// The peer itself, which knows its last version.
    Owner,
    /// Another peer, told by the operator that the owner is gone for good.
    Stranger,
}

impl Entry {
    fn owned_anew(self, owner: PeerName, step: u32) -> Self {
        Self {
            version: self.version.saturating_add(step),
            owner,
            stamp: 0,
            free: 0,
        }
    }
}

fn check_claims(pool: Cidr, list: &[(Addr, PeerName, Claim)]) -> Result<Claims, RingError> {
    let mut claims = Claims::new();
    for (addr, claimant, claim) in list {
        let key = (*addr, *claimant);
        if !pool.contains(*addr) {
            return Err(RingError::Outside(*addr));
        }
        if claims
            .last_key_value()
            .is_some_and(|(last, _)| *last >= key)
        {
            return Err(RingError::Order(*addr));
        }
        claims.insert(key, *claim);
    }
    Ok(claims)
}

fn divide(span: Span, peers: &[PeerName], entries: &mut BTreeMap<Addr, Entry>) {
    let (Some(owner), Some(token)) = (peers.first(), Span::addr_at(span.start)) else {
        return;
    };
    if peers.len() == 1 || span.size() == 1 {
        let entry = Entry {
            version: 1,
            owner: *owner,
            stamp: 0,
            free: u32::try_from(span.size()).unwrap_or(u32::MAX),
        };
        entries.insert(token, entry);
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
