//! When our addresses are not ours: two rings met, or somebody took our ranges over.
//!
//! Whenever the ring changes, each address held here that the ring gives to another peer becomes
//! *unsettled*: we claim it from its owner, who grants just that address if it is free, or keeps
//! it, and then our container has lost it (`Conflict`). Until all are settled nobody here
//! gets a new address, and no barrier opens.
//!
//! A peer that gives its ring up for another one also waits for its *companions*, the owners in the
//! old ring and all that are reachable at that time, because their containers are reachable through
//! us: each of them that is within reach is asked until it says that it has settled its own. So does
//! a peer that hears of a takeover for those within reach that were taken over.
//!
//! An owner that cannot be reached holds nothing up: its containers cannot be reached either. But
//! other peers may hold the same address and be waiting for the same owner. So each puts its claim
//! in the ring, asks its closed barriers' neighbours for theirs again, and waits until no claimant
//! within reach is left beside it: the smallest name stays, the others lose the address and
//! withdraw their claims. An owner that comes back and holds a claimed address itself opens no
//! barrier before the claimant has heard so.
//!
//! For [`GRACE`] after an address became unsettled, a claim was put in the ring or a connection
//! came up, everybody counts as reachable: both what we do not know yet of the topology and what
//! others do not know yet of our claim take a moment to get through, and both must.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use weft_wire::PeerName;

use crate::addr::{Addr, Cidr};
use crate::allocator::Allocator;
use crate::asks::{Ask, Want, choose_donor};
use crate::digest::Digest;
use crate::event::Event;
use crate::message::{Denial, MAX_ADDRS, Message};
use crate::requests::Wish;
use crate::ring::{Ring, RingId};
use crate::space::{ContainerId, Hold};
use crate::sync::ANSWER;

/// How long everybody counts as reachable though we know no way to them yet: twice what a change of
/// the ring or the topology needs, at the most, to get through.
const GRACE: Duration = Duration::from_secs(3);

/// How many digests of rings are kept that ours holds all of; a ring changes a few times a second
/// at most while many settle.
const MAX_KNOWN: usize = 64;

/// Who and what has to settle.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settling {
    /// Until when owners count as reachable in any case.
    pub(crate) grace: Option<Instant>,
    /// Those that were with us when we gave a ring up, until they say they settled and we know
    /// all they knew when they said so, of which this is the digest.
    pub(crate) companions: BTreeMap<PeerName, Option<Digest>>,
    /// Digests of rings that ours holds all of; the last few.
    known: VecDeque<Digest>,
    /// When to ask the companions (again).
    pub(crate) ask_again: Option<Instant>,
    /// Peers that want to hear when we have settled.
    pub(crate) askers: BTreeSet<PeerName>,
    /// The last peer's answer to a question for space was that the ring is full.
    pub(crate) ring_full: bool,
}

/// What is to become of the unsettled addresses.
#[derive(Default)]
struct Verdict {
    /// Containers that lose theirs, and to whom.
    lost: Vec<(ContainerId, Addr, PeerName)>,
    /// Addresses that go on waiting.
    kept: BTreeSet<Addr>,
    /// A claim was put in the ring.
    added: bool,
}

impl Settling {
    /// Ours holds all that a ring of this digest does.
    pub(crate) fn know(&mut self, digest: Digest) {
        if !self.known.contains(&digest) {
            self.known.push_back(digest);
            if self.known.len() > MAX_KNOWN {
                self.known.pop_front();
            }
        }
        self.forget_known_companions();
    }

    fn forget_known_companions(&mut self) {
        let known = |digest: Digest| self.known.contains(&digest);
        self.companions
            .retain(|_, said| said.is_none_or(|said| !known(said)));
    }
}

impl Allocator {
    /// Gives our ring up for the one that survives.
    pub(crate) fn adopt_ring(&mut self, ours: &Ring, theirs: Ring, now: Instant) {
        let us = self.config.us;
        let owners = ours.owners().into_keys().filter(|peer| *peer != us);
        let live = self.live();
        // Whatever companions said before, they said of another ring.
        let all = owners.chain(live).map(|peer| (peer, None));
        self.settling.companions.extend(all);
        for said in self.settling.companions.values_mut() {
            *said = None;
        }
        self.settling.known.clear();
        self.settling.ask_again = Some(now);
        self.settling.askers.clear();
        self.asks.clear();
        self.set_ring(theirs, now);
    }

    /// We hear of a takeover. Peers on our side that lost ranges by it are alive, so their containers
    /// may have addresses that were given out again on the side it was decided on.
    pub(crate) fn wait_for_losers(&mut self, merged: &Ring, now: Instant) {
        let Some(ring) = &self.ring else {
            return;
        };
        if merged.roll().rulings() <= ring.roll().rulings() {
            return;
        }
        let losers = merged.losers(ring).into_iter();
        let losers: Vec<_> = losers.filter(|peer| self.is_live(*peer)).collect();
        if !losers.is_empty() {
            self.settling.ask_again = Some(now);
        }
        let all = losers.into_iter().map(|peer| (peer, None));
        self.settling.companions.extend(all);
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
                self.begin_grace(now);
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
        let mut companions = self.settling.companions.keys();
        self.settling_own(now) || companions.any(|peer| self.is_live(*peer))
    }

