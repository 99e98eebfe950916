//! Connections over peers in between: two behind NATs, one that both reach.

use std::time::Duration;

use weft_wire::PeerName;
use weft_wire::control::Control;
use weft_wire::relayed::{Part, Relayed};

use super::super::ending::End;
use super::net::{Net, config};
use crate::discovery::Candidate;
use crate::link::Origin;
use crate::{ConnectionState, Event, PeerInfo};

#[test]
fn two_behind_nats_shake_hands_over_a_third_and_then_frames_go_directly() {
    let mut net = behind_nats();
    net.run(Duration::from_secs(30));
    for (here, there) in [(1, 2), (2, 1)] {
        let name = net.nodes[there].name;
        let router = &net.nodes[here].router;
        let link = router.own_links()[&name];
        assert!(
            link.established && link.relayed,
            "{:?}",
            router.connections()
        );
        assert_eq!(router.routes().unicast[&name], name);
        // Control messages go over the one in between, and nobody gossips over the other.
        assert_eq!(router.routes().control[&name], net.nodes[0].name);
        assert!(!router.connected().contains(&name));
        let said = router.connections();
        let said = said.iter().find(|c| c.relayed).unwrap();
        assert_eq!(said.info, "control over n0");
        assert_eq!(said.datagrams, Some(net.nodes[there].udp_from));
    }
    // The one in between has its own connections with both.
    let third = net.nodes[0].name;
    assert!(
        net.nodes[0]
            .router
            .routes()
            .unicast
            .contains_key(&net.nodes[1].name)
    );
    assert!(!net.nodes[1].router.own_links()[&third].relayed);
}

#[test]
fn an_attempt_that_comes_to_nothing_is_told_to_nobody_and_made_again_later() {
    let mut net = behind_nats();
    // As two NATs that give each destination a port of its own.
    net.deaf.extend([(1, 2), (2, 1)]);
    net.run(Duration::from_secs(300));
    for (here, there) in [(1, 2), (2, 1)] {
        let (name, node) = (net.nodes[there].name, &net.nodes[here]);
        assert!(!node.router.own_links().contains_key(&name));
        assert_eq!(node.router.routes().unicast[&name], net.nodes[0].name);
        let told = |event: &Event| matches!(event, Event::Connected { peer, .. } | Event::Disconnected { peer, .. } if *peer == name);
        assert_eq!(net.count(here, told), 0);
        let tries = net.count(here, |event| matches!(event, Event::Uninstall { .. }));
        assert!((3..40).contains(&tries), "{tries}");
        let said = node.router.connections();
        let said = said.iter().find(|c| c.info.contains("a port of its own"));
        let failed = said.unwrap_or_else(|| panic!("{:?}", node.router.connections()));
        assert_ne!(failed.state, ConnectionState::Established);
        // Few and short: a third party whose address somebody tells gets no flood from it.
        let punches = node
            .log
            .iter()
            .filter(|event| matches!(event, Event::Punch { .. }));
        assert!(punches.count() < 400);
    }
}

#[test]
fn it_ends_when_those_in_between_are_gone_and_comes_back_with_them() {
    let mut net = behind_nats();
    net.run(Duration::from_secs(30));
    let name = net.nodes[2].name;
    net.cut.insert((0, 1));
    net.run(Duration::from_secs(60));
    assert!(!net.nodes[1].router.own_links().contains_key(&name));
    net.cut.clear();
    net.run(Duration::from_secs(150));
    assert!(net.nodes[1].router.own_links()[&name].established);
}

#[test]
fn a_connection_that_is_not_relayed_takes_the_place_of_an_attempt() {
    let mut net = behind_nats();
    net.deaf.extend([(1, 2), (2, 1)]);
    let tries = |net: &Net| {
        net.statuses(1)
            .iter()
            .any(|c| c.relayed && c.peer.is_some())
    };
    while !tries(&net) {
        net.run(Duration::from_millis(100));
    }
    net.natted.clear();
    net.deaf.clear();
    net.run(Duration::from_secs(180));
    for (here, there) in [(1, 2), (2, 1)] {
        let link = net.nodes[here].router.own_links()[&net.nodes[there].name];
        assert!(link.established && !link.relayed);
    }
}

