//! When our addresses are not ours: two rings met, or somebody took our ranges over.
//!
//! Whenever the ring changes, each address held here that the ring gives to another peer becomes
//! *unsettled*: we claim it from its owner, who grants just that address if it is free, or keeps
//! it, and then our container has lost it (`Conflict`). Until all are settled nobody here
//! gets a new address, and no barrier opens.
//!
//! A peer that gives its ring up for another one also waits for its *companions*, the owners in the
//! old ring and all that are reachable at that time, because their containers are reachable through
//! us: each of them that is within reach is asked until it says that it has settled its own.
//!
//! An owner that cannot be reached holds nothing up: its containers cannot be reached either. For
//! [`GRACE`] after the change we wait even so, since who is reachable is only just being learned.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use weft_wire::PeerName;

use crate::addr::{Addr, Cidr};
use crate::allocator::Allocator;
use crate::asks::{Want, choose_donor};
use crate::digest::Digest;
use crate::message::{Denial, MAX_ADDRS, Message};
use crate::requests::Wish;
use crate::ring::{Ring, RingId};
use crate::space::{ContainerId, Hold};
use crate::sync::ANSWER;

/// How long an owner counts as reachable though we know no way to it yet.
const GRACE: Duration = Duration::from_secs(3);

/// Who and what has to settle.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settling {
    /// Until when owners count as reachable in any case.
    pub(crate) grace: Option<Instant>,
    /// Those that were with us when we gave a ring up and have not said they settled.
    pub(crate) companions: BTreeSet<PeerName>,
    /// When to ask the companions (again).
    pub(crate) ask_again: Option<Instant>,
    /// Peers that want to hear when we have settled.
    pub(crate) askers: BTreeSet<PeerName>,
    /// The last peer's answer to a question for space was that the ring is full.
    pub(crate) ring_full: bool,
}

impl Allocator {
    /// Gives our ring up for the one that survives.
    pub(crate) fn adopt_ring(&mut self, ours: &Ring, theirs: Ring, now: Instant) {
        let us = self.config.us;
        let owners = ours.owners().into_keys().filter(|peer| *peer != us);
        let live = self.live();
        self.settling.companions.extend(owners.chain(live));
        self.settling.ask_again = Some(now);
        self.settling.askers.clear();
        self.asks.clear();
        self.set_ring(theirs, now);
    }

    /// Compares what we hold with what the ring says is ours.
    pub(crate) fn review_holdings(&mut self, now: Instant) {
        let Some(ring) = &self.ring else {
            return;
        };
        let mut changes: Vec<(ContainerId, Addr, Hold)> = Vec::new();
        for (container, addr, holding) in self.space.iter() {
            let Some(owner) = ring.owner_of(addr) else {
                continue; // outside of the pool
            };
            let ours = owner == self.config.us;
            match (holding.hold, ours) {
                (Hold::Settled, false) => changes.push((container.clone(), addr, Hold::Unsettled)),
                (Hold::Unsettled, true) => changes.push((container.clone(), addr, Hold::Settled)),
                (Hold::Settled, true) | (Hold::Unsettled, false) | (Hold::Conflict(_), _) => {}
            }
        }
        for (container, addr, hold) in changes {
            self.space.set_hold(&container, addr, hold);
            if hold == Hold::Unsettled {
                self.settling.grace = Some(now + GRACE);
            }
        }
    }

    /// The addresses held here that are another peer's so far, and whose.
    pub(crate) fn unsettled(&self) -> impl Iterator<Item = (&ContainerId, Addr, PeerName)> {
        let held = self.space.iter();
        held.filter(|(_, _, holding)| holding.hold == Hold::Unsettled)
            .filter_map(|(container, addr, _)| {
                let owner = self.ring.as_ref()?.owner_of(addr)?;
                Some((container, addr, owner))
            })
    }

    /// Whether we wait for our own addresses or those of companions to be settled.
    pub(crate) fn settling(&self, now: Instant) -> bool {
        let mut companions = self.settling.companions.iter();
        self.settling_own(now) || companions.any(|peer| self.is_live(*peer))
    }

    fn settling_own(&self, now: Instant) -> bool {
        let grace = self.settling.grace.is_some_and(|until| now < until);
        let mut unsettled = self.unsettled();
        unsettled.any(|(_, _, owner)| grace || self.is_live(owner))
    }

