//! Tests of the set of pools by itself; stories of whole peers are in `tests/cluster/pools.rs`.

use std::net::Ipv4Addr;

use super::*;

fn peer(n: u8) -> PeerName {
    PeerName::from_bytes([2, 0, 0, 0, 0, n])
}

#[expect(clippy::disallowed_methods, reason = "a test may look at the clock")]
fn start() -> Instant {
    Instant::now()
}

fn told(pools: &[&str]) -> PoolsConfig {
    PoolsConfig {
        us: peer(1),
        pools: pools.iter().map(|pool| pool.parse().unwrap()).collect(),
        default_subnets: Vec::new(),
        init: Init::Consensus(None),
        targets: 0,
        reserved: Vec::new(),
        times: crate::Times::DEFAULT,
        rules: crate::Rules::KEPT,
        uptime: std::time::Duration::ZERO,
    }
}

fn pools(told_of: &[&str]) -> Pools {
    Pools::new(told(told_of), Vec::new(), [1; 32], start()).unwrap()
}

fn answers(pools: &mut Pools) -> Vec<Result<Answer, RequestError>> {
    let events = std::iter::from_fn(|| pools.poll_event());
    let mut answers = Vec::new();
    for event in events {
        if let Event::Answer { result, .. } = event {
            answers.push(result);
        }
    }
    answers
}

#[test]
fn ranges_that_overlap_are_refused_at_the_start_and_later() {
    let overlap = Pools::new(
        told(&["10.0.0.0/8", "10.1.0.0/16"]),
        Vec::new(),
        [1; 32],
        start(),
    );
    assert!(matches!(overlap, Err(LoadError::Overlap { .. })));
    let mut pools = pools(&["10.32.0.0/12"]);
    let inside = "10.33.0.0/16".parse().unwrap();
    assert_eq!(
        pools.add(inside, start()),
        Ok("10.32.0.0/12".parse().unwrap())
    );
    let around = pools.add("10.0.0.0/8".parse().unwrap(), start());
    assert!(matches!(around, Err(AddPoolError::Overlaps { .. })));
    let small = pools.add("172.30.0.0/31".parse().unwrap(), start());
    assert!(matches!(small, Err(AddPoolError::Unfit { .. })));
}

#[test]
fn priming_is_of_the_default_pools_of_both_families_and_answered_once() {
    let mut pools = pools(&[
        "10.32.0.0/12",
        "172.30.0.0/16",
        "fd57:1::/64",
        "fd57:2::/64",
    ]);
    pools.prime(RequestId(1), start());
    assert_eq!(answers(&mut pools), [Ok(Answer::Primed)]);
    let born = pools.iter().filter(|a| a.digest() != Digest::NONE);
    let born: Vec<_> = born.map(|a| a.pool().to_string()).collect();
    assert_eq!(born, ["10.32.0.0/12", "fd57:1::/64"]);
    // Both refuse, and it is said once.
    pools.hand_over(start());
    pools.prime(RequestId(2), start());
    assert_eq!(answers(&mut pools).len(), 1);
}

#[test]
fn a_container_has_an_address_of_each_family_and_both_are_freed_at_once() {
    let mut pools = pools(&["10.32.0.0/12", "fd57:1::/64"]);
    let who = ContainerId::new("web");
    for (id, subnet) in [(1, None), (2, Some("fd57:1::/64".parse().unwrap()))] {
        pools.allocate(RequestId(id), who.clone(), subnet, start());
    }
    let given = answers(&mut pools);
    assert_eq!(given.len(), 2);
    let held = pools.lookup(&who);
    let families: Vec<_> = held
        .iter()
        .map(|(a, p)| (a.to_v4().is_some(), *p))
        .collect();
    // In the order of the addresses as numbers.
    assert_eq!(families, [(true, 12), (false, 64)]);
    assert_eq!(pools.free_all(&who, start()), held);
    assert_eq!(pools.lookup(&who), []);
}

#[test]
fn ranges_of_special_ipv6_addresses_are_refused_in_words() {
    let mut pools = pools(&["10.32.0.0/12"]);
    for (text, why) in [
        ("fe80::/64", "each link's own"),
        ("ff00::/8", "multicast"),
        ("::/96", "special uses"),
        ("f000::/4", "at least"),
        ("fd57::/127", "fewer than 4"),
    ] {
        let refused = pools.add(text.parse().unwrap(), start()).unwrap_err();
        assert!(refused.to_string().contains(why), "{refused}");
        // Nor does it become one of ours because a peer says so.
        pools.handle_digest(peer(2), text.parse().unwrap(), Digest::NONE, start());
        assert_eq!(pools.iter().count(), 1);
    }
}

#[test]
fn there_are_no_more_pools_than_may_be() {
    let mut pools = pools(&[]);
    let mut made = 0;
    for n in 0..=u8::MAX {
        let pool = Cidr::new(Addr::from(Ipv4Addr::new(10, 0, n, 0)), 24).unwrap();
        made += usize::from(pools.add(pool, start()).is_ok());
    }
    assert_eq!(made, MAX_POOLS);
    assert_eq!(pools.iter().count(), MAX_POOLS);
}

