//! What a peer said goes with it and comes back with it: soon, not too soon, and never by hearsay.

use std::time::Duration;

use weft_ipam::Addr;

use crate::peer::Settings;
use crate::world::World;

#[test]
fn a_restart_of_a_few_seconds_is_not_noticed_by_those_who_look_names_up() {
    for (seed, silently) in [(41, false), (42, true)] {
        let mut world = full(seed, 4);
        world.kill(1, silently);
        for _ in 0..100 {
            world.run_ms(50);
            assert_eq!(names_of(&world, 0, 1), 1, "while it is away");
        }
        world.start(1);
        for _ in 0..400 {
            world.run_ms(50);
            assert_eq!(names_of(&world, 0, 1), 1, "when it is back");
        }
        world.settle();
    }
}

#[test]
fn a_peer_out_of_reach_and_silent_loses_its_names_everywhere_and_nobody_brings_them_back() {
    let mut world = full(43, 5);
    // One is cut off and goes on knowing the dead peer, as it was.
    for n in [0, 1, 2, 3] {
        world.net.cut.extend([(n, 4), (4, n)]);
    }
    world.run_secs(1);
    world.kill(1, true);
    let mut took = Duration::ZERO;
    while names_of(&world, 0, 1) + names_of(&world, 2, 1) + names_of(&world, 3, 1) > 0 {
        world.run_ms(250);
        took += Duration::from_millis(250);
        assert!(took.as_secs() < 45, "still known after {took:?}");
    }
    assert!(
        took.as_secs() >= 14,
        "gone after {took:?}, a restart takes longer"
    );
    world.net.heal();
    for _ in 0..240 {
        world.run_ms(250);
        for n in [0, 2, 3] {
            assert_eq!(names_of(&world, n, 1), 0, "n{n} was told old news");
        }
    }
    assert_eq!(names_of(&world, 4, 1), 0);
    world.start(1);
    world.settle();
    assert_eq!(names_of(&world, 4, 1), 1);
}

#[test]
fn an_orderly_stop_withdraws_all_at_once() {
    let mut world = full(44, 5);
    world.stop(1);
    world.run_ms(500);
    for n in [0, 2, 3, 4] {
        assert_eq!(names_of(&world, n, 1), 0, "n{n}");
    }
}

#[test]
fn containers_and_routers_that_restart_are_known_everywhere_within_two_seconds() {
    let mut world = line(45, 5);
    let c = world.launch(4);
    world.run_secs(5);
    let (_, container) = world.model.who(c);
    assert_eq!(names_of(&world, 0, 4), 2);
    world.remove(c);
    world.run_secs(2);
    assert_eq!(names_of(&world, 0, 4), 1);
    let again = world.launch(4);
    world.run_secs(2);
    assert_ne!(world.model.who(again).1, container);
    assert_eq!(names_of(&world, 0, 4), 2);

    let mut world = full(46, 5);
    let c = world.launch(1);
    world.run_secs(5);
    let (_, container) = world.model.who(c);
    world.kill(1, false);
    world.run_secs(1);
    // What it holds by the time it is back is what the others know two seconds later.
    world.peers[1]
        .disk
        .names
        .retain(|record| record.container != container.as_str());
    world.start(1);
    world.run_secs(2);
    for n in [0, 2, 3, 4] {
        assert_eq!(names_of(&world, n, 1), 1, "n{n}");
        let router = &world.peers[n].up().router;
        assert!(router.neighbours().contains(&world.peers[1].name), "n{n}");
    }
}

#[test]
fn right_after_the_birth_all_have_their_first_addresses_before_docker_loses_patience() {
    let sizes = [(47, 3), (48, 5), (49, 12)];
    let all = sizes.map(|size| [(size, false), (size, true)]);
    for ((seed, count), claims) in all.into_iter().flatten() {
        let mut world = World::of(seed, count);
        for n in 1..count {
            world.connect(n, 0);
        }
        world.run_secs(10);
        for n in 0..count {
            if !claims {
                world.launch(n);
                continue;
            }
            // Of whomever that will be.
            let host = 1 + (n as u128 * 97 + 60) % 250;
            let first = world.peers[n].settings.pools[0].first();
            world.claim(n, Addr::from_bits(first.to_bits() + host));
        }
        let began = world.now;
        while !world.model.asked.is_empty() {
            world.run_ms(10);
            let took = world.now - began;
            assert!(
                took < Duration::from_millis(1500),
                "{:?}",
                world.model.asked
            );
        }
        assert_eq!(world.model.errors, []);
        world.settle();
    }
}

/// Peers that are all connected, with a named container each.
fn full(seed: u64, count: usize) -> World {
    let mut world = World::of(seed, count);
    for n in 1..count {
        world.connect(n, 0);
    }
    for n in 0..count {
        world.launch(n);
    }
    world.settle();
    world
}

fn line(seed: u64, count: usize) -> World {
    let mut world = World::new(seed);
    world.net.weather.delay_ms = 20;
    for n in 0..count {
        let mut settings = Settings::new(n);
        settings.discovery = false;
        world.add(if n == 0 { settings } else { settings.to(n - 1) });
    }
    for n in 0..count {
        world.launch(n);
    }
    world.settle();
    world
}

/// How many names of `origin` are known at `n`.
fn names_of(world: &World, n: usize, origin: usize) -> usize {
    let origin = world.peers[origin].name;
    let records = world.peers[n].up().names.records();
    records.filter(|record| record.origin == origin).count()
}
