//! The world the peers live in: the clock, all that is on its way, and the hand that starts, stops
//! and uses peers.
//!
//! Invariant: everything happens in the order of its time, ties in the order of its making, and
//! nothing but the seed decides.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash};
use std::time::{Duration, Instant};

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};
use weft_dns::Name;
use weft_ipam::{Addr, Cidr, ContainerId, RequestId};
use weft_router::{ConnId, Router, Target};
use weft_wire::PeerName;

use crate::broken::Broken;
use crate::model::{Model, domain};
use crate::peer::{Peer, Settings};
use crate::underlay::{End, Underlay};

pub(crate) struct World {
    seed: u64,
    /// Whether it is one of the stories that a seed alone tells.
    pub(crate) is_story: bool,
    pub(crate) now: Instant,
    pub(crate) start: Instant,
    pub(crate) rng: ChaCha20Rng,
    pub(crate) peers: Vec<Peer>,
    pub(crate) net: Underlay,
    pub(crate) model: Model,
    pub(crate) broken: Broken,
    /// Nothing is compared with the model: it is about what things cost.
    pub(crate) unchecked: bool,
    /// How often each kind of fault was made.
    pub(crate) faults: BTreeMap<&'static str, u64>,
    /// Whether clocks run at rates and show times of their own.
    pub(crate) wrong_clocks: bool,
    /// Between which rates.
    pub(crate) rates: std::ops::Range<u32>,
    /// The pool that all peers are told of, if it is not the usual one.
    pub(crate) first_pool: Option<Cidr>,
    /// A pool that peers make while they run, in some runs.
    pub(crate) second_pool: Option<Cidr>,
    /// Peers that are gone for good.
    lost: Vec<PeerName>,
    /// How likely a peer crashes before it carries out an effect, in a hundred thousand.
    pub(crate) crashes: u64,
    /// A fold over all that happened, to compare two runs.
    pub(crate) trace: DefaultHasher,
    pub(crate) events: u64,
    queue: BTreeMap<(Instant, u64), Delivery>,
    /// When peers' machines want to be called.
    due: BTreeSet<(Instant, usize)>,
    made: u64,
}

