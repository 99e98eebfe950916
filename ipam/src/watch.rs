//! The electors' side of the fence: who asked us when, and whether we acknowledge it.
//!
//! All is counted by this host's uptime and forgotten with the process: our start counts as if every
//! peer had asked just then, and so does every change of the electors, because those before may have
//! acknowledged what we know nothing of.
//!
//! Invariant: we never acknowledge what a ruling may take away that we were asked to vote for and whose
//! outcome we do not know.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use weft_wire::PeerName;

use crate::addr::Addr;
use crate::allocator::Allocator;
use crate::council::Ruling;
use crate::message::{Ask, Council, Message};
use crate::ring::{MAX_FOUNDERS, Ring, RingId};
use crate::rules::Rule;

/// How many addresses in use at others are remembered in all; what is over is not set aside.
const MAX_USED: usize = 262_144;

/// What we know as an elector.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watch {
    /// The uptime at which everybody counts as heard of.
    since: Duration,
    /// Under which ring and electors.
    of: Option<(RingId, BTreeSet<PeerName>)>,
    heard: BTreeMap<PeerName, Heard>,
    pub(crate) opposed: Option<Opposed>,
}

/// A ruling that we were asked to vote for and did not, because it is about somebody who is there.
#[derive(Debug, Clone)]
pub(crate) struct Opposed {
    pub(crate) ruling: Ruling,
    /// Our uptime when we were asked first.
    pub(crate) since: Duration,
}

#[derive(Debug, Clone)]
struct Heard {
    /// When it began to ask and went on.
    first: Duration,
    last: Duration,
    willing: bool,
    mark: u64,
    used: Vec<Addr>,
}

impl Allocator {
    /// The ring was replaced, or read from the disk: begins to count anew if it is another one or has
    /// other electors.
    pub(crate) fn review_electors(&mut self, now: Instant) {
        let Some(ring) = &self.ring else {
            return;
        };
        let (id, electors) = (ring.id(), ring.roll().electors());
        let rulings = ring.roll().rulings();
        let other_ring = self.watch.of.as_ref().is_none_or(|(of, _)| *of != id);
        if other_ring {
            self.watch.heard.clear();
            self.fence.clear();
        }
        let changed = self.watch.of.as_ref().is_none_or(|(_, e)| *e != electors);
        if (other_ring || changed) && self.config.rules.keep(Rule::Recount) {
            self.watch.since = self.clock.uptime(now);
        }
        self.watch.of = Some((id, electors));
        if self.council.begin(id, rulings + 1) {
            self.watch.opposed = None;
            self.dirty();
        }
        self.hurry_electors(now);
    }

    /// For how long a peer has not asked us.
    pub(crate) fn silence(&self, peer: PeerName, now: Instant) -> Duration {
        let heard = self.watch.heard.get(&peer).map(|heard| heard.last);
        let last = heard.unwrap_or_default().max(self.watch.since);
        self.clock.uptime(now).saturating_sub(last)
    }

    /// A peer wants to hear that we know what it owns.
    pub(crate) fn handle_ask(&mut self, from: PeerName, id: RingId, ask: Ask, now: Instant) {
        let Some(ring) = self.ring.as_ref().filter(|ring| ring.id() == id) else {
            return self.send_ring(from, 0);
        };
        if ask.digest != ring.digest_of_part(from) {
            if ask.urgent {
                self.send_ring(from, 0);
            }
            return;
        }
        if !ring.roll().electors().contains(&self.config.us) {
            return; // by the same electors it knows that too
        }
        let nonce = ask.nonce;
        let say = if self.may_acknowledge(from, ring) {
            let tell = self.note_heard(from, ask, now);
            Council::Acked { nonce, tell }
        } else {
            Council::Refused { nonce }
        };
        self.send(from, &Message::Council { ring: id, say });
    }

