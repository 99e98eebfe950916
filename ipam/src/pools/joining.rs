//! How a pool becomes one of ours, and how one inside another is dissolved in it.
//!
//! Invariant: what moves from one pool to another is on the disk in its new place before it goes from
//! the old one.

use std::time::Instant;

use rand_core::Rng;
use weft_wire::PeerName;

use super::{AddPoolError, MAX_POOLS, Pools};
use crate::addr::Cidr;
use crate::allocator::Allocator;
use crate::birth::Init;
use crate::digest::Digest;
use crate::event::{Config, Event};
use crate::saved::{LoadError, Saved};

impl Pools {
    /// The allocator of a pool that another peer has, which becomes ours too by that.
    pub(super) fn heard_of(
        &mut self,
        peer: PeerName,
        pool: Cidr,
        now: Instant,
    ) -> Option<&mut Allocator> {
        let inside = |other: &Cidr| other.overlaps(pool) && other.prefix() < pool.prefix();
        // A peer that knows ours by now dissolves its own; it hears of ours like of any.
        if self
            .allocators
            .keys()
            .any(|other| inside(other) && !self.is_told(*other))
        {
            return None;
        }
        if !self.allocators.contains_key(&pool)
            && let Err(why) = self.join(pool, now)
        {
            if self.strange.len() >= MAX_STRANGE {
                let (reachable, neighbours) = (&self.reachable, &self.neighbours);
                let is_here =
                    |peer: &PeerName| reachable.contains(peer) || neighbours.contains(peer);
                self.strange.retain(|(_, peer), _| is_here(peer));
            }
            if self.strange.len() < MAX_STRANGE || self.strange.contains_key(&(pool, peer)) {
                self.strange.insert((pool, peer), why);
            } else {
                self.left_out += 1;
            }
            return None;
        }
        self.allocators.get_mut(&pool)
    }

    /// Takes part in a pool from here on, and dissolves those inside it.
    pub(super) fn join(&mut self, pool: Cidr, now: Instant) -> Result<(), AddPoolError> {
        let overlapping = self.allocators.keys().filter(|other| other.overlaps(pool));
        let overlapping: Vec<_> = overlapping.copied().collect();
        let larger = |other: &&Cidr| other.prefix() <= pool.prefix() || self.is_told(**other);
        if let Some(with) = overlapping.iter().find(larger) {
            return Err(AddPoolError::Overlaps { pool, with: *with });
        }
        if self.allocators.len() >= MAX_POOLS {
            return Err(AddPoolError::TooMany);
        }
        if let Some(why) = pool.unfit() {
            return Err(AddPoolError::Unfit { pool, why });
        }
        let full = |_| AddPoolError::TooMany;
        self.insert(pool, None, now).map_err(full)?;
        for inside in overlapping {
            if let Some(old) = self.allocators.remove(&inside) {
                self.dissolve(old, pool, now);
            }
        }
        Ok(())
    }

    fn is_told(&self, pool: Cidr) -> bool {
        self.config.pools.contains(&pool)
    }

    /// A new allocator, told all that the others were told. Addresses of it that were only written
    /// down so far, because they were in no pool, are claimed.
    pub(super) fn insert(
        &mut self,
        pool: Cidr,
        saved: Option<Saved>,
        now: Instant,
    ) -> Result<(), LoadError> {
        let mut allocator = self.build(pool, saved, now)?;
        allocator.set_reachable(self.reachable.clone(), now);
        for neighbour in &self.neighbours {
            allocator.handle_connected(*neighbour, now);
        }
        for pools in self.unsynced.values_mut() {
            pools.insert(pool);
        }
        for other in self.allocators.values_mut() {
            allocator.take_holdings(other, now);
        }
        self.allocators.insert(pool, allocator);
        self.out.push_back(Event::Joined(pool));
        Ok(())
    }

    pub(super) fn build(
        &mut self,
        pool: Cidr,
        saved: Option<Saved>,
        now: Instant,
    ) -> Result<Allocator, LoadError> {
        let mut subnets = self.config.default_subnets.iter().copied();
        let subnet = subnets.find(|subnet| subnet.overlaps(pool) && self.is_told(pool));
        let config = Config {
            us: self.config.us,
            pool,
            default_subnet: subnet.unwrap_or(pool),
            init: match self.config.pools.is_empty() {
                true => Init::Observer,
                false => self.config.init.clone(),
            },
            targets: self.config.targets,
            reserved: self.config.reserved.clone(),
            times: self.config.times,
            rules: self.config.rules,
            uptime: self.clock.uptime(now),
        };
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let mut allocator = Allocator::new(config, saved, seed, now)?;
        // A range we were told is made known before there is a ring: those further away have no other way
        // to hear that theirs overlaps it.
        if self.is_told(pool) && allocator.digest() == Digest::NONE {
            allocator.announce();
            allocator.flush();
        }
        Ok(allocator)
    }

    /// Moves all that a pool has here to the one around it.
    pub(super) fn dissolve(&mut self, mut old: Allocator, around: Cidr, now: Instant) {
        let pool = old.config.pool;
        for pools in self.unsynced.values_mut() {
            pools.remove(&pool);
        }
        if let Some(allocator) = self.allocators.get_mut(&around) {
            allocator.take_holdings(&mut old, now);
            for pending in std::mem::take(&mut old.pending) {
                allocator.submit(pending.id, pending.wish, now);
            }
        }
        while let Some(event) = old.poll_event() {
            if matches!(event, Event::Answer { .. }) {
                self.out.push_back(event);
            }
        }
        self.out.push_back(Event::Forget(pool));
    }
}

/// How many words of peers about pools that cannot be ours are kept.
pub const MAX_STRANGE: usize = 1024;
