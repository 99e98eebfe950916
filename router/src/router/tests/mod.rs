//! Whole routers talking to each other over pipes, on one virtual clock.

mod admission;
mod fast;
mod life;
mod net;
mod strangers;
mod through;

use super::*;
use crate::link::Up;

impl Router {
    /// The invariants of `mod.rs`.
    fn check(&self) {
        let up = self
            .conns
            .links
            .iter()
            .filter(|(_, link)| link.up().is_some());
        let up: BTreeMap<_, _> = up
            .map(|(conn, link)| (link.peer().unwrap().0, *conn))
            .collect();
        assert_eq!(up, self.conns.peers);
        let ups: Vec<&Up> = self.conns.links.values().filter_map(Link::up).collect();
        assert_eq!(ups.len(), self.conns.peers.len());
        for link in self.conns.links.values() {
            let waits_for = link
                .waits_for()
                .map(|over| self.conns.links.get(&over).is_some());
            assert_ne!(waits_for, Some(false), "it waits for what is gone");
        }
        let due = self.conns.links.values().map(|link| link.poll_timeout().0);
        let first = self.conns.links.poll_timeout().map(|(at, _)| at);
        assert_eq!(due.min(), first, "the order is that of the connections");
        assert!(self.conns.released.is_empty());
        assert!(!self.links_changed);
    }
}
