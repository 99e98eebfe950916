//! An elector asked for its vote.
//!
//! Invariant: we vote to take ranges over only if they are, by our ring, of peers that are taken over, out of
//! reach, and silent for long; or if for as long we have acknowledged nothing of them to anybody.

use std::time::{Duration, Instant};

use weft_wire::PeerName;

use super::Ruling;
use crate::allocator::Allocator;
use crate::consensus::Ballot;
use crate::digest::Digest;
use crate::message::{Council as Say, MAX_ADDRS, Message};
use crate::ring::RingId;
use crate::rules::Rule;
use crate::watch::Opposed;

impl Allocator {
    /// Accepts a ruling if we may; whether we did.
    pub(super) fn vote(&mut self, ballot: Ballot, ruling: &Ruling, now: Instant) -> bool {
        let again = self.council.accepted() == Some(ruling);
        if !again && !self.may_vote_for(ruling, now) {
            return false;
        }
        if self.council.votes.acceptor.accept(ballot, ruling).is_err() {
            return false;
        }
        self.dirty();
        true
    }

    fn may_vote_for(&mut self, ruling: &Ruling, now: Instant) -> bool {
        if ruling.taken.contains(&self.config.us) {
            return false;
        }
        if !self.config.rules.keep(Rule::TakeoverAge) {
            return true;
        }
        let ring = self.ring.as_ref();
        let owners = ring.map(|ring| ring.owners_within(&ruling.ranges()));
        let mut owners = owners.iter().flatten();
        let back = ruling.taken.iter().any(|peer| self.is_live(*peer));
        let wrong = back || owners.any(|owner| !ruling.taken.contains(owner));
        let age = self.config.times.takeover;
        if wrong && self.opposing(ruling, now) < age {
            return false;
        }
        let mut taken = ruling.taken.iter();
        taken.all(|peer| self.silence(*peer, now) >= age)
    }

    /// For how long we have been against a ruling. One that it takes over came back while others voted for it, or
    /// had granted one of the ranges. If enough voted for it they cannot rule otherwise; so that it comes
    /// to an end it is made true: what it is about is acknowledged to nobody any more.
    fn opposing(&mut self, ruling: &Ruling, now: Instant) -> Duration {
        let uptime = self.clock.uptime(now);
        let opposed = self.watch.opposed.take().filter(|o| o.ruling == *ruling);
        let opposed = opposed.unwrap_or_else(|| Opposed {
            ruling: ruling.clone(),
            since: uptime,
        });
        let since = self.watch.opposed.insert(opposed).since;
        uptime.saturating_sub(since)
    }

    /// Whether a proposer and we are at the same ruling, and we vote; if not, the one behind is
    /// helped.
    pub(super) fn in_step(&mut self, from: PeerName, id: RingId, number: u32) -> bool {
        let Some(ring) = self.ring.as_ref().filter(|ring| ring.id() == id) else {
            self.send_ring(from, 0);
            return false;
        };
        let ours = ring.roll().rulings() + 1;
        let votes = ring.roll().electors().contains(&self.config.us);
        if number < ours {
            self.send_ring(from, 0);
        } else if number > ours {
            self.pull(from);
        }
        number == ours && votes
    }

    /// Asks for a peer's ring, outside of any barrier.
    fn pull(&mut self, from: PeerName) {
        let (nonce, digest) = (0, self.digest);
        self.send(from, &Message::Sync { nonce, digest });
    }

    pub(super) fn handle_ballot(
        &mut self,
        from: PeerName,
        id: RingId,
        number: u32,
        ballot: Ballot,
        digest: Digest,
    ) {
        if !self.in_step(from, id, number) {
            return;
        }
        if digest != self.digest {
            // Before our promise, so that it proposes nothing that we know better.
            self.send_ring(from, 0);
        }
        self.council.note(ballot);
        let say = match self.council.votes.acceptor.promise(ballot) {
            Ok(accepted) => Say::Promise {
                number,
                ballot,
                accepted,
            },
            Err(promised) => Say::Outbid {
                number,
                ballot,
                promised,
            },
        };
        self.dirty();
        self.send(from, &Message::Council { ring: id, say });
    }

    pub(super) fn handle_vote(
        &mut self,
        from: PeerName,
        ballot: Ballot,
        ruling: &Ruling,
        now: Instant,
    ) {
        let Some((ring, number)) = self.council.votes.about else {
            return;
        };
        self.council.note(ballot);
        if self.vote(ballot, ruling, now) {
            let used = self.used_by(&ruling.taken).into_iter();
            let say = Say::Accepted {
                number,
                ballot,
                used: used.take(MAX_ADDRS).collect(),
            };
            self.send(from, &Message::Council { ring, say });
        } else if let Some(promised) = self.council.votes.acceptor.promised.filter(|p| *p > ballot)
        {
            let say = Say::Outbid {
                number,
                ballot,
                promised,
            };
            self.send(from, &Message::Council { ring, say });
        }
    }
}
