//! Who founds the ring: one decree, agreed by a majority of the peers expected (Paxos).
//!
//! Every peer is an *acceptor*; a peer that needs a ring is a *proposer* as well. A proposer asks
//! all for a promise on its ballot; with promises from a quorum it proposes a decree, the one
//! accepted under the highest ballot among the promises, else one of its own; once a quorum has
//! accepted it, it is chosen, and the proposer makes the ring of it and sends it to all. Whoever
//! meets a ring stops here and takes it.
//!
//! The decree names the founders: the peers that promised. After a quorum of promises the proposer
//! waits a moment for the rest, so that peers that are all up get a part of the pool each.
//!
//! Invariants: an acceptor never goes below what it promised, and what it says is on the disk
//! before it is said (the caller sees to that). Two proposers whose quorums share a peer
//! choose the same decree.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rand_core::Rng;
use weft_wire::PeerName;

use crate::message::Message;

/// How long a proposer waits for more promises than it needs.
pub(crate) const GRACE: Duration = Duration::from_millis(300);
/// The first pause before another attempt; doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest pause before another attempt.
const LAST_RETRY: Duration = Duration::from_secs(8);

/// Names a proposal; a later one is larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ballot {
    /// Counts up.
    pub round: u64,
    /// Whose proposal it is.
    pub proposer: PeerName,
}

/// What is agreed upon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decree {
    /// The ring's identity.
    pub bits: u128,
    /// Who gets a part of the pool.
    pub founders: BTreeSet<PeerName>,
}

/// What an acceptor must never forget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acceptor<D = Decree> {
    /// The highest ballot promised.
    pub promised: Option<Ballot>,
    /// The last decree accepted, and under which ballot.
    pub accepted: Option<(Ballot, D)>,
}

impl<D> Default for Acceptor<D> {
    fn default() -> Self {
        Self {
            promised: None,
            accepted: None,
        }
    }
}

impl<D: Clone> Acceptor<D> {
    /// Promises to accept nothing below the ballot, or says what stands against it.
    pub(crate) fn promise(&mut self, ballot: Ballot) -> Result<Option<(Ballot, D)>, Ballot> {
        if let Some(promised) = self.promised.filter(|promised| *promised > ballot) {
            return Err(promised);
        }
        self.promised = Some(ballot);
        Ok(self.accepted.clone())
    }

    pub(crate) fn accept(&mut self, ballot: Ballot, decree: &D) -> Result<(), Ballot> {
        self.promise(ballot)?;
        self.accepted = Some((ballot, decree.clone()));
        Ok(())
    }
}

/// Who else is there, at the moment of a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field<'a> {
    pub(crate) us: PeerName,
    /// Everybody reachable, without us.
    pub(crate) reachable: &'a BTreeSet<PeerName>,
    pub(crate) quorum: usize,
}

/// Messages to send, each to one peer.
pub(crate) type Outbox = Vec<(PeerName, Message)>;

/// Our part in the agreement.
#[derive(Debug, Clone, Default)]
pub(crate) struct Election {
    acceptor: Acceptor,
    proposal: Option<Proposal>,
    abstained: BTreeSet<PeerName>,
    highest_round: u64,
    attempts: u32,
    retry: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Proposal {
    ballot: Ballot,
    phase: Phase,
}

#[derive(Debug, Clone)]
enum Phase {
    Preparing {
        promises: BTreeMap<PeerName, Option<(Ballot, Decree)>>,
        /// Until when more promises than needed are waited for; `None` once that is over.
        grace: Option<Instant>,
    },
    Accepting {
        decree: Decree,
        accepted: BTreeSet<PeerName>,
    },
}

impl Election {
    pub(crate) fn new(acceptor: Acceptor) -> Self {
        let highest_round = acceptor.promised.map_or(0, |ballot| ballot.round);
        Self {
            acceptor,
            highest_round,
            ..Self::default()
        }
    }

    pub(crate) const fn acceptor(&self) -> &Acceptor {
        &self.acceptor
    }

    /// The peers that told us they do not vote.
    pub(crate) const fn abstained(&self) -> &BTreeSet<PeerName> {
        &self.abstained
    }

