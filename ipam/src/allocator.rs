//! The allocator of one pool as the node sees it: calls in, events out.
//!
//! Every call puts its input in place and then runs [`Allocator::work`], which does all that has
//! become possible: make a ring, settle addresses, answer requests, ask other peers, open
//! barriers. So there is one order in which things happen, whatever woke us.
//!
//! Invariants: what an answer or a message rests on is in the [`Event::Persist`] before it. An
//! address given to a container is in a range that is ours, of a ring that we hold. Nothing is
//! allocated by making an allocator.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};
use weft_wire::{Malformed, PeerName};

use crate::addr::{Addr, Cidr};
use crate::asks::Asks;
use crate::consensus::{Acceptor, Election};
use crate::council::{Council, Votes};
use crate::digest::Digest;
use crate::event::{Answer, Config, Event};
use crate::fence::Fence;
use crate::message::{Message, unknown};
use crate::requests::{FreeError, Pending, RequestError, RequestId, Wish};
use crate::ring::{Ring, Takeover};
use crate::rules::{Clock, Rule};
use crate::saved::{LoadError, Saved, check_config};
use crate::settle::Settling;
use crate::space::{ContainerId, Hold, Space};
use crate::sync::Sync;
use crate::watch::Watch;

/// A peer that came within reach hears of a proposal under way after this and up to as much again.
const HURRY_MS: u64 = 50;

/// Gives out the addresses of one pool.
#[derive(Debug, Clone)]
pub struct Allocator {
    pub(crate) config: Config,
    pub(crate) rng: ChaCha20Rng,
    pub(crate) ring: Option<Ring>,
    /// Of `ring`, always.
    pub(crate) digest: Digest,
    pub(crate) space: Space,
    pub(crate) pending: Vec<Pending>,
    pub(crate) election: Election,
    /// A peer that may not found a ring needs one.
    pub(crate) wanted: bool,
    /// When, as an observer, we ask for a ring again.
    pub(crate) plea: Option<Instant>,
    pub(crate) asks: Asks,
    pub(crate) settling: Settling,
    pub(crate) sync: Sync,
    pub(crate) clock: Clock,
    pub(crate) fence: Fence,
    pub(crate) watch: Watch,
    pub(crate) council: Council,
    pub(crate) reachable: BTreeSet<PeerName>,
    pub(crate) targets: usize,
    pub(crate) malformed: u64,
    out: Out,
}

/// What leaves: `events` are complete; `effects` wait for the state they rest on to be written.
#[derive(Debug, Clone, Default)]
struct Out {
    events: VecDeque<Event>,
    effects: Vec<Event>,
    dirty: bool,
}

impl Allocator {
    /// An allocator, as it was when `saved` was written. Randomness comes from the seed alone.
    ///
    /// The first events may be an announcement and the conflicts that stand; nothing is allocated.
    ///
    /// # Errors
    /// The saved state is of another pool or peer or damaged, or the configuration makes no sense.
    pub fn new(
        config: Config,
        saved: Option<Saved>,
        seed: [u8; 32],
        now: Instant,
    ) -> Result<Self, LoadError> {
        check_config(&config)?;
        let space = Space::new(config.pool, config.reserved.iter().copied());
        let mut allocator = Self {
            rng: ChaCha20Rng::from_seed(seed),
            ring: None,
            digest: Digest::NONE,
            space,
            pending: Vec::new(),
            election: Election::new(Acceptor::default()),
            wanted: false,
            plea: None,
            asks: Asks::default(),
            settling: Settling::default(),
            sync: Sync::default(),
            clock: Clock::new(config.uptime, now),
            fence: Fence::default(),
            watch: Watch::default(),
            council: Council::new(Votes::default()),
            reachable: BTreeSet::new(),
            targets: config.targets,
            malformed: 0,
            out: Out::default(),
            config,
        };
        if let Some(saved) = saved {
            allocator.load(saved, now)?;
        }
        Ok(allocator)
    }

