//! All pools of one peer: an [`Allocator`] for each, seen as one machine.
//!
//! A peer is told of pools at its start, the first of which is the *default* one, and makes others
//! while it runs, for networks that want a subnet of their own. It also *joins* each pool it hears
//! of from another peer, though no container of it needs one: only so does the barrier of every
//! connection stand for all addresses that frames over it can carry. A peer that gives out no
//! addresses joins as an observer.
//!
//! Two pools that overlap lie one inside the other. The smaller is *dissolved* in the larger as soon
//! as a peer knows both: its containers' addresses are claimed in the larger one like after two
//! rings met. A pool the peer was told of at its start is never dissolved; peers whose such pools
//! overlap do not let each other in.
//!
//! Invariants: no two pools here overlap. A connection is synced when all its pools are.

mod joining;
mod priming;

pub use joining::MAX_STRANGE;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use thiserror::Error;
use weft_wire::{Malformed, PeerName};

use crate::addr::{Addr, Cidr, Unfit};
use crate::allocator::Allocator;
use crate::birth::Init;
use crate::digest::Digest;
use crate::event::{Answer, Event};
use crate::message::pool_of;
use crate::requests::{FreeError, RequestError, RequestId};
use crate::rules::{Clock, Rules, Times};
use crate::saved::{LoadError, Saved};
use crate::space::ContainerId;
use priming::Priming;

/// The most pools a peer takes part in; each may grow to a ring of a megabyte.
pub const MAX_POOLS: usize = 128;

/// What a peer is told of its pools at its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolsConfig {
    /// Who we are.
    pub us: PeerName,
    /// The pools, the default one first; none if we give out no addresses.
    pub pools: Vec<Cidr>,
    /// Of a pool that one of these overlaps, addresses come from there unless a request says otherwise;
    /// of others, from anywhere.
    pub default_subnets: Vec<Cidr>,
    /// How the first ring of each pool is made.
    pub init: Init,
    /// How many peers we were told to connect to.
    pub targets: usize,
    /// Addresses that are never given out; the same on every peer.
    pub reserved: Vec<Addr>,
    /// How long the electors' business takes; the same on every peer.
    pub times: Times,
    /// All kept, but in a test.
    pub rules: Rules,
    /// The time since the host's start, times of sleep included (CLOCK_BOOTTIME).
    pub uptime: Duration,
}

/// Why there can be no such pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AddPoolError {
    /// Containers cannot have addresses of it.
    #[error("no addresses can be given out of the range {pool}: {why}")]
    Unfit {
        /// The range asked for.
        pool: Cidr,
        /// Why not.
        why: Unfit,
    },
    /// It would hold a pool that is there.
    #[error("the range {pool} overlaps the range {with}, which is in use")]
    Overlaps {
        /// The range asked for.
        pool: Cidr,
        /// The pool that is there.
        with: Cidr,
    },
    /// There are [`MAX_POOLS`].
    #[error("there are {MAX_POOLS} address ranges already, and no more can be kept")]
    TooMany,
}

/// The allocators of all pools.
#[derive(Debug, Clone)]
pub struct Pools {
    config: PoolsConfig,
    rng: ChaCha20Rng,
    clock: Clock,
    allocators: BTreeMap<Cidr, Allocator>,
    /// Connections whose barrier stands, and for which pools.
    unsynced: BTreeMap<PeerName, BTreeSet<Cidr>>,
    /// Requests for rings of several pools, each of which answers.
    priming: BTreeMap<RequestId, Priming>,
    neighbours: BTreeSet<PeerName>,
    reachable: BTreeSet<PeerName>,
    /// Pools others have that cannot be ours too, who spoke of them, and why not.
    strange: BTreeMap<(Cidr, PeerName), AddPoolError>,
    /// How often there was no room for another one of these.
    left_out: u64,
    /// Comes after all that the allocators have to say: so what moved from one pool to another is on
    /// the disk in its new place before it goes from the old one.
    out: VecDeque<Event>,
}

