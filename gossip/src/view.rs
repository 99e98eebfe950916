//! What we show of other peers: one incarnation each, compared with what was shown before.
//!
//! chitchat tells neither of deletions nor of restarts in a way that can be used as it is: a deleted
//! key raises no event, and a restarted peer is a second node beside its old self. So the whole state
//! is looked at after every message that changed it, and [`Change`]s are the difference between that
//! and what was told so far.
//!
//! * A peer is shown by its newest run that holds its `peer` entry. A run writes that entry last of
//!   all it starts with, so a restarted peer takes over from its old self complete, and what it still
//!   has is never withdrawn in between. A run that deleted its `peer` entry has left.
//! * A peer is live while it is our neighbour, or connected with us over links that both their ends
//!   call established, or its heartbeat moved in the last [`SILENCE`].
//!
//! Invariants: per peer, `Live` comes before all else and `Dead` after all is withdrawn; every
//! `Withdrawn` was `Published`; no more than [`MAX_ENTRIES`] of a peer are shown.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chitchat::{ChitchatId, NodeState};
use tokio::time::Instant;
use tracing::debug;
use weft_wire::PeerName;

use crate::envelope::Holding;
use crate::key::{Entry, LINKS, PEER};
use crate::run::Run;
use crate::{Change, MAX_ENTRIES};

/// How long a peer that is out of reach may be silent before it is dead. A router that is started
/// again within this time keeps its names.
pub const SILENCE: Duration = Duration::from_secs(15);

/// The nodes as chitchat keeps them.
pub(crate) type States = BTreeMap<ChitchatId, NodeState>;

/// All that is known of other peers.
#[derive(Debug)]
pub(crate) struct View {
    us: Run,
    runs: BTreeMap<Run, Known>,
    shown: BTreeMap<PeerName, Shown>,
    /// The run that passes for us, and when its heartbeat had moved last when that was told.
    clash: Option<(Run, Option<Instant>)>,
}

/// A run whose keys are not what they were at the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct News {
    pub(crate) run: Run,
    /// The version that was known; 0 if nothing was.
    pub(crate) since: u64,
}

/// What one look gave to tell.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) changes: Vec<Change>,
    /// Entries passed over: malformed, too many, or of a kind we do not know.
    pub(crate) ignored: u64,
}

/// What was read of one run at the last look.
#[derive(Debug)]
struct Known {
    /// Last gc version and max version: they move whenever a key does.
    version: (u64, u64),
    heartbeat: u64,
    /// When the heartbeat was seen to move, the last time and the time before. First sight is no move,
    /// and one move is no proof: we may be catching up with what others know of a dead peer.
    moved: [Option<Instant>; 2],
    standing: Standing,
    /// Whom it calls an established neighbour.
    links: BTreeSet<PeerName>,
    keys: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Its `peer` entry has not come yet.
    Arriving,
    Here,
    /// It deleted its `peer` entry.
    Left,
}

/// What was told of one peer.
#[derive(Debug)]
struct Shown {
    run: Run,
    version: (u64, u64),
    entries: BTreeMap<String, Item>,
}

/// One entry as it was told; without the entry if it was passed over.
#[derive(Debug)]
struct Item {
    value: String,
    entry: Option<Entry>,
}

impl View {
    pub(crate) fn new(us: Run) -> Self {
        Self {
            us,
            runs: BTreeMap::new(),
            shown: BTreeMap::new(),
            clash: None,
        }
    }

    /// Looks at the nodes; gives the runs whose keys changed since the last look.
    pub(crate) fn observe(&mut self, states: &States, now: Instant) -> Vec<News> {
        let mut before = std::mem::take(&mut self.runs);
        let mut news = Vec::new();
        for (id, state) in states {
            let Some(run) = Run::of(id).filter(|run| *run != self.us) else {
                continue;
            };
            let known = before.remove(&run);
            let since = known.as_ref().map_or(0, |known| known.version.1);
            if since != state.max_version() {
                news.push(News { run, since });
            }
            self.runs.insert(run, Known::read(known, state, now));
        }
        news
    }

    /// How much there is of each run.
    pub(crate) fn holdings(&self) -> impl Iterator<Item = (Run, Holding)> {
        self.runs.iter().map(|(run, known)| {
            let (keys, max_version) = (known.keys, known.version.1);
            (*run, Holding { keys, max_version })
        })
    }

