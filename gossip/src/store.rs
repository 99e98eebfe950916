//! What each run of each peer says, by key, with the version each key was written at.
//!
//! A run counts its writes: every set and every deletion gets the next version. Whoever holds a run up
//! to version v has all its writes up to v, so what it lacks is all above v. A deleted key stays as a
//! *tombstone*, so that the deletion is told too, until it is *collected*; who lacks a collected
//! tombstone is told the run from the beginning, and forgets what it had.
//!
//! Invariants: a run holds at most [`MAX_KEYS`] keys, there are at most [`MAX_RUNS`] runs, and no more is
//! taken in beyond [`MAX_HELD`] bytes of all runs, so that a peer gone mad does not fill the memory of all others.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::MAX_ENTRIES;
use crate::message::{Block, Set};
use crate::run::Run;

/// The most runs held, dead ones that are still remembered included.
pub(crate) const MAX_RUNS: usize = 4_000;
/// The most keys of one run, tombstones included: more than a peer may publish, and its tombstones.
pub(crate) const MAX_KEYS: usize = MAX_ENTRIES + MAX_TOMBSTONES;
/// The most tombstones of one run; the oldest is collected for the next one.
const MAX_TOMBSTONES: usize = 20_000;
/// So many bytes are held, counted with what they cost in memory; then nothing more is taken in.
pub(crate) const MAX_HELD: usize = 128 << 20;
/// What a key costs in memory besides its bytes and its value's.
const KEY_COST: usize = 200;
/// How long tombstones and unreachable peers are remembered, so that peers cut off for less are told
/// differences only.
pub(crate) const GRACE: Duration = Duration::from_secs(5 * 60);

/// How far a run is known: what a peer says to be told the rest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Known {
    /// All writes up to here are known.
    pub(crate) version: u64,
    /// Tombstones up to here are collected.
    pub(crate) collected: u64,
}

/// All runs that were heard of, our own included.
#[derive(Debug, Default)]
pub(crate) struct Store {
    runs: BTreeMap<Run, State>,
    /// Bytes of all runs.
    held: usize,
    /// Keys of runs that have as many as they may, since this was last asked.
    left_out: u64,
}

/// One run.
#[derive(Debug, Default)]
pub(crate) struct State {
    keys: BTreeMap<Arc<str>, Item>,
    /// The same by version.
    writes: BTreeMap<u64, Arc<str>>,
    /// When each tombstone came to be here.
    tombstones: BTreeMap<u64, Instant>,
    known: Known,
    /// Bytes of all keys, see [`MAX_HELD`].
    size: usize,
}

/// What stands under a key.
#[derive(Debug)]
struct Item {
    version: u64,
    /// None of a deleted key.
    value: Option<Arc<str>>,
}

/// What came of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Applied {
    /// Nothing in it was new.
    Nothing,
    /// There was something new. The run was known up to here before.
    News(u64),
    /// It cannot be used before we know what came before it.
    Behind,
    /// There is no room for it.
    Full,
}

impl Store {
    pub(crate) fn get(&self, run: Run) -> Option<&State> {
        self.runs.get(&run)
    }

    /// A run of our own, to be written.
    pub(crate) fn own(&mut self, run: Run) -> &mut State {
        self.runs.entry(run).or_default()
    }

    pub(crate) fn known(&self, run: Run) -> Known {
        self.runs.get(&run).map_or(Known::default(), State::known)
    }

