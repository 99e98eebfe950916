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
use std::sync::{Arc, OnceLock};

use weft_wire::PeerName;

use crate::graph::{Counts, Graph, Position};
use crate::topology::Topology;

/// Where frames go from here.
#[derive(Debug, Clone)]
pub struct Routes {
    /// For each reachable peer besides us, the neighbour that frames for it are sent to.
    pub unicast: Arc<BTreeMap<PeerName, PeerName>>,
    /// For each peer that control messages get to, besides us, the neighbour they are passed to.
    /// They go over connections that carry no frames yet, too, and not over those that are relayed themselves.
    pub control: Arc<BTreeMap<PeerName, PeerName>>,
    us: PeerName,
    graphs: Graphs,
    flood: OnceLock<BTreeMap<PeerName, Vec<PeerName>>>,
}

/// Computes our routes; the broadcast trees when somebody first asks for them.
///
/// For n peers with e connections between them the cost is O(e + n·log n), and O(n² + e·n / 64) for the
/// trees, see `docs/mesh.md` for times.
pub fn compute(topology: &Topology) -> Routes {
    Graphs::new(topology).routes(topology.us())
}

/// What frames go over, and what control messages do: mostly the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Graphs {
    frames: Arc<Graph>,
    control: Arc<Graph>,
}

impl Graphs {
    pub(crate) fn new(topology: &Topology) -> Self {
        Self {
            frames: Graph::new(topology, FRAMES),
            control: Graph::new(topology, CONTROL),
        }
    }

    /// Takes over what `peer` says of its connections now.
    pub(crate) fn heed(&mut self, topology: &Topology, peer: PeerName) {
        Graph::heed(&mut self.frames, topology, peer, FRAMES);
        Graph::heed(&mut self.control, topology, peer, CONTROL);
    }

    /// `peer` says nothing any more.
    pub(crate) fn forget(&mut self, peer: PeerName) {
        Graph::forget(&mut self.frames, peer);
        Graph::forget(&mut self.control, peer);
    }

    pub(crate) fn routes(&self, us: PeerName) -> Routes {
        let unicast = Arc::new(next_hops(&self.frames, us));
        let control = match self.frames == self.control {
            true => Arc::clone(&unicast),
            false => Arc::new(next_hops(&self.control, us)),
        };
        Routes {
            unicast,
            control,
            us,
            graphs: self.clone(),
            flood: OnceLock::new(),
        }
    }
}

const FRAMES: Counts = |link| link.established;
const CONTROL: Counts = |link| !link.relayed;

impl Routes {
    /// For each reachable origin, us included, the neighbours we send its flooded frames to, by
    /// name.
    pub fn flood(&self) -> &BTreeMap<PeerName, Vec<PeerName>> {
        self.flood
            .get_or_init(|| children_by_origin(&self.graphs.frames, self.us))
    }

    /// Whether they are those that follow from `graphs`: most news of a large mesh leave them as they are.
    pub(crate) fn follow_from(&self, graphs: &Graphs) -> bool {
        self.graphs == *graphs
    }
}

/// What the rest is follows from these.
impl PartialEq for Routes {
    fn eq(&self, other: &Self) -> bool {
        (self.us, &self.graphs) == (other.us, &other.graphs)
    }
}

impl Eq for Routes {}

/// For each peer we reach, the neighbour on the way there.
fn next_hops(graph: &Graph, us: PeerName) -> BTreeMap<PeerName, PeerName> {
    let Some(us) = graph.position(us) else {
        return BTreeMap::new();
    };
    // How far each is, and the first hop to it; by levels, away from us.
    let mut reached: Vec<Option<(usize, Position)>> = vec![None; graph.names().len()];
    let mut level = vec![us];
    if let Some(us) = reached.get_mut(usize::from(us)) {
        *us = Some((0, NOBODY));
    }
    for distance in 1.. {
        let mut next = Vec::new();
        for peer in level.iter().flat_map(|above| graph.of(*above)) {
            let Some(None) = reached.get(usize::from(*peer)) else {
                continue;
            };
            let at = |peer: Position| reached.get(usize::from(peer)).copied().flatten();
            let above = |peer| at(peer).is_some_and(|(far, _)| far + 1 == distance);
            let Some(parent) = parent(graph, *peer, *peer, above) else {
                continue;
            };
            // The first hop to a peer is the first hop to its parent, or itself beside us.
            let hop = at(parent).filter(|_| parent != us);
            let hop = hop.map_or(*peer, |(_, hop)| hop);
            if let Some(reached) = reached.get_mut(usize::from(*peer)) {
                *reached = Some((distance, hop));
            }
            next.push(*peer);
        }
        if next.is_empty() {
            break;
        }
        level = next;
    }
    let hops = graph.names().iter().zip(reached);
    hops.filter_map(|(name, reached)| Some((*name, graph.name(reached?.1)?)))
        .collect()
}