    /// Whether `peer` calls its connection to `other` established.
    pub(crate) fn is_linked(&self, peer: PeerName, other: PeerName) -> bool {
        let run = self.newest(peer);
        run.is_some_and(|(_, known)| known.links.contains(&other))
    }

    /// What is to be told after the last look.
    pub(crate) fn tell(
        &mut self,
        states: &States,
        neighbours: &BTreeSet<PeerName>,
        now: Instant,
    ) -> Told {
        let mut told = Told::default();
        told.changes.extend(self.find_clash(states));
        let connected = self.connected(neighbours);
        let mut peers: BTreeSet<_> = self.runs.keys().map(|run| run.name).collect();
        peers.extend(self.shown.keys());
        // Of our earlier runs there is nothing to tell.
        peers.remove(&self.us.name);
        for peer in peers {
            let live = connected.contains(&peer) || self.is_heard(peer, now);
            match self.newest(peer) {
                Some((run, known)) if live && known.standing == Standing::Here => {
                    self.show(run, states, &mut told);
                }
                // Its keys are on their way to us, again after we missed too much: what was told stands.
                None if live && self.has_run(peer) => {}
                Some(_) | None => self.bury(peer, &mut told.changes),
            }
        }
        told
    }

    /// A newer run of our own name: told when it is first seen, and again while its heartbeat moves.
    fn find_clash(&mut self, states: &States) -> Option<Change> {
        let (run, known) = self.newest(self.us.name)?;
        let moved = known.moved.first().copied().flatten();
        let told = self.clash.filter(|(told, _)| *told == run);
        let is_news = told.is_none_or(|(_, at)| match (moved, at) {
            (Some(moved), Some(at)) => moved.duration_since(at) >= SILENCE,
            (Some(_), None) => true,
            (None, _) => false,
        });
        if run < self.us || known.standing != Standing::Here || !is_news {
            return None;
        }
        let entry = Entry::parse(PEER, states.get(&run.id())?.get(PEER)?);
        let Ok(Some(Entry::Peer(info))) = entry else {
            return None;
        };
        self.clash = Some((run, moved));
        let generation = run.generation;
        Some(Change::Clash { generation, info })
    }

    /// Withdraws all that was told, because nothing will be known any more.
    pub(crate) fn end(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        for peer in self.shown.keys().copied().collect::<Vec<_>>() {
            self.bury(peer, &mut changes);
        }
        changes
    }

    /// The newest run of a peer that has come whole, or has left.
    fn newest(&self, peer: PeerName) -> Option<(Run, &Known)> {
        self.runs_of(peer)
            .rev()
            .find(|(_, known)| known.standing != Standing::Arriving)
    }

    fn has_run(&self, peer: PeerName) -> bool {
        self.runs_of(peer).next().is_some()
    }

    fn runs_of(&self, name: PeerName) -> impl DoubleEndedIterator<Item = (Run, &Known)> {
        let run = |generation| Run { name, generation };
        let all = self.runs.range(run(0)..=run(u64::MAX));
        all.map(|(run, known)| (*run, known))
    }

    fn is_heard(&self, peer: PeerName, now: Instant) -> bool {
        let recent = |at: &Option<Instant>| at.is_some_and(|at| now.duration_since(at) < SILENCE);
        let proof = if self.shown.contains_key(&peer) { 1 } else { 2 };
        self.runs_of(peer)
            .any(|(_, known)| known.moved.iter().filter(|at| recent(at)).count() >= proof)
    }

    /// The neighbours, and all that are connected with them over established links.
    fn connected(&self, neighbours: &BTreeSet<PeerName>) -> BTreeSet<PeerName> {
        let mut connected = neighbours.clone();
        let mut open: Vec<_> = neighbours.iter().copied().collect();
        while let Some(peer) = open.pop() {
            let links = self.newest(peer).map(|(_, known)| &known.links);
            for other in links.into_iter().flatten() {
                if !connected.contains(other) && self.is_linked(*other, peer) {
                    connected.insert(*other);
                    open.push(*other);
                }
            }
        }
        connected
    }

