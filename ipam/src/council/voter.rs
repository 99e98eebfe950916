//! An elector asked for its vote.
//!
//! Invariant: a vote to take a peer over is given only after its silence, and with the same ring as
//! the proposer's.

use std::time::Instant;

use weft_wire::PeerName;

use super::Ruling;
use crate::allocator::Allocator;
use crate::consensus::Ballot;
use crate::digest::Digest;
use crate::message::{Council as Say, MAX_ADDRS, Message};
use crate::ring::RingId;
use crate::rules::Rule;

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
        if !again {
            self.council.votes.barred.clear();
        }
        let spans = self.spans_of(&ruling.taken);
        self.council.bar(&spans);
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
        let mut may = true;
        for peer in &ruling.taken {
            let silent = self.silence(*peer, now) >= self.config.times.takeover;
            let back = self.is_live(*peer) && !self.watch.doomed.contains(peer);
            if back {
                // It came back while others voted to take it over. So that this comes to an end, it is
                // taken over for real; what its containers hold it gets back.
                self.watch.doomed.insert(*peer);
            }
            may &= silent && !back;
        }
        may
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
    ) {
        if !self.in_step(from, id, number) {
            return;
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
        digest: Digest,
        now: Instant,
    ) {
        let Some((ring, number)) = self.council.votes.about else {
            return;
        };
        self.council.note(ballot);
        if digest != self.digest {
            return self.send_ring(from, 0); // it tries again when both know the same
        }
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