/// Something that will happen.
#[derive(Debug)]
pub(crate) enum Delivery {
    Knock(End, usize),
    DialFailed(End, String),
    Pipe(End),
    Datagram(usize, usize, Vec<u8>),
    Housekeeping(usize, u64),
    Start(usize),
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let now = Instant::now();
        Self {
            seed,
            is_story: false,
            now,
            start: now,
            rng: ChaCha20Rng::seed_from_u64(seed),
            peers: Vec::new(),
            net: Underlay::default(),
            model: Model::default(),
            broken: Broken::Nothing,
            unchecked: false,
            faults: BTreeMap::new(),
            wrong_clocks: false,
            rates: 600..1601,
            first_pool: None,
            second_pool: None,
            lost: Vec::new(),
            crashes: 0,
            trace: DefaultHasher::new(),
            events: 0,
            queue: BTreeMap::new(),
            due: BTreeSet::new(),
            made: 0,
        }
    }

    /// So many peers on a good network, started, not connected.
    pub(crate) fn of(seed: u64, count: usize) -> Self {
        let mut world = Self::new(seed);
        world.net.weather.delay_ms = 20;
        for n in 0..count {
            world.add(Settings::new(n));
        }
        world
    }

    pub(crate) fn add(&mut self, settings: Settings) -> usize {
        let n = self.peers.len();
        self.peers.push(Peer::new(settings, &mut self.rng));
        if self.wrong_clocks {
            self.fault("wrong clock");
            self.peers[n].clock = self.wrong_clock();
        }
        self.boot(n);
        n
    }

    /// A host whose disk is a copy of that one's.
    pub(crate) fn add_clone(&mut self, of: usize, settings: Settings) -> usize {
        let n = self.peers.len();
        self.peers.push(self.peers[of].copy(settings));
        self.boot(n);
        n
    }

    pub(crate) fn random(&mut self, below: u64) -> u64 {
        self.rng.next_u64() % below
    }

    pub(crate) fn pick(&mut self, len: usize) -> usize {
        usize::try_from(self.random(len as u64)).unwrap()
    }

    pub(crate) fn chance(&mut self, per_mille: u64) -> bool {
        per_mille > 0 && self.random(1000) < per_mille
    }

    pub(crate) fn seed_bytes(&mut self) -> [u8; 32] {
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        seed
    }

    pub(crate) fn later(&mut self, delay: Duration, delivery: Delivery) {
        self.at(self.now + delay, delivery);
    }

    pub(crate) fn at(&mut self, at: Instant, delivery: Delivery) {
        self.made += 1;
        self.queue.insert((at, self.made), delivery);
    }

    pub(crate) fn fault(&mut self, kind: &'static str) {
        *self.faults.entry(kind).or_default() += 1;
    }

    pub(crate) fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        let (mut at, mut times) = (self.now, 0);
        while let Some(next) = self.next_time().filter(|next| *next <= end) {
            times = if next <= at { times + 1 } else { 0 };
            let reasons = || self.peers.iter().map(Peer::deadline).collect::<Vec<_>>();
            assert!(
                times < 50_000,
                "busy at {:?}: {:?}",
                next - self.start,
                reasons()
            );
            at = next.max(at);
            self.now = at;
            self.step();
        }
        self.now = end;
    }

    pub(crate) fn run_ms(&mut self, ms: u64) {
        self.run(Duration::from_millis(ms));
    }

    pub(crate) fn run_secs(&mut self, secs: u64) {
        self.run(Duration::from_secs(secs));
    }

    fn next_time(&self) -> Option<Instant> {
        let queued = self.queue.first_key_value().map(|((at, _), _)| *at);
        let timer = self.due.first().map(|(at, _)| *at);
        timer.into_iter().chain(queued).min()
    }

    fn step(&mut self) {
        let now = self.now;
        let due = self.due.iter().take_while(|(due, _)| *due <= now);
        for n in due.map(|(_, n)| *n).collect::<BTreeSet<_>>() {
            let now = self.clock(n);
            if let Some(up) = &mut self.peers[n].up {
                up.router.handle_timeout(now);
                up.ipam.handle_timeout(now);
                up.gossip.handle_timeout(now);
            }
            self.work(n);
        }
        while let Some(entry) = self.queue.first_entry().filter(|e| e.key().0 <= now) {
            let delivery = entry.remove();
            self.events += 1;
            (std::mem::discriminant(&delivery), now - self.start).hash(&mut self.trace);
            self.happen(delivery);
        }
        if !self.unchecked {
            self.check_addresses();
        }
    }

    fn happen(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Knock(end, to) => self.knock(end, to),
            Delivery::DialFailed(end, why) => self.dial_failed(end, why),
            Delivery::Pipe(end) => self.drain(end),
            Delivery::Datagram(from, to, bytes) => {
                bytes.hash(&mut self.trace);
                self.datagram(from, to, bytes);
            }
            Delivery::Housekeeping(n, run) => self.housekeeping(n, run),
            Delivery::Start(n) => self.start(n),
        }
    }

    /// When a peer's machines want to be called.
    pub(crate) fn set_due(&mut self, n: usize, due: Option<Instant>) {
        let before = std::mem::replace(&mut self.peers[n].due, due);
        if before != due {
            if let Some(before) = before {
                self.due.remove(&(before, n));
            }
            self.due.extend(due.map(|at| (at, n)));
        }
    }

    /// Calls the router that has this end, if it still runs.
    pub(crate) fn tell_router(&mut self, end: End, call: impl FnOnce(&mut Router)) {
        let peer = &mut self.peers[end.0];
        if let Some(up) = peer.up.as_mut().filter(|_| peer.run == end.1) {
            call(&mut up.router);
            self.work(end.0);
        }
    }

    /// What a node does now and then.
    fn housekeeping(&mut self, n: usize, run: u64) {
        if self.peers[n].running(run).is_some() {
            self.later(HOUSEKEEPING, Delivery::Housekeeping(n, run));
            self.age_macs(n);
            self.drop_unconfirmed(n);
            self.work(n);
        }
    }

    /// The process ends at once; without power its connections do not even end.
    pub(crate) fn kill(&mut self, n: usize, silently: bool) {
        self.drop_pipes_of(n, silently);
        self.set_due(n, None);
        let peer = &mut self.peers[n];
        peer.is_dark = silently;
        peer.up = None;
        peer.run += 1;
        self.model.asked.retain(|(at, _), _| *at != n);
    }

    pub(crate) fn start(&mut self, n: usize) {
        if self.peers[n].up.is_none() {
            self.boot(n);
        }
    }

    pub(crate) fn restart(&mut self, n: usize) {
        self.kill(n, false);
        self.start(n);
    }

    /// Host and disk are lost; what comes back in its place is somebody else.
    pub(crate) fn lose_disk(&mut self, n: usize) {
        self.kill(n, true);
        self.lost.push(self.peers[n].name);
        let settings = self.peers[n].settings.clone();
        self.peers[n].replace(settings, &mut self.rng);
        self.model.forget_peer(n);
    }

    /// `weft reset --identity` of a clone: it is a host like any other when it starts again.
    pub(crate) fn reset_identity(&mut self, n: usize) {
        self.kill(n, false);
        let settings = self.peers[n].settings.clone();
        self.peers[n].replace(settings, &mut self.rng);
    }

    /// `weft rmpeer` for every peer that is gone for good.
    pub(crate) fn remove_lost(&mut self, n: usize) {
        let now = self.clock(n);
        for lost in self.lost.clone() {
            if let Some(up) = &mut self.peers[n].up {
                let taken = up.ipam.take_over(lost, now);
                self.model.taken_over += countable(taken);
            }
            self.work(n);
        }
    }

    /// Ends in order, as `weft stop` does.
    pub(crate) fn stop(&mut self, n: usize) {
        let now = self.clock(n);
        let Some(up) = &mut self.peers[n].up else {
            return;
        };
        up.gossip.withdraw_all(now);
        self.work(n);
        self.run_ms(100);
        if let Some(up) = &mut self.peers[n].up {
            up.router.shutdown(now);
        }
        self.work(n);
        self.run_ms(50);
        self.kill(n, false);
        self.peers[n].disk.stopped_cleanly = true;
    }

    pub(crate) fn connect(&mut self, n: usize, to: usize) {
        let now = self.clock(n);
        let target: Target = format!("n{to}").parse().unwrap();
        if let Some(up) = &mut self.peers[n].up {
            up.router.connect(&[target], false, now);
            self.work(n);
        }
    }

    /// Starts a container on a peer's host and asks for an address for it; its number.
    pub(crate) fn launch(&mut self, n: usize) -> usize {
        let c = self.model.add_container(n, None);
        self.ask(c);
        c
    }

    /// The same in a subnet that may be of no pool so far.
    pub(crate) fn launch_in(&mut self, n: usize, subnet: Cidr) -> usize {
        let c = self.model.add_container(n, Some(subnet));
        self.ask(c);
        c
    }

    /// Asks for a container's address, again if the asker was cut off by a crash.
    pub(crate) fn ask(&mut self, c: usize) {
        let (n, container) = self.model.who(c);
        let now = self.clock(n);
        if self.peers[n].up.is_none() || self.model.is_asked(c) {
            return;
        }
        self.made += 1;
        let id = RequestId(self.made);
        self.model.asked.insert((n, id), c);
        let up = self.peers[n].up.as_mut().unwrap();
        let subnet = self.model.containers[c].subnet;
        if let Some(subnet) = subnet {
            up.ipam.add(subnet, now).unwrap();
        }
        up.ipam.allocate(id, container, subnet, now);
        self.work(n);
    }

    /// A new container asks for just this address.
    pub(crate) fn claim(&mut self, n: usize, addr: Addr) {
        let c = self.model.add_container(n, None);
        let (_, container) = self.model.who(c);
        let now = self.clock(n);
        self.made += 1;
        let id = RequestId(self.made);
        self.model.asked.insert((n, id), c);
        let prefix = self.peers[n].settings.pools[0].prefix();
        let up = self.peers[n].up.as_mut().unwrap();
        up.ipam.claim(id, container, addr, prefix, now);
        self.work(n);
    }

    /// Ends a container, as `weft detach` does.
    pub(crate) fn remove(&mut self, c: usize) {
        let (n, container) = self.model.who(c);
        let now = self.clock(n);
        let Some(up) = &mut self.peers[n].up else {
            return;
        };
        self.model.holding.remove(&(n, container.clone()));
        self.model.gone.insert(c);
        up.ipam.free_all(&container, now);
        self.work(n);
        self.remove_names(n, &container);
        self.work(n);
    }

    pub(crate) fn name_container(&mut self, n: usize, container: &ContainerId) {
        let Some(addr) = self.model.holding.get(&(n, container.clone())).copied() else {
            return;
        };
        let name = Name::new(container.as_str(), &domain()).unwrap();
        self.add_name(n, name, container, addr.into());
    }

    pub(crate) fn end(&self, n: usize, conn: ConnId) -> End {
        (n, self.peers[n].run, conn)
    }

    /// How to have this again.
    pub(crate) fn replay(&self) -> String {
        let after = self.now - self.start;
        let seed = self.seed;
        match (self.is_story, self.broken) {
            (false, _) => format!("after {after:?}, seed {seed}"),
            (true, Broken::Nothing) => format!("after {after:?}; cargo xtask sim --seed {seed}"),
            (true, broken) => {
                let rule = broken.rule();
                format!("after {after:?}; cargo xtask sim --seed {seed} --break {rule}")
            }
        }
    }
}

/// How often a node looks after what nobody waits for.
pub(crate) const HOUSEKEEPING: Duration = Duration::from_secs(5);

/// A number of addresses, of a large pool no more than can be added up many times.
pub(crate) fn countable(addresses: u128) -> u64 {
    u32::try_from(addresses).unwrap_or(u32::MAX).into()
}
