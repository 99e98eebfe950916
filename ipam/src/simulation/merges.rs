//! Rings born apart that meet.

use std::collections::BTreeSet;

use super::cluster::{Cluster, Faults, config, name, pool_of};
use super::faults::{FAULTS, cut_or_heal, end_of_faults, use_somehow};
use weft_wire::PeerName;

use crate::{Addr, Answer, ContainerId, Init, RequestError, RingKind, State};
use rand_core::Rng;

/// Peers that each made a ring of their own, with some containers.
fn apart(seed: u64, pool: &str, peers: usize, containers: usize) -> Cluster {
    let pool = pool.parse().unwrap();
    let configs = (0..peers)
        .map(|n| config(n, pool, Init::Consensus(None), 0))
        .collect();
    let mut cluster = Cluster::new(seed, configs);
    for n in 0..peers {
        for c in 0..containers {
            let id = cluster.allocate(n, &format!("c{n}.{c}"), None);
            assert!(cluster.answers[&id].is_ok());
        }
    }
    cluster
}

/// All addresses in use, before and after, and those that were lost, must add up.
fn check_nothing_vanished(cluster: &Cluster, before: usize) {
    let lost: BTreeSet<_> = cluster.conflicts.iter().map(|(n, c, ..)| (n, c)).collect();
    assert_eq!(cluster.running.len() + lost.len(), before);
}

#[test]
fn two_hosts_that_started_alone_keep_all_their_addresses_when_they_meet() {
    for seed in 0..10 {
        let mut cluster = apart(seed, &pool_of(seed, 20), 2, 50);
        cluster.link(0, 1);
        cluster.run(5);
        cluster.check_converged();
        assert_eq!(cluster.conflicts, [], "seed {seed}");
        assert_eq!(cluster.running.len(), 100);
        assert_eq!(cluster.synced.len(), 2);
        assert_eq!(cluster.allocator(0).status().state, State::Ready);
        for n in 0..2 {
            let id = cluster.allocate(n, "new", None);
            cluster.address(id);
        }
    }
}

#[test]
fn an_address_used_on_both_sides_stays_with_the_ring_that_survives() {
    for seed in 0..10 {
        let mut cluster = apart(seed, &pool_of(seed, 4), 2, 12);
        let both: BTreeSet<Addr> = cluster.running.values().copied().collect();
        cluster.link(0, 1);
        cluster.run(10);
        cluster.check_converged();
        assert_eq!(cluster.conflicts.len(), 24 - both.len());
        check_nothing_vanished(&cluster, 24);
        let losers: BTreeSet<_> = cluster.conflicts.iter().map(|(n, ..)| *n).collect();
        assert_eq!(losers.len(), 1, "seed {seed}");
        let loser = *losers.first().unwrap();
        let conflicts = cluster.allocator(loser).status().conflicts;
        assert_eq!(conflicts.len(), cluster.conflicts.len());
        // The way out: free the address and ask for another.
        let lost = conflicts[0].clone();
        assert_eq!(cluster.allocator(loser).lookup(&lost.container), []);
        let id = cluster.claim(loser, lost.container.as_str(), lost.addr);
        assert!(matches!(
            cluster.outcome(id),
            Some(Err(RequestError::InUse { .. }))
        ));
        let now = cluster.now;
        let freed = cluster.with(loser, |a| a.free_all(&lost.container, now));
        assert_eq!(
            freed,
            [(lost.addr, cluster.peers[loser].config.pool.prefix())]
        );
    }
}

#[test]
fn a_conflict_is_told_again_after_a_restart() {
    let mut cluster = apart(1, "10.32.0.0/28", 2, 12);
    cluster.link(0, 1);
    cluster.run(10);
    let sorted = |cluster: &Cluster| cluster.conflicts.iter().cloned().collect::<BTreeSet<_>>();
    let told = sorted(&cluster);
    let loser = cluster.conflicts[0].0;
    cluster.conflicts.clear();
    cluster.stop(loser);
    cluster.start_all();
    assert_eq!(sorted(&cluster), told);
    cluster.run(5);
    cluster.check_converged();
    assert_eq!(sorted(&cluster), told);
}