#[test]
fn without_a_range_only_what_is_named_can_be_had() {
    let mut pools = pools(&[]);
    let now = start();
    let container = || ContainerId::new("c");
    pools.allocate(RequestId(1), container(), None, now);
    pools.prime(RequestId(2), now);
    pools.claim(
        RequestId(3),
        container(),
        "10.0.0.1".parse().unwrap(),
        8,
        now,
    );
    let expected = [
        Err(RequestError::NoPool),
        Err(RequestError::NoPool),
        Ok(Answer::Claimed),
    ];
    assert_eq!(answers(&mut pools), expected);
}

#[test]
fn a_connection_without_pools_is_synced_at_once_and_once() {
    let mut pools = pools(&[]);
    pools.handle_connected(peer(2), start());
    pools.handle_connected(peer(2), start());
    let synced = Event::Synced { peer: peer(2) };
    assert_eq!(pools.poll_event(), Some(synced));
    assert_eq!(pools.poll_event(), None);
}

#[test]
fn a_message_about_no_pool_of_ours_makes_it_ours() {
    let mut theirs = pools(&["172.30.0.0/24"]);
    let now = start();
    theirs.handle_connected(peer(2), now);
    let mut ours = pools(&["10.32.0.0/12"]);
    while let Some(event) = theirs.poll_event() {
        if let Event::Send { bytes, .. } = event {
            ours.handle_message(peer(2), &bytes, now).unwrap();
        }
    }
    let known: Vec<_> = ours.iter().map(|a| a.pool().to_string()).collect();
    assert_eq!(known, ["10.32.0.0/12", "172.30.0.0/24"]);
    assert!(ours.handle_message(peer(2), &[1, 2], now).is_err());
}

#[test]
fn a_saved_pool_around_the_one_we_are_told_of_is_left_alone() {
    let now = start();
    let saved = |text: &str, addr: &str| {
        let mut pools = pools(&[text]);
        pools.allocate(RequestId(1), ContainerId::new(addr), None, now);
        let events = std::iter::from_fn(|| pools.poll_event());
        let mut last = None;
        for event in events {
            if let Event::Persist(saved) = event {
                last = Some(saved);
            }
        }
        last.unwrap()
    };
    let all = vec![saved("10.0.0.0/8", "a"), saved("10.32.5.0/24", "b")];
    let mut pools = Pools::new(told(&["10.32.0.0/12"]), all, [1; 32], now).unwrap();
    let holders: Vec<_> = pools.holders().map(|(c, ..)| c.as_str()).collect();
    assert_eq!(holders, ["b"]);
    let events: Vec<_> = std::iter::from_fn(|| pools.poll_event()).collect();
    let persisted = events
        .iter()
        .position(|event| matches!(event, Event::Persist(s) if s.allocations.len() == 1));
    let forgotten = events
        .iter()
        .position(|event| *event == Event::Forget("10.32.5.0/24".parse().unwrap()));
    assert!(persisted.is_some() && persisted < forgotten, "{events:?}");
}

#[test]
fn words_of_pools_that_cannot_be_ours_are_bounded_and_what_is_beyond_is_counted() {
    let mut pools = pools(&["10.32.0.0/24"]);
    let (now, around) = (start(), "10.32.0.0/16".parse().unwrap());
    let most = u16::try_from(MAX_STRANGE).unwrap();
    let name = |n: u16| {
        let [high, low] = n.to_be_bytes();
        PeerName::from_bytes([2, 0, 0, 1, high, low])
    };
    // Who cannot be reached makes room first.
    pools.set_reachable((0..most + 3).map(name).collect(), now);
    for n in 0..most + 3 {
        pools.handle_digest(name(n), around, Digest::NONE, now);
    }
    assert_eq!((pools.strange.len(), pools.left_out()), (MAX_STRANGE, 3));
    // What is kept already may be said again.
    pools.handle_digest(name(0), around, Digest::NONE, now);
    assert_eq!(pools.left_out(), 3);
    pools.handle_digest_gone(name(0), around);
    pools.handle_digest(name(most), around, Digest::NONE, now);
    assert_eq!(pools.left_out(), 3);
}

#[test]
fn what_a_peer_said_once_of_its_pools_stands_whatever_becomes_of_the_way_to_it() {
    let mut pools = pools(&["10.32.0.0/24"]);
    let (now, around) = (start(), "10.32.0.0/16".parse().unwrap());
    pools.handle_digest(peer(3), around, Digest::NONE, now);
    for (reachable, strange) in [(vec![2], 0), (vec![2, 3], 1), (vec![2], 0), (vec![2, 3], 1)] {
        pools.set_reachable(reachable.iter().map(|n| peer(*n)).collect(), now);
        assert_eq!(pools.strange().count(), strange, "{reachable:?}");
    }
    // Another one says the same for a while.
    pools.handle_digest(peer(2), around, Digest::NONE, now);
    assert_eq!(pools.strange().count(), 1);
    pools.handle_digest_gone(peer(2), around);
    assert_eq!(pools.strange().count(), 1);
    pools.handle_digest_gone(peer(3), around);
    assert_eq!(pools.strange().count(), 0);
}
