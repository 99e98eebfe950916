//! One allocator, told by hand what others would say: cases the cluster meets too seldom.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use weft_wire::PeerName;

use super::cluster::{config, name};
use crate::addr::Span;
use crate::message::{Denial, Message};
use crate::requests::RequestError;
use crate::ring::{MAX_ENTRIES, Ring, RingId, RingKind, Takeover};
use crate::saved::SavedRing;
use crate::{Addr, Allocator, Answer, Cidr, ContainerId, Digest, Event, Init, RequestId};

/// An address of the half that is peer 1's.
const FAR: &str = "10.0.0.200";

/// A time all tests start from.
#[expect(clippy::disallowed_methods, reason = "all times are counted from one")]
fn start() -> Instant {
    use std::sync::OnceLock;
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}

fn after(ms: u64) -> Instant {
    start() + Duration::from_millis(ms)
}

fn addr(text: &str) -> Addr {
    text.parse().unwrap()
}

fn pool() -> Cidr {
    "10.0.0.0/24".parse().unwrap()
}

/// Peer 0 of a ring that peers 0 and 1 founded; 1 and 2 are within reach.
fn allocator() -> Allocator {
    let config = config(0, pool(), Init::Seed(vec![name(0), name(1)]), 1);
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
        | Event::Announce { .. }
        | Event::Joined(_)
        | Event::Forget(_)
        | Event::Synced { .. }
        | Event::Conflict { .. } => None,
    });
    sent.collect()
}

fn tell(allocator: &mut Allocator, from: usize, message: &Message) -> Vec<Event> {
    tell_at(allocator, from, message, start())
}

fn tell_at(allocator: &mut Allocator, from: usize, message: &Message, now: Instant) -> Vec<Event> {
    let bytes = message.emit(pool());
    allocator.handle_message(name(from), &bytes, now).unwrap();
    drain(allocator)
}

fn tell_ring(allocator: &mut Allocator, from: usize, ring: &Ring) -> Vec<Event> {
    let ring = Some(ring.clone());
    tell(allocator, from, &Message::Ring { nonce: 0, ring })
}

fn opened(events: &[Event]) -> Vec<PeerName> {
    let synced = events.iter().filter_map(|event| match event {
        Event::Synced { peer } => Some(*peer),
        Event::Persist(_)
        | Event::Answer { .. }
        | Event::Announce { .. }
        | Event::Joined(_)
        | Event::Forget(_)
        | Event::Send { .. }
        | Event::Conflict { .. } => None,
    });
    synced.collect()
}

fn outcome(events: &[Event]) -> Option<Result<Answer, RequestError>> {
    events.iter().find_map(|event| match event {
        Event::Answer { result, .. } => Some(result.clone()),
        Event::Persist(_)
        | Event::Synced { .. }
        | Event::Announce { .. }
        | Event::Joined(_)
        | Event::Forget(_)
        | Event::Send { .. }
        | Event::Conflict { .. } => None,
    })
}

/// Lets a container hold an address.
fn hold(allocator: &mut Allocator, container: &str, addr: Addr) {
    let prefix = pool().prefix();
    let container = ContainerId::new(container);
    allocator.claim(RequestId(99), container, addr, prefix, start());
    drain(allocator);
}

/// The nonce of the last question to a peer.
fn asked(events: &[Event], peer: usize) -> Option<u32> {
    let sent = sent(events);
    let to_peer = sent.iter().rev().filter(|(to, _)| *to == name(peer));
    to_peer
        .filter_map(|(_, message)| {
            let Message::Sync { nonce, .. } = message else {
                return None;
            };
            Some(*nonce)
        })
        .next()
}

/// Peer 0 holds an address that peer 2 took over with all of peer 0's space, as `ring` says.
fn robbed() -> (Allocator, Ring) {
    let mut allocator = allocator();
    hold(&mut allocator, "c", addr("10.0.0.1"));
    let mut ring = allocator.ring.clone().unwrap();
    ring.take_over(name(0), name(2), Takeover::Stranger);
    (allocator, ring)
}

