//! Connections that are up: keys, heartbeats, the barrier, relaying, time and chance.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use proptest::prelude::*;
use weft_wire::PeerUid;
use weft_wire::control::Suite;

use super::net::{Net, config};
use crate::link::Link;
use crate::{Config, ConnectionState, Event, SendError};

#[test]
fn frames_wait_for_the_barrier() {
    let mut net = Net::of(2);
    net.sync = false;
    net.connect(0, "n1");
    net.run_secs(120);
    assert!(!net.established(0, 1));
    assert_eq!(net.statuses(0)[0].info, "waiting for equal address rings");
    assert_eq!(net.nodes[0].router.connected().len(), 1);
    let (a, b) = (net.nodes[0].name, net.nodes[1].name);
    net.nodes[0].router.set_synced(b, net.now);
    net.work(0);
    net.run_secs(1);
    assert!(!net.established(0, 1), "one end is not enough");
    assert_eq!(net.statuses(0)[0].info, "waiting for the peer to be ready");
    net.nodes[1].router.set_synced(a, net.now);
    net.work(1);
    net.run_secs(1);
    assert!(net.established(0, 1));
}

#[test]
fn all_are_told_of_a_connection_once_it_is_established_or_a_second_old() {
    let told = |net: &Net| {
        let links = net.nodes[0].router.published_links(|_| Some(6783));
        let states = links.into_values().map(|link| link.state.established);
        states.collect::<Vec<_>>()
    };
    let changes = |net: &Net| net.count(0, |event| matches!(event, Event::LinksChanged));

    let mut net = Net::of(2);
    net.connect(0, "n1");
    let is_established = |net: &Net| net.statuses(0)[0].state == ConnectionState::Established;
    while !is_established(&net) {
        assert_eq!(told(&net), []);
        net.run(Duration::from_millis(1));
    }
    assert_eq!(told(&net), [true]);
    net.udp_shut.insert(1);
    net.run_secs(15);
    assert_eq!(told(&net), [false], "it was established, and is there");

    let mut net = Net::of(2);
    net.sync = false;
    net.connect(0, "n1");
    net.run(Duration::from_millis(900));
    assert_eq!(net.nodes[0].router.connected().len(), 1);
    assert_eq!(told(&net), []);
    let before = changes(&net);
    net.run(Duration::from_millis(300));
    assert_eq!(told(&net), [false]);
    assert_eq!(changes(&net), before + 1);
}

#[test]
fn without_udp_a_connection_fails_on_both_ends_with_the_port_to_open() {
    let mut net = Net::of(2);
    net.udp_shut.insert(1);
    net.connect(0, "n1");
    net.run_secs(2);
    assert_eq!(
        net.statuses(0)[0].info,
        "waiting for a UDP heartbeat from port 6783"
    );
    net.run_secs(29);
    for n in 0..2 {
        let info = net.failure(n).info;
        assert!(
            info.starts_with("no UDP heartbeat") && info.contains("is UDP port 6783 open?"),
            "{info}"
        );
    }
    net.udp_shut.clear();
    net.run_secs(10);
    assert!(net.established(0, 1));
}

#[test]
fn a_heartbeat_lost_for_a_while_takes_the_connection_out_of_the_routes() {
    let mut net = Net::of(2);
    net.connect(0, "n1");
    net.run_secs(21);
    net.udp_shut.insert(1);
    net.run_secs(9);
    assert!(!net.established(0, 1));
    assert!(net.statuses(0)[0].info.contains("is UDP port 6783 open?"));
    assert!(net.nodes[0].router.routes().unicast.is_empty());
    net.udp_shut.clear();
    net.run_secs(2);
    assert!(net.established(0, 1));
    assert_eq!((net.disconnects(0), net.disconnects(1)), (0, 0));
}

