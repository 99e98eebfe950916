//! Peers that die, and peers that only seem to: takeovers by the electors, with clocks that run
//! unequally, and each rule broken once to see that the checks notice.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use rand_core::Rng;

use super::cluster::{Cluster, Faults, config, name, pool_of};
use super::faults::use_somehow;
use crate::{Addr, Init, RequestId, Rule, Rules, Saved, Times};

pub(super) const POOL: &str = "10.32.0.0/26";
/// As the defaults, but in seconds.
pub(super) const TIMES: Times = Times {
    ack: Duration::from_millis(500),
    fence: Duration::from_secs(12),
    takeover: Duration::from_secs(24),
    aside: Duration::from_secs(60),
    season: Duration::from_secs(5),
};
const FAULTS: Faults = Faults {
    loss: 50,
    repeat: 50,
    crash: 1,
    delay: 200,
};

/// Peers with these rules, of which the first `founders` are linked and make a ring.
fn born(seed: u64, rules: Rules, peers: usize, founders: usize) -> Cluster {
    let pool = pool_of(seed, 6).parse().unwrap();
    let seeds = Init::Seed((0..founders).map(name).collect());
    let configs = (0..peers).map(|n| crate::Config {
        times: TIMES,
        rules,
        ..config(n, pool, seeds.clone(), founders - 1)
    });
    let mut cluster = Cluster::new(seed, configs.collect());
    cluster.watch_owners = true;
    cluster.link_all(&(0..founders).collect::<Vec<_>>());
    let id = cluster.prime(0);
    cluster.outcome(id).unwrap().unwrap();
    cluster.run(3);
    cluster
}

/// Rates of the clocks between 0.6 and 1.6, the fastest less than twice as fast as the slowest.
fn unequal_clocks(cluster: &mut Cluster) {
    let slowest = 600 + cluster.rng.next_u32() % 201;
    for n in 0..cluster.peers.len() {
        cluster.peers[n].rate = slowest + cluster.rng.next_u32() % (slowest * 99 / 100);
    }
}

fn share(cluster: &mut Cluster, at: usize, of: usize) -> u128 {
    let owners = cluster.allocator(at).status().owners;
    let owner = owners.iter().find(|owner| owner.peer == name(of));
    owner.map_or(0, |owner| owner.addresses)
}

#[test]
fn a_dead_peers_space_comes_back_in_time() {
    for seed in 0..10 {
        let mut cluster = born(seed, Rules::KEPT, 3, 3);
        unequal_clocks(&mut cluster);
        cluster.run(2);
        cluster.stop(1);
        // 24 s by a clock of rate 0.6, and two attempts.
        cluster.run(10);
        assert_eq!(share(&mut cluster, 0, 1), 16);
        cluster.run(40);
        for n in [0, 2] {
            assert_eq!(share(&mut cluster, n, 1), 0, "seed {seed}");
            let status = cluster.allocator(n).status();
            assert_eq!(status.owners.iter().map(|o| o.addresses).sum::<u128>(), 64);
        }
        let ids: Vec<_> = (0..62)
            .map(|n| cluster.allocate(n % 2 * 2, &format!("c{n}"), None))
            .collect();
        for id in ids {
            cluster.address(id);
        }
    }
}

#[test]
fn a_peer_cut_off_keeps_what_it_has_and_gives_out_nothing_new_after_the_fence() {
    let mut cluster = born(1, Rules::KEPT, 3, 3);
    let held = cluster.allocate(0, "held", None);
    let held = cluster.address(held);
    cluster.run(2);
    cluster.cut(&BTreeSet::from([0]));
    let early = cluster.allocate(0, "early", None);
    assert!(cluster.answers[&early].is_ok(), "within the fence");
    cluster.run(13);
    let late = cluster.allocate(0, "late", None);
    cluster.run(60);
    assert!(!cluster.answers.contains_key(&late));
    let words = cluster.allocator(0).status().pending[0]
        .waits_for
        .to_string();
    assert!(words.contains("02:00:00:00:00:02"), "{words}");
    let again = cluster.allocate(0, "held", None);
    assert_eq!(cluster.address(again), held, "its own it always gets");
    assert!(share(&mut cluster, 1, 0) == 0, "taken over");
    cluster.link_all(&[0, 1, 2]);
    cluster.address(late);
    cluster.run(10);
    cluster.check_converged();
    assert_eq!(cluster.conflicts, [], "what it used was set aside for it");
    let again = cluster.allocate(0, "held", None);
    assert_eq!(cluster.address(again), held);
}

#[test]
fn what_was_set_aside_is_given_out_in_the_end() {
    let mut cluster = born(1, Rules::KEPT, 3, 3);
    let ids: Vec<RequestId> = (0..10)
        .map(|n| cluster.allocate(1, &format!("d{n}"), None))
        .collect();
    let held: BTreeSet<Addr> = ids.into_iter().map(|id| cluster.address(id)).collect();
    cluster.run(2);
    cluster.stop(1);
    cluster.running.clear();
    cluster.run(40);
    let ids: Vec<RequestId> = (0..53)
        .map(|n| cluster.allocate(0, &format!("c{n}"), None))
        .collect();
    cluster.run(35);
    let given =
        |cluster: &Cluster| -> BTreeSet<Addr> { cluster.running.values().copied().collect() };
    assert_eq!(given(&cluster).len(), 52);
    assert!(given(&cluster).is_disjoint(&held));
    cluster.run(60);
    assert!(cluster.answers.contains_key(&ids[52]));
    assert!(!given(&cluster).is_disjoint(&held));
}

