//! What all peers say of their connections: the ground that routes are computed on.
//!
//! Each peer tells the mesh, by gossip, to whom it has connections and whether they are
//! established. A peer speaks only for itself, so two peers may disagree about the connection
//! between them, be it because one of them has not heard the news yet or because packets pass in
//! one direction only. Routes use a connection only when both its ends say that it is established
//! ([`Topology::linked_both_ways`]).
//!
//! Invariant: what we say of ourselves comes from [`Topology::set_own`] alone; an echo of it from
//! the mesh, perhaps from an earlier run of ours, changes nothing.
//!
//! Next: [`crate::routes`].

use std::collections::{BTreeMap, BTreeSet};

use weft_wire::{PeerName, PeerUid};

/// The most peers besides us that are kept; what more peers say is left out and counted.
///
/// Some ten times the largest mesh that full connection suits. It bounds what a member gone mad can
/// make everybody else compute: routes for this many peers take under a second.
pub const MAX_PEERS: usize = 2048;

/// What one peer says of its connection to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LinkState {
    /// Frames may flow over it.
    pub established: bool,
    /// Its control messages go over others: it carries frames, and no control messages of anybody else.
    pub relayed: bool,
}

/// What each peer says of its connections.
#[derive(Debug, Clone)]
pub struct Topology {
    us: PeerName,
    own: BTreeMap<PeerName, LinkState>,
    others: BTreeMap<PeerName, Said>,
    left_out: u64,
}

/// What one peer said last.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Said {
    uid: PeerUid,
    links: BTreeMap<PeerName, LinkState>,
}

impl Topology {
    /// A mesh in which we are alone.
    pub fn new(us: PeerName) -> Self {
        Self {
            us,
            own: BTreeMap::new(),
            others: BTreeMap::new(),
            left_out: 0,
        }
    }

    /// Whose topology this is.
    pub fn us(&self) -> PeerName {
        self.us
    }

    /// Replaces what we say of our own connections; returns whether that changed anything.
    pub fn set_own(&mut self, links: BTreeMap<PeerName, LinkState>) -> bool {
        let changed = self.own != links;
        self.own = links;
        changed
    }

    /// Replaces what `peer`, in its run `uid`, says of its connections; returns whether that
    /// changed anything.
    ///
    /// What is said under our own name, by a peer beyond [`MAX_PEERS`], or of more connections than
    /// that, is not taken.
    pub fn set_links(
        &mut self,
        peer: PeerName,
        uid: PeerUid,
        links: BTreeMap<PeerName, LinkState>,
    ) -> bool {
        if peer == self.us {
            return false;
        }
        let full = self.others.len() >= MAX_PEERS && !self.others.contains_key(&peer);
        if full || links.len() > MAX_PEERS {
            self.left_out += 1;
            return false;
        }
        let said = Said { uid, links };
        let changed = self.others.get(&peer) != Some(&said);
        if changed {
            self.others.insert(peer, said);
        }
        changed
    }

    /// Forgets what `peer` said; returns whether it had said anything.
    pub fn remove(&mut self, peer: PeerName) -> bool {
        self.others.remove(&peer).is_some()
    }

    /// Whether `links` lack, or do not call established, one of our connections that is.
    pub(crate) fn lacks_one_of_ours(&self, links: &BTreeMap<PeerName, LinkState>) -> bool {
        let established = self.own.iter().filter(|(_, link)| link.established);
        let mut kept = established.map(|(to, _)| links.get(to).is_some_and(|l| l.established));
        !kept.all(|kept| kept)
    }

    /// How many peers there are, us included.
    pub fn count(&self) -> usize {
        self.others.len() + 1
    }

    /// All who have said something of their connections, and us, by name.
    pub fn peers(&self) -> BTreeSet<PeerName> {
        let others = self.others.keys().copied();
        others.chain([self.us]).collect()
    }

    /// What `peer` says of its connections; `None` if it has said nothing.
    pub fn links(&self, peer: PeerName) -> Option<&BTreeMap<PeerName, LinkState>> {
        if peer == self.us {
            return Some(&self.own);
        }
        Some(&self.others.get(&peer)?.links)
    }

    /// The run of `peer` that spoke last; `None` for us, and for one that has said nothing.
    pub fn uid(&self, peer: PeerName) -> Option<PeerUid> {
        Some(self.others.get(&peer)?.uid)
    }

    /// Whether both `a` and `b` say that the connection between them is established.
    pub fn linked_both_ways(&self, a: PeerName, b: PeerName) -> bool {
        a != b && self.says_established(a, b) && self.says_established(b, a)
    }

