//! Single stories, each of which must end well.

use weft_ipam::Init;
use weft_router::Psk;

use crate::peer::Settings;
use crate::world::{Delivery, World};

#[test]
fn three_peers_that_connect_through_one_all_see_each_other() {
    let mut world = World::of(1, 3);
    world.connect(1, 0);
    world.connect(2, 0);
    let took = world.settle();
    assert!(took.as_secs() < 10, "{took:?}");
}

#[test]
fn two_that_dial_each_other_keep_one_connection() {
    for seed in 0..30 {
        let mut world = World::of(seed, 2);
        world.connect(0, 1);
        let pause = world.random(60);
        world.run_ms(pause);
        world.connect(1, 0);
        let took = world.settle();
        assert!(took.as_secs() < 10, "{took:?}");
        assert_eq!(world.net.pipes.len(), 2);
    }
}

#[test]
fn the_ends_of_a_line_speak_through_the_middle_until_they_can_directly() {
    let mut world = World::of(3, 5);
    for a in 0..5 {
        for b in (0..5).filter(|b| a + 1 < *b) {
            world.net.cut.extend([(a, b), (b, a)]);
        }
    }
    for n in 1..5 {
        world.connect(n, n - 1);
    }
    world.settle();
    assert!(world.model.relayed > 0);
    assert!(!world.frames_pass(0, 4));

    world.net.heal();
    world.settle();
    assert!(world.frames_pass(0, 4));
    let relayed = world.model.relayed;
    world.exchange_frames();
    assert_eq!(world.model.relayed, relayed, "the direct way is taken");
}

#[test]
fn a_peer_without_discovery_is_reached_over_the_one_it_knows() {
    let mut world = World::of(4, 2);
    let mut settings = Settings::new(2).to(0);
    settings.discovery = false;
    world.add(settings);
    world.connect(1, 0);
    world.net.dial_cut.insert((1, 2));
    world.settle();
    assert!(!world.frames_pass(1, 2));
    assert!(world.model.relayed > 0);
}

#[test]
fn two_that_cannot_dial_each_other_open_a_way_over_a_third() {
    for seed in 0..10 {
        let mut world = World::of(100 + seed, 3);
        world.net.dial_cut.extend([(1, 2), (2, 1)]);
        world.connect(1, 0);
        world.connect(2, 0);
        world.settle();
        world.net.weather.loss = 150;
        wait(&mut world, "a way is opened", |world| {
            world.frames_pass(1, 2)
        });
        world.net.udp_cut.extend([(1, 2), (2, 1)]);
        wait(&mut world, "frames go over the third", |world| {
            !world.frames_pass(1, 2)
        });
        world.net.weather.loss = 0;
        world.settle();
        let relayed = world.model.relayed;
        world.exchange_frames();
        assert!(world.model.relayed > relayed);
        world.net.udp_cut.clear();
        wait(&mut world, "a way is opened again", |world| {
            world.frames_pass(1, 2)
        });
        world.settle();
    }
}

/// A dial that fails, an attempt, the waits between, and datagrams that are lost.
fn wait(world: &mut World, what: &str, is: impl Fn(&World) -> bool) {
    for _ in 0..600 {
        if is(world) {
            return;
        }
        world.run_ms(500);
    }
    panic!("not within five minutes: {what}");
}

#[test]
fn datagrams_that_pass_one_way_only_make_frames_go_around() {
    let mut world = World::of(5, 3);
    world.connect(1, 0);
    world.connect(2, 0);
    world.settle();
    world.net.udp_cut.insert((1, 2));
    world.run_secs(40);
    world.settle();
    assert!(!world.frames_pass(1, 2));
    assert!(world.model.relayed > 0);
}

#[test]
fn a_killed_peer_is_back_within_seconds_with_its_addresses_and_names() {
    for (seed, silently) in [(6, false), (7, true)] {
        let mut world = World::of(seed, 3);
        world.connect(1, 0);
        world.connect(2, 0);
        let c = world.launch(1);
        world.settle();
        let address = world.model.address(c).unwrap();

        world.kill(1, silently);
        world.run_secs(3);
        world.start(1);
        let took = world.settle();
        assert!(took.as_secs() < 15, "{took:?}");
        assert_eq!(world.model.address(c), Some(address));
        let names = &world.peers[2].up().names;
        assert_eq!(names.reverse(address.into()).len(), 1);
    }
}

#[test]
fn the_names_of_a_peer_that_is_gone_go_with_it() {
    let mut world = World::of(8, 3);
    world.connect(1, 0);
    world.connect(2, 0);
    world.launch(1);
    world.settle();
    assert_eq!(world.peers[0].up().names.records().count(), 3);

    world.stop(1);
    world.run_secs(1);
    assert_eq!(world.peers[0].up().names.records().count(), 2);
    world.kill(2, true);
    world.run_secs(60);
    assert_eq!(world.peers[0].up().names.records().count(), 1);
    assert!(world.peers[0].up().router.connected().is_empty());
}

#[test]
fn a_crash_before_the_address_is_written_promises_nothing() {
    for seed in 0..20 {
        let mut world = World::of(seed, 2);
        world.connect(1, 0);
        world.run_secs(5);
        world.crashes = 1_000;
        let containers: Vec<_> = (0..4).map(|n| world.launch(n % 2)).collect();
        world.run_secs(5);
        world.crashes = 0;
        world.run_secs(6);
        for c in containers {
            if world.model.address(c).is_none() {
                world.ask(c);
            }
        }
        world.settle();
        assert_eq!(world.model.holding.len(), 4, "seed {seed}");
    }
}