#[test]
fn peers_behind_the_one_that_meets_settle_before_frames_flow() {
    // A ring of three in a line, and one of two; their middles meet. Promise 4 is checked
    // at each step by the cluster itself.
    for seed in 0..30 {
        let pool = pool_of(seed, 5).parse().unwrap();
        let alone = |n| config(n, pool, Init::Consensus(None), 0);
        let mut cluster = Cluster::new(seed, (0..5).map(alone).collect());
        cluster.faults.delay = 300;
        cluster.link(0, 1);
        cluster.link(1, 2);
        cluster.link(3, 4);
        for n in 0..5 {
            for c in 0..5 {
                cluster.allocate(n, &format!("c{n}.{c}"), None);
            }
        }
        cluster.run(30);
        let before = cluster.running.len();
        assert_eq!(before, 25);
        cluster.link(1, 3);
        cluster.run(30);
        cluster.check_converged();
        check_nothing_vanished(&cluster, before);
    }
}

#[test]
fn many_rings_meet_under_faults() {
    for seed in 0..20 {
        let mut cluster = apart(seed, &pool_of(seed, 6), 5, 8);
        cluster.faults = Faults {
            loss: 100,
            repeat: 100,
            crash: 5,
            delay: 400,
        };
        cluster.link(0, 1);
        cluster.run(2);
        cluster.link(2, 3);
        cluster.run(1);
        cluster.link(1, 2);
        cluster.run(10);
        cluster.link_all(&[0, 1, 2, 3, 4]);
        cluster.run(30);
        cluster.faults = Faults::default();
        cluster.start_all();
        cluster.run(30);
        cluster.check_converged();
        check_nothing_vanished(&cluster, 40);
        let rings: BTreeSet<_> = (0..5).map(|n| cluster.allocator(n).status().ring).collect();
        assert_eq!(rings.len(), 1, "seed {seed}");
    }
}

#[test]
fn rings_that_meet_and_part_at_random_never_let_one_address_be_reached_twice() {
    for seed in 0..12 {
        let mut cluster = apart(seed, &pool_of(seed, 6), 5, 6);
        cluster.faults = FAULTS;
        let mut containers = 0;
        for step in 0..1200 {
            if step % 13 == 0 {
                use_somehow(&mut cluster, &mut containers);
            }
            if step % 40 == 39 {
                let [a, b] = [0, 1].map(|_| usize::try_from(cluster.rng.next_u64() % 5).unwrap());
                if a != b {
                    cluster.link(a, b);
                }
            }
            if step % 300 == 299 {
                cut_or_heal(&mut cluster);
            }
            if step % 100 == 99 {
                cluster.slow_topology = !cluster.slow_topology;
            }
            cluster.step();
        }
        cluster.slow_topology = false;
        end_of_faults(&mut cluster);
        cluster.check_converged();
    }
}

#[test]
fn a_seeded_ring_survives_one_born_by_agreement_and_that_one_a_lone_one() {
    let pool = "10.32.0.0/24".parse().unwrap();
    let configs = vec![
        config(0, pool, Init::Consensus(None), 0),
        config(1, pool, Init::Consensus(Some(1)), 0),
        config(2, pool, Init::Seed(vec![name(2)]), 0),
    ];
    let mut cluster = Cluster::new(1, configs);
    for n in 0..3 {
        let id = cluster.allocate(n, "c", None);
        cluster.address(id);
    }
    cluster.link(0, 1);
    cluster.run(5);
    let kind = |cluster: &mut Cluster, n| cluster.allocator(n).status().ring.unwrap().kind;
    assert_eq!(kind(&mut cluster, 0), RingKind::Consensus);
    cluster.link(1, 2);
    cluster.run(5);
    assert_eq!(kind(&mut cluster, 0), RingKind::Seed);
    cluster.check_converged();
}

#[test]
fn whoever_wants_a_ring_takes_the_one_it_meets() {
    let pool = "10.32.0.0/24".parse().unwrap();
    let configs = vec![
        config(0, pool, Init::Consensus(None), 0),
        config(1, pool, Init::Consensus(None), 2),
    ];
    let mut cluster = Cluster::new(1, configs);
    let id = cluster.allocate(0, "a", None);
    cluster.address(id);
    let id = cluster.allocate(1, "b", None);
    cluster.run(20);
    cluster.link(0, 1);
    cluster.address(id);
    cluster.run(5);
    cluster.check_converged();
    assert_eq!(
        cluster.allocator(1).status().ring.unwrap().kind,
        RingKind::Lone
    );
}