    /// Asks for an address of a subnet, the default one if none is given. A container that has
    /// one there gets the same again.
    pub fn allocate(
        &mut self,
        id: RequestId,
        container: ContainerId,
        subnet: Option<Cidr>,
        now: Instant,
    ) {
        let subnet = subnet.unwrap_or(self.config.default_subnet);
        self.submit(id, Wish::Allocate { container, subnet }, now);
    }

    /// Asks for just this address. Outside of the pool it is only written down.
    pub fn claim(
        &mut self,
        id: RequestId,
        container: ContainerId,
        addr: Addr,
        prefix: u8,
        now: Instant,
    ) {
        let wish = Wish::Claim {
            container,
            addr,
            prefix,
        };
        self.submit(id, wish, now);
    }

    /// Asks that there be a ring.
    pub fn prime(&mut self, id: RequestId, now: Instant) {
        self.submit(id, Wish::Prime, now);
    }

    /// Withdraws a request; there will be no answer to it.
    pub fn cancel(&mut self, id: RequestId) {
        self.pending.retain(|pending| pending.id != id);
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
        if !self.space.free(container, addr) {
            let container = container.clone();
            return Err(FreeError::NotHeld { container, addr });
        }
        self.dirty();
        self.work(now);
        Ok(())
    }

    /// Takes all addresses back from a container and ends its waiting requests; which addresses,
    /// with their prefix lengths.
    pub fn free_all(&mut self, container: &ContainerId, now: Instant) -> Vec<(Addr, u8)> {
        let error = RequestError::Freed {
            container: container.clone(),
        };
        self.answer_all(|pending| pending.is_of(container), &error);
        let held: Vec<_> = self.space.of(container).collect();
        for (addr, _) in &held {
            self.space.free(container, *addr);
            self.dirty();
        }
        self.work(now);
        held.into_iter().map(|(a, h)| (a, h.prefix)).collect()
    }

    /// A container's addresses and their prefix lengths, without those it lost to another peer.
    pub fn lookup(&self, container: &ContainerId) -> Vec<(Addr, u8)> {
        let held = self.space.of(container);
        held.filter(|(_, h)| !matches!(h.hold, Hold::Conflict(_)))
            .map(|(addr, holding)| (addr, holding.prefix))
            .collect()
    }

    /// All addresses held on this host with their prefix lengths, lost ones included.
    pub fn holders(&self) -> impl Iterator<Item = (&ContainerId, Addr, u8)> {
        let held = self.space.iter();
        held.map(|(container, addr, holding)| (container, addr, holding.prefix))
    }

    /// Makes the ranges of a peer that is gone for good ours, and it no elector any more; how many
    /// addresses that are. None of a peer that is reachable, or of us.
    pub fn take_over(&mut self, peer: PeerName, now: Instant) -> u128 {
        let Some(mut ring) = self.ring.clone().filter(|_| !self.is_live(peer)) else {
            return 0;
        };
        if peer == self.config.us {
            return 0;
        }
        let taken = ring.take_over(peer, self.config.us, Takeover::Stranger);
        ring.vouch(peer, self.config.us);
        if ring.digest() != self.digest {
            self.set_ring(ring, now);
            self.work(now);
        }
        taken
    }

    /// Gives all our ranges to a reachable peer, one that owns some already if there is one, and
    /// ends all requests and holdings in the pool; to whom. `None`, and nothing changed, if nobody
    /// is reachable or we own nothing.
    pub fn hand_over(&mut self, now: Instant) -> Option<PeerName> {
        let mut ring = self.ring.clone()?;
        let live = self.live();
        let mut owners = ring.entries().values().map(|entry| entry.owner);
        let heir = owners
            .find(|owner| live.contains(owner))
            .or_else(|| live.first().copied())?;
        if ring.take_over(self.config.us, heir, Takeover::Owner) == 0 {
            return None;
        }
        ring.vouch(self.config.us, heir);
        self.space.clear();
        self.answer_all(|_| true, &RequestError::HandedOver);
        self.set_ring(ring, now);
        // We may be gone before anybody can ask for the ring: the neighbours keep it for the heir.
        for peer in self
            .sync
            .neighbours()
            .chain([heir])
            .collect::<BTreeSet<_>>()
        {
            self.send_ring(peer, 0);
        }
        self.work(now);
        Some(heir)
    }