#[test]
fn tcp_silence_ends_a_connection_and_it_comes_back() {
    let mut net = Net::of(2);
    net.connect(0, "n1");
    net.run_secs(100);
    net.cut.insert((0, 1));
    net.run_secs(26);
    assert!(!net.established(0, 1));
    assert_eq!((net.disconnects(0), net.disconnects(1)), (1, 1));
    assert!(
        net.failure(1)
            .info
            .starts_with("nothing was heard over TCP for 20 s")
    );
    net.cut.clear();
    net.run_secs(15);
    assert!(net.established(0, 1));
}

#[test]
fn a_cut_is_noticed_within_seconds_when_frames_are_sent() {
    let mut net = Net::of(2);
    net.connect(0, "n1");
    net.run_secs(21);
    net.udp_shut.insert(1);
    let conn = *net.nodes[0].router.conns.peers.values().next().unwrap();
    let cut = net.now;
    while net.established(0, 1) {
        // As the node does it: every 500 ms.
        net.run(Duration::from_millis(500));
        net.nodes[0].router.handle_traffic(conn, false, net.now);
        net.work(0);
        assert!(net.now - cut < Duration::from_secs(4));
    }
    assert_eq!((net.disconnects(0), net.disconnects(1)), (0, 0));
}

#[test]
fn the_first_key_comes_before_the_limit_and_later_ones_bring_it() {
    let mut net = Net::of(2);
    net.connect(0, "n1");
    net.run_secs(300);
    let mut limits = vec![];
    for event in &net.nodes[0].log {
        if let Event::InstallSend { limit, .. } | Event::Limit { limit, .. } = event {
            limits.push(*limit);
        }
    }
    assert!(limits.len() > 3, "{limits:?}");
    assert_eq!(limits[0], 548);
    assert!(limits[1..].iter().all(|limit| *limit == 1447), "{limits:?}");
    assert_eq!(net.statuses(0)[0].mtu, Some(1376));
}

#[test]
fn all_that_is_of_use_is_known_to_pass_when_the_first_frame_may_be_sent() {
    let mut net = Net::of(2);
    net.connect(0, "n1");
    while !net.nodes[0]
        .router
        .conns
        .links
        .values()
        .any(Link::is_established)
    {
        net.run(Duration::from_millis(1));
    }
    assert_eq!(net.statuses(0)[0].mtu, Some(1376));
}

#[test]
fn a_narrow_path_shows() {
    let mut net = Net::of(2);
    net.carries = 672;
    net.connect(0, "n1");
    net.run_secs(10);
    let mtu = net.statuses(0)[0].mtu.unwrap();
    assert!((601..=609).contains(&mtu), "{mtu}");
    assert_eq!(net.disconnects(0), 0);
}

#[test]
fn a_peer_that_moves_is_probed_anew() {
    let mut net = Net::of(2);
    net.connect(0, "n1");
    net.run_secs(60);
    let moved: SocketAddr = "198.51.100.9:1234".parse().unwrap();
    net.nodes[1].udp_from = moved;
    net.nodes[0].log.clear();
    net.run_secs(6);
    let mut limits = vec![];
    for event in &net.nodes[0].log {
        if let Event::Limit { limit, .. } = event {
            limits.push(*limit);
        }
    }
    assert_eq!(limits, [548, 1447]);
}

#[test]
fn keys_change_every_two_minutes_without_losing_a_datagram() {
    let mut net = Net::of(2);
    net.connect(0, "n1");
    net.run_secs(1000);
    for n in 0..2 {
        let offered = net.count(n, |e| matches!(e, Event::InstallReceive { .. }));
        let taken = net.count(n, |e| matches!(e, Event::InstallSend { .. }));
        let retired = net.count(n, |e| matches!(e, Event::RetireReceive { .. }));
        assert!((8..=11).contains(&offered), "{offered}");
        assert!((8..=11).contains(&taken), "{taken}");
        assert!(
            (offered - 2..offered).contains(&retired),
            "{retired} of {offered}"
        );
    }
    assert_eq!(net.lost_keys, 0);
    assert_eq!((net.disconnects(0), net.disconnects(1)), (0, 0));
}

