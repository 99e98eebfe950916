//! Random faults, seed by seed: peers are cut off, killed, lose their power or their disk, join and
//! leave, while containers come and go and talk; then all is mended and must come right.

use std::time::Duration;

use crate::broken::Broken;
use crate::peer::Settings;
use crate::world::{Delivery, World};

/// How often something happens in a run.
const EVENTS: usize = 100;
/// The most peers of a run.
const CROWD: usize = 9;

pub(crate) fn chaos(seed: u64, broken: Broken) -> World {
    let mut world = World::new(seed);
    world.is_story = true;
    world.broken = broken;
    world.net.weather.loss = world.random(201);
    world.net.weather.repeat = world.random(50);
    world.net.weather.dial_failures = world.random(200);
    world.net.weather.message_loss = world.random(100);
    world.net.weather.delay_ms = 1 + world.random(100);
    world.crashes = world.random(2) * 40;
    world.wrong_clocks = world.chance(300);
    let (told, discovery) = (world.random(1000), world.chance(700));
    // Small ones, which run short of addresses, and one as large as they are in practice.
    let (first, second) = (world.pick(8), world.pick(8));
    let pool = |text: &&str| text.parse().unwrap();
    world.first_pool = ["fd57:1::/120", "fd57:1::/64"].get(first).map(pool);
    world.second_pool = ["172.30.0.0/28", "fd57:9::/124", "fd57:9::/64"]
        .get(second)
        .map(pool);
    for n in 0..3 + world.pick(4) {
        let mut settings = world.settings(n);
        settings.discovery = discovery;
        if n > 0 && world.chance(told) {
            settings = settings.to(world.pick(n));
        }
        world.add(settings);
    }
    for _ in 0..EVENTS {
        // Mostly one thing after the other, sometimes long enough for every timer to run out.
        let longest = if world.chance(150) { 120_000 } else { 1000 };
        let pause = world.random(longest);
        world.run_ms(pause);
        something_happens(&mut world);
    }
    mend(&mut world);
    world.settle();
    world
}

impl World {
    /// A peer's, with the pool that all have in this run.
    fn settings(&self, n: usize) -> Settings {
        let mut settings = Settings::new(n);
        if let Some(pool) = self.first_pool {
            settings.pools = vec![pool];
        }
        settings
    }
}

fn something_happens(world: &mut World) {
    let (a, b) = (world.pick(world.peers.len()), world.pick(world.peers.len()));
    match world.random(100) {
        0..15 => {
            if world.model.on(a).len() < 8 {
                match (world.second_pool, world.chance(400)) {
                    (Some(subnet), true) => world.launch_in(a, subnet),
                    (Some(_), false) | (None, _) => world.launch(a),
                };
            }
        }
        15..22 => {
            let on = world.model.on(a);
            if !on.is_empty() {
                let c = on[world.pick(on.len())];
                world.remove(c);
            }
        }
        22..58 => talk(world),
        58..64 => world.connect(a, b),
        64..78 => cut_something(world, a, b),
        78..86 => world.net.heal(),
        86..90 => {
            world.fault("connection broken");
            world.break_a_pipe();
        }
        90..92 => {
            world.fault("restarted");
            world.restart(a);
        }
        92..97 => {
            let silently = world.chance(500);
            fail(world, a, silently);
        }
        97 if world.chance(200) => clone_somebody(world, a, b),
        97 => join_or_leave(world, a),
        98 => {
            world.fault("stopped");
            world.stop(a);
            world.later(Duration::from_secs(3), Delivery::Start(a));
        }
        _ => {
            world.fault("disk lost");
            world.lose_disk(a);
            world.later(Duration::from_secs(2), Delivery::Start(a));
        }
    }
}

fn cut_something(world: &mut World, a: usize, b: usize) {
    match world.random(14) {
        0..4 => {
            world.fault("cut both ways");
            world.net.cut.extend([(a, b), (b, a)]);
        }
        4..7 => {
            world.fault("cut one way");
            world.net.cut.insert((a, b));
        }
        7..10 => {
            world.fault("datagrams cut one way");
            world.net.udp_cut.insert((a, b));
        }
        _ => partition(world),
    }
}

fn talk(world: &mut World) {
    let all = world.model.containers.len();
    for _ in 0..4 {
        if all == 0 {
            return;
        }
        let (from, to) = (world.pick(all), world.pick(all));
        if world.model.gone.contains(&from) {
            continue;
        }
        let who = world.model.who(from);
        if world.model.address(from).is_none() && !world.model.silenced.contains_key(&who) {
            world.ask(from);
        }
        let to = Some(to).filter(|to| world.model.who(*to).0 != world.model.who(from).0);
        world.send_frame(from, to);
    }
}

pub(crate) fn partition(world: &mut World) {
    world.fault("partition");
    let count = world.peers.len();
    let side: Vec<_> = (0..count).map(|_| world.chance(500)).collect();
    for a in 0..count {
        for b in (0..count).filter(|b| side[a] != side[*b]) {
            world.net.cut.insert((a, b));
        }
    }
}

fn fail(world: &mut World, n: usize, silently: bool) {
    world.fault(if silently { "power lost" } else { "killed" });
    world.kill(n, silently);
    let down = Duration::from_millis(world.random(20_000));
    world.later(down, Delivery::Start(n));
}

/// Several at once come, or go for a while.
fn join_or_leave(world: &mut World, a: usize) {
    let count = world.peers.len();
    if count + 2 <= CROWD && world.chance(600) {
        world.fault("wave of joins");
        for n in count..(count + 3).min(CROWD) {
            world.add(world.settings(n).to(a));
        }
    } else {
        world.fault("wave of leaves");
        for n in (0..count).filter(|n| n % 2 == a % 2) {
            world.fault("left and came back");
            world.stop(n);
            let away = Duration::from_millis(world.random(60_000));
            world.later(away, Delivery::Start(n));
        }
    }
}

/// The disk of a host that all others reach is copied to a new one, which runs for a while, until its operator
/// gives it a key of its own. That takes nobody's connections, names or addresses away.
///
/// The host goes on running: one that is gone, and a copy of it, nobody can tell apart.
fn clone_somebody(world: &mut World, a: usize, b: usize) {
    let n = world.peers.len();
    if n == CROWD || a == b {
        return;
    }
    world.net.heal();
    let crashes = std::mem::take(&mut world.crashes);
    world.run_secs(30);
    if is_reached_by_all(world, a) {
        run_a_copy(world, a, b);
    }
    world.crashes = crashes;
}

fn is_reached_by_all(world: &World, a: usize) -> bool {
    let name = world.peers[a].name;
    let mut others = (0..world.peers.len()).filter(|n| *n != a);
    world.peers[a].up.is_some()
        && others.all(|n| {
            let up = world.peers[n].up.as_ref();
            up.is_none_or(|up| up.router.routes().unicast.contains_key(&name))
        })
}

fn run_a_copy(world: &mut World, a: usize, b: usize) {
    world.fault("cloned");
    let n = world.peers.len();
    let clone = world.add_clone(a, world.settings(n).to(b));
    for _ in 0..world.random(60) {
        world.run_ms(1000);
        talk(world);
    }
    world.reset_identity(clone);
    world.start(clone);
}

/// The faults are over, and everybody is told of somebody.
fn mend(world: &mut World) {
    world.crashes = 0;
    world.net.heal();
    world.net.weather.loss = 0;
    world.net.weather.dial_failures = 0;
    world.net.weather.message_loss = 0;
    for n in 0..world.peers.len() {
        world.start(n);
        if n > 0 {
            world.connect(n, 0);
        }
    }
}