/// The first hop from us to us.
const NOBODY: Position = Position::MAX;

/// Those whose parent we are, in the tree of each origin whose tree we are in.
fn children_by_origin(graph: &Graph, us: PeerName) -> BTreeMap<PeerName, Vec<PeerName>> {
    let mut by_origin = BTreeMap::new();
    let Some(us) = graph.position(us) else {
        return by_origin;
    };
    let mut first: Position = 0;
    for origins in graph.names().chunks(usize::from(WORD)) {
        let walk = Walk::through(graph, first.into(), origins.len());
        let mut children: Vec<Option<Vec<PeerName>>> = vec![None; origins.len()];
        for (at, level) in walk.levels.iter().enumerate() {
            let below = walk.levels.get(at + 1).map_or(&[][..], Vec::as_slice);
            let reached = level.get(usize::from(us)).copied().unwrap_or_default();
            for bit in ones(reached) {
                if let Some(children) = children.get_mut(usize::from(bit)) {
                    let own = children_of(graph, us, (first + bit, bit), level, below);
                    *children = Some(own);
                }
            }
        }
        let named = origins.iter().zip(children);
        by_origin.extend(named.filter_map(|(name, children)| Some((*name, children?))));
        first += WORD;
    }
    by_origin
}

/// Those whose parent we are in one tree: `origin` is its origin's position, and that among the
/// origins of the walk; we are on `level`.
fn children_of(
    graph: &Graph,
    us: Position,
    (origin, bit): (Position, Position),
    level: &[u64],
    below: &[u64],
) -> Vec<PeerName> {
    let ours = |peer: &&Position| {
        holds(below, **peer, bit)
            && parent(graph, **peer, origin, |p| holds(level, p, bit)) == Some(us)
    };
    let children = graph.of(us).iter().filter(ours);
    children.filter_map(|child| graph.name(*child)).collect()
}

/// The neighbour of `peer` in the level above it that it gets frames from: the first at or after the
/// position `start`, around the end if need be.
fn parent(
    graph: &Graph,
    peer: Position,
    start: Position,
    above: impl Fn(Position) -> bool,
) -> Option<Position> {
    let neighbours = graph.of(peer);
    let (before, after) = neighbours.split_at(neighbours.partition_point(|n| *n < start));
    after.iter().chain(before).copied().find(|n| above(*n))
}

/// A walk through the graph away from several origins at once, one bit of a word for each: what would
/// be a walk per origin is a few operations on words.
struct Walk {
    /// For each distance, for each peer: the origins it is so far from.
    levels: Vec<Vec<u64>>,
}

impl Walk {
    /// From the peers at position `first` and after it, at most [`WORD`] of them.
    fn through(graph: &Graph, first: usize, origins: usize) -> Self {
        let mut level = vec![0_u64; graph.names().len()];
        for (at, peer) in level.iter_mut().skip(first).take(origins).enumerate() {
            *peer = 1 << at;
        }
        let mut visited = level.clone();
        let mut levels = Vec::new();
        while level.iter().any(|origins| *origins != 0) {
            let mut next = vec![0; level.len()];
            let peers = next.iter_mut().zip(&mut visited).zip(graph.lists());
            for ((next, visited), neighbours) in peers {
                // Whoever was reached by all need not be looked at again.
                if visited.count_ones() as usize == origins {
                    continue;
                }
                let reached = neighbours.iter();
                let reached = reached.filter_map(|n| level.get(usize::from(*n)));
                *next = reached.fold(0, |all, origins| all | origins) & !*visited;
                *visited |= *next;
            }
            levels.push(std::mem::replace(&mut level, next));
        }
        Self { levels }
    }
}

