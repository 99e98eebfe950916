//! What is shown of other peers: one run each, compared with what was shown before.
//!
//! * A peer is shown by its newest run that holds its `peer` entry. A run writes that entry last of
//!   all it starts with, so a restarted peer takes over from its old self complete, and what it still
//!   has is never withdrawn in between. A run that deleted its `peer` entry has left.
//! * A peer is *within reach* while it is our neighbour, or joined with us over connections that both
//!   their ends tell of and that are not relayed: then word of it would come. A peer out of reach stays for [`SILENCE`], in case
//!   it is only being started again; what is known of it is remembered for [`GRACE`].
//!
//! Nobody vouches for others, so a peer that is gone cannot be kept alive by hearsay: its neighbours
//! withdraw their connections with it, and there is no way to it any more. But what a peer out of reach
//! last said may be long untrue, for it and we may both have missed much. So its word, of its connections
//! too, counts again only when a neighbour *tells of it*, as it does of those within reach from there, and
//! we know as much of it as the neighbour does. Everybody tells of itself, so word of who is there
//! spreads from those who are; of who is gone there is nobody to begin.
//!
//! Invariants: per peer, `Live` comes before all else and `Dead` after all is withdrawn; every
//! `Withdrawn` was `Published`; no more than [`MAX_ENTRIES`] of a peer are shown.

mod tellers;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::debug;
use weft_wire::PeerName;

use crate::key::{Entry, LINKS, PEER, Topic};
use crate::run::Run;
use crate::store::{GRACE, Known, State, Store};
use crate::{Change, MAX_ENTRIES};

/// How long a peer out of reach is shown. A router that is started again within this time keeps its
/// names.
pub const SILENCE: Duration = Duration::from_secs(15);

/// Who is out of reach is found out at most so often: nothing comes of it before [`SILENCE`].
const SEARCH: Duration = Duration::from_secs(1);

/// All that is known of other peers.
#[derive(Debug)]
pub(crate) struct View {
    us: PeerName,
    neighbours: BTreeSet<PeerName>,
    peers: BTreeMap<PeerName, Peer>,
    /// When who is within reach was last found out from nothing.
    searched: Option<Instant>,
    /// Somebody may be out of reach.
    stale: bool,
    /// Peers that are out of reach and told of since the last look.
    told: BTreeSet<PeerName>,
}

/// What one look gave to tell, and to forget.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) changes: Vec<Change>,
    /// Entries passed over: malformed, too many, or of a kind we do not know.
    pub(crate) ignored: u64,
    /// Runs that nobody needs any more.
    pub(crate) forgotten: Vec<Run>,
    /// The latest runs of peers that were out of reach for a while and are not any more.
    pub(crate) back: Vec<Run>,
}

#[derive(Debug)]
struct Peer {
    /// The newest run there is word of.
    latest: Run,
    /// The newest that has come whole, or has left.
    newest: Option<(Run, Standing)>,
    /// Whom it has a connection with, and whether frames flow over it.
    links: BTreeMap<PeerName, bool>,
    /// What that was read from.
    links_at: Option<(Run, u64)>,
    /// Since when it is out of reach, if it is.
    lost: Option<Instant>,
    /// A neighbour has told of it since.
    is_told: bool,
    /// It was within reach once.
    was_reached: bool,
    shown: Option<Shown>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Here,
    /// It deleted its `peer` entry.
    Left,
}

/// What was told of one peer.
#[derive(Debug)]
struct Shown {
    run: Run,
    known: Known,
    entries: BTreeMap<Arc<str>, Arc<str>>,
}

impl View {
    pub(crate) fn new(us: PeerName) -> Self {
        Self {
            us,
            neighbours: BTreeSet::new(),
            peers: BTreeMap::new(),
            searched: None,
            stale: false,
            told: BTreeSet::new(),
        }
    }

    pub(crate) fn set_neighbours(&mut self, neighbours: &BTreeSet<PeerName>) {
        if self.neighbours != *neighbours {
            self.neighbours.clone_from(neighbours);
            self.searched = None;
            self.stale = true;
        }
    }

    /// The newest run of a peer that has come whole, or has left.
    pub(crate) fn newest(&self, peer: PeerName) -> Option<Run> {
        let (run, _) = self.peers.get(&peer)?.newest?;
        Some(run)
    }

    /// The latest run of each peer within reach.
    pub(crate) fn within_reach(&self) -> impl Iterator<Item = Run> {
        let peers = self.peers.values();
        peers
            .filter(|peer| peer.lost.is_none())
            .map(|peer| peer.latest)
    }

