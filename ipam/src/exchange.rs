//! Messages of other allocators, and what each does here.
//!
//! Invariants: a message that is malformed changes nothing; one about a ring that is not ours is
//! answered with our ring and does nothing else.

use std::collections::BTreeMap;
use std::time::Instant;

use weft_wire::{Malformed, PeerName};

use crate::addr::{Addr, Cidr, Span};
use crate::allocator::Allocator;
use crate::asks::Want;
use crate::digest::Digest;
use crate::message::{Denial, Message};
use crate::ring::{GrantError, MAX_ENTRIES, Ring, RingId};
use crate::space::Hold;

impl Allocator {
    /// Does what a message asks for.
    ///
    /// # Errors
    /// The rings together would be larger than a ring may be.
    pub(crate) fn dispatch(
        &mut self,
        from: PeerName,
        message: Message,
        now: Instant,
    ) -> Result<(), Malformed> {
        match message {
            Message::Sync { nonce, digest } => self.handle_sync(from, nonce, digest),
            Message::Same { nonce } => self.sync.handle_answer(from, nonce),
            Message::Ring { nonce, ring } => self.handle_ring(from, nonce, ring, now)?,
            Message::Space { ring, subnet } => self.handle_space(from, ring, subnet, now),
            Message::NoSpace { ring, subnet, why } => {
                if self.has_ring(ring) {
                    self.note_denial(why);
                    match why {
                        Denial::Fenced => {
                            let want = Want::Space(subnet);
                            self.asks.handle_fenced(from, want, now);
                        }
                        Denial::InUse | Denial::Reserved | Denial::RingFull => {
                            self.asks.handle_no_space(from, subnet, now);
                        }
                    }
                }
            }
            Message::Claim { ring, addrs } => self.handle_claim(from, ring, &addrs, now),
            Message::Taken { ring, addrs, why } => self.handle_taken(from, ring, &addrs, why, now),
            Message::Adopted { ring, digest } => self.handle_adopted(from, ring, digest, now),
            Message::Settled { ring, digest } => self.handle_settled(from, ring, digest, now),
            Message::Start => self.handle_start(from),
            Message::Prepare { ballot } => self.handle_prepare(from, ballot, now),
            Message::Promise { ballot, accepted } => {
                self.election.handle_promise(from, ballot, accepted);
            }
            Message::Accept { ballot, decree } => self.handle_accept(from, ballot, &decree, now),
            Message::Accepted { ballot } => self.handle_accepted(from, ballot, now),
            Message::Outbid { ballot, promised } => self.election.handle_outbid(ballot, promised),
            Message::Abstain => self.election.handle_abstain(from),
            Message::Council { ring, say } => self.handle_council(from, ring, say, now),
        }
        Ok(())
    }

    pub(crate) fn has_ring(&self, id: RingId) -> bool {
        self.ring.as_ref().is_some_and(|ring| ring.id() == id)
    }

    fn handle_sync(&mut self, from: PeerName, nonce: u32, digest: Digest) {
        if digest == self.digest {
            self.send(from, &Message::Same { nonce });
        } else {
            self.send_ring(from, nonce);
        }
    }

    fn handle_ring(
        &mut self,
        from: PeerName,
        nonce: u32,
        theirs: Option<Ring>,
        now: Instant,
    ) -> Result<(), Malformed> {
        match (self.ring.clone(), theirs) {
            (None, None) => self.sync.handle_answer(from, nonce),
            (Some(_), None) => {
                self.teach(from, now);
                // Before it had the ring it did not know what we were asking it for.
                self.asks.handle_lesson(from, now);
            }
            (None, Some(theirs)) => {
                self.set_ring(theirs, now);
                self.sync.handle_answer(from, nonce);
            }
            (Some(ours), Some(theirs)) if ours.id() == theirs.id() => {
                self.merge_ring(ours, &theirs, now)?;
                if self.digest == theirs.digest() {
                    self.sync.handle_answer(from, nonce);
                } else {
                    self.teach(from, now);
                }
            }
            (Some(ours), Some(theirs)) if theirs.id() < ours.id() => {
                self.adopt_ring(&ours, theirs, now);
                self.sync.handle_answer(from, nonce);
            }
            (Some(_), Some(_)) => {
                self.teach(from, now);
                self.asks.handle_lesson(from, now);
            }
        }
        Ok(())
    }

    /// A peer does not know all we know: it gets our ring, and a barrier waits until it says that
    /// it has it.
    fn teach(&mut self, peer: PeerName, now: Instant) {
        self.send_ring(peer, 0);
        self.sync.handle_lesson(peer, now);
        self.hurry_elector(peer, now);
    }

