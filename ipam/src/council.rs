//! The electors' rulings: who of them is dead and whose its addresses are, and who is an elector.
//!
//! Ruling `k` is agreed by a majority of the electors that ruling `k - 1` left, by Paxos like the birth,
//! with a fresh acceptor for each `k`. An elector proposes one when a peer was silent long enough, or when
//! another peer could be an elector; an unfinished ruling is brought to an end by whoever notices.
//!
//! Invariants: what an acceptor says is on the disk before; it votes to take ranges over only after
//! the silence of those that own them; and a ruling names the ranges, so that it does the same in
//! whatever ring it is carried out.

mod voter;
mod votes;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use weft_wire::PeerName;

use crate::addr::{Addr, Span};
use crate::allocator::Allocator;
use crate::consensus::{Ballot, GRACE, pause};
use crate::message::{Council as Say, Message};
use crate::ring::{MAX_COVERS, MAX_ELECTORS, Ring, RingId, majority};
use crate::rules::Rule;

pub use votes::{Ruling, Votes};

/// The most peers one ruling takes over.
pub(crate) const MAX_TAKEN: usize = 256;
/// The most ranges one ruling takes over; what is left is for the next.
pub(crate) const MAX_SPANS: usize = MAX_COVERS / 4;
/// How often it is looked at most whether there is something to rule about.
const LOOK: Duration = Duration::from_millis(500);
/// An elector leaves the proposing to those of smaller names for so long each.
const TURN: Duration = Duration::from_secs(2);

/// Our part in the rulings.
#[derive(Debug, Clone, Default)]
pub(crate) struct Council {
    votes: Votes,
    proposal: Option<Proposal>,
    highest_round: u64,
    attempts: u32,
    retry: Option<Instant>,
    /// When there is something to do again.
    due: Option<Instant>,
    /// When we looked for something to rule about, which costs a walk through the ring.
    looked: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Proposal {
    ballot: Ballot,
    phase: Phase,
}

#[derive(Debug, Clone)]
enum Phase {
    Preparing {
        promises: BTreeMap<PeerName, Option<(Ballot, Ruling)>>,
        /// Until when more promises than needed are waited for.
        grace: Instant,
    },
    Accepting {
        ruling: Ruling,
        accepted: BTreeSet<PeerName>,
        used: BTreeSet<Addr>,
    },
}

impl Council {
    pub(crate) fn new(votes: Votes) -> Self {
        let highest_round = votes.acceptor.promised.map_or(0, |ballot| ballot.round);
        Self {
            votes,
            highest_round,
            ..Self::default()
        }
    }

    pub(crate) const fn votes(&self) -> &Votes {
        &self.votes
    }

    /// Another ruling is the one under way; whether it was another before.
    pub(crate) fn begin(&mut self, ring: RingId, number: u32) -> bool {
        let about = Some((ring, number));
        if self.votes.about == about {
            return false;
        }
        let votes = Votes {
            about,
            ..Votes::default()
        };
        *self = Self::new(votes);
        true
    }

    pub(crate) fn accepted(&self) -> Option<&Ruling> {
        let accepted = self.votes.acceptor.accepted.as_ref();
        accepted.map(|(_, ruling)| ruling)
    }

    /// Whether the ruling accepted, if any, leaves these as the electors.
    pub(crate) fn electors_stay(&self, electors: &BTreeSet<PeerName>) -> bool {
        let accepted = self.accepted();
        accepted.is_none_or(|ruling| ruling.electors == *electors)
    }

    pub(crate) const fn deadline(&self) -> Option<Instant> {
        self.due
    }