    /// All runs.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Run, &State)> {
        self.runs.iter().map(|(run, state)| (*run, state))
    }

    /// The runs of a peer, the oldest first.
    pub(crate) fn runs_of(
        &self,
        name: weft_wire::PeerName,
    ) -> impl DoubleEndedIterator<Item = (Run, &State)> {
        let run = |generation| Run { name, generation };
        let all = self.runs.range(run(0)..=run(u64::MAX));
        all.map(|(run, state)| (*run, state))
    }

    pub(crate) fn forget(&mut self, run: Run) {
        if let Some(state) = self.runs.remove(&run) {
            self.held = self.held.saturating_sub(state.size);
        }
    }

    /// Takes in what another peer says of a run.
    pub(crate) fn apply(&mut self, block: &Block<'_>, now: Instant) -> Applied {
        let is_known = self.runs.contains_key(&block.run);
        if !is_known && block.since > 0 {
            return Applied::Behind;
        }
        let is_full = !is_known && self.runs.len() >= MAX_RUNS;
        let sets = block.sets.iter();
        let more: usize = sets.map(|set| cost(set.key, set.value)).sum();
        if is_full || self.held + more > MAX_HELD {
            return Applied::Full;
        }
        let state = self.runs.entry(block.run).or_default();
        let before = state.size;
        let applied = state.apply(block, &mut self.left_out, now);
        self.held = (self.held + state.size).saturating_sub(before);
        applied
    }

    /// How many keys found no room since this was last asked.
    pub(crate) fn take_left_out(&mut self) -> u64 {
        std::mem::take(&mut self.left_out)
    }

    /// Collects tombstones that everybody should have heard of.
    pub(crate) fn collect(&mut self, now: Instant) {
        self.held = 0;
        for state in self.runs.values_mut() {
            state.collect(now);
            self.held += state.size;
        }
    }
}

fn cost(key: &str, value: Option<&str>) -> usize {
    KEY_COST + key.len() + value.map_or(0, str::len)
}

impl State {
    pub(crate) fn known(&self) -> Known {
        self.known
    }

