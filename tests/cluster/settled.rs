//! What must be true once faults are over and some time has passed: everybody knows everybody the
//! underlay joins, all agree on the ring and the names, every frame arrives once, nothing is left over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use weft_ipam::{Allocator, Cidr};
use weft_router::ConnectionState;
use weft_router::routes::Routes;
use weft_wire::PeerName;

use crate::clock::Clock;
use crate::world::World;

/// A frame on its way.
struct Sent {
    frame: usize,
    from: usize,
    to: BTreeSet<usize>,
}

/// The longest wait between two dials is 90 s, and gossip takes a peer for dead after 15 s.
const BOUND: Duration = Duration::from_secs(150);
/// How often somebody looks after peers that are gone for good.
const OPERATOR: Duration = Duration::from_secs(20);

impl World {
    /// Runs until all is as it should be, and checks that it stays so and that frames pass.
    pub(crate) fn settle(&mut self) -> Duration {
        let began = self.now;
        let mut why = self.unsettled();
        let mut operator = began + OPERATOR;
        let slowest = self.peers.iter().map(|peer| peer.clock.rate).min();
        let bound = BOUND * Clock::RIGHT.rate / slowest.unwrap_or(Clock::RIGHT.rate);
        while let Some(reason) = &why {
            if self.now >= operator {
                operator += OPERATOR;
                self.remove_lost(0);
            }
            assert!(
                self.now - began < bound,
                "not settled: {reason} {}",
                self.replay()
            );
            self.run_ms(250);
            why = self.unsettled();
        }
        let took = self.now - began;
        self.run_secs(3);
        let after = self.first_lack(false);
        assert_eq!(after, None, "it does not stay settled {}", self.replay());
        self.exchange_frames();
        took
    }

    /// Peers that should know each other.
    pub(crate) fn joined(&self) -> Vec<BTreeSet<usize>> {
        self.groups(|world, a, b| {
            let up = world.peers[a].up.is_some() && world.peers[b].up.is_some();
            up && world.may_connect(a, b)
        })
    }

    fn may_connect(&self, a: usize, b: usize) -> bool {
        let same = self.peers[a].settings.password == self.peers[b].settings.password;
        same && self.net.joins(a, b)
    }

    fn unsettled(&self) -> Option<String> {
        self.first_lack(true)
    }

    /// Without `leftovers` streams may come and go: a target whose peer is connected otherwise is
    /// dialled to find out that it is.
    fn first_lack(&self, leftovers: bool) -> Option<String> {
        for group in self.joined() {
            for a in group.iter().filter(|n| self.peers[**n].up.is_some()) {
                self.model.checked(5);
                let all = [
                    self.lacks_connections(*a, &group),
                    self.lacks_addresses(*a, &group),
                    self.lacks_space(*a, &group),
                    self.lacks_names(*a, &group),
                    self.has_leftovers(*a).filter(|_| leftovers),
                ];
                if let Some(why) = all.into_iter().flatten().next() {
                    return Some(format!("n{a}: {why}"));
                }
            }
        }
        None
    }

    /// Whether `a` sees to it that it has a connection with `b`.
    fn wants(&self, a: usize, b: usize) -> bool {
        let dials = !self.net.dial_cut.contains(&(a, b)) || self.peers[b].settings.discovery;
        self.is_meshed(a) && dials && self.may_connect(a, b)
    }

    /// Whether it connects with everybody it hears of.
    fn is_meshed(&self, n: usize) -> bool {
        let settings = &self.peers[n].settings;
        settings.conn_limit == 0 && settings.discovery
    }

    fn lacks_connections(&self, a: usize, group: &BTreeSet<usize>) -> Option<String> {
        let router = &self.peers[a].up().router;
        let neighbours = router.neighbours();
        for b in group.iter().filter(|b| **b != a) {
            let name = &self.peers[*b].name;
            if !router.routes().unicast.contains_key(name) {
                return Some(format!("no route to n{b}"));
            }
            let mut relayed = router.own_links().into_iter();
            let direct = self.is_meshed(a) && self.may_connect(a, *b);
            if direct && relayed.any(|(to, l)| to == *name && l.relayed) {
                return Some(format!("the connection to n{b} is still relayed"));
            }
            // One that only the other end sees to, too: it may take seconds to find its stream gone.
            let wanted = self.wants(a, *b) || self.wants(*b, a);
            if wanted && !neighbours.contains(name) {
                return Some(format!("no connection to n{b}: {:?}", router.connections()));
            }
        }
        let strangers = router.routes().unicast.len() + 1 - group.len();
        (strangers > 0).then(|| format!("routes to {strangers} peers that are not there"))
    }

