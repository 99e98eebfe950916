//! How rings are born, and requests answered, when nothing goes wrong.

use std::collections::BTreeSet;

use super::cluster::{Cluster, config, name};
use crate::{Addr, Answer, Cidr, ContainerId, Digest, Init, RequestError, RingKind, State};

const POOL: &str = "10.32.0.0/24";

fn pool() -> Cidr {
    POOL.parse().unwrap()
}

fn kind(cluster: &mut Cluster, n: usize) -> RingKind {
    cluster.allocator(n).status().ring.unwrap().kind
}

#[test]
fn nothing_happens_before_somebody_asks() {
    for init in [
        Init::Consensus(None),
        Init::Observer,
        Init::Seed(vec![name(0)]),
    ] {
        let mut cluster = Cluster::meshed(1, POOL, 3, &init);
        cluster.run(30);
        for n in 0..3 {
            assert_eq!(cluster.allocator(n).status().state, State::Idle);
            assert_eq!(cluster.allocator(n).digest(), Digest::NONE);
        }
        assert_eq!(cluster.synced.len(), 6, "barriers open without a ring too");
    }
}

#[test]
fn a_peer_that_knows_of_no_other_makes_a_ring_at_once() {
    let mut cluster = Cluster::new(1, vec![config(0, pool(), Init::Consensus(None), 0)]);
    let id = cluster.allocate(0, "a", None);
    assert!(matches!(
        cluster.answers[&id],
        Ok(Answer::Address { prefix: 24, .. })
    ));
    assert_eq!(kind(&mut cluster, 0), RingKind::Lone);
    assert_eq!(cluster.allocator(0).status().state, State::Ready);
}

#[test]
fn a_peer_with_a_target_that_is_not_there_waits_for_it() {
    let init = Init::Consensus(None);
    let configs = vec![
        config(0, pool(), init.clone(), 1),
        config(1, pool(), init, 0),
    ];
    let mut cluster = Cluster::new(1, configs);
    let id = cluster.allocate(0, "a", None);
    cluster.run(60);
    assert!(!cluster.answers.contains_key(&id));
    let state = cluster.allocator(0).status().state;
    assert_eq!(
        state.to_string(),
        "awaiting consensus (quorum: 2, known: 1)"
    );
    cluster.link(0, 1);
    cluster.run(1);
    assert!(
        cluster.answers.contains_key(&id),
        "not only at the next attempt"
    );
    cluster.run(2);
    cluster.check_converged();
    assert_eq!(kind(&mut cluster, 1), RingKind::Consensus);
}

#[test]
fn three_peers_agree_on_one_ring_of_three_parts_even_if_all_ask_at_once() {
    for seed in 0..20 {
        let mut cluster = Cluster::meshed(seed, POOL, 3, &Init::Consensus(None));
        cluster.faults.delay = 100;
        let ids = [0, 1, 2].map(|n| cluster.allocate(n, "c", None));
        let given: BTreeSet<_> = ids.into_iter().map(|id| cluster.address(id)).collect();
        assert_eq!(given.len(), 3);
        cluster.run(10);
        cluster.check_converged();
        assert_eq!(
            cluster.allocator(0).status().founders.len(),
            3,
            "seed {seed}"
        );
        assert_eq!(kind(&mut cluster, 0), RingKind::Consensus);
    }
}

#[test]
fn a_minority_makes_no_ring() {
    let mut cluster = Cluster::meshed(1, POOL, 3, &Init::Consensus(None));
    cluster.stop(1);
    cluster.stop(2);
    let id = cluster.allocate(0, "a", None);
    cluster.run(120);
    assert!(!cluster.answers.contains_key(&id));
    cluster.start_all();
    cluster.address(id);
}

#[test]
fn a_majority_makes_a_ring_without_the_rest() {
    let mut cluster = Cluster::meshed(1, POOL, 3, &Init::Consensus(Some(3)));
    cluster.stop(2);
    let id = cluster.allocate(0, "a", None);
    cluster.address(id);
    cluster.start_all();
    let id = cluster.allocate(2, "b", None);
    cluster.address(id);
    cluster.run(5);
    cluster.check_converged();
}

