//! What each peer says of itself, made known by exchanges between neighbours: gossip without its
//! encoding. Speaks at the same moments as the real one and tells the same changes.
//!
//! Invariant: as with the real one, every `Withdrawn` was `Published`, and `Dead` comes last.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_gossip::{Change, Entry, SILENCE, Topic};
use weft_wire::PeerName;

pub(crate) const INTERVAL: Duration = Duration::from_secs(1);
pub(crate) const DEBOUNCE: Duration = Duration::from_millis(25);

/// All that one run of a peer says, ordered by how new it is.
#[derive(Debug, Clone)]
pub(crate) struct Said {
    news: News,
    entries: Entries,
}

type Entries = Arc<BTreeMap<Topic, Entry>>;

/// Generation, version, heartbeat.
type News = (u64, u64, u64);

/// What neighbours send each other.
#[derive(Debug, Clone)]
pub(crate) enum Envelope {
    /// How much the sender knows; if asked to, the receiver says how much it knows.
    Digest(Arc<BTreeMap<PeerName, News>>, bool),
    State(Vec<(PeerName, Said)>),
}

pub(crate) type Outbox = Vec<(PeerName, Envelope)>;

#[derive(Debug)]
pub(crate) struct Gossip {
    us: PeerName,
    own: Said,
    heard: BTreeMap<PeerName, Heard>,
    shown: BTreeMap<PeerName, Entries>,
    neighbours: BTreeSet<PeerName>,
    /// Whose keys changed since the last look, and who told.
    fresh: BTreeMap<PeerName, PeerName>,
    own_is_fresh: bool,
    last: Option<PeerName>,
    /// A newer run of our own name.
    clash: Option<Said>,
    pub(crate) look_is_due: bool,
}

#[derive(Debug)]
struct Heard {
    said: Said,
    /// Whom it calls an established neighbour.
    links: BTreeSet<PeerName>,
    moved: [Option<Instant>; 2],
}

impl Gossip {
    pub(crate) fn new(us: PeerName, generation: u64, initial: Vec<Entry>) -> Self {
        let entries = initial.into_iter().map(|entry| (entry.topic(), entry));
        let own = Said {
            news: (generation, 1, 1),
            entries: Arc::new(entries.collect()),
        };
        Self {
            us,
            own,
            heard: BTreeMap::new(),
            shown: BTreeMap::new(),
            neighbours: BTreeSet::new(),
            fresh: BTreeMap::new(),
            own_is_fresh: false,
            last: None,
            clash: None,
            look_is_due: false,
        }
    }

    pub(crate) fn publish(&mut self, entry: Entry) {
        self.change(|entries| entries.insert(entry.topic(), entry));
    }

    pub(crate) fn withdraw(&mut self, topic: &Topic) {
        self.change(|entries| entries.remove(topic));
    }

    /// Goes on as another run, as the real one does when it is begun anew.
    pub(crate) fn renew(&mut self, generation: u64) -> Outbox {
        self.own.news = (generation, 1, 1);
        self.own_is_fresh = true;
        self.push_own()
    }

    /// The farewell to all neighbours.
    pub(crate) fn withdraw_all(&mut self) -> Outbox {
        self.change(std::mem::take);
        self.push_own()
    }

    fn change<T>(&mut self, change: impl FnOnce(&mut BTreeMap<Topic, Entry>) -> T) {
        change(Arc::make_mut(&mut self.own.entries));
        self.own.news.1 += 1;
        self.own_is_fresh = true;
        self.look_is_due = true;
    }

    pub(crate) fn set_neighbours(&mut self, neighbours: BTreeSet<PeerName>) -> Outbox {
        let before = std::mem::replace(&mut self.neighbours, neighbours);
        self.look_is_due = true;
        let new: Vec<_> = self.neighbours.difference(&before).copied().collect();
        new.into_iter().map(|peer| self.exchange(peer)).collect()
    }

    /// A second has passed.
    pub(crate) fn tick(&mut self) -> Outbox {
        self.own.news.2 += 1;
        let after = self.neighbours.iter().copied();
        let next = after.clone().find(|peer| Some(*peer) > self.last);
        self.last = next.or_else(|| after.clone().next());
        self.last
            .map(|peer| self.exchange(peer))
            .into_iter()
            .collect()
    }

    pub(crate) fn handle(&mut self, from: PeerName, envelope: Envelope, now: Instant) -> Outbox {
        match envelope {
            Envelope::Digest(theirs, answer) => self.answer(from, &theirs, answer),
            Envelope::State(states) => {
                for (peer, said) in states {
                    self.take(from, peer, said, now);
                }
                Vec::new()
            }
        }
    }

    fn exchange(&self, peer: PeerName) -> (PeerName, Envelope) {
        (peer, Envelope::Digest(Arc::new(self.digest()), true))
    }

    fn digest(&self) -> BTreeMap<PeerName, News> {
        self.all().map(|(peer, said)| (peer, said.news)).collect()
    }

    fn all(&self) -> impl Iterator<Item = (PeerName, &Said)> {
        let heard = self.heard.iter().map(|(peer, heard)| (*peer, &heard.said));
        heard.chain([(self.us, &self.own)])
    }

    fn answer(&self, from: PeerName, theirs: &BTreeMap<PeerName, News>, answer: bool) -> Outbox {
        let newer = self
            .all()
            .filter(|(peer, said)| theirs.get(peer).is_none_or(|theirs| *theirs < said.news));
        let states: Vec<_> = newer.map(|(peer, said)| (peer, said.clone())).collect();
        let mut out = Vec::new();
        if !states.is_empty() {
            out.push((from, Envelope::State(states)));
        }
        if answer {
            out.push((from, Envelope::Digest(Arc::new(self.digest()), false)));
        }
        out
    }

