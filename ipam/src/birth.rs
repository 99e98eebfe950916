//! How a ring is born: only when somebody needs it, in the way the operator chose.
//!
//! With targets, or with peers about, by agreement; from a seed list at once; alone only by a peer
//! that has neither. An observer never founds a ring but asks the others to.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rand_core::Rng;
use weft_wire::PeerName;

use crate::allocator::Allocator;
use crate::consensus::{Ballot, Decree, Field, Outbox};
use crate::message::Message;
use crate::ring::{Ring, RingId, RingKind};

/// How often an observer repeats its plea.
const PLEA: Duration = Duration::from_secs(5);

/// How the first ring is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Init {
    /// By agreement of a majority of the peers expected: that many, or the number of targets (of
    /// reachable peers, if that is more) and ourselves.
    Consensus(Option<usize>),
    /// At once, from these names, which must be given to every peer alike.
    Seed(Vec<PeerName>),
    /// Not by us.
    Observer,
}

impl Allocator {
    /// Works towards a ring if there is none and somebody needs it.
    pub(crate) fn seek_ring(&mut self, now: Instant) {
        if !self.needs_ring() {
            return;
        }
        let live = self.live();
        match &self.config.init {
            Init::Seed(_) => self.found_seeded(now),
            Init::Observer => {
                if self.plea.is_none_or(|at| at <= now) {
                    self.plea = Some(now + PLEA);
                    self.send_all(&Message::Start);
                }
            }
            Init::Consensus(given) => {
                if given.is_none() && self.targets == 0 && live.is_empty() {
                    let founders = BTreeSet::from([self.config.us]);
                    self.found(RingKind::Lone, &founders, None, now);
                } else {
                    self.elect(&live, now);
                }
            }
        }
    }

    /// Whether there is no ring, and a request or a peer wants one.
    pub(crate) fn needs_ring(&self) -> bool {
        let pool = self.config.pool;
        let mut pending = self.pending.iter();
        self.ring.is_none() && (self.wanted || pending.any(|p| p.needs_ring(pool)))
    }

    /// When [`Self::seek_ring`] has something to do again.
    pub(crate) fn birth_deadline(&self) -> Option<Instant> {
        if !self.needs_ring() {
            return None;
        }
        match &self.config.init {
            Init::Seed(_) => None,
            Init::Observer => self.plea,
            Init::Consensus(_) => self.election.deadline(),
        }
    }

    /// How many peers must agree.
    pub(crate) fn quorum(&self) -> usize {
        let expected = match &self.config.init {
            Init::Consensus(Some(given)) => *given,
            Init::Consensus(None) | Init::Seed(_) | Init::Observer => {
                let live = self.live();
                let voters = live.difference(self.election.abstained()).count();
                1 + self.targets.max(voters)
            }
        };
        expected / 2 + 1
    }

    /// A peer asks that a ring be made.
    pub(crate) fn handle_start(&mut self, from: PeerName) {
        match (&self.ring, &self.config.init) {
            (Some(_), _) => self.send_ring(from, 0),
            (None, Init::Seed(_) | Init::Consensus(_)) => self.wanted = true,
            (None, Init::Observer) => {}
        }
    }

    pub(crate) fn handle_prepare(&mut self, from: PeerName, ballot: Ballot, now: Instant) {
        if self.may_vote(from, now) {
            let reply = self.election.handle_prepare(ballot);
            self.dirty();
            self.send(from, &reply);
        }
    }

    pub(crate) fn handle_accept(
        &mut self,
        from: PeerName,
        ballot: Ballot,
        decree: &Decree,
        now: Instant,
    ) {
        if self.may_vote(from, now) {
            let reply = self.election.handle_accept(ballot, decree);
            self.dirty();
            self.send(from, &reply);
        }
    }

    pub(crate) fn handle_accepted(&mut self, from: PeerName, ballot: Ballot, now: Instant) {
        let quorum = self.quorum();
        let chosen = self.election.handle_accepted(from, ballot, quorum);
        if let Some(decree) = chosen.filter(|_| self.ring.is_none()) {
            self.found_decreed(&decree, now);
        }
    }

    /// Whether we take part; if not, the proposer hears why.
    fn may_vote(&mut self, from: PeerName, now: Instant) -> bool {
        if self.ring.is_none() {
            match &self.config.init {
                Init::Consensus(_) => return true,
                Init::Observer => {
                    self.send(from, &Message::Abstain);
                    return false;
                }
                Init::Seed(_) => self.found_seeded(now),
            }
        }
        self.send_ring(from, 0);
        false
    }

    fn elect(&mut self, live: &BTreeSet<PeerName>, now: Instant) {
        let field = Field {
            us: self.config.us,
            reachable: live,
            quorum: self.quorum(),
        };
        let mut out = Outbox::new();
        let before = self.election.acceptor().clone();
        let chosen = self.election.step(field, &mut self.rng, &mut out, now);
        if *self.election.acceptor() != before {
            self.dirty();
        }
        for (to, message) in out {
            self.send(to, &message);
        }
        if let Some(decree) = chosen {
            self.found_decreed(&decree, now);
        }
    }

    fn found_decreed(&mut self, decree: &Decree, now: Instant) {
        let bits = Some(decree.bits);
        self.found(RingKind::Consensus, &decree.founders, bits, now);
    }

    fn found_seeded(&mut self, now: Instant) {
        let names = match &self.config.init {
            Init::Seed(names) => names.iter().copied().collect(),
            Init::Consensus(_) | Init::Observer => BTreeSet::new(),
        };
        self.install(Ring::seeded(self.config.pool, &names), now);
    }

    fn found(
        &mut self,
        kind: RingKind,
        founders: &BTreeSet<PeerName>,
        bits: Option<u128>,
        now: Instant,
    ) {
        let mut random = || u128::from(self.rng.next_u64()) << 64 | u128::from(self.rng.next_u64());
        let bits = bits.unwrap_or_else(&mut random);
        let ring = Ring::born(self.config.pool, RingId { kind, bits }, founders);
        self.install(ring, now);
    }

    fn install(&mut self, ring: Ring, now: Instant) {
        self.set_ring(ring, now);
        for peer in self.live() {
            self.send_ring(peer, 0);
        }
    }
}
