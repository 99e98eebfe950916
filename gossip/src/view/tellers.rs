//! Who tells a peer what is new of another one it has no connection with.
//!
//! All its neighbours hear of that at about the same moment, and in a sparse mesh each has twenty. Three of them
//! tell it, and all work out by themselves which: those first that hear of it first, then by a lot that is another
//! one for each two peers, so that nobody tells more than others do. With two there would be meshes in which three
//! peers each have the other two to tell them, and nobody tells any.
//!
//! A connection over which no frames flow does not count: mostly it has just begun, but it may be dead, and then who
//! noticed first would tell somebody who hears nothing, and does not know it.
//!
//! Invariant: where all agree on who is connected with whom, three tell, or all if there are fewer.

use weft_wire::PeerName;

use super::View;
use crate::run::lot;

/// So many neighbours of a peer tell it what is new of another one.
const TELLERS: usize = 3;

impl View {
    /// Whether `a` and `b` hear each other: both tell of a connection over which frames flow.
    pub(crate) fn hear_each_other(&self, a: PeerName, b: PeerName) -> bool {
        [self.link(a, b), self.link(b, a)] == [Some(true); 2]
    }

    /// Those that [hear](View::hear_each_other) `peer`, in order.
    pub(crate) fn hearers_of(&self, peer: PeerName) -> Vec<PeerName> {
        let says = self.peers.get(&peer);
        let links = says.into_iter().flat_map(|peer| peer.links.keys().copied());
        let hearers = links.filter(|other| self.hear_each_other(*other, peer));
        hearers.collect()
    }

    /// Whether it is others than we who tell `to` what is new of `of`, `near` being the [`View::hearers_of`] it.
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
        let others = peer.links.keys().copied().filter(|other| *other != self.us);
        let mut before =
            others.filter(|other| is_before(*other) && self.hear_each_other(*other, to));
        before.nth(TELLERS - 1).is_some()
    }
}
