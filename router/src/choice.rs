//! Whom to be connected with: with all while there are few peers, else with some beside us in a few
//! circles, and with those that frames are sent to.
//!
//! All peers stand in a *circle*, in an order that a hash of their names gives, and each is connected with
//! the two beside it. Several circles, each in another order, make the sparse graph. Everybody works the
//! circles out by itself, and the two ends of a place in a circle come to the same answer, so nothing need
//! be agreed on:
//!
//! * one circle alone leaves two ways between any two peers that have no peer in common;
//! * with about log₂ n circles the graph is one of few hops, as random graphs are;
//! * a peer that comes or goes concerns only those it stands beside.
//!
//! Where somebody cannot be reached, the next one in the circle is connected with too.
//!
//! The first circle follows at once who comes and goes, so that everybody has a way to everybody. The others wait
//! until nobody has come or gone for a moment: while a thousand peers are started each would else be beside others
//! every few milliseconds, and everybody be told of each connection that came of it, and of its end.
//!
//! Invariant: what this machine keeps is bounded by the number of peers; that a connection is wanted or not
//! changes only after some time ([`IDLE`], and the distance between the limit and [`Choice::few`]).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::{Duration, Instant};

use weft_wire::PeerName;

/// Whom to be connected with.
#[derive(Debug)]
pub(crate) struct Choice {
    us: PeerName,
    /// The most connections to have; 0 for no limit.
    limit: usize,
    /// There are more peers than connections.
    is_sparse: bool,
    /// Those beside us in some circle.
    beside: BTreeSet<PeerName>,
    /// Those beside us in a circle that is not the first.
    farther: BTreeSet<PeerName>,
    coming: Coming,
    /// Those that frames of ours are sent to.
    demand: BTreeMap<PeerName, Demand>,
    /// When to look again at who is to be connected with.
    look_at: Option<Instant>,
}

/// Who comes and goes.
#[derive(Debug, Default)]
struct Coming {
    /// All there were at the last look.
    peers: BTreeSet<PeerName>,
    /// When the last of them came or went, and the first since it was last quiet.
    last: Option<Instant>,
    first: Option<Instant>,
}

/// What is sent to one peer.
#[derive(Debug)]
struct Demand {
    /// When it began; a pause ends it.
    since: Instant,
    last: Instant,
    /// It went on long enough for a connection.
    is_wanted: bool,
}

impl Choice {
    pub(crate) fn new(us: PeerName, limit: usize) -> Self {
        Self {
            us,
            limit,
            is_sparse: false,
            beside: BTreeSet::new(),
            farther: BTreeSet::new(),
            coming: Coming::default(),
            demand: BTreeMap::new(),
            look_at: None,
        }
    }

    /// There is a peer more or less, or one that was thought reachable is not, or the other way; `peers` there
    /// are now, us included. The first one too many is no news to be gathered with others: somebody new in a large
    /// mesh, who hears of all at once, would dial as many as the limit allows, only to let most of them go.
    pub(crate) fn peers_changed(&mut self, peers: usize, now: Instant) {
        if self.limit > 0 {
            let at = match !self.is_sparse && peers > self.limit + 1 {
                true => now,
                false => now + GATHER,
            };
            self.look_at = Some(self.look_at.map_or(at, |before| before.min(at)));
        }
    }

    /// Frames of ours have been sent to this peer in the last moments; whether it is wanted from now on for
    /// that.
    pub(crate) fn handle_demand(&mut self, peer: PeerName, now: Instant) -> bool {
        if !self.is_sparse {
            return false;
        }
        let demand = self.demand.entry(peer).or_insert(Demand {
            since: now,
            last: now,
            is_wanted: false,
        });
        if now.saturating_duration_since(demand.last) > PAUSE {
            demand.since = now;
        }
        demand.last = now;
        let is_new = !demand.is_wanted && now.saturating_duration_since(demand.since) >= DEMAND;
        if is_new {
            demand.is_wanted = true;
            self.look_at = Some(now);
        }
        is_new
    }

