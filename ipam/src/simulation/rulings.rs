//! One story for each rule of the electors: what goes wrong without it, step by step, with the cuts
//! made at the worst moments. With all rules kept every story ends well.
//!
//! Peers 0, 1, ... are the electors, the last one is an observer that owns a range.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::cluster::{Cluster, config, name};
use super::reclaim::{POOL, TIMES};
use crate::{Addr, Init, Rule, Rules};

/// So many electors and one observer that owns something, all linked.
fn with_observer(seed: u64, rules: Rules, electors: usize) -> Cluster {
    with_clocks(seed, rules, &vec![1000; electors + 1])
}

/// The same with clocks of these rates, the observer's last.
fn with_clocks(seed: u64, rules: Rules, rates: &[u32]) -> Cluster {
    let electors = rates.len() - 1;
    let pool = POOL.parse().unwrap();
    let seeds = Init::Seed((0..electors).map(name).collect());
    let configs = (0..=electors).map(|n| {
        let init = match n < electors {
            true => seeds.clone(),
            false => Init::Observer,
        };
        crate::Config {
            times: TIMES,
            rules,
            ..config(n, pool, init, electors)
        }
    });
    let mut cluster = Cluster::new(seed, configs.collect());
    cluster.watch_owners = true;
    for (peer, rate) in cluster.peers.iter_mut().zip(rates) {
        peer.rate = *rate;
    }
    cluster.link_all(&(0..=electors).collect::<Vec<_>>());
    let id = cluster.allocate(electors, "first", None);
    cluster.address(id);
    cluster.run(2);
    assert!(cluster.allocator(electors).status().unfenced);
    cluster
}

fn rulings(cluster: &mut Cluster, n: usize) -> u32 {
    let ring = cluster.allocator(n).ring.as_ref();
    ring.map_or(0, |ring| ring.roll().rulings())
}

/// Runs until a peer knows of so many rulings, and not a step longer.
fn until_ruling(cluster: &mut Cluster, n: usize, number: u32, seconds: u64) {
    for _ in 0..seconds * 20 {
        if rulings(cluster, n) >= number {
            return;
        }
        cluster.step();
    }
    panic!("{n} knows of no ruling {number}");
}

/// Runs until a peer may use what it owns, or the time is over.
fn until_unfenced(cluster: &mut Cluster, n: usize, seconds: u64) {
    for _ in 0..seconds * 20 {
        if cluster.allocator(n).status().unfenced {
            return;
        }
        cluster.step();
    }
}

/// All meet, and all comes right.
fn meet(cluster: &mut Cluster) {
    let all: Vec<_> = (0..cluster.peers.len()).collect();
    cluster.link_all(&all);
    cluster.run(60);
    cluster.check_converged();
}

/// An address of a peer's range that nobody holds.
fn free_address_of(cluster: &mut Cluster, n: usize) -> Addr {
    let ring = cluster.allocator(n).ring.as_ref().unwrap();
    let last = ring.owned_by(name(n)).last().copied().unwrap();
    Addr::from_bits(last.ends().unwrap().1.to_bits() - 1)
}

/// One of the two that took a peer over does not hear that they did, and meets the peer.
fn voted(seed: u64, rules: Rules, restarted: bool) {
    let mut cluster = with_observer(seed, rules, 3);
    cluster.part(&[&[0, 1, 2], &[3]]);
    cluster.run(20);
    cluster.part(&[&[0, 1], &[2], &[3]]);
    until_ruling(&mut cluster, 0, 1, 10);
    cluster.part(&[&[0], &[1, 2, 3]]);
    assert_eq!(rulings(&mut cluster, 1), 0, "it voted and knows no more");
    if restarted {
        cluster.stop(1);
        cluster.start_all();
    }
    until_unfenced(&mut cluster, 3, 3);
    cluster.part(&[&[0, 1, 2], &[3]]);
    cluster.run(5);
    meet(&mut cluster);
}

/// A peer that is about to be taken over grants something to one that was just acknowledged, and whose
/// clock is slow.
fn granted_at_the_last_moment(seed: u64, rules: Rules) {
    let mut cluster = with_clocks(seed, rules, &[1500, 1500, 800, 800]);
    cluster.part(&[&[0, 1, 3], &[2]]);
    cluster.run(13);
    cluster.part(&[&[0, 1], &[2, 3]]);
    let addr = free_address_of(&mut cluster, 2);
    cluster.claim(3, "late", addr);
    until_ruling(&mut cluster, 0, 1, 10);
    cluster.run(3);
    meet(&mut cluster);
}

