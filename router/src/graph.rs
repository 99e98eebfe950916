//! The connections that routes may use, kept up to date one word of a peer at a time.
//!
//! A mesh of a thousand has some ten thousand connections, and while it settles a few of them come
//! and go in every tenth of a second. So what a peer says anew is compared with what it said before, and
//! what others have with each other is only copied along.
//!
//! Invariant: however it came about, a graph is the one that [`Graph::new`] makes of the topology;
//! everybody with the same view has the same.

use std::sync::Arc;

use weft_wire::PeerName;

use crate::topology::{LinkState, MAX_PEERS, Topology};

/// Says of a connection, by its state at one end, whether it counts.
pub(crate) type Counts = fn(&LinkState) -> bool;

/// A peer: its place among all names in order.
pub(crate) type Position = u16;

const _: () = assert!(MAX_PEERS < Position::MAX as usize, "each has a place");

/// All peers, and the connections between them that count at both ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Graph {
    names: Vec<PeerName>,
    /// For each peer those it has a connection with, in order: symmetric, and without itself.
    neighbours: Lists,
}

impl Graph {
    /// Of all that a topology says.
    pub(crate) fn new(topology: &Topology, counts: Counts) -> Arc<Self> {
        let mut graph = Self {
            names: topology.peers().into_iter().collect(),
            neighbours: Lists::default(),
        };
        let says = |name: &PeerName| -> Vec<Position> {
            let links = topology.links(*name).into_iter().flatten();
            let counting = links.filter(|(_, link)| counts(link));
            counting.filter_map(|(to, _)| graph.position(*to)).collect()
        };
        let said: Vec<_> = graph.names.iter().map(says).collect();
        let mut neighbours = Lists::default();
        for (at, own) in (0..).zip(&said) {
            let of = |peer: &Position| said.get(usize::from(*peer));
            let say_so = |to: &&Position| of(to).is_some_and(|of| of.binary_search(&at).is_ok());
            let both = own.iter().filter(|to| **to != at).filter(say_so);
            neighbours.push(&[&both.copied().collect::<Vec<_>>()]);
        }
        graph.neighbours = neighbours;
        Arc::new(graph)
    }

    /// Takes over what `name` says now. The graph is copied if somebody else holds it and that is news.
    pub(crate) fn heed(this: &mut Arc<Self>, topology: &Topology, name: PeerName, counts: Counts) {
        if this.position(name).is_none() {
            Arc::make_mut(this).insert(name);
        }
        let Some(at) = this.position(name) else {
            return;
        };
        let linked = this.linked(at, topology, name, counts);
        if this.of(at) != linked {
            Arc::make_mut(this).set(at, &linked);
        }
    }

    /// Leaves out a peer that says nothing any more.
    pub(crate) fn forget(this: &mut Arc<Self>, name: PeerName) {
        if let Some(at) = this.position(name) {
            let graph = Arc::make_mut(this);
            graph.set(at, &[]);
            graph.names.remove(at.into());
            graph.neighbours.remove(at);
        }
    }

    pub(crate) fn position(&self, name: PeerName) -> Option<Position> {
        let at = self.names.binary_search(&name).ok()?;
        Position::try_from(at).ok()
    }

    pub(crate) fn name(&self, peer: Position) -> Option<PeerName> {
        self.names.get(usize::from(peer)).copied()
    }

    pub(crate) fn names(&self) -> &[PeerName] {
        &self.names
    }

    /// Those a peer has connections with, in order.
    pub(crate) fn of(&self, peer: Position) -> &[Position] {
        self.neighbours.of(peer.into())
    }

    /// The neighbours of each peer.
    pub(crate) fn lists(&self) -> impl Iterator<Item = &[Position]> {
        (0..self.names.len()).map(|peer| self.neighbours.of(peer))
    }

    fn insert(&mut self, name: PeerName) {
        let at = self.names.partition_point(|other| *other < name);
        if let Ok(position) = Position::try_from(at) {
            self.names.insert(at, name);
            self.neighbours.insert(position);
        }
    }

    /// Those that `name` says it has a connection with, and that say so, too.
    fn linked(
        &self,
        at: Position,
        topology: &Topology,
        name: PeerName,
        counts: Counts,
    ) -> Vec<Position> {
        let of_others = |to| topology.links(to)?.get(&name);
        let says = topology.links(name).into_iter().flatten();
        let counting = says.filter(|(to, link)| **to != name && counts(link));
        let known = counting.filter_map(|(to, _)| Some((*to, self.position(*to)?)));
        // Whom we have here said so before, and has not spoken since.
        let both = known.filter(|(to, position)| {
            self.of(at).binary_search(position).is_ok() || of_others(*to).is_some_and(counts)
        });
        both.map(|(_, position)| position).collect()
    }

    /// Replaces all connections of one peer, at both ends of each.
    fn set(&mut self, peer: Position, linked: &[Position]) {
        let before = &self.neighbours;
        let old = before.of(peer.into());
        let lacks = |list: &[Position], at: &Position| list.binary_search(at).is_err();
        let lost = old.iter().filter(|at| lacks(linked, at));
        let gained = linked.iter().filter(|at| lacks(old, at));
        let mut others: Vec<_> = lost.chain(gained).chain([&peer]).copied().collect();
        others.sort_unstable();

        let mut after = Lists::with_room(before, 2 * linked.len());
        for at in others {
            after.copy(before, at.into());
            let list = before.of(at.into());
            let (smaller, greater) = list.split_at(list.partition_point(|n| *n < peer));
            match greater.split_first() {
                _ if at == peer => after.push(&[linked]),
                Some((first, rest)) if *first == peer => after.push(&[smaller, rest]),
                _ => after.push(&[smaller, &[peer], greater]),
            }
        }
        after.copy(before, self.names.len());
        self.neighbours = after;
    }
}