#[test]
fn whoever_knows_less_is_told_the_rest() {
    let mut allocator = allocator();
    let older = allocator.ring.clone();
    let mut newer = older.clone().unwrap();
    newer.take_over(name(1), name(2), Takeover::Owner);
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
        assert!(matches!(told[..], [(to, Message::Ring { ring: Some(_), .. })] if to == name(1)));
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
    let addrs = vec![mine, free, addr(FAR)];
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
            .map(|t| {
                (
                    Addr::from_bits(pool.first().to_bits() + u128::from(t)),
                    entry,
                )
            })
            .collect();
        let parts = SavedRing {
            entries,
            ..SavedRing::from_ring(&ours)
        };
        Ring::from_parts(pool, parts).unwrap()
    };
    for (odd, accepted) in [(0, true), (1, false)] {
        let ring = Some(many(2, odd));
        let bytes = Message::Ring { nonce: 0, ring }.emit(pool);
        let result = allocator.handle_message(name(1), &bytes, start());
        assert_eq!(result.is_ok(), accepted, "{result:?}");
    }
}

#[test]
fn a_companion_counts_as_settled_when_we_know_all_it_knew() {
    // A lone ring is given up for the one of peers 0 and 1, which peer 1 brings.
    let config = config(5, pool(), Init::Consensus(None), 0);
    let mut loser = Allocator::new(config, None, [0; 32], start()).unwrap();
    loser.prime(RequestId(1), start());
    loser.set_reachable(BTreeSet::from([name(2)]), start());
    drain(&mut loser);
    loser.handle_connected(name(1), start());
    let nonce = asked(&drain(&mut loser), 1).unwrap();
    let ring = allocator().ring.unwrap();
    let answer = Message::Ring {
        nonce,
        ring: Some(ring.clone()),
    };
    let told = tell(&mut loser, 1, &answer);
    let (id, digest) = (ring.id(), ring.digest());
    let adopted = Message::Adopted { ring: id, digest };
    assert!(sent(&told).contains(&(name(1), adopted.clone())));
    assert!(sent(&told).contains(&(name(2), adopted)));
    let settled = |digest| Message::Settled { ring: id, digest };
    let late = after(5000);
    assert_eq!(opened(&tell_at(&mut loser, 1, &settled(digest), late)), []);
    let mut more = ring;
    more.claim(addr(FAR), name(2)).unwrap();
    let told = tell_at(&mut loser, 2, &settled(more.digest()), late);
    assert_eq!(opened(&told), []);
    assert_eq!(asked(&told, 2), Some(0), "it is asked for what we lack");
    // Its claim is known by then, and undecided as long as its owner is within reach.
    let told = tell_at(
        &mut loser,
        2,
        &Message::Ring {
            nonce: 0,
            ring: Some(more.clone()),
        },
        late,
    );
    assert_eq!(opened(&told), []);
    more.withdraw(addr(FAR), name(2));
    let ring = Some(more);
    let told = tell_at(&mut loser, 2, &Message::Ring { nonce: 0, ring }, late);
    assert_eq!(opened(&told), [name(1)]);
}

#[test]
fn an_owner_grants_no_address_to_one_peer_that_another_claims() {
    let mut allocator = allocator();
    let claimed = addr("10.0.0.7");
    let mut ring = allocator.ring.clone().unwrap();
    ring.claim(claimed, name(2)).unwrap();
    tell_ring(&mut allocator, 2, &ring);
    let ring = ring.id();
    let claim = Message::Claim {
        ring,
        addrs: vec![claimed],
    };
    let told = sent(&tell(&mut allocator, 1, &claim));
    assert!(matches!(told[..], [(_, Message::Taken { .. })]), "{told:?}");
    let told = sent(&tell(&mut allocator, 2, &claim));
    assert!(matches!(told[..], [(_, Message::Ring { .. })]), "{told:?}");
    let owner = allocator.ring.unwrap().owner_of(claimed);
    assert_eq!(owner, Some(name(2)));
}

