//! What holds for any rings, and the first division by example.

use proptest::prelude::*;

use super::*;

fn peer(n: u8) -> PeerName {
    PeerName::from_bytes([2, 0, 0, 0, 0, n])
}

fn pool() -> Cidr {
    "10.0.0.0/26".parse().unwrap()
}

fn addr(host: u128) -> Addr {
    Addr::from_bits(pool().first().to_bits() + host)
}

fn span(start: u128, end: u128) -> Span {
    let base = pool().span().start;
    Span {
        start: base + start,
        end: base + end,
    }
}

fn lone() -> Ring {
    let id = RingId {
        kind: RingKind::Lone,
        bits: 1,
    };
    Ring::born(pool(), id, &BTreeSet::from([peer(1)]))
}

fn any_entries() -> impl Strategy<Value = Vec<(Addr, Entry)>> {
    let entry = (0..3_u32, 0..4_u32, 1..4_u8, 0..3_u32, 0..5_u32);
    proptest::collection::btree_map(0..64_u32, entry, 0..12).prop_map(|map| {
        let entry = |(ruling, version, owner, stamp, free)| Entry {
            ruling,
            version,
            owner: peer(owner),
            stamp,
            free,
        };
        let mut entries: BTreeMap<_, _> = map
            .into_iter()
            .map(|(token, e)| (addr(token.into()), entry(e)))
            .collect();
        entries.entry(addr(0)).or_insert(entry((0, 0, 1, 0, 0)));
        entries.into_iter().collect()
    })
}

fn any_claims() -> impl Strategy<Value = Vec<(Addr, PeerName, Claim)>> {
    let claim = (0..3_u32, any::<bool>());
    proptest::collection::btree_map((0..64_u32, 1..4_u8), claim, 0..6).prop_map(|map| {
        let claims = map.into_iter();
        claims
            .map(|((at, by), (stamp, held))| (addr(at.into()), peer(by), Claim { stamp, held }))
            .collect()
    })
}

fn any_ring() -> impl Strategy<Value = Ring> {
    let rulings = proptest::collection::vec((0..64_u128, 1..20_u128, 1..4_u8), 0..3);
    (any_entries(), any_claims(), rulings).prop_map(|(entries, claims, rulings)| {
        let mut ring = ring_of(entries, claims).unwrap();
        // What a ruling takes are whole ranges.
        for (number, (start, len, heir)) in (1..).zip(rulings) {
            let wanted = span(start, (start + len).min(64));
            let ranges: Vec<_> = ring.ranges().map(|(range, _)| range).collect();
            let taken: Vec<_> = ranges
                .into_iter()
                .filter(|range| !range.intersect(wanted).is_empty())
                .collect();
            ring.rule(
                number,
                &BTreeSet::from([peer(heir)]),
                &taken,
                peer(heir),
                true,
            );
        }
        ring
    })
}

fn parts(entries: Vec<(Addr, Entry)>, claims: Vec<(Addr, PeerName, Claim)>) -> SavedRing {
    SavedRing {
        entries,
        claims,
        ..SavedRing::from_ring(&lone())
    }
}

fn ring_of(
    entries: Vec<(Addr, Entry)>,
    claims: Vec<(Addr, PeerName, Claim)>,
) -> Result<Ring, RingError> {
    Ring::from_parts(pool(), parts(entries, claims))
}

fn merged(a: &Ring, b: &Ring) -> Ring {
    let mut ring = a.clone();
    ring.merge(b);
    ring
}