    /// The time since the host's start, times of sleep included; to be told before any other call.
    pub fn set_uptime(&mut self, uptime: Duration, now: Instant) {
        self.clock = Clock::new(uptime.max(self.clock.last()), now);
    }

    /// How many peers we are told to connect to.
    pub fn set_targets(&mut self, targets: usize) {
        self.targets = targets;
    }

    /// Who can be reached over the mesh, without us: those that control messages get to.
    pub fn set_reachable(&mut self, peers: BTreeSet<PeerName>, now: Instant) {
        let more = peers.difference(&self.reachable).next().is_some();
        self.reachable = peers;
        self.reach_changed(more, now);
    }

    /// A connection came up: its barrier stands until [`Event::Synced`].
    pub fn handle_connected(&mut self, neighbour: PeerName, now: Instant) {
        self.sync.connect(neighbour, now);
        self.forget_synced(neighbour);
        self.begin_grace(now);
        self.reach_changed(true, now);
    }

    /// A connection is gone.
    pub fn handle_disconnected(&mut self, neighbour: PeerName, now: Instant) {
        self.sync.disconnect(neighbour);
        self.forget_synced(neighbour);
        self.reach_changed(false, now);
    }

    /// A peer announced the digest of its ring.
    pub fn handle_digest(&mut self, peer: PeerName, digest: Digest, now: Instant) {
        if peer != self.config.us {
            self.sync.suspect(peer, digest, self.digest, now);
            self.work(now);
        }
    }

    /// Another peer's allocator sent this.
    ///
    /// # Errors
    /// It is none of our messages; nothing was changed, but that it is counted.
    pub fn handle_message(
        &mut self,
        from: PeerName,
        bytes: &[u8],
        now: Instant,
    ) -> Result<(), Malformed> {
        let done = match Message::parse(bytes, self.config.pool) {
            // A clone of us; what it says of itself is not to be mixed up with what we know.
            Ok(_) if from == self.config.us => Err(unknown("sender, which has our own name", 0)),
            Ok(message) => self.dispatch(from, message, now),
            Err(malformed) => Err(malformed),
        };
        if done.is_err() {
            self.malformed = self.malformed.saturating_add(1);
        }
        self.work(now);
        done
    }

