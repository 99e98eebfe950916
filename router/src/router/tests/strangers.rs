//! A router against a peer that speaks the protocol but not by its rules.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_wire::codec::Writer;
use weft_wire::control::{Control, Hello, Refusal, RefusalReason, Routed, SessionKey, Suite};
use weft_wire::packet::ReceiverIndex;

use super::net::{config, target};
use crate::control::{Channel, Credentials, Side, Step};
use crate::{ConnId, Event, Router, TargetState};

#[test]
fn nothing_is_listened_to_before_hello() {
    for early in [
        Control::Heartbeat,
        Control::Ready(true),
        key(1),
        Control::Gossip(vec![1]),
    ] {
        let mut pair = Pair::accepted();
        pair.say(&early);
        assert_eq!(pair.refused(), Some(RefusalReason::Protocol), "{early:?}");
        assert!(!pair.is_connected());
    }
}

#[test]
fn a_second_hello_and_one_without_a_port_are_refused() {
    let mut pair = Pair::greeted();
    assert!(pair.is_connected());
    pair.say(&Control::Hello(hello()));
    assert_eq!(pair.refused(), Some(RefusalReason::Protocol));
    assert!(!pair.is_connected());

    let mut pair = Pair::accepted();
    pair.say(&Control::Hello(Hello { port: 0, ..hello() }));
    assert_eq!(pair.refused(), Some(RefusalReason::Protocol));
}

#[test]
fn a_flood_of_keys_is_not_answered_by_a_flood() {
    let mut pair = Pair::greeted();
    for n in 0..1000 {
        pair.say(&key(n));
    }
    let offers = pair
        .said
        .iter()
        .filter(|said| matches!(said, Control::Key(_)));
    assert_eq!(offers.count(), 1);
    pair.now += Duration::from_secs(10);
    for n in 0..1000 {
        pair.say(&key(n));
    }
    let offers = pair
        .said
        .iter()
        .filter(|said| matches!(said, Control::Key(_)));
    assert_eq!(offers.count(), 2);
}

#[test]
fn ready_alone_establishes_nothing() {
    let mut pair = Pair::greeted();
    pair.say(&key(1));
    pair.say(&Control::Ready(true));
    pair.say(&Control::Ready(true));
    assert!(pair.router.neighbours().is_empty());
    assert!(
        !pair
            .events
            .iter()
            .any(|e| matches!(e, Event::Established { .. }))
    );
}

#[test]
fn messages_that_lead_nowhere_or_come_back_are_dropped() {
    let mut pair = Pair::greeted();
    let (us, them, nobody) = (config(0).name, config(1).name, config(9).name);
    for (source, destination, hops) in [
        (them, nobody, 16),
        (us, them, 16),
        (nobody, them, 0),
        (nobody, them, 16),
    ] {
        let body = vec![1];
        pair.say(&Control::Routed(Routed {
            source,
            destination,
            hops,
            body,
        }));
    }
    assert!(
        !pair
            .said
            .iter()
            .any(|said| matches!(said, Control::Routed(_)))
    );
    assert!(pair.is_connected());
}

#[test]
fn words_in_clear_from_somebody_in_between_cannot_retire_a_target() {
    let mut pair = Pair::dialled("host1");
    let mut w = Writer::new();
    Refusal::new(RefusalReason::OwnAddress, "forged").write(&mut w);
    let body = w.into_bytes();
    let len = u16::try_from(body.len() + 1).unwrap().to_be_bytes();
    let preamble = pair.peer.take_output();
    let forged = [&preamble[..], &len, &[1], &body].concat();
    pair.router.handle_bytes(pair.conn, &forged, pair.now);
    let status = &pair.router.targets()[0];
    assert_eq!(status.state, TargetState::Waiting);
    assert_eq!(
        status.last_error.as_deref(),
        Some("cannot connect to ourselves (peer says: forged)")
    );
}

#[test]
fn a_peer_is_told_why_before_its_stream_is_closed() {
    let mut pair = Pair::greeted();
    pair.events.clear();
    pair.say(&Control::Hello(hello()));
    assert!(
        pair.events
            .iter()
            .any(|e| matches!(e, Event::Transmit { .. }))
    );
    assert!(!pair.events.iter().any(|e| matches!(e, Event::Close { .. })));
    pair.now += Duration::from_secs(2);
    pair.router.handle_timeout(pair.now);
    pair.carry();
    assert_eq!(
        pair.events
            .iter()
            .filter(|e| matches!(e, Event::Close { .. }))
            .count(),
        1
    );
}