proptest! {
    #[test]
    fn merging_does_not_hang_on_order_grouping_or_repetition(
        a in any_ring(), b in any_ring(), c in any_ring(),
    ) {
        prop_assert_eq!(merged(&a, &b), merged(&b, &a));
        prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
        prop_assert_eq!(merged(&a, &a), a.clone());
        prop_assert_eq!(merged(&merged(&a, &b), &b), merged(&a, &b));
    }

    #[test]
    fn every_address_has_one_owner_after_any_merge(a in any_ring(), b in any_ring()) {
        let ring = merged(&a, &b);
        prop_assert_eq!(ring.owners().values().sum::<u128>(), pool().size());
        for host in 0..64 {
            let owner = ring.owner_of(addr(host)).unwrap();
            let owns = ring.owned_by(owner).iter().any(|s| s.contains(addr(host)));
            prop_assert!(owns);
        }
    }

    #[test]
    fn advice_changes_no_digest(mut ring in any_ring(), free in 0..64_u128) {
        let before = ring.digest();
        ring.advise(peer(1), |_| free);
        prop_assert_eq!(ring.digest(), before);
    }

    #[test]
    fn a_grant_moves_exactly_its_range(
        mut ring in any_ring(), start in 0..64_u128, len in 1..64_u128,
    ) {
        let given = span(start, (start + len).min(64));
        let before = ring.clone();
        let ours = before.owned_by(peer(1)).iter().any(|s| s.intersect(given) == given);
        prop_assert_eq!(ring.grant(given, peer(1), peer(9)).is_ok(), ours);
        for host in 0..64 {
            let moved = ours && given.contains(addr(host));
            let owner = if moved { Some(peer(9)) } else { before.owner_of(addr(host)) };
            prop_assert_eq!(ring.owner_of(addr(host)), owner);
        }
        prop_assert_eq!(merged(&before, &ring).owners(), ring.owners());
    }

    #[test]
    fn founders_get_aligned_parts_that_differ_by_one_halving(count in 1..20_u8) {
        let founders: BTreeSet<_> = (1..=count).map(peer).collect();
        let ring = Ring::born(pool(), lone().id, &founders);
        let sizes: Vec<_> = ring.ranges().map(|(s, _)| s.size()).collect();
        let (min, max) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
        prop_assert!(max / min <= 2);
        prop_assert_eq!(ring.owners().len(), usize::from(count));
        for (span, _) in ring.ranges() {
            prop_assert!(span.size().is_power_of_two());
            prop_assert_eq!(span.start % span.size(), 0);
        }
    }
}

#[test]
fn three_founders_get_two_quarters_and_a_half() {
    let founders = BTreeSet::from([peer(1), peer(2), peer(3)]);
    let ring = Ring::born(pool(), lone().id, &founders);
    assert_eq!(ring.owned_by(peer(1)), [span(0, 16)]);
    assert_eq!(ring.owned_by(peer(2)), [span(16, 32)]);
    assert_eq!(ring.owned_by(peer(3)), [span(32, 64)]);
}

#[test]
fn a_seeded_ring_depends_on_the_names_alone() {
    let names = BTreeSet::from([peer(2), peer(1)]);
    let one = Ring::seeded(pool(), &names);
    assert_eq!(one, Ring::seeded(pool(), &names));
    assert_ne!(
        one.id(),
        Ring::seeded(pool(), &BTreeSet::from([peer(1)])).id()
    );
    assert!(one.id() < lone().id());
}

#[test]
fn more_founders_than_addresses_leave_some_without_space() {
    let pool: Cidr = "10.0.0.0/30".parse().unwrap();
    let founders: BTreeSet<_> = (1..=9).map(peer).collect();
    let ring = Ring::born(pool, lone().id, &founders);
    assert_eq!(ring.owners().values().sum::<u128>(), 4);
}

#[test]
fn a_takeover_wins_over_what_the_dead_peer_wrote_last() {
    let mut unseen = lone();
    unseen.grant(span(0, 64), peer(1), peer(2)).unwrap();
    let mut taken = lone();
    assert_eq!(
        taken.take_over(peer(1), peer(3), Takeover::Stranger),
        pool().size()
    );
    assert_eq!(merged(&unseen, &taken).owned_by(peer(3)), [pool().span()]);
}

#[test]
fn a_ring_with_used_up_versions_is_not_cut_further() {
    let entry = Entry {
        ruling: 0,
        version: u32::MAX,
        owner: peer(1),
        stamp: 0,
        free: 0,
    };
    let mut ring = ring_of(vec![(addr(0), entry)], vec![]).unwrap();
    let granted = ring.grant(span(0, 1), peer(1), peer(2));
    assert_eq!(granted, Err(GrantError::Full));
}

