//! A small network of routers: TCP as pairs of pipes, UDP as datagrams that arrive or not, one clock.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use weft_wire::control::SessionKey;
use weft_wire::message::{Heartbeat, Probe};
use weft_wire::packet::ReceiverIndex;
use weft_wire::{Nickname, PeerName, PeerUid};

use crate::{
    Carrier, Config, ConnId, ConnectionState, ConnectionStatus, Event, FastEvent, Identity, Psk,
    Router, Target,
};

pub(super) const LATENCY: Duration = Duration::from_millis(10);

/// Routers and what is between them. Nodes are named `n0`, `n1`… and live at 10.0.0.1, 10.0.0.2…
pub(super) struct Net {
    pub(super) now: Instant,
    start: Instant,
    pub(super) nodes: Vec<Node>,
    /// The other end of each TCP connection.
    pipes: BTreeMap<(usize, ConnId), (usize, ConnId)>,
    queue: BTreeMap<(Instant, u64), (usize, Delivery)>,
    sent: u64,
    /// Pairs of nodes, smaller first, between which nothing passes, not even the end of a stream.
    pub(super) cut: BTreeSet<(usize, usize)>,
    /// Nodes that no datagram reaches.
    pub(super) udp_shut: BTreeSet<usize>,
    /// Nodes that nobody can dial, and that datagrams reach only from where they have sent some to.
    pub(super) natted: BTreeSet<usize>,
    /// From whom to whom no datagram gets through.
    pub(super) deaf: BTreeSet<(usize, usize)>,
    /// Who has sent datagrams to whom.
    pub(super) holes: BTreeSet<(usize, usize)>,
    /// The longest datagram that gets through.
    pub(super) carries: u16,
    /// Nodes to whose VXLAN nothing gets through.
    pub(super) vxlan_shut: BTreeSet<usize>,
    /// Whether rings are found equal as soon as two peers are connected.
    pub(super) sync: bool,
    /// Bytes on all streams, in order.
    pub(super) trace: Vec<u8>,
    /// Heartbeats that could not be opened, or came by an unknown number.
    pub(super) lost_keys: usize,
}

pub(super) struct Node {
    pub(super) router: Router,
    pub(super) name: PeerName,
    pub(super) addr: SocketAddr,
    /// Where its datagrams seem to come from.
    pub(super) udp_from: SocketAddr,
    pub(super) log: Vec<Event>,
    sending: BTreeMap<ConnId, (SessionKey, SocketAddr)>,
    receiving: BTreeMap<ReceiverIndex, (ConnId, SessionKey)>,
    /// Whose kernels may send to ours.
    pub(super) admitted: BTreeMap<PeerName, Ipv4Addr>,
    /// Who carries frames to each peer, as it was said last.
    pub(super) carriers: BTreeMap<PeerName, Carrier>,
    pub(super) alive: bool,
}

enum Delivery {
    Dialed(ConnId, SocketAddr),
    DialFailed(ConnId, String),
    Bytes(ConnId, Vec<u8>),
    Closed(ConnId),
    Datagram(SessionKey, SocketAddr, Asked),
    Beat(Vec<u8>),
    Synced(PeerName),
    Links(
        PeerName,
        PeerUid,
        BTreeMap<PeerName, crate::topology::LinkState>,
    ),
}

/// What datagrams carry here.
#[derive(Debug, Clone, Copy)]
pub(super) enum Asked {
    Heartbeat(Heartbeat),
    Probe(Probe),
}

/// A node's configuration, by number; tests change what they are about.
pub(super) fn config(n: u8) -> Config {
    let identity = Identity::generate(&mut ChaCha20Rng::seed_from_u64(n.into())).unwrap();
    Config {
        name: identity.peer_name(),
        identity,
        nickname: Nickname::new(&format!("n{n}")),
        uid: PeerUid(u64::from(n) + 100),
        started: 1_800_000_000,
        psk: None,
        cluster: "weft".to_owned(),
        port: 6783,
        mtu: 1376,
        version: "0.1.0".to_owned(),
        pools: vec!["10.32.0.0/12".to_owned()],
        conn_limit: 0,
        discovery: true,
        trusted: vec![],
        aes: false,
    }
}

pub(super) fn psk(password: &str) -> Option<Psk> {
    Some(Psk::derive(password, "weft").unwrap())
}

