//! Messages of other allocators, and what each does here.
//!
//! Invariants: a message that is malformed changes nothing; one about a ring that is not ours is
//! answered with our ring and does nothing else.

use std::collections::BTreeMap;
use std::time::Instant;

use weft_wire::{Malformed, PeerName};

use crate::addr::{Addr, Cidr, Span};
use crate::allocator::Allocator;
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
                    self.asks.handle_no_space(from, subnet, now);
                }
            }
            Message::Claim { ring, addrs } => self.handle_claim(from, ring, &addrs, now),
            Message::Taken { ring, addrs, why } => self.handle_taken(from, ring, &addrs, why),
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
            (Some(_), None) => self.teach(from, now),
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
            (Some(_), Some(_)) => self.teach(from, now),
        }
        Ok(())
    }

    /// A peer does not know all we know: it gets our ring, and a barrier waits until it says that
    /// it has it.
    fn teach(&mut self, peer: PeerName, now: Instant) {
        self.send_ring(peer, 0);
        self.sync.handle_lesson(peer, now);
    }

    fn merge_ring(&mut self, mut ours: Ring, theirs: &Ring, now: Instant) -> Result<(), Malformed> {
        ours.merge(theirs);
        if ours.is_too_large() {
            return Err(Malformed::TooLong {
                what: "merged ring",
                value: ours.entries().len() + ours.claims().len(),
                limit: MAX_ENTRIES,
            });
        }
        self.settling.know(theirs.digest());
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
        let spare = self.space.spare(&ring.owned_by(us), subnet);
        let why = match spare.map(|span| ring.grant(span, us, from)) {
            Some(Ok(())) => {
                self.set_ring(ring, now);
                return self.send_ring(from, 0);
            }
            Some(Err(GrantError::Full)) => Denial::RingFull,
            Some(Err(GrantError::NotOwned)) | None => Denial::InUse,
        };
        // Our ring too, so that it knows how little we have.
        self.send_ring(from, 0);
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
        let mut tell_ring = false;
        for addr in addrs {
            if ring.owner_of(*addr) != Some(us) {
                tell_ring = true; // it does not know the owner
            } else if self.space.holder(*addr).is_some() || self.rival(*addr, from, now).is_some() {
                keep(*addr, Denial::InUse);
            } else if self.space.is_reserved(*addr) {
                keep(*addr, Denial::Reserved);
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

    /// The owner keeps addresses we claimed: containers that hold them lose them.
    fn handle_taken(&mut self, from: PeerName, id: RingId, addrs: &[Addr], why: Denial) {
        if !self.has_ring(id) {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::event::Event;
    use crate::ring::RingKind;
    use crate::simulation::cluster::{config, name};
    use crate::{Config, ContainerId, Init, RequestId};

    const ADDR: &str = "10.0.0.200";

    #[expect(clippy::disallowed_methods, reason = "a test may look at the clock")]
    fn start() -> Instant {
        Instant::now()
    }

    fn pool() -> Cidr {
        "10.0.0.0/24".parse().unwrap()
    }

    /// Peer 0 of a ring that two peers founded.
    fn allocator() -> Allocator {
        let init = Init::Seed(vec![name(0), name(1)]);
        let config: Config = config(0, pool(), init, 1);
        let mut allocator = Allocator::new(config, None, [0; 32], start()).unwrap();
        allocator.set_reachable(BTreeSet::from([name(1), name(2)]), start());
        allocator.prime(RequestId(1), start());
        drain(&mut allocator);
        allocator
    }

    fn drain(allocator: &mut Allocator) -> Vec<Event> {
        std::iter::from_fn(|| allocator.poll_event()).collect()
    }

    fn sent(events: &[Event]) -> Vec<(PeerName, Message)> {
        let sent = events.iter().filter_map(|event| match event {
            Event::Send { to, bytes } => Some((*to, Message::parse(bytes, pool()).unwrap())),
            Event::Persist(_)
            | Event::Answer { .. }
            | Event::Announce(_)
            | Event::Synced { .. }
            | Event::Conflict { .. } => None,
        });
        sent.collect()
    }

    fn tell(allocator: &mut Allocator, from: usize, message: &Message) -> Vec<Event> {
        let bytes = message.emit(pool());
        allocator
            .handle_message(name(from), &bytes, start())
            .unwrap();
        drain(allocator)
    }

    /// Peer 0 holds an address that peer 2 took over with all of peer 0's space.
    fn robbed() -> (Allocator, Ring) {
        let mut allocator = allocator();
        let mine = "10.0.0.1".parse().unwrap();
        allocator.claim(RequestId(2), ContainerId::new("c"), mine, 24, start());
        drain(&mut allocator);
        let mut ring = allocator.ring.clone().unwrap();
        ring.take_over(name(0), name(2), crate::ring::Takeover::Stranger);
        (allocator, ring)
    }

    #[test]
    fn whoever_knows_less_is_told_the_rest() {
        let mut allocator = allocator();
        let older = allocator.ring.clone();
        let mut newer = older.clone().unwrap();
        newer.take_over(name(1), name(2), crate::ring::Takeover::Owner);
        let ring = |ring| Message::Ring { nonce: 0, ring };
        let told = tell(&mut allocator, 2, &ring(Some(newer.clone())));
        assert_eq!(sent(&told), []);
        assert!(matches!(told[0], Event::Persist(_)));
        let told = tell(&mut allocator, 1, &ring(older));
        let [
            (
                to,
                Message::Ring {
                    ring: Some(back), ..
                },
            ),
        ] = &sent(&told)[..]
        else {
            panic!("{told:?}");
        };
        assert_eq!((*to, back.digest()), (name(1), newer.digest()));
        let told = tell(&mut allocator, 1, &ring(None));
        assert_eq!(sent(&told).len(), 1);
    }

    #[test]
    fn a_message_about_another_ring_is_answered_with_ours_and_does_nothing() {
        let mut allocator = allocator();
        let before = allocator.digest();
        let ring = RingId {
            kind: RingKind::Lone,
            bits: 1,
        };
        let addrs = vec!["10.0.0.7".parse().unwrap()];
        let subnet = pool();
        for message in [
            Message::Space { ring, subnet },
            Message::Claim { ring, addrs },
        ] {
            let told = sent(&tell(&mut allocator, 1, &message));
            assert!(
                matches!(told[..], [(to, Message::Ring { ring: Some(_), .. })] if to == name(1))
            );
        }
        assert_eq!(allocator.digest(), before);
    }

    #[test]
    fn a_denial_counts_only_from_the_owner() {
        let (mut allocator, ring) = robbed();
        let id = ring.id();
        let ring = Some(ring);
        tell(&mut allocator, 2, &Message::Ring { nonce: 0, ring });
        assert_eq!(allocator.status().unsettled.len(), 1);
        let addrs = vec!["10.0.0.1".parse().unwrap()];
        let taken = Message::Taken {
            ring: id,
            addrs,
            why: Denial::InUse,
        };
        assert_eq!(tell(&mut allocator, 1, &taken), []);
        let told = tell(&mut allocator, 2, &taken);
        assert!(matches!(told[0], Event::Persist(_)));
        assert!(matches!(&told[1], Event::Conflict { holder, .. } if *holder == name(2)));
        // Said twice, it is done once.
        assert_eq!(tell(&mut allocator, 2, &taken), []);
    }

    #[test]
    fn no_new_address_is_given_while_one_is_unsettled() {
        let mut allocator = allocator();
        let mine = "10.0.0.1".parse().unwrap();
        allocator.claim(RequestId(2), ContainerId::new("c"), mine, 24, start());
        drain(&mut allocator);
        let mut ring = allocator.ring.clone().unwrap();
        ring.grant(Span::one(mine), name(0), name(2)).unwrap();
        let (id, digest) = (ring.id(), ring.digest());
        let ring = Some(ring);
        tell(&mut allocator, 2, &Message::Ring { nonce: 0, ring });
        allocator.allocate(RequestId(3), ContainerId::new("d"), None, start());
        assert_eq!(drain(&mut allocator), []);
        assert_eq!(allocator.digest(), digest);
        let taken = Message::Taken {
            ring: id,
            addrs: vec![mine],
            why: Denial::InUse,
        };
        let told = tell(&mut allocator, 2, &taken);
        let answered = |event: &Event| matches!(event, Event::Answer { result: Ok(_), .. });
        assert!(told.iter().any(answered), "{told:?}");
    }

    #[test]
    fn a_claim_is_answered_for_each_address_on_its_own() {
        let mut allocator = allocator();
        let mine: Addr = "10.0.0.1".parse().unwrap();
        allocator.claim(RequestId(2), ContainerId::new("c"), mine, 24, start());
        drain(&mut allocator);
        let ring = allocator.ring.as_ref().unwrap().id();
        let free: Addr = "10.0.0.2".parse().unwrap();
        let addrs = vec![mine, free, ADDR.parse().unwrap()];
        let told = tell(&mut allocator, 2, &Message::Claim { ring, addrs });
        let [
            (
                _,
                Message::Ring {
                    ring: Some(now), ..
                },
            ),
            (_, Message::Taken { addrs, why, .. }),
        ] = &sent(&told)[..]
        else {
            panic!("{told:?}");
        };
        assert_eq!(now.owner_of(free), Some(name(2)));
        assert_eq!(now.owner_of(mine), Some(name(0)));
        assert_eq!((&addrs[..], *why), (&[mine][..], Denial::InUse));
        assert!(matches!(told[0], Event::Persist(_)));
    }

    #[test]
    fn malformed_messages_and_our_own_are_counted_and_change_nothing() {
        let mut allocator = allocator();
        let before = allocator.saved();
        let start_message = Message::Start.emit(pool());
        for (from, bytes) in [(1, &b"nonsense"[..]), (1, &[]), (0, &start_message)] {
            let result = allocator.handle_message(name(from), bytes, start());
            assert!(result.is_err());
            assert_eq!(drain(&mut allocator), []);
        }
        assert_eq!(allocator.status().malformed, 3);
        assert_eq!(allocator.saved(), before);
    }

    #[test]
    fn rings_that_are_too_large_together_are_refused() {
        let mut allocator = Allocator::new(
            config(
                0,
                "10.0.0.0/8".parse().unwrap(),
                Init::Seed(vec![name(0)]),
                1,
            ),
            None,
            [0; 32],
            start(),
        )
        .unwrap();
        allocator.prime(RequestId(1), start());
        let pool = allocator.config.pool;
        let ours = allocator.ring.clone().unwrap();
        let entry = ours.entries()[&pool.first()];
        let many = |step: u32, odd: u32| {
            let token = |n| if n == 0 { 0 } else { n * step + odd };
            let tokens = (0..u32::try_from(MAX_ENTRIES).unwrap()).map(token);
            let entries: Vec<_> = tokens
                .map(|t| (Addr::from_bits(pool.first().to_bits() + t), entry))
                .collect();
            Ring::from_parts(pool, ours.id(), ours.founders().to_vec(), &entries, &[]).unwrap()
        };
        for (odd, accepted) in [(0, true), (1, false)] {
            let ring = Some(many(2, odd));
            let bytes = Message::Ring { nonce: 0, ring }.emit(pool);
            let result = allocator.handle_message(name(1), &bytes, start());
            assert_eq!(result.is_ok(), accepted, "{result:?}");
        }
    }
}