/// A peer grants something, unseen, before it is taken over; later the other shows its grant to one
/// of the electors.
fn granted_unseen(seed: u64, rules: Rules) {
    let mut cluster = with_observer(seed, rules, 3);
    cluster.part(&[&[0, 1, 3], &[2]]);
    cluster.run(2);
    cluster.part(&[&[0, 1], &[2, 3]]);
    let addr = free_address_of(&mut cluster, 2);
    cluster.claim(3, "unseen", addr);
    cluster.run(2);
    let ring = cluster.allocator(3).ring.as_ref().unwrap();
    assert_eq!(ring.owner_of(addr), Some(name(3)));
    cluster.part(&[&[0, 1], &[2], &[3]]);
    until_ruling(&mut cluster, 0, 1, 25);
    cluster.run(1);
    cluster.part(&[&[0], &[1, 3], &[2]]);
    cluster.run(3);
    meet(&mut cluster);
}

/// Three electors of five take the other two over; one of them does not hear of it, and with the two
/// is what a peer needs, while the other two are a majority now.
fn electors_changed_unseen(seed: u64, rules: Rules) {
    let mut cluster = with_observer(seed, rules, 5);
    cluster.part(&[&[0, 1, 2, 5], &[3, 4]]);
    cluster.run(10);
    cluster.part(&[&[0, 1, 2], &[3, 4, 5]]);
    until_ruling(&mut cluster, 0, 1, 20);
    cluster.part(&[&[0, 1], &[2, 3, 4, 5]]);
    assert_eq!(rulings(&mut cluster, 2), 0, "it voted and knows no more");
    until_ruling(&mut cluster, 0, 2, 40);
    cluster.run(3);
    meet(&mut cluster);
}

/// The same, but the third hears of it: it had acknowledged the peer when the two who are a majority
/// now had not heard of the peer for long.
fn electors_changed(seed: u64, rules: Rules) {
    let mut cluster = with_clocks(seed, rules, &[1000, 1000, 1000, 1000, 1000, 700]);
    cluster.part(&[&[0, 1, 2, 5], &[3, 4]]);
    cluster.run(5);
    cluster.part(&[&[0, 1], &[2, 5], &[3, 4]]);
    cluster.run(13);
    cluster.part(&[&[0, 1], &[2], &[3, 4, 5]]);
    cluster.run(4);
    cluster.part(&[&[0, 1, 2], &[3, 4, 5]]);
    until_ruling(&mut cluster, 0, 1, 10);
    cluster.run(10);
    meet(&mut cluster);
}

/// Electors that were just started do not know who asked before.
fn electors_restarted(seed: u64, rules: Rules) {
    let mut cluster = with_observer(seed, rules, 3);
    cluster.run(30);
    cluster.part(&[&[0, 1, 2], &[3]]);
    for n in 0..3 {
        cluster.stop(n);
    }
    cluster.start_all();
    cluster.run(10);
    meet(&mut cluster);
}

/// What the story ends with if the rule is broken, and well if it is not.
fn is_needed(rule: Rule, story: impl Fn(u64, Rules)) {
    for seed in 0..4 {
        story(seed, Rules::KEPT);
        let broken = || story(seed, Rules::breaking(rule));
        let why = catch_unwind(AssertUnwindSafe(broken)).expect_err("nobody noticed");
        let why = why.downcast_ref::<String>().cloned().unwrap_or_default();
        assert!(why.contains("has two owners"), "seed {seed}: {why}");
    }
}

#[test]
fn an_elector_that_voted_acknowledges_the_peer_no_more() {
    is_needed(Rule::Refusal, |seed, rules| voted(seed, rules, false));
}

#[test]
fn an_elector_knows_what_it_voted_for_after_a_restart() {
    is_needed(Rule::Votes, |seed, rules| voted(seed, rules, true));
}

#[test]
fn an_acknowledgement_counts_only_for_what_was_owned_then() {
    is_needed(Rule::Knowledge, granted_at_the_last_moment);
}

#[test]
fn what_a_peer_granted_unseen_is_void_once_it_is_taken_over() {
    is_needed(Rule::Cover, granted_unseen);
}

#[test]
fn an_elector_acknowledges_nobody_before_it_knows_who_the_electors_are() {
    is_needed(Rule::Outcome, electors_changed_unseen);
}

#[test]
fn silence_is_counted_from_a_change_of_the_electors() {
    is_needed(Rule::Recount, electors_changed);
}

#[test]
fn silence_is_counted_from_an_electors_start() {
    is_needed(Rule::Recount, electors_restarted);
}