    /// A neighbour tells of a run that we know as far; whether that is something new.
    pub(crate) fn note_told(&mut self, run: Run) -> bool {
        let peer = self.peers.get_mut(&run.name);
        let Some(peer) = peer.filter(|peer| peer.lost.is_some() && peer.latest <= run) else {
            return false;
        };
        let is_new = !std::mem::replace(&mut peer.is_told, true);
        if is_new {
            self.told.insert(run.name);
        }
        is_new
    }

    /// Whether `peer` tells of a connection with `other`, as far as its word counts.
    fn is_linked(&self, peer: PeerName, other: PeerName) -> bool {
        self.link(peer, other).is_some()
    }

    /// The connection of `peer` with `other` as it tells of it: whether frames flow.
    fn link(&self, peer: PeerName, other: PeerName) -> Option<bool> {
        let peer = self.peers.get(&peer).filter(|peer| peer.counts());
        peer?.links.get(&other).copied()
    }

    /// Whether a run with our name lives: it and others tell of a connection that cannot be ours.
    pub(crate) fn is_alive(&self, run: Run, state: &State) -> bool {
        let theirs = links_of(state).into_keys();
        let mut theirs = theirs.filter(|other| !self.neighbours.contains(other));
        theirs.any(|other| self.is_reached(other) && self.is_linked(other, run.name))
    }

    /// Looks at the peers whose runs changed, and at what time has done to the others.
    pub(crate) fn look(
        &mut self,
        store: &Store,
        changed: &BTreeSet<PeerName>,
        now: Instant,
    ) -> Told {
        let mut told = Told::default();
        let mut open: BTreeSet<PeerName> = changed.clone();
        // Of ourselves there is nothing to tell.
        open.remove(&self.us);
        for name in &open {
            self.read(*name, store, now, &mut told.forgotten);
        }
        let mut ends = std::mem::take(&mut self.told);
        ends.extend(changed);
        self.extend_reach(ends, &mut open, &mut told.back);
        let recently = |at: Instant| now.saturating_duration_since(at) < SEARCH;
        if self.stale && !self.searched.is_some_and(recently) {
            (self.stale, self.searched) = (false, Some(now));
            self.find_reach(now, &mut open, &mut told.back);
        }
        let late = |peer: &Peer| peer.shown.is_some() && peer.is_lost_for(SILENCE, now);
        let late = self.peers.iter().filter(|(_, peer)| late(peer));
        open.extend(late.map(|(name, _)| *name));
        for name in open {
            if let Some(peer) = self.peers.get_mut(&name) {
                peer.tell(store, now, &mut told);
            }
        }
        self.peers.retain(|name, peer| {
            let keep = !peer.is_lost_for(GRACE, now);
            if !keep {
                told.forgotten
                    .extend(store.runs_of(*name).map(|(run, _)| run));
            }
            keep
        });
        told
    }

    fn read(&mut self, name: PeerName, store: &Store, now: Instant, forgotten: &mut Vec<Run>) {
        let Some((latest, _)) = store.runs_of(name).next_back() else {
            return;
        };
        let peer = self.peers.entry(name).or_insert_with(|| Peer {
            latest,
            newest: None,
            links: BTreeMap::new(),
            links_at: None,
            lost: Some(now),
            is_told: true,
            was_reached: false,
            shown: None,
        });
        peer.latest = latest;
        let mut whole = store.runs_of(name).rev();
        let Some((run, state, standing)) =
            whole.find_map(|(run, state)| Some((run, state, standing(state)?)))
        else {
            return;
        };
        forgotten.extend(whole.map(|(run, _)| run));
        self.stale |= peer.read_links(run, state, standing);
        peer.newest = Some((run, standing));
    }

    fn is_reached(&self, name: PeerName) -> bool {
        let is_there = |peer: &Peer| peer.lost.is_none();
        self.neighbours.contains(&name) || self.peers.get(&name).is_some_and(is_there)
    }