    /// Tells how `run` differs from what was told of its peer.
    fn show(&mut self, run: Run, states: &States, told: &mut Told) {
        let Some(state) = states.get(&run.id()) else {
            return;
        };
        let peer = run.name;
        let version = version_of(state);
        let shown = self.shown.entry(peer).or_insert_with(|| {
            told.changes.push(Change::Live { peer });
            Shown {
                run,
                version: (0, 0),
                entries: BTreeMap::new(),
            }
        });
        // An older run is never gone back to. A version going down is a run being told to us anew,
        // because we missed too much: it is complete when the version is where it was.
        let older = run < shown.run || (run == shown.run && version.1 < shown.version.1);
        if older || (run == shown.run && version == shown.version) {
            return;
        }
        (shown.run, shown.version) = (run, version);
        shown.differ(peer, state, told);
    }

    fn bury(&mut self, peer: PeerName, changes: &mut Vec<Change>) {
        let Some(shown) = self.shown.remove(&peer) else {
            return;
        };
        let entries = shown.entries.into_values().filter_map(|item| item.entry);
        changes.extend(entries.map(|entry| Change::Withdrawn { peer, entry }));
        changes.push(Change::Dead { peer });
    }
}

impl Known {
    fn read(before: Option<Self>, state: &NodeState, now: Instant) -> Self {
        let heartbeat = state.heartbeat().into();
        match before {
            Some(before) => {
                let moved = before.heartbeat < heartbeat && before.heartbeat > 0;
                let [last, _] = before.moved;
                let moved = if moved {
                    [Some(now), last]
                } else {
                    before.moved
                };
                let known = if before.version == version_of(state) {
                    before
                } else {
                    Self::read_keys(state)
                };
                Self {
                    heartbeat,
                    moved,
                    ..known
                }
            }
            None => Self {
                heartbeat,
                ..Self::read_keys(state)
            },
        }
    }

    fn read_keys(state: &NodeState) -> Self {
        let standing = match state.get_versioned(PEER) {
            None => Standing::Arriving,
            Some(value) if value.is_deleted() => Standing::Left,
            Some(_) => Standing::Here,
        };
        let established = |key, value| {
            let entry = Entry::parse(key, value).ok().flatten();
            if let Some(Entry::Link(peer, link)) = entry {
                link.established.then_some(peer)
            } else {
                None
            }
        };
        Self {
            version: version_of(state),
            heartbeat: 0,
            moved: [None; 2],
            standing,
            links: state
                .iter_prefix(LINKS)
                .filter_map(|(key, value)| established(key, &value.value))
                .collect(),
            keys: state.key_values_including_deleted().count(),
        }
    }
}

impl Shown {
    fn differ(&mut self, peer: PeerName, state: &NodeState, told: &mut Told) {
        let fresh: BTreeMap<&str, &str> = state.key_values().take(MAX_ENTRIES).collect();
        told.ignored += count(state.key_values().skip(MAX_ENTRIES).count());
        self.entries.retain(|key, item| {
            let keep = fresh.contains_key(key.as_str());
            if let Some(entry) = item.entry.take_if(|_| !keep) {
                told.changes.push(Change::Withdrawn { peer, entry });
            }
            keep
        });
        // Who it is comes before what it has.
        let first = fresh.get_key_value(PEER);
        let rest = fresh.iter().filter(|(key, _)| **key != PEER);
        for (key, value) in first.into_iter().chain(rest) {
            self.put(peer, key, value, told);
        }
    }

    fn put(&mut self, peer: PeerName, key: &str, value: &str, told: &mut Told) {
        if self
            .entries
            .get(key)
            .is_some_and(|item| item.value == value)
        {
            return;
        }
        let entry = Entry::parse(key, value).unwrap_or_else(|error| {
            debug!(%peer, key, %error, "an entry cannot be read");
            None
        });
        told.ignored += u64::from(entry.is_none());
        let item = Item {
            value: value.to_owned(),
            entry: entry.clone(),
        };
        let before = self.entries.insert(key.to_owned(), item);
        match (entry, before.and_then(|item| item.entry)) {
            (Some(entry), _) => told.changes.push(Change::Published { peer, entry }),
            (None, Some(entry)) => told.changes.push(Change::Withdrawn { peer, entry }),
            (None, None) => {}
        }
    }
}

fn version_of(state: &NodeState) -> (u64, u64) {
    (state.last_gc_version(), state.max_version())
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