    fn may_acknowledge(&self, from: PeerName, ring: &Ring) -> bool {
        let rules = self.config.rules;
        let electors_stay = self.council.electors_stay(&ring.roll().electors());
        if !electors_stay && rules.keep(Rule::Outcome) {
            return false;
        }
        if !rules.keep(Rule::Refusal) {
            return true;
        }
        let owned = ring.owned_by(from);
        let mut rulings = self.rulings_under_way();
        !rulings.any(|ruling| ruling.concerns(from, &owned))
    }

    /// What we voted for without knowing the outcome, and what we are against.
    pub(crate) fn rulings_under_way(&self) -> impl Iterator<Item = &Ruling> {
        let opposed = self.watch.opposed.iter().map(|opposed| &opposed.ruling);
        opposed.chain(self.council.accepted())
    }

    /// Notes that a peer asked; whether it is to tell which addresses it uses.
    fn note_heard(&mut self, from: PeerName, ask: Ask, now: Instant) -> bool {
        let last = self.clock.uptime(now);
        let gap = self.config.times.season;
        let watch = &mut self.watch;
        if watch.heard.len() >= MAX_FOUNDERS && !watch.heard.contains_key(&from) {
            return false; // it counts as heard of only since our start
        }
        let heard = watch.heard.entry(from).or_insert(Heard {
            first: last,
            last,
            willing: ask.willing,
            mark: 0,
            used: Vec::new(),
        });
        if last.saturating_sub(heard.last) > gap {
            heard.first = last;
        }
        heard.last = last;
        heard.willing = ask.willing;
        heard.mark != ask.mark
    }

    pub(crate) fn handle_used(&mut self, from: PeerName, id: RingId, mark: u64, addrs: Vec<Addr>) {
        if !self.has_ring(id) {
            return;
        }
        let others = self.watch.heard.iter().filter(|(peer, _)| **peer != from);
        let known: usize = others.map(|(_, heard)| heard.used.len()).sum();
        if let Some(heard) = self.watch.heard.get_mut(&from) {
            heard.mark = mark;
            heard.used = if known + addrs.len() <= MAX_USED {
                addrs
            } else {
                Vec::new()
            };
        }
    }

    /// The addresses that peers had in use when they last told us.
    pub(crate) fn used_by(&self, peers: &BTreeSet<PeerName>) -> BTreeSet<Addr> {
        let heard = peers.iter().filter_map(|peer| self.watch.heard.get(peer));
        heard.flat_map(|heard| &heard.used).copied().collect()
    }

    /// A peer that could be an elector: it owns something, is within reach, and asked all through
    /// the season.
    pub(crate) fn candidate(&self, ring: &Ring, now: Instant) -> Option<PeerName> {
        let electors = ring.roll().electors();
        let owners = ring.owners();
        let uptime = self.clock.uptime(now);
        let season = self.config.times.season;
        let heard = self.watch.heard.iter().filter(|(peer, heard)| {
            let lasting = uptime.saturating_sub(heard.first) >= season
                && uptime.saturating_sub(heard.last) < season;
            let able = self.is_live(**peer) && owners.contains_key(*peer);
            heard.willing && lasting && able && !electors.contains(*peer)
        });
        heard.map(|(peer, _)| *peer).next()
    }

    /// When the next peer will have been silent long enough to be taken over, of those out of reach.
    pub(crate) fn next_silence(&self, ring: &Ring, now: Instant) -> Option<Instant> {
        let missing = self.missing(ring).into_iter();
        let left = missing
            .map(|peer| {
                self.config
                    .times
                    .takeover
                    .saturating_sub(self.silence(peer, now))
            })
            .filter(|left| !left.is_zero());
        left.min().map(|left| now + left)
    }

    /// Owners and electors out of reach.
    pub(crate) fn missing(&self, ring: &Ring) -> BTreeSet<PeerName> {
        let mut peers: BTreeSet<_> = ring.owners().into_keys().collect();
        peers.extend(ring.roll().electors());
        peers.retain(|peer| *peer != self.config.us && !self.is_live(*peer));
        peers
    }
}
