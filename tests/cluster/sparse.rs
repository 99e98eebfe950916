//! Meshes of more peers than connections: everybody is reached, nobody has too many, and those who talk
//! come to have a connection of their own.

use std::collections::{BTreeMap, BTreeSet};

use weft_wire::PeerName;

use crate::peer::Settings;
use crate::world::World;

#[test]
fn many_peers_that_know_only_one_form_a_graph_that_no_single_loss_cuts() {
    let (world, took) = mesh(21, 24, 8);
    assert!(took.as_secs() < 120, "{took:?}");
    let graph = graph(&world);
    let most = graph.values().map(BTreeSet::len).max().unwrap();
    assert!(most <= 8, "{most} connections");
    for lost in graph.keys() {
        let rest: BTreeMap<_, _> = graph.iter().filter(|(peer, _)| *peer != lost).collect();
        let reached = reached(&rest);
        assert_eq!(reached.len(), 23, "without {lost}");
    }
}

#[test]
fn a_mesh_that_grows_thins_out_and_one_that_shrinks_is_full_again() {
    let mut world = World::new(22);
    world.net.weather.delay_ms = 20;
    let add = |world: &mut World, from, to| {
        for n in from..to {
            world.add(limited(n, 12));
        }
    };
    add(&mut world, 0, 13);
    world.settle();
    assert!(graph(&world).values().all(|beside| beside.len() == 12));

    add(&mut world, 13, 26);
    // Five circles would be enough, of which four leave room for others; what was told stays. It takes half a
    // minute with most seeds, up to four with one in ten.
    let most = |world: &World| {
        let graph = graph(world).into_iter();
        let found = graph.filter(|(name, _)| *name != world.peers[0].name);
        found.map(|(_, beside)| beside.len()).max().unwrap()
    };
    let began = world.now;
    while most(&world) > 2 * 4 + 1 {
        world.run_secs(1);
        let took = world.now - began;
        assert!(took.as_secs() < 300, "{} connections", most(&world));
    }
    let told = graph(&world)[&world.peers[0].name].len();
    assert!(told <= 12, "{told}");
    world.settle();

    for n in 6..26 {
        world.stop(n);
    }
    // Who was refused by a peer that was full asks again after minutes.
    let is_full = |world: &World| graph(world).values().all(|beside| beside.len() == 5);
    let began = world.now;
    while !is_full(&world) {
        world.run_secs(1);
        let took = world.now - began;
        assert!(took.as_secs() < 500, "not full after {took:?}");
    }
}

#[test]
fn peers_whose_containers_talk_get_a_connection_until_they_fall_silent() {
    let (mut world, _) = mesh(23, 20, 8);
    let (a, b) = strangers(&world);
    let (from, to) = (world.launch(a), world.launch(b));
    world.run_secs(10);
    world.send_frame(to, None).unwrap();
    let relayed = world.model.relayed;
    world.run_secs(1);
    world.send_frame(from, Some(to)).unwrap();
    world.run_secs(5);
    assert!(world.model.relayed > relayed);
    assert!(!joined(&world, a, b), "one frame is no reason");
    for _ in 0..40 {
        world.send_frame(from, Some(to)).unwrap();
        world.run_ms(250);
    }
    assert!(joined(&world, a, b));
    let relayed = world.model.relayed;
    for _ in 0..400 {
        world.send_frame(from, Some(to)).unwrap();
        world.run_ms(250);
        assert!(joined(&world, a, b), "it stays while it is used");
    }
    assert_eq!(world.model.relayed, relayed);
    world.run_secs(180);
    assert!(!joined(&world, a, b));
    world.settle();
}

#[test]
fn peers_that_cannot_connect_to_those_beside_them_are_connected_with_others() {
    let mut world = World::new(24);
    world.net.weather.delay_ms = 20;
    for n in 0..20 {
        world.add(limited(n, 9));
    }
    // Two sites that see each other only at four hosts.
    for a in 4..12 {
        for b in 12..20 {
            world.net.cut.extend([(a, b), (b, a)]);
        }
    }
    world.settle();
    let graph = graph(&world);
    assert!(graph.values().all(|beside| beside.len() <= 9));
    for lost in &world.peers[..4] {
        let rest: BTreeMap<_, _> = graph.iter().filter(|(n, _)| **n != lost.name).collect();
        assert_eq!(reached(&rest).len(), 19, "without {}", lost.name);
    }
}

fn mesh(seed: u64, count: usize, limit: usize) -> (World, std::time::Duration) {
    let mut world = World::new(seed);
    world.net.weather.delay_ms = 20;
    for n in 0..count {
        world.add(limited(n, limit));
    }
    let took = world.settle();
    // Connections of the first minute that are not needed go.
    world.run_secs(120);
    (world, took)
}

fn limited(n: usize, limit: usize) -> Settings {
    let mut settings = Settings::new(n);
    settings.conn_limit = limit;
    if n > 0 { settings.to(0) } else { settings }
}

/// Who calls whom an established neighbour.
fn graph(world: &World) -> BTreeMap<PeerName, BTreeSet<PeerName>> {
    let up = world.peers.iter().filter(|peer| peer.up.is_some());
    up.map(|peer| {
        let neighbours = peer.up().router.neighbours().into_iter();
        (peer.name, neighbours.collect())
    })
    .collect()
}

fn reached(graph: &BTreeMap<&PeerName, &BTreeSet<PeerName>>) -> BTreeSet<PeerName> {
    let mut open: Vec<PeerName> = graph.keys().take(1).map(|peer| **peer).collect();
    let mut reached: BTreeSet<_> = open.iter().copied().collect();
    while let Some(peer) = open.pop() {
        for next in graph[&peer].iter().filter(|next| graph.contains_key(next)) {
            if reached.insert(*next) {
                open.push(*next);
            }
        }
    }
    reached
}

/// Two peers that have no connection, and that nobody asked for one.
fn strangers(world: &World) -> (usize, usize) {
    let mut pairs = (1..world.peers.len()).map(|b| (1, b));
    pairs
        .find(|(a, b)| a != b && !joined(world, *a, *b))
        .unwrap()
}

fn joined(world: &World, a: usize, b: usize) -> bool {
    let neighbours = world.peers[a].up().router.neighbours();
    neighbours.contains(&world.peers[b].name)
}