pub(super) fn target(text: &str) -> Target {
    text.parse().unwrap()
}

impl Net {
    pub(super) fn new(configs: impl IntoIterator<Item = Config>) -> Self {
        let now = crate::clock::start();
        let mut net = Self {
            now,
            start: now,
            nodes: vec![],
            pipes: BTreeMap::new(),
            queue: BTreeMap::new(),
            sent: 0,
            cut: BTreeSet::new(),
            udp_shut: BTreeSet::new(),
            natted: BTreeSet::new(),
            deaf: BTreeSet::new(),
            holes: BTreeSet::new(),
            carries: 1472,
            vxlan_shut: BTreeSet::new(),
            sync: true,
            trace: vec![],
            lost_keys: 0,
        };
        for config in configs {
            net.add(config);
        }
        net
    }

    /// The usual nodes 0, 1, … as many as asked for.
    pub(super) fn of(count: u8) -> Self {
        Self::new((0..count).map(config))
    }

    pub(super) fn add(&mut self, config: Config) -> usize {
        let n = u8::try_from(self.nodes.len()).unwrap();
        let addr = SocketAddr::from(([10, 0, 0, n + 1], config.port));
        self.nodes.push(Node {
            name: config.name,
            router: Router::new(config, [n; 32], self.now),
            addr,
            udp_from: addr,
            log: vec![],
            sending: BTreeMap::new(),
            receiving: BTreeMap::new(),
            admitted: BTreeMap::new(),
            carriers: BTreeMap::new(),
            alive: true,
        });
        n.into()
    }

    /// Stops a node as if its power failed, and starts another run of it.
    pub(super) fn restart(&mut self, n: usize, config: Config, silently: bool) {
        let pipes: Vec<_> = self
            .pipes
            .keys()
            .filter(|(node, _)| *node == n)
            .copied()
            .collect();
        for end in pipes {
            let Some(other) = self.pipes.remove(&end) else {
                continue;
            };
            if !self.pipes.contains_key(&other) {
                continue;
            }
            if silently {
                self.pipes.insert(other, (n, ConnId(u64::MAX)));
            } else {
                self.pipes.remove(&other);
                self.deliver(other.0, Delivery::Closed(other.1));
            }
        }
        self.queue.retain(|_, (node, _)| *node != n);
        let now = self.now;
        let node = &mut self.nodes[n];
        node.router = Router::new(config, [n as u8 + 100; 32], now);
        node.sending.clear();
        node.receiving.clear();
        node.carriers.clear();
        node.log.clear();
    }

    pub(super) fn connect(&mut self, from: usize, to: &str) {
        self.nodes[from]
            .router
            .connect(&[target(to)], false, self.now);
        self.work(from);
    }