    /// The time of [`Self::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.work(now);
    }

    /// What the node has to do next.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.out.events.pop_front()
    }

    /// When to call [`Self::handle_timeout`], and what for.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let sync = self.sync.deadline(|peer| self.is_live(peer));
        let wanted = self.ring.is_some();
        let timers = [
            (self.birth_deadline(), "make a ring"),
            (sync, "ask for a peer's ring"),
            (self.settle_deadline(), "wait for addresses to settle"),
            (
                self.asks.deadline().filter(|_| wanted),
                "ask for space again",
            ),
            (self.fence_deadline(), "ask the electors"),
            (self.council.deadline(), "rule about a dead peer"),
            (self.aside_deadline(), "let go of addresses set aside"),
        ];
        let due = timers
            .into_iter()
            .filter_map(|(at, why)| at.map(|at| (at, why)));
        due.min_by_key(|(at, _)| *at)
    }

    /// All addresses there are.
    pub const fn pool(&self) -> Cidr {
        self.config.pool
    }

    /// The digest of our ring, [`Digest::NONE`] without one.
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// Does all that has become possible, then lets out what came of it.
    pub(crate) fn work(&mut self, now: Instant) {
        self.seek_ring(now);
        self.settle(now);
        self.deliberate(now);
        self.release_aside(now);
        self.ask_electors(now);
        self.serve(now);
        self.ask(now);
        let live = self.live();
        let questions = self
            .sync
            .questions(self.digest, |peer| live.contains(&peer), now);
        for (peer, nonce) in questions {
            let digest = self.digest;
            self.send(peer, &Message::Sync { nonce, digest });
        }
        let barrier = self.config.rules.keep(Rule::Barrier);
        if !barrier {
            self.sync.skip();
        }
        if !barrier || !self.settling(now) && !self.undecided(now) {
            for peer in self.sync.open() {
                self.effect(Event::Synced { peer });
            }
        }
        self.flush();
    }

    /// Puts a ring in place of ours, older or none, and sees to all that hangs on it.
    pub(crate) fn set_ring(&mut self, ring: Ring, now: Instant) {
        self.digest = ring.digest();
        self.settling.know(self.digest);
        self.ring = Some(ring);
        self.wanted = false;
        self.election.stop();
        self.dirty();
        self.review_electors(now);
        self.review_holdings(now);
        self.reconsider_asks(now);
        self.out
            .effects
            .retain(|e| !matches!(e, Event::Announce { .. }));
        self.announce();
    }

    pub(crate) fn dirty(&mut self) {
        self.out.dirty = true;
    }

    pub(crate) fn effect(&mut self, event: Event) {
        self.out.effects.push(event);
    }

    pub(crate) fn announce(&mut self) {
        let (pool, digest) = (self.config.pool, self.digest);
        self.effect(Event::Announce { pool, digest });
    }

    pub(crate) fn answer(&mut self, id: RequestId, result: Result<Answer, RequestError>) {
        self.effect(Event::Answer { id, result });
    }

    pub(crate) fn send(&mut self, to: PeerName, message: &Message) {
        let bytes = message.emit(self.config.pool);
        self.effect(Event::Send { to, bytes });
    }

    pub(crate) fn send_all(&mut self, message: &Message) {
        for peer in self.live() {
            self.send(peer, message);
        }
    }

    /// Sends our ring with fresh advice in it, or word that we have none.
    pub(crate) fn send_ring(&mut self, to: PeerName, nonce: u32) {
        if let Some(ring) = &mut self.ring {
            ring.advise(self.config.us, |span| self.space.free_in(span));
        }
        let ring = self.ring.clone();
        self.send(to, &Message::Ring { nonce, ring });
    }

    pub(crate) fn is_live(&self, peer: PeerName) -> bool {
        self.reachable.contains(&peer) || self.sync.is_neighbour(peer)
    }

    /// Everybody we can send to, without us.
    pub(crate) fn live(&self) -> BTreeSet<PeerName> {
        let mut live = self.reachable.clone();
        live.extend(self.sync.neighbours());
        live.remove(&self.config.us);
        live
    }

    /// What has not been polled of an earlier connection must not open the barrier of a later one.
    fn forget_synced(&mut self, neighbour: PeerName) {
        let stale = |event: &Event| matches!(event, Event::Synced { peer } if *peer == neighbour);
        self.out.events.retain(|event| !stale(event));
    }

    fn reach_changed(&mut self, more: bool, now: Instant) {
        self.reconsider_asks(now);
        if more {
            let jitter = HURRY_MS + self.rng.next_u64() % HURRY_MS;
            self.election.hurry(now + Duration::from_millis(jitter));
            self.plea = None;
            if !self.settling.companions.is_empty() {
                self.settling.ask_again = Some(now);
            }
        }
        self.work(now);
    }

    fn release_aside(&mut self, now: Instant) {
        if self.space.release_aside(self.clock.uptime(now)) {
            self.dirty();
        }
    }

    fn aside_deadline(&self) -> Option<Instant> {
        let next = self.space.next_release();
        next.map(|uptime| self.clock.instant(uptime))
    }

    fn reconsider_asks(&mut self, now: Instant) {
        let live = self.live();
        if let Some(ring) = &self.ring {
            self.asks.reconsider(ring, |peer| live.contains(&peer), now);
        }
    }

    pub(crate) fn flush(&mut self) {
        if std::mem::take(&mut self.out.dirty) {
            let saved = self.saved();
            self.out.events.push_back(Event::Persist(saved));
        }
        self.out.events.extend(self.out.effects.drain(..));
    }
}
