//! Who is let in, who is refused, and what both ends show of it.

use std::time::Duration;

use weft_wire::PeerUid;
use weft_wire::control::RefusalReason;

use super::net::{Net, config, psk, refusals, target};
use crate::{Config, ConnectionState, Event, Identity, PeerInfo, TargetState};

#[test]
fn one_connect_makes_an_established_connection_both_ends_agree_on() {
    let mut net = Net::of(2);
    net.connect(0, "n1");
    net.run_secs(1);
    assert!(net.established(0, 1));
    let ours = &net.statuses(0)[0];
    assert_eq!(
        (ours.state, ours.outbound),
        (ConnectionState::Established, true)
    );
    assert_eq!(ours.address(), "10.0.0.2:6783");
    assert_eq!(ours.peer.as_ref().unwrap().1.as_str(), "n1");
    assert_eq!(ours.rtt, Some(Duration::from_millis(20)));
    assert_eq!(ours.info, "");
    assert!(!net.statuses(1)[0].outbound);
    let targets = net.nodes[0].router.targets();
    assert_eq!(targets[0].state, TargetState::Connected);
    assert_eq!(
        net.nodes[0].router.routes().unicast[&net.nodes[1].name],
        net.nodes[1].name
    );
}

#[test]
fn when_both_dial_one_connection_stays_and_nobody_notices() {
    let mut net = Net::of(2);
    net.connect(0, "n1");
    net.connect(1, "n0");
    net.run_secs(1);
    assert!(net.established(0, 1));
    net.run_secs(600);
    assert!(net.established(0, 1));
    assert_eq!(net.pipes(), 2, "the two ends of one connection");
    for n in 0..2 {
        assert_eq!((net.disconnects(n), net.dials(n)), (0, 1));
        assert_eq!(net.statuses(n).len(), 1, "{:?}", net.statuses(n));
    }
    // The one begun by the smaller key.
    let smaller = if key(0) < key(1) { 0 } else { 1 };
    assert!(net.statuses(smaller)[0].outbound);
    assert!(!net.statuses(1 - smaller)[0].outbound);
}

#[test]
fn a_dial_that_comes_later_never_replaces_an_established_connection() {
    for (first, second) in [(0, 1), (1, 0)] {
        let mut net = Net::of(2);
        net.connect(first, &format!("n{second}"));
        net.run_secs(5);
        net.connect(second, &format!("n{first}"));
        net.run_secs(100);
        assert!(net.established(0, 1));
        assert!(net.statuses(first)[0].outbound);
        assert_eq!((net.disconnects(0), net.disconnects(1)), (0, 0));
        assert_eq!(net.count(0, |e| matches!(e, Event::Connected { .. })), 1);
        assert_eq!((net.dials(0), net.dials(1)), (1, 1));
        assert_eq!(net.pipes(), 2);
    }
}

#[test]
fn a_second_name_of_the_same_peer_rests_while_the_first_is_connected() {
    let mut net = Net::of(2);
    net.connect(0, "n1");
    net.connect(0, "10.0.0.2");
    net.run_secs(120);
    assert!(net.established(0, 1));
    assert_eq!((net.dials(0), net.pipes()), (2, 2));
    let states: Vec<_> = net.nodes[0]
        .router
        .targets()
        .iter()
        .map(|t| t.state)
        .collect();
    assert_eq!(states, [TargetState::Connected; 2]);
    assert_eq!(net.statuses(0).len(), 1);
}

#[test]
fn a_wrong_password_shows_on_both_ends_and_does_not_bring_silence() {
    let mut net = Net::new([with_password(0, "one"), with_password(1, "two")]);
    net.connect(0, "n1");
    net.run_secs(1);
    let dialled = net.failure(0);
    assert_eq!(
        dialled.info,
        "wrong password (peer says: the two passwords differ; both ends need the same --password)"
    );
    assert!(dialled.retry_at.is_some());
    let accepted = net.failure(1);
    assert_eq!(
        accepted.info,
        "wrong password: the two passwords differ; both ends need the same --password"
    );
    assert!(!accepted.outbound);
    net.run_secs(600);
    assert!(
        net.failure(0).info.starts_with("wrong password (peer says"),
        "{}",
        net.failure(0).info
    );
    assert!((5..=16).contains(&net.dials(0)), "{}", net.dials(0));
    assert_eq!(net.pipes(), 0);
}

