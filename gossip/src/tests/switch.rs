//! A network in memory in virtual time: peers, the cables between them, and a check on all that is told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use weft_wire::PeerName;

use crate::key::tests::info;
use crate::{Change, Entry, Event, Gossip, Link, Topic};

/// What one message takes from peer to peer.
const LATENCY: Duration = Duration::from_millis(2);

pub(super) struct Switch {
    pub(super) now: Instant,
    pub(super) peers: BTreeMap<PeerName, Peer>,
    cables: BTreeSet<(PeerName, PeerName)>,
    /// Cables there are or were.
    laid: BTreeSet<(PeerName, PeerName)>,
    /// Of so many messages one is lost, by chance; 0 for none.
    pub(super) loss: u64,
    dice: u64,
    wire: BTreeMap<(Instant, usize), (PeerName, PeerName, Vec<u8>)>,
    made: usize,
    carried: usize,
    bytes: usize,
    strays: Vec<(PeerName, PeerName)>,
}

/// One peer and what it was told.
pub(super) struct Peer {
    pub(super) gossip: Gossip,
    pub(super) table: Table,
}

/// Keeps what is told, and that it is told in order.
#[derive(Default)]
pub(super) struct Table {
    pub(super) peers: BTreeMap<PeerName, BTreeMap<Topic, Entry>>,
    pub(super) log: Vec<Change>,
}

pub(super) fn name(n: u16) -> PeerName {
    let [high, low] = n.to_be_bytes();
    PeerName::from_bytes([2, 0, 0, 0, high, low])
}

pub(super) fn record(fqdn: &str, n: u8) -> Entry {
    Entry::Name {
        fqdn: format!("{fqdn}.weft.local."),
        container: "0123456789ab".into(),
        addr: [10, 32, 0, n].into(),
    }
}

pub(super) fn link(to: PeerName, established: bool) -> Entry {
    let address = ([192, 0, 2, 7], 6783).into();
    let link = Link {
        established,
        outbound: true,
        address,
        datagrams: None,
        relayed: false,
    };
    Entry::Link(to, link)
}

impl Switch {
    pub(super) fn new() -> Self {
        Self {
            now: Instant::now(),
            peers: BTreeMap::new(),
            cables: BTreeSet::new(),
            laid: BTreeSet::new(),
            loss: 0,
            dice: 1,
            wire: BTreeMap::new(),
            made: 0,
            carried: 0,
            bytes: 0,
            strays: Vec::new(),
        }
    }

    /// Starts a peer that says who it is, and `entries`.
    pub(super) fn start(&mut self, n: u16, generation: u64, mut entries: Vec<Entry>) {
        entries.insert(0, Entry::Peer(info(generation)));
        let gossip = Gossip::new(name(n), generation, entries, self.now).unwrap();
        let table = Table::default();
        self.peers.insert(name(n), Peer { gossip, table });
    }

    /// Peers 1 to `n`, each connected with the next, with a name each.
    pub(super) fn line(n: u16) -> Self {
        let mut switch = Self::new();
        for n in 1..=n {
            switch.start(n, 1, vec![record(&format!("c{n}"), n as u8)]);
        }
        for n in 1..n {
            switch.connect(n, n + 1);
        }
        switch
    }

    /// Peers 1 to `n`, not connected.
    pub(super) fn apart(n: u16) -> Self {
        let mut switch = Self::new();
        for n in 1..=n {
            switch.start(n, 1, vec![]);
        }
        switch
    }

    /// Peers 1 to `n`, each connected with all.
    pub(super) fn mesh(n: u16) -> Self {
        let mut switch = Self::apart(n);
        for a in 1..=n {
            for b in a + 1..=n {
                switch.connect(a, b);
            }
        }
        switch
    }

    /// Connects two, which both tell of.
    pub(super) fn connect(&mut self, a: u16, b: u16) {
        for (a, b) in [(a, b), (b, a)] {
            self.cables.insert((name(a), name(b)));
            self.laid.insert((name(a), name(b)));
            self.tell_neighbours(name(a));
            self.publish(a, &link(name(b), true));
        }
    }