#[test]
fn an_acceptor_keeps_its_word_over_a_restart() {
    // Peer 0's decree is accepted by 1 alone besides itself; 1 restarts, 0 stays away.
    for seed in 0..20 {
        let mut cluster = Cluster::meshed(seed, POOL, 3, &Init::Consensus(Some(3)));
        cluster.faults.crash = 20;
        cluster.faults.delay = 400;
        let _ = cluster.allocate(0, "a", None);
        cluster.run(3);
        cluster.faults.crash = 0;
        cluster.start_all();
        let ids = [0, 1, 2].map(|n| cluster.allocate(n, "z", None));
        for id in ids {
            cluster.address(id);
        }
        cluster.run(10);
        cluster.check_converged();
        assert_eq!(cluster.conflicts, [], "seed {seed}");
    }
}

#[test]
fn seeded_peers_need_nobody() {
    let init = Init::Seed(vec![name(1), name(0)]);
    let configs = (0..3).map(|n| config(n, pool(), init.clone(), 2)).collect();
    let mut cluster = Cluster::new(1, configs);
    for n in 0..2 {
        let id = cluster.allocate(n, "a", None);
        assert!(cluster.answers[&id].is_ok(), "at once");
    }
    assert_eq!(cluster.allocator(0).digest(), cluster.allocator(1).digest());
    // Not in the list, and so without space until it meets one that has some.
    let id = cluster.allocate(2, "a", None);
    cluster.run(10);
    assert!(!cluster.answers.contains_key(&id));
    assert_eq!(cluster.allocator(2).status().state, State::Unreachable);
    cluster.link(1, 2);
    cluster.address(id);
    cluster.link(0, 1);
    cluster.run(5);
    cluster.check_converged();
}

#[test]
fn an_observer_makes_others_begin_and_does_not_vote() {
    let mut configs: Vec<_> = (0..3)
        .map(|n| config(n, pool(), Init::Consensus(None), 1))
        .collect();
    configs[2].init = Init::Observer;
    let mut cluster = Cluster::new(1, configs);
    let id = cluster.allocate(2, "a", None);
    cluster.run(20);
    assert_eq!(cluster.allocator(2).status().state, State::Priming);
    cluster.link_all(&[0, 1, 2]);
    cluster.address(id);
    cluster.run(5);
    cluster.check_converged();
    let founders = cluster.allocator(2).status().founders;
    assert_eq!(founders, [name(0), name(1)]);
}

#[test]
fn a_peer_without_targets_reckons_with_the_peers_it_sees_but_not_with_observers() {
    let mut configs: Vec<_> = (0..6)
        .map(|n| config(n, pool(), Init::Observer, 1))
        .collect();
    configs[0] = config(0, pool(), Init::Consensus(None), 0);
    let mut cluster = Cluster::new(1, configs);
    cluster.link_all(&[0, 1, 2, 3, 4, 5]);
    let id = cluster.allocate(0, "a", None);
    cluster.address(id);
    let founders = cluster.allocator(0).status().founders;
    assert_eq!(founders, [name(0)]);
}

#[test]
fn priming_waits_for_a_ring_and_gets_one_that_is_there() {
    let mut cluster = Cluster::meshed(1, POOL, 2, &Init::Consensus(None));
    let id = cluster.prime(0);
    assert_eq!(cluster.outcome(id), Some(Ok(Answer::Primed)));
    cluster.run(5);
    let id = cluster.prime(1);
    assert_eq!(cluster.answers[&id], Ok(Answer::Primed));
}

#[test]
fn a_container_gets_the_same_address_again_but_another_in_another_subnet() {
    let mut cluster = Cluster::meshed(1, POOL, 1, &Init::Consensus(None));
    let first = cluster.allocate(0, "a", None);
    let again = cluster.allocate(0, "a", None);
    let first = cluster.address(first);
    assert_eq!(cluster.address(again), first);
    let subnet: Cidr = "10.32.0.64/26".parse().unwrap();
    let other = cluster.allocate(0, "b", Some("10.32.0.64/26"));
    assert!(subnet.contains(cluster.address(other)));
}