#[test]
fn parts_that_make_no_ring_are_refused() {
    let entry = Entry {
        ruling: 0,
        version: 1,
        owner: peer(1),
        stamp: 0,
        free: 0,
    };
    let ring = |founders: Vec<PeerName>, tokens: &[u32]| {
        let entries: Vec<_> = tokens
            .iter()
            .map(|t| (addr(u128::from(*t)), entry))
            .collect();
        let parts = SavedRing {
            founders,
            ..parts(entries, vec![])
        };
        Ring::from_parts(pool(), parts).map(|_| ())
    };
    let founders = || vec![peer(1)];
    assert_eq!(ring(founders(), &[0, 5]), Ok(()));
    assert_eq!(ring(founders(), &[]), Err(RingError::Start));
    assert_eq!(ring(founders(), &[1]), Err(RingError::Start));
    assert_eq!(
        ring(founders(), &[0, 64]),
        Err(RingError::Outside(addr(64)))
    );
    assert_eq!(ring(founders(), &[0, 6, 5]), Err(RingError::Order(addr(5))));
    assert_eq!(ring(founders(), &[0, 5, 5]), Err(RingError::Order(addr(5))));
    assert_eq!(ring(vec![], &[0]), Err(RingError::Founders));
    assert_eq!(ring(vec![peer(1); 2], &[0]), Err(RingError::Founders));
}

#[test]
fn a_claim_stands_until_its_claimant_takes_it_back() {
    let mut ring = lone();
    ring.claim(addr(3), peer(2)).unwrap();
    ring.claim(addr(3), peer(1)).unwrap();
    ring.claim(addr(4), peer(1)).unwrap();
    let claimants = |ring: &Ring| ring.claimants(addr(3)).collect::<Vec<_>>();
    assert_eq!(claimants(&ring), [peer(1), peer(2)]);
    let before = ring.clone();
    ring.withdraw(addr(3), peer(1));
    ring.withdraw(addr(3), peer(3));
    assert_eq!(claimants(&merged(&before, &ring)), [peer(2)]);
    assert_ne!(before.digest(), ring.digest());
    ring.claim(addr(3), peer(1)).unwrap();
    assert_eq!(claimants(&merged(&before, &ring)), [peer(1), peer(2)]);
}

#[test]
fn claims_that_cannot_be_are_refused() {
    let claim = Claim {
        stamp: 1,
        held: true,
    };
    let entry = *lone().entries().values().next().unwrap();
    let ring = |list: &[(u32, u8)]| {
        let claims: Vec<_> = list
            .iter()
            .map(|(a, p)| (addr(u128::from(*a)), peer(*p), claim))
            .collect();
        ring_of(vec![(addr(0), entry)], claims).map(|_| ())
    };
    assert_eq!(ring(&[(1, 1), (1, 2), (2, 1)]), Ok(()));
    assert_eq!(ring(&[(64, 1)]), Err(RingError::Outside(addr(64))));
    assert_eq!(ring(&[(1, 2), (1, 1)]), Err(RingError::Order(addr(1))));
    assert_eq!(ring(&[(1, 1), (1, 1)]), Err(RingError::Order(addr(1))));
}

#[test]
fn what_a_dead_peer_granted_unseen_does_not_come_back_after_it_was_taken_over() {
    let mut unseen = lone();
    unseen.grant(span(16, 32), peer(1), peer(2)).unwrap();
    let mut taken = lone();
    let electors = BTreeSet::from([peer(3)]);
    taken.rule(1, &electors, &[span(0, 64)], peer(3), true);
    assert_eq!(merged(&unseen, &taken).owned_by(peer(3)), [pool().span()]);
    assert_eq!(merged(&taken, &unseen), merged(&unseen, &taken));
    // The heir grants on, and that stays.
    taken.grant(span(16, 24), peer(3), peer(4)).unwrap();
    assert_eq!(merged(&unseen, &taken).owned_by(peer(4)), [span(16, 24)]);
    assert_eq!(merged(&unseen, &taken).roll().electors(), electors);
}