    /// Looks anew at who is to be connected with; who has come to be beside us. `peers` are all there are, us
    /// included; `is_usable` says of one whether it is connected or may well be.
    pub(crate) fn look(
        &mut self,
        peers: &BTreeSet<PeerName>,
        is_usable: impl Fn(PeerName) -> bool,
        now: Instant,
    ) -> Vec<PeerName> {
        let before = std::mem::take(&mut self.beside);
        let others = peers.len().saturating_sub(1);
        self.is_sparse = match self.is_sparse {
            false => self.limit > 0 && others > self.limit,
            true => others > self.few(),
        };
        if self.is_sparse {
            let quiet_at = self.coming.look(peers, now);
            if quiet_at.is_none() {
                let circles = 1..self.circles(peers.len());
                self.farther = beside(self.us, peers, circles, &is_usable);
            }
            self.farther.retain(|peer| peers.contains(peer));
            self.beside = beside(self.us, peers, 0..1, is_usable);
            self.beside.extend(&self.farther);
            self.demand
                .retain(|_, demand| now.saturating_duration_since(demand.last) < IDLE);
            self.look_at = Some(quiet_at.unwrap_or(now + LOOK));
        } else {
            self.farther.clear();
            self.coming = Coming::default();
            self.demand.clear();
            self.look_at = None;
        }
        self.beside.difference(&before).copied().collect()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.look_at
    }

    /// Whether there are too many peers to be connected with all.
    pub(crate) fn is_sparse(&self) -> bool {
        self.is_sparse
    }

    /// Whether it is a sparse mesh in which nobody has come or gone of late, so that all circles are up to date.
    pub(crate) fn is_settled(&self) -> bool {
        self.is_sparse && self.coming.first.is_none()
    }

    /// Whether to be connected with this peer.
    pub(crate) fn wants(&self, peer: PeerName) -> bool {
        !self.is_sparse || self.is_beside(peer) || self.is_demanded(peer)
    }

    /// Whether this peer holds the graph together, as far as we are concerned.
    pub(crate) fn is_beside(&self, peer: PeerName) -> bool {
        self.beside.contains(&peer)
    }

    /// Those who do.
    pub(crate) fn beside(&self) -> impl Iterator<Item = PeerName> {
        self.beside.iter().copied()
    }

    pub(crate) fn is_demanded(&self, peer: PeerName) -> bool {
        self.demand
            .get(&peer)
            .is_some_and(|demand| demand.is_wanted)
    }

    /// As many peers, or fewer, are connected with all again.
    fn few(&self) -> usize {
        self.limit - self.limit / 4
    }

    /// How many circles a mesh of so many peers has. They must leave some connections for others.
    fn circles(&self, peers: usize) -> usize {
        let enough = peers.next_power_of_two().trailing_zeros() as usize;
        enough.min(self.limit * 3 / 8).max(1)
    }
}

impl Coming {
    /// `peers` are all there are; when it may be quiet, or none if it is.
    fn look(&mut self, peers: &BTreeSet<PeerName>, now: Instant) -> Option<Instant> {
        if self.peers != *peers {
            self.peers.clone_from(peers);
            self.last = Some(now);
            self.first.get_or_insert(now);
        }
        let quiet_at = (self.last? + QUIET).min(self.first? + RESTLESS);
        if now >= quiet_at {
            self.first = None;
        }
        (now < quiet_at).then_some(quiet_at)
    }
}

/// Those beside us in these circles; where one cannot be used, those behind it too.
fn beside(
    us: PeerName,
    peers: &BTreeSet<PeerName>,
    circles: Range<usize>,
    is_usable: impl Fn(PeerName) -> bool,
) -> BTreeSet<PeerName> {
    let mut beside = BTreeSet::new();
    for circle in circles {
        let place = |peer: PeerName| (place(circle, peer), peer);
        let mut order: Vec<_> = peers.iter().map(|peer| place(*peer)).collect();
        order.sort_unstable();
        let ours = order.partition_point(|at| *at < place(us));
        let (before, from_us) = order.split_at(ours);
        let after = from_us.get(1..).unwrap_or_default();
        let clockwise = after.iter().chain(before);
        let counterclockwise = before.iter().rev().chain(after.iter().rev());
        take_usable(clockwise, &is_usable, &mut beside);
        take_usable(counterclockwise, &is_usable, &mut beside);
    }
    beside
}

fn take_usable<'a>(
    way: impl Iterator<Item = &'a (u64, PeerName)>,
    is_usable: impl Fn(PeerName) -> bool,
    beside: &mut BTreeSet<PeerName>,
) {
    for (_, peer) in way.take(MAX_DETOUR) {
        beside.insert(*peer);
        if is_usable(*peer) {
            return;
        }
    }
}

