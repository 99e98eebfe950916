//! A network in memory: peers, the cables between them, and a check on all that is told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use weft_wire::PeerName;

use crate::key::tests::info;
use crate::{Change, Entry, Gossip, GossipConfig, Link, Outgoing, Topic};

/// What one message takes from peer to peer.
const LATENCY: Duration = Duration::from_millis(2);
/// Messages on their way from one peer.
const OUTBOX: usize = 256;

#[derive(Clone, Default)]
pub(super) struct Switch(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    peers: BTreeMap<PeerName, Gossip>,
    cables: BTreeSet<(PeerName, PeerName)>,
    /// Cables there are or were.
    laid: BTreeSet<(PeerName, PeerName)>,
    /// Every how many messages one is lost; 0 for none.
    loss: usize,
    carried: usize,
    bytes: usize,
    /// All that was carried, if a test wants it.
    kept: Option<Vec<Vec<u8>>>,
    strays: Vec<(PeerName, PeerName)>,
}

/// One peer and what it was told.
pub(super) struct Peer {
    pub(super) name: PeerName,
    pub(super) gossip: Gossip,
    pub(super) changes: mpsc::Receiver<Change>,
    pub(super) table: Table,
}

/// Keeps what is told, and that it is told in order.
#[derive(Default)]
pub(super) struct Table {
    pub(super) peers: BTreeMap<PeerName, BTreeMap<Topic, Entry>>,
    pub(super) log: Vec<Change>,
    pub(super) stopped: bool,
}

pub(super) fn name(n: u8) -> PeerName {
    PeerName::from_bytes([2, 0, 0, 0, 0, n])
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
    };
    Entry::Link(to, link)
}

impl Switch {
    /// Starts a peer that says who it is, and `entries`.
    pub(super) async fn start(&self, n: u8, generation: u64, mut entries: Vec<Entry>) -> Peer {
        let name = name(n);
        entries.insert(0, Entry::Peer(info(generation)));
        let (outbox, outgoing) = mpsc::channel(OUTBOX);
        let config = GossipConfig::new(name, generation, "weft");
        let (gossip, changes) = Gossip::start(config, entries, outbox).await.unwrap();
        self.0.lock().unwrap().peers.insert(name, gossip.clone());
        tokio::spawn(self.clone().carry(name, outgoing));
        Peer {
            name,
            gossip,
            changes,
            table: Table::default(),
        }
    }

    /// Peers 1 to `n`, each connected with the next.
    pub(super) async fn line(&self, n: u8) -> Vec<Peer> {
        let mut peers = Vec::new();
        for n in 1..=n {
            peers.push(self.start(n, 1, vec![record(&format!("c{n}"), n)]).await);
        }
        for n in 1..n {
            self.connect(n, n + 1);
        }
        peers
    }

    /// Peers 1 to `n`, each connected with all and saying so.
    pub(super) async fn mesh(&self, n: u8) -> Vec<Peer> {
        let mut peers = Vec::new();
        for a in 1..=n {
            let others = (1..=n).filter(|b| *b != a);
            let links = others.map(|b| link(name(b), true)).collect();
            peers.push(self.start(a, 1, links).await);
        }
        let all = (1..=n).flat_map(|a| (a + 1..=n).map(move |b| (a, b)));
        self.connect_all(all);
        peers
    }

    pub(super) fn connect(&self, a: u8, b: u8) {
        self.connect_all([(a, b)]);
    }

    pub(super) fn connect_all(&self, pairs: impl IntoIterator<Item = (u8, u8)>) {
        let mut inner = self.0.lock().unwrap();
        for (a, b) in pairs {
            let ends = [(name(a), name(b)), (name(b), name(a))];
            inner.cables.extend(ends);
            inner.laid.extend(ends);
        }
        drop(inner);
        self.tell_neighbours();
    }