    /// Adds the peers that what is new puts within reach; they are to be told of.
    fn extend_reach(
        &mut self,
        ends: BTreeSet<PeerName>,
        open: &mut BTreeSet<PeerName>,
        back: &mut Vec<Run>,
    ) {
        let lost = self.peers.iter().filter(|(_, peer)| peer.lost.is_some());
        let mut lost: BTreeSet<PeerName> = lost.map(|(name, _)| *name).collect();
        let mut ends: Vec<PeerName> = ends.into_iter().collect();
        while !lost.is_empty()
            && let Some(name) = ends.pop()
        {
            let Some(peer) = self.peers.get(&name).filter(|peer| peer.counts()) else {
                continue;
            };
            let mut links = peer.links.keys();
            let is_near = |other| self.is_reached(other) && self.is_linked(other, name);
            if !self.is_reached(name) && !links.any(|other| is_near(*other)) {
                continue;
            }
            let is_beyond = |other| !self.is_reached(other) && self.is_linked(other, name);
            let beyond = peer.links.keys().copied();
            let beyond = beyond.filter(|other| lost.contains(other) && is_beyond(*other));
            ends.extend(beyond);
            if let Some(peer) = self.peers.get_mut(&name)
                && lost.remove(&name)
            {
                open.insert(name);
                back.extend(peer.reach());
            }
        }
    }

    /// Finds the peers within reach; those that were not, or are not any more, are to be told of.
    fn find_reach(&mut self, now: Instant, open: &mut BTreeSet<PeerName>, back: &mut Vec<Run>) {
        let mut reached = self.neighbours.clone();
        let mut ends: Vec<_> = reached.iter().copied().collect();
        while let Some(peer) = ends.pop() {
            let peers = self.peers.get(&peer).filter(|peer| peer.counts());
            let links = peers.map(|peer| &peer.links);
            for other in links.into_iter().flat_map(BTreeMap::keys) {
                if !reached.contains(other) && self.is_linked(*other, peer) {
                    reached.insert(*other);
                    ends.push(*other);
                }
            }
        }
        for (name, peer) in &mut self.peers {
            match (reached.contains(name) && peer.counts(), peer.lost) {
                (true, Some(_)) => back.extend(peer.reach()),
                (false, None) => (peer.lost, peer.is_told) = (Some(now), false),
                (true, None) | (false, Some(_)) => continue,
            }
            open.insert(*name);
        }
    }
}

impl Peer {
    /// Whether it is to be believed what it last said of its connections.
    fn counts(&self) -> bool {
        self.lost.is_none() || self.is_told
    }

    /// Takes over whom a run tells of a connection with; whether there is one less.
    fn read_links(&mut self, run: Run, state: &State, standing: Standing) -> bool {
        let known = state.known();
        let before = self.links_at.replace((run, known.version));
        let since = before
            .filter(|(at, since)| *at == run && (known.collected..=known.version).contains(since));
        let since = since.filter(|_| standing == Standing::Here);
        let Some((_, since)) = since else {
            let links = match standing {
                Standing::Here => links_of(state),
                Standing::Left => BTreeMap::new(),
            };
            let is_less = self.links.keys().any(|peer| !links.contains_key(peer));
            self.links = links;
            return is_less;
        };
        let mut is_less = false;
        for (key, value) in state.changed_since(since) {
            if let Some(peer) = link_of(key) {
                if let Some((_, flows)) = value.and_then(|value| carries_news(key, value)) {
                    self.links.insert(peer, flows);
                } else {
                    is_less |= self.links.remove(&peer).is_some();
                }
            }
        }
        is_less
    }

    /// It is within reach from here on; its run if others may have taken it for gone.
    fn reach(&mut self) -> Option<Run> {
        self.lost = None;
        std::mem::replace(&mut self.was_reached, true).then_some(self.latest)
    }

    fn is_lost_for(&self, time: Duration, now: Instant) -> bool {
        let lost = self.lost.map(|at| now.saturating_duration_since(at));
        lost.is_some_and(|lost| lost >= time)
    }

    fn tell(&mut self, store: &Store, now: Instant, told: &mut Told) {
        let live = match self.shown {
            Some(_) => !self.is_lost_for(SILENCE, now),
            None => self.lost.is_none(),
        };
        match self.newest {
            Some((run, Standing::Here)) if live => self.show(run, store, told),
            // Its keys are on their way to us, again after we missed too much: what was told stands.
            None if live => {}
            Some(_) | None => self.bury(&mut told.changes),
        }
    }