/// A peer's place in a circle: the finish of SplitMix64, which maps no two inputs to one output. All peers
/// must reckon alike.
fn place(circle: usize, peer: PeerName) -> u64 {
    let name = peer.to_bytes().into_iter();
    let name = name.fold(0, |bits, byte| bits << 8 | u64::from(byte));
    let mut bits = name << 16 ^ circle as u64;
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

/// Frames are sent for so long before a connection is made for them: what is over soon goes over others.
const DEMAND: Duration = Duration::from_secs(3);
/// A pause of the length of some looks of the node at what is sent begins this time anew.
const PAUSE: Duration = Duration::from_millis(1600);
/// After so long without frames the connection is not wanted any more.
pub(crate) const IDLE: Duration = Duration::from_secs(120);
/// News of peers are gathered for this long.
const GATHER: Duration = Duration::from_millis(500);
/// Nobody has come or gone for so long: it is quiet.
const QUIET: Duration = Duration::from_secs(2);
/// After so long without quiet all circles follow all the same.
const RESTLESS: Duration = Duration::from_secs(15);
/// How often it is looked at what is wanted, for the sake of what changes with time alone.
const LOOK: Duration = Duration::from_secs(5);
/// How many in a row are tried in a circle to find one that can be reached.
const MAX_DETOUR: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_peers_are_all_wanted_and_the_change_back_comes_later_than_the_change_there() {
        let mut choice = Choice::new(peer(0), 8);
        for (count, sparse) in [
            (9, false),
            (10, true),
            (9, true),
            (8, true),
            (7, false),
            (9, false),
        ] {
            choice.look(&peers(count), |_| true, crate::clock::start());
            assert_eq!(choice.is_sparse(), sparse, "{count}");
            assert_eq!(
                (1..count).all(|n| choice.wants(peer(n))),
                !sparse,
                "{count}"
            );
        }
        let mut unlimited = Choice::new(peer(0), 0);
        unlimited.look(&peers(1000), |_| true, crate::clock::start());
        assert!(unlimited.wants(peer(999)));
        unlimited.peers_changed(1000, crate::clock::start());
        assert_eq!(unlimited.poll_timeout(), None);
    }

    #[test]
    fn the_first_peer_too_many_is_looked_at_before_anybody_is_dialled() {
        let now = crate::clock::start();
        let mut choice = Choice::new(peer(0), 8);
        choice.peers_changed(9, now);
        assert_eq!(choice.poll_timeout(), Some(now + GATHER));
        choice.peers_changed(10, now);
        assert_eq!(choice.poll_timeout(), Some(now));
        choice.look(&peers(10), |_| true, now);
        assert!(choice.is_sparse());
        choice.peers_changed(11, now);
        assert_eq!(choice.poll_timeout(), Some(now + GATHER));
    }

    #[test]
    fn while_peers_come_the_first_circle_alone_follows_them() {
        let start = crate::clock::start();
        let mut choice = Choice::new(peer(0), 100);
        let mut look = |count, now| {
            choice.look(&peers(count), |_| true, now);
            (
                choice.beside.clone(),
                choice.is_settled(),
                choice.poll_timeout(),
            )
        };
        let circles = |count, circles| beside(peer(0), &peers(count), circles, |_| true);
        let (beside, is_settled, again) = look(200, start);
        assert_eq!((beside, is_settled), (circles(200, 0..1), false));
        assert_eq!(again, Some(start + QUIET));
        let (beside, is_settled, again) = look(200, start + QUIET);
        assert_eq!((beside, is_settled), (circles(200, 0..8), true));
        assert_eq!(again, Some(start + QUIET + LOOK));

        // One a second: it is never quiet, and after a while not waited for any more.
        let mut now = start + Duration::from_secs(60);
        for count in 201..=215 {
            let (beside, is_settled, _) = look(count, now);
            let both = &circles(count, 0..1) | &circles(200, 1..8);
            assert_eq!((beside, is_settled), (both, false), "{count}");
            now += Duration::from_secs(1);
        }
        let (beside, is_settled, _) = look(216, now);
        assert_eq!((beside, is_settled), (circles(216, 0..8), true));

        // Who is gone is not waited for.
        let other = *circles(216, 1..8).first().unwrap();
        let mut left = peers(216);
        left.remove(&other);
        choice.look(&left, |_| true, now + LOOK);
        assert!(!choice.is_beside(other) && !choice.is_settled());
    }

    #[test]
    fn both_ends_come_to_the_same_graph_with_two_ways_round_any_peer() {
        for count in [12, 100, 1000] {
            let graph = graph(count, 100, |_, _| true);
            let most = graph.values().map(BTreeSet::len).max().unwrap();
            let circles = count.next_power_of_two().trailing_zeros() as usize;
            assert!(most <= 2 * circles, "{count}: {most} connections");
            for (us, beside) in &graph {
                assert!(beside.iter().all(|peer| graph[peer].contains(us)));
            }
            for lost in graph.keys().take(100) {
                let from = graph.keys().find(|peer| *peer != lost).unwrap();
                let distances = distances(&graph, *from, Some(*lost));
                assert_eq!(distances.len(), count - 1, "{count}: without {lost}");
            }
            let far = distances(&graph, peer(0), None).into_values().max();
            assert!(far <= Some(4), "{count}: {far:?} hops");
        }
    }

    #[test]
    fn a_peer_that_comes_changes_only_who_is_beside_it() {
        let before = graph(500, 100, |_, _| true);
        let after = graph(501, 100, |_, _| true);
        let changed = before.iter().filter(|(us, beside)| after[us] != **beside);
        assert!(changed.count() <= 2 * 9);
    }

    #[test]
    fn who_cannot_be_reached_is_gone_round() {
        // Those of one half dial nobody in the other half but peer 0.
        let apart = |a: usize, b: usize| a != 0 && b != 0 && (a < 50) != (b < 50);
        let graph = graph(100, 24, |a, b| !apart(a, b));
        let open: BTreeMap<_, BTreeSet<_>> = graph
            .iter()
            .map(|(a, beside)| {
                let open = beside.iter().filter(|b| !apart(number(*a), number(**b)));
                (*a, open.copied().collect())
            })
            .collect();
        for half in [1..50, 50..100] {
            let within: BTreeMap<_, _> = half.map(|n| (peer(n), open[&peer(n)].clone())).collect();
            let reached = distances(&within, *within.keys().next().unwrap(), None);
            assert_eq!(reached.len(), within.len());
        }
    }

    #[test]
    fn frames_that_go_on_make_a_connection_wanted_until_they_cease_for_long() {
        let now = crate::clock::start();
        let mut choice = Choice::new(peer(0), 8);
        let look = |choice: &mut Choice, now| choice.look(&peers(100), |_| true, now);
        look(&mut choice, now);
        let other = (1..100)
            .map(peer)
            .find(|peer| !choice.wants(*peer))
            .unwrap();
        let ms = Duration::from_millis;
        // One here and there is not enough.
        for second in 0..20 {
            choice.handle_demand(other, now + ms(second * 2000));
        }
        assert!(!choice.wants(other));
        let now = now + ms(60_000);
        for n in 0..=6 {
            assert!(!choice.wants(other));
            choice.handle_demand(other, now + ms(n * 500));
        }
        assert!(choice.wants(other));
        let last = now + ms(3000);
        assert_eq!(choice.poll_timeout(), Some(last));
        look(&mut choice, last + IDLE / 2);
        assert!(choice.wants(other));
        look(&mut choice, last + IDLE);
        assert!(!choice.wants(other));
    }

    #[test]
    fn a_small_limit_leaves_room_beside_the_circles() {
        for limit in 1..40 {
            let mut choice = Choice::new(peer(0), limit);
            choice.look(&peers(1000), |_| true, crate::clock::start());
            let most = choice.beside().count();
            assert!(most <= (limit * 3 / 4).max(2), "{limit}: {most}");
        }
    }

    type Graph = BTreeMap<PeerName, BTreeSet<PeerName>>;

    fn graph(count: usize, limit: usize, usable: impl Fn(usize, usize) -> bool) -> Graph {
        let peers = peers(count);
        let circles = Choice::new(peer(0), limit).circles(count);
        let of = |n: usize| {
            beside(peer(n), &peers, 0..circles, |other| {
                usable(n, number(other))
            })
        };
        (0..count).map(|n| (peer(n), of(n))).collect()
    }

    fn distances(
        graph: &Graph,
        from: PeerName,
        without: Option<PeerName>,
    ) -> BTreeMap<PeerName, usize> {
        let mut distances = BTreeMap::from([(from, 0)]);
        let mut open = std::collections::VecDeque::from([from]);
        while let Some(at) = open.pop_front() {
            let hops = distances[&at] + 1;
            for next in graph[&at].iter().filter(|next| Some(**next) != without) {
                if graph.contains_key(next) && !distances.contains_key(next) {
                    distances.insert(*next, hops);
                    open.push_back(*next);
                }
            }
        }
        distances
    }

    fn peers(count: usize) -> BTreeSet<PeerName> {
        (0..count).map(peer).collect()
    }

    fn peer(n: usize) -> PeerName {
        let [high, low] = u16::try_from(n).unwrap().to_be_bytes();
        PeerName::from_bytes([2, 0, 0, 0, high, low])
    }

    fn number(peer: PeerName) -> usize {
        let [.., high, low] = peer.to_bytes();
        u16::from_be_bytes([high, low]).into()
    }
}