#[test]
fn of_two_claimants_the_smaller_name_is_granted_the_address() {
    let mut allocator = allocator();
    let claimed = addr("10.0.0.7");
    let mut ring = allocator.ring.clone().unwrap();
    ring.claim(claimed, name(2)).unwrap();
    ring.claim(claimed, name(1)).unwrap();
    tell_ring(&mut allocator, 2, &ring);
    let ring = ring.id();
    let addrs = vec![claimed];
    let claim = Message::Claim { ring, addrs };
    let told = sent(&tell(&mut allocator, 2, &claim));
    assert!(matches!(told[..], [(_, Message::Taken { .. })]), "{told:?}");
    tell(&mut allocator, 1, &claim);
    let owner = allocator.ring.unwrap().owner_of(claimed);
    assert_eq!(owner, Some(name(1)));
}

#[test]
fn an_address_of_ours_that_a_peer_within_reach_claims_is_not_given_out() {
    let mut allocator = allocator();
    let mut ring = allocator.ring.clone().unwrap();
    for host in 1..127 {
        let claimed = Addr::from_bits(pool().first().to_bits() + host);
        ring.claim(claimed, name(2)).unwrap();
    }
    tell_ring(&mut allocator, 2, &ring);
    let wanted = ContainerId::new("c");
    allocator.allocate(RequestId(2), wanted.clone(), None, start());
    let free = Ok(Answer::Address {
        addr: addr("10.0.0.127"),
        prefix: 24,
    });
    assert_eq!(outcome(&drain(&mut allocator)), Some(free));
    let seven = addr("10.0.0.7");
    allocator.claim(RequestId(3), wanted.clone(), seven, 24, start());
    let refused = Err(RequestError::InUse {
        addr: seven,
        peer: name(2),
    });
    assert_eq!(outcome(&drain(&mut allocator)), Some(refused));
    // Of a peer out of reach it counts no more.
    allocator.set_reachable(BTreeSet::from([name(1)]), start());
    allocator.claim(RequestId(4), wanted, seven, 24, start());
    assert_eq!(outcome(&drain(&mut allocator)), Some(Ok(Answer::Claimed)));
}

#[test]
fn a_claim_is_put_in_the_ring_and_through_to_the_neighbour_before_its_barrier_opens() {
    let (mut allocator, ring) = robbed();
    allocator.set_reachable(BTreeSet::from([name(1)]), start());
    let ring = Some(ring);
    tell(&mut allocator, 1, &Message::Ring { nonce: 0, ring });
    allocator.handle_connected(name(1), start());
    let first = asked(&drain(&mut allocator), 1).unwrap();
    let told = tell(&mut allocator, 1, &Message::Same { nonce: first });
    assert_eq!(opened(&told), [], "the owner may be within reach");
    let mut now = after(3000);
    allocator.handle_timeout(now);
    let told = drain(&mut allocator);
    assert!(matches!(told[0], Event::Persist(_)));
    let mine = addr("10.0.0.1");
    let claims = |allocator: &Allocator| {
        let ring = allocator.ring.as_ref().unwrap();
        ring.claimants(mine).collect::<Vec<_>>()
    };
    assert_eq!(claims(&allocator), [name(0)]);
    let second = asked(&told, 1).unwrap();
    now += Duration::from_millis(100);
    let told = tell_at(&mut allocator, 1, &Message::Same { nonce: first }, now);
    assert_eq!(opened(&told), []);
    now += Duration::from_millis(100);
    let told = tell_at(&mut allocator, 1, &Message::Same { nonce: second }, now);
    assert_eq!(opened(&told), [], "others may not have heard of the claim");
    now = after(6000);
    allocator.handle_timeout(now);
    assert_eq!(opened(&drain(&mut allocator)), [name(1)]);
    // The owner is back and keeps the address.
    allocator.set_reachable(BTreeSet::from([name(1), name(2)]), now);
    let asks = sent(&drain(&mut allocator));
    let [(to, Message::Claim { ring, addrs })] = &asks[..] else {
        panic!("{asks:?}");
    };
    assert_eq!((*to, &addrs[..]), (name(2), &[mine][..]));
    let taken = Message::Taken {
        ring: *ring,
        addrs: addrs.clone(),
        why: Denial::InUse,
    };
    tell_at(&mut allocator, 2, &taken, now);
    assert_eq!(claims(&allocator), []);
    assert_eq!(allocator.status().conflicts.len(), 1);
}