#[test]
fn datagrams_go_to_the_port_a_peer_listens_on_unless_another_one_was_dialled() {
    let said = SocketAddr::new(addr().ip(), 6783);
    for (mut pair, expected) in [
        (Pair::accepted(), said),
        (Pair::dialled("host1"), said),
        (Pair::dialled("host1:40000"), addr()),
    ] {
        for _ in 0..3 {
            pair.carry();
        }
        pair.say(&Control::Hello(hello()));
        pair.say(&key(1));
        let mut installed = pair.events.iter().filter_map(|event| {
            if let Event::InstallSend { remote, .. } = event {
                Some(*remote)
            } else {
                None
            }
        });
        assert_eq!(installed.next(), Some(expected));
    }
}

#[test]
fn a_key_given_to_the_node_does_not_show_in_its_log() {
    let mut pair = Pair::greeted();
    pair.say(&key(1));
    let shown = format!("{:?}", pair.events);
    assert!(
        shown.contains("InstallSend") && !shown.contains("9, 9, 9, 9"),
        "{shown}"
    );
}

/// A router, and the other end of one of its connections in our hands.
struct Pair {
    router: Router,
    conn: ConnId,
    peer: Channel,
    now: Instant,
    /// What the router has asked of its node, and said to its peer.
    events: Vec<Event>,
    said: Vec<Control>,
}

impl Pair {
    fn new(side: Side, open: impl FnOnce(&mut Router, Instant) -> ConnId) -> Self {
        let now = crate::clock::start();
        let mut router = Router::new(config(0), [1; 32], now);
        let theirs = config(1);
        let credentials = Credentials {
            identity: theirs.identity,
            psk: None,
            cluster: theirs.cluster,
        };
        Self {
            conn: open(&mut router, now),
            router,
            peer: Channel::new(side, Arc::new(credentials), [2; 32]),
            now,
            events: vec![],
            said: vec![],
        }
    }

    /// The router was dialled and the handshake is done.
    fn accepted() -> Self {
        let mut pair = Self::new(Side::Initiator, |router, now| {
            router.handle_accepted(addr(), now).unwrap()
        });
        for _ in 0..3 {
            pair.carry();
        }
        pair
    }

    /// The router was dialled and has heard a fitting hello.
    fn greeted() -> Self {
        let mut pair = Self::accepted();
        pair.say(&Control::Hello(hello()));
        assert!(matches!(pair.said.first(), Some(Control::Hello(_))));
        pair
    }

    /// The router has dialled; nothing is said yet.
    fn dialled(to: &str) -> Self {
        Self::new(Side::Responder, |router, now| {
            router.connect(&[target(to)], false, now);
            assert_eq!(router.poll_event(), Some(Event::TargetsChanged));
            let Some(Event::Dial { conn, .. }) = router.poll_event() else {
                panic!("no dial");
            };
            router.handle_dialed(conn, addr(), now);
            conn
        })
    }

    fn say(&mut self, message: &Control) {
        // After a refusal nothing can be said any more, and nothing is heard.
        let _ = self.peer.send(message);
        self.carry();
    }

    /// Carries bytes both ways, once.
    fn carry(&mut self) {
        let bytes = self.peer.take_output();
        self.router.handle_bytes(self.conn, &bytes, self.now);
        while let Some(event) = self.router.poll_event() {
            if let Event::Transmit { bytes, .. } = &event {
                self.peer.push(bytes).unwrap();
            }
            self.events.push(event);
        }
        while let Ok(Some(step)) = self.peer.step() {
            if let Step::Message(message) = step {
                self.said.push(message);
            }
        }
        self.router.check();
    }

    fn refused(&self) -> Option<RefusalReason> {
        if let Some(Control::Refusal(refusal)) = self.said.last() {
            Some(refusal.reason)
        } else {
            None
        }
    }

    fn is_connected(&self) -> bool {
        !self.router.connected().is_empty()
    }
}

fn hello() -> Hello {
    config(1).hello(addr().ip())
}

fn key(n: u32) -> Control {
    Control::Key(SessionKey {
        receiver: ReceiverIndex(n),
        suite: Suite::ChaCha20Poly1305,
        key: [9; 32],
    })
}

fn addr() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 2], 40_000))
}