#[test]
fn peers_that_stay_become_electors_and_dead_ones_are_electors_no_more() {
    let mut cluster = born(1, Rules::KEPT, 5, 1);
    assert_eq!(cluster.allocator(0).status().electors.len(), 1);
    cluster.link_all(&[0, 1, 2, 3, 4]);
    for n in 1..5 {
        let id = cluster.allocate(n, &format!("c{n}"), None);
        cluster.address(id);
    }
    cluster.run(30);
    assert_eq!(cluster.allocator(4).status().electors.len(), 5);
    cluster.stop(0);
    cluster.run(40);
    let electors = cluster.allocator(4).status().electors;
    assert_eq!(electors.len(), 4);
    assert_eq!(share(&mut cluster, 4, 0), 0);
}

#[test]
fn with_two_electors_nothing_is_taken_over_but_by_the_operator() {
    let mut cluster = born(1, Rules::KEPT, 2, 2);
    cluster.stop(1);
    cluster.run(60);
    let survivor = cluster.allocator(0).status();
    assert!(survivor.unfenced, "either is a blocking set");
    assert!(!survivor.reclaims[0].quorum);
    cluster.stop(0);
    cluster.peers[0].back_at = cluster.now;
    cluster.run(60);
    assert!(
        cluster.allocator(0).status().unfenced,
        "also after a restart"
    );
    for n in 0..31 {
        let id = cluster.allocate(0, &format!("own{n}"), None);
        assert!(cluster.answers[&id].is_ok());
    }
    let more = cluster.allocate(0, "more", None);
    cluster.run(60);
    let words = waits_for(&mut cluster, 0);
    assert!(words.contains("unreachable: 02:00:00:00:00:02"), "{words}");
    assert_eq!(share(&mut cluster, 0, 1), 32);
    let now = cluster.now;
    assert_eq!(cluster.with(0, |a| a.take_over(name(1), now)), 32);
    let electors = cluster.allocator(0).status().electors;
    assert_eq!(electors.len(), 1);
    assert!(cluster.answers[&more].is_ok());
}

fn waits_for(cluster: &mut Cluster, n: usize) -> String {
    let pending = cluster.allocator(n).status().pending;
    pending[0].waits_for.to_string()
}

/// Of two electors one dies while they make a third: the other must not go on, for it does not know
/// whether they did.
#[test]
fn of_two_electors_one_that_dies_while_they_rule_is_waited_for() {
    for (seed, comes_back) in [(1, true), (2, false)] {
        let mut cluster = born(seed, Rules::KEPT, 3, 2);
        cluster.link_all(&[0, 1, 2]);
        let id = cluster.allocate(2, "c", None);
        cluster.address(id);
        // The proposer votes, and the other one hears no more of it.
        let voted = |cluster: &mut Cluster, n| cluster.allocator(n).council.accepted().is_some();
        for _ in 0..20 * 60 {
            if !voted(&mut cluster, 0) {
                cluster.step();
            }
        }
        assert!(voted(&mut cluster, 0) && !voted(&mut cluster, 1));
        cluster.stop(1);
        cluster.run(15);
        let id = cluster.allocate(0, "fenced", None);
        cluster.run(30);
        let words = waits_for(&mut cluster, 0);
        assert!(
            words.starts_with("waiting for 1 more of the electors"),
            "{words}"
        );
        assert!(words.contains("unreachable: 02:00:00:00:00:02"), "{words}");
        assert!(!cluster.answers.contains_key(&id));
        if comes_back {
            cluster.start_all();
        } else {
            let now = cluster.now;
            cluster.with(0, |a| a.take_over(name(1), now));
        }
        cluster.run(10);
        assert!(cluster.answers[&id].is_ok());
        if comes_back {
            cluster.run(30);
            cluster.check_converged();
        }
    }
}

#[test]
fn an_operator_frees_the_last_elector_from_the_dead() {
    let mut cluster = born(1, Rules::KEPT, 3, 3);
    cluster.stop(1);
    cluster.stop(2);
    cluster.run(20);
    let id = cluster.allocate(0, "c", None);
    cluster.run(20);
    assert!(!cluster.answers.contains_key(&id));
    for dead in [1, 2] {
        let now = cluster.now;
        cluster.with(0, |a| a.take_over(name(dead), now));
    }
    assert!(cluster.answers[&id].is_ok());
}