    fn merge_ring(&mut self, mut ours: Ring, theirs: &Ring, now: Instant) -> Result<(), Malformed> {
        ours.merge(theirs);
        if ours.is_too_large() {
            return Err(Malformed::TooLong {
                what: "merged ring",
                value: ours.entries().len() + ours.claims().len() + ours.covers().len(),
                limit: MAX_ENTRIES,
            });
        }
        self.settling.know(theirs.digest());
        self.wait_for_losers(&ours, now);
        if ours.digest() == self.digest {
            self.ring = Some(ours); // advice only
        } else {
            self.set_ring(ours, now);
        }
        Ok(())
    }

    /// A peer has no address left in a subnet.
    fn handle_space(&mut self, from: PeerName, id: RingId, subnet: Cidr, now: Instant) {
        if !self.has_ring(id) {
            return self.send_ring(from, 0);
        }
        let us = self.config.us;
        let Some(mut ring) = self.ring.clone() else {
            return;
        };
        let spare = self.space.spare(&self.usable(now), subnet);
        let why = match spare.map(|span| ring.grant(span, us, from)) {
            Some(Ok(())) => {
                self.set_ring(ring, now);
                return self.send_ring(from, 0);
            }
            Some(Err(GrantError::Full)) => Denial::RingFull,
            Some(Err(GrantError::NotOwned)) | None => {
                let own = ring.owned_by(us);
                match self.space.spare(&own, subnet) {
                    Some(_) => Denial::Fenced,
                    None => Denial::InUse,
                }
            }
        };
        if why != Denial::Fenced {
            // Our ring too, so that it knows how little we have.
            self.send_ring(from, 0);
        }
        let ring = id;
        self.send(from, &Message::NoSpace { ring, subnet, why });
    }

    /// A peer wants these very addresses: for a container that holds or asks for them.
    fn handle_claim(&mut self, from: PeerName, id: RingId, addrs: &[Addr], now: Instant) {
        if !self.has_ring(id) {
            return self.send_ring(from, 0);
        }
        let us = self.config.us;
        let Some(mut ring) = self.ring.clone() else {
            return;
        };
        let mut taken: BTreeMap<u8, (Denial, Vec<Addr>)> = BTreeMap::new();
        let mut keep = |addr, why: Denial| {
            let (_, addrs) = taken.entry(why as u8).or_insert((why, Vec::new()));
            addrs.push(addr);
        };
        let usable = self.usable(now);
        let mut tell_ring = false;
        for addr in addrs {
            if ring.owner_of(*addr) != Some(us) {
                tell_ring = true; // it does not know the owner
            } else if self.space.holder(*addr).is_some()
                || self.rival(*addr, from, now).is_some()
                || self.space.kept_from(*addr, from).is_some()
            {
                keep(*addr, Denial::InUse);
            } else if self.space.is_reserved(*addr) {
                keep(*addr, Denial::Reserved);
            } else if !usable.iter().any(|span| span.contains(*addr)) {
                keep(*addr, Denial::Fenced);
            } else if ring.grant(Span::one(*addr), us, from).is_ok() {
                tell_ring = true;
            } else {
                keep(*addr, Denial::RingFull);
            }
        }
        if self.ring.as_ref() != Some(&ring) {
            self.set_ring(ring, now);
        }
        if tell_ring {
            self.send_ring(from, 0);
        }
        for (why, addrs) in taken.into_values() {
            let ring = id;
            self.send(from, &Message::Taken { ring, addrs, why });
        }
    }

    /// The owner keeps addresses we claimed: containers that hold them lose them, unless it only cannot
    /// say so far.
    fn handle_taken(
        &mut self,
        from: PeerName,
        id: RingId,
        addrs: &[Addr],
        why: Denial,
        now: Instant,
    ) {
        if !self.has_ring(id) {
            return;
        }
        if why == Denial::Fenced {
            // Neither granted nor refused: it is asked again.
            for addr in addrs {
                let want = Want::Exact(*addr);
                self.asks.handle_fenced(from, want, now);
            }
            return;
        }
        for addr in addrs {
            let owner = self.ring.as_ref().and_then(|ring| ring.owner_of(*addr));
            if owner != Some(from) {
                continue; // it gave the address away since
            }
            self.deny_claims(*addr, from, why);
            let Some(container) = self.space.holder(*addr).cloned() else {
                continue;
            };
            let hold = self.space.get(&container, *addr).map(|h| h.hold);
            if hold == Some(Hold::Unsettled) {
                self.lose(container, *addr, from);
            }
        }
    }
}