#[test]
fn both_sides_of_a_partition_give_out_addresses_and_stay_one_ring() {
    let mut world = World::of(9, 3);
    world.connect(1, 0);
    world.connect(2, 0);
    world.launch(0);
    world.settle();
    for n in [0, 1] {
        world.net.cut.extend([(n, 2), (2, n)]);
    }
    world.run_secs(45);
    let containers: Vec<_> = (0..9).map(|n| world.launch(n % 3)).collect();
    world.run_secs(5);
    let answered = |c: &usize| world.model.address(*c).is_some();
    assert!(
        containers.iter().all(answered),
        "nobody needs the other side"
    );
    world.net.heal();
    world.settle();
    assert_eq!(world.model.conflicts, 0);
}

#[test]
fn of_two_rings_that_meet_one_stays_and_no_address_is_used_twice() {
    let mut conflicts = 0;
    for seed in 0..20 {
        let mut world = World::of(seed, 4);
        world.connect(1, 0);
        world.connect(3, 2);
        world.run_secs(3);
        for n in 0..8 {
            world.launch(n % 4);
        }
        world.run_secs(5);
        world.connect(2, 1);
        world.settle();
        conflicts += world.model.conflicts;
    }
    assert!(conflicts > 0, "the rings were never at odds");
}

#[test]
fn rings_that_meet_over_a_third_peer_settle_before_frames_pass() {
    let mut conflicts = 0;
    for seed in 0..20 {
        let mut world = World::new(seed);
        world.net.weather.delay_ms = 20;
        for n in 0..3 {
            let mut settings = Settings::new(n);
            settings.pools = vec!["10.32.0.0/28".parse().unwrap()];
            world.add(settings);
        }
        world.model.strict = true;
        world.net.cut.extend([(1, 2), (2, 1)]);
        world.connect(1, 0);
        world.run_secs(3);
        for n in [0, 1, 2, 1, 2] {
            world.launch(n);
        }
        world.run_secs(3);
        world.connect(2, 0);
        world.settle();
        conflicts += world.model.conflicts;
    }
    assert!(conflicts > 0, "the rings were never at odds");
}

#[test]
fn a_peer_with_a_wrong_password_stays_out_and_both_sides_say_why() {
    let psk = |password| Psk::derive(password, "weft").unwrap();
    let (right, wrong) = (psk("right"), psk("wrong"));
    let mut world = World::new(11);
    for n in 0..4 {
        let mut settings = Settings::new(n);
        let (password, key) = if n == 3 {
            ("wrong", &wrong)
        } else {
            ("right", &right)
        };
        settings.password = Some(password);
        settings.psk = Some(key.clone());
        if n > 0 {
            settings = settings.to(0);
        }
        world.add(settings);
    }
    world.settle();
    assert!(world.peers[3].up().router.connected().is_empty());
    for n in [0, 3] {
        let refusals = &world.model.refusals[&n];
        assert!(
            refusals.iter().any(|text| text.contains("password")),
            "{refusals:?}"
        );
    }
}

#[test]
fn thirty_peers_discover_each_other() {
    let mut world = World::new(12);
    world.net.weather.delay_ms = 20;
    for n in 0..30 {
        let settings = Settings::new(n);
        world.add(if n == 0 { settings } else { settings.to(n / 2) });
    }
    let took = world.settle();
    assert!(took.as_secs() < 60, "{took:?}");
}

#[test]
fn thirty_peers_with_few_connections_each_are_all_reached() {
    let mut world = World::new(13);
    world.net.weather.delay_ms = 20;
    for n in 0..30 {
        let mut settings = Settings::new(n);
        settings.conn_limit = 6;
        world.add(if n == 0 {
            settings
        } else {
            settings.to((n - 1) / 3)
        });
    }
    world.settle();
    let most = world
        .peers
        .iter()
        .map(|peer| peer.up().router.connected().len());
    assert!(most.max() <= Some(6));
    assert!(world.model.relayed > 0);
}

#[test]
fn an_observer_gets_its_addresses_from_the_others_ring() {
    let mut world = World::of(14, 2);
    let mut settings = Settings::new(2).to(0);
    settings.init = Init::Observer;
    world.add(settings);
    world.connect(1, 0);
    world.run_secs(5);
    let c = world.launch(2);
    world.run_secs(20);
    assert!(world.model.address(c).is_some());
    world.settle();
}

#[test]
fn a_peer_whose_disk_is_lost_comes_back_as_another_and_its_space_can_be_had() {
    let mut world = World::of(15, 3);
    world.connect(1, 0);
    world.connect(2, 0);
    for n in 0..3 {
        world.launch(n);
    }
    world.settle();
    world.lose_disk(2);
    world.later(std::time::Duration::from_secs(1), Delivery::Start(2));
    world.run_secs(30);
    world.remove_lost(0);
    assert!(world.model.taken_over > 0);
    world.connect(2, 0);
    world.settle();
}

#[test]
fn a_hundred_peers_with_three_targets_each_are_all_reached() {
    let mut world = World::new(16);
    world.net.weather.delay_ms = 20;
    for n in 0..100 {
        let mut settings = Settings::new(n);
        settings.discovery = false;
        settings.pools = vec!["10.32.0.0/16".parse().unwrap()];
        settings.targets = [n + 1, n + 10, n + 37].map(|to| to % 100).to_vec();
        world.add(settings);
    }
    world.settle();
    assert!(world.model.relayed > 0);
}