    /// Whether some claim in the ring has to be decided yet: by the owner of the address, or
    /// between claimants. Only those within reach count.
    pub(crate) fn undecided(&self, now: Instant) -> bool {
        let Some(ring) = &self.ring else {
            return false;
        };
        let near = |peer: PeerName| peer == self.config.us || self.is_near(peer, now);
        let held = ring.claims().iter().filter(|(_, claim)| claim.held);
        let mut claims = held.filter(|((_, claimant), _)| near(*claimant));
        claims.any(|((addr, claimant), _)| {
            let owner = ring.owner_of(*addr).filter(|owner| owner != claimant);
            let others = ring.claimants(*addr).filter(|other| other != claimant);
            owner.into_iter().chain(others).any(near)
        })
    }

    /// The peer within reach, other than `asker`, that claims an address and goes before it.
    pub(crate) fn rival(&self, addr: Addr, asker: PeerName, now: Instant) -> Option<PeerName> {
        let ring = self.ring.as_ref()?;
        let claimed = ring.is_claimed_by(addr, asker);
        let mut others = ring.claimants(addr).filter(|peer| *peer != asker);
        others.find(|peer| self.is_near(*peer, now) && !(claimed && asker < *peer))
    }

    /// Addresses that are not to be given out, because a container of a peer within reach has them.
    pub(crate) fn claimed_by_others(&self, now: Instant) -> BTreeSet<Addr> {
        let us = self.config.us;
        let claims = self.ring.iter().flat_map(|ring| ring.claims());
        let held = claims.filter(|((_, peer), claim)| claim.held && *peer != us);
        held.filter(|((_, peer), _)| self.is_near(*peer, now))
            .map(|((addr, _), _)| *addr)
            .collect()
    }

    fn is_near(&self, peer: PeerName, now: Instant) -> bool {
        self.in_grace(now) || self.is_live(peer)
    }

    fn in_grace(&self, now: Instant) -> bool {
        self.settling.grace.is_some_and(|until| now < until)
    }

    fn settling_own(&self, now: Instant) -> bool {
        let grace = self.in_grace(now);
        let mut unsettled = self.unsettled();
        unsettled
            .any(|(_, addr, owner)| grace || self.is_live(owner) || !self.is_ours_for_now(addr))
    }

    /// Whether our claim is in the ring and no other within reach stands beside it.
    fn is_ours_for_now(&self, addr: Addr) -> bool {
        let us = self.config.us;
        self.ring.as_ref().is_some_and(|ring| {
            let mut others = ring.claimants(addr).filter(|peer| *peer != us);
            ring.is_claimed_by(addr, us) && !others.any(|peer| self.is_live(peer))
        })
    }

    /// Makes our claims in the ring what they should be: one for each unsettled address whose owner
    /// cannot be asked, none for an address that is settled or lost. Addresses that a smaller
    /// claimant within reach has are lost.
    fn reconcile_claims(&mut self, now: Instant) {
        let us = self.config.us;
        let own = |ring: &Ring| {
            let mut claims = ring.claims().iter();
            claims.any(|((_, peer), claim)| *peer == us && claim.held)
        };
        // Most often there is nothing to do, and a ring is costly to copy.
        if self.unsettled().next().is_none() && !self.ring.as_ref().is_some_and(own) {
            return;
        }
        let Some(mut ring) = self.ring.clone() else {
            return;
        };
        let verdict = self.judge(&mut ring);
        let ours = ring.claims().keys().filter(|(_, peer)| *peer == us);
        let stale: Vec<_> = ours
            .map(|(addr, _)| *addr)
            .filter(|addr| !verdict.kept.contains(addr))
            .collect();
        for addr in stale {
            ring.withdraw(addr, us);
        }
        for (container, addr, holder) in verdict.lost {
            self.lose(container, addr, holder);
        }
        if verdict.added {
            self.sync.restart(now);
            self.begin_grace(now);
        }
        if ring.digest() != self.digest {
            self.set_ring(ring, now);
        }
    }

