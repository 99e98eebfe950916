//! Gossip as a machine: what neighbours say goes in, what is to be sent and what changed comes out.
//!
//! * A change of our own, or one a neighbour told us, goes [`DEBOUNCE`] later to all neighbours that
//!   are not known to have it, nor to have a working connection with somebody who tells them: the peer it is of,
//!   whoever told us, and three of their neighbours that all of them agree on. A change crosses a line of
//!   peers at one debounce a hop.
//! * At rest each neighbour is told once in [`ROUND`] ticks what all we know comes to, in one number.
//!   Where that differs for longer than news takes, `exchange.rs` finds out what is lacking.
//! * With a new neighbour the comparison begins at once.
//!
//! Another run with our own name, newer than ours, hides us from everybody. It is kept beside ours and
//! told of, so that the node can do something about it.
//!
//! Invariants: nothing is sent to anybody but neighbours; at most one look per [`DEBOUNCE`], and one
//! message to each neighbour in it; our own run is written by nobody else.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use weft_wire::PeerName;

use crate::counters::Counters;
use crate::key::{Entry, PEER, Topic};
use crate::message::{self, News};
use crate::run::Run;
use crate::store::{Known, Store};
use crate::view::{SILENCE, View};
use crate::{Change, MAX_ENTRIES, PublishError, StartError};

/// How long changes are gathered before they are passed on.
pub const DEBOUNCE: Duration = Duration::from_millis(25);
/// And how long while there is much of it: so many runs are new at once when a large cluster is started or
/// two are joined, and to pass each on by itself would be most of the work.
const DEBOUNCE_MANY: Duration = Duration::from_millis(200);
const MANY: usize = 16;
/// How often some neighbours are told what we know.
pub const TICK: Duration = Duration::from_secs(1);
/// In so many ticks it is each neighbour's turn.
const ROUND: usize = 5;

/// What gossip wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Send this to a neighbour; a message that is lost is made up for.
    Send {
        /// The neighbour.
        to: PeerName,
        /// What [`Gossip::handle_message`] takes there, at most 65,507 bytes.
        bytes: Vec<u8>,
    },
    /// Something is otherwise with another peer.
    Change(Change),
}

/// What this peer and the others say of themselves.
#[derive(Debug)]
pub struct Gossip {
    pub(crate) us: Run,
    pub(crate) store: Store,
    pub(crate) view: View,
    pub(crate) neighbours: BTreeMap<PeerName, Neighbour>,
    /// Runs that are known further than at the last look.
    fresh: BTreeMap<Run, Fresh>,
    events: VecDeque<Event>,
    pub(crate) counters: Counters,
    /// A newer run with our name that has come whole, and when it was told of.
    pub(crate) clash: Option<(Run, Instant)>,
    look_at: Option<Instant>,
    /// How long to gather changes now.
    debounce: Duration,
    tick_at: Instant,
    ticks: usize,
    /// When something was last new.
    pub(crate) news_at: Instant,
    /// What all that is told comes to, as long as nothing changes.
    pub(crate) sum: Option<u128>,
    pub(crate) warned: bool,
}

/// What is known of a neighbour besides what it says of itself.
#[derive(Debug, Default)]
pub(crate) struct Neighbour {
    /// What it is known to have.
    pub(crate) has: BTreeMap<Run, u64>,
    /// The last comparison showed a difference.
    pub(crate) differs: bool,
    /// Runs it was asked for since the last tick, and from which version on.
    pub(crate) asked: BTreeMap<Run, u64>,
    /// Answers it got since the last tick.
    pub(crate) answers: u32,
    /// It was said that it is not understood.
    pub(crate) warned: bool,
}

impl Neighbour {
    fn note_has(&mut self, run: Run, version: u64) {
        let has = self.has.entry(run).or_default();
        *has = version.max(*has);
    }
}