#[test]
fn whoever_tries_passwords_is_not_answered_for_a_while() {
    let mut net = Net::new([with_password(0, "one"), with_password(1, "two")]);
    for _ in 0..4 {
        // What `weft connect` does, again and again.
        net.connect(0, "n1");
        net.run_secs(1);
    }
    assert!(
        net.failure(0)
            .info
            .contains("not answering after wrong passwords"),
        "{}",
        net.failure(0).info
    );
    assert!(
        refusals(&net.nodes[1])
            .last()
            .unwrap()
            .contains("10.0.0.1 is not answered for 30 s")
    );
    net.run_secs(31);
    net.connect(0, "n1");
    net.run_secs(1);
    assert!(
        net.failure(0).info.starts_with("wrong password"),
        "{}",
        net.failure(0).info
    );
}

#[test]
fn once_the_password_is_right_the_failure_is_forgotten() {
    let mut net = Net::new([with_password(0, "one"), with_password(1, "two")]);
    net.connect(0, "n1");
    net.run_secs(1);
    net.restart(
        0,
        Config {
            uid: PeerUid(7),
            ..with_password(0, "two")
        },
        false,
    );
    net.connect(0, "n1");
    net.run_secs(1);
    assert!(net.established(0, 1));
    assert_eq!((net.statuses(0).len(), net.statuses(1).len()), (1, 1));
}

#[test]
fn clusters_and_one_sided_passwords_are_told_apart_on_both_ends() {
    let other = Config {
        cluster: "other".to_owned(),
        ..config(1)
    };
    for (config1, words) in [
        (other, "other cluster"),
        (with_password(1, "two"), "password on one side only"),
    ] {
        let mut net = Net::new([config(0), config1]);
        net.connect(0, "n1");
        net.run_secs(1);
        for n in 0..2 {
            assert!(
                net.failure(n).info.starts_with(words),
                "{}",
                net.failure(n).info
            );
        }
        net.run_secs(60);
        assert!(!net.established(0, 1));
    }
}

#[test]
fn pools_that_overlap_are_refused_and_pools_apart_are_not() {
    let with_pools = |pools: &[&str]| Config {
        pools: pools.iter().map(|pool| (*pool).to_owned()).collect(),
        ..config(1)
    };
    let mut net = Net::new([config(0), with_pools(&["10.40.0.0/16"])]);
    net.connect(0, "n1");
    net.run_secs(1);
    for n in 0..2 {
        let info = net.failure(n).info;
        assert!(
            info.starts_with("address ranges differ") && info.contains("10.40.0.0/16"),
            "{info}"
        );
    }
    for apart in [
        &[][..],
        &["10.32.0.0/12", "172.30.0.0/16"],
        &["10.48.0.0/12"],
    ] {
        let mut net = Net::new([config(0), with_pools(apart)]);
        net.connect(0, "n1");
        net.run_secs(1);
        assert!(net.established(0, 1), "{apart:?}");
    }
}

#[test]
fn a_name_given_twice_is_refused_while_the_first_lives() {
    let namesake = Config {
        name: config(1).name,
        ..config(2)
    };
    let mut net = Net::new([config(0), config(1), namesake]);
    net.connect(1, "n0");
    net.run_secs(1);
    net.connect(2, "n0");
    net.run_secs(30);
    assert!(net.established(0, 1));
    assert_eq!(net.disconnects(0), 0);
    let info = net.failure(2).info;
    assert!(
        info.starts_with("name clash (peer says: with 10.0.0.2:"),
        "{info}"
    );
    assert!(
        net.failure(0)
            .info
            .starts_with("name clash: with 10.0.0.2:")
    );
}

#[test]
fn a_peer_with_our_own_name_is_refused() {
    let mut net = Net::new([
        config(0),
        Config {
            name: config(0).name,
            ..config(1)
        },
    ]);
    net.connect(0, "n1");
    net.run_secs(1);
    assert!(
        net.failure(0).info.starts_with("name clash"),
        "{}",
        net.failure(0).info
    );
    assert!(
        net.failure(1).info.starts_with("name clash"),
        "{}",
        net.failure(1).info
    );
}

#[test]
fn of_two_clones_the_one_that_started_first_keeps_its_connections() {
    for (earlier, later) in [(1, 2), (2, 1)] {
        let run = |n: usize| Config {
            uid: PeerUid(n as u64),
            started: if n == earlier { 1000 } else { 2000 },
            ..config(1)
        };
        let mut net = Net::new([config(0), run(1), run(2)]);
        net.connect(1, "n0");
        net.run_secs(2);
        assert!(net.established(0, 1));
        net.connect(2, "n0");
        net.run_secs(3);
        let said = refusals(&net.nodes[later]).first().cloned().unwrap();
        assert!(said.starts_with("with 10.0.0."), "{said}");
        let status = net.statuses(earlier);
        assert_eq!(status[0].state, ConnectionState::Established, "{status:?}");
        net.run_secs(300);
        assert_eq!(net.statuses(earlier)[0].state, ConnectionState::Established);
        let connected = net.count(later, |e| matches!(e, Event::Connected { .. }));
        assert_eq!(
            connected,
            usize::from(later == 1),
            "nobody is told it was connected who was not"
        );
        let changes = net.disconnects(0);
        assert_eq!(
            changes,
            usize::from(later == 1),
            "it settles at once and for good"
        );
    }
}

