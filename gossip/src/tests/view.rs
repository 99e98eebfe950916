//! The view on hand-made nodes: who is shown, who lives, and what is told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chitchat::{Deserializable, Heartbeat, NodeState};
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::time::Instant;
use weft_wire::PeerName;

use super::switch::{Table, link, name, record};
use crate::key::tests::info;
use crate::run::Run;
use crate::view::{States, View};
use crate::{Change, Entry, MAX_ENTRIES, SILENCE};

/// A view of made-up nodes, and the one who is told.
struct Bench {
    view: View,
    states: States,
    neighbours: BTreeSet<PeerName>,
    now: Instant,
    table: Table,
    ignored: u64,
}

impl Bench {
    fn new() -> Self {
        Self {
            view: View::new(run(99, 1)),
            states: States::new(),
            neighbours: BTreeSet::new(),
            now: Instant::now(),
            table: Table::default(),
            ignored: 0,
        }
    }

    fn node(&mut self, run: Run) -> &mut NodeState {
        let fresh = NodeState::for_test;
        self.states.entry(run.id()).or_insert_with(fresh)
    }

    fn set(&mut self, run: Run, entry: &Entry) {
        let (key, value) = entry.encode().unwrap();
        self.node(run).set(key, value);
    }

    /// A run with its `peer` entry and these.
    fn arrive(&mut self, run: Run, entries: &[Entry]) {
        for entry in entries {
            self.set(run, entry);
        }
        self.set(run, &Entry::Peer(info(run.generation)));
    }

    fn beat(&mut self, run: Run) {
        let state = self.node(run);
        let next = u64::from(state.heartbeat()) + 1;
        let next = Heartbeat::deserialize(&mut &next.to_le_bytes()[..]).unwrap();
        state.try_set_heartbeat(next);
    }

    fn look(&mut self) -> Vec<Change> {
        self.view.observe(&self.states, self.now);
        let told = self.view.tell(&self.states, &self.neighbours, self.now);
        self.ignored += told.ignored;
        for change in told.changes {
            self.table.take(change);
        }
        std::mem::take(&mut self.table.log)
    }

    fn known(&self) -> Vec<PeerName> {
        self.table.peers.keys().copied().collect()
    }
}

fn run(n: u8, generation: u64) -> Run {
    Run {
        name: name(n),
        generation,
    }
}

#[test]
fn a_neighbour_is_live_with_its_first_look_and_says_first_who_it_is() {
    let mut bench = Bench::new();
    bench.neighbours.insert(name(1));
    bench.set(run(1, 1), &record("a", 1));
    assert_eq!(bench.look(), [], "its peer entry has not come");
    bench.arrive(run(1, 1), &[]);
    let peer = name(1);
    let published = |entry| Change::Published { peer, entry };
    let told = [
        Change::Live { peer },
        published(Entry::Peer(info(1))),
        published(record("a", 1)),
    ];
    assert_eq!(bench.look(), told);
    assert_eq!(bench.look(), []);
}

#[test]
fn established_links_of_both_ends_connect_and_one_does_not() {
    let mut bench = Bench::new();
    bench.neighbours.insert(name(1));
    bench.arrive(run(1, 1), &[link(name(2), true), link(name(5), true)]);
    bench.arrive(run(2, 1), &[link(name(1), true), link(name(3), true)]);
    bench.arrive(run(3, 1), &[link(name(2), true), link(name(4), true)]);
    bench.arrive(run(4, 1), &[link(name(3), false)]);
    bench.arrive(run(5, 1), &[]);
    bench.look();
    assert_eq!(bench.known(), [name(1), name(2), name(3)]);
    bench.set(run(2, 1), &link(name(3), false));
    bench.look();
    assert_eq!(bench.known(), [name(1), name(2)]);
}

#[test]
fn a_heartbeat_that_moves_twice_makes_live_and_silence_makes_dead() {
    let mut bench = Bench::new();
    bench.arrive(run(1, 1), &[]);
    for beats in 0..2 {
        bench.beat(run(1, 1));
        assert_eq!(bench.look(), [], "after {beats} moves");
        bench.now += Duration::from_secs(2);
    }
    bench.beat(run(1, 1));
    bench.look();
    assert_eq!(bench.known(), [name(1)]);
    bench.now += SILENCE - Duration::from_secs(1);
    assert_eq!(bench.look(), []);
    bench.now += Duration::from_secs(1);
    assert_eq!(bench.look().last(), Some(&Change::Dead { peer: name(1) }));
}