#[test]
fn a_worn_out_sending_key_is_replaced_by_the_peer() {
    let mut net = Net::of(2);
    net.connect(0, "n1");
    net.run_secs(30);
    let conn = *net.nodes[0].router.conns.peers.values().next().unwrap();
    let keys = |net: &Net| net.count(0, |e| matches!(e, Event::InstallSend { .. }));
    let before = keys(&net);
    for _ in 0..100 {
        // Every frame after the bound says so, not only the first.
        net.nodes[0].router.handle_rekey_due(conn, net.now);
        net.work(0);
    }
    net.run_secs(1);
    assert_eq!(keys(&net), before + 1);
    assert_eq!(
        net.count(0, |e| matches!(e, Event::InstallReceive { .. })),
        2
    );
}

#[test]
fn aes_is_used_when_both_ends_have_it() {
    for (aes, suite) in [(true, Suite::Aes256Gcm), (false, Suite::ChaCha20Poly1305)] {
        let mut net = Net::new([
            Config {
                aes: true,
                ..config(0)
            },
            Config { aes, ..config(1) },
        ]);
        net.connect(0, "n1");
        net.run_secs(1);
        for n in 0..2 {
            assert_eq!(net.statuses(n)[0].suite, Some(suite));
            let other =
                |e: &Event| matches!(e, Event::InstallSend { key, .. } if key.suite != suite);
            assert_eq!(net.count(n, other), 0);
        }
    }
}

#[test]
fn datagrams_follow_a_peer_whose_address_changes() {
    let mut net = Net::of(2);
    net.connect(0, "n1");
    net.run_secs(60);
    let moved: SocketAddr = "198.51.100.9:1234".parse().unwrap();
    net.nodes[1].udp_from = moved;
    net.run_secs(6);
    assert_eq!(
        net.count(
            0,
            |e| matches!(e, Event::Remote { addr, .. } if *addr == moved)
        ),
        1
    );
    net.run_secs(60);
    assert!(net.established(0, 1));
    assert_eq!(net.disconnects(0), 0);
}

#[test]
fn messages_reach_a_peer_over_those_in_between() {
    let mut net = line_of_three();
    let (a, c) = (net.nodes[0].name, net.nodes[2].name);
    assert!(!net.established(0, 2));
    net.nodes[0]
        .router
        .send(c, b"hello".to_vec(), net.now)
        .unwrap();
    net.work(0);
    net.run_secs(1);
    let body = b"hello".to_vec();
    assert_eq!(
        net.nodes[2].log.last(),
        Some(&Event::Message { from: a, body })
    );
    assert_eq!(net.count(1, |e| matches!(e, Event::Message { .. })), 0);
}

#[test]
fn a_message_to_a_connected_peer_does_not_wait_for_the_barrier() {
    let mut net = Net::of(2);
    net.sync = false;
    net.connect(0, "n1");
    net.run_secs(1);
    let b = net.nodes[1].name;
    net.nodes[0]
        .router
        .send(b, b"ring?".to_vec(), net.now)
        .unwrap();
    net.nodes[0]
        .router
        .send_gossip(b, b"syn".to_vec(), net.now)
        .unwrap();
    net.work(0);
    net.run_secs(1);
    assert_eq!(net.count(1, |e| matches!(e, Event::Message { .. })), 1);
    assert_eq!(net.count(1, |e| matches!(e, Event::Gossip { .. })), 1);
}