impl Pools {
    /// The pools we are told of, and those that were saved. Randomness comes from the seed alone.
    ///
    /// # Errors
    /// A saved state is another peer's or damaged, or the configuration makes no sense.
    pub fn new(
        config: PoolsConfig,
        saved: Vec<Saved>,
        seed: [u8; 32],
        now: Instant,
    ) -> Result<Self, LoadError> {
        let mut pools = Self {
            rng: ChaCha20Rng::from_seed(seed),
            clock: Clock::new(config.uptime, now),
            allocators: BTreeMap::new(),
            unsynced: BTreeMap::new(),
            priming: BTreeMap::new(),
            neighbours: BTreeSet::new(),
            reachable: BTreeSet::new(),
            strange: BTreeMap::new(),
            left_out: 0,
            out: VecDeque::new(),
            config,
        };
        let mut saved: BTreeMap<Cidr, Saved> = saved.into_iter().map(|s| (s.pool, s)).collect();
        for pool in pools.config.pools.clone() {
            if let Some(other) = pools.overlapping(pool) {
                return Err(LoadError::Overlap { pool, other });
            }
            let state = saved.remove(&pool);
            pools.insert(pool, state, now)?;
        }
        // The largest first, so that a smaller one inside finds it; one that is around a pool we
        // are told of stays on the disk as it is, for a start with other arguments.
        let mut saved: Vec<Saved> = saved.into_values().collect();
        saved.sort_by_key(|state| state.pool.prefix());
        for state in saved {
            let pool = state.pool;
            match pools.overlapping(pool) {
                None => pools.insert(pool, Some(state), now)?,
                Some(around) if around.prefix() < pool.prefix() => {
                    let old = pools.build(pool, Some(state), now)?;
                    pools.dissolve(old, around, now);
                }
                Some(_) => {}
            }
        }
        Ok(pools)
    }

    /// Sees to it that addresses of a subnet can be had; the pool they are of, which may be larger.
    ///
    /// # Errors
    /// See [`AddPoolError`]; nothing was changed.
    pub fn add(&mut self, subnet: Cidr, now: Instant) -> Result<Cidr, AddPoolError> {
        if let Some(pool) = self.overlapping(subnet) {
            return match pool.prefix() <= subnet.prefix() {
                true => Ok(pool),
                false => Err(AddPoolError::Overlaps {
                    pool: subnet,
                    with: pool,
                }),
            };
        }
        self.join(subnet, now)?;
        Ok(subnet)
    }

    /// Asks for an address of a subnet, the default one if none is given; see
    /// [`Allocator::allocate`].
    pub fn allocate(
        &mut self,
        id: RequestId,
        container: ContainerId,
        subnet: Option<Cidr>,
        now: Instant,
    ) {
        let pool = match subnet {
            Some(subnet) => self.overlapping(subnet).or_else(|| self.default_pool()),
            None => self.default_pool(),
        };
        match pool.and_then(|pool| self.allocators.get_mut(&pool)) {
            Some(allocator) => allocator.allocate(id, container, subnet, now),
            None => self.answer(id, Err(RequestError::NoPool)),
        }
    }

    /// Asks for just this address; see [`Allocator::claim`]. What is in no pool is the operator's
    /// affair.
    pub fn claim(
        &mut self,
        id: RequestId,
        container: ContainerId,
        addr: Addr,
        prefix: u8,
        now: Instant,
    ) {
        let pool = self.pool_with(addr).or_else(|| self.default_pool());
        match pool.and_then(|pool| self.allocators.get_mut(&pool)) {
            Some(allocator) => allocator.claim(id, container, addr, prefix, now),
            None => self.answer(id, Ok(Answer::Claimed)),
        }
    }

    /// Withdraws a request; there will be no answer to it.
    pub fn cancel(&mut self, id: RequestId) {
        self.priming.remove(&id);
        self.allocators.values_mut().for_each(|a| a.cancel(id));
    }

    /// Takes an address back from a container.
    ///
    /// # Errors
    /// The container does not hold it.
    pub fn free(
        &mut self,
        container: &ContainerId,
        addr: Addr,
        now: Instant,
    ) -> Result<(), FreeError> {
        let mut held = self.allocators.values_mut();
        match held.find(|a| a.space.get(container, addr).is_some()) {
            Some(allocator) => allocator.free(container, addr, now),
            None => Err(FreeError::NotHeld {
                container: container.clone(),
                addr,
            }),
        }
    }

