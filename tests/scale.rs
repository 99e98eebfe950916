//! `cargo xtask scale`: what a cluster of real routers costs, as a function of how many there are.
//!
//! A lab of so many hosts, each with a router and no container: how long until each sees the whole mesh,
//! then what each router sends, and takes of memory and processor, while nothing happens; then how long
//! a new name, and a router that is launched anew, take to be known to all; then what is sent while
//! routers go and come back. The hosts share one machine, and asking them takes time, so times are upper
//! bounds.
//!
//! Invariant: the last line counts what was measured; success means that every bound held and that no
//! count is zero.
#![forbid(unsafe_code)]
#![allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "all of this is test; of what the namespace tests share some is not used here"
)]

#[path = "cluster/bounds.rs"]
mod bounds;
#[path = "netns/frames.rs"]
mod frames;
#[path = "netns/helper.rs"]
mod helper;
#[path = "netns/machine.rs"]
mod machine;
#[path = "netns/support.rs"]
mod support;

use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use bounds::broken;
use support::{Lab, ensure, eventually};

/// How long nothing happens while it is measured.
const REST: Duration = Duration::from_secs(15);
/// How long after the last one is there it begins.
const SETTLE: Duration = Duration::from_secs(10);
/// How long a lab of many hosts may take to know itself.
const PATIENCE: Duration = Duration::from_secs(120);
/// How many routers go and come back, and how long they are given: with 50 routers that is one in a
/// hundred a minute, several times over.
const GOINGS: u16 = 2;
const CHURN: Duration = Duration::from_secs(15);

/// Bytes a second for each neighbour at rest, seconds until all know what is new, and MB of memory.
const MOST_AT_REST: f64 = 200.0;
const SOON: f64 = 5.0;
const MOST_MEMORY: f64 = 60.0;

/// As many as were tried; all of them share one machine.
const MOST: u16 = 50;

const BOUNDS: usize = 4;
const COUNTS: usize = 4;

const USAGE: &str = "the numbers of routers, from 3 to 50 each\n";

/// What routers have used so far.
#[derive(Debug, Clone, Copy, Default)]
struct Used {
    /// Bytes and packets that left by the host's interface, all headers included.
    bytes: u64,
    packets: u64,
    /// Of these, gossip.
    gossip: u64,
    /// Hundredths of a second of processor time.
    ticks: u64,
    /// KiB of memory.
    memory: u64,
}

/// What one router uses in a second.
struct Rate {
    bytes: f64,
    packets: f64,
    gossip: f64,
    /// Per cent of a processor.
    cpu: f64,
}

