//! What a cluster costs, as a function of how many peers it has.
//!
//! A hundred peers start in a second, each with two that started before it as targets, as many connections
//! as the program allows by itself ([`conn_limit`]). Then, in virtual time: how long until each has a way to all; what is
//! sent while nothing happens; how long until a new name, and a new peer, are known to all; what is sent
//! while one peer in a hundred goes and comes back per minute.
//!
//! Bytes are those on an Ethernet, IPv4: 66 of headers for each TCP segment (of at most 536
//! bytes), as much again for its acknowledgement, 42 for each datagram. Processor time and memory are of the whole simulation, shared
//! out among the peers, so they are upper bounds of what the machines take.
//!
//! Invariant: a row is printed only of what was measured; [`Row::broken`] names the bounds that did not
//! hold.

use std::time::{Duration, Instant};

use weft_dns::Name;
use weft_ipam::ContainerId;

use crate::bounds::broken;
use crate::model::domain;
use crate::peer::Settings;
use crate::underlay::Carried;
use crate::world::World;

/// What is sent at rest to each neighbour, in bytes a second.
const MOST_AT_REST: f64 = 200.0;
/// Until all know what is new.
const SOON: Duration = Duration::from_secs(5);
/// What the machines of one peer may take of the 60 MB that a router may; the rest of it is the program.
const MOST_MEMORY: f64 = 45.0;

/// From one start to the next.
const LAUNCH: Duration = Duration::from_millis(10);
/// Connections of the first seconds, when there were few peers, are let go meanwhile.
const SETTLE: Duration = Duration::from_secs(120);
const REST: Duration = Duration::from_secs(20);
const CHURN: Duration = Duration::from_secs(30);
/// So long a peer that went is away.
const AWAY: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(300);

/// What `--conn-limit` is if nothing is said. In the largest rows it is less: the first hundred peers would have
/// connections with each other and let most of them go again, which doubled the time it took to start two hundred. At
/// rest a mesh of so many has the same connections with either.
fn conn_limit(peers: usize) -> usize {
    if peers > 500 { 40 } else { 100 }
}

const BOUNDS: usize = 4;
const COUNTS: usize = 4;
/// What is checked of each row.
pub(crate) const CHECKS: usize = BOUNDS + COUNTS;

/// One line of the table.
pub(crate) struct Row {
    peers: usize,
    neighbours: f64,
    converged: Duration,
    rest: PerPeer,
    name: Duration,
    newcomer: Duration,
    churn: PerPeer,
    went: usize,
    memory: f64,
    /// Of one peer, from nothing: without the trees of floods, and with them.
    routes: [Duration; 2],
    took: Duration,
}

/// A second of one peer.
struct PerPeer {
    messages: f64,
    bytes: f64,
    gossip: f64,
    /// Of one processor.
    cpu: f64,
}

pub(crate) const HEAD: &str = "\
| peers | neighbours | all reach all | name known to all | peer known to all | at rest: messages/s | bytes/s | per neighbour | gossip bytes/s | CPU | under churn: messages/s | bytes/s | gossip bytes/s | CPU | memory | routes | with all trees |
| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |";

pub(crate) fn measure(peers: usize) -> Row {
    let began = Instant::now();
    let before = memory();
    let mut world = World::new(peers as u64);
    world.unchecked = true;
    world.net.weather.delay_ms = 10;
    for n in 0..peers {
        let settings = settings(&mut world, n, peers);
        world.add(settings);
        world.run(LAUNCH);
    }
    let launched = world.now;
    say(peers, "launched", began);
    until(&mut world, "all reach all", |world| all_reach(world, peers));
    let converged = world.now - launched;
    world.run(SETTLE);
    say(peers, "settled", began);
    let rest = watch(&mut world, REST, |_, _| ());
    let links: usize = world
        .peers
        .iter()
        .map(|p| p.up().router.connected().len())
        .sum();
    let name = new_name(&mut world);
    say(peers, &format!("a name known in {name:.2?}"), began);
    let memory = (memory() - before) / peers as f64;
    let routes = routes(&world);
    let newcomer = new_peer(&mut world);
    say(peers, &format!("a peer known in {newcomer:.2?}"), began);
    let every = Duration::from_secs(60) * 100 / u32::try_from(peers).unwrap();
    let mut went = 0;
    let mut due = Duration::ZERO;
    let churn = watch(&mut world, CHURN, |world, passed| {
        while due <= passed {
            due += every;
            went += 1;
            go_and_come_back(world, peers);
        }
    });
    Row {
        peers,
        neighbours: links as f64 / peers as f64,
        converged,
        rest,
        name,
        newcomer,
        churn,
        went,
        memory,
        routes,
        took: began.elapsed(),
    }
}

impl Row {
    /// The bounds that did not hold, and counts that are none.
    pub(crate) fn broken(&self) -> Vec<String> {
        let per_neighbour = self.rest.bytes / self.neighbours;
        let bounds: [_; BOUNDS] = [
            ("bytes/s per neighbour at rest", per_neighbour, MOST_AT_REST),
            (
                "s until a name is known",
                self.name.as_secs_f64(),
                SOON.as_secs_f64(),
            ),
            (
                "s until a peer is known",
                self.newcomer.as_secs_f64(),
                SOON.as_secs_f64(),
            ),
            ("MB per peer", self.memory, MOST_MEMORY),
        ];
        let counts: [_; COUNTS] = [
            ("messages at rest", self.rest.messages),
            ("gossip at rest", self.rest.gossip),
            ("gossip under churn", self.churn.gossip),
            ("peers that went", self.went as f64),
        ];
        broken("peers", self.peers, &bounds, &counts)
    }

