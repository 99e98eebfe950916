//! Allocators of many peers on a network that loses, repeats, delays and reorders messages, is cut
//! and healed, and whose peers crash between any two effects and come back with what they had on
//! the disk. A model keeps what containers were told, and checks it after every step.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};
use weft_wire::PeerName;

use crate::addr::Span;
use crate::message::{Council, Message};
use crate::{
    Addr, Allocator, Answer, Cidr, Config, ContainerId, Digest, Event, Init, RequestError,
    RequestId, Rules, Saved, Times,
};

const STEP: Duration = Duration::from_millis(50);
/// Gossip brings everybody's digest to everybody reachable this often, in steps.
const GOSSIP_STEPS: u64 = 20;

/// How the network and the peers fail, each in per mille.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Faults {
    pub(super) loss: u64,
    pub(super) repeat: u64,
    /// A peer crashes before it carries out an effect.
    pub(super) crash: u64,
    /// Longest delay of a message in milliseconds.
    pub(super) delay: u64,
}

pub(super) struct Peer {
    pub(super) config: Config,
    pub(super) allocator: Option<Allocator>,
    pub(super) disk: Option<Saved>,
    /// How fast its clock of uptime runs, in per mille.
    pub(super) rate: u32,
    announced: Digest,
    connected: BTreeSet<usize>,
    reachable: BTreeSet<usize>,
    synced: BTreeSet<usize>,
    pub(super) back_at: Instant,
}

struct Packet {
    at: Instant,
    from: usize,
    to: usize,
    bytes: Vec<u8>,
}

pub(super) struct Cluster {
    pub(super) peers: Vec<Peer>,
    pub(super) faults: Faults,
    pub(super) now: Instant,
    start: Instant,
    pub(super) rng: ChaCha20Rng,
    links: BTreeSet<(usize, usize)>,
    /// A change of links beyond their neighbours peers hear of only a second later.
    pub(super) slow_topology: bool,
    topology_due: Option<Instant>,
    /// Who can reach whom over links.
    islands: Vec<BTreeSet<usize>>,
    wire: Vec<Packet>,
    steps: u64,
    requests: u64,
    /// What containers use: told so, not freed, not cut off.
    pub(super) running: BTreeMap<(usize, ContainerId), Addr>,
    asked: BTreeMap<(usize, RequestId), (ContainerId, Option<Addr>)>,
    pub(super) answers: BTreeMap<RequestId, Result<Answer, RequestError>>,
    pub(super) conflicts: Vec<(usize, ContainerId, Addr, PeerName)>,
    pub(super) synced: Vec<(usize, usize)>,
    /// Whether it is checked at each step that no address has two owners.
    pub(super) watch_owners: bool,
}

/// A pool of this many bits of addresses; of IPv6 for every third seed.
pub(super) fn pool_of(seed: u64, bits: u8) -> String {
    match seed % 3 {
        2 => format!("fd57:1::/{}", 128 - bits),
        _ => format!("10.32.0.0/{}", 32 - bits),
    }
}

pub(crate) fn name(n: usize) -> PeerName {
    PeerName::from_bytes([2, 0, 0, 0, 0, u8::try_from(n).unwrap() + 1])
}

pub(crate) fn config(n: usize, pool: Cidr, init: Init, targets: usize) -> Config {
    Config {
        us: name(n),
        pool,
        default_subnet: pool,
        init,
        targets,
        reserved: Vec::new(),
        times: Times::DEFAULT,
        rules: Rules::KEPT,
        uptime: Duration::ZERO,
    }
}