/// A run with news.
#[derive(Debug, Default)]
struct Fresh {
    /// How far it was known.
    since: u64,
    /// Neighbours that told, and how far: they tell their other neighbours, too.
    told_by: BTreeMap<PeerName, u64>,
    /// It was out of reach and is not any more: neighbours are told even if they have all of it.
    is_back: bool,
}

impl Gossip {
    /// Begins to gossip.
    ///
    /// `generation` tells this start from earlier ones: it must be greater than at any start before.
    /// `initial` is what we say of ourselves from the first moment. It should hold an
    /// [`Entry::Peer`], without which others do not show us, and all that we said before a restart
    /// and still say: others go over from our last run to this one when it arrived whole, so that what
    /// is in both is never withdrawn.
    ///
    /// # Errors
    /// An initial entry cannot be published, or there are too many.
    pub fn new(
        name: PeerName,
        generation: u64,
        mut initial: Vec<Entry>,
        now: Instant,
    ) -> Result<Self, StartError> {
        if initial.len() > MAX_ENTRIES {
            return Err(StartError::TooMany(initial.len()));
        }
        let us = Run { name, generation };
        let mut store = Store::default();
        let own = store.own(us);
        // Keys are told in the order they were written, so whoever has this one has all.
        initial.sort_by_key(|entry| entry.topic() == Topic::Peer);
        for entry in &initial {
            let (key, value) = entry.encode()?;
            own.set(&key, &value);
        }
        Ok(Self {
            us,
            store,
            view: View::new(name),
            neighbours: BTreeMap::new(),
            fresh: BTreeMap::new(),
            events: VecDeque::new(),
            counters: Counters::default(),
            clash: None,
            look_at: None,
            debounce: DEBOUNCE,
            tick_at: now + TICK,
            ticks: 0,
            news_at: now,
            sum: None,
            warned: false,
        })
    }

    /// Says `entry` to all, in place of what we said on its topic.
    ///
    /// # Errors
    /// The entry cannot be carried, or we publish too many; what was said before stands.
    pub fn publish(&mut self, entry: &Entry, now: Instant) -> Result<(), PublishError> {
        let (key, value) = entry.encode()?;
        let own = self.store.own(self.us);
        match own.get(&key).flatten() {
            Some(before) if before == value => return Ok(()),
            None if own.len() >= MAX_ENTRIES => return Err(PublishError::TooMany),
            Some(_) | None => {}
        }
        let since = own.known().version;
        own.set(&key, &value);
        self.note_news(self.us, since, self.us.name, now);
        Ok(())
    }

    /// Stops saying what we said on `topic`; nothing if we did not.
    ///
    /// Without [`Topic::Peer`] others take us for gone, whatever else we publish.
    pub fn withdraw(&mut self, topic: &Topic, now: Instant) {
        let own = self.store.own(self.us);
        let since = own.known().version;
        own.delete(&topic.key(), now);
        self.note_news(self.us, since, self.us.name, now);
    }

    /// Stops saying anything: others take us for gone as soon as they hear of it.
    ///
    /// The farewell is one message to each neighbour; it needs no answer, so the connections may be
    /// closed once it is on its way.
    pub fn withdraw_all(&mut self, now: Instant) {
        let own = self.store.own(self.us);
        let since = own.known().version;
        // The one that makes us known goes first: it alone must fit into the message.
        let mut keys: Vec<_> = own.entries().map(|(key, _)| key.clone()).collect();
        keys.sort_by_key(|key| **key != *PEER);
        for key in keys {
            own.delete(&key, now);
        }
        self.note_news(self.us, since, self.us.name, now);
        self.pass_on();
    }

    /// A control connection with a peer came up. It may be in place of another, which the peer may have
    /// had in an earlier run: what it was told by then is not relied on.
    pub fn handle_connected(&mut self, peer: PeerName) {
        self.neighbours.remove(&peer);
    }