    /// Lets that much time pass.
    pub(super) fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        let (mut at, mut times) = (self.now, 0);
        while let Some(next) = self.next_time().filter(|next| *next <= end) {
            times = if next == at { times + 1 } else { 0 };
            assert!(
                times < 20_000,
                "busy at {:?}: {:?}",
                next - self.start,
                self.reasons()
            );
            at = next;
            self.now = self.now.max(next);
            self.step();
        }
        self.now = end;
    }

    pub(super) fn run_secs(&mut self, secs: u64) {
        self.run(Duration::from_secs(secs));
    }

    pub(super) fn established(&self, a: usize, b: usize) -> bool {
        let half = |a: usize, b: usize| {
            self.nodes[a]
                .router
                .neighbours()
                .contains(&self.nodes[b].name)
        };
        assert_eq!(
            half(a, b),
            half(b, a),
            "one end says so and the other does not"
        );
        half(a, b)
    }

    pub(super) fn statuses(&self, n: usize) -> Vec<ConnectionStatus> {
        self.nodes[n].router.connections()
    }

    /// The one failed connection a node shows, which may be dialled again just now.
    pub(super) fn failure(&self, n: usize) -> ConnectionStatus {
        let mut all = self.statuses(n);
        let failed = [ConnectionState::Failed, ConnectionState::Retrying];
        all.retain(|status| failed.contains(&status.state));
        assert_eq!(all.len(), 1, "{:?}", self.statuses(n));
        all.remove(0)
    }

    pub(super) fn count(&self, n: usize, is: impl Fn(&Event) -> bool) -> usize {
        self.nodes[n].log.iter().filter(|event| is(event)).count()
    }

    pub(super) fn disconnects(&self, n: usize) -> usize {
        self.count(n, |event| matches!(event, Event::Disconnected { .. }))
    }

    pub(super) fn dials(&self, n: usize) -> usize {
        self.count(n, |event| matches!(event, Event::Dial { .. }))
    }

    /// Both ends of every connection there is.
    pub(super) fn pipes(&self) -> usize {
        self.pipes.len()
    }

    /// Puts bytes on a random end of a stream.
    pub(super) fn inject(&mut self, pick: usize, bytes: Vec<u8>) {
        if let Some((node, conn)) = self
            .pipes
            .keys()
            .nth(pick % self.pipes.len().max(1))
            .copied()
        {
            self.deliver(node, Delivery::Bytes(conn, bytes));
        }
    }

    /// Tells every node where every other one listens, as gossip would.
    pub(super) fn gossip_addresses(&mut self) {
        let all: Vec<_> = self
            .nodes
            .iter()
            .map(|node| (node.name, node.addr))
            .collect();
        for n in 0..self.nodes.len() {
            for (name, addr) in &all {
                let info = crate::PeerInfo {
                    addresses: vec![*addr],
                    datagrams: Vec::new(),
                };
                self.nodes[n].router.handle_peer_info(*name, info, self.now);
            }
            self.work(n);
        }
    }

    /// A TCP connection of this node is gone, and only this node has seen it.
    pub(super) fn reset_one_end(&mut self, n: usize) {
        let end = self.pipes.keys().find(|(node, _)| *node == n).copied();
        if let Some((node, conn)) = end {
            self.pipes.remove(&(node, conn));
            self.deliver(node, Delivery::Closed(conn));
        }
    }

    fn reasons(&self) -> Vec<Option<(Instant, &'static str)>> {
        self.nodes
            .iter()
            .map(|node| node.router.poll_timeout())
            .collect()
    }

    fn next_time(&self) -> Option<Instant> {
        let queued = self.queue.keys().next().map(|(at, _)| *at);
        let alive = self.nodes.iter().filter(|node| node.alive);
        let timers = alive
            .filter_map(|node| node.router.poll_timeout())
            .map(|(at, _)| at);
        timers.chain(queued).min()
    }

    fn step(&mut self) {
        for n in 0..self.nodes.len() {
            let due = self.nodes[n].router.poll_timeout();
            if self.nodes[n].alive && due.is_some_and(|(at, _)| at <= self.now) {
                self.nodes[n].router.handle_timeout(self.now);
                self.work(n);
            }
        }
        while let Some(entry) = self
            .queue
            .first_entry()
            .filter(|entry| entry.key().0 <= self.now)
        {
            let (n, delivery) = entry.remove();
            if self.nodes[n].alive {
                self.take(n, delivery);
                self.work(n);
            }
        }
    }

    fn take(&mut self, n: usize, delivery: Delivery) {
        let now = self.now;
        let Node {
            router, receiving, ..
        } = &mut self.nodes[n];
        match delivery {
            Delivery::Dialed(conn, remote) => router.handle_dialed(conn, remote, now),
            Delivery::DialFailed(conn, why) => router.handle_dial_failed(conn, why, now),
            Delivery::Bytes(conn, bytes) => router.handle_bytes(conn, &bytes, now),
            Delivery::Closed(conn) => {
                router.handle_closed(conn, "closed by the other side".to_owned(), now)
            }
            Delivery::Datagram(key, from, asked) => match receiving.get(&key.receiver) {
                Some((conn, held)) if *held == key => {
                    let conn = *conn;
                    self.answer(n, conn, asked, from);
                    self.take_datagram(n, conn, from, asked);
                }
                _ => self.lost_keys += 1,
            },
            Delivery::Beat(frame) => router.handle_beat(&frame, now),
            Delivery::Synced(peer) => router.set_synced(peer, now),
            Delivery::Links(peer, uid, links) => router.handle_links(peer, uid, links, now),
        }
    }

    /// What the data plane does by itself, once it has a key to do it with.
    fn answer(&mut self, n: usize, conn: ConnId, asked: Asked, to: SocketAddr) {
        let answer = match asked {
            Asked::Heartbeat(heartbeat) => heartbeat.answer().map(Asked::Heartbeat),
            Asked::Probe(probe) => probe.answer().map(Asked::Probe),
        };
        if let (Some(answer), Some((key, _))) = (answer, self.nodes[n].sending.get(&conn)) {
            self.send_datagram(n, key.clone(), to, answer);
        }
    }

    pub(super) fn take_datagram(&mut self, n: usize, conn: ConnId, from: SocketAddr, asked: Asked) {
        let (router, now) = (&mut self.nodes[n].router, self.now);
        match asked {
            Asked::Heartbeat(heartbeat) => router.handle_heartbeat(conn, from, heartbeat, now),
            Asked::Probe(probe) if probe.reply => router.handle_probed(conn, probe, now),
            Asked::Probe(_) => {}
        }
    }

    /// Does what a node asks for.
    pub(super) fn work(&mut self, n: usize) {
        while let Some(event) = self.nodes[n].router.poll_event() {
            self.nodes[n].log.push(event.clone());
            self.carry_out(n, event);
        }
        self.nodes[n].router.check();
    }

    fn carry_out(&mut self, n: usize, event: Event) {
        match event {
            Event::Dial { conn, target } => self.dial(n, conn, &target),
            Event::Transmit { conn, bytes } => {
                self.trace.extend(&bytes);
                if let Some((to, conn)) = self
                    .pipes
                    .get(&(n, conn))
                    .copied()
                    .filter(|(to, _)| !self.is_cut(n, *to))
                {
                    self.deliver(to, Delivery::Bytes(conn, bytes));
                }
            }
            Event::Close { conn } => {
                let other = self.pipes.remove(&(n, conn));
                let other = other.filter(|(to, _)| !self.is_cut(n, *to));
                if let Some((to, conn)) = other.filter(|other| self.pipes.remove(other).is_some()) {
                    self.deliver(to, Delivery::Closed(conn));
                }
            }
            Event::InstallSend {
                conn, key, remote, ..
            } => {
                self.nodes[n].sending.insert(conn, (key, remote));
            }
            Event::InstallReceive { conn, key, .. } => {
                let before = self.nodes[n].receiving.insert(key.receiver, (conn, key));
                assert!(before.is_none(), "a number is used twice");
            }
            Event::RetireReceive { receiver } => {
                assert!(self.nodes[n].receiving.remove(&receiver).is_some());
            }
            Event::Remote { conn, addr, .. } => {
                if let Some((_, remote)) = self.nodes[n].sending.get_mut(&conn) {
                    *remote = addr;
                }
            }
            Event::SendHeartbeat { conn, heartbeat } => {
                self.ask(n, conn, Asked::Heartbeat(heartbeat))
            }
            Event::Punch {
                conn,
                to,
                heartbeat,
            } => self.ask_at(n, conn, to, Asked::Heartbeat(heartbeat)),
            Event::SendProbe { conn, probe } => self.ask(n, conn, Asked::Probe(probe)),
            Event::Limit { .. } => {}
            Event::Uninstall { conn } => {
                self.nodes[n].sending.remove(&conn);
                self.nodes[n].receiving.retain(|_, (held, _)| *held != conn);
            }
            Event::Connected { peer, .. } => {
                if self.sync {
                    self.deliver(n, Delivery::Synced(peer));
                }
            }
            Event::LinksChanged => self.publish(n),
            Event::Fast { peer, event } => self.carry_out_fast(n, peer, event),
            Event::Disconnected { .. }
            | Event::Established { .. }
            | Event::Message { .. }
            | Event::Gossip { .. }
            | Event::RoutesChanged
            | Event::TargetsChanged
            | Event::Refused { .. } => {}
        }
    }

    fn dial(&mut self, n: usize, conn: ConnId, target: &Target) {
        let port = target.port.unwrap_or(6783);
        let host = target.host.as_str();
        let at = |node: &Node| {
            host.parse::<IpAddr>().is_ok_and(|ip| ip == node.addr.ip()) && port == node.addr.port()
        };
        let named = host.strip_prefix('n').and_then(|m| m.parse().ok());
        let to = named
            .filter(|m| *m < self.nodes.len())
            .or_else(|| self.nodes.iter().position(at));
        let open =
            |to: &usize| !self.is_cut(n, *to) && !self.natted.contains(to) && self.nodes[*to].alive;
        let Some(to) = to.filter(open) else {
            return self.deliver(
                n,
                Delivery::DialFailed(conn, format!("no answer from {target}")),
            );
        };
        let from = SocketAddr::new(
            self.nodes[n].addr.ip(),
            40_000 + u16::try_from(conn.0 % 20_000).unwrap(),
        );
        let accepted = self.nodes[to].router.handle_accepted(from, self.now);
        let remote = self.nodes[to].addr;
        self.deliver(n, Delivery::Dialed(conn, remote));
        match accepted {
            Some(other) => {
                self.pipes.insert((n, conn), (to, other));
                self.pipes.insert((to, other), (n, conn));
            }
            None => self.deliver(n, Delivery::Closed(conn)),
        }
        if to != n {
            self.work(to);
        }
    }

    fn ask(&mut self, n: usize, conn: ConnId, asked: Asked) {
        let sending = self.nodes[n].sending.get(&conn);
        let (_, remote) = sending.expect("a question before a key");
        self.ask_at(n, conn, *remote, asked);
    }

    fn ask_at(&mut self, n: usize, conn: ConnId, to: SocketAddr, asked: Asked) {
        let sending = self.nodes[n].sending.get(&conn);
        let (key, _) = sending.expect("a question before a key").clone();
        self.send_datagram(n, key, to, asked);
    }

    fn send_datagram(&mut self, n: usize, key: SessionKey, remote: SocketAddr, asked: Asked) {
        let mut nodes = self.nodes.iter();
        let to = nodes.position(|to| to.addr == remote || to.udp_from == remote);
        let fits = match asked {
            Asked::Heartbeat(_) => true,
            Asked::Probe(probe) => probe.reply || probe.size <= self.carries,
        };
        let open = |to: &usize| fits && !self.is_cut(n, *to) && !self.udp_shut.contains(to);
        if let Some(to) = to.filter(open) {
            let from = self.nodes[n].udp_from;
            self.holes.insert((n, to));
            if self.deaf.contains(&(n, to)) {
                return;
            }
            if self.natted.contains(&to) && !self.holes.contains(&(to, n)) {
                return;
            }
            self.deliver(to, Delivery::Datagram(key, from, asked));
        }
    }

    fn carry_out_fast(&mut self, n: usize, peer: PeerName, event: FastEvent) {
        let node = &mut self.nodes[n];
        match event {
            FastEvent::Admit(addr) => {
                node.admitted.insert(peer, addr);
            }
            FastEvent::Bar => {
                node.admitted.remove(&peer);
            }
            FastEvent::Carry { carrier, .. } => {
                node.carriers.insert(peer, carrier);
            }
            FastEvent::Beat { addr, frame, .. } => self.send_beat(n, addr, frame),
        }
    }

    /// From kernel to kernel: who is not let in is dropped without a word.
    fn send_beat(&mut self, n: usize, addr: Ipv4Addr, frame: Vec<u8>) {
        let from = self.nodes[n].addr.ip();
        let to = self.nodes.iter().position(|to| to.addr.ip() == addr);
        let open = |to: &usize| {
            let mut admitted = self.nodes[*to].admitted.values();
            admitted.any(|host| from == *host)
                && !self.is_cut(n, *to)
                && !self.vxlan_shut.contains(to)
        };
        if let Some(to) = to.filter(open) {
            self.deliver(to, Delivery::Beat(frame));
        }
    }

    fn publish(&mut self, n: usize) {
        let (name, uid) = (self.nodes[n].name, self.nodes[n].router.config.uid);
        let links = self.nodes[n].router.own_links();
        for to in (0..self.nodes.len()).filter(|to| *to != n) {
            self.deliver(to, Delivery::Links(name, uid, links.clone()));
        }
    }

    fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cut.contains(&(a.min(b), a.max(b)))
    }

    fn deliver(&mut self, to: usize, delivery: Delivery) {
        self.sent += 1;
        self.queue
            .insert((self.now + LATENCY, self.sent), (to, delivery));
    }
}

/// The words of the `Refused` events a node saw.
pub(super) fn refusals(node: &Node) -> Vec<String> {
    let mut texts = vec![];
    for event in &node.log {
        if let Event::Refused { text, .. } = event {
            texts.push(text.clone());
        }
    }
    texts
}