    pub(super) fn cut(&mut self, a: u16, b: u16) {
        for (a, b) in [(a, b), (b, a)] {
            self.cut_one_way(a, b);
            self.tell_neighbours(name(a));
            self.withdraw(a, &link(name(b), true));
        }
    }

    /// What `a` sends to `b` is lost from here on; neither knows.
    pub(super) fn cut_one_way(&mut self, a: u16, b: u16) {
        self.cables.remove(&(name(a), name(b)));
    }

    /// What the two send each other is lost from here on; neither knows.
    pub(super) fn cut_silently(&mut self, a: u16, b: u16) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// The peer is no more, as after `kill -9`; those it was connected with notice.
    pub(super) fn kill(&mut self, n: u16) {
        self.peers.remove(&name(n));
        let to = self.cables.iter().filter(|(_, to)| *to == name(n));
        let others: Vec<_> = to.map(|(from, _)| *from).collect();
        self.cables.retain(|(a, b)| *a != name(n) && *b != name(n));
        for other in others {
            self.tell_neighbours(other);
            let now = self.now;
            if let Some(peer) = self.peers.get_mut(&other) {
                peer.gossip.withdraw(&Topic::Link(name(n)), now);
            }
            self.work(other);
        }
    }

    /// The peer is started anew, and its connection with `to` comes in place of the old one, which `to`
    /// did not miss.
    pub(super) fn comes_anew(&mut self, n: u16, to: u16, generation: u64) {
        self.start(n, generation, vec![]);
        for (here, there) in [(n, to), (to, n)] {
            self.peer(here).gossip.handle_connected(name(there));
            self.tell_neighbours(name(here));
        }
        self.publish(n, &link(name(to), true));
    }

    pub(super) fn publish(&mut self, n: u16, entry: &Entry) {
        let now = self.now;
        self.peer(n).gossip.publish(entry, now).unwrap();
        self.work(name(n));
    }

    pub(super) fn withdraw(&mut self, n: u16, entry: &Entry) {
        let now = self.now;
        self.peer(n).gossip.withdraw(&entry.topic(), now);
        self.work(name(n));
    }

    pub(super) fn withdraw_all(&mut self, n: u16) {
        let now = self.now;
        self.peer(n).gossip.withdraw_all(now);
        self.work(name(n));
    }

    /// A message as if a neighbour had sent it.
    pub(super) fn forge(&mut self, from: u16, to: u16, bytes: &[u8]) {
        let now = self.now;
        self.peer(to).gossip.handle_message(name(from), bytes, now);
        self.work(name(to));
    }

    pub(super) fn peer(&mut self, n: u16) -> &mut Peer {
        self.peers.get_mut(&name(n)).unwrap()
    }