    pub(super) fn cut(&self, a: u8, b: u8) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
        self.tell_neighbours();
    }

    /// What `a` sends to `b` is lost from here on; neither knows.
    pub(super) fn cut_one_way(&self, a: u8, b: u8) {
        self.0.lock().unwrap().cables.remove(&(name(a), name(b)));
    }

    /// The peer is no more, as after `kill -9`.
    pub(super) fn kill(&self, peer: Peer) {
        let mut inner = self.0.lock().unwrap();
        inner.peers.remove(&peer.name);
        inner
            .cables
            .retain(|(a, b)| *a != peer.name && *b != peer.name);
        drop(inner);
        self.tell_neighbours();
    }

    pub(super) fn lose_every(&self, nth: usize) {
        self.0.lock().unwrap().loss = nth;
    }

    pub(super) fn keep_traffic(&self) {
        self.0.lock().unwrap().kept = Some(Vec::new());
    }

    pub(super) fn kept_traffic(&self) -> Vec<Vec<u8>> {
        self.0.lock().unwrap().kept.take().unwrap_or_default()
    }

    /// Waits until nothing is new any more, then checks that little is said: no two peers may go on
    /// asking each other for what neither takes.
    pub(super) async fn assert_rest(&self, peers: usize) {
        sleep(Duration::from_secs(5)).await;
        self.take_traffic();
        sleep(Duration::from_secs(20)).await;
        let (messages, bytes) = self.take_traffic();
        // One exchange of three messages a second each, and chitchat's own now and then.
        assert!(messages <= peers * 20 * 4, "{messages} messages at rest");
        assert!(bytes <= peers * 20 * 2_000, "{bytes} bytes at rest");
        assert_eq!(self.strays(), []);
    }

    /// Messages and bytes carried since this was last asked.
    pub(super) fn take_traffic(&self) -> (usize, usize) {
        let mut inner = self.0.lock().unwrap();
        (
            std::mem::take(&mut inner.carried),
            std::mem::take(&mut inner.bytes),
        )
    }

    /// Messages that went to somebody who was never a neighbour.
    pub(super) fn strays(&self) -> Vec<(PeerName, PeerName)> {
        self.0.lock().unwrap().strays.clone()
    }

    fn tell_neighbours(&self) {
        let inner = self.0.lock().unwrap();
        for (name, gossip) in &inner.peers {
            let from_here = inner.cables.iter().filter(|(a, _)| a == name);
            gossip.set_neighbours(from_here.map(|(_, b)| *b).collect());
        }
    }

    async fn carry(self, from: PeerName, mut outgoing: mpsc::Receiver<Outgoing>) {
        while let Some(Outgoing { to, bytes }) = outgoing.recv().await {
            sleep(LATENCY).await;
            let mut inner = self.0.lock().unwrap();
            if !inner.laid.contains(&(from, to)) {
                inner.strays.push((from, to));
            }
            if !inner.cables.contains(&(from, to)) {
                continue;
            }
            inner.carried += 1;
            inner.bytes += bytes.len();
            if let Some(kept) = &mut inner.kept {
                kept.push(bytes.clone());
            }
            if inner.loss > 0 && inner.carried.is_multiple_of(inner.loss) {
                continue;
            }
            if let Some(peer) = inner.peers.get(&to) {
                peer.handle_message(from, bytes);
            }
        }
    }
}

impl Peer {
    /// Takes in what was told so far.
    pub(super) fn settle(&mut self) {
        while let Ok(change) = self.changes.try_recv() {
            self.table.take(change);
        }
    }

    /// Takes in all that is told for that long.
    pub(super) async fn listen(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while let Ok(Some(change)) = timeout_at(end, self.changes.recv()).await {
            self.table.take(change);
        }
    }

    /// What was told since this was last asked.
    pub(super) fn news(&mut self) -> Vec<Change> {
        self.settle();
        std::mem::take(&mut self.table.log)
    }

    pub(super) fn knows(&mut self, n: u8, entry: &Entry) -> bool {
        self.settle();
        let entries = self.table.peers.get(&name(n));
        entries.and_then(|e| e.get(&entry.topic())) == Some(entry)
    }

    /// Waits until `entry` of peer `n` is known, or is not; gives how long that took.
    pub(super) async fn until(&mut self, n: u8, entry: &Entry, known: bool) -> Duration {
        let start = Instant::now();
        let wait = async {
            while self.knows(n, entry) != known {
                let change = self.changes.recv().await.expect("gossip goes on");
                self.table.take(change);
            }
        };
        let within = Duration::from_secs(60);
        timeout(within, wait).await.expect("it is told in a minute");
        start.elapsed()
    }
}

impl Table {
    pub(super) fn take(&mut self, change: Change) {
        assert!(!self.stopped, "{change:?} after the end");
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
            Change::Dead { peer } => {
                let left = self.peers.remove(&peer).expect("it was live");
                assert!(left.is_empty(), "not withdrawn: {left:?}");
            }
            // About us, not about others.
            Change::Clash { .. } => {}
            Change::Stopped => {
                assert!(self.peers.is_empty(), "{:?}", self.peers);
                self.stopped = true;
            }
        }
    }
}
