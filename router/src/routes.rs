//! From topology to routes: the neighbour on the way to each peer, and the broadcast trees.
//!
//! [`compute`] is a pure function that every peer runs by itself on its own view of the
//! [`Topology`]. Its answers fit together because each rule in it looks only at the topology and
//! at names, never at who asks:
//!
//! * *Unicast* takes a path with the fewest hops. Each hop brings a frame one closer, so while views
//!   agree there is no loop.
//! * A *flood* goes along the broadcast tree of its origin: every peer has one *parent*, a neighbour
//!   one hop closer to the origin. We pass frames on to those whose parent we are. While views
//!   agree, each peer therefore gets each frame exactly once.
//!
//! Of several parents that would do, a peer takes the first by name, counted from the origin's own
//! name on and around. Everybody comes to the same choice, and different origins to different ones,
//! so that the work of relaying is shared.
//!
//! While views differ, a frame may run in a circle or come twice. The hop limit and
//! [`crate::flood::Seen`] take care of that.

use std::collections::BTreeMap;

use weft_wire::PeerName;

use crate::topology::{LinkState, Topology};

/// Where frames go from here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Routes {
    /// For each reachable peer besides us, the neighbour that frames for it are sent to.
    pub unicast: BTreeMap<PeerName, PeerName>,
    /// For each reachable origin, us included, the neighbours we send its flooded frames to, by
    /// name.
    pub flood: BTreeMap<PeerName, Vec<PeerName>>,
    /// For each peer that control messages get to, besides us, the neighbour they are passed to.
    /// They go over connections that carry no frames yet, too.
    pub control: BTreeMap<PeerName, PeerName>,
}

/// Computes our routes.
///
/// The cost is O(n³ / 64) for n peers: 3 ms for a full mesh of 300, 40 ms for one
/// of 1,000 (release build).
pub fn compute(topology: &Topology) -> Routes {
    let graph = Graph::new(topology, |link| link.established);
    let all = Graph::new(topology, |_| true);
    let Some(us) = graph.position(topology.us()) else {
        return Routes::default();
    };
    Routes {
        unicast: graph.next_hops(us),
        flood: graph.children_by_origin(us),
        control: all.next_hops(us),
    }
}

/// The connections that routes may use, as a matrix of bits.
///
/// A peer is its position in `names`, which is sorted; `neighbours` has one row per peer, symmetric
/// and without the diagonal.
struct Graph {
    names: Vec<PeerName>,
    neighbours: Vec<Bits>,
}

impl Graph {
    /// Of the connections that both their ends have, and say `counts` of.
    fn new(topology: &Topology, counts: impl Fn(&LinkState) -> bool) -> Self {
        let names: Vec<_> = topology.peers().into_iter().collect();
        let mut graph = Self {
            neighbours: vec![Bits::none(names.len()); names.len()],
            names,
        };
        let says: Vec<_> = graph
            .names
            .iter()
            .map(|name| graph.says(topology, *name, &counts))
            .collect();
        for (a, row) in graph.neighbours.iter_mut().enumerate() {
            for b in says.get(a).into_iter().flat_map(Bits::iter) {
                if a != b && says.get(b).is_some_and(|back| back.contains(a)) {
                    row.insert(b);
                }
            }
        }
        graph
    }

    fn says(
        &self,
        topology: &Topology,
        name: PeerName,
        counts: impl Fn(&LinkState) -> bool,
    ) -> Bits {
        let mut said = Bits::none(self.names.len());
        for (to, link) in topology.links(name).into_iter().flatten() {
            if let Some(to) = self.position(*to).filter(|_| counts(link)) {
                said.insert(to);
            }
        }
        said
    }

    fn position(&self, name: PeerName) -> Option<usize> {
        self.names.binary_search(&name).ok()
    }