    fn note(&mut self, ballot: Ballot) {
        self.highest_round = self.highest_round.max(ballot.round);
    }
}

impl Allocator {
    /// Proposes what there is to rule about, and goes on with what is under way.
    pub(crate) fn deliberate(&mut self, now: Instant) {
        let next_look = self.council.looked.map(|at| at + LOOK);
        if let Some(at) = next_look.filter(|at| *at > now && self.council.proposal.is_none()) {
            self.council.due = Some(at);
            return;
        }
        self.council.looked = Some(now);
        let agenda = self.agenda(now);
        let next = self.ring.as_ref();
        let next = next.and_then(|ring| self.next_silence(ring, now));
        let Some(wish) = agenda else {
            self.council.proposal = None;
            self.council.retry = None;
            self.council.attempts = 0;
            self.council.due = next;
            return;
        };
        if self.council.retry.is_none() {
            let turns = u32::try_from(self.turn()).unwrap_or(u32::MAX);
            self.council.retry = Some(now + TURN.saturating_mul(turns));
        }
        if self.council.retry.is_some_and(|at| at <= now) {
            self.propose(now);
        }
        self.close_preparing(wish, now);
        let grace = self.council.proposal.as_ref().and_then(|p| match &p.phase {
            Phase::Preparing { grace, .. } => Some(*grace).filter(|at| *at > now),
            Phase::Accepting { .. } => None,
        });
        self.council.due = [self.council.retry, grace, next]
            .into_iter()
            .flatten()
            .min();
    }

    /// What we would rule, if there is anything and enough electors are there to agree.
    fn agenda(&self, now: Instant) -> Option<Ruling> {
        let ring = self.ring.as_ref()?;
        let us = self.config.us;
        let electors = ring.roll().electors();
        if !electors.contains(&us) || self.electors_here(&electors) < self.votes_needed(&electors) {
            return None;
        }
        let wish = self.wish(ring, &electors, now);
        wish.or_else(|| {
            // Nothing new, but what was begun is brought to an end.
            self.council.accepted().map(|_| Ruling {
                taken: BTreeSet::new(),
                heir: us,
                electors,
                spans: Vec::new(),
            })
        })
    }

    fn wish(&self, ring: &Ring, electors: &BTreeSet<PeerName>, now: Instant) -> Option<Ruling> {
        let heir = self.config.us;
        let waits = self.config.rules.keep(Rule::TakeoverAge);
        let silent =
            |peer: &PeerName| !waits || self.silence(*peer, now) >= self.config.times.takeover;
        let missing = self.missing(ring).into_iter();
        let taken: BTreeSet<_> = missing.filter(silent).take(MAX_TAKEN).collect();
        let room = ring.covers().len() < MAX_COVERS / 2;
        if !taken.is_empty() && room {
            return Some(Ruling {
                electors: electors.difference(&taken).copied().collect(),
                heir,
                spans: ranges_of(ring, &taken),
                taken,
            });
        }
        let more = self.candidate(ring, now);
        let more = more.filter(|_| electors.len() < MAX_ELECTORS)?;
        let mut electors = electors.clone();
        electors.insert(more);
        Some(Ruling {
            taken: BTreeSet::new(),
            heir,
            electors,
            spans: Vec::new(),
        })
    }

    pub(crate) fn electors_here(&self, electors: &BTreeSet<PeerName>) -> usize {
        let us = self.config.us;
        let here = electors.iter().filter(|e| **e == us || self.is_live(**e));
        here.count()
    }

    pub(crate) fn votes_needed(&self, electors: &BTreeSet<PeerName>) -> usize {
        match self.config.rules.keep(Rule::ElectorQuorum) {
            true => majority(electors.len()),
            false => 1,
        }
    }

    /// How many electors that are here go before us.
    fn turn(&self) -> usize {
        let us = self.config.us;
        let before = |elector: &&PeerName| **elector < us && self.is_live(**elector);
        let electors = self.ring.as_ref().map(|ring| ring.roll().electors());
        electors.map_or(0, |electors| electors.iter().filter(before).count())
    }