/// One line of the table.
struct Row {
    peers: u16,
    converged: Duration,
    name: Duration,
    newcomer: Duration,
    rest: Rate,
    churn: Rate,
    /// MB.
    memory: f64,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let counts: Result<Vec<u16>, _> = args.iter().map(|count| count.parse()).collect();
    let fits = |all: &Vec<u16>| !all.is_empty() && all.iter().all(|n| (3..=MOST).contains(n));
    let Some(counts) = counts.ok().filter(fits) else {
        eprint!("{USAGE}");
        return ExitCode::from(2);
    };
    if !support::possible() {
        eprintln!("scale: this needs namespaces of its own: run it as root");
        return ExitCode::FAILURE;
    }
    println!(
        "| routers | all see all | name known to all | router known to all | at rest: packets/s | bytes/s | per neighbour | gossip bytes/s | CPU | under churn: packets/s | bytes/s | gossip bytes/s | CPU | memory |\n\
         | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    );
    let mut broken = Vec::new();
    for peers in &counts {
        let row = measure(*peers);
        row.print();
        broken.extend(row.broken());
    }
    for bound in &broken {
        println!("broken: {bound}");
    }
    println!(
        "scale, real: {} sizes, {} routers, {} checks, {} bounds broken",
        counts.len(),
        counts.iter().sum::<u16>(),
        counts.len() * (BOUNDS + COUNTS),
        broken.len()
    );
    match broken.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn measure(peers: u16) -> Row {
    let lab = Lab::named(&format!("scale{peers}"));
    let began = Instant::now();
    lab.bring_up(peers, 0, &[]).success();
    sees_all(&lab, peers);
    let converged = began.elapsed();
    sleep(SETTLE);
    let (rest, used) = rate(&lab, peers, || sleep(REST));
    let name = new_name(&lab, peers);
    let mut newcomer = Duration::ZERO;
    let (churn, _) = rate(&lab, peers, || {
        let began = Instant::now();
        for n in 0..GOINGS {
            newcomer = newcomer.max(come_back(&lab, peers, peers - n));
        }
        sleep(CHURN.saturating_sub(began.elapsed()));
    });
    Row {
        peers,
        converged,
        name,
        newcomer,
        rest,
        churn,
        memory: used.memory as f64 / 1024.0 / f64::from(peers),
    }
}

impl Row {
    fn print(&self) {
        let (rest, churn) = (&self.rest, &self.churn);
        println!(
            "| {} | {:.1} s | {:.2} s | {:.2} s | {:.1} | {:.0} | {:.0} | {:.1} | {:.2} % | {:.1} | {:.0} | {:.0} | {:.2} % | {:.1} MB |",
            self.peers,
            self.converged.as_secs_f64(),
            self.name.as_secs_f64(),
            self.newcomer.as_secs_f64(),
            rest.packets,
            rest.bytes,
            rest.bytes / f64::from(self.peers - 1),
            rest.gossip,
            rest.cpu,
            churn.packets,
            churn.bytes,
            churn.gossip,
            churn.cpu,
            self.memory,
        );
    }

    /// The bounds that did not hold, and counts that are none.
    fn broken(&self) -> Vec<String> {
        let per_neighbour = self.rest.bytes / f64::from(self.peers - 1);
        let (name, newcomer) = (self.name.as_secs_f64(), self.newcomer.as_secs_f64());
        let bounds: [_; BOUNDS] = [
            ("bytes/s per neighbour at rest", per_neighbour, MOST_AT_REST),
            ("s until a name is known", name, SOON),
            ("s until a router is known", newcomer, SOON),
            ("MB of memory", self.memory, MOST_MEMORY),
        ];
        let counts: [_; COUNTS] = [
            ("packets at rest", self.rest.packets),
            ("gossip at rest", self.rest.gossip),
            ("gossip under churn", self.churn.gossip),
            ("memory", self.memory),
        ];
        broken("routers", self.peers.into(), &bounds, &counts)
    }
}

/// Waits until each host sees each connection of a full mesh from both its ends.
fn sees_all(lab: &Lab, peers: u16) {
    let links = usize::from(peers) * usize::from(peers - 1);
    for host in (1..=peers).map(host) {
        eventually("each host sees the whole mesh", PATIENCE, || {
            let report = lab.report(&host);
            let seen = report.router.peers.iter().flat_map(|peer| &peer.links);
            let seen = seen.filter(|link| link.established).count();
            ensure(seen == links, format!("{host} sees {seen} of {links}"))
        });
    }
}

/// What each router uses meanwhile; and what all have used before.
fn rate(lab: &Lab, peers: u16, meanwhile: impl FnOnce()) -> (Rate, Used) {
    let before = used(lab, peers);
    let from = Instant::now();
    meanwhile();
    let seconds = from.elapsed().as_secs_f64() * f64::from(peers);
    let after = used(lab, peers);
    // A router that came back counts from nothing again.
    let per = |of: fn(&Used) -> u64| of(&after).saturating_sub(of(&before)) as f64 / seconds;
    let rate = Rate {
        bytes: per(|used| used.bytes),
        packets: per(|used| used.packets),
        gossip: per(|used| used.gossip),
        cpu: per(|used| used.ticks),
    };
    (rate, before)
}

/// What all routers together have used.
fn used(lab: &Lab, peers: u16) -> Used {
    let script = "cat /sys/class/net/eth0/statistics/tx_bytes /sys/class/net/eth0/statistics/tx_packets; \
        p=$(cat /run/weft/weft.pid); cut -d ' ' -f 14,15 /proc/$p/stat; grep VmRSS /proc/$p/status; \
        exec 3<>/dev/tcp/127.0.0.1/6782; printf 'GET /metrics HTTP/1.0\\r\\nHost: 127.0.0.1:6782\\r\\n\\r\\n' >&3; \
        grep ^weft_gossip_sent_bytes_total <&3";
    let mut all = Used::default();
    for host in (1..=peers).map(host) {
        let printed = lab.ok(&host, &["bash", "-c", script]);
        let words = printed.split_whitespace();
        let numbers: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
        let [bytes, packets, user, system, memory, gossip] = numbers[..] else {
            panic!("{host}: {printed}");
        };
        all.bytes += bytes;
        all.packets += packets;
        all.gossip += gossip;
        all.ticks += user + system;
        all.memory += memory;
    }
    all
}

/// How long until the last router knows a name that the first one gives.
fn new_name(lab: &Lab, peers: u16) -> Duration {
    let began = Instant::now();
    let words = ["weft", "dns-add", "10.99.0.1", "--name", "fresh"];
    lab.ok("host1", &words);
    for host in (2..=peers).map(host) {
        eventually("the name is known", PATIENCE, || {
            let found = lab.exec(&host, &["weft", "dns-lookup", "fresh"]);
            let is_there = found.printed.trim() == "10.99.0.1";
            ensure(is_there, format!("{host}: {found:?}"))
        });
    }
    began.elapsed()
}

/// A router is stopped, is gone everywhere, and is launched anew: how long from then until all have it.
fn come_back(lab: &Lab, peers: u16, n: u16) -> Duration {
    let back = host(n);
    lab.ok(&back, &["weft", "stop"]);
    let others: Vec<String> = (1..=peers).filter(|other| *other != n).map(host).collect();
    let has = |host: &str, name: &str| {
        let peers = lab.report(host).router.peers;
        peers.iter().any(|peer| peer.nickname == name)
    };
    for other in &others {
        eventually("it is gone", PATIENCE, || {
            ensure(!has(other, &back), format!("{other} still has {back}"))
        });
    }
    let began = Instant::now();
    lab.ok(&back, &["weft", "launch", "--resume"]);
    for other in &others {
        eventually("it is there", PATIENCE, || {
            ensure(has(other, &back), format!("{other} does not have {back}"))
        });
    }
    began.elapsed()
}

fn host(n: u16) -> String {
    format!("host{n}")
}
