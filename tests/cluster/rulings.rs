//! One story for each rule of the electors: cuts and restarts at the worst moments, so that without the rule
//! two peers may give out the same address. With all rules kept every story ends well.
//!
//! The electors are called 0, 1, ... in the order of their names, in which they propose; the last of the cast is an observer that owns
//! a range.

use std::time::Duration;

use weft_ipam::{Addr, Allocator, Init, Saved, Times};

use crate::broken::Broken;
use crate::peer::{Disk, Settings};
use crate::world::World;

/// Shorter than the real ones in the same proportion.
const TIMES: Times = Times {
    ack: Duration::from_secs(1),
    fence: Duration::from_secs(60),
    takeover: Duration::from_secs(120),
    aside: Duration::from_secs(1200),
    season: Duration::from_secs(3600),
};

/// How many stories there are.
const STORIES: u64 = 5;

/// The world, and whom it is about: electors by name, then the observer.
struct Story {
    world: World,
    cast: Vec<usize>,
}

pub(crate) fn rulings(seed: u64, broken: Broken) -> World {
    let story = match seed / 10 % STORIES {
        0 => voted(seed, broken, false),
        1 => voted(seed, broken, true),
        2 => granted_at_the_last_moment(seed, broken),
        3 => granted_unseen(seed, broken),
        _ => electors_changed_unseen(seed, broken),
    };
    story.meet()
}

/// One of the two that took a peer over does not hear that they did, and meets the peer.
fn voted(seed: u64, broken: Broken, restarted: bool) -> Story {
    let mut story = Story::new(seed, broken, &[1000; 4]);
    story.part(&[&[0, 1, 2], &[3]]);
    story.watch(100);
    story.part(&[&[0, 1], &[2], &[3]]);
    story.until_ruling(0, 1, 60);
    // The third meets the peer first, or it would vote as well.
    story.part(&[&[0], &[1], &[2, 3]]);
    assert_eq!(story.rulings(1), 0, "it voted and knows no more");
    if restarted {
        let one = story.cast[1];
        story.world.restart(one);
    }
    story.watch(5);
    story.part(&[&[0], &[1, 2, 3]]);
    story.until_unfenced(3, 15);
    story.part(&[&[0, 1, 2], &[3]]);
    story.watch(15);
    story
}

/// A peer that is about to be taken over grants something to one that was just acknowledged, and whose
/// clock is slow.
fn granted_at_the_last_moment(seed: u64, broken: Broken) -> Story {
    let mut story = Story::new(seed, broken, &[1500, 1500, 800, 800]);
    story.part(&[&[0, 1], &[2], &[3]]);
    story.watch(50);
    story.part(&[&[0, 1, 3], &[2]]);
    story.watch(10);
    story.part(&[&[0, 1], &[2, 3]]);
    let addr = story.free_address_of(2);
    story.claim(3, 2, addr);
    story.until_ruling(0, 1, 60);
    story.watch(10);
    story
}

/// A peer grants something, unseen, before it is taken over; later the other shows its grant to one
/// of the electors.
fn granted_unseen(seed: u64, broken: Broken) -> Story {
    let mut story = Story::new(seed, broken, &[1000; 4]);
    story.part(&[&[0, 1, 3], &[2]]);
    story.watch(5);
    story.part(&[&[0, 1], &[2, 3]]);
    let addr = story.free_address_of(2);
    story.claim(3, 2, addr);
    story.watch(10);
    story.part(&[&[0, 1], &[2], &[3]]);
    story.until_ruling(0, 1, 180);
    story.watch(1);
    story.part(&[&[0], &[1, 3], &[2]]);
    story.watch(15);
    story
}

/// Three electors of five take the other two over; one of them does not hear of it, and with the two
/// is what a peer needs, while the other two are a majority now.
fn electors_changed_unseen(seed: u64, broken: Broken) -> Story {
    let mut story = Story::new(seed, broken, &[1000; 6]);
    story.part(&[&[0, 1, 2, 5], &[3, 4]]);
    story.watch(50);
    story.part(&[&[0, 1, 2], &[3, 4, 5]]);
    story.until_ruling(0, 1, 120);
    story.part(&[&[0, 1], &[2, 3, 4, 5]]);
    assert_eq!(story.rulings(2), 0, "it voted and knows no more");
    story.until_ruling(0, 2, 240);
    story.watch(10);
    story
}