    /// Keys that hold something, in order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<str>)> {
        let held = self.keys.iter();
        held.filter_map(|(key, item)| Some((key, item.value.as_ref()?)))
    }

    /// What stands under a key: nothing, a tombstone, or a value.
    pub(crate) fn get(&self, key: &str) -> Option<Option<&str>> {
        let item = self.keys.get(key)?;
        Some(item.value.as_deref())
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.len() - self.tombstones.len()
    }

    /// Keys that hold something and begin so.
    pub(crate) fn prefixed<'a>(
        &'a self,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let held = self.keys.range::<str, _>(from);
        held.take_while(move |(key, _)| key.starts_with(prefix))
            .filter_map(|(key, item)| Some((&**key, item.value.as_deref()?)))
    }

    /// Writes a key of our own.
    pub(crate) fn set(&mut self, key: &str, value: &str) {
        self.put(key, Some(value), self.known.version + 1, None);
    }

    /// Deletes a key of our own.
    pub(crate) fn delete(&mut self, key: &str, now: Instant) {
        if self.get(key).flatten().is_some() {
            self.put(key, None, self.known.version + 1, Some(now));
        }
    }

    fn put(&mut self, key: &str, value: Option<&str>, version: u64, died: Option<Instant>) {
        let (shared, before) = match self.keys.remove_entry(key) {
            Some((shared, before)) => (shared, Some(before)),
            None => (Arc::from(key), None),
        };
        if let Some(before) = before {
            self.writes.remove(&before.version);
            self.tombstones.remove(&before.version);
            self.size = self.size.saturating_sub(cost(key, before.value.as_deref()));
        }
        if let Some(died) = died {
            self.tombstones.insert(version, died);
        }
        self.size += cost(key, value);
        self.writes.insert(version, Arc::clone(&shared));
        let value = value.map(Arc::from);
        self.keys.insert(shared, Item { version, value });
        self.known.version = self.known.version.max(version);
        if self.tombstones.len() > MAX_TOMBSTONES {
            self.collect_oldest();
        }
    }

    fn apply(&mut self, block: &Block<'_>, left_out: &mut u64, now: Instant) -> Applied {
        let before = self.known.version;
        // Deletions we missed are collected there: what we hold may be deleted, and is told anew.
        if block.since == 0 && before > 0 && before < block.collected {
            *self = Self::default();
            self.known.collected = block.collected;
        } else if block.since > before {
            return Applied::Behind;
        }
        let ours = self.known.version;
        for set in block.sets.iter().filter(|set| set.version > ours) {
            if self.keys.len() >= MAX_KEYS && !self.keys.contains_key(set.key) {
                *left_out += 1;
                continue;
            }
            let died = set.value.is_none().then_some(now);
            self.put(set.key, set.value, set.version, died);
        }
        // Writes whose key was written again since are in none of the sets.
        self.known.version = self.known.version.max(block.until);
        if before == 0 {
            self.known.collected = self.known.collected.max(block.collected);
        }
        if self.known.version == before {
            Applied::Nothing
        } else {
            Applied::News(before)
        }
    }

    /// All writes another one lacks that knows the run so far, in order; and from where on they are.
    pub(crate) fn writes_since(&self, theirs: Known) -> (u64, impl Iterator<Item = Set<'_>>) {
        let follows =
            theirs.version >= self.known.collected || theirs.collected >= self.known.collected;
        let since = if follows { theirs.version } else { 0 };
        let lacking = self
            .writes
            .range((Bound::Excluded(since), Bound::Unbounded));
        let sets = lacking.filter_map(|(version, key)| {
            let item = self.keys.get(key)?;
            Some(Set {
                key,
                value: item.value.as_deref(),
                version: *version,
            })
        });
        (since, sets)
    }

    /// The keys written after this version, in order, and what stands under them.
    pub(crate) fn changed_since(
        &self,
        version: u64,
    ) -> impl Iterator<Item = (&Arc<str>, Option<&Arc<str>>)> {
        let writes = self
            .writes
            .range((Bound::Excluded(version), Bound::Unbounded));
        writes.filter_map(|(_, key)| Some((key, self.keys.get(key)?.value.as_ref())))
    }

    fn collect(&mut self, now: Instant) {
        while let Some((_, died)) = self.tombstones.first_key_value() {
            if now.saturating_duration_since(*died) < GRACE {
                return;
            }
            self.collect_oldest();
        }
    }

    fn collect_oldest(&mut self) {
        let Some((version, _)) = self.tombstones.pop_first() else {
            return;
        };
        if let Some(key) = self.writes.remove(&version) {
            self.keys.remove(&key);
            self.size = self.size.saturating_sub(cost(&key, None));
        }
        self.known.collected = self.known.collected.max(version);
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use weft_wire::PeerName;

    use super::*;

    const RUN: Run = Run {
        name: PeerName::from_bytes([2, 0, 0, 0, 0, 1]),
        generation: 1,
    };

    /// Tells `to` what it lacks of `from`, in blocks of so many keys, until it has all; some are lost.
    fn tell(from: &Store, to: &mut Store, at_once: usize, now: Instant) {
        for _ in 0..1000 {
            let state = from.get(RUN).unwrap();
            let (since, sets) = state.writes_since(to.known(RUN));
            let sets: Vec<_> = sets.collect();
            let cut = sets.len() > at_once;
            let sets = &sets[..sets.len().min(at_once)];
            let until = if cut {
                sets.last().unwrap().version
            } else {
                state.known().version
            };
            let block = Block {
                run: RUN,
                collected: state.known().collected,
                since,
                until,
                target: state.known().version,
                sets: sets.to_vec(),
            };
            if to.apply(&block, now) == Applied::Nothing && !cut {
                return;
            }
        }
        panic!("it does not come to an end");
    }

    fn shown(store: &Store) -> Vec<(String, String)> {
        let state = store.get(RUN).unwrap();
        let entries = state.entries();
        entries
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect()
    }

    proptest! {
        /// Writes, deletions, collections and tellings in any order: who is told has the same in the end.
        #[test]
        fn who_is_told_has_the_same(steps in vec((0_u8..6, 0_u8..12, 1_usize..5), 0..120)) {
            let mut stores = [Store::default(), Store::default(), Store::default()];
            let mut now = Instant::now();
            for (what, key, at_once) in steps {
                let key = format!("k{key}");
                match what {
                    0 | 1 => stores[0].own(RUN).set(&key, &at_once.to_string()),
                    2 => stores[0].own(RUN).delete(&key, now),
                    3 => {
                        now += GRACE / 2;
                        for store in &mut stores {
                            store.collect(now);
                        }
                    }
                    // From the writer to the second, from the second to the third.
                    _ => {
                        let to = usize::from(what - 3);
                        let [a, b, c] = &mut stores;
                        let (from, to) = if to == 1 { (a, b) } else { (b, c) };
                        if from.get(RUN).is_some() {
                            tell(from, to, at_once, now);
                        }
                    }
                }
            }
            let [a, b, c] = &mut stores;
            a.own(RUN).set("last", "x");
            tell(a, b, 3, now);
            tell(b, c, 3, now);
            prop_assert_eq!(shown(a), shown(b));
            prop_assert_eq!(shown(a), shown(c));
        }
    }
}
