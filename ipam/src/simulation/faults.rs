//! One ring under every fault at once: no address twice, nothing lost, all alike in the end.

use std::collections::BTreeSet;

use rand_core::Rng;

use super::cluster::{Cluster, Faults, name, pool_of};
use crate::{Addr, ContainerId, Init, RingKind};

pub(super) const FAULTS: Faults = Faults {
    loss: 100,
    repeat: 100,
    crash: 3,
    delay: 400,
};

/// One random thing a user does.
pub(super) fn use_somehow(cluster: &mut Cluster, containers: &mut u64) {
    let n = usize::try_from(cluster.rng.next_u64()).unwrap() % cluster.peers.len();
    if cluster.peers[n].allocator.is_none() {
        return;
    }
    let dice = cluster.rng.next_u64() % 10;
    let held = cluster.running.iter().filter(|((peer, _), _)| *peer == n);
    let held: Vec<_> = held.map(|((_, c), a)| (c.clone(), *a)).collect();
    match dice {
        0..5 => {
            *containers += 1;
            cluster.allocate(n, &format!("c{containers}"), None);
        }
        5..8 => {
            let at = usize::try_from(cluster.rng.next_u64()).unwrap();
            if let Some((container, addr)) = held.get(at.checked_rem(held.len()).unwrap_or(0)) {
                cluster.free(n, container, *addr);
            }
        }
        _ => {
            *containers += 1;
            let pool = cluster.peers[n].config.pool;
            // Of a pool too large to fill, a place where others claim, too.
            let hosts = pool.size().min(64) - 2;
            let offset = 1 + u128::from(cluster.rng.next_u32()) % hosts;
            let addr = Addr::from_bits(pool.first().to_bits() + offset);
            cluster.claim(n, &format!("c{containers}"), addr);
        }
    }
}

pub(super) fn cut_or_heal(cluster: &mut Cluster) {
    let count = cluster.peers.len();
    let all: Vec<_> = (0..count).collect();
    if cluster.rng.next_u64().is_multiple_of(2) {
        cluster.link_all(&all);
    } else {
        let side: BTreeSet<_> = all
            .into_iter()
            .filter(|_| cluster.rng.next_u64().is_multiple_of(2))
            .collect();
        cluster.cut(&side);
    }
}

pub(super) fn end_of_faults(cluster: &mut Cluster) {
    cluster.faults = Faults::default();
    cluster.start_all();
    let all: Vec<_> = (0..cluster.peers.len()).collect();
    cluster.link_all(&all);
    cluster.run(30);
}

fn one_ring_under_faults(seed: u64, init: &Init, peers: usize) {
    // Small, so that it runs short of addresses, or as large as they are in practice.
    let pool = match seed % 6 {
        5 => "fd57:1::/64".to_owned(),
        _ => pool_of(seed, 6),
    };
    let mut cluster = Cluster::meshed(seed, &pool, peers, init);
    let id = cluster.prime(0);
    cluster.outcome(id).unwrap().unwrap();
    cluster.run(5);
    cluster.faults = FAULTS;
    let everybody = (0..peers).collect();
    let mut containers = 0;
    for step in 0..1500 {
        if step % 7 == 0 {
            use_somehow(&mut cluster, &mut containers);
        }
        if step % 150 == 149 {
            cut_or_heal(&mut cluster);
        }
        cluster.step();
        // One ring: never twice, reachable or not.
        cluster.check_unique(&everybody);
    }
    end_of_faults(&mut cluster);
    cluster.check_converged();
    assert_eq!(cluster.conflicts, [], "seed {seed}");
    let given = cluster.answers.values().filter(|a| a.is_ok()).count();
    assert!(given > 40, "seed {seed}: only {given} requests were met");
}

#[test]
fn no_address_is_given_twice_within_a_ring_whatever_fails() {
    for seed in 0..12 {
        one_ring_under_faults(seed, &Init::Consensus(None), 4);
    }
}

#[test]
fn no_address_is_given_twice_when_one_peer_owned_all_at_first() {
    for seed in 0..12 {
        one_ring_under_faults(seed, &Init::Seed(vec![name(0)]), 4);
    }
}

