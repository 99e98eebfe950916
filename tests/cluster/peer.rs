//! One peer: what it is told, what it has on its disk, and while it runs, its machines.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha20Rng;
use rand_core::Rng;
use weft_dns::{NameTable, Record};
use weft_gossip::{Entry, Gossip, Link, Links, PeerInfo};
use weft_ipam::{Cidr, Init, Pools, PoolsConfig, Rules, Saved, Times};
use weft_router::flood::{FloodNumber, Seen};
use weft_router::macs::MacTable;
use weft_router::session::SendSession;
use weft_router::{Config, ConnId, Identity, Psk, Router, Target};
use weft_wire::packet::ReceiverIndex;
use weft_wire::{Nickname, PeerName, PeerUid};

use crate::clock::Clock;
use crate::dataplane::{Forwarding, Receiver};
use crate::underlay::PORT;
use crate::world::{Delivery, HOUSEKEEPING, World};

/// What an operator would give on the command line.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) nickname: String,
    pub(crate) psk: Option<Psk>,
    /// What the key was made from.
    pub(crate) password: Option<&'static str>,
    /// The default one first.
    pub(crate) pools: Vec<Cidr>,
    pub(crate) init: Init,
    pub(crate) conn_limit: usize,
    pub(crate) discovery: bool,
    pub(crate) targets: Vec<usize>,
    /// How long the electors' business takes.
    pub(crate) times: Times,
    /// All kept, or one broken.
    pub(crate) rules: Rules,
}

pub(crate) struct Peer {
    pub(crate) settings: Settings,
    identity: Identity,
    pub(crate) name: PeerName,
    pub(crate) clock: Clock,
    pub(crate) disk: Disk,
    /// Counts the runs, so that nothing meant for one reaches another.
    pub(crate) run: u64,
    /// Its host has no power.
    pub(crate) is_dark: bool,
    pub(crate) up: Option<Up>,
    /// When its machines want to be called.
    pub(crate) due: Option<Instant>,
}

/// What survives: only what was written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    /// The state of each pool.
    pub(crate) pools: BTreeMap<Cidr, Vec<u8>>,
    pub(crate) names: Vec<Record>,
    pub(crate) targets: Vec<String>,
    pub(crate) generation: u64,
    pub(crate) stopped_cleanly: bool,
}

/// A run of a peer; the same parts as the node has.
pub(crate) struct Up {
    pub(crate) own: PeerInfo,
    pub(crate) router: Router,
    pub(crate) ipam: Pools,
    pub(crate) names: NameTable,
    pub(crate) macs: MacTable,
    pub(crate) gossip: Gossip,
    /// Peers that gossip told of before it was begun anew, and not since.
    pub(crate) unconfirmed: BTreeSet<PeerName>,
    pub(crate) renewed: Instant,
    pub(crate) info: BTreeMap<PeerName, PeerInfo>,
    pub(crate) links: Links,
    pub(crate) relinked: BTreeSet<PeerName>,
    pub(crate) readdressed: BTreeSet<PeerName>,
    pub(crate) ports: BTreeMap<PeerName, u16>,
    pub(crate) published: BTreeMap<PeerName, Link>,
    pub(crate) sessions: BTreeMap<ConnId, Session>,
    pub(crate) stale: bool,
    pub(crate) forwarding: Forwarding,
    pub(crate) receivers: BTreeMap<ReceiverIndex, Receiver>,
    pub(crate) seen: Seen,
    pub(crate) numbers: FloodNumber,
}

pub(crate) struct Session {
    pub(crate) peer: PeerName,
    pub(crate) send: Arc<SendSession>,
    pub(crate) remote: SocketAddr,
}

impl Settings {
    pub(crate) fn new(n: usize) -> Self {
        Self {
            nickname: format!("n{n}"),
            psk: None,
            password: None,
            pools: vec!["10.32.0.0/24".parse().unwrap()],
            init: Init::Consensus(None),
            conn_limit: 0,
            discovery: true,
            targets: Vec::new(),
            times: Times::DEFAULT,
            rules: Rules::KEPT,
        }
    }

    pub(crate) fn to(mut self, target: usize) -> Self {
        self.targets.push(target);
        self
    }
}

impl Peer {
    pub(crate) fn new(settings: Settings, rng: &mut ChaCha20Rng) -> Self {
        let identity = Identity::generate(rng).unwrap();
        Self {
            settings,
            name: identity.peer_name(),
            identity,
            clock: Clock::RIGHT,
            disk: Disk::default(),
            run: 0,
            is_dark: false,
            up: None,
            due: None,
        }
    }

    /// Another host with a copy of this one's disk.
    pub(crate) fn copy(&self, settings: Settings) -> Self {
        Self {
            settings,
            name: self.name,
            identity: self.identity.clone(),
            disk: self.disk.clone(),
            run: 0,
            clock: Clock::RIGHT,
            is_dark: false,
            up: None,
            due: None,
        }
    }

    /// Another one on the same host.
    pub(crate) fn replace(&mut self, settings: Settings, rng: &mut ChaCha20Rng) {
        let (run, is_dark, clock) = (self.run, self.is_dark, self.clock);
        *self = Self {
            run,
            clock,
            is_dark,
            ..Self::new(settings, rng)
        };
    }

    pub(crate) fn running(&mut self, run: u64) -> Option<&mut Up> {
        self.up.as_mut().filter(|_| self.run == run)
    }