    fn lacks_addresses(&self, a: usize, group: &BTreeSet<usize>) -> Option<String> {
        for status in self.peers[a].up().ipam.iter().map(Allocator::status) {
            if !status.pending.is_empty() || !status.unsettled.is_empty() {
                return Some(format!("{:?} {:?}", status.pending, status.unsettled));
            }
        }
        let rings = |n: usize| -> BTreeMap<_, _> {
            let pools = self.peers[n].up().ipam.iter();
            pools.map(|pool| (pool.pool(), pool.digest())).collect()
        };
        let other = group.iter().find(|b| rings(**b) != rings(a));
        other.map(|b| format!("another ring than n{b}"))
    }

    /// What each peer calls its own, and what the ring leaves to peers that are gone, is the whole pool.
    fn lacks_space(&self, a: usize, group: &BTreeSet<usize>) -> Option<String> {
        if group.first() != Some(&a) {
            return None; // once for all
        }
        let here: BTreeSet<_> = group.iter().map(|n| self.peers[*n].name).collect();
        let mut owned: BTreeMap<Cidr, u128> = BTreeMap::new();
        for n in group {
            for status in self.peers[*n].up().ipam.iter().map(Allocator::status) {
                let own = |peer: PeerName| peer == self.peers[*n].name;
                let gone = |peer: PeerName| *n == a && !here.contains(&peer);
                let owners = status.owners.iter();
                let counted = owners.filter(|owner| own(owner.peer) || gone(owner.peer));
                let counted: u128 = counted.map(|owner| owner.addresses).sum();
                *owned.entry(status.pool).or_default() += counted;
            }
        }
        let born = self.peers[a].up().ipam.iter().map(Allocator::status);
        let mut born = born.filter(|status| status.ring.is_some());
        let other = born.find(|status| owned.get(&status.pool) != Some(&status.pool.size()));
        other.map(|status| {
            format!(
                "{:?} addresses of {} have owners",
                owned.get(&status.pool),
                status.pool
            )
        })
    }

    /// A table must have exactly what the group's peers call their own, and that what its containers
    /// hold.
    fn lacks_names(&self, a: usize, group: &BTreeSet<usize>) -> Option<String> {
        let mut should: Vec<_> = group
            .iter()
            .flat_map(|b| self.peers[*b].up().names.own().cloned())
            .collect();
        should.sort();
        let has: Vec<_> = self.peers[a].up().names.records().cloned().collect();
        if has != should {
            return Some(format!("has names {has:?} instead of {should:?}"));
        }
        let mut holding = self
            .model
            .holding
            .iter()
            .filter(|((at, _), _)| group.contains(at));
        let unnamed = holding.find(|((_, container), addr)| {
            let is_it = |r: &&_| is_record(r, container.as_str(), (**addr).into());
            !has.iter().any(|r| is_it(&r))
        });
        unnamed.map(|(who, addr)| format!("no name for {who:?} {addr}"))
    }

    /// One connection for each peer, keys for connections only, and no stream without one.
    fn has_leftovers(&self, a: usize) -> Option<String> {
        let up = self.peers[a].up();
        let connected: BTreeSet<_> = up.router.connected().into_iter().collect();
        let live = up.router.connections().into_iter().filter(|c| {
            matches!(
                c.state,
                ConnectionState::Established | ConnectionState::Pending
            ) && c.peer.is_some()
        });
        // Attempts over others come and go, and have keys of their own.
        let (relayed, live): (Vec<_>, Vec<_>) = live.partition(|c| c.relayed);
        let (relayed, live) = (relayed.len(), live.len());
        if live != connected.len() {
            return Some(format!("{live} connections with {} peers", connected.len()));
        }
        if !(connected.len()..=connected.len() + relayed).contains(&up.sessions.len()) {
            return Some(format!(
                "{} keys for {} peers",
                up.sessions.len(),
                connected.len()
            ));
        }
        if up.receivers.len() > 2 * (connected.len() + relayed) {
            return Some(format!(
                "{} receiving keys for {} peers",
                up.receivers.len(),
                connected.len()
            ));
        }
        let run = self.peers[a].run;
        let pipes = self
            .net
            .pipes
            .keys()
            .filter(|(n, r, _)| (*n, *r) == (a, run));
        let (pipes, spare) = (pipes.count(), self.strangers(a));
        (pipes > connected.len() + spare)
            .then(|| format!("{pipes} streams for {} peers", connected.len()))
    }

