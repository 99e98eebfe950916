//! That the electors hold nothing up: not the first addresses after the birth, and no takeover
//! because the ring changes all the time.

use std::time::Duration;

use super::cluster::{Cluster, config, name};
use super::reclaim::TIMES;
use crate::{Addr, Init, RequestError, RequestId, Times};

/// What the first addresses of a network may take: Docker's plugin waits for five seconds in all.
const FIRST: Duration = Duration::from_millis(1500);

fn pool() -> crate::Cidr {
    "10.32.0.0/24".parse().unwrap()
}

fn addr(host: u128) -> Addr {
    Addr::from_bits(pool().first().to_bits() + host)
}

/// Founders and, behind them, observers, all linked, on a network with delays.
fn linked(seed: u64, founders: usize, observers: usize, times: Times) -> Cluster {
    let count = founders + observers;
    let configs = (0..count).map(|n| {
        let init = match n < founders {
            true => Init::Consensus(Some(founders)),
            false => Init::Observer,
        };
        let config = config(n, pool(), init, count - 1);
        crate::Config { times, ..config }
    });
    let mut cluster = Cluster::new(seed, configs.collect());
    cluster.watch_owners = true;
    cluster.faults.delay = 40;
    cluster.link_all(&(0..count).collect::<Vec<_>>());
    cluster
}

/// Until all are answered.
fn until_answered(cluster: &mut Cluster, ids: &[RequestId], bound: Duration) -> Duration {
    let began = cluster.now;
    while ids.iter().any(|id| !cluster.answers.contains_key(id)) {
        cluster.step();
        let took = cluster.now - began;
        if took > bound {
            let peers = (0..cluster.peers.len()).map(|n| cluster.allocator(n).status().pending);
            panic!("after {took:?}: {:?}", peers.collect::<Vec<_>>());
        }
    }
    cluster.now - began
}

#[test]
fn right_after_the_birth_everybody_gets_its_first_addresses() {
    for seed in 0..20 {
        let (founders, observers) = match seed % 4 {
            0 => (1, 2),
            1 => (3, 0),
            2 => (5, 3),
            _ => (8, 8),
        };
        let mut cluster = linked(seed, founders, observers, Times::DEFAULT);
        cluster.run(1);
        let count = u32::try_from(founders + observers).unwrap();
        let mut ids = Vec::new();
        for n in 0..count {
            let at = usize::try_from(n).unwrap();
            // Of whomever that will be.
            let host = 1 + (n * 97 + 60) % 250;
            ids.push(cluster.claim(at, &format!("claims{n}"), addr(host.into())));
            ids.push(cluster.allocate(at, &format!("asks{n}"), None));
        }
        // A message takes a step of 50 ms at least, and here many are after the same addresses.
        let bound = if count > 8 { FIRST * 2 } else { FIRST };
        until_answered(&mut cluster, &ids, bound);
        for id in ids {
            // What one claims another one may have been given before.
            let answer = &cluster.answers[&id];
            let answered = matches!(answer, Ok(_) | Err(RequestError::InUse { .. }));
            assert!(answered, "{answer:?}");
        }
    }
}

/// One address goes from peer to peer, again and again, so that hardly two rings are ever alike.
fn pass_around(cluster: &mut Cluster, turn: usize, living: &[usize]) {
    for (lane, host) in [(0, 7), (1, 91), (2, 150)] {
        let to = living[(turn + lane) % living.len()];
        let held = cluster.running.iter().find(|(_, a)| **a == addr(host));
        if let Some(((n, container), _)) = held.map(|(who, a)| (who.clone(), *a)) {
            cluster.free(n, &container, addr(host));
        }
        cluster.claim(to, &format!("lane{lane}.{turn}"), addr(host));
    }
}

#[test]
fn a_dead_peer_is_taken_over_though_the_ring_changes_all_the_time() {
    for seed in 0..6 {
        let founders = 3 + usize::try_from(seed % 3).unwrap();
        let mut cluster = linked(seed, founders, 2, TIMES);
        let id = cluster.prime(0);
        until_answered(&mut cluster, &[id], FIRST);
        let ids: Vec<_> = (0..founders + 2)
            .map(|n| cluster.allocate(n, &format!("first{n}"), None))
            .collect();
        until_answered(&mut cluster, &ids, FIRST);
        cluster.run(3);
        cluster.stop(1);
        let living: Vec<_> = (0..founders + 2).filter(|n| *n != 1).collect();
        let began = cluster.now;
        let mut changes = 0;
        let mut turn = 0;
        let mut before = cluster.allocator(0).digest();
        let owns = |cluster: &mut Cluster, n: usize| {
            let owners = cluster.allocator(n).status().owners;
            owners.iter().any(|owner| owner.peer == name(1))
        };
        while living.iter().any(|n| owns(&mut cluster, *n)) {
            pass_around(&mut cluster, turn, &living);
            turn += 1;
            for _ in 0..2 {
                cluster.step();
            }
            let now = cluster.allocator(0).digest();
            changes += u32::from(std::mem::replace(&mut before, now) != now);
            let took = cluster.now - began;
            assert!(
                took < TIMES.takeover * 3 / 2,
                "seed {seed}: {took:?}, {changes} changes"
            );
        }
        assert!(changes > 100, "{changes} changes are no hindrance");
        cluster.run(20);
    }
}

#[test]
fn who_waits_for_a_peer_that_waits_for_the_electors_is_told_so() {
    let mut cluster = linked(1, 3, 1, TIMES);
    let id = cluster.prime(0);
    until_answered(&mut cluster, &[id], FIRST);
    cluster.run(3);
    cluster.part(&[&[0, 3], &[1, 2]]);
    cluster.run(15);
    let ring = cluster.allocator(0).ring.as_ref().unwrap();
    let (_, last) = ring.owned_by(name(0))[0].ends().unwrap();
    cluster.claim(3, "claims", Addr::from_bits(last.to_bits() - 1));
    cluster.allocate(3, "asks", None);
    cluster.run(5);
    let pending = cluster.allocator(3).status().pending;
    let words: Vec<_> = pending.iter().map(|p| p.waits_for.to_string()).collect();
    assert!(
        words[0].ends_with("02:00:00:00:00:01, which waits for the electors itself"),
        "{words:?}"
    );
    assert!(
        words[1].ends_with("; some of it waits for the electors itself"),
        "{words:?}"
    );
    cluster.part(&[&[0, 1, 2, 3]]);
    cluster.run(10);
    assert_eq!(cluster.allocator(3).status().pending, []);
}
