//! Stories of several pools: made while peers run, made apart, made one inside the other, and passed
//! on by peers that give out no addresses.

use weft_ipam::{Addr, Allocator, Cidr};

use crate::peer::Settings;
use crate::world::World;

fn pool(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn pools_of(world: &World, n: usize) -> Vec<String> {
    let pools = world.peers[n].up().ipam.iter();
    pools.map(|a| a.pool().to_string()).collect()
}

fn address(world: &World, c: usize) -> Addr {
    let addr = world.model.address(c);
    addr.unwrap_or_else(|| panic!("container {c} has no address"))
}

/// Whom a peer without pools of its own joins between.
fn giving_out_nothing(n: usize) -> Settings {
    let mut settings = Settings::new(n);
    settings.pools.clear();
    settings
}

/// A line: neighbours in it connect, nobody else can.
fn line(seed: u64, peers: Vec<Settings>) -> World {
    let mut world = World::of(seed, 0);
    let count = peers.len();
    for settings in peers {
        world.add(settings);
    }
    for a in 0..count {
        for b in (0..count).filter(|b| a + 1 < *b) {
            world.net.cut.extend([(a, b), (b, a)]);
        }
    }
    for n in 1..count {
        world.connect(n, n - 1);
    }
    world
}

#[test]
fn a_peer_that_gives_out_nothing_stands_between_two_that_do() {
    let peers = vec![Settings::new(0), giving_out_nothing(1), Settings::new(2)];
    let mut world = line(21, peers);
    let all: Vec<_> = [0, 2, 0, 2].map(|n| world.launch(n)).to_vec();
    world.settle();
    assert!(all.iter().all(|c| world.model.address(*c).is_some()));
    assert!(world.model.relayed > 0);
    let status = world.peers[1].up().ipam.iter().next().unwrap().status();
    assert!(!status.founders.contains(&world.peers[1].name));
}

#[test]
fn a_pool_made_at_one_peer_is_one_at_all_peers_and_after_a_restart() {
    let mut world = World::of(22, 3);
    world.connect(1, 0);
    world.connect(2, 0);
    world.settle();
    let first = world.launch_in(1, pool("172.30.0.0/24"));
    world.settle();
    let second = world.launch_in(2, pool("172.30.0.0/24"));
    // Inside a pool that is there, so of it.
    let third = world.launch_in(0, pool("172.30.0.128/25"));
    world.settle();
    for (c, subnet) in [(first, "/24"), (second, "/24"), (third, ".128/25")] {
        let from = match subnet {
            "/24" => pool("172.30.0.0/24"),
            _ => pool("172.30.0.128/25"),
        };
        assert!(from.contains(address(&world, c)));
    }
    for n in 0..3 {
        world.restart(n);
        world.settle();
        assert_eq!(pools_of(&world, n), ["10.32.0.0/24", "172.30.0.0/24"]);
    }
    let late = world.add(Settings::new(3).to(0));
    world.settle();
    assert_eq!(pools_of(&world, late), ["10.32.0.0/24", "172.30.0.0/24"]);
}

#[test]
fn pools_of_which_each_peer_was_told_another_are_joined_by_both() {
    let mut other = Settings::new(1).to(0);
    other.pools = vec![pool("172.30.0.0/24")];
    let mut world = World::of(23, 1);
    world.add(other);
    let pair = [world.launch(0), world.launch(1)];
    world.settle();
    assert!(pool("10.32.0.0/24").contains(address(&world, pair[0])));
    assert!(pool("172.30.0.0/24").contains(address(&world, pair[1])));
}

#[test]
fn a_pool_made_on_both_sides_of_a_cut_is_one_when_they_meet() {
    let mut conflicts = 0;
    for seed in 0..10 {
        let mut world = World::of(seed, 4);
        world.connect(1, 0);
        world.connect(3, 2);
        world.run_secs(3);
        // Of 13 addresses for containers.
        for n in [0, 1, 2, 3, 0, 2] {
            world.launch_in(n, pool("172.30.0.0/28"));
        }
        world.run_secs(5);
        world.connect(2, 0);
        world.settle();
        conflicts += world.model.conflicts;
    }
    assert!(conflicts > 0, "nobody ever had another's address");
}

#[test]
fn a_pool_inside_one_made_elsewhere_is_dissolved_in_it() {
    let (small, large) = (pool("172.30.0.0/28"), pool("172.30.0.0/24"));
    let mut kept = 0;
    for seed in 0..10 {
        let mut world = World::of(seed, 3);
        let inside = [world.launch_in(0, small), world.launch_in(0, small)];
        let around = world.launch_in(1, large);
        world.run_secs(2);
        let before = inside.map(|c| address(&world, c));
        world.connect(1, 0);
        world.connect(2, 0);
        world.settle();
        for n in 0..3 {
            assert_eq!(pools_of(&world, n), ["10.32.0.0/24", "172.30.0.0/24"]);
            let kept: Vec<_> = world.peers[n].disk.pools.keys().copied().collect();
            assert!(!kept.contains(&small), "{kept:?}");
        }
        let now = inside.map(|c| world.model.address(c));
        kept += now.iter().flatten().count();
        for (now, before) in now.into_iter().zip(before) {
            assert!(now.is_none_or(|now| now == before));
        }
        assert!(large.contains(address(&world, around)));
        world.restart(0);
        world.settle();
    }
    assert!(kept > 15, "most addresses were free in the larger pool");
}

#[test]
fn two_that_were_told_of_overlapping_ranges_say_so_over_a_third() {
    let mut other = Settings::new(2);
    other.pools = vec![pool("10.32.0.0/16")];
    let mut world = line(25, vec![Settings::new(0), giving_out_nothing(1), other]);
    world.run_secs(20);
    let strange = |n: usize| world.peers[n].up().ipam.strange().count();
    assert_eq!((strange(0), strange(2)), (1, 1));
}

#[test]
fn an_address_of_no_pool_is_claimed_once_there_is_one() {
    let mut world = World::of(26, 2);
    world.connect(1, 0);
    world.settle();
    let now = world.now;
    let container = weft_ipam::ContainerId::new("by-hand");
    let addr: Addr = "172.30.0.5".parse().unwrap();
    let up = world.peers[0].up.as_mut().unwrap();
    let id = weft_ipam::RequestId(u64::MAX);
    world.model.add_container(0, None);
    world.model.asked.insert((0, id), 0);
    up.ipam.claim(id, container.clone(), addr, 24, now);
    world.work(0);
    let other = world.launch_in(1, pool("172.30.0.0/29"));
    world.settle();
    assert_ne!(address(&world, other), addr);
    let pools = world.peers[0].up().ipam.iter();
    let holder = pools.filter(|a| a.pool() == pool("172.30.0.0/29"));
    let held: Vec<_> = holder.flat_map(Allocator::holders).collect();
    assert_eq!(held, [(&container, addr, 24)]);
}