impl Cluster {
    /// Peers without any link between them.
    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant can only be had from the clock; all others are counted from it"
    )]
    pub(super) fn new(seed: u64, configs: Vec<Config>) -> Self {
        let start = Instant::now();
        let mut cluster = Self {
            peers: Vec::new(),
            faults: Faults::default(),
            now: start,
            start,
            rng: ChaCha20Rng::seed_from_u64(seed),
            links: BTreeSet::new(),
            slow_topology: false,
            topology_due: None,
            islands: Vec::new(),
            wire: Vec::new(),
            steps: 0,
            requests: 0,
            running: BTreeMap::new(),
            asked: BTreeMap::new(),
            answers: BTreeMap::new(),
            conflicts: Vec::new(),
            synced: Vec::new(),
            watch_owners: false,
        };
        for config in configs {
            cluster.peers.push(Peer {
                config,
                allocator: None,
                disk: None,
                rate: 1000,
                announced: Digest::NONE,
                connected: BTreeSet::new(),
                reachable: BTreeSet::new(),
                synced: BTreeSet::new(),
                back_at: cluster.now,
            });
        }
        cluster.restart_due();
        cluster
    }

    /// Peers of one kind, all linked.
    pub(super) fn meshed(seed: u64, pool: &str, count: usize, init: &Init) -> Self {
        let pool = pool.parse().unwrap();
        let configs = (0..count)
            .map(|n| config(n, pool, init.clone(), count - 1))
            .collect();
        let mut cluster = Self::new(seed, configs);
        cluster.link_all(&(0..count).collect::<Vec<_>>());
        cluster
    }

    pub(super) fn link(&mut self, a: usize, b: usize) {
        self.links.insert((a.min(b), a.max(b)));
        self.update_links();
    }

    pub(super) fn link_all(&mut self, peers: &[usize]) {
        for a in peers {
            for b in peers.iter().filter(|b| a < b) {
                self.links.insert((*a, *b));
            }
        }
        self.update_links();
    }

    /// Cuts every link between the two sides.
    pub(super) fn cut(&mut self, side: &BTreeSet<usize>) {
        self.links
            .retain(|(a, b)| side.contains(a) == side.contains(b));
        self.update_links();
    }

    /// Links all within each of these groups, and nobody else.
    pub(super) fn part(&mut self, groups: &[&[usize]]) {
        self.links.clear();
        for group in groups {
            for a in *group {
                let others = group.iter().filter(|b| a < *b);
                self.links.extend(others.map(|b| (*a, *b)));
            }
        }
        self.update_links();
    }

    pub(super) fn stop(&mut self, n: usize) {
        let far = Duration::from_secs(1_000_000);
        self.crash(n, far);
        self.update_links();
    }

    /// Brings back whoever is down.
    pub(super) fn start_all(&mut self) {
        for peer in &mut self.peers {
            peer.back_at = self.now;
        }
        self.restart_due();
    }

    pub(super) fn allocator(&mut self, n: usize) -> &mut Allocator {
        self.peers[n].allocator.as_mut().expect("peer is up")
    }

    pub(super) fn allocate(
        &mut self,
        n: usize,
        container: &str,
        subnet: Option<&str>,
    ) -> RequestId {
        let (id, container) = self.request(n, container, None);
        let subnet = subnet.map(|s| s.parse().unwrap());
        let now = self.now;
        self.with(n, |a| a.allocate(id, container, subnet, now));
        id
    }

    pub(super) fn claim(&mut self, n: usize, container: &str, addr: Addr) -> RequestId {
        let (id, container) = self.request(n, container, Some(addr));
        let prefix = self.peers[n].config.pool.prefix();
        let now = self.now;
        self.with(n, |a| a.claim(id, container, addr, prefix, now));
        id
    }

    pub(super) fn prime(&mut self, n: usize) -> RequestId {
        let (id, _) = self.request(n, "-", None);
        let now = self.now;
        self.with(n, |a| a.prime(id, now));
        id
    }

    pub(super) fn free(&mut self, n: usize, container: &ContainerId, addr: Addr) {
        self.running.remove(&(n, container.clone()));
        let now = self.now;
        self.with(n, |a| a.free(container, addr, now).unwrap());
    }

    fn request(
        &mut self,
        n: usize,
        container: &str,
        addr: Option<Addr>,
    ) -> (RequestId, ContainerId) {
        self.requests += 1;
        let id = RequestId(self.requests);
        let container = ContainerId::new(container);
        self.asked.insert((n, id), (container.clone(), addr));
        (id, container)
    }

    /// What a peer's clock says: a run of its own rate, that a restart of the peer does not touch.
    fn uptime(&self, n: usize) -> Duration {
        (self.now - self.start) * self.peers[n].rate / 1000
    }

    pub(super) fn with<T>(&mut self, n: usize, call: impl FnOnce(&mut Allocator) -> T) -> T {
        let (uptime, now) = (self.uptime(n), self.now);
        self.allocator(n).set_uptime(uptime, now);
        let result = call(self.allocator(n));
        self.carry_out(n);
        result
    }

    pub(super) fn run(&mut self, seconds: u64) {
        for _ in 0..seconds * 20 {
            self.step();
        }
    }

    /// Runs until a request is answered; the address it got.
    pub(super) fn address(&mut self, id: RequestId) -> Addr {
        match self.outcome(id) {
            Some(Ok(Answer::Address { addr, .. })) => addr,
            other => panic!("no address: {other:?}"),
        }
    }

    pub(super) fn outcome(&mut self, id: RequestId) -> Option<Result<Answer, RequestError>> {
        for _ in 0..20 * 60 {
            if let Some(answer) = self.answers.get(&id) {
                return Some(answer.clone());
            }
            self.step();
        }
        None
    }

    pub(super) fn step(&mut self) {
        self.now += STEP;
        self.steps += 1;
        self.restart_due();
        if self.topology_due.is_some_and(|at| at <= self.now) {
            self.topology_due = None;
            self.tell_topology(false);
        }
        self.deliver();
        if self.steps.is_multiple_of(GOSSIP_STEPS) {
            self.gossip();
        }
        for n in 0..self.peers.len() {
            let (uptime, now) = (self.uptime(n), self.now);
            let Some(allocator) = &mut self.peers[n].allocator else {
                continue;
            };
            if allocator.poll_timeout().is_some_and(|(at, _)| at <= now) {
                allocator.set_uptime(uptime, now);
                allocator.handle_timeout(now);
                let next = allocator.poll_timeout();
                assert!(next.is_none_or(|(at, _)| at > now), "busy: {next:?}");
                self.carry_out(n);
            }
        }
        self.check_reachable_containers();
        self.check_owners();
    }

    /// No two peers of one ring may use the same address, whatever each knows.
    fn check_owners(&self) {
        if !self.watch_owners {
            return;
        }
        let mut seen: Vec<(usize, crate::RingId, Span)> = Vec::new();
        for (n, peer) in self.peers.iter().enumerate() {
            let Some(allocator) = &peer.allocator else {
                continue;
            };
            let Some(id) = allocator.ring.as_ref().map(crate::ring::Ring::id) else {
                continue;
            };
            for span in allocator.usable_at(self.uptime(n)) {
                for (other, ring, theirs) in &seen {
                    let both = span.intersect(*theirs);
                    assert!(
                        *ring != id || *other == n || both.is_empty(),
                        "{both} has two owners, {n} and {other}"
                    );
                }
                seen.push((n, id, span));
            }
        }
    }

    /// No address twice among containers that can reach each other.
    fn check_reachable_containers(&self) {
        for group in self.groups(|a, b| self.is_open(a, b)) {
            self.check_unique(&group);
        }
    }

    pub(super) fn check_unique(&self, group: &BTreeSet<usize>) {
        let mut seen = BTreeMap::new();
        let usable = self.running.iter().filter(|((n, _), _)| group.contains(n));
        for (who, addr) in usable {
            if let Some(other) = seen.insert(*addr, who) {
                panic!("{addr} is used by {who:?} and {other:?}");
            }
        }
    }

    /// What must hold once all is up, linked and quiet: one ring, nothing lost of the pool, every
    /// address in use owned by its peer, nothing unsettled.
    pub(super) fn check_converged(&mut self) {
        self.wait_until_alike();
        let all: BTreeSet<_> = (0..self.peers.len()).collect();
        self.check_unique(&all);
        let digest = self.allocator(0).digest();
        for n in 0..self.peers.len() {
            assert_eq!(self.allocator(n).digest(), digest, "ring of peer {n}");
            let status = self.allocator(n).status();
            let total: u128 = status.owners.iter().map(|o| o.addresses).sum();
            assert_eq!(total, status.pool.size());
            assert_eq!(status.unsettled, [], "peer {n}");
            let synced = self.peers[n].synced.clone();
            assert_eq!(synced, self.peers[n].connected, "barriers of peer {n}");
        }
        for ((n, container), addr) in self.running.clone() {
            let pool = self.peers[n].config.pool;
            let allocator = self.allocator(n);
            let held = allocator.lookup(&container);
            assert!(
                held.iter().any(|(a, _)| *a == addr),
                "{container} lost {addr}"
            );
            if pool.contains(addr) {
                let owner = allocator.ring.as_ref().unwrap().owner_of(addr);
                assert_eq!(owner, Some(name(n)), "{addr} of {container}");
            }
        }
    }

    /// A grant to a request that waited may just be under way.
    fn wait_until_alike(&mut self) {
        for _ in 0..20 * 20 {
            let mut peers = self.peers.iter();
            let digests: BTreeSet<_> = peers
                .by_ref()
                .filter_map(|peer| peer.allocator.as_ref().map(Allocator::digest))
                .collect();
            if digests.len() == 1 {
                return;
            }
            self.step();
        }
    }

    fn restart_due(&mut self) {
        for n in 0..self.peers.len() {
            let mut seed = [0; 32];
            self.rng.fill_bytes(&mut seed);
            let uptime = self.uptime(n);
            let peer = &mut self.peers[n];
            if peer.allocator.is_none() && peer.back_at <= self.now {
                let saved = peer
                    .disk
                    .as_ref()
                    .map(|saved| Saved::parse(&saved.emit()).unwrap());
                let config = Config {
                    uptime,
                    ..peer.config.clone()
                };
                let allocator = Allocator::new(config, saved.clone(), seed, self.now).unwrap();
                let kept = allocator.saved().ring == saved.as_ref().and_then(|s| s.ring.clone());
                assert!(saved.is_none() || kept);
                peer.allocator = Some(allocator);
                self.carry_out(n);
                self.update_links();
            }
        }
    }

    /// A peer's disk as it was at some time, and the peer started from it.
    pub(super) fn restore(&mut self, n: usize, disk: Option<Saved>) {
        self.crash(n, Duration::ZERO);
        self.peers[n].disk = disk;
        // What its containers are told from here on is what the old disk says.
        self.running.retain(|(at, _), _| *at != n);
        self.update_links();
    }

    fn crash(&mut self, n: usize, down: Duration) {
        let peer = &mut self.peers[n];
        peer.allocator = None;
        peer.back_at = self.now + down;
        self.asked.retain(|(at, _), _| *at != n);
    }

    fn is_up(&self, n: usize) -> bool {
        self.peers[n].allocator.is_some()
    }

    fn is_linked(&self, a: usize, b: usize) -> bool {
        self.is_up(a) && self.is_up(b) && self.links.contains(&(a.min(b), a.max(b)))
    }

    fn is_open(&self, a: usize, b: usize) -> bool {
        self.is_linked(a, b)
            && self.peers[a].synced.contains(&b)
            && self.peers[b].synced.contains(&a)
    }

    fn groups(&self, joined: impl Fn(usize, usize) -> bool) -> Vec<BTreeSet<usize>> {
        let mut groups: Vec<BTreeSet<usize>> = Vec::new();
        for n in 0..self.peers.len() {
            let (with, mut without): (Vec<_>, Vec<_>) = groups
                .into_iter()
                .partition(|group| group.iter().any(|other| joined(n, *other)));
            let mut group: BTreeSet<_> = with.into_iter().flatten().collect();
            group.insert(n);
            without.push(group);
            groups = without;
        }
        groups
    }

    /// Tells peers of connections that came and went, and of who is reachable.
    fn update_links(&mut self) {
        self.islands = self.groups(|a, b| self.is_linked(a, b));
        self.tell_topology(self.slow_topology);
        if self.slow_topology {
            let due = self.now + Duration::from_secs(1);
            self.topology_due.get_or_insert(due);
        }
        let now = self.now;
        for n in 0..self.peers.len() {
            let linked = self.linked(n);
            let before = std::mem::replace(&mut self.peers[n].connected, linked.clone());
            if !self.is_up(n) {
                self.peers[n].synced.clear();
                continue;
            }
            for gone in before.difference(&linked) {
                self.peers[n].synced.remove(gone);
                self.with_quietly(n, |a| a.handle_disconnected(name(*gone), now));
            }
            for new in linked.difference(&before) {
                self.with_quietly(n, |a| a.handle_connected(name(*new), now));
            }
        }
        for n in 0..self.peers.len() {
            self.carry_out(n);
        }
    }

    fn linked(&self, n: usize) -> BTreeSet<usize> {
        (0..self.peers.len())
            .filter(|other| *other != n && self.is_linked(n, *other))
            .collect()
    }

    /// Tells peers who is reachable: all that are, or, while the topology lags behind, no more than
    /// they knew of and their neighbours.
    fn tell_topology(&mut self, lagging: bool) {
        let now = self.now;
        for n in 0..self.peers.len() {
            let linked = self.linked(n);
            let group = self.islands.iter().find(|g| g.contains(&n)).unwrap();
            let known: BTreeSet<_> = group
                .iter()
                .filter(|other| **other != n)
                .filter(|other| {
                    let before = &self.peers[n].reachable;
                    !lagging || linked.contains(other) || before.contains(other)
                })
                .copied()
                .collect();
            let reachable = known.iter().map(|other| name(*other)).collect();
            self.peers[n].reachable = known;
            self.with_quietly(n, |a| a.set_reachable(reachable, now));
        }
    }

    fn with_quietly(&mut self, n: usize, call: impl FnOnce(&mut Allocator)) {
        let (uptime, now) = (self.uptime(n), self.now);
        if let Some(allocator) = &mut self.peers[n].allocator {
            allocator.set_uptime(uptime, now);
        }
        if let Some(allocator) = &mut self.peers[n].allocator {
            call(allocator);
        }
    }

    fn deliver(&mut self) {
        let now = self.now;
        let (mut due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.wire)
            .into_iter()
            .partition(|packet| packet.at <= now);
        self.wire = later;
        due.sort_by_key(|packet| packet.at);
        for packet in due {
            let mut islands = self.islands.iter();
            if islands.any(|g| g.contains(&packet.from) && g.contains(&packet.to)) {
                let from = name(packet.from);
                self.with(packet.to, |a| {
                    a.handle_message(from, &packet.bytes, now).unwrap();
                });
            }
        }
    }

    fn gossip(&mut self) {
        let now = self.now;
        for group in self.islands.clone() {
            for n in &group {
                for other in group.iter().filter(|other| *other != n) {
                    let digest = self.peers[*other].announced;
                    if self.is_up(*n) && self.is_up(*other) && digest != Digest::NONE {
                        self.with(*n, |a| a.handle_digest(name(*other), digest, now));
                    }
                }
            }
        }
    }

    fn chance(&mut self, per_mille: u64) -> bool {
        per_mille > 0 && self.rng.next_u64() % 1000 < per_mille
    }

    fn carry_out(&mut self, n: usize) {
        while let Some(event) = self.peers[n]
            .allocator
            .as_mut()
            .and_then(Allocator::poll_event)
        {
            if self.chance(self.faults.crash) {
                let down = Duration::from_millis(self.rng.next_u64() % 5_000);
                self.crash(n, down);
                self.update_links();
                return;
            }
            self.carry_out_one(n, event);
        }
    }

    fn carry_out_one(&mut self, n: usize, event: Event) {
        match event {
            Event::Persist(saved) => self.peers[n].disk = Some(saved),
            Event::Send { to, bytes } => self.post(n, to, &bytes),
            Event::Answer { id, result } => self.note_answer(n, id, result),
            Event::Announce { digest, .. } => self.peers[n].announced = digest,
            Event::Joined(pool) | Event::Forget(pool) => panic!("one pool alone, and {pool}?"),
            Event::Synced { peer } => {
                let other = (0..self.peers.len()).find(|m| name(*m) == peer).unwrap();
                assert!(self.peers[n].synced.insert(other), "synced twice");
                self.synced.push((n, other));
            }
            Event::Conflict {
                container,
                addr,
                holder,
            } => {
                self.running.remove(&(n, container.clone()));
                self.conflicts.push((n, container, addr, holder));
            }
        }
    }

    fn post(&mut self, from: usize, to: PeerName, bytes: &[u8]) {
        let to = (0..self.peers.len()).find(|m| name(*m) == to).unwrap();
        self.check_said(from, bytes);
        let copies = if self.chance(self.faults.loss) {
            0
        } else if self.chance(self.faults.repeat) {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let delay = self.rng.next_u64() % (self.faults.delay + 1);
            let at = self.now + Duration::from_millis(delay);
            let bytes = bytes.to_vec();
            self.wire.push(Packet {
                at,
                from,
                to,
                bytes,
            });
        }
    }

    /// What a peer says of itself is on its disk, or a crash could make it untrue.
    fn check_said(&self, n: usize, bytes: &[u8]) {
        let disk = self.peers[n].disk.as_ref();
        let acceptor = disk.map(|saved| saved.acceptor.clone()).unwrap_or_default();
        let votes = disk.map(|saved| saved.votes.clone()).unwrap_or_default();
        let promised = votes.acceptor.promised;
        let accepted = votes.acceptor.accepted.map(|(ballot, _)| ballot);
        let about = votes.about.map_or(0, |(_, number)| number);
        match Message::parse(bytes, self.peers[n].config.pool).unwrap() {
            Message::Council { say, .. } => match say {
                Council::Promise { number, ballot, .. } => {
                    assert!(about > number || promised >= Some(ballot));
                }
                Council::Accepted { number, ballot, .. } => {
                    assert!(about > number || accepted >= Some(ballot));
                }
                Council::Ask(_)
                | Council::Acked { .. }
                | Council::Refused { .. }
                | Council::Used { .. }
                | Council::Prepare { .. }
                | Council::Accept { .. }
                | Council::Outbid { .. } => {}
            },
            Message::Promise { ballot, .. } => assert!(acceptor.promised >= Some(ballot)),
            Message::Accepted { ballot } => {
                assert!(acceptor.accepted.is_some_and(|(b, _)| b >= ballot));
            }
            Message::Ring {
                ring: Some(ring), ..
            } => {
                let saved = disk.and_then(|saved| saved.ring.clone()).unwrap();
                let saved = saved.into_ring(self.peers[n].config.pool).unwrap();
                // The disk may know more by then, but no less.
                assert!(saved.id() <= ring.id());
                if saved.id() == ring.id() {
                    let mut both = saved.clone();
                    both.merge(&ring);
                    assert_eq!(both.digest(), saved.digest());
                }
            }
            Message::Sync { .. }
            | Message::Same { .. }
            | Message::Ring { ring: None, .. }
            | Message::Space { .. }
            | Message::NoSpace { .. }
            | Message::Claim { .. }
            | Message::Taken { .. }
            | Message::Adopted { .. }
            | Message::Settled { .. }
            | Message::Start
            | Message::Prepare { .. }
            | Message::Accept { .. }
            | Message::Outbid { .. }
            | Message::Abstain => {}
        }
    }

    fn note_answer(&mut self, n: usize, id: RequestId, result: Result<Answer, RequestError>) {
        let Some((container, claimed)) = self.asked.remove(&(n, id)) else {
            panic!("an answer to nothing, or a second one");
        };
        let addr = match &result {
            Ok(Answer::Address { addr, .. }) => Some(*addr),
            Ok(Answer::Claimed) => claimed,
            Ok(Answer::Primed) | Err(_) => None,
        };
        if let Some(addr) = addr {
            // The promise itself: it is on the disk before the container hears of it.
            let disk = self.peers[n].disk.as_ref().expect("persisted");
            let held = |a: &crate::Allocation| a.container == container && a.addr == addr;
            assert!(disk.allocations.iter().any(held), "{addr} is not on disk");
            let allocator = self.peers[n].allocator.as_ref().unwrap();
            let still = allocator.lookup(&container);
            if still.iter().any(|(a, _)| *a == addr) {
                self.running.insert((n, container), addr);
            }
        }
        self.answers.insert(id, result);
    }
}