#[test]
fn two_clones_refuse_each_other() {
    let mut net = Net::new([
        config(0),
        Config {
            uid: PeerUid(9),
            ..config(0)
        },
    ]);
    net.connect(0, "n1");
    net.run_secs(1);
    for n in 0..2 {
        assert!(
            net.failure(n).info.contains("reset --identity"),
            "{}",
            net.failure(n).info
        );
    }
}

#[test]
fn an_address_that_leads_to_ourselves_is_kept_and_not_dialled_again() {
    let mut net = Net::of(1);
    net.connect(0, "n0");
    net.run_secs(600);
    assert_eq!(net.dials(0), 1);
    let failure = net.failure(0);
    assert!(
        failure.info.starts_with("cannot connect to ourselves"),
        "{}",
        failure.info
    );
    assert_eq!(failure.retry_at, None);
    assert_eq!(
        net.nodes[0].router.targets()[0].state,
        TargetState::Suspended
    );
    net.connect(0, "n0");
    assert_eq!(net.dials(0), 2);
}

#[test]
fn a_connection_over_the_limit_is_refused_and_those_there_stay() {
    let limited = Config {
        conn_limit: 1,
        ..config(0)
    };
    let mut net = Net::new([limited, config(1), config(2)]);
    net.connect(1, "n0");
    net.run_secs(1);
    net.connect(2, "n0");
    net.connect(0, "n2");
    net.run_secs(60);
    assert!(net.established(0, 1));
    assert!(!net.established(0, 2));
    assert!(
        net.failure(2)
            .info
            .starts_with("connection limit reached (peer says"),
        "{}",
        net.failure(2).info
    );
    assert_eq!(net.dials(0), 0, "no use in dialling what would be refused");
    // Its place is free again when the first one goes.
    net.nodes[1].router.shutdown(net.now);
    net.work(1);
    net.nodes[1].alive = false;
    net.run_secs(90);
    assert!(net.established(0, 2));
}

#[test]
fn a_restarted_peer_whose_end_was_seen_is_back_at_its_first_dial() {
    let mut net = Net::of(2);
    net.connect(0, "n1");
    net.run_secs(120);
    net.restart(
        1,
        Config {
            uid: PeerUid(999),
            ..config(1)
        },
        false,
    );
    net.run_secs(3);
    assert!(net.established(0, 1));
    assert_eq!(net.disconnects(0), 1);
}

#[test]
fn a_restarted_peer_whose_end_was_not_seen_is_let_in_when_the_old_run_keeps_silent() {
    for dialler in [0, 1] {
        let mut net = Net::of(2);
        net.connect(0, "n1");
        net.run_secs(62);
        // The clock of the machine went back: it must not matter.
        net.restart(
            1,
            Config {
                uid: PeerUid(1),
                started: 5,
                ..config(1)
            },
            true,
        );
        net.run(Duration::from_millis(500));
        net.connect(1, "n0");
        if dialler == 0 {
            net.nodes[1].router.forget(&[target("n0")], net.now);
            net.nodes[1].log.clear();
            net.run_secs(25);
        } else {
            net.run_secs(7);
        }
        assert!(net.established(0, 1), "{:?}", net.statuses(0));
    }
}

#[test]
fn a_peer_that_lost_its_connection_unseen_comes_back_in_the_same_run() {
    for dialler in [0, 1] {
        let mut net = Net::of(2);
        net.connect(dialler, &format!("n{}", 1 - dialler));
        net.run_secs(62);
        net.reset_one_end(dialler);
        net.run_secs(10);
        assert!(net.established(0, 1), "{:?}", net.statuses(dialler));
    }
}

#[test]
fn forgetting_stops_dialling_and_leaves_connections_alone() {
    let mut net = Net::of(3);
    net.connect(0, "n1");
    net.run_secs(1);
    net.cut.insert((0, 2));
    net.connect(0, "n2");
    net.run_secs(5);
    assert!(net.failure(0).info.starts_with("no answer from n2"));
    net.nodes[0]
        .router
        .forget(&[target("n1"), target("n2")], net.now);
    net.work(0);
    assert!(net.nodes[0].router.targets().is_empty());
    let dials = net.dials(0);
    net.run_secs(200);
    assert!(net.established(0, 1));
    assert_eq!(net.dials(0), dials);
    assert_eq!(net.statuses(0).len(), 1);
    assert_eq!(net.count(0, |e| *e == Event::TargetsChanged), 3);
}