    /// Sets whom we have a control connection with. With new ones what is known is compared at once.
    pub fn set_neighbours(&mut self, neighbours: &BTreeSet<PeerName>, now: Instant) {
        self.neighbours.retain(|peer, _| neighbours.contains(peer));
        for peer in neighbours {
            if !self.neighbours.contains_key(peer) {
                self.neighbours.insert(*peer, Neighbour::default());
                // One of the two begins: both learn what they lack.
                if *peer < self.us.name {
                    self.compare(*peer);
                }
            }
        }
        self.view.set_neighbours(neighbours);
        self.look_soon(now);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.tick_at <= now {
            self.tick_at = now + TICK;
            self.tick(now);
        }
        if self.look_at.is_some_and(|at| at <= now) {
            self.look(now);
        }
    }

    /// When [`Gossip::handle_timeout`] is due, and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let look = self.look_at.map(|at| (at, "gossip passes on what is new"));
        [look, Some((self.tick_at, "gossip compares"))]
            .into_iter()
            .flatten()
            .min()
    }

    /// What is to be done next.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether something is to be done already.
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// What was dropped, and how much was carried.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    pub(crate) fn note_news(&mut self, run: Run, since: u64, from: PeerName, now: Instant) {
        if self.store.known(run).version == since {
            return;
        }
        let fresh = self.fresh.entry(run).or_insert_with(|| Fresh {
            since,
            ..Fresh::default()
        });
        if from != self.us.name {
            fresh.told_by.insert(from, self.store.known(run).version);
        }
        self.news_at = now;
        self.sum = None;
        self.look_soon(now);
    }

    pub(crate) fn note_has(&mut self, peer: PeerName, run: Run, version: u64) {
        // What is not held here is not passed on either.
        let ours = self.store.known(run).version;
        if ours == 0 {
            return;
        }
        if let Some(neighbour) = self.neighbours.get_mut(&peer) {
            // Nobody has more of it than there is, whatever it says.
            neighbour.note_has(run, version.min(ours));
        }
    }

    /// A neighbour tells of a run that we know as far.
    pub(crate) fn note_told(&mut self, run: Run, now: Instant) {
        if self.view.note_told(run) {
            self.look_soon(now);
        }
    }

    fn look_soon(&mut self, now: Instant) {
        self.look_at.get_or_insert(now + self.debounce);
    }

    /// A second has passed.
    fn tick(&mut self, now: Instant) {
        self.ticks = self.ticks.wrapping_add(1);
        for neighbour in self.neighbours.values_mut() {
            neighbour.asked.clear();
            neighbour.answers = 0;
        }
        let turn = self.ticks % ROUND;
        let all = self.neighbours.keys().enumerate();
        let now_due = all.filter(|(at, _)| at % ROUND == turn);
        let due: Vec<_> = now_due.map(|(_, peer)| *peer).collect();
        if !due.is_empty() {
            let rest = message::rest(self.sum());
            for peer in due {
                self.send(peer, rest.clone());
            }
        }
        self.store.collect(now);
        self.look(now);
    }

    /// Passes on what is new, and finds what is to be told.
    fn look(&mut self, now: Instant) {
        self.look_at = None;
        let changed: BTreeSet<PeerName> = self.fresh.keys().map(|run| run.name).collect();
        let told = self.view.look(&self.store, &changed, now);
        self.counters.ignored += told.ignored;
        let changes = told.changes.into_iter().chain(self.find_clash(now));
        self.events.extend(changes.map(Event::Change));
        for run in told.back {
            let since = self.store.known(run).version;
            let fresh = self.fresh.entry(run).or_insert_with(|| Fresh {
                since,
                ..Fresh::default()
            });
            fresh.is_back = true;
        }
        self.pass_on();
        for run in told.forgotten {
            self.forget(run);
        }
        self.sum = None;
    }

    fn forget(&mut self, run: Run) {
        self.store.forget(run);
        for neighbour in self.neighbours.values_mut() {
            neighbour.has.remove(&run);
        }
    }

    /// A newer run with our name: told when it has come, and again while others have a connection with
    /// it, so that one that is gone is not told of for as long as it is remembered.
    fn find_clash(&mut self, now: Instant) -> Option<Change> {
        let runs: Vec<Run> = self
            .store
            .runs_of(self.us.name)
            .map(|(run, _)| run)
            .collect();
        let (newest, older) = runs.split_last()?;
        let newest = *newest;
        let us = self.us;
        for run in older.iter().filter(|run| **run != us) {
            self.forget(*run);
        }
        if newest <= self.us {
            return None;
        }
        let state = self.store.get(newest)?;
        let entry = state.get(PEER).flatten()?;
        let told = self.clash.filter(|(run, _)| *run == newest);
        let is_due = told.is_none_or(|(_, at)| {
            now.saturating_duration_since(at) >= SILENCE && self.view.is_alive(newest, state)
        });
        let Ok(Some(Entry::Peer(info))) = Entry::parse(PEER, entry) else {
            return None;
        };
        if !is_due {
            return None;
        }
        self.clash = Some((newest, now));
        let generation = newest.generation;
        Some(Change::Clash { generation, info })
    }

    /// Tells each neighbour the news it is not known to have.
    fn pass_on(&mut self) {
        let fresh = std::mem::take(&mut self.fresh);
        self.debounce = match fresh.len() > MANY {
            true => DEBOUNCE_MANY,
            false => DEBOUNCE,
        };
        if fresh.is_empty() {
            return;
        }
        let mut news: Vec<_> = self.neighbours.keys().map(|_| News::default()).collect();
        for (run, fresh) in &fresh {
            self.add_fresh(&mut news, *run, fresh);
        }
        let told = self.neighbours.keys().copied().zip(news);
        let told: Vec<_> = told.filter(|(_, news)| !news.is_empty()).collect();
        for (to, news) in told {
            self.send(to, news.into_bytes());
        }
    }

    /// Adds what is new of one run to the news of each neighbour.
    fn add_fresh(&mut self, news: &mut [News], run: Run, fresh: &Fresh) {
        let Some(state) = self.store.get(run) else {
            return;
        };
        let (ours, view) = (state.known(), &self.view);
        let near = view.hearers_of(run.name);
        for ((to, neighbour), news) in self.neighbours.iter_mut().zip(news) {
            // Everybody tells its own news itself.
            if run.name == *to || near.binary_search(to).is_ok() {
                continue;
            }
            let has = neighbour.has.get(&run).copied();
            let is_told = |by| by == *to || view.hear_each_other(by, *to);
            // They tell their other neighbours, too.
            let told = fresh.told_by.iter().filter(|(by, _)| is_told(**by));
            let has = told.map(|(_, version)| *version).chain(has).max();
            let has_it = has >= Some(ours.version) && !fresh.is_back;
            if has_it || view.others_tell(run.name, &near, *to) {
                continue;
            }
            let known = Known {
                version: has.map_or(fresh.since, |has| has.max(fresh.since)),
                collected: 0,
            };
            let (since, sets) = state.writes_since(known);
            if news.add(run, ours, since, sets) {
                neighbour.note_has(run, ours.version);
            }
        }
    }

    /// What we say.
    #[cfg(test)]
    pub(crate) fn says(&self) -> BTreeMap<Topic, Entry> {
        let entries = self.store.get(self.us).unwrap().entries();
        let read = entries.map(|(key, value)| Entry::parse(key, value).unwrap().unwrap());
        read.map(|entry| (entry.topic(), entry)).collect()
    }

    pub(crate) fn send(&mut self, to: PeerName, bytes: Vec<u8>) {
        self.counters.sent += 1;
        self.counters.bytes += bytes.len() as u64;
        self.events.push_back(Event::Send { to, bytes });
    }
}
