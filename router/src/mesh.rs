//! The topology and the routes that follow from it, worked out once for many changes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use weft_wire::{PeerName, PeerUid};

use crate::routes::{self, Routes};
use crate::topology::{LinkState, Topology};

/// What all peers say of their connections, and our routes.
#[derive(Debug)]
pub(crate) struct Mesh {
    topology: Topology,
    routes: Routes,
    /// When the routes are to be worked out anew.
    due: Option<Instant>,
}

impl Mesh {
    pub(crate) fn new(us: PeerName) -> Self {
        let topology = Topology::new(us);
        Self {
            routes: routes::compute(&topology),
            topology,
            due: None,
        }
    }

    /// Our own connections; returns whether they changed. Routes follow at once, for they must not
    /// lead over a connection that is gone.
    pub(crate) fn set_own(&mut self, links: BTreeMap<PeerName, LinkState>) -> bool {
        let changed = self.topology.set_own(links);
        if changed {
            self.compute();
        }
        changed
    }

    /// Another peer's connections, as it tells them itself.
    pub(crate) fn set_links(
        &mut self,
        peer: PeerName,
        uid: PeerUid,
        links: BTreeMap<PeerName, LinkState>,
        now: Instant,
    ) {
        if self.topology.set_links(peer, uid, links) {
            self.put_off(now);
        }
    }

    /// A peer is gone from gossip.
    pub(crate) fn remove(&mut self, peer: PeerName, now: Instant) {
        if self.topology.remove(peer) {
            self.put_off(now);
        }
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
        self.due.get_or_insert(now + COALESCE);
    }

    fn compute(&mut self) -> bool {
        self.due = None;
        let routes = routes::compute(&self.topology);
        let changed = routes != self.routes;
        self.routes = routes;
        changed
    }
}

/// Gossip brings a change of the mesh from both its ends and in several parts.
const COALESCE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_say_is_gathered_and_what_we_see_ourselves_counts_at_once() {
        let (us, them, now) = (peer(1), peer(2), crate::clock::start());
        let mut mesh = Mesh::new(us);
        let link = |to| BTreeMap::from([(to, LinkState { established: true })]);
        mesh.set_links(them, PeerUid(1), link(us), now);
        assert!(mesh.set_own(link(them)));
        assert_eq!(mesh.routes().unicast.get(&them), Some(&them));
        assert!(!mesh.set_own(link(them)));

        mesh.set_links(them, PeerUid(1), BTreeMap::new(), now);
        let due = mesh.poll_timeout().unwrap();
        assert!(!mesh.handle_timeout(now));
        assert!(mesh.handle_timeout(due));
        assert!(!mesh.routes().unicast.contains_key(&them));
        assert_eq!(mesh.poll_timeout(), None);

        mesh.remove(them, now);
        assert!(
            !mesh.handle_timeout(now + COALESCE),
            "no route is changed by it"
        );
    }

    fn peer(n: u8) -> PeerName {
        PeerName::from_bytes([2, 0, 0, 0, 0, n])
    }
}