    fn take(&mut self, from: PeerName, peer: PeerName, said: Said, now: Instant) {
        if peer == self.us {
            let is_news = self.clash.as_ref().is_none_or(|c| c.news < said.news);
            if said.news.0 > self.own.news.0 && is_news {
                self.clash = Some(said);
                self.look_is_due = true;
            }
            return;
        }
        let Some(heard) = self.heard.get_mut(&peer) else {
            let heard = Heard {
                links: links_of(&said.entries),
                said,
                moved: [None; 2],
            };
            self.heard.insert(peer, heard);
            self.fresh.insert(peer, from);
            self.look_is_due = true;
            return;
        };
        if said.news <= heard.said.news {
            return;
        }
        heard.moved = [Some(now), heard.moved[0]];
        if (said.news.0, said.news.1) != (heard.said.news.0, heard.said.news.1) {
            self.fresh.insert(peer, from);
            heard.links = links_of(&said.entries);
        }
        heard.said = said;
        self.look_is_due = true;
    }

    /// Passes on what is new, and finds what is to be told.
    pub(crate) fn look(&mut self, now: Instant) -> (Vec<Change>, Outbox) {
        self.look_is_due = false;
        let mut out = Vec::new();
        if std::mem::take(&mut self.own_is_fresh) {
            out = self.push_own();
        }
        for (peer, from) in std::mem::take(&mut self.fresh) {
            let Some(said) = self.heard.get(&peer).map(|heard| heard.said.clone()) else {
                continue;
            };
            let has_it =
                |other: PeerName| other == from || other == peer || self.says_linked(from, other);
            let rest = self.neighbours.iter().filter(|other| !has_it(**other));
            out.extend(rest.map(|other| (*other, Envelope::State(vec![(peer, said.clone())]))));
        }
        (self.tell(now), out)
    }

    fn push_own(&self) -> Outbox {
        let state = vec![(self.us, self.own.clone())];
        let all = self.neighbours.iter();
        all.map(|peer| (*peer, Envelope::State(state.clone())))
            .collect()
    }

    fn tell(&mut self, now: Instant) -> Vec<Change> {
        let connected = self.connected();
        let mut changes = Vec::new();
        if let Some(said) = self.clash.take()
            && let Some(Entry::Peer(info)) = said.entries.get(&Topic::Peer)
        {
            let (generation, info) = (said.news.0, info.clone());
            changes.push(Change::Clash { generation, info });
        }
        for (peer, heard) in &self.heard {
            let recent = |at: &Option<Instant>| at.is_some_and(|at| now - at < SILENCE);
            let moves = heard.moved.iter().filter(|at| recent(at)).count();
            let proof = if self.shown.contains_key(peer) { 1 } else { 2 };
            let here = heard.said.entries.contains_key(&Topic::Peer);
            if here && (connected.contains(peer) || moves >= proof) {
                show(*peer, &mut self.shown, &heard.said.entries, &mut changes);
            } else if let Some(shown) = self.shown.remove(peer) {
                let gone = shown.values().cloned();
                changes.extend(gone.map(|entry| Change::Withdrawn { peer: *peer, entry }));
                changes.push(Change::Dead { peer: *peer });
            }
        }
        changes
    }

    fn says_linked(&self, peer: PeerName, to: PeerName) -> bool {
        let heard = self.heard.get(&peer);
        heard.is_some_and(|heard| heard.links.contains(&to))
    }

    fn connected(&self) -> BTreeSet<PeerName> {
        let mut connected = self.neighbours.clone();
        let mut open: Vec<_> = connected.iter().copied().collect();
        while let Some(peer) = open.pop() {
            let links = self.heard.get(&peer).map(|heard| &heard.links);
            for other in links.into_iter().flatten() {
                if !connected.contains(other) && self.says_linked(*other, peer) {
                    connected.insert(*other);
                    open.push(*other);
                }
            }
        }
        connected
    }
}

fn links_of(entries: &Entries) -> BTreeSet<PeerName> {
    let established = |entry: &Entry| match entry {
        Entry::Link(to, link) => link.established.then_some(*to),
        Entry::Peer(_)
        | Entry::Ring(..)
        | Entry::Name { .. }
        | Entry::Mac(..)
        | Entry::Network(_) => None,
    };
    entries.values().filter_map(established).collect()
}

fn show(
    peer: PeerName,
    shown: &mut BTreeMap<PeerName, Entries>,
    entries: &Entries,
    changes: &mut Vec<Change>,
) {
    let before = shown.entry(peer).or_insert_with(|| {
        changes.push(Change::Live { peer });
        Entries::default()
    });
    if Arc::ptr_eq(before, entries) {
        return;
    }
    let gone = before
        .iter()
        .filter(|(topic, _)| !entries.contains_key(topic));
    changes.extend(gone.map(|(_, entry)| Change::Withdrawn {
        peer,
        entry: entry.clone(),
    }));
    // `Topic::Peer` is the first in order.
    let new = entries
        .iter()
        .filter(|(topic, entry)| before.get(topic) != Some(entry));
    changes.extend(new.map(|(_, entry)| Change::Published {
        peer,
        entry: entry.clone(),
    }));
    *before = Arc::clone(entries);
}