#[test]
fn what_cannot_be_sent_is_said_at_once() {
    let mut net = line_of_three();
    let (b, c, now) = (net.nodes[1].name, net.nodes[2].name, net.now);
    let nobody = config(9).name;
    let router = &mut net.nodes[0].router;
    assert_eq!(
        router.send(nobody, vec![], now),
        Err(SendError::NoRoute(nobody))
    );
    assert_eq!(
        router.send(b, vec![0; 1 << 20], now),
        Err(SendError::TooLong(1 << 20))
    );
    assert_eq!(
        router.send_gossip(c, vec![], now),
        Err(SendError::NoRoute(c)),
        "gossip is for neighbours"
    );
    assert_eq!(router.send(b, vec![0; (1 << 20) - 14], now), Ok(()));
    net.work(0);
    net.run_secs(1);
    assert_eq!(net.disconnects(0), 0);
}

#[test]
fn a_message_does_not_go_round_for_ever_when_views_differ() {
    let mut net = line_of_three();
    let (b, c, now) = (net.nodes[1].name, net.nodes[2].name, net.now);
    // The end of the line is told that everybody is connected to everybody, the middle is not.
    let lost = net.nodes[2].router.config.uid;
    let a = net.nodes[0].name;
    let all = |names: [_; 2]| {
        let state = crate::topology::LinkState {
            established: true,
            relayed: false,
        };
        names.into_iter().map(|name| (name, state)).collect()
    };
    net.nodes[1].router.handle_links(c, lost, all([a, b]), now);
    let before = net.trace.len();
    net.cut.insert((1, 2));
    net.nodes[0].router.send(c, vec![7; 1000], now).unwrap();
    net.work(0);
    net.run_secs(1);
    assert!(
        net.trace.len() - before < 5 * 1100,
        "{} bytes",
        net.trace.len() - before
    );
}

#[test]
fn when_a_router_stops_its_neighbours_know_at_once() {
    let mut net = Net::of(2);
    net.connect(0, "n1");
    net.run_secs(90);
    net.nodes[1].router.shutdown(net.now);
    net.work(1);
    assert_eq!(net.nodes[1].router.poll_timeout(), None);
    net.nodes[1].alive = false;
    net.run(Duration::from_millis(50));
    assert_eq!(net.disconnects(0), 1);
    assert!(
        net.failure(0).info.starts_with("stopping (peer says"),
        "{}",
        net.failure(0).info
    );
    assert_eq!(net.pipes(), 0);
    let from = "192.0.2.1:5000".parse().unwrap();
    assert_eq!(net.nodes[1].router.handle_accepted(from, net.now), None);
}

#[test]
fn a_stranger_that_says_nothing_is_closed_after_ten_seconds() {
    let mut net = Net::of(1);
    let from = "192.0.2.1:5000".parse().unwrap();
    let conn = net.nodes[0].router.handle_accepted(from, net.now).unwrap();
    net.work(0);
    assert_eq!(net.statuses(0)[0].state, ConnectionState::Pending);
    net.run_secs(9);
    assert_eq!(net.count(0, |e| matches!(e, Event::Close { .. })), 0);
    net.run_secs(1);
    assert_eq!(net.nodes[0].log.last(), Some(&Event::Close { conn }));
    assert!(net.statuses(0).is_empty());
}

#[test]
fn the_same_seeds_give_the_same_bytes() {
    let run = || {
        let mut net = Net::of(3);
        net.connect(0, "n1");
        net.connect(1, "n2");
        net.gossip_addresses();
        net.run_secs(300);
        net.trace
    };
    let trace = run();
    assert!(trace.len() > 5000, "{}", trace.len());
    assert!(trace == run(), "two runs differ");
}

#[test]
fn at_rest_a_router_wakes_a_few_times_in_a_second_and_says_why() {
    let mut net = Net::of(4);
    net.gossip_addresses();
    net.run_secs(60);
    let mut reasons = BTreeSet::new();
    let (mut woken, end) = (0, net.now + Duration::from_secs(300));
    while let Some((at, why)) = net.nodes[0]
        .router
        .poll_timeout()
        .filter(|(at, _)| *at < end)
    {
        reasons.insert(why);
        woken += 1;
        net.run(at - net.now);
    }
    assert!(woken < 300 * 3, "{woken} times for {reasons:?}");
    assert!(
        reasons.contains("control heartbeat") && reasons.contains("rekey"),
        "{reasons:?}"
    );
}