    pub(crate) fn up(&self) -> &Up {
        self.up.as_ref().unwrap()
    }

    pub(crate) fn deadline(&self) -> Option<(Instant, &'static str)> {
        let up = self.up.as_ref()?;
        let gossip = up.gossip.poll_timeout();
        let all = [up.router.poll_timeout(), up.ipam.poll_timeout(), gossip];
        all.into_iter().flatten().min()
    }

    fn router_config(&self, uid: PeerUid, started: u64) -> Config {
        let settings = &self.settings;
        Config {
            identity: self.identity.clone(),
            name: self.name,
            nickname: Nickname::new(&settings.nickname),
            uid,
            started,
            psk: settings.psk.clone(),
            cluster: "weft".to_owned(),
            port: PORT,
            mtu: 1376,
            version: VERSION.to_owned(),
            pools: settings.pools.iter().map(Cidr::to_string).collect(),
            conn_limit: settings.conn_limit,
            discovery: settings.discovery,
            trusted: Vec::new(),
            aes: true,
        }
    }

    fn ipam_config(&self, targets: usize, uptime: Duration) -> PoolsConfig {
        PoolsConfig {
            us: self.name,
            pools: self.settings.pools.clone(),
            default_subnets: Vec::new(),
            init: self.settings.init.clone(),
            targets,
            reserved: Vec::new(),
            times: self.settings.times,
            rules: self.settings.rules,
            uptime,
        }
    }

    fn targets(&self) -> Vec<Target> {
        let given = self.settings.targets.iter().map(|n| format!("n{n}"));
        let kept = self.disk.targets.iter().cloned();
        let kept = kept.filter(|_| !self.disk.stopped_cleanly);
        let mut all: Vec<Target> = given.chain(kept).map(|t| t.parse().unwrap()).collect();
        all.sort();
        all.dedup();
        all
    }

    /// Gossip with what this peer says from the first moment on.
    pub(crate) fn gossip(&self, names: &NameTable, own: &PeerInfo, now: Instant) -> Gossip {
        let names = names.own().map(name_entry);
        let initial = names.chain([Entry::Peer(own.clone())]).collect();
        Gossip::new(self.name, self.disk.generation, initial, now).unwrap()
    }

    fn own_info(&self, uid: PeerUid, started: u64) -> PeerInfo {
        PeerInfo {
            nickname: Nickname::new(&self.settings.nickname),
            uid,
            port: PORT,
            addresses: Vec::new(),
            mtu: 1376,
            version: VERSION.to_owned(),
            started,
        }
    }
}

impl World {
    /// Starts a peer from its disk, as `src/start.rs` does.
    pub(crate) fn boot(&mut self, n: usize) {
        let now = self.clock(n);
        let uid = PeerUid(self.rng.next_u64());
        let started = STARTED + (self.now - self.start).as_secs() - self.peers[n].clock.late;
        let (router_seed, ipam_seed) = (self.seed_bytes(), self.seed_bytes());
        let flood_start = self.rng.next_u32();
        let peer = &mut self.peers[n];
        peer.disk.generation = (peer.disk.generation + 1).max(started);
        peer.disk.stopped_cleanly = false;
        peer.is_dark = false;
        let targets = peer.targets();
        peer.disk.targets = targets.iter().map(ToString::to_string).collect();
        let mut router = Router::new(peer.router_config(uid, started), router_seed, now);
        router.connect(&targets, true, now);
        let saved = peer.disk.pools.values();
        let saved = saved.map(|bytes| Saved::parse(bytes).unwrap()).collect();
        let config = peer.ipam_config(targets.len(), now - self.start);
        let ipam = Pools::new(config, saved, ipam_seed, now).unwrap();
        let mut names = NameTable::new(peer.name);
        for record in &peer.disk.names {
            names
                .add_own(record.name.clone(), &record.container, record.addr)
                .unwrap();
        }
        let own = peer.own_info(uid, started);
        let gossip = peer.gossip(&names, &own, now);
        let macs = MacTable::new();
        let forwarding = Forwarding::empty(macs.view());
        peer.up = Some(Up {
            own,
            router,
            ipam,
            names,
            gossip,
            unconfirmed: BTreeSet::new(),
            renewed: now,
            macs,
            info: BTreeMap::new(),
            links: Links::default(),
            relinked: BTreeSet::new(),
            readdressed: BTreeSet::new(),
            ports: BTreeMap::new(),
            published: BTreeMap::new(),
            sessions: BTreeMap::new(),
            stale: true,
            forwarding,
            receivers: BTreeMap::new(),
            seen: Seen::new(),
            numbers: FloodNumber::starting_at(flood_start),
        });
        let run = self.peers[n].run;
        self.later(HOUSEKEEPING, Delivery::Housekeeping(n, run));
        self.check_kept(n);
        self.work(n);
    }
}

pub(crate) fn name_entry(record: &Record) -> Entry {
    Entry::Name {
        fqdn: record.name.to_string(),
        container: record.container.clone(),
        addr: record.addr,
    }
}

pub(crate) const DNS: Ipv4Addr = Ipv4Addr::new(169, 254, 67, 83);
const VERSION: &str = "0.1.0";
/// When every simulation begins, in Unix seconds.
const STARTED: u64 = 1_800_000_000;