#[test]
fn a_peer_without_space_is_given_some_until_all_is_used_and_waits_then() {
    let mut cluster = Cluster::meshed(1, "10.32.0.0/28", 3, &Init::Seed(vec![name(0)]));
    let mut given = BTreeSet::new();
    for n in 0..14 {
        let id = cluster.allocate(n % 3, &format!("c{n}"), None);
        assert!(given.insert(cluster.address(id)));
    }
    let waiting = cluster.allocate(1, "late", None);
    cluster.run(30);
    assert!(!cluster.answers.contains_key(&waiting));
    let status = cluster.allocator(1).status();
    assert_eq!(
        status.state.to_string(),
        "waiting for IP(s) to become available"
    );
    let words = status.pending[0].waits_for.to_string();
    assert!(
        words.starts_with("waiting for 10.32.0.0/28 space from 02:"),
        "{words}"
    );
    let (container, addr) = cluster
        .running
        .iter()
        .find(|((n, _), _)| *n == 2)
        .map(|((_, container), addr)| (container.clone(), *addr))
        .unwrap();
    cluster.free(2, &container, addr);
    assert_eq!(cluster.address(waiting), addr);
    cluster.run(5);
    cluster.check_converged();
}

#[test]
fn a_cancelled_request_is_not_answered_and_takes_no_address() {
    let mut cluster = Cluster::meshed(1, POOL, 2, &Init::Consensus(None));
    let id = cluster.allocate(0, "a", None);
    cluster.allocator(0).cancel(id);
    cluster.run(30);
    assert!(!cluster.answers.contains_key(&id));
    assert_eq!(cluster.allocator(0).holders().count(), 0);
}

#[test]
fn an_address_of_another_peer_is_claimed_from_it() {
    let mut cluster = Cluster::meshed(1, POOL, 3, &Init::Seed(vec![name(0), name(1), name(2)]));
    let far: Addr = "10.32.0.200".parse().unwrap();
    let id = cluster.claim(0, "a", far);
    assert_eq!(cluster.outcome(id), Some(Ok(Answer::Claimed)));
    cluster.run(5);
    let owner = cluster.allocator(1).ring.as_ref().unwrap().owner_of(far);
    assert_eq!(owner, Some(name(0)));
    let id = cluster.claim(1, "b", far);
    assert_eq!(
        cluster.outcome(id),
        Some(Err(RequestError::InUse {
            addr: far,
            peer: name(0)
        }))
    );
    // Again by its holder, and by another one on the same host.
    let id = cluster.claim(0, "a", far);
    assert_eq!(cluster.outcome(id), Some(Ok(Answer::Claimed)));
    let id = cluster.claim(0, "c", far);
    let by = ContainerId::new("a");
    assert_eq!(
        cluster.outcome(id),
        Some(Err(RequestError::Held { addr: far, by }))
    );
    cluster.run(5);
    cluster.check_converged();
}

#[test]
fn an_address_outside_of_the_pool_is_only_written_down() {
    let mut cluster = Cluster::meshed(1, POOL, 2, &Init::Consensus(None));
    let outside: Addr = "192.168.0.7".parse().unwrap();
    for (n, container) in [(0, "a"), (0, "b"), (1, "c")] {
        let id = cluster.claim(n, container, outside);
        assert_eq!(cluster.answers[&id], Ok(Answer::Claimed));
    }
    cluster.running.clear();
    assert_eq!(cluster.allocator(0).digest(), Digest::NONE);
    assert_eq!(
        cluster.allocator(0).lookup(&ContainerId::new("a")),
        [(outside, 24)]
    );
}