    pub(super) fn run_secs(&mut self, seconds: u64) {
        self.run(Duration::from_secs(seconds));
    }

    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
    }

    /// Waits until all is known, and then until just behind a tick, so that nobody compares for a while.
    pub(super) fn rest_behind_a_tick(&mut self) {
        self.run_secs(10);
        self.run(Duration::from_millis(300));
    }

    /// Runs until `entry` of peer `of` is known to `n`, or is not; gives how long that took.
    pub(super) fn until(&mut self, n: u16, of: u16, entry: &Entry, known: bool) -> Duration {
        let start = self.now;
        let end = start + Duration::from_secs(120);
        while self.knows(n, of, entry) != known {
            assert!(self.step(end), "it is told in two minutes");
        }
        self.now - start
    }

    pub(super) fn knows(&self, n: u16, of: u16, entry: &Entry) -> bool {
        let entries = self.peers[&name(n)].table.peers.get(&name(of));
        entries.and_then(|e| e.get(&entry.topic())) == Some(entry)
    }

    /// Whom a peer shows.
    pub(super) fn known(&self, n: u16) -> Vec<PeerName> {
        self.peers[&name(n)].table.peers.keys().copied().collect()
    }

    /// What was told since this was last asked.
    pub(super) fn news(&mut self, n: u16) -> Vec<Change> {
        std::mem::take(&mut self.peer(n).table.log)
    }

    /// Waits until nothing is new any more, then checks that little is said: no two peers may go on
    /// asking each other for what neither takes.
    pub(super) fn assert_rest(&mut self) {
        self.run_secs(20);
        self.take_traffic();
        let ends = self.cables.len();
        self.run_secs(20);
        let (messages, bytes) = self.take_traffic();
        assert!(messages <= ends * 20 / 5, "{messages} messages at rest");
        assert!(bytes <= messages * 18, "{bytes} bytes at rest");
        assert_eq!(self.strays, []);
    }

    /// Messages and bytes carried since this was last asked.
    pub(super) fn take_traffic(&mut self) -> (usize, usize) {
        (
            std::mem::take(&mut self.carried),
            std::mem::take(&mut self.bytes),
        )
    }

    fn tell_neighbours(&mut self, of: PeerName) {
        let from_here = self.cables.iter().filter(|(a, _)| *a == of);
        let neighbours = from_here.map(|(_, b)| *b).collect();
        let now = self.now;
        if let Some(peer) = self.peers.get_mut(&of) {
            peer.gossip.set_neighbours(&neighbours, now);
        }
        self.work(of);
    }

    /// Goes on to the next thing that happens; false if there is none before `end`.
    fn step(&mut self, end: Instant) -> bool {
        let due = |peer: &Peer| peer.gossip.poll_timeout().map(|(at, _)| at);
        let timers = self.peers.iter();
        let timer = timers
            .filter_map(|(name, peer)| Some((due(peer)?, *name)))
            .min();
        let arrival = self.wire.keys().next().copied();
        let next = timer
            .map(|(at, _)| at)
            .into_iter()
            .chain(arrival.map(|(at, _)| at))
            .min();
        let Some(next) = next.filter(|next| *next <= end) else {
            self.now = end;
            return false;
        };
        self.now = self.now.max(next);
        let now = self.now;
        if let Some(key) = arrival.filter(|(at, _)| *at == next) {
            let (from, to, bytes) = self.wire.remove(&key).unwrap();
            self.arrive(from, to, &bytes);
        } else if let Some((_, name)) = timer {
            self.peers
                .get_mut(&name)
                .unwrap()
                .gossip
                .handle_timeout(now);
            self.work(name);
        }
        true
    }

    fn arrive(&mut self, from: PeerName, to: PeerName, bytes: &[u8]) {
        if !self.laid.contains(&(from, to)) {
            self.strays.push((from, to));
        }
        if !self.cables.contains(&(from, to)) {
            return;
        }
        self.carried += 1;
        self.bytes += bytes.len();
        self.dice = self
            .dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let is_lost = |loss| (self.dice >> 33).is_multiple_of(loss);
        if self.loss > 0 && is_lost(self.loss) {
            return;
        }
        let now = self.now;
        if let Some(peer) = self.peers.get_mut(&to) {
            peer.gossip.handle_message(from, bytes, now);
        }
        self.work(to);
    }

    fn work(&mut self, of: PeerName) {
        let Some(peer) = self.peers.get_mut(&of) else {
            return;
        };
        while let Some(event) = peer.gossip.poll_event() {
            match event {
                Event::Send { to, bytes } => {
                    assert!(bytes.len() <= crate::message::MAX_MESSAGE);
                    self.made += 1;
                    self.wire
                        .insert((self.now + LATENCY, self.made), (of, to, bytes));
                }
                Event::Change(change) => peer.table.take(change),
            }
        }
    }
}

impl Table {
    pub(super) fn take(&mut self, change: Change) {
        self.log.push(change.clone());
        match change {
            Change::Live { peer } => {
                let before = self.peers.insert(peer, BTreeMap::new());
                assert_eq!(before, None, "{peer} came twice");
            }
            Change::Published { peer, entry } => {
                let entries = self.peers.get_mut(&peer).expect("it is live");
                let before = entries.insert(entry.topic(), entry.clone());
                assert_ne!(before, Some(entry), "told twice");
            }
            Change::Withdrawn { peer, entry } => {
                let entries = self.peers.get_mut(&peer).expect("it is live");
                assert_eq!(entries.remove(&entry.topic()), Some(entry));
            }
            Change::Clash { .. } => {}
            Change::Dead { peer } => {
                let left = self.peers.remove(&peer).expect("it was live");
                assert!(left.is_empty(), "not withdrawn: {left:?}");
            }
        }
    }
}
