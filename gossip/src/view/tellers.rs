//! Who tells a peer what is new of another one it has no connection with.
//!
//! All its neighbours hear of that at about the same moment, and in a sparse mesh each has twenty. Three of them
//! tell it, and all work out by themselves which: those first that hear of it first, then by a lot that is another
//! one for each two peers, so that nobody tells more than others do. With two there would be meshes in which three
//! peers each have the other two to tell them, and nobody tells any.
//!
//! Invariant: where all agree on who is connected with whom, three tell, or all if there are fewer.

use weft_wire::PeerName;

use super::View;
use crate::run::lot;

/// So many neighbours of a peer tell it what is new of another one.
const TELLERS: usize = 3;

impl View {
    /// Those that both have and tell of a connection with `peer`, in order.
    pub(crate) fn linked_with(&self, peer: PeerName) -> Vec<PeerName> {
        let says = self.peers.get(&peer).filter(|peer| peer.counts());
        let links = says.into_iter().flat_map(|peer| peer.links.iter().copied());
        links.filter(|other| self.is_linked(*other, peer)).collect()
    }

    /// Whether it is others than we who tell `to` what is new of `of`, `near` being those [`View::linked_with`] it.
    /// Everybody tells its own news itself.
    pub(crate) fn others_tell(&self, of: PeerName, near: &[PeerName], to: PeerName) -> bool {
        let Some(peer) = self.peers.get(&to).filter(|peer| peer.counts()) else {
            return false;
        };
        if of == self.us {
            return false;
        }
        let (ours, we_are_near) = (lot(of, to, self.us), self.neighbours.contains(&of));
        let is_before = |other| {
            let by_lot = lot(of, to, other) < ours;
            let is_near = || near.binary_search(&other).is_ok();
            if we_are_near {
                by_lot && is_near()
            } else {
                by_lot || is_near()
            }
        };
        let others = peer.links.iter().copied().filter(|other| *other != self.us);
        let mut before = others.filter(|other| is_before(*other) && self.is_linked(*other, to));
        before.nth(TELLERS - 1).is_some()
    }
}