#[test]
fn of_two_claimants_within_reach_the_larger_name_loses_the_address() {
    for (other, kept) in [(7, true), (2, false)] {
        let config = config(5, pool(), Init::Consensus(None), 0);
        let mut allocator = Allocator::new(config, None, [0; 32], start()).unwrap();
        hold(&mut allocator, "c", addr(FAR));
        allocator.set_reachable(BTreeSet::from([name(other)]), start());
        let mut ring = self::allocator().ring.unwrap();
        ring.claim(addr(FAR), name(other)).unwrap();
        tell_ring(&mut allocator, other, &ring);
        allocator.handle_timeout(after(3000));
        allocator.handle_timeout(after(3001));
        let conflicts = allocator.status().conflicts;
        let lost: Vec<_> = conflicts.iter().map(|c| (c.addr, c.holder)).collect();
        let expected = [(addr(FAR), name(other))];
        assert_eq!(lost, if kept { &[][..] } else { &expected });
        let ring = allocator.ring.unwrap();
        assert_eq!(ring.is_claimed_by(addr(FAR), name(5)), kept);
    }
}

#[test]
fn a_claim_of_somebody_not_yet_known_to_be_within_reach_keeps_a_new_barrier_shut() {
    let mut allocator = allocator();
    let mut ring = allocator.ring.clone().unwrap();
    ring.claim(addr("10.0.0.7"), name(9)).unwrap();
    tell_ring(&mut allocator, 1, &ring);
    allocator.handle_connected(name(1), start());
    let nonce = asked(&drain(&mut allocator), 1).unwrap();
    let told = tell(&mut allocator, 1, &Message::Same { nonce });
    assert_eq!(opened(&told), []);
    let (mut told, mut at) = (Vec::new(), start());
    while opened(&told).is_empty() && at < after(5000) {
        (at, _) = allocator.poll_timeout().unwrap();
        allocator.handle_timeout(at);
        told.extend(drain(&mut allocator));
    }
    assert_eq!((opened(&told), at), (vec![name(1)], after(3000)));
}

#[test]
fn an_answer_left_over_from_an_earlier_connection_opens_nothing() {
    let mut allocator = allocator();
    allocator.handle_connected(name(1), start());
    let nonce = asked(&drain(&mut allocator), 1).unwrap();
    let bytes = Message::Same { nonce }.emit(pool());
    allocator.handle_message(name(1), &bytes, start()).unwrap();
    allocator.handle_disconnected(name(1), start());
    allocator.handle_connected(name(1), start());
    assert_eq!(opened(&drain(&mut allocator)), []);
}

#[test]
fn the_digest_of_no_ring_is_never_that_of_one() {
    assert_ne!(allocator().digest(), Digest::NONE);
}

#[test]
fn a_peer_that_leaves_holds_nothing_any_more_and_says_so_to_those_that_wait() {
    let mut allocator = allocator();
    hold(&mut allocator, "c", addr("10.0.0.1"));
    allocator.claim(RequestId(2), ContainerId::new("d"), addr(FAR), 24, start());
    drain(&mut allocator);
    assert_eq!(allocator.hand_over(start()), Some(name(1)));
    let told = drain(&mut allocator);
    assert_eq!(outcome(&told), Some(Err(RequestError::HandedOver)));
    assert_eq!(allocator.holders().count(), 0);
    let Event::Persist(saved) = &told[0] else {
        panic!("{told:?}");
    };
    assert_eq!(saved.allocations, []);
}