    /// Everybody frames can get to from here, over any number of peers in between; we are among
    /// them.
    pub fn reachable(&self) -> BTreeSet<PeerName> {
        let mut reached = BTreeSet::from([self.us]);
        let mut frontier = vec![self.us];
        while let Some(peer) = frontier.pop() {
            let links = self.links(peer).into_iter().flatten();
            for (next, _) in links.filter(|(next, _)| self.linked_both_ways(peer, **next)) {
                if reached.insert(*next) {
                    frontier.push(*next);
                }
            }
        }
        reached
    }

    /// How often what a peer said was not taken because of [`MAX_PEERS`].
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    fn says_established(&self, from: PeerName, to: PeerName) -> bool {
        self.links(from)
            .and_then(|links| links.get(&to))
            .is_some_and(|link| link.established)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_counts_only_when_both_ends_say_it_is_established() {
        let mut topology = Topology::new(peer(1));
        topology.set_own(links(&[(2, true), (3, true), (4, false)]));
        topology.set_links(peer(2), UID, links(&[(1, true)]));
        topology.set_links(peer(3), UID, links(&[(1, false)]));
        topology.set_links(peer(4), UID, links(&[(1, true)]));
        assert!(topology.linked_both_ways(peer(1), peer(2)));
        assert!(topology.linked_both_ways(peer(2), peer(1)));
        assert!(!topology.linked_both_ways(peer(1), peer(3)));
        assert!(!topology.linked_both_ways(peer(1), peer(4)));
        assert!(!topology.linked_both_ways(peer(1), peer(5)));
    }

    #[test]
    fn nobody_is_linked_to_itself() {
        let mut topology = Topology::new(peer(1));
        topology.set_own(links(&[(1, true)]));
        assert!(!topology.linked_both_ways(peer(1), peer(1)));
    }

    #[test]
    fn reachable_is_what_the_links_lead_to_and_us() {
        let mut topology = Topology::new(peer(1));
        assert_eq!(topology.reachable(), BTreeSet::from([peer(1)]));
        topology.set_own(links(&[(2, true)]));
        topology.set_links(peer(2), UID, links(&[(1, true), (3, true)]));
        topology.set_links(peer(3), UID, links(&[(2, true)]));
        topology.set_links(peer(4), UID, links(&[(5, true)]));
        topology.set_links(peer(5), UID, links(&[(4, true)]));
        let line = [1, 2, 3].map(peer);
        assert_eq!(topology.reachable(), BTreeSet::from(line));
        assert!(topology.remove(peer(2)));
        assert_eq!(topology.reachable(), BTreeSet::from([peer(1)]));
    }

    #[test]
    fn every_change_says_whether_it_was_one() {
        let mut topology = Topology::new(peer(1));
        assert!(topology.set_own(links(&[(2, true)])));
        assert!(!topology.set_own(links(&[(2, true)])));
        assert!(topology.set_links(peer(2), UID, links(&[])));
        assert!(!topology.set_links(peer(2), UID, links(&[])));
        assert!(topology.set_links(peer(2), PeerUid(8), links(&[])));
        assert_eq!(topology.uid(peer(2)), Some(PeerUid(8)));
        assert!(topology.remove(peer(2)));
        assert!(!topology.remove(peer(2)));
        assert_eq!(topology.peers(), BTreeSet::from([peer(1)]));
    }

    #[test]
    fn nobody_speaks_for_us() {
        let mut topology = Topology::new(peer(1));
        topology.set_own(links(&[(2, true)]));
        assert!(!topology.set_links(peer(1), UID, links(&[(3, true)])));
        assert!(!topology.remove(peer(1)));
        assert_eq!(topology.links(peer(1)), Some(&links(&[(2, true)])));
    }

    #[test]
    fn peers_beyond_the_bound_are_left_out_and_counted() {
        let mut topology = Topology::new(peer(0));
        for n in 0..MAX_PEERS + 3 {
            let name = PeerName::from_bytes([2, 0, 0, 0, (n >> 8) as u8, n as u8]);
            topology.set_links(name, UID, links(&[]));
        }
        assert_eq!(topology.peers().len(), MAX_PEERS + 1);
        assert_eq!(topology.left_out(), 3);
        let known = PeerName::from_bytes([2, 0, 0, 0, 0, 1]);
        assert!(topology.set_links(known, UID, links(&[(9, true)])));
    }

    const UID: PeerUid = PeerUid(7);

    fn peer(n: u8) -> PeerName {
        PeerName::from_bytes([0, 0, 0, 0, 0, n])
    }

    fn links(to: &[(u8, bool)]) -> BTreeMap<PeerName, LinkState> {
        to.iter()
            .map(|&(n, established)| {
                (
                    peer(n),
                    LinkState {
                        established,
                        relayed: false,
                    },
                )
            })
            .collect()
    }
}