    /// Decides about each unsettled address as far as we can, and puts the claims in the ring that
    /// are missing.
    fn judge(&self, ring: &mut Ring) -> Verdict {
        let us = self.config.us;
        let mut verdict = Verdict::default();
        for (container, addr, owner) in self.unsettled() {
            let smaller = ring
                .claimants(addr)
                .find(|peer| *peer < us && self.is_live(*peer));
            let claimed = ring.is_claimed_by(addr, us);
            if let Some(holder) = smaller.filter(|_| claimed) {
                verdict.lost.push((container.clone(), addr, holder));
            } else if claimed || self.settling.grace.is_some() || self.is_live(owner) {
                verdict.kept.insert(addr);
            } else if ring.claim(addr, us).is_ok() {
                verdict.kept.insert(addr);
                verdict.added = true;
            } else {
                // There are as many claims as there may be, so nobody could hear of ours.
                verdict.lost.push((container.clone(), addr, owner));
            }
        }
        verdict
    }

    /// A container must give its address up.
    pub(crate) fn lose(&mut self, container: ContainerId, addr: Addr, holder: PeerName) {
        self.space
            .set_hold(&container, addr, Hold::Conflict(holder));
        self.dirty();
        self.effect(Event::Conflict {
            container,
            addr,
            holder,
        });
    }

    /// Somebody may be reachable whom we do not know to be.
    pub(crate) fn begin_grace(&mut self, now: Instant) {
        self.settling.grace = Some(now + GRACE);
    }

    /// A peer gave its ring up for this one, or heard that we were taken over, and waits for us. Most
    /// often we have not heard of that ring; then we ask for it like for any that was announced, so that many peers that give
    /// theirs up at once do not send it to each other.
    pub(crate) fn handle_adopted(
        &mut self,
        from: PeerName,
        id: RingId,
        digest: Digest,
        now: Instant,
    ) {
        let knows = digest == self.digest || self.settling.known.contains(&digest);
        if self.has_ring(id) && knows {
            self.settling.askers.insert(from);
        } else {
            self.sync.suspect(from, digest, self.digest, now);
        }
    }

    /// A companion has settled its addresses. What it claims must be in our ring before a barrier
    /// here can open.
    pub(crate) fn handle_settled(
        &mut self,
        from: PeerName,
        id: RingId,
        digest: Digest,
        now: Instant,
    ) {
        if !self.has_ring(id) {
            return;
        }
        if let Some(said) = self.settling.companions.get_mut(&from) {
            *said = Some(digest);
        }
        self.settling.forget_known_companions();
        if self.settling.companions.contains_key(&from) {
            self.sync.suspect(from, digest, self.digest, now);
        }
    }

    pub(crate) fn note_denial(&mut self, why: Denial) {
        self.settling.ring_full = why == Denial::RingFull;
    }

    /// Asks companions, and answers those that ask us.
    pub(crate) fn settle(&mut self, now: Instant) {
        if !self.in_grace(now) {
            self.settling.grace = None;
        }
        let Some(id) = self.ring.as_ref().map(Ring::id) else {
            return;
        };
        self.reconcile_claims(now);
        if self.settling.ask_again.is_some_and(|at| at <= now) {
            let companions = self.settling.companions.keys().copied();
            let companions: Vec<_> = companions.filter(|peer| self.is_live(*peer)).collect();
            self.settling.ask_again = (!companions.is_empty()).then_some(now + ANSWER);
            for peer in companions {
                let (ring, digest) = (id, self.digest);
                self.send(peer, &Message::Adopted { ring, digest });
            }
        }
        if !self.settling_own(now) {
            for peer in std::mem::take(&mut self.settling.askers) {
                let (ring, digest) = (id, self.digest);
                self.send(peer, &Message::Settled { ring, digest });
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
                    ask.to = self.donor(subnet, ask);
                    match ask.to {
                        Some(donor) => {
                            messages.push((donor, Message::Space { ring: id, subnet }));
                        }
                        None => ask.start_over(now),
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

    fn donor(&mut self, subnet: Cidr, ask: &Ask) -> Option<PeerName> {
        let us = self.config.us;
        let live = self.live();
        let eligible =
            |peer: PeerName| peer != us && live.contains(&peer) && !ask.passes_over(peer);
        choose_donor(self.ring.as_ref()?, subnet, eligible, &mut self.rng)
    }

    fn wants(&self, now: Instant) -> BTreeSet<Want> {
        let mut wants: BTreeSet<_> = self
            .unsettled()
            .map(|(_, addr, _)| Want::Exact(addr))
            .collect();
        if self.settling(now) || self.pending.is_empty() {
            return wants;
        }
        let fenced = !self.is_unfenced(now);
        for pending in &self.pending {
            match &pending.wish {
                // More of what we may not use for now would be of no use.
                Wish::Allocate { subnet, .. } if fenced && self.owns_free(*subnet, now) => {}
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

    /// Whether we own an address of a subnet that we could give out if we were not fenced.
    fn owns_free(&self, subnet: Cidr, now: Instant) -> bool {
        let us = self.config.us;
        let own = self.ring.as_ref().map(|ring| ring.owned_by(us));
        let claimed = self.claimed_by_others(now);
        let own = own.unwrap_or_default();
        self.space.pick(us, &own, subnet, &claimed).is_some()
    }
}