impl Story {
    /// Electors and one observer with clocks of these rates, all connected, everybody with a range.
    fn new(seed: u64, broken: Broken, rates: &[u32]) -> Self {
        let mut world = World::new(seed);
        world.is_story = true;
        world.broken = broken;
        world.model.takeovers = true;
        world.net.weather.delay_ms = 5 + world.random(30);
        let electors = rates.len() - 1;
        for n in 0..=electors {
            let mut settings = Settings::new(n);
            settings.pools = vec!["10.32.0.0/26".parse().unwrap()];
            settings.init = match n < electors {
                true => Init::Consensus(Some(electors)),
                false => Init::Observer,
            };
            settings.times = TIMES;
            settings.rules = broken.rules();
            world.add(if n == 0 { settings } else { settings.to(0) });
        }
        let mut cast: Vec<_> = (0..electors).collect();
        cast.sort_by_key(|n| world.peers[*n].name);
        cast.push(electors);
        for (n, rate) in cast.iter().zip(rates) {
            world.peers[*n].clock.rate = *rate;
        }
        world.run_secs(10);
        world.launch(cast[0]);
        world.run_secs(5);
        world.launch(electors);
        let mut story = Self { world, cast };
        story.watch(20);
        let status = story.allocator(electors).status();
        assert_eq!(status.electors.len(), electors, "all agreed in time");
        assert!(status.unfenced && status.owners.len() == electors + 1);
        story
    }

    fn allocator(&self, role: usize) -> &Allocator {
        let up = self.world.peers[self.cast[role]].up();
        up.ipam.iter().next().unwrap()
    }

    /// Joins all within each of these groups, and nobody else.
    fn part(&mut self, groups: &[&[usize]]) {
        self.world.fault("cut at a bad moment");
        self.world.net.heal();
        let group_of = |role| groups.iter().position(|group| group.contains(&role));
        for a in 0..self.cast.len() {
            for b in (0..self.cast.len()).filter(|b| *b != a) {
                let (from, to) = (self.cast[a], self.cast[b]);
                if group_of(a) != group_of(b) {
                    self.world.net.cut.insert((from, to));
                } else {
                    self.world.connect(from, to);
                }
            }
        }
    }

    fn watch(&mut self, seconds: u64) {
        for _ in 0..seconds * 4 {
            self.world.run_ms(250);
            self.world.check_ranges();
        }
    }

    fn rulings(&self, role: usize) -> u32 {
        let disk = &self.world.peers[self.cast[role]].disk;
        let saved = disk.pools.values().map(|pool| Saved::parse(pool).unwrap());
        let rings = saved.filter_map(|saved| saved.ring);
        rings.map(|ring| ring.rulings).max().unwrap_or(0)
    }

    /// Runs until a peer knows of so many rulings, and hardly longer.
    fn until_ruling(&mut self, role: usize, number: u32, seconds: u64) {
        let end = self.world.now + Duration::from_secs(seconds);
        let mut disk = Disk::default();
        while self.world.now < end {
            self.world.run_ms(1);
            let now = &self.world.peers[self.cast[role]].disk;
            if disk.pools != now.pools {
                disk = now.clone();
                if self.rulings(role) >= number {
                    return;
                }
            }
        }
        let status = self.allocator(role).status();
        let replay = self.world.replay();
        panic!(
            "no ruling {number} after {seconds} s: {:?} {:?} {replay}",
            status.electors, status.reclaims
        );
    }

    /// Runs until a peer may use some of what it owns, or the time is over.
    fn until_unfenced(&mut self, role: usize, seconds: u64) {
        for _ in 0..seconds * 4 {
            let now = self.world.clock(self.cast[role]);
            if !self.allocator(role).usable_ranges(now).is_empty() {
                return;
            }
            self.watch_a_moment();
        }
    }

    fn watch_a_moment(&mut self) {
        self.world.run_ms(250);
        self.world.check_ranges();
    }

    /// An address that a peer may give out.
    fn free_address_of(&self, role: usize) -> Addr {
        let now = self.world.clock(self.cast[role]);
        let ranges = self.allocator(role).usable_ranges(now);
        let (_, last) = ranges.last().copied().expect("it may use what it owns");
        Addr::from_bits(last.to_bits() - 1)
    }

    /// A container wants just this address, and gets it granted soon.
    fn claim(&mut self, role: usize, of: usize, addr: Addr) {
        let (n, to) = (self.cast[role], self.world.peers[self.cast[role]].name);
        self.world.claim(n, addr);
        for _ in 0..40 {
            // A dial that was under way when they were joined has failed by now.
            self.world.connect(n, self.cast[of]);
            self.watch_a_moment();
            let disk = &self.world.peers[n].disk;
            let saved = disk.pools.values().map(|pool| Saved::parse(pool).unwrap());
            let mut rings = saved.filter_map(|saved| saved.ring);
            let owner = rings.find_map(|ring| {
                let before = ring.entries.iter().rfind(|(token, _)| *token <= addr);
                before.map(|(_, entry)| entry.owner)
            });
            if owner == Some(to) {
                return;
            }
        }
        panic!("{addr} was not granted {}", self.world.replay());
    }

    /// All meet, and all comes right.
    fn meet(mut self) -> World {
        let all: Vec<_> = (0..self.cast.len()).collect();
        self.part(&[&all]);
        self.world.settle();
        self.watch(5);
        self.world
    }
}

#[test]
fn every_story_ends_well_while_the_rules_are_kept() {
    let ends: std::collections::BTreeSet<_> = (0..STORIES)
        .map(|story| rulings(story * 10, Broken::Nothing).now)
        .collect();
    assert_eq!(ends.len() as u64, STORIES, "they are different stories");
}