/// A list for each peer, one behind the other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Lists {
    all: Vec<Position>,
    /// Where each list ends; it begins where the one before it ends.
    ends: Vec<usize>,
}

impl Lists {
    fn with_room(like: &Self, more: usize) -> Self {
        Self {
            all: Vec::with_capacity(like.all.len() + more),
            ends: Vec::with_capacity(like.ends.len()),
        }
    }

    fn of(&self, at: usize) -> &[Position] {
        let end = self.ends.get(at).copied().unwrap_or_default();
        self.all.get(self.start(at)..end).unwrap_or_default()
    }

    fn start(&self, at: usize) -> usize {
        let before = at.checked_sub(1).and_then(|before| self.ends.get(before));
        before.copied().unwrap_or_default()
    }

    /// Adds a list made of these parts.
    fn push(&mut self, parts: &[&[Position]]) {
        for part in parts {
            self.all.extend_from_slice(part);
        }
        self.ends.push(self.all.len());
    }

    /// Adds the lists of `from` that are still missing here, up to that of `until`.
    fn copy(&mut self, from: &Self, until: usize) {
        let first = self.ends.len();
        let (start, base) = (from.start(first), self.all.len());
        let lists = from.all.get(start..from.start(until));
        self.all.extend_from_slice(lists.unwrap_or_default());
        let ends = from.ends.get(first..until).unwrap_or_default();
        self.ends.extend(ends.iter().map(|end| end - start + base));
    }

    /// Makes place for a peer that has no connections yet.
    fn insert(&mut self, at: Position) {
        for peer in self.all.iter_mut().filter(|peer| **peer >= at) {
            *peer += 1;
        }
        self.ends.insert(at.into(), self.start(at.into()));
    }

    /// Takes out a peer that has no connections any more.
    fn remove(&mut self, at: Position) {
        self.ends.remove(at.into());
        for peer in self.all.iter_mut().filter(|peer| **peer > at) {
            *peer -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use weft_wire::PeerUid;

    use super::*;

    /// What one peer says next; nothing more if it is gone.
    type Word = (u8, Option<BTreeMap<u8, bool>>);

    fn words() -> impl Strategy<Value = Vec<Word>> {
        let links = prop::collection::btree_map(0..12_u8, prop::bool::weighted(0.8), 0..8);
        let word = (0..12_u8, prop::option::weighted(0.85, links));
        prop::collection::vec(word, 0..60)
    }

    proptest! {
        #[test]
        fn a_graph_kept_up_to_date_is_the_one_made_anew(words in words()) {
            let counts: Counts = |link| link.established;
            let mut topology = Topology::new(peer(0));
            let mut graph = Graph::new(&topology, counts);
            for (from, links) in words {
                let from = peer(from);
                match links {
                    Some(links) if from == peer(0) => drop(topology.set_own(states(links))),
                    Some(links) => drop(topology.set_links(from, PeerUid(1), states(links))),
                    None => drop(topology.remove(from)),
                }
                match topology.links(from) {
                    Some(_) => Graph::heed(&mut graph, &topology, from, counts),
                    None => Graph::forget(&mut graph, from),
                }
                prop_assert_eq!(&graph, &Graph::new(&topology, counts));
                for (at, name) in (0..).zip(graph.names()) {
                    let linked = |to: &&PeerName| topology.linked_both_ways(*name, **to);
                    let expected: Vec<_> = graph.names().iter().filter(linked).copied().collect();
                    let of = graph.of(at).iter().filter_map(|to| graph.name(*to));
                    prop_assert_eq!(of.collect::<Vec<_>>(), expected);
                }
            }
        }
    }

    #[test]
    fn what_is_no_news_leaves_a_graph_that_others_hold_alone() {
        let counts: Counts = |link| link.established;
        let mut topology = Topology::new(peer(0));
        topology.set_own(states(BTreeMap::from([(1, true)])));
        topology.set_links(peer(1), PeerUid(1), states(BTreeMap::from([(0, true)])));
        let mut graph = Graph::new(&topology, counts);
        let held = Arc::clone(&graph);
        let more = BTreeMap::from([(0, true), (2, true), (3, false)]);
        topology.set_links(peer(1), PeerUid(1), states(more));
        Graph::heed(&mut graph, &topology, peer(1), counts);
        assert!(Arc::ptr_eq(&held, &graph));
        topology.set_links(peer(1), PeerUid(1), BTreeMap::new());
        Graph::heed(&mut graph, &topology, peer(1), counts);
        assert_eq!((graph.of(0), held.of(0)), (&[][..], &[1][..]));
    }

    fn states(links: BTreeMap<u8, bool>) -> BTreeMap<PeerName, LinkState> {
        let state = |established| LinkState {
            established,
            relayed: false,
        };
        let links = links.into_iter();
        links.map(|(n, up)| (peer(n), state(up))).collect()
    }

    fn peer(n: u8) -> PeerName {
        PeerName::from_bytes([2, 0, 0, 0, 0, n])
    }
}