    fn next_hops(&self, us: usize) -> BTreeMap<PeerName, PeerName> {
        let mut next_hops = BTreeMap::new();
        let mut levels = Levels::from(self, us);
        while levels.descend() {
            for peer in levels.level.iter() {
                // The first hop to a peer is the first hop to its parent, or itself beside us.
                let parent = self.parent(peer, &levels.above, peer);
                let hop = parent
                    .and_then(|parent| self.names.get(parent))
                    .and_then(|parent| next_hops.get(parent).copied())
                    .or(self.names.get(peer).copied());
                if let Some((name, hop)) = self.names.get(peer).zip(hop) {
                    next_hops.insert(*name, hop);
                }
            }
        }
        next_hops
    }

    fn children_by_origin(&self, us: usize) -> BTreeMap<PeerName, Vec<PeerName>> {
        self.names
            .iter()
            .enumerate()
            .filter_map(|(origin, name)| Some((*name, self.children(us, origin)?)))
            .collect()
    }

    /// Those whose parent we are in the tree of `origin`; `None` if we are not in that tree.
    fn children(&self, us: usize, origin: usize) -> Option<Vec<PeerName>> {
        let mut levels = Levels::from(self, origin);
        while !levels.level.contains(us) {
            if !levels.descend() {
                return None;
            }
        }
        let mut below = self.neighbours.get(us)?.clone();
        below.subtract(&levels.visited);
        let ours = |peer: &usize| self.parent(*peer, &levels.level, origin) == Some(us);
        let children = below.iter().filter(ours);
        Some(
            children
                .filter_map(|c| self.names.get(c).copied())
                .collect(),
        )
    }

    /// The neighbour of `peer` in the level above it that it gets frames from: the first at or
    /// after the position `start`, around the end if need be.
    fn parent(&self, peer: usize, above: &Bits, start: usize) -> Option<usize> {
        let mut candidates = self.neighbours.get(peer)?.clone();
        candidates.intersect(above);
        candidates.first_from(start).or(candidates.first_from(0))
    }
}

/// A walk through the graph, away from one peer, all peers at the same distance at once.
struct Levels<'a> {
    graph: &'a Graph,
    /// Those one hop closer than `level`.
    above: Bits,
    /// Those at the present distance.
    level: Bits,
    /// Those at the present distance or closer.
    visited: Bits,
}

impl<'a> Levels<'a> {
    fn from(graph: &'a Graph, start: usize) -> Self {
        let none = Bits::none(graph.names.len());
        let mut level = none.clone();
        level.insert(start);
        Self {
            graph,
            above: none,
            visited: level.clone(),
            level,
        }
    }

    /// Goes one hop further; returns whether there was anybody.
    fn descend(&mut self) -> bool {
        let mut next = Bits::none(self.graph.names.len());
        for peer in self.level.iter() {
            if let Some(neighbours) = self.graph.neighbours.get(peer) {
                next.unite(neighbours);
            }
        }
        next.subtract(&self.visited);
        self.visited.unite(&next);
        self.above = std::mem::replace(&mut self.level, next);
        !self.level.is_empty()
    }
}

/// A set of positions below a size given at the start.
#[derive(Clone)]
struct Bits {
    words: Vec<u64>,
}

impl Bits {
    fn none(size: usize) -> Self {
        let words = vec![0; size.div_ceil(WORD)];
        Self { words }
    }

    fn insert(&mut self, at: usize) {
        if let Some(word) = self.words.get_mut(at / WORD) {
            *word |= 1 << (at % WORD);
        }
    }

    fn contains(&self, at: usize) -> bool {
        let word = self.words.get(at / WORD);
        word.is_some_and(|word| word & (1 << (at % WORD)) != 0)
    }

    fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    fn unite(&mut self, other: &Self) {
        self.combine(other, |mine, theirs| mine | theirs);
    }

    fn intersect(&mut self, other: &Self) {
        self.combine(other, |mine, theirs| mine & theirs);
    }

    fn subtract(&mut self, other: &Self) {
        self.combine(other, |mine, theirs| mine & !theirs);
    }

    fn combine(&mut self, other: &Self, with: impl Fn(u64, u64) -> u64) {
        for (mine, theirs) in self.words.iter_mut().zip(&other.words) {
            *mine = with(*mine, *theirs);
        }
    }

