//! Peers that die and peers that only seem to, in a whole cluster with clocks of unequal rates: one is cut
//! off for long, electors are restarted, disks are put back from old copies; in the end one dies for good
//! and its addresses come back within the bound.
//!
//! Invariant, checked four times a second: no two peers may give out the same address of a ring, whatever
//! each of them knows.

use std::time::Duration;

use weft_ipam::{Addr, Cidr, Init, RingId, Saved, Times};

use crate::broken::Broken;
use crate::chaos::partition;
use crate::peer::{Disk, Settings};
use crate::world::{Delivery, World};

/// Shorter than the real ones in the same proportion.
const TIMES: Times = Times {
    ack: Duration::from_secs(1),
    fence: Duration::from_secs(30),
    takeover: Duration::from_secs(60),
    aside: Duration::from_secs(600),
    season: Duration::from_secs(10),
};
/// For a connection to be given up, gossip to settle, and the electors' attempts.
const MARGIN: Duration = Duration::from_secs(60);
const EVENTS: usize = 6;

pub(crate) fn reclaim(seed: u64, broken: Broken) -> World {
    let mut world = cluster(seed, broken);
    let count = world.peers.len();
    let mut old: Vec<Option<Disk>> = vec![None; count];
    for event in 0..EVENTS {
        let n = world.pick(count);
        match event {
            1 => cut_off_for_long(&mut world, n),
            3 => restart_the_others(&mut world, n),
            0 | 2 | 4.. => something_happens(&mut world, n, &mut old),
        }
    }
    world.net.heal();
    world.net.weather.message_loss = 0;
    for n in 0..count {
        world.start(n);
    }
    world.settle();
    one_dies(&mut world);
    world
}

fn cluster(seed: u64, broken: Broken) -> World {
    let mut world = World::new(seed);
    world.is_story = true;
    world.broken = broken;
    world.model.takeovers = true;
    world.net.weather.delay_ms = 1 + world.random(60);
    world.net.weather.message_loss = world.random(50);
    // The fastest runs less than twice as fast as the slowest.
    let slowest = 600 + u32::try_from(world.random(201)).unwrap();
    world.rates = slowest..slowest * 199 / 100;
    world.wrong_clocks = true;
    let founders = 3 + world.pick(3);
    for n in 0..founders + 1 {
        let mut settings = Settings::new(n);
        // Enough for what is set aside, and for what containers had by an old disk.
        settings.pools = vec!["10.32.0.0/25".parse().unwrap()];
        settings.init = Init::Consensus(Some(founders));
        settings.times = TIMES;
        settings.rules = broken.rules();
        world.add(if n == 0 { settings } else { settings.to(0) });
    }
    world.run_secs(5);
    for n in 0..founders + 1 {
        world.launch(n);
    }
    watch(&mut world, 30);
    world
}

/// Runs so many seconds, while containers come and go.
fn watch(world: &mut World, seconds: u64) {
    for quarter in 0..seconds * 4 {
        world.run_ms(250);
        world.check_ranges();
        if quarter % 8 == 0 {
            let n = world.pick(world.peers.len());
            let on = world.model.on(n);
            if on.len() < 6 {
                world.launch(n);
            } else {
                world.remove(on[0]);
            }
        }
    }
}

fn something_happens(world: &mut World, n: usize, old: &mut [Option<Disk>]) {
    match world.random(5) {
        0 => partition(world),
        1 => world.net.heal(),
        2 => {
            world.fault("power lost");
            world.kill(n, true);
            let down = Duration::from_secs(world.random(90));
            world.later(down, Delivery::Start(n));
        }
        3 => old[n] = Some(world.peers[n].disk.clone()),
        _ => {
            world.fault("restarted");
            world.restart(n);
        }
    }
    let seconds = 1 + world.random(30);
    watch(world, seconds);
    for (n, old) in old.iter_mut().enumerate() {
        if let Some(disk) = old.take_if(|disk| may_be_put_back(disk, &world.peers[n].disk)) {
            put_back(world, n, disk);
        } else if old.is_none() {
            *old = Some(world.peers[n].disk.clone()).filter(|_| world.chance(200));
        }
    }
}

