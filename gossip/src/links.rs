//! What peers say of their connections, to be found by either end.
//!
//! Whoever follows gossip needs both: what a peer says, and what others say of it. Looking through all
//! peers for the second would cost as much per entry as there are peers.
//!
//! Invariant: a peer is in `seen` if and only if its link is in `said`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::RangeInclusive;

use weft_wire::PeerName;

use crate::Link;

/// The connections of all peers as each of them tells of its own.
#[derive(Debug, Clone, Default)]
pub struct Links {
    /// By who tells, and the peer at the other end: one map for all, since a map for each would be half empty.
    said: BTreeMap<(PeerName, PeerName), Link>,
    /// The same the other way round.
    seen: BTreeSet<(PeerName, PeerName)>,
}

impl Links {
    /// `peer` tells of a connection with `to`.
    pub fn set(&mut self, peer: PeerName, to: PeerName, link: Link) {
        self.said.insert((peer, to), link);
        self.seen.insert((to, peer));
    }

    /// `peer` tells of no connection with `to` any more.
    pub fn unset(&mut self, peer: PeerName, to: PeerName) {
        self.said.remove(&(peer, to));
        self.seen.remove(&(to, peer));
    }

    /// `peer` says nothing any more.
    pub fn forget(&mut self, peer: PeerName) {
        let all: Vec<_> = self.of(peer).map(|(to, _)| to).collect();
        for to in all {
            self.unset(peer, to);
        }
    }

    /// What `peer` says.
    pub fn of(&self, peer: PeerName) -> impl Iterator<Item = (PeerName, &Link)> {
        let said = self.said.range(pairs(peer));
        said.map(|((_, to), link)| (*to, link))
    }

    /// What others say of their connections with `peer`.
    pub fn with(&self, peer: PeerName) -> impl Iterator<Item = &Link> {
        let by = self.seen.range(pairs(peer));
        by.filter_map(|(peer, by)| self.said.get(&(*by, *peer)))
    }

    /// Where others have dialled `peer`, or were told it can be, each once and in order. Nobody can dial
    /// what is relayed.
    pub fn dialled(&self, peer: PeerName) -> Vec<SocketAddr> {
        let dialled = self.with(peer).filter(|link| !link.relayed);
        distinct(dialled.map(|link| link.address))
    }

    /// Where others see the datagrams of `peer` come from, each once and in order.
    pub fn datagrams(&self, peer: PeerName) -> Vec<SocketAddr> {
        distinct(self.with(peer).filter_map(|link| match link.relayed {
            true => Some(link.address),
            false => link.datagrams,
        }))
    }
}

/// All pairs that begin with this peer.
fn pairs(peer: PeerName) -> RangeInclusive<(PeerName, PeerName)> {
    (peer, PeerName::from_bytes([0; 6]))..=(peer, PeerName::from_bytes([0xff; 6]))
}

fn distinct(addresses: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut all: Vec<_> = addresses.collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_found_by_either_end_until_they_are_gone() {
        let peer = |n| PeerName::from_bytes([2, 0, 0, 0, 0, n]);
        let link = |n| Link {
            established: true,
            outbound: true,
            address: ([10, 0, 0, n], 6783).into(),
            datagrams: None,
            relayed: false,
        };
        let mut links = Links::default();
        links.set(peer(1), peer(3), link(3));
        links.set(peer(2), peer(3), link(4));
        links.set(peer(1), peer(2), link(2));
        let at = |links: &Links, n| links.with(peer(n)).map(|l| l.address).collect::<Vec<_>>();
        assert_eq!(at(&links, 3), [link(3).address, link(4).address]);
        assert_eq!(links.of(peer(1)).count(), 2);
        links.unset(peer(2), peer(3));
        assert_eq!(at(&links, 3), [link(3).address]);
        links.forget(peer(1));
        assert_eq!((at(&links, 3), links.of(peer(1)).count()), (vec![], 0));
        assert!(links.said.is_empty() && links.seen.is_empty());
    }
}