    pub(crate) fn handle_abstain(&mut self, from: PeerName) {
        self.abstained.insert(from);
    }

    /// Ends our own attempts, because there is a ring; what we promised stays.
    pub(crate) fn stop(&mut self) {
        self.proposal = None;
        self.retry = None;
        self.attempts = 0;
    }

    /// Somebody new can be asked: the next attempt comes no later than that.
    pub(crate) fn hurry(&mut self, at: Instant) {
        if let Some(retry) = &mut self.retry {
            *retry = (*retry).min(at);
            self.attempts = 0;
        }
    }

    /// Who agreed to the attempt under way so far.
    pub(crate) fn agreed(&self) -> BTreeSet<PeerName> {
        match self.proposal.as_ref().map(|proposal| &proposal.phase) {
            Some(Phase::Preparing { promises, .. }) => promises.keys().copied().collect(),
            Some(Phase::Accepting { accepted, .. }) => accepted.clone(),
            None => BTreeSet::new(),
        }
    }

    /// When [`Self::step`] has something to do again.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let grace = self.proposal.as_ref().and_then(|p| match &p.phase {
            Phase::Preparing { grace, .. } => *grace,
            Phase::Accepting { .. } => None,
        });
        grace.into_iter().chain(self.retry).min()
    }

    /// Makes the next attempt if its time has come, or goes on with the one under way; the decree
    /// if that chooses one.
    pub(crate) fn step(
        &mut self,
        field: Field<'_>,
        rng: &mut impl Rng,
        out: &mut Outbox,
        now: Instant,
    ) -> Option<Decree> {
        if self.retry.is_none_or(|at| at <= now) {
            self.propose(field, rng, out, now);
        }
        self.close_preparing(field, rng, out, now)
    }

    /// A proposer asks for our promise; the answer.
    pub(crate) fn handle_prepare(&mut self, ballot: Ballot) -> Message {
        self.note(ballot);
        match self.acceptor.promise(ballot) {
            Ok(accepted) => Message::Promise { ballot, accepted },
            Err(promised) => Message::Outbid { ballot, promised },
        }
    }

    /// A proposer asks us to accept its decree; the answer.
    pub(crate) fn handle_accept(&mut self, ballot: Ballot, decree: &Decree) -> Message {
        self.note(ballot);
        match self.acceptor.accept(ballot, decree) {
            Ok(()) => Message::Accepted { ballot },
            Err(promised) => Message::Outbid { ballot, promised },
        }
    }

    /// A peer promised; call [`Self::step`] afterwards.
    pub(crate) fn handle_promise(
        &mut self,
        from: PeerName,
        ballot: Ballot,
        accepted: Option<(Ballot, Decree)>,
    ) {
        let Some(proposal) = self.proposal.as_mut().filter(|p| p.ballot == ballot) else {
            return;
        };
        match &mut proposal.phase {
            Phase::Preparing { promises, .. } => {
                promises.insert(from, accepted);
            }
            Phase::Accepting { .. } => {}
        }
    }

    /// A peer accepted our decree; the decree if it is chosen by that.
    pub(crate) fn handle_accepted(
        &mut self,
        from: PeerName,
        ballot: Ballot,
        quorum: usize,
    ) -> Option<Decree> {
        let proposal = self.proposal.as_mut().filter(|p| p.ballot == ballot)?;
        match &mut proposal.phase {
            Phase::Preparing { .. } => None,
            Phase::Accepting { decree, accepted } => {
                accepted.insert(from);
                (accepted.len() >= quorum).then(|| decree.clone())
            }
        }
    }

    /// A peer had promised a higher ballot: we give this attempt up and try again later.
    pub(crate) fn handle_outbid(&mut self, ballot: Ballot, promised: Ballot) {
        self.note(promised);
        if self.proposal.as_ref().is_some_and(|p| p.ballot == ballot) {
            self.proposal = None;
        }
    }

    fn note(&mut self, ballot: Ballot) {
        self.highest_round = self.highest_round.max(ballot.round);
    }

    fn propose(&mut self, field: Field<'_>, rng: &mut impl Rng, out: &mut Outbox, now: Instant) {
        self.retry = Some(now + pause(self.attempts, rng));
        self.attempts = self.attempts.saturating_add(1);
        self.highest_round = self.highest_round.saturating_add(1);
        let ballot = Ballot {
            round: self.highest_round,
            proposer: field.us,
        };
        let Ok(accepted) = self.acceptor.promise(ballot) else {
            return; // only with the rounds used up
        };
        self.proposal = Some(Proposal {
            ballot,
            phase: Phase::Preparing {
                promises: BTreeMap::from([(field.us, accepted)]),
                grace: Some(now + GRACE),
            },
        });
        let prepare = |peer: &PeerName| (*peer, Message::Prepare { ballot });
        out.extend(field.reachable.iter().map(prepare));
    }

    /// Goes from promises to a decree: with a quorum, and everybody asked or the wait over.
    fn close_preparing(
        &mut self,
        field: Field<'_>,
        rng: &mut impl Rng,
        out: &mut Outbox,
        now: Instant,
    ) -> Option<Decree> {
        let proposal = self.proposal.as_mut()?;
        let (promises, grace) = match &mut proposal.phase {
            Phase::Preparing { promises, grace } => (promises, grace),
            Phase::Accepting { .. } => return None,
        };
        *grace = grace.filter(|at| *at > now);
        let mut asked = field.reachable.difference(&self.abstained);
        let all = asked.all(|peer| promises.contains_key(peer));
        if promises.len() < field.quorum || !(all || grace.is_none()) {
            return None;
        }
        let before = promises
            .values()
            .flatten()
            .max_by_key(|(ballot, _)| *ballot);
        let decree = before.map(|(_, decree)| decree.clone()).unwrap_or_else(|| {
            let bits = u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64());
            let founders = promises.keys().copied().collect();
            Decree { bits, founders }
        });
        let ballot = proposal.ballot;
        let ours = self.acceptor.accept(ballot, &decree).is_ok();
        let accepted: BTreeSet<_> = ours.then_some(field.us).into_iter().collect();
        let chosen = accepted.len() >= field.quorum;
        for peer in field.reachable {
            let decree = decree.clone();
            out.push((*peer, Message::Accept { ballot, decree }));
        }
        proposal.phase = Phase::Accepting {
            decree: decree.clone(),
            accepted,
        };
        chosen.then_some(decree)
    }
}