    /// Takes all addresses back from a container and ends its waiting requests; which addresses,
    /// with their prefix lengths, in order.
    pub fn free_all(&mut self, container: &ContainerId, now: Instant) -> Vec<(Addr, u8)> {
        let all = self.allocators.values_mut();
        let mut freed: Vec<_> = all.flat_map(|a| a.free_all(container, now)).collect();
        freed.sort_unstable();
        freed
    }

    /// A container's addresses and their prefix lengths in order, without those it lost.
    pub fn lookup(&self, container: &ContainerId) -> Vec<(Addr, u8)> {
        let all = self.allocators.values();
        let mut held: Vec<_> = all.flat_map(|a| a.lookup(container)).collect();
        held.sort_unstable();
        held
    }

    /// All addresses held on this host with their prefix lengths, lost ones included.
    pub fn holders(&self) -> impl Iterator<Item = (&ContainerId, Addr, u8)> {
        self.allocators.values().flat_map(Allocator::holders)
    }

    /// Makes the ranges of a peer that is gone for good ours in every pool; how many addresses that
    /// are. See [`Allocator::take_over`].
    pub fn take_over(&mut self, peer: PeerName, now: Instant) -> u128 {
        let all = self.allocators.values_mut();
        all.map(|a| a.take_over(peer, now)).sum()
    }

    /// Gives all our ranges to others; to whom those of the first pool went that had any. See
    /// [`Allocator::hand_over`].
    pub fn hand_over(&mut self, now: Instant) -> Option<PeerName> {
        let all = self.allocators.values_mut();
        let heirs: Vec<_> = all.filter_map(|a| a.hand_over(now)).collect();
        heirs.first().copied()
    }

    /// How many peers we are told to connect to.
    pub fn set_targets(&mut self, targets: usize) {
        self.config.targets = targets;
        self.allocators
            .values_mut()
            .for_each(|a| a.set_targets(targets));
    }

    /// The time since the host's start, times of sleep included; to be told before any other call.
    pub fn set_uptime(&mut self, uptime: Duration, now: Instant) {
        self.clock = Clock::new(uptime.max(self.clock.last()), now);
        for allocator in self.allocators.values_mut() {
            allocator.set_uptime(uptime, now);
        }
    }

    /// Who can be reached over the mesh, without us.
    pub fn set_reachable(&mut self, peers: BTreeSet<PeerName>, now: Instant) {
        for allocator in self.allocators.values_mut() {
            allocator.set_reachable(peers.clone(), now);
        }
        self.reachable = peers;
    }

    /// A connection came up: its barrier stands until [`Event::Synced`].
    pub fn handle_connected(&mut self, neighbour: PeerName, now: Instant) {
        self.forget_synced(neighbour);
        self.neighbours.insert(neighbour);
        let pools = self.allocators.keys().copied().collect();
        self.unsynced.insert(neighbour, pools);
        for allocator in self.allocators.values_mut() {
            allocator.handle_connected(neighbour, now);
        }
        self.open(neighbour);
    }

    /// A connection is gone.
    pub fn handle_disconnected(&mut self, neighbour: PeerName, now: Instant) {
        self.forget_synced(neighbour);
        self.neighbours.remove(&neighbour);
        self.unsynced.remove(&neighbour);
        for allocator in self.allocators.values_mut() {
            allocator.handle_disconnected(neighbour, now);
        }
    }

    /// A peer announced the digest of its ring of a pool.
    pub fn handle_digest(&mut self, peer: PeerName, pool: Cidr, digest: Digest, now: Instant) {
        if let Some(allocator) = self.heard_of(peer, pool, now) {
            allocator.handle_digest(peer, digest, now);
        }
    }

    /// A peer announces no ring of this pool any more.
    pub fn handle_digest_gone(&mut self, peer: PeerName, pool: Cidr) {
        self.strange.remove(&(pool, peer));
    }

    /// Another peer's allocator sent this. What is about a pool that cannot be ours too is dropped;
    /// [`Self::strange`] has it.
    ///
    /// # Errors
    /// It is none of our messages; nothing was changed, but that it is counted.
    pub fn handle_message(
        &mut self,
        from: PeerName,
        bytes: &[u8],
        now: Instant,
    ) -> Result<(), Malformed> {
        let pool = pool_of(bytes)?;
        match self.heard_of(from, pool, now) {
            Some(allocator) => allocator.handle_message(from, bytes, now),
            None => Ok(()),
        }
    }