#[test]
fn the_newest_run_that_has_come_whole_is_shown() {
    let mut bench = Bench::new();
    bench.neighbours.insert(name(1));
    bench.arrive(run(1, 3), &[record("a", 1), record("b", 1)]);
    bench.look();
    bench.arrive(run(1, 2), &[record("old", 1)]);
    bench.set(run(1, 7), &record("b", 1));
    assert_eq!(bench.look(), []);
    bench.arrive(run(1, 7), &[record("c", 1)]);
    let peer = name(1);
    let told = [
        Change::Withdrawn {
            peer,
            entry: record("a", 1),
        },
        Change::Published {
            peer,
            entry: Entry::Peer(info(7)),
        },
        Change::Published {
            peer,
            entry: record("c", 1),
        },
    ];
    assert_eq!(bench.look(), told);
    bench.states.remove(&run(1, 7).id());
    assert_eq!(bench.look(), [], "an older run is not gone back to");
}

#[test]
fn a_peer_that_deleted_its_entry_has_left_whatever_its_old_runs_say() {
    let mut bench = Bench::new();
    bench.neighbours.insert(name(1));
    bench.arrive(run(1, 1), &[record("a", 1)]);
    bench.arrive(run(1, 2), &[record("a", 1)]);
    bench.look();
    bench.node(run(1, 2)).delete("peer");
    assert_eq!(bench.look().last(), Some(&Change::Dead { peer: name(1) }));
    assert_eq!(bench.look(), []);
}

#[test]
fn what_is_told_to_us_anew_is_not_withdrawn_in_between() {
    let mut bench = Bench::new();
    bench.neighbours.insert(name(1));
    let names: Vec<_> = (0..10).map(|n| record("a", n)).collect();
    bench.arrive(run(1, 1), &names);
    bench.look();
    // chitchat forgets all of the run and learns it again, in parts.
    bench.states.remove(&run(1, 1).id());
    bench.set(run(1, 1), &names[0]);
    assert_eq!(bench.look(), []);
    bench.arrive(run(1, 1), &names[2..4]);
    assert_eq!(bench.look(), []);
    for entry in &names[4..] {
        bench.set(run(1, 1), entry);
    }
    bench.node(run(1, 1)).set_max_version(12);
    let gone = Change::Withdrawn {
        peer: name(1),
        entry: names[1].clone(),
    };
    assert_eq!(bench.look(), [gone]);
}

#[test]
fn entries_we_cannot_read_are_passed_over_and_counted() {
    let mut bench = Bench::new();
    bench.neighbours.insert(name(1));
    bench.arrive(run(1, 1), &[record("a", 1), link(name(2), true)]);
    bench.node(run(1, 1)).set("colour/red", "x");
    bench.node(run(1, 1)).set("ring/%", "x");
    bench.look();
    assert_eq!((bench.table.peers[&name(1)].len(), bench.ignored), (3, 2));
    let key = link(name(2), true).topic().key();
    bench.node(run(1, 1)).set(key, "nonsense");
    let gone = Change::Withdrawn {
        peer: name(1),
        entry: link(name(2), true),
    };
    assert_eq!(bench.look(), [gone]);
    assert_eq!(bench.ignored, 3);
}

#[test]
fn no_more_of_a_peer_is_shown_than_it_may_publish() {
    let mut bench = Bench::new();
    bench.neighbours.insert(name(1));
    bench.arrive(run(1, 1), &[]);
    for n in 0..MAX_ENTRIES + 5 {
        bench.set(run(1, 1), &Entry::Ring(format!("{n:06}"), "ab".into()));
    }
    bench.look();
    assert_eq!(bench.table.peers[&name(1)].len(), MAX_ENTRIES);
    assert_eq!(bench.ignored, 6);
}

#[test]
fn at_the_end_all_is_withdrawn() {
    let mut bench = Bench::new();
    for n in [1, 2] {
        bench.neighbours.insert(name(n));
        bench.arrive(run(n, 1), &[record("a", n)]);
    }
    bench.look();
    for change in bench.view.end() {
        bench.table.take(change);
    }
    assert_eq!(bench.known(), []);
}