    /// Peers that may knock in vain at any time: a stream with one is no leftover.
    fn strangers(&self, a: usize) -> usize {
        let password = self.peers[a].settings.password;
        let others = self
            .peers
            .iter()
            .filter(|p| p.settings.password != password || p.settings.conn_limit > 0);
        16 * others.count()
    }

    /// Every peer floods a frame, and then sends one to every other one; each must come to whom it is
    /// for, once. While routes change a frame may be lost, so it is tried until none does.
    pub(crate) fn exchange_frames(&mut self) {
        let weather = self.net.weather;
        self.net.weather.loss = 0;
        self.net.weather.delay_ms = weather.delay_ms.min(50);
        for group in self.joined() {
            if group.len() > 1 {
                let members: Vec<_> = group.iter().map(|n| (*n, self.speaker(*n))).collect();
                self.steadily(&members, Self::flood_all);
                self.steadily(&members, Self::send_all);
            }
        }
        self.net.weather = weather;
    }

    fn steadily(
        &mut self,
        members: &[(usize, usize)],
        send: impl Fn(&mut Self, &[(usize, usize)]) -> Vec<Sent>,
    ) {
        for _ in 0..5 {
            self.run_ms(500);
            let before = self.routes_of(members);
            let sent = send(self, members);
            self.run_ms(500);
            if self.routes_of(members) == before {
                return sent.into_iter().for_each(|sent| self.check_arrived(&sent));
            }
        }
        panic!("routes keep changing {}", self.replay());
    }

    fn routes_of(&self, members: &[(usize, usize)]) -> Vec<Routes> {
        let routers = members.iter().map(|(n, _)| &self.peers[*n].up().router);
        routers.map(|router| router.routes().clone()).collect()
    }

    fn flood_all(&mut self, members: &[(usize, usize)]) -> Vec<Sent> {
        let all: BTreeSet<_> = members.iter().map(|(n, _)| *n).collect();
        let mut sent = Vec::new();
        for (from, c) in members {
            sent.push(Sent {
                frame: self.send_frame(*c, None).unwrap(),
                from: *from,
                to: all.clone(),
            });
        }
        sent
    }

    fn send_all(&mut self, members: &[(usize, usize)]) -> Vec<Sent> {
        let mut sent = Vec::new();
        for (from, c) in members {
            for (to, d) in members.iter().filter(|(to, _)| to != from) {
                sent.push(Sent {
                    frame: self.send_frame(*c, Some(*d)).unwrap(),
                    from: *from,
                    to: BTreeSet::from([*to]),
                });
            }
        }
        sent
    }

    fn check_arrived(&self, sent: &Sent) {
        self.model.checked(self.peers.len() - 1);
        for n in (0..self.peers.len()).filter(|n| *n != sent.from) {
            let times = self.model.deliveries(sent.frame, n, self.peers[n].run);
            let should = u64::from(sent.to.contains(&n));
            assert!(
                times == should,
                "n{n} delivered a frame from n{} {times} times instead of {should} {}",
                sent.from,
                self.replay()
            );
        }
    }

    /// A container on that host that has an address.
    fn speaker(&mut self, n: usize) -> usize {
        let has = |world: &Self, c: &usize| world.model.address(*c).is_some();
        if let Some(c) = self.model.on(n).into_iter().find(|c| has(self, c)) {
            return c;
        }
        // Without a pool of its own, one that it joined will do.
        let joined = self.peers[n].up().ipam.iter().next().map(Allocator::pool);
        let c = match joined.filter(|_| self.peers[n].settings.pools.is_empty()) {
            None => self.launch(n),
            Some(pool) => self.launch_in(n, pool),
        };
        let began = self.now;
        for _ in 0..200 {
            if has(self, &c) {
                return c;
            }
            self.run_ms(200);
            if self.now > began + OPERATOR {
                self.remove_lost(0);
            }
        }
        let pools = self.peers[n].up().ipam.iter();
        let status: Vec<_> = pools.map(Allocator::status).collect();
        panic!("no address for n{n}: {status:?} {}", self.replay());
    }
}

fn is_record(record: &weft_dns::Record, container: &str, addr: std::net::IpAddr) -> bool {
    record.container == container && record.addr == addr
}