    /// Tells how `run` differs from what was told of its peer.
    fn show(&mut self, run: Run, store: &Store, told: &mut Told) {
        let Some(state) = store.get(run) else {
            return;
        };
        let (peer, known) = (run.name, state.known());
        let shown = self.shown.get_or_insert_with(|| {
            told.changes.push(Change::Live { peer });
            Shown {
                run,
                known: Known::default(),
                entries: BTreeMap::new(),
            }
        });
        // An older run is never gone back to. A version going down is a run being told to us anew,
        // because we missed too much: it is complete when the version is where it was.
        let older = run < shown.run || (run == shown.run && known.version < shown.known.version);
        if older || (run == shown.run && known == shown.known) {
            return;
        }
        let since = shown.known.version;
        let follows = run == shown.run && since > 0 && known.collected <= since;
        (shown.run, shown.known) = (run, known);
        if follows {
            shown.follow(peer, since, state, told);
        } else {
            shown.differ(peer, state, told);
        }
    }

    fn bury(&mut self, changes: &mut Vec<Change>) {
        let Some(shown) = self.shown.take() else {
            return;
        };
        let peer = shown.run.name;
        let entries = shown
            .entries
            .iter()
            .filter_map(|(key, value)| read(key, value));
        changes.extend(entries.map(|entry| Change::Withdrawn { peer, entry }));
        changes.push(Change::Dead { peer });
    }
}

impl Shown {
    /// Tells what was written since.
    fn follow(&mut self, peer: PeerName, since: u64, state: &State, told: &mut Told) {
        for (key, value) in state.changed_since(since) {
            let Some(value) = value else {
                let before = self.entries.remove(key);
                if let Some(entry) = before.and_then(|value| read(key, &value)) {
                    told.changes.push(Change::Withdrawn { peer, entry });
                }
                continue;
            };
            if self.entries.len() >= MAX_ENTRIES && !self.entries.contains_key(key) {
                told.ignored += 1;
            } else {
                self.put(peer, key, value, told);
            }
        }
    }

    /// Tells how the whole of it is otherwise.
    fn differ(&mut self, peer: PeerName, state: &State, told: &mut Told) {
        let fresh: BTreeMap<_, _> = state.entries().take(MAX_ENTRIES).collect();
        told.ignored += (state.len() - fresh.len()) as u64;
        self.entries.retain(|key, value| {
            let keep = fresh.contains_key(key);
            if let Some(entry) = read(key, value).filter(|_| !keep) {
                told.changes.push(Change::Withdrawn { peer, entry });
            }
            keep
        });
        // Who it is comes before what it has.
        let first = fresh.get_key_value(&Arc::from(PEER));
        let rest = fresh.iter().filter(|(key, _)| &****key != PEER);
        for (key, value) in first.into_iter().chain(rest) {
            self.put(peer, key, value, told);
        }
    }

    fn put(&mut self, peer: PeerName, key: &Arc<str>, value: &Arc<str>, told: &mut Told) {
        let before = match self.entries.get(key) {
            Some(before) if before == value => return,
            Some(before) => read(key, before),
            None => None,
        };
        let entry = read(key, value);
        told.ignored += u64::from(entry.is_none());
        self.entries.insert(Arc::clone(key), Arc::clone(value));
        match (entry, before) {
            (Some(entry), _) => told.changes.push(Change::Published { peer, entry }),
            (None, Some(entry)) => told.changes.push(Change::Withdrawn { peer, entry }),
            (None, None) => {}
        }
    }
}

/// None of a run whose `peer` entry has not come yet.
fn standing(state: &State) -> Option<Standing> {
    match state.get(PEER)? {
        Some(_) => Some(Standing::Here),
        None => Some(Standing::Left),
    }
}

/// Whom a run tells of a connection with that carries gossip.
fn links_of(state: &State) -> BTreeMap<PeerName, bool> {
    let entries = state.prefixed(LINKS);
    entries
        .filter_map(|(key, value)| carries_news(key, value))
        .collect()
}

/// Whom an entry tells of a connection with, and whether frames flow over it: gossip may in any case. Not
/// over one that is relayed, which is for frames alone.
fn carries_news(key: &str, value: &str) -> Option<(PeerName, bool)> {
    match read(key, value)? {
        Entry::Link(peer, link) => (!link.relayed).then_some((peer, link.established)),
        Entry::Peer(_)
        | Entry::Ring(..)
        | Entry::Name { .. }
        | Entry::Mac(..)
        | Entry::Network(_) => None,
    }
}

/// Whom a connection is with that a key stands for.
fn link_of(key: &str) -> Option<PeerName> {
    let peer = key.strip_prefix(LINKS)?.parse().ok()?;
    (Topic::Link(peer).key() == key).then_some(peer)
}

fn read(key: &str, value: &str) -> Option<Entry> {
    Entry::parse(key, value).unwrap_or_else(|error| {
        debug!(key, %error, "an entry cannot be read");
        None
    })
}