    fn propose(&mut self, now: Instant) {
        let us = self.config.us;
        self.council.retry = Some(now + pause(self.council.attempts, &mut self.rng));
        self.council.attempts = self.council.attempts.saturating_add(1);
        self.council.highest_round = self.council.highest_round.saturating_add(1);
        let ballot = Ballot {
            round: self.council.highest_round,
            proposer: us,
        };
        let Ok(accepted) = self.council.votes.acceptor.promise(ballot) else {
            return; // only with the rounds used up
        };
        self.dirty();
        self.council.proposal = Some(Proposal {
            ballot,
            phase: Phase::Preparing {
                promises: BTreeMap::from([(us, accepted)]),
                grace: now + GRACE,
            },
        });
        let digest = self.digest;
        self.tell_electors(|number| Say::Prepare {
            number,
            ballot,
            digest,
        });
    }

    /// Goes from promises to a ruling: with enough of them, and everybody asked or the wait over.
    fn close_preparing(&mut self, wish: Ruling, now: Instant) {
        let (Some(ring), Some(proposal)) = (&self.ring, &self.council.proposal) else {
            return;
        };
        let electors = ring.roll().electors();
        let Phase::Preparing { promises, grace } = &proposal.phase else {
            return;
        };
        let needed = self.votes_needed(&electors);
        let all = promises.len() >= self.electors_here(&electors);
        if promises.len() < needed || !(all || *grace <= now) {
            return;
        }
        let before = promises.values().flatten();
        let before = before.max_by_key(|(ballot, _)| *ballot);
        let ruling = match before {
            Some((_, ruling)) if may_be_chosen(ruling, promises, ring, needed) => ruling.clone(),
            Some(_) | None => wish,
        };
        let ballot = proposal.ballot;
        if !self.vote(ballot, &ruling, now) {
            return; // until the next attempt
        }
        self.council.proposal = Some(Proposal {
            ballot,
            phase: Phase::Accepting {
                ruling: ruling.clone(),
                accepted: BTreeSet::from([self.config.us]),
                used: self.used_by(&ruling.taken),
            },
        });
        self.tell_electors(|number| Say::Accept {
            number,
            ballot,
            ruling: ruling.clone(),
        });
        self.enact_if_agreed(now);
    }

    fn tell_electors(&mut self, say: impl Fn(u32) -> Say) {
        let Some(ring) = &self.ring else {
            return;
        };
        let (id, number) = (ring.id(), ring.roll().rulings() + 1);
        let us = self.config.us;
        let electors = ring.roll().electors();
        for elector in electors.into_iter().filter(|e| *e != us) {
            if self.is_live(elector) {
                let (ring, say) = (id, say(number));
                self.send(elector, &Message::Council { ring, say });
            }
        }
    }

    /// A proposer or elector said something about the ruling of this number.
    pub(crate) fn handle_council(&mut self, from: PeerName, id: RingId, say: Say, now: Instant) {
        match say {
            Say::Ask(ask) => self.handle_ask(from, id, ask, now),
            Say::Acked { nonce, tell } if self.has_ring(id) => self.handle_acked(from, nonce, tell),
            Say::Refused { nonce } if self.has_ring(id) => self.handle_refused(from, nonce),
            Say::Used { mark, addrs } => self.handle_used(from, id, mark, addrs),
            Say::Prepare {
                number,
                ballot,
                digest,
            } => self.handle_ballot(from, id, number, ballot, digest),
            Say::Accept {
                number,
                ballot,
                ruling,
            } => {
                if self.in_step(from, id, number) {
                    self.handle_vote(from, ballot, &ruling, now);
                }
            }
            Say::Promise {
                number,
                ballot,
                accepted,
            } if self.is_about(id, number) => self.handle_promised(from, ballot, accepted),
            Say::Accepted {
                number,
                ballot,
                used,
            } if self.is_about(id, number) => self.handle_voted(from, ballot, used, now),
            Say::Outbid {
                number,
                ballot,
                promised,
            } if self.is_about(id, number) => self.handle_outbid(ballot, promised),
            Say::Acked { .. }
            | Say::Refused { .. }
            | Say::Promise { .. }
            | Say::Accepted { .. }
            | Say::Outbid { .. } => {}
        }
    }