    /// The smallest member that is `start` or above.
    fn first_from(&self, start: usize) -> Option<usize> {
        let mut mask = u64::MAX << (start % WORD);
        for (at, word) in self.words.iter().enumerate().skip(start / WORD) {
            let rest = word & mask;
            if rest != 0 {
                return Some(at * WORD + rest.trailing_zeros() as usize);
            }
            mask = u64::MAX;
        }
        None
    }

    fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let found = self.first_from(from)?;
            from = found + 1;
            Some(found)
        })
    }
}

const WORD: usize = u64::BITS as usize;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use weft_wire::PeerUid;

    use super::*;

    proptest! {
        #[test]
        fn each_flood_reaches_each_peer_exactly_once(edges in graphs()) {
            let routes = routes_of_all(&edges);
            for (origin, own) in &routes {
                let mut got = BTreeMap::from([(*origin, 1)]);
                let mut sent: Vec<_> = own.flood[origin].clone();
                while let Some(peer) = sent.pop() {
                    *got.entry(peer).or_insert(0) += 1;
                    prop_assert!(got[&peer] == 1, "{peer} got a frame of {origin} twice");
                    sent.extend(&routes[&peer].flood[origin]);
                }
                let all: BTreeSet<_> = own.unicast.keys().copied().chain([*origin]).collect();
                prop_assert_eq!(got.into_keys().collect::<BTreeSet<_>>(), all);
            }
        }

        #[test]
        fn next_hops_lead_to_each_reachable_peer_by_a_shortest_path(edges in graphs()) {
            let routes = routes_of_all(&edges);
            for from in routes.keys() {
                let distances = distances(&edges, *from);
                let reached: BTreeSet<_> = routes[from].unicast.keys().copied().collect();
                let expected: BTreeSet<_> = distances.keys().copied().filter(|p| p != from).collect();
                prop_assert_eq!(&reached, &expected);
                for to in reached {
                    let mut at = *from;
                    let mut hops = 0;
                    while at != to {
                        at = routes[&at].unicast[&to];
                        hops += 1;
                        prop_assert!(hops <= distances[&to], "detour or loop from {from} to {to}");
                    }
                    prop_assert_eq!(hops, distances[&to]);
                }
            }
        }

        #[test]
        fn flood_routes_use_only_neighbours_and_never_lead_back(edges in graphs()) {
            for (us, routes) in routes_of_all(&edges) {
                let topology = topology(us, &edges);
                for (origin, children) in routes.flood {
                    prop_assert!(children.is_sorted());
                    prop_assert!(!children.contains(&origin));
                    prop_assert!(children.iter().all(|child| topology.linked_both_ways(us, *child)));
                }
            }
        }
    }

    #[test]
    fn alone_we_flood_to_nobody() {
        let routes = compute(&Topology::new(peer(1)));
        assert_eq!(routes.unicast, BTreeMap::new());
        assert_eq!(routes.flood, BTreeMap::from([(peer(1), vec![])]));
    }

    #[test]
    fn the_middle_of_a_line_relays_both_ways() {
        let edges = [(1, 2), (2, 3)].map(|(a, b)| (peer(a), peer(b)));
        let routes = compute(&topology(peer(2), &edges));
        assert_eq!(routes.flood[&peer(1)], [peer(3)]);
        assert_eq!(routes.flood[&peer(2)], [peer(1), peer(3)]);
        assert_eq!(routes.flood[&peer(3)], [peer(1)]);
        let routes = compute(&topology(peer(1), &edges));
        assert_eq!(routes.unicast[&peer(3)], peer(2));
    }

    #[test]
    fn a_link_that_one_end_denies_carries_nothing() {
        let mut topology = topology(peer(1), &[(peer(1), peer(2)), (peer(2), peer(3))]);
        topology.set_links(peer(3), PeerUid(1), BTreeMap::new());
        let routes = compute(&topology);
        assert_eq!(routes.unicast, BTreeMap::from([(peer(2), peer(2))]));
        assert!(!routes.flood.contains_key(&peer(3)));
    }

    #[test]
    fn control_messages_go_over_connections_that_carry_no_frames_yet() {
        let mut topology = topology(peer(1), &[(peer(1), peer(2)), (peer(2), peer(3))]);
        let pending = BTreeMap::from([(peer(2), LinkState { established: false })]);
        topology.set_own(pending);
        let routes = compute(&topology);
        assert!(routes.unicast.is_empty());
        let both = [2, 3].map(|n| (peer(n), peer(2)));
        assert_eq!(routes.control, BTreeMap::from(both));
    }

    #[test]
    fn different_origins_use_different_relays() {
        // Sixteen peers that see each other only through any of four relays.
        let ends = (0..16).map(|n| peer(n * 16 + 1));
        for relay in [30, 90, 150, 210].map(peer) {
            let edges: Vec<_> = [30, 90, 150, 210]
                .into_iter()
                .flat_map(|relay| ends.clone().map(move |end| (peer(relay), end)))
                .collect();
            let routes = compute(&topology(relay, &edges));
            let relayed = ends.clone().filter(|end| !routes.flood[end].is_empty());
            assert!(relayed.count() >= 3, "{relay} relays too little");
        }
    }

    #[test]
    fn in_a_full_mesh_nobody_relays() {
        let peers: Vec<_> = (0..100).map(peer).collect();
        let pairs = peers.iter().flat_map(|a| peers.iter().map(|b| (*a, *b)));
        let edges: Vec<_> = pairs.filter(|(a, b)| a < b).collect();
        let routes = compute(&topology(peer(50), &edges));
        assert!(routes.unicast.iter().all(|(to, via)| to == via));
        for (origin, children) in routes.flood {
            let all = if origin == peer(50) { 99 } else { 0 };
            assert_eq!(children.len(), all, "{origin}");
        }
    }

    type Edges = Vec<(PeerName, PeerName)>;

    /// Sparse and dense graphs of up to 16 peers, connected or not.
    fn graphs() -> impl Strategy<Value = Edges> {
        (2..16_u8, 0..50_usize).prop_flat_map(|(size, edges)| {
            let edge = (0..size, 0..size).prop_map(|(a, b)| (peer(a), peer(b)));
            prop::collection::vec(edge, edges)
        })
    }

    fn routes_of_all(edges: &[(PeerName, PeerName)]) -> BTreeMap<PeerName, Routes> {
        let peers: BTreeSet<_> = edges.iter().flat_map(|(a, b)| [*a, *b]).collect();
        let routes = |us| (us, compute(&topology(us, edges)));
        peers.into_iter().map(routes).collect()
    }

    /// The one view all peers share, as seen by `us`.
    fn topology(us: PeerName, edges: &[(PeerName, PeerName)]) -> Topology {
        let mut links: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for (a, b) in edges.iter().flat_map(|(a, b)| [(*a, *b), (*b, *a)]) {
            let link = LinkState { established: true };
            links.entry(a).or_default().insert(b, link);
        }
        let mut topology = Topology::new(us);
        topology.set_own(links.remove(&us).unwrap_or_default());
        for (peer, links) in links {
            topology.set_links(peer, PeerUid(1), links);
        }
        topology
    }

    /// Hops from `from` to everybody it reaches, the naive way.
    fn distances(edges: &[(PeerName, PeerName)], from: PeerName) -> BTreeMap<PeerName, u32> {
        let mut distances = BTreeMap::from([(from, 0)]);
        for hops in 1.. {
            let both = edges.iter().flat_map(|(a, b)| [(*a, *b), (*b, *a)]);
            let new: BTreeSet<_> = both
                .filter(|(a, b)| distances.contains_key(a) && !distances.contains_key(b))
                .map(|(_, b)| b)
                .collect();
            if new.is_empty() {
                break;
            }
            distances.extend(new.into_iter().map(|peer| (peer, hops)));
        }
        distances
    }

    fn peer(n: u8) -> PeerName {
        PeerName::from_bytes([2, 0, 0, 0, 0, n])
    }
}