/// Half to all of a pause that doubles with each attempt, so that two proposers do not outbid
/// each other for ever.
pub(crate) fn pause(attempts: u32, rng: &mut impl Rng) -> Duration {
    let factor = 1_u32.checked_shl(attempts).unwrap_or(u32::MAX);
    let full = FIRST_RETRY.saturating_mul(factor).min(LAST_RETRY);
    let half = full / 2;
    half + half.mul_f64(f64::from(rng.next_u32()) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    use super::*;

    const PEERS: u8 = 5;

    fn peer(n: u8) -> PeerName {
        PeerName::from_bytes([2, 0, 0, 0, 0, n])
    }

    #[expect(clippy::disallowed_methods, reason = "a test may look at the clock")]
    fn start() -> Instant {
        Instant::now()
    }

    /// Proposers and acceptors over a network that loses, repeats and reorders, and peers that
    /// crash and keep what was on the disk. Nobody stops at a decree, so that proposals go on
    /// after one was chosen: they must all choose the same.
    struct Council {
        rng: ChaCha20Rng,
        now: Instant,
        peers: Vec<Election>,
        wire: Vec<(PeerName, PeerName, Message)>,
        chosen: Vec<Decree>,
    }

    impl Council {
        fn new(seed: u64) -> Self {
            Self {
                rng: ChaCha20Rng::seed_from_u64(seed),
                now: start(),
                peers: (0..PEERS).map(|_| Election::default()).collect(),
                wire: Vec::new(),
                chosen: Vec::new(),
            }
        }

        fn draw(&mut self, below: u64) -> u64 {
            self.rng.next_u64() % below
        }

        fn round(&mut self) {
            self.now += Duration::from_millis(100);
            let n = usize::try_from(self.draw(PEERS.into())).unwrap();
            if self.draw(10) == 0 {
                self.peers[n] = Election::new(self.peers[n].acceptor().clone());
            }
            self.advance(n);
            for _ in 0..self.draw(12) {
                self.deliver();
            }
        }

        fn advance(&mut self, n: usize) {
            let us = peer(u8::try_from(n).unwrap());
            let reachable = (0..PEERS).map(peer).filter(|p| *p != us).collect();
            let field = Field {
                us,
                reachable: &reachable,
                quorum: 3,
            };
            let mut out = Outbox::new();
            let chosen = self.peers[n].step(field, &mut self.rng, &mut out, self.now);
            self.chosen.extend(chosen);
            let sent = out.into_iter().map(|(to, message)| (us, to, message));
            self.wire.extend(sent);
        }

        fn deliver(&mut self) {
            let Ok(len) = u64::try_from(self.wire.len()) else {
                return;
            };
            if len == 0 {
                return;
            }
            let at = usize::try_from(self.draw(len)).unwrap();
            let (from, to, message) = match self.draw(10) {
                0 => return drop(self.wire.swap_remove(at)),
                1 => self.wire[at].clone(),
                _ => self.wire.swap_remove(at),
            };
            let n = usize::from(to.to_bytes()[5]);
            let election = &mut self.peers[n];
            let reply = match message {
                Message::Prepare { ballot } => Some(election.handle_prepare(ballot)),
                Message::Accept { ballot, decree } => Some(election.handle_accept(ballot, &decree)),
                Message::Promise { ballot, accepted } => {
                    election.handle_promise(from, ballot, accepted);
                    None
                }
                Message::Accepted { ballot } => {
                    let chosen = election.handle_accepted(from, ballot, 3);
                    self.chosen.extend(chosen);
                    None
                }
                Message::Outbid { ballot, promised } => {
                    election.handle_outbid(ballot, promised);
                    None
                }
                other @ (Message::Sync { .. }
                | Message::Same { .. }
                | Message::Ring { .. }
                | Message::Space { .. }
                | Message::NoSpace { .. }
                | Message::Claim { .. }
                | Message::Taken { .. }
                | Message::Adopted { .. }
                | Message::Settled { .. }
                | Message::Start
                | Message::Council { .. }
                | Message::Abstain) => panic!("no vote: {other:?}"),
            };
            self.wire.extend(reply.map(|reply| (to, from, reply)));
            self.advance(n);
        }
    }

    #[test]
    fn whatever_is_lost_and_whoever_crashes_only_one_decree_is_chosen() {
        let mut decided = 0;
        for seed in 0..300 {
            let mut council = Council::new(seed);
            for _ in 0..400 {
                council.round();
            }
            if let Some((first, others)) = council.chosen.split_first() {
                decided += usize::from(!others.is_empty());
                assert!(others.iter().all(|d| d == first), "seed {seed}");
            }
        }
        assert!(decided > 200, "only {decided} councils chose twice or more");
    }

    #[test]
    fn a_lower_ballot_is_refused_with_the_one_that_stands() {
        let mut election = Election::default();
        let ballot = |round| Ballot {
            round,
            proposer: peer(1),
        };
        election.handle_prepare(ballot(5));
        let outbid = Message::Outbid {
            ballot: ballot(4),
            promised: ballot(5),
        };
        assert_eq!(election.handle_prepare(ballot(4)), outbid);
        let decree = Decree {
            bits: 1,
            founders: BTreeSet::from([peer(1)]),
        };
        assert_eq!(election.handle_accept(ballot(4), &decree), outbid);
        assert_eq!(
            election.handle_accept(ballot(5), &decree),
            Message::Accepted { ballot: ballot(5) }
        );
    }

    #[test]
    fn attempts_come_further_and_further_apart() {
        let mut council = Council::new(1);
        let mut pauses = Vec::new();
        for _ in 0..10 {
            council.advance(0);
            let next = council.peers[0].retry.unwrap();
            pauses.push(next - council.now);
            council.now = next;
        }
        assert!(pauses[0] <= FIRST_RETRY);
        assert!(pauses[9] >= LAST_RETRY / 2 && pauses[9] <= LAST_RETRY);
    }
}