/// Whether a peer is on this level for the origin with this bit.
fn holds(level: &[u64], peer: Position, bit: Position) -> bool {
    level
        .get(usize::from(peer))
        .is_some_and(|origins| origins & (1 << bit) != 0)
}

/// Positions of the bits that are set.
fn ones(mut word: u64) -> impl Iterator<Item = Position> {
    std::iter::from_fn(move || {
        let at = word.trailing_zeros() as Position;
        word &= word.wrapping_sub(1);
        (at < WORD).then_some(at)
    })
}

const WORD: Position = u64::BITS as Position;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use weft_wire::PeerUid;

    use super::*;
    use crate::topology::LinkState;

    proptest! {
        #[test]
        fn each_flood_reaches_each_peer_exactly_once(edges in graphs()) {
            let routes = routes_of_all(&edges);
            for (origin, own) in &routes {
                let mut got = BTreeMap::from([(*origin, 1)]);
                let mut sent: Vec<_> = own.flood()[origin].clone();
                while let Some(peer) = sent.pop() {
                    *got.entry(peer).or_insert(0) += 1;
                    prop_assert!(got[&peer] == 1, "{peer} got a frame of {origin} twice");
                    sent.extend(&routes[&peer].flood()[origin]);
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
                for (origin, children) in routes.flood() {
                    prop_assert!(children.is_sorted());
                    prop_assert!(!children.contains(origin));
                    prop_assert!(children.iter().all(|child| topology.linked_both_ways(us, *child)));
                }
            }
        }
    }

    #[test]
    fn alone_we_flood_to_nobody() {
        let routes = compute(&Topology::new(peer(1)));
        assert!(routes.unicast.is_empty());
        assert_eq!(*routes.flood(), BTreeMap::from([(peer(1), vec![])]));
    }

    #[test]
    fn the_middle_of_a_line_relays_both_ways() {
        let edges = [(1, 2), (2, 3)].map(|(a, b)| (peer(a), peer(b)));
        let routes = compute(&topology(peer(2), &edges));
        assert_eq!(routes.flood()[&peer(1)], [peer(3)]);
        assert_eq!(routes.flood()[&peer(2)], [peer(1), peer(3)]);
        assert_eq!(routes.flood()[&peer(3)], [peer(1)]);
        let routes = compute(&topology(peer(1), &edges));
        assert_eq!(routes.unicast[&peer(3)], peer(2));
    }

    #[test]
    fn a_link_that_one_end_denies_carries_nothing() {
        let mut topology = topology(peer(1), &[(peer(1), peer(2)), (peer(2), peer(3))]);
        topology.set_links(peer(3), PeerUid(1), BTreeMap::new());
        let routes = compute(&topology);
        assert_eq!(*routes.unicast, BTreeMap::from([(peer(2), peer(2))]));
        assert!(!routes.flood().contains_key(&peer(3)));
    }

    #[test]
    fn control_messages_go_over_connections_that_carry_no_frames_yet() {
        let mut topology = topology(peer(1), &[(peer(1), peer(2)), (peer(2), peer(3))]);
        let pending = BTreeMap::from([(
            peer(2),
            LinkState {
                established: false,
                relayed: false,
            },
        )]);
        topology.set_own(pending);
        let routes = compute(&topology);
        assert!(routes.unicast.is_empty());
        let both = [2, 3].map(|n| (peer(n), peer(2)));
        assert_eq!(*routes.control, BTreeMap::from(both));
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
            let relayed = ends.clone().filter(|end| !routes.flood()[end].is_empty());
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
        for (origin, children) in routes.flood() {
            let all = if *origin == peer(50) { 99 } else { 0 };
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
            let link = LinkState {
                established: true,
                relayed: false,
            };
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