/// One on one side, two on the other, and joins on the side of the one; long enough for a takeover.
fn one_against_two(seed: u64, rules: Rules) {
    let mut cluster = born(seed, rules, 5, 3);
    unequal_clocks(&mut cluster);
    cluster.run(2);
    let mut containers = 0;
    let busy = |cluster: &mut Cluster, containers: &mut u64, seconds: u64| {
        for _ in 0..seconds * 2 {
            use_somehow(cluster, containers);
            for _ in 0..10 {
                cluster.step();
            }
        }
    };
    busy(&mut cluster, &mut containers, 5);
    let old_disk = cluster.peers[0].disk.clone();
    cluster.cut(&BTreeSet::from([0, 3, 4]));
    cluster.link_all(&[0, 3, 4]);
    busy(&mut cluster, &mut containers, 20);
    // An elector is restarted during the count.
    let restarted = cluster.rng.next_u64().is_multiple_of(2);
    if restarted {
        cluster.stop(1);
        cluster.start_all();
    }
    busy(&mut cluster, &mut containers, 60);
    // It was taken over since, but has voted for nothing.
    if cluster.rng.next_u64().is_multiple_of(2) {
        cluster.restore(0, old_disk);
        busy(&mut cluster, &mut containers, 5);
    }
    cluster.link_all(&[0, 1, 2, 3, 4]);
    busy(&mut cluster, &mut containers, 10);
    cluster.run(40);
    cluster.check_converged();
}

#[test]
fn one_cut_off_with_newcomers_is_taken_over_and_comes_back() {
    for seed in 0..8 {
        one_against_two(seed, Rules::KEPT);
    }
}

/// An elector that forgets a vote makes a takeover unsafe: see `docs/ipam.md`.
fn forgets_no_vote(old: Option<&Saved>, cluster: &Cluster, n: usize) -> bool {
    let now = cluster.peers[n].disk.as_ref();
    old.zip(now)
        .is_some_and(|(old, now)| old.votes == now.votes)
}

/// Cuts, restarts, deaths and old disks at random, one after the other.
fn at_random(seed: u64, rules: Rules) {
    let mut cluster = born(seed, rules, 5, 4);
    unequal_clocks(&mut cluster);
    cluster.link_all(&[0, 1, 2, 3, 4]);
    cluster.faults = FAULTS;
    let mut containers = 0;
    let mut old = vec![None; 5];
    for _ in 0..16 {
        let n = usize::try_from(cluster.rng.next_u64() % 5).unwrap();
        match cluster.rng.next_u64() % 8 {
            0 | 1 => {
                let all = 0..5;
                let side = all.filter(|_| cluster.rng.next_u64().is_multiple_of(2));
                let side: Vec<usize> = side.collect();
                cluster.cut(&side.into_iter().collect());
            }
            2 => cluster.cut(&BTreeSet::from([n])),
            3 => cluster.stop(n),
            4 => cluster.start_all(),
            5 => old[n].clone_from(&cluster.peers[n].disk),
            6 if forgets_no_vote(old[n].as_ref(), &cluster, n) => {
                cluster.restore(n, old[n].clone());
            }
            _ => {
                cluster.start_all();
                cluster.link_all(&[0, 1, 2, 3, 4]);
            }
        }
        let seconds = cluster.rng.next_u64() % 20;
        for _ in 0..seconds * 2 {
            use_somehow(&mut cluster, &mut containers);
            for _ in 0..10 {
                cluster.step();
            }
        }
    }
    cluster.faults = Faults::default();
    cluster.start_all();
    cluster.link_all(&[0, 1, 2, 3, 4]);
    cluster.run(60);
    cluster.check_converged();
}

#[test]
fn whatever_is_cut_off_restarted_or_put_back_no_address_has_two_owners() {
    for seed in 0..8 {
        at_random(seed, Rules::KEPT);
    }
}

fn is_found_out(rule: Rule, run: fn(u64, Rules), seeds: u64) {
    let rules = Rules::breaking(rule);
    let mut seeds = 0..seeds;
    let found = seeds.any(|seed| catch_unwind(AssertUnwindSafe(|| run(seed, rules))).is_err());
    assert!(found, "nobody noticed that the rule {rule} was broken");
}

/// Two that made a ring alone, with most addresses in use on both sides, meet.
fn meeting(seed: u64, rules: Rules) {
    let pool = "10.32.0.0/28".parse().unwrap();
    let alone = |n| crate::Config {
        rules,
        ..config(n, pool, Init::Consensus(None), 0)
    };
    let mut cluster = Cluster::new(seed, (0..2).map(alone).collect());
    cluster.faults.delay = 300;
    for n in 0..2 {
        for c in 0..12 {
            cluster.allocate(n, &format!("c{n}.{c}"), None);
        }
    }
    cluster.link(0, 1);
    cluster.run(10);
    cluster.check_converged();
}

#[test]
fn a_broken_barrier_is_found_out() {
    meeting(0, Rules::KEPT);
    is_found_out(Rule::Barrier, meeting, 5);
}

#[test]
fn a_broken_fence_is_found_out() {
    is_found_out(Rule::Fence, one_against_two, 10);
}

#[test]
fn votes_before_their_time_are_found_out() {
    is_found_out(Rule::TakeoverAge, one_against_two, 10);
}

#[test]
fn a_minority_that_rules_is_found_out() {
    is_found_out(Rule::ElectorQuorum, one_against_two, 10);
}