proptest! {
    // Each case is minutes of a network; these were run by the thousand when they were written.
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn garbage_on_a_stream_hurts_that_stream_alone(
        at in 0_u64..3000,
        pick: usize,
        garbage in prop::collection::vec(any::<u8>(), 1..200),
    ) {
        let mut net = Net::of(3);
        net.connect(0, "n1");
        net.connect(1, "n2");
        net.run(Duration::from_millis(at));
        net.inject(pick, garbage);
        net.run_secs(40);
        prop_assert!(net.established(0, 1), "{:?}", net.statuses(0));
        prop_assert!(net.established(1, 2), "{:?}", net.statuses(1));
    }

    #[test]
    fn whatever_happens_all_meet_in_the_end_once(
        happenings in prop::collection::vec((happening(), 0_u64..8000), 1..25),
    ) {
        let mut net = Net::of(4);
        for (n, (what, wait)) in happenings.into_iter().enumerate() {
            what.happen(&mut net, n as u64);
            net.run(Duration::from_millis(wait));
        }
        net.cut.clear();
        net.udp_shut.clear();
        net.gossip_addresses();
        net.run_secs(200);
        for (a, b) in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)] {
            prop_assert!(net.established(a, b), "{a} {b}: {:?} {:?}", net.statuses(a), net.statuses(b));
        }
        prop_assert_eq!(net.pipes(), 12);
        let disconnects: usize = (0..4).map(|n| net.disconnects(n)).sum();
        net.run_secs(200);
        prop_assert_eq!((0..4).map(|n| net.disconnects(n)).sum::<usize>(), disconnects);
    }
}

/// What can happen to four peers.
#[derive(Debug, Clone)]
enum Happening {
    Connect(usize, usize),
    Cut(usize, usize),
    Heal,
    ShutUdp(usize),
    /// One end of a connection sees it break, the other does not.
    Reset(usize),
    Restart {
        node: usize,
        silently: bool,
        clock: u64,
    },
}

fn happening() -> impl Strategy<Value = Happening> {
    let node = 0_usize..4;
    prop_oneof![
        4 => (node.clone(), node.clone()).prop_map(|(a, b)| Happening::Connect(a, b)),
        1 => (node.clone(), node.clone()).prop_map(|(a, b)| Happening::Cut(a, b)),
        1 => Just(Happening::Heal),
        1 => node.clone().prop_map(Happening::ShutUdp),
        1 => node.clone().prop_map(Happening::Reset),
        1 => (node, any::<bool>(), 0_u64..3)
            .prop_map(|(node, silently, clock)| Happening::Restart { node, silently, clock }),
    ]
}

impl Happening {
    fn happen(self, net: &mut Net, n: u64) {
        match self {
            Self::Connect(a, b) => net.connect(a, &format!("n{b}")),
            Self::Cut(a, b) => {
                net.cut.insert((a.min(b), a.max(b)));
            }
            Self::Heal => {
                net.cut.clear();
                net.udp_shut.clear();
            }
            Self::ShutUdp(node) => {
                net.udp_shut.insert(node);
            }
            Self::Reset(node) => net.reset_one_end(node),
            Self::Restart {
                node,
                silently,
                clock,
            } => {
                let number = u8::try_from(node).unwrap();
                let run = Config {
                    uid: PeerUid(1000 + n),
                    started: clock,
                    ..config(number)
                };
                net.restart(node, run, silently);
            }
        }
    }
}

/// Three peers in a row, whose ends cannot reach each other.
fn line_of_three() -> Net {
    let mut net = Net::of(3);
    net.cut.insert((0, 2));
    net.connect(0, "n1");
    net.connect(1, "n2");
    net.run_secs(2);
    assert!(net.established(0, 1) && net.established(1, 2));
    net
}