    pub(crate) fn print(&self) {
        let (rest, churn) = (&self.rest, &self.churn);
        println!(
            "| {} | {:.1} | {:.1} s | {:.2} s | {:.2} s | {:.1} | {:.0} | {:.0} | {:.1} | {:.2} % | {:.1} | {:.0} | {:.0} | {:.2} % | {:.1} MB | {:.1} ms | {:.1} ms |",
            self.peers,
            self.neighbours,
            self.converged.as_secs_f64(),
            self.name.as_secs_f64(),
            self.newcomer.as_secs_f64(),
            rest.messages,
            rest.bytes,
            rest.bytes / self.neighbours,
            rest.gossip,
            rest.cpu * 100.0,
            churn.messages,
            churn.bytes,
            churn.gossip,
            churn.cpu * 100.0,
            self.memory,
            self.routes[0].as_secs_f64() * 1000.0,
            self.routes[1].as_secs_f64() * 1000.0,
        );
        eprintln!("{} peers took {:.0} s", self.peers, self.took.as_secs_f64());
    }
}

/// How far it is, for whoever waits: a large cluster takes minutes.
fn say(peers: usize, what: &str, began: Instant) {
    eprintln!(
        "{peers} peers: {what} after {:.0} s",
        began.elapsed().as_secs_f64()
    );
}

/// Of peer `n` of so many.
fn settings(world: &mut World, n: usize, peers: usize) -> Settings {
    let mut settings = Settings::new(n);
    settings.pools = vec!["10.32.0.0/12".parse().unwrap()];
    settings.conn_limit = conn_limit(peers);
    for _ in 0..2.min(n) {
        let target = world.pick(n);
        settings = settings.to(target);
    }
    settings
}

/// Runs until something is so; looks every ten milliseconds.
fn until(world: &mut World, what: &str, is_so: impl Fn(&World) -> bool) {
    let end = world.now + PATIENCE;
    while !is_so(world) {
        assert!(world.now < end, "not in five minutes: {what}");
        world.run_ms(10);
    }
}

fn all_reach(world: &World, peers: usize) -> bool {
    let mut routes = world.peers.iter().filter_map(|peer| peer.up.as_ref());
    routes.all(|up| up.router.routes().unicast.len() + 1 >= peers)
}

/// How long one peer takes to work out its routes: the best of some times, since others use this machine.
fn routes(world: &World) -> [Duration; 2] {
    let topology = world.peers[0].up().router.topology();
    let times = (0..10).map(|_| {
        let began = Instant::now();
        let routes = weft_router::routes::compute(topology);
        let ways = began.elapsed();
        assert_eq!(routes.flood().len(), topology.count());
        [ways, began.elapsed()]
    });
    times.min_by_key(|[_, all]| *all).unwrap()
}

fn new_name(world: &mut World) -> Duration {
    let began = world.now;
    let name = Name::new("fresh", &domain()).unwrap();
    let container = ContainerId::new("fresh");
    world.add_name(0, name.clone(), &container, [10, 32, 0, 1].into());
    world.work(0);
    until(world, "a name is known", |world| {
        let tables = world.peers.iter().map(|peer| &peer.up().names);
        let knows = |table: &weft_dns::NameTable| table.records().any(|r| r.name == name);
        tables.into_iter().all(knows)
    });
    world.now - began
}

/// From its start until all have its word.
fn new_peer(world: &mut World) -> Duration {
    let began = world.now;
    let n = world.peers.len();
    let settings = settings(world, n, n);
    world.add(settings);
    let name = world.peers[n].name;
    until(world, "a peer is known", |world| {
        let others = world.peers.iter().filter(|peer| peer.name != name);
        let all_know = others
            .into_iter()
            .all(|peer| peer.up().info.contains_key(&name));
        all_know && world.peers[n].up().info.len() + 1 >= world.peers.len()
    });
    world.now - began
}

/// A process ends and is started again.
fn go_and_come_back(world: &mut World, peers: usize) {
    let n = world.pick(peers);
    if world.peers[n].up.is_some() {
        world.kill(n, false);
        world.later(AWAY, crate::world::Delivery::Start(n));
    }
}

fn watch(
    world: &mut World,
    time: Duration,
    mut meanwhile: impl FnMut(&mut World, Duration),
) -> PerPeer {
    let (began, from) = (processor_time(), world.now);
    let before = world.net.carried;
    while world.now - from < time {
        meanwhile(world, world.now - from);
        world.run_ms(100);
    }
    let after = world.net.carried;
    let all = time.as_secs_f64() * world.peers.len() as f64;
    let per = |of: fn(&Carried) -> u64| (of(&after) - of(&before)) as f64 / all;
    PerPeer {
        messages: per(|t| t.messages),
        bytes: per(|t| t.bytes),
        gossip: per(|t| t.gossip),
        cpu: (processor_time() - began) / all,
    }
}

/// Seconds of processor time that this process has had: it has one thread.
fn processor_time() -> f64 {
    let spent = std::fs::read_to_string("/proc/self/schedstat").unwrap();
    let nanoseconds: f64 = spent.split_whitespace().next().unwrap().parse().unwrap();
    nanoseconds / 1e9
}

/// What this process has of memory, in MB.
fn memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib / 1024.0
}
