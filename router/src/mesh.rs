//! The topology and the routes that follow from it, worked out once for many changes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use weft_wire::{PeerName, PeerUid};

use crate::routes::{Graphs, Routes};
use crate::topology::{LinkState, Topology};

/// What all peers say of their connections, and our routes.
#[derive(Debug)]
pub(crate) struct Mesh {
    topology: Topology,
    /// Those of the topology; the routes may follow from those of a moment ago.
    graphs: Graphs,
    routes: Routes,
    /// When the routes are to be worked out anew.
    due: Option<Instant>,
}

impl Mesh {
    pub(crate) fn new(us: PeerName) -> Self {
        let topology = Topology::new(us);
        let graphs = Graphs::new(&topology);
        Self {
            routes: graphs.routes(us),
            graphs,
            topology,
            due: None,
        }
    }

    /// Our own connections; returns whether they changed, and whether the routes did. Where one is gone
    /// routes follow at once, for they must not lead over it; and in a small mesh, where it costs nothing.
    pub(crate) fn set_own(
        &mut self,
        links: BTreeMap<PeerName, LinkState>,
        now: Instant,
    ) -> (bool, bool) {
        let lost = self.topology.lacks_one_of_ours(&links);
        if !self.topology.set_own(links) {
            return (false, false);
        }
        self.graphs.heed(&self.topology, self.topology.us());
        if lost || self.topology.count() <= SMALL {
            return (true, self.compute());
        }
        self.put_off(now);
        (true, false)
    }

    /// Another peer's connections, as it tells them itself; returns whether it is a new one.
    pub(crate) fn set_links(
        &mut self,
        peer: PeerName,
        uid: PeerUid,
        links: BTreeMap<PeerName, LinkState>,
        now: Instant,
    ) -> bool {
        let before = self.topology.count();
        if self.topology.set_links(peer, uid, links) {
            self.graphs.heed(&self.topology, peer);
            self.put_off(now);
        }
        self.topology.count() > before
    }

    /// A peer is gone from gossip; returns whether it was there.
    pub(crate) fn remove(&mut self, peer: PeerName, now: Instant) -> bool {
        let was_there = self.topology.remove(peer);
        if was_there {
            self.graphs.forget(peer);
            self.put_off(now);
        }
        was_there
    }

    /// Works out the routes if that is due; returns whether they changed.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now) && self.compute()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    pub(crate) fn topology(&self) -> &Topology {
        &self.topology
    }

    pub(crate) fn routes(&self) -> &Routes {
        &self.routes
    }

    fn put_off(&mut self, now: Instant) {
        let peers = u32::try_from(self.topology.count()).unwrap_or(u32::MAX);
        self.due
            .get_or_insert(now + COALESCE + COALESCE_PER_PEER * peers);
    }

    fn compute(&mut self) -> bool {
        self.due = None;
        let changed = !self.routes.follow_from(&self.graphs);
        if changed {
            self.routes = self.graphs.routes(self.topology.us());
        }
        changed
    }
}

/// Gossip brings a change of the mesh from both its ends and in several parts.
const COALESCE: Duration = Duration::from_millis(50);
/// What it costs grows with the mesh, and so does how much there is to gather: at 1,000 peers 0.3 s.
const COALESCE_PER_PEER: Duration = Duration::from_micros(250);
/// In a mesh of so many peers routes are worked out in less than a millisecond.
const SMALL: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_say_is_gathered_and_what_we_see_ourselves_counts_at_once() {
        let (us, them, now) = (peer(1), peer(2), crate::clock::start());
        let mut mesh = Mesh::new(us);
        let link = |to| {
            BTreeMap::from([(
                to,
                LinkState {
                    established: true,
                    relayed: false,
                },
            )])
        };
        mesh.set_links(them, PeerUid(1), link(us), now);
        assert_eq!(mesh.set_own(link(them), now), (true, true));
        assert_eq!(mesh.routes().unicast.get(&them), Some(&them));
        assert_eq!(mesh.set_own(link(them), now), (false, false));

        mesh.set_links(them, PeerUid(1), BTreeMap::new(), now);
        let due = mesh.poll_timeout().unwrap();
        assert!(!mesh.handle_timeout(now));
        assert!(mesh.handle_timeout(due));
        assert!(!mesh.routes().unicast.contains_key(&them));
        assert_eq!(mesh.poll_timeout(), None);
    }

    #[test]
    fn news_that_change_no_connection_change_no_routes() {
        let (us, now) = (peer(1), crate::clock::start());
        let mut mesh = Mesh::new(us);
        let link = LinkState {
            established: true,
            relayed: false,
        };
        let links = |to: &[u8]| to.iter().map(|n| (peer(*n), link)).collect();
        let soon = now + COALESCE * 2;
        mesh.set_own(links(&[2]), now);
        mesh.set_links(peer(2), PeerUid(1), links(&[1]), now);
        mesh.set_links(peer(9), PeerUid(1), links(&[]), now);
        assert!(mesh.handle_timeout(soon));
        // One end alone tells of it.
        mesh.set_links(peer(2), PeerUid(1), links(&[1, 9]), now);
        assert!(!mesh.handle_timeout(soon));
        // It comes, and goes again before anybody looks.
        mesh.set_links(peer(9), PeerUid(1), links(&[2]), now);
        mesh.set_links(peer(9), PeerUid(1), links(&[3]), now);
        assert!(!mesh.handle_timeout(soon));
        mesh.set_links(peer(9), PeerUid(1), links(&[2]), now);
        assert!(mesh.handle_timeout(soon));
        assert_eq!(mesh.routes().unicast[&peer(9)], peer(2));
        assert!(mesh.routes().flood().contains_key(&peer(9)));
    }

    #[test]
    fn in_a_large_mesh_only_a_loss_counts_at_once() {
        let (us, now) = (peer(0), crate::clock::start());
        let mut mesh = Mesh::new(us);
        let link = |to: &[PeerName]| -> BTreeMap<_, _> {
            let links = to.iter().map(|to| {
                (
                    *to,
                    LinkState {
                        established: true,
                        relayed: false,
                    },
                )
            });
            links.collect()
        };
        for n in 1..=100 {
            mesh.set_links(peer(n), PeerUid(1), link(&[us]), now);
        }
        let due = mesh.poll_timeout().unwrap();
        mesh.handle_timeout(due);
        assert_eq!(mesh.set_own(link(&[peer(1), peer(2)]), due), (true, false));
        mesh.handle_timeout(mesh.poll_timeout().unwrap());
        assert_eq!(mesh.routes().unicast.len(), 2);
        assert_eq!(mesh.set_own(link(&[peer(2), peer(3)]), due), (true, true));
        assert!(!mesh.routes().unicast.contains_key(&peer(1)));
    }

    fn peer(n: u8) -> PeerName {
        PeerName::from_bytes([2, 0, 0, 0, 0, n])
    }
}