/// With two electors only the barrier protects, and a vote that is forgotten makes a takeover unsafe: see
/// `docs/ipam.md`.
fn may_be_put_back(old: &Disk, new: &Disk) -> bool {
    let rings = old
        .pools
        .values()
        .filter_map(|pool| Saved::parse(pool).unwrap().ring);
    let electors = rings
        .map(|ring| ring.electors.len() - ring.gone.len())
        .min();
    let votes = |disk: &Disk| -> Vec<_> {
        let pools = disk.pools.values();
        pools
            .map(|pool| Saved::parse(pool).unwrap().votes)
            .collect()
    };
    votes(old) == votes(new) && electors >= Some(3)
}

fn put_back(world: &mut World, n: usize, disk: Disk) {
    // Those who know what it granted since must be within reach.
    world.net.heal();
    for other in 0..world.peers.len() {
        world.start(other);
    }
    watch(world, 40);
    if !may_be_put_back(&disk, &world.peers[n].disk) {
        return;
    }
    world.fault("old disk put back");
    world.kill(n, true);
    world.model.forget_peer(n);
    world.peers[n].disk = disk;
    world.start(n);
    watch(world, 20);
}

fn cut_off(world: &mut World, n: usize) {
    for other in (0..world.peers.len()).filter(|other| *other != n) {
        world.net.cut.extend([(n, other), (other, n)]);
    }
}

/// Long enough to be taken over by the slowest clock.
fn cut_off_for_long(world: &mut World, n: usize) {
    world.net.heal();
    watch(world, 10);
    world.fault("cut off for long");
    cut_off(world, n);
    watch(world, 150);
    world.net.heal();
    watch(world, 20);
}

/// One is cut off, and all that could know how long it has been are restarted.
fn restart_the_others(world: &mut World, n: usize) {
    world.net.heal();
    watch(world, 60);
    world.fault("electors restarted");
    cut_off(world, n);
    for other in (0..world.peers.len()).filter(|other| *other != n) {
        world.restart(other);
    }
    watch(world, 25);
    world.net.heal();
}

/// Its addresses come back in time; and when it is back all the same, it has what it had.
fn one_dies(world: &mut World) {
    watch(world, 60);
    let dead = 1 + world.pick(world.peers.len() - 1);
    let name = world.peers[dead].name;
    let owned = world.share(0, dead);
    world.fault("died");
    world.kill(dead, true);
    let began = world.now;
    let bound = TIMES.takeover * 1000 / world.rates.start + MARGIN;
    let living = |world: &World| -> Vec<usize> {
        let all = 0..world.peers.len();
        all.filter(|n| world.peers[*n].up.is_some()).collect()
    };
    while living(world).iter().any(|n| world.share(*n, dead) > 0) {
        assert!(
            world.now - began < bound,
            "{name} died and still owns addresses after {bound:?} {}",
            world.replay()
        );
        watch(world, 1);
    }
    world.model.reclaimed += u64::try_from(owned).unwrap_or(u64::MAX);
    world.start(dead);
    world.settle();
}

impl World {
    /// How many addresses a peer owns by another one's ring.
    fn share(&self, at: usize, of: usize) -> u128 {
        let pools = self.peers[at].up().ipam.iter();
        let owners = pools.flat_map(|pool| pool.status().owners);
        let shares = owners.filter(|owner| owner.peer == self.peers[of].name);
        shares.map(|owner| owner.addresses).sum()
    }

    /// No address may be given out by two peers of a ring, whatever each of them knows.
    pub(crate) fn check_ranges(&self) {
        let mut seen: Vec<(usize, Cidr, RingId, (Addr, Addr))> = Vec::new();
        for n in (0..self.peers.len()).filter(|n| self.peers[*n].up.is_some()) {
            let now = self.clock(n);
            for pool in self.peers[n].up().ipam.iter() {
                let Some(ring) = pool.status().ring else {
                    continue;
                };
                for range in pool.usable_ranges(now) {
                    let alike = seen.iter().filter(|s| (s.1, s.2) == (pool.pool(), ring));
                    self.model.checked(1);
                    for (other, _, _, theirs) in alike.filter(|s| self.are_two(s.0, n)) {
                        assert!(
                            range.1 < theirs.0 || theirs.1 < range.0,
                            "n{n} and n{other} may both use {range:?} {theirs:?} {}",
                            self.replay()
                        );
                    }
                    seen.push((n, pool.pool(), ring, range));
                }
            }
        }
    }

    /// And not one and its copy.
    fn are_two(&self, a: usize, b: usize) -> bool {
        self.peers[a].name != self.peers[b].name
    }
}