#[test]
fn replacing_targets_drops_the_others() {
    let mut net = Net::of(3);
    net.connect(0, "n1");
    net.nodes[0].router.connect(&[target("n2")], true, net.now);
    net.work(0);
    let targets = net.nodes[0].router.targets();
    assert_eq!(
        targets
            .iter()
            .map(|t| t.target.to_string())
            .collect::<Vec<_>>(),
        ["n2"]
    );
    net.run_secs(5);
    assert!(!net.established(0, 1), "its dial was under way");
    assert!(net.established(0, 2));
}

#[test]
fn a_flood_of_connections_from_one_host_does_not_keep_others_out() {
    let mut net = Net::of(2);
    let mut taken = 0;
    for n in 0..500_u16 {
        let from = std::net::SocketAddr::from(([192, 0, 2, 1], 1000 + n));
        taken += usize::from(net.nodes[1].router.handle_accepted(from, net.now).is_some());
        net.work(1);
    }
    assert!(taken <= 20, "{taken}");
    net.connect(0, "n1");
    net.run_secs(1);
    assert!(net.established(0, 1));
    net.run_secs(15);
    assert_eq!(
        net.statuses(1).len(),
        1,
        "those that said nothing are gone without a trace"
    );
}

#[test]
fn discovery_connects_everybody_with_everybody_once() {
    let mut net = Net::of(6);
    net.gossip_addresses();
    net.run_secs(30);
    for a in 0..6 {
        for b in (0..6).filter(|b| *b != a) {
            assert!(net.established(a, b), "{a} {b}: {:?}", net.statuses(a));
        }
        assert_eq!(net.disconnects(a), 0);
    }
    assert_eq!(net.pipes(), 6 * 5);
    let dials: usize = (0..6).map(|n| net.dials(n)).sum();
    net.run_secs(300);
    assert_eq!((0..6).map(|n| net.dials(n)).sum::<usize>(), dials);
    assert!(dials < 20, "{dials} dials for 15 connections");
}

#[test]
fn an_address_that_leads_to_another_peer_is_no_dead_end() {
    let mut net = Net::of(3);
    let (one, two) = (net.nodes[1].addr, net.nodes[2].addr);
    let info = PeerInfo {
        addresses: vec![one, two],
        datagrams: Vec::new(),
    };
    for connected in [false, true] {
        // First the wrong address makes a connection, then it finds one that is there.
        let (peer, now) = (net.nodes[2].name, net.now);
        net.nodes[0]
            .router
            .handle_peer_info(peer, info.clone(), now);
        net.work(0);
        net.run_secs(30);
        assert!(
            net.established(0, 1) && net.established(0, 2),
            "{connected}"
        );
        net.nodes[0].router.handle_peer_gone(peer, net.now);
        net.cut.insert((0, 2));
        net.run_secs(30);
        net.cut.clear();
        assert!(!net.established(0, 2));
    }
}

#[test]
fn discovery_keeps_to_the_limit_and_can_be_switched_off() {
    let limited = |n| Config {
        conn_limit: 2,
        ..config(n)
    };
    let mut net = Net::new([limited(0), config(1), config(2), config(3)]);
    net.gossip_addresses();
    net.run_secs(100);
    assert_eq!(net.nodes[0].router.connected().len(), 2);
    assert!(net.established(1, 2) && net.established(2, 3) && net.established(1, 3));

    let mut net = Net::new((0..3).map(|n| Config {
        discovery: false,
        ..config(n)
    }));
    net.gossip_addresses();
    net.run_secs(100);
    assert_eq!(net.pipes(), 0);
}

#[test]
fn refusals_are_counted_by_their_reason() {
    let mut net = Net::new([with_password(0, "one"), with_password(1, "two")]);
    net.connect(0, "n1");
    net.run_secs(1);
    let wrong = |by: bool| move |event: &Event| matches!(event, Event::Refused { reason: RefusalReason::WrongPassword, by_peer, .. } if *by_peer == by);
    assert_eq!(
        (net.count(0, wrong(true)), net.count(1, wrong(false))),
        (1, 1)
    );
}

fn with_password(n: u8, password: &str) -> Config {
    Config {
        psk: psk(password),
        ..config(n)
    }
}

fn key(n: u8) -> [u8; 32] {
    let identity: Identity = config(n).identity;
    *identity.public()
}