#[test]
fn one_that_took_over_from_another_that_is_relayed_is_not_the_last_word() {
    let mut net = behind_nats();
    net.run(Duration::from_secs(30));
    let (heir, dialler) = (net.nodes[1].name, net.nodes[2].name);
    let first = net.nodes[2].router.conns.peers[&heir];
    let again = Candidate {
        peer: heir,
        address: net.nodes[1].udp_from,
        relayed: true,
    };
    let now = net.now;
    let router = &mut net.nodes[2].router;
    let conn = router.conns.next();
    router.dial_relayed(conn, again, now);
    // While the new one waits for the first to show that it lives, that one ends.
    net.deaf.extend([(1, 2), (2, 1)]);
    net.run(Duration::from_millis(500));
    net.deaf.clear();
    let now = net.now;
    let router = &mut net.nodes[2].router;
    router.end(first, End::Closed("as a test".to_owned()), now);
    router.finish(now);
    net.work(2);
    net.run(Duration::from_secs(5));
    let lost =
        |event: &Event| matches!(event, Event::Disconnected { peer, .. } if *peer == dialler);
    assert_eq!(net.count(1, lost), 0);
    assert!(net.nodes[1].router.own_links()[&dialler].relayed);
    // Now the dialler can be dialled, and nobody but who took the new one over can do it.
    net.natted.remove(&2);
    net.run(Duration::from_secs(180));
    for (here, there) in [(1, 2), (2, 1)] {
        let link = net.nodes[here].router.own_links()[&net.nodes[there].name];
        assert!(link.established && !link.relayed);
    }
}

#[test]
fn a_peer_with_a_name_of_its_own_is_not_connected_over_others() {
    let configs = (0..3).map(|n| match n {
        2 => crate::Config {
            name: PeerName::from_bytes([2, 0, 0, 0, 0, 0x77]),
            ..config(n)
        },
        n => config(n),
    });
    let mut net = shut_in(Net::new(configs));
    net.run_secs(120);
    for (here, there) in [(1, 2), (2, 1)] {
        let name = net.nodes[there].name;
        assert!(!net.nodes[here].router.own_links().contains_key(&name));
    }
    let said = net.statuses(1);
    assert!(said.iter().any(|c| c.info.contains("--name")), "{said:?}");
}

#[test]
fn a_neighbour_that_floods_is_held_to_its_allowance() {
    let mut net = Net::of(2);
    net.connect(1, "n0");
    net.run_secs(5);
    let (source, destination) = (PeerName::from_bytes([2, 0, 0, 0, 0, 9]), net.nodes[0].name);
    let info = PeerInfo {
        addresses: vec![([192, 0, 2, 9], 6783).into()],
        datagrams: Vec::new(),
    };
    let now = net.now;
    net.nodes[0].router.handle_peer_info(source, info, now);
    let router = &mut net.nodes[1].router;
    let conn = router.conns.peers[&destination];
    for stream in 0..3000 {
        let relayed = Relayed {
            source,
            destination,
            hops: 16,
            stream,
            by_dialler: true,
            part: Part::Open(Vec::new()),
        };
        router.send_control(conn, &Control::Relayed(relayed), now);
    }
    net.work(1);
    net.run_secs(1);
    let router = &net.nodes[0].router;
    assert!(router.relayed_dropped() > 0);
    let held = router.conns.links.values();
    let held = held.filter(|link| matches!(link.origin, Origin::Relayed { .. }));
    assert_eq!(held.count(), 8);
    net.run_secs(20);
    assert_eq!(net.nodes[0].router.conns.links.values().count(), 1);
    assert!(net.established(0, 1));
}

/// Nodes 1 and 2 cannot be dialled, and datagrams reach them only from where they have sent some to.
fn behind_nats() -> Net {
    shut_in(Net::of(3))
}

fn shut_in(mut net: Net) -> Net {
    net.natted.extend([1, 2]);
    for n in [1, 2] {
        net.connect(n, "n0");
        net.nodes[n]
            .udp_from
            .set_port(50_000 + u16::try_from(n).unwrap());
    }
    net.run(Duration::from_secs(5));
    for (here, there) in [(1, 2), (2, 1)] {
        let other = &net.nodes[there];
        let (name, info) = (
            other.name,
            PeerInfo {
                addresses: vec![other.addr],
                datagrams: vec![other.udp_from],
            },
        );
        let now = net.now;
        net.nodes[here].router.handle_peer_info(name, info, now);
        net.work(here);
    }
    net
}