#[test]
fn requests_that_cannot_be_met_are_refused_with_the_reason() {
    let mut config = config(0, pool(), Init::Consensus(None), 0);
    config.reserved = vec!["10.32.0.254".parse().unwrap()];
    let mut cluster = Cluster::new(1, vec![config]);
    let refused = |cluster: &mut Cluster, id| {
        cluster
            .answers
            .remove(&id)
            .unwrap()
            .unwrap_err()
            .to_string()
    };
    let id = cluster.allocate(0, "a", Some("10.33.0.0/24"));
    assert_eq!(
        refused(&mut cluster, id),
        "range 10.33.0.0/24 out of bounds: 10.32.0.0/24"
    );
    let id = cluster.allocate(0, "a", Some("10.32.0.0/31"));
    assert_eq!(
        refused(&mut cluster, id),
        "invalid subnet - smaller than minimum size 4: 10.32.0.0/31"
    );
    for (addr, words) in [
        ("10.32.0.254", "is reserved on every peer"),
        ("10.32.0.0", "is the network or broadcast address"),
        ("10.32.0.255", "is the network or broadcast address"),
    ] {
        let id = cluster.claim(0, "a", addr.parse().unwrap());
        let refusal = refused(&mut cluster, id);
        assert!(refusal.contains(words), "{refusal}");
    }
    assert_eq!(cluster.allocator(0).digest(), Digest::NONE);
}

#[test]
fn of_ipv6_the_first_address_alone_is_refused_and_prefixes_are_longer() {
    let pool = "fd57:1::/64".parse().unwrap();
    let mut cluster = Cluster::new(1, vec![config(0, pool, Init::Consensus(None), 0)]);
    let id = cluster.claim(0, "a", "fd57:1::ffff:ffff:ffff:ffff".parse().unwrap());
    assert_eq!(cluster.answers[&id], Ok(crate::Answer::Claimed));
    for (addr, prefix, words) in [
        ("fd57:1::", 64, "stands for the routers"),
        (
            "fd57:1::7",
            129,
            "prefix length 129 of fd57:1::7 is above 128",
        ),
        ("fd57:1::7", 0, "would have all IPv4 addresses in it"),
        ("10.32.0.7", 33, "prefix length 33 of 10.32.0.7 is above 32"),
    ] {
        let id = crate::RequestId(1000 + u64::from(prefix));
        let mut allocator = cluster.allocator(0).clone();
        while allocator.poll_event().is_some() {}
        let who = crate::ContainerId::new("b");
        allocator.claim(id, who, addr.parse().unwrap(), prefix, cluster.now);
        let answers = std::iter::from_fn(|| allocator.poll_event());
        let mut said = Vec::new();
        for event in answers {
            if let crate::Event::Answer { result, .. } = event {
                said.push(result.unwrap_err().to_string());
            }
        }
        assert!(said.len() == 1 && said[0].contains(words), "{said:?}");
    }
}

#[test]
fn too_many_waiting_requests_are_refused() {
    let mut cluster = Cluster::new(1, vec![config(0, pool(), Init::Observer, 1)]);
    for _ in 0..crate::MAX_PENDING {
        cluster.prime(0);
    }
    let id = cluster.prime(0);
    assert_eq!(cluster.answers[&id], Err(RequestError::TooMany));
}

#[test]
fn freeing_a_container_ends_its_requests() {
    let mut cluster = Cluster::meshed(1, POOL, 1, &Init::Consensus(None));
    let a = ContainerId::new("a");
    let first = cluster.allocate(0, "a", None);
    let first = cluster.address(first);
    let outside: Addr = "192.168.0.7".parse().unwrap();
    cluster.claim(0, "a", outside);
    let now = cluster.now;
    let freed = cluster.with(0, |al| al.free_all(&a, now));
    assert_eq!(freed, [(first, 24), (outside, 24)]);
    assert!(cluster.with(0, |al| al.free(&a, first, now)).is_err());
    assert_eq!(cluster.with(0, |al| al.free_all(&a, now)), []);

    let mut cluster = Cluster::new(1, vec![config(0, pool(), Init::Observer, 1)]);
    let id = cluster.allocate(0, "a", None);
    let now = cluster.now;
    cluster.with(0, |al| al.free_all(&a, now));
    assert_eq!(
        cluster.answers[&id],
        Err(RequestError::Freed { container: a })
    );
}