#[test]
fn an_owner_that_cannot_be_reached_holds_no_barrier_up_for_long() {
    // Peers 0 and 1 share a ring; 1 is down when 2, of another ring, meets 0.
    for seed in 0..10 {
        let mut cluster = apart(seed, "10.32.0.0/12", 1, 0);
        cluster.peers.clear();
        let pool = "10.32.0.0/24".parse().unwrap();
        let configs = vec![
            config(0, pool, Init::Seed(vec![name(0), name(1)]), 0),
            config(1, pool, Init::Seed(vec![name(0), name(1)]), 0),
            config(2, pool, Init::Consensus(None), 0),
        ];
        let mut cluster = Cluster::new(seed, configs);
        let far: Addr = "10.32.0.200".parse().unwrap();
        for (n, container) in [(1, "owner's"), (2, "stranger's")] {
            let id = cluster.claim(n, container, far);
            assert_eq!(cluster.outcome(id), Some(Ok(Answer::Claimed)));
        }
        let id = cluster.allocate(0, "a", None);
        cluster.address(id);
        cluster.stop(1);
        cluster.link(0, 2);
        cluster.run(8);
        assert_eq!(cluster.synced.len(), 2, "seed {seed}");
        let status = cluster.allocator(2).status();
        assert!(!status.unsettled[0].reachable);
        assert_eq!(
            cluster.allocator(2).lookup(&ContainerId::new("stranger's")),
            [(far, 24)]
        );
        cluster.link(0, 1);
        cluster.start_all();
        // The owner is back, reachable from 2 over 0: the address is settled now.
        cluster.run(0);
        for _ in 0..10 {
            cluster.running.remove(&(2, ContainerId::new("stranger's")));
            cluster.step();
        }
        cluster.run(10);
        let lost: Vec<_> = cluster
            .conflicts
            .iter()
            .map(|(n, _, a, h)| (*n, *a, *h))
            .collect();
        assert_eq!(lost, [(2, far, name(1))]);
        cluster.check_converged();
    }
}

#[test]
fn nobody_gets_a_new_address_while_addresses_are_being_settled() {
    for seed in 0..10 {
        let mut cluster = apart(seed, "10.32.0.0/24", 2, 5);
        cluster.faults.delay = 500;
        cluster.link(0, 1);
        let is_settling = |cluster: &mut Cluster, n| {
            matches!(cluster.allocator(n).status().state, State::Settling { .. })
        };
        let loser = loop {
            cluster.step();
            if let Some(n) = (0..2).find(|n| is_settling(&mut cluster, *n)) {
                break n;
            }
        };
        let id = cluster.allocate(loser, "new", None);
        while is_settling(&mut cluster, loser) {
            assert!(!cluster.answers.contains_key(&id));
            let words = cluster.allocator(loser).status().pending[0]
                .waits_for
                .to_string();
            assert!(words.contains("settle"), "{words}");
            cluster.step();
        }
        cluster.address(id);
        cluster.run(3);
        cluster.check_converged();
    }
}

#[test]
fn an_owner_not_yet_known_to_be_reachable_is_waited_for() {
    for seed in 0..10 {
        let pool = "10.32.0.0/24".parse().unwrap();
        let seeded = |n| config(n, pool, Init::Seed(vec![name(0), name(1)]), 0);
        let configs = vec![
            seeded(0),
            seeded(1),
            config(2, pool, Init::Consensus(None), 0),
        ];
        let mut cluster = Cluster::new(seed, configs);
        let far: Addr = "10.32.0.200".parse().unwrap();
        for (n, container) in [(1, "owner's"), (2, "stranger's")] {
            let id = cluster.claim(n, container, far);
            assert_eq!(cluster.outcome(id), Some(Ok(Answer::Claimed)));
        }
        cluster.link(0, 1);
        cluster.run(5);
        cluster.slow_topology = true;
        cluster.link(0, 2);
        // The cluster checks at each step that 2 reaches 1 only once it lost the address.
        cluster.run(10);
        let lost: Vec<_> = cluster
            .conflicts
            .iter()
            .map(|(n, _, a, _)| (*n, *a))
            .collect();
        assert_eq!(lost, [(2, far)]);
        cluster.check_converged();
    }
}