    /// The time of [`Self::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.allocators
            .values_mut()
            .for_each(|a| a.handle_timeout(now));
    }

    /// What the node has to do next.
    pub fn poll_event(&mut self) -> Option<Event> {
        loop {
            let mut all = self.allocators.iter_mut();
            let next = all.find_map(|(pool, a)| Some((*pool, a.poll_event()?)));
            let Some((pool, event)) = next else {
                return self.out.pop_front();
            };
            match event {
                Event::Synced { peer } => {
                    if let Some(pools) = self.unsynced.get_mut(&peer) {
                        pools.remove(&pool);
                    }
                    self.open(peer);
                }
                Event::Answer { id, result } => {
                    if let Some(result) = self.answered(id, result) {
                        return Some(Event::Answer { id, result });
                    }
                }
                other @ (Event::Persist(_)
                | Event::Joined(_)
                | Event::Forget(_)
                | Event::Send { .. }
                | Event::Announce { .. }
                | Event::Conflict { .. }) => return Some(other),
            }
        }
    }

    /// When to call [`Self::handle_timeout`], and what for.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let all = self.allocators.values();
        all.filter_map(Allocator::poll_timeout)
            .min_by_key(|(at, _)| *at)
    }

    /// The pools and their allocators, the default one first.
    pub fn iter(&self) -> impl Iterator<Item = &Allocator> {
        let default = self.default_pool();
        let first = default.and_then(|pool| self.allocators.get(&pool));
        let others = self
            .allocators
            .iter()
            .filter(move |(pool, _)| Some(**pool) != default);
        first.into_iter().chain(others.map(|(_, a)| a))
    }

    /// The allocator of the pool that addresses come from unless a request says otherwise.
    pub fn default_allocator(&self) -> Option<&Allocator> {
        self.allocators.get(&self.default_pool()?)
    }

    /// Pools that peers speak of and that cannot be ours too, one of those peers, and why: no frames flow to
    /// them.
    pub fn strange(&self) -> impl Iterator<Item = (Cidr, PeerName, AddPoolError)> {
        let here = self.strange.iter();
        let mut here = here.filter(|((_, peer), _)| self.is_here(peer)).peekable();
        std::iter::from_fn(move || {
            let ((pool, peer), why) = here.next()?;
            while here.next_if(|((next, _), _)| next == pool).is_some() {}
            Some((*pool, *peer, *why))
        })
    }

    /// How often a peer's word of a pool that cannot be ours was not kept because of [`MAX_STRANGE`]: the reason
    /// is not shown, and frames do not flow to that peer all the same.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// What a peer said of its pools stands while the way to it is lost: it is not said again.
    fn is_here(&self, peer: &PeerName) -> bool {
        self.reachable.contains(peer) || self.neighbours.contains(peer)
    }

    fn default_pool(&self) -> Option<Cidr> {
        self.config.pools.first().copied()
    }

    fn overlapping(&self, subnet: Cidr) -> Option<Cidr> {
        let mut pools = self.allocators.keys().copied();
        pools.find(|pool| pool.overlaps(subnet))
    }

    fn pool_with(&self, addr: Addr) -> Option<Cidr> {
        let mut pools = self.allocators.keys().copied();
        pools.find(|pool| pool.contains(addr))
    }

    /// Says that frames may flow to a neighbour if nothing stands against it any more.
    fn open(&mut self, peer: PeerName) {
        if self.unsynced.get(&peer).is_some_and(BTreeSet::is_empty) {
            self.unsynced.remove(&peer);
            self.out.push_back(Event::Synced { peer });
        }
    }

    /// What has not been polled of an earlier connection must not open the barrier of a later one.
    fn forget_synced(&mut self, neighbour: PeerName) {
        let stale = |event: &Event| matches!(event, Event::Synced { peer } if *peer == neighbour);
        self.out.retain(|event| !stale(event));
    }

    fn answer(&mut self, id: RequestId, result: Result<Answer, RequestError>) {
        self.out.push_back(Event::Answer { id, result });
    }
}

#[cfg(test)]
mod tests;