    /// A peer gave its ring up for this one and waits for us. Most often we have not heard of that
    /// ring; then we ask for it like for any that was announced, so that many peers that give
    /// theirs up at once do not send it to each other.
    pub(crate) fn handle_adopted(
        &mut self,
        from: PeerName,
        id: RingId,
        digest: Digest,
        now: Instant,
    ) {
        if self.has_ring(id) {
            self.settling.askers.insert(from);
        } else {
            self.sync.suspect(from, digest, self.digest, now);
        }
    }

    pub(crate) fn note_denial(&mut self, why: Denial) {
        self.settling.ring_full = why == Denial::RingFull;
    }

    /// Asks companions, and answers those that ask us.
    pub(crate) fn settle(&mut self, now: Instant) {
        let Some(id) = self.ring.as_ref().map(Ring::id) else {
            return;
        };
        if self.settling.grace.is_some_and(|until| until <= now) {
            self.settling.grace = None;
        }
        if self.settling.ask_again.is_some_and(|at| at <= now) {
            let mut companions = self.settling.companions.clone();
            companions.retain(|peer| self.is_live(*peer));
            self.settling.ask_again = (!companions.is_empty()).then_some(now + ANSWER);
            for peer in companions {
                let (ring, digest) = (id, self.digest);
                self.send(peer, &Message::Adopted { ring, digest });
            }
        }
        if !self.settling_own(now) {
            for peer in std::mem::take(&mut self.settling.askers) {
                self.send(peer, &Message::Settled { ring: id });
            }
        }
    }

    /// When [`Self::settle`] has something to do again.
    pub(crate) fn settle_deadline(&self) -> Option<Instant> {
        self.settling
            .grace
            .into_iter()
            .chain(self.settling.ask_again)
            .min()
    }

    /// Asks other peers for what requests and unsettled addresses lack.
    pub(crate) fn ask(&mut self, now: Instant) {
        let Some(id) = self.ring.as_ref().map(Ring::id) else {
            return;
        };
        let wants = self.wants(now);
        self.asks.set_wants(&wants, now);
        let mut claims: BTreeMap<PeerName, Vec<Addr>> = BTreeMap::new();
        let mut messages = Vec::new();
        let mut asks = std::mem::take(&mut self.asks);
        for (want, ask) in asks.due(now) {
            match want {
                Want::Exact(addr) => {
                    let owner = self.ring.as_ref().and_then(|ring| ring.owner_of(addr));
                    ask.to = owner.filter(|owner| self.is_live(*owner));
                    if let Some(owner) = ask.to {
                        claims.entry(owner).or_default().push(addr);
                    }
                }
                Want::Space(subnet) => {
                    ask.to = self.donor(subnet, &ask.denied);
                    match ask.to {
                        Some(donor) => {
                            messages.push((donor, Message::Space { ring: id, subnet }));
                        }
                        None => ask.denied.clear(),
                    }
                }
            }
        }
        self.asks = asks;
        for (to, message) in messages {
            self.send(to, &message);
        }
        for (owner, addrs) in claims {
            for addrs in addrs.chunks(MAX_ADDRS) {
                let addrs = addrs.to_vec();
                self.send(owner, &Message::Claim { ring: id, addrs });
            }
        }
    }

    fn donor(&mut self, subnet: Cidr, denied: &BTreeSet<PeerName>) -> Option<PeerName> {
        let us = self.config.us;
        let live = self.live();
        let eligible =
            |peer: PeerName| peer != us && live.contains(&peer) && !denied.contains(&peer);
        choose_donor(self.ring.as_ref()?, subnet, eligible, &mut self.rng)
    }

    fn wants(&self, now: Instant) -> BTreeSet<Want> {
        let mut wants: BTreeSet<_> = self
            .unsettled()
            .map(|(_, addr, _)| Want::Exact(addr))
            .collect();
        if self.settling(now) {
            return wants;
        }
        for pending in &self.pending {
            match &pending.wish {
                Wish::Allocate { subnet, .. } => {
                    wants.insert(Want::Space(*subnet));
                }
                Wish::Claim { addr, .. } => {
                    wants.insert(Want::Exact(*addr));
                }
                Wish::Prime => {}
            }
        }
        wants
    }
}