#[test]
fn a_newer_run_of_our_own_name_is_told_and_told_again_while_it_lives() {
    let mut bench = Bench::new();
    let clash = |generation| Change::Clash {
        generation,
        info: info(generation),
    };
    bench.view = View::new(run(99, 5));
    // One that is older than ours is what we were before.
    bench.arrive(run(99, 4), &[]);
    assert_eq!(bench.look(), []);
    bench.arrive(run(99, 7), &[record("a", 1)]);
    assert_eq!(bench.look(), [clash(7)]);
    bench.beat(run(99, 7));
    assert_eq!(
        bench.look(),
        [],
        "it was seen the first time, which says nothing"
    );
    let mut told = 0;
    for _ in 0..60 {
        bench.now += Duration::from_secs(1);
        bench.beat(run(99, 7));
        told += bench.look().iter().filter(|c| **c == clash(7)).count();
    }
    assert!((4..=5).contains(&told), "{told} times in a minute");
    // It is silent now, and says no more.
    bench.now += Duration::from_secs(60);
    assert_eq!(bench.look(), []);
    bench.arrive(run(99, 9), &[]);
    assert_eq!(bench.look(), [clash(9)]);
    assert_eq!(bench.known(), []);
}

/// Something that happens to one of a few runs.
#[derive(Debug, Clone)]
enum Step {
    Set(Run, Entry),
    Delete(Run, Entry),
    Beat(Run),
    Forget(Run),
    Neighbour(u8, bool),
    Wait(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let run = (1_u8..4, 1_u64..3).prop_map(|(n, generation)| run(n, generation));
    let entry = prop_oneof![
        3 => Just(Entry::Peer(info(1))),
        3 => (0_u8..4).prop_map(|n| record("a", n)),
        2 => (1_u8..4, any::<bool>()).prop_map(|(n, up)| link(name(n), up)),
    ];
    prop_oneof![
        6 => (run.clone(), entry.clone()).prop_map(|(run, entry)| Step::Set(run, entry)),
        2 => (run.clone(), entry).prop_map(|(run, entry)| Step::Delete(run, entry)),
        3 => run.clone().prop_map(Step::Beat),
        1 => run.prop_map(Step::Forget),
        2 => (1_u8..4, any::<bool>()).prop_map(|(n, up)| Step::Neighbour(n, up)),
        2 => (0_u8..20).prop_map(Step::Wait),
    ]
}

impl Bench {
    fn take(&mut self, step: Step) {
        match step {
            Step::Set(run, entry) => self.set(run, &entry),
            Step::Delete(run, entry) => {
                let key = entry.topic().key();
                if self.node(run).contains_key(&key) {
                    self.node(run).delete(&key);
                }
            }
            Step::Beat(run) => self.beat(run),
            Step::Forget(run) => drop(self.states.remove(&run.id())),
            Step::Neighbour(n, true) => drop(self.neighbours.insert(name(n))),
            Step::Neighbour(n, false) => drop(self.neighbours.remove(&name(n))),
            Step::Wait(seconds) => self.now += Duration::from_secs(seconds.into()),
        }
    }

    /// What the newest run of a peer that has come says, if chitchat never forgot of it.
    fn truth(&self, n: u8) -> Option<BTreeMap<crate::Topic, Entry>> {
        let states = [2, 1].map(|generation| self.states.get(&run(n, generation).id()));
        let state = states
            .into_iter()
            .flatten()
            .find(|s| s.get_versioned("peer").is_some())?;
        state.get("peer")?;
        let entries = state
            .key_values()
            .filter_map(|(k, v)| Entry::parse(k, v).unwrap());
        Some(entries.map(|entry| (entry.topic(), entry)).collect())
    }
}

proptest! {
    #[test]
    fn all_that_is_told_follows_from_what_was_told(steps in vec(step(), 0..60)) {
        let mut bench = Bench::new();
        let mut forgot = false;
        for step in steps {
            forgot |= matches!(step, Step::Forget(_));
            bench.take(step);
            // The table checks the order and that nothing is told twice.
            bench.look();
        }
        for n in 1..4 {
            if let Some(told) = bench.table.peers.get(&name(n)).filter(|_| !forgot) {
                prop_assert_eq!(Some(told.clone()), bench.truth(n));
            }
            if bench.neighbours.contains(&name(n)) && !forgot {
                let shown = bench.table.peers.contains_key(&name(n));
                prop_assert_eq!(shown, bench.truth(n).is_some());
            }
        }
    }
}