#[test]
fn a_birth_under_faults_ends_in_one_ring_and_no_address_reachable_twice() {
    for seed in 0..25 {
        let mut cluster = Cluster::meshed(seed, &pool_of(seed, 6), 4, &Init::Consensus(Some(4)));
        cluster.faults = FAULTS;
        let mut containers = 0;
        for step in 0..800 {
            if step % 11 == 0 {
                use_somehow(&mut cluster, &mut containers);
            }
            if step % 200 == 199 {
                cut_or_heal(&mut cluster);
            }
            cluster.step();
        }
        end_of_faults(&mut cluster);
        let id = cluster.prime(0);
        cluster.outcome(id).unwrap().unwrap();
        cluster.run(5);
        cluster.check_converged();
        let ring = cluster.allocator(0).status().ring.unwrap();
        assert_eq!(ring.kind, RingKind::Consensus);
        assert_eq!(
            cluster.conflicts,
            [],
            "one decree, so one ring: seed {seed}"
        );
    }
}

#[test]
fn after_the_last_fault_every_peer_gets_what_is_left() {
    for seed in 0..5 {
        let mut cluster = Cluster::meshed(seed, &pool_of(seed, 5), 3, &Init::Consensus(None));
        cluster.faults = FAULTS;
        let mut containers = 0;
        for step in 0..600 {
            if step % 20 == 0 {
                use_somehow(&mut cluster, &mut containers);
            }
            cluster.step();
        }
        end_of_faults(&mut cluster);
        let free = 30
            - cluster.allocator(0).status().active
            - cluster.allocator(1).status().active
            - cluster.allocator(2).status().active;
        let ids: Vec<_> = (0..free)
            .map(|n| cluster.allocate(n % 3, &format!("last{n}"), None))
            .collect();
        for id in ids {
            cluster.address(id);
        }
        cluster.run(5);
        cluster.check_converged();
    }
}

#[test]
fn a_dead_peers_space_is_taken_over() {
    let mut cluster = Cluster::meshed(1, "10.32.0.0/26", 3, &Init::Consensus(None));
    let id = cluster.prime(0);
    cluster.outcome(id).unwrap().unwrap();
    cluster.run(5);
    let now = cluster.now;
    assert_eq!(
        cluster.with(0, |a| a.take_over(name(1), now)),
        0,
        "it lives"
    );
    cluster.stop(1);
    let now = cluster.now;
    assert_eq!(cluster.with(0, |a| a.take_over(name(0), now)), 0);
    assert_eq!(cluster.with(0, |a| a.take_over(name(1), now)), 16);
    assert_eq!(cluster.with(0, |a| a.take_over(name(1), now)), 0);
    cluster.run(3);
    assert_eq!(cluster.allocator(0).digest(), cluster.allocator(2).digest());
}

#[test]
fn a_peer_taken_over_by_mistake_gets_back_what_it_uses_unless_it_was_given_out() {
    let mut cluster = Cluster::meshed(3, "10.32.0.0/28", 2, &Init::Consensus(None));
    let ids = ["a", "b", "c"].map(|c| cluster.allocate(1, c, None));
    let held = ids.map(|id| cluster.address(id));
    cluster.run(5);
    cluster.cut(&BTreeSet::from([0]));
    let now = cluster.now;
    assert_eq!(cluster.with(0, |a| a.take_over(name(1), now)), 8);
    let id = cluster.claim(0, "thief", held[0]);
    assert!(cluster.answers[&id].is_ok());
    cluster.link(0, 1);
    cluster.run(10);
    cluster.check_converged();
    let lost: Vec<_> = cluster
        .conflicts
        .iter()
        .map(|(n, _, a, h)| (*n, *a, *h))
        .collect();
    assert_eq!(lost, [(1, held[0], name(0))]);
    let status = cluster.allocator(1).status();
    assert_eq!(status.conflicts.len(), 1);
    assert_eq!(cluster.allocator(1).lookup(&ContainerId::new("a")), []);
    assert_eq!(cluster.allocator(1).lookup(&ContainerId::new("b")).len(), 1);
}

#[test]
fn a_peer_that_leaves_gives_its_space_to_one_that_stays() {
    let mut cluster = Cluster::meshed(1, "10.32.0.0/26", 3, &Init::Consensus(None));
    let id = cluster.allocate(1, "a", None);
    cluster.address(id);
    cluster.run(5);
    let now = cluster.now;
    let heir = cluster.with(1, |a| a.hand_over(now));
    assert_eq!(heir, Some(name(0)));
    cluster.running.clear();
    cluster.run(1);
    cluster.stop(1);
    cluster.run(5);
    let owners = cluster.allocator(2).status().owners;
    assert_eq!(owners.iter().map(|o| o.addresses).sum::<u128>(), 64);
    assert!(owners.iter().all(|o| o.peer != name(1)));

    cluster.stop(2);
    let now = cluster.now;
    assert_eq!(
        cluster.with(0, |a| a.hand_over(now)),
        None,
        "nobody is there"
    );
    assert!(cluster.allocator(0).status().owners[0].addresses > 0);
}