/// Peers 3 and 4 have the ring of the owner 0, which is away; 1 and 2 each hold an address of it.
fn claimants(seed: u64, owner_holds_it: bool) -> (Cluster, Addr) {
    let pool = "10.32.0.0/24".parse().unwrap();
    let seeds = || Init::Seed(vec![name(0), name(3)]);
    let configs = vec![
        config(0, pool, seeds(), 0),
        config(1, pool, Init::Consensus(None), 0),
        config(2, pool, Init::Consensus(None), 0),
        config(3, pool, seeds(), 0),
        config(4, pool, seeds(), 0),
    ];
    let mut cluster = Cluster::new(seed, configs);
    let contended: Addr = "10.32.0.7".parse().unwrap();
    for (n, container) in [(0, "owner's"), (1, "first"), (2, "second")] {
        if n != 0 || owner_holds_it {
            let id = cluster.claim(n, container, contended);
            assert_eq!(cluster.outcome(id), Some(Ok(Answer::Claimed)));
        }
    }
    for n in [3, 4] {
        cluster.prime(n);
    }
    cluster.stop(0);
    cluster.link(1, 3);
    cluster.link(2, 4);
    cluster.run(15);
    assert_eq!(cluster.synced.len(), 4, "nobody waits for the owner");
    assert_eq!(cluster.conflicts, []);
    (cluster, contended)
}

fn lost(cluster: &Cluster) -> Vec<(usize, Addr, PeerName)> {
    let conflicts = cluster.conflicts.iter();
    conflicts.map(|(n, _, a, h)| (*n, *a, *h)).collect()
}

#[test]
fn two_that_hold_an_address_of_an_owner_away_decide_before_peers_between_them_open() {
    for seed in 0..20 {
        let (mut cluster, contended) = claimants(seed, false);
        cluster.faults.delay = 300;
        cluster.slow_topology = seed % 2 == 0;
        // The cluster checks that 1 and 2 never reach each other while both use it.
        cluster.link(3, 4);
        cluster.run(20);
        assert_eq!(lost(&cluster), [(2, contended, name(1))], "seed {seed}");
        cluster.link(0, 4);
        cluster.start_all();
        cluster.run(15);
        cluster.check_converged();
        assert_eq!(
            cluster.conflicts.len(),
            1,
            "the owner grants it to the one left"
        );
    }
}

#[test]
fn an_owner_that_comes_back_with_a_claimed_address_waits_until_the_claimant_lost_it() {
    for seed in 0..20 {
        let (mut cluster, contended) = claimants(seed, true);
        cluster.faults.delay = 300;
        cluster.slow_topology = seed % 2 == 0;
        cluster.link(0, 3);
        cluster.start_all();
        cluster.run(20);
        assert_eq!(lost(&cluster), [(1, contended, name(0))], "seed {seed}");
        cluster.link(3, 4);
        cluster.run(20);
        assert_eq!(lost(&cluster).len(), 2);
        cluster.check_converged();
    }
}

#[test]
fn two_peers_that_both_take_a_dead_one_over_end_with_one_owner() {
    for seed in 0..10 {
        let mut cluster = Cluster::meshed(
            seed,
            "10.32.0.0/26",
            3,
            &Init::Seed((0..3).map(name).collect()),
        );
        for n in 0..3 {
            let id = cluster.prime(n);
            cluster.outcome(id);
        }
        cluster.run(5);
        cluster.stop(2);
        cluster.cut(&BTreeSet::from([0]));
        for n in 0..2 {
            let now = cluster.now;
            assert_eq!(cluster.with(n, |a| a.take_over(name(2), now)), 32);
            for c in 0..20 {
                let id = cluster.allocate(n, &format!("c{n}.{c}"), None);
                assert!(cluster.answers[&id].is_ok());
            }
        }
        cluster.link(0, 1);
        cluster.run(10);
        let digest = cluster.allocator(0).digest();
        assert_eq!(cluster.allocator(1).digest(), digest);
        check_nothing_vanished(&cluster, 40);
        let losers: BTreeSet<_> = cluster.conflicts.iter().map(|(n, ..)| *n).collect();
        assert!(losers.len() <= 1, "seed {seed}: one side keeps all it has");
    }
}