    fn is_about(&self, id: RingId, number: u32) -> bool {
        self.council.votes.about == Some((id, number))
    }

    fn handle_promised(
        &mut self,
        from: PeerName,
        ballot: Ballot,
        accepted: Option<(Ballot, Ruling)>,
    ) {
        let proposal = self.council.proposal.as_mut();
        let Some(proposal) = proposal.filter(|p| p.ballot == ballot) else {
            return;
        };
        match &mut proposal.phase {
            Phase::Preparing { promises, .. } => {
                promises.insert(from, accepted);
            }
            Phase::Accepting { .. } => {}
        }
    }

    fn handle_voted(&mut self, from: PeerName, ballot: Ballot, addrs: Vec<Addr>, now: Instant) {
        let proposal = self.council.proposal.as_mut();
        let Some(proposal) = proposal.filter(|p| p.ballot == ballot) else {
            return;
        };
        match &mut proposal.phase {
            Phase::Preparing { .. } => {}
            Phase::Accepting { accepted, used, .. } => {
                accepted.insert(from);
                used.extend(addrs);
                self.enact_if_agreed(now);
            }
        }
    }

    fn handle_outbid(&mut self, ballot: Ballot, promised: Ballot) {
        self.council.note(promised);
        let ours = self.council.proposal.as_ref();
        if ours.is_some_and(|p| p.ballot == ballot) {
            self.council.proposal = None;
        }
    }

    /// Puts the ruling in the ring once enough have accepted it.
    fn enact_if_agreed(&mut self, now: Instant) {
        let Some(ring) = &self.ring else {
            return;
        };
        let electors = ring.roll().electors();
        let needed = self.votes_needed(&electors);
        let agreed = |phase: &Phase| match phase {
            Phase::Preparing { .. } => false,
            Phase::Accepting { accepted, .. } => accepted.intersection(&electors).count() >= needed,
        };
        let Some(proposal) = self.council.proposal.take_if(|p| agreed(&p.phase)) else {
            return;
        };
        let Phase::Accepting { ruling, used, .. } = proposal.phase else {
            return;
        };
        let number = ring.roll().rulings() + 1;
        let cover = self.config.rules.keep(Rule::Cover);
        let mut ring = ring.clone();
        let spans = ruling.ranges();
        ring.rule(number, &ruling.electors, &spans, ruling.heir, cover);
        if ruling.heir == self.config.us {
            let until = self.clock.uptime(now) + self.config.times.aside;
            self.space.set_aside(ruling.taken, used, until);
        }
        // One may have been taken over that is there: it claims what its containers hold first.
        self.wait_for_losers(&ring, now);
        self.set_ring(ring, now);
        for peer in self.live() {
            self.send_ring(peer, 0);
        }
    }
}

/// What these peers own, neighbouring ranges joined; as much as one ruling takes.
fn ranges_of(ring: &Ring, peers: &BTreeSet<PeerName>) -> Vec<(Addr, Addr)> {
    let mut spans: Vec<Span> = Vec::new();
    for (span, _) in ring.ranges().filter(|(_, e)| peers.contains(&e.owner)) {
        match spans.last_mut() {
            Some(last) if last.end == span.start => last.end = span.end,
            Some(_) | None => spans.push(span),
        }
    }
    spans.truncate(MAX_SPANS);
    spans.into_iter().filter_map(Span::ends).collect()
}

/// Whether enough electors may have accepted a ruling: all but those that promised and had not, and
/// those that it takes over, which never do. Electors that are said to be gone count too.
fn may_be_chosen(
    ruling: &Ruling,
    promises: &BTreeMap<PeerName, Option<(Ballot, Ruling)>>,
    ring: &Ring,
    needed: usize,
) -> bool {
    let free = |peer: &PeerName| promises.get(peer).is_some_and(Option::is_none);
    let electors = ring.roll().named().iter();
    let others = electors.filter(|peer| !free(peer) && !ruling.taken.contains(peer));
    others.count() >= needed
}
