//! Connections between gossip and the router: ours as others should see them, and theirs as routes and dials
//! need them.
//!
//! Gossip brings many entries of one peer at once; the router is told of each peer once for all of them.

use std::collections::BTreeMap;
use std::time::Instant;

use tracing::warn;
use weft_gossip::{Entry, Link, Topic};
use weft_ipam::MAX_STRANGE;
use weft_router::topology::{LinkState, MAX_PEERS};
use weft_router::{MAX_DISCOVERED, OwnLink, PeerInfo, nearness};
use weft_wire::PeerName;

use super::Node;

impl Node {
    /// Publishes what changed of our own connections.
    pub(super) fn publish_links(&mut self) {
        let links = self.own_links();
        let old = std::mem::replace(&mut self.mesh.published, links.clone());
        for peer in old.keys().filter(|peer| !links.contains_key(peer)) {
            self.mesh
                .gossip
                .withdraw(&Topic::Link(*peer), Instant::now());
        }
        for (peer, link) in links {
            if old.get(&peer) != Some(&link) {
                self.publish(&Entry::Link(peer, link));
            }
        }
    }

    /// Our connections as others should see them.
    fn own_links(&self) -> BTreeMap<PeerName, Link> {
        let listens = |peer| self.mesh.ports.get(&peer).copied();
        let links = self.router.published_links(listens).into_iter();
        links.map(|(peer, link)| (peer, as_said(link))).collect()
    }

    /// Tells the router what is new of connections and addresses, once for all that gossip brought;
    /// whether there was anything.
    pub(super) fn tell_router(&mut self) -> bool {
        let now = Instant::now();
        let relinked = std::mem::take(&mut self.mesh.relinked);
        let readdressed = std::mem::take(&mut self.mesh.readdressed);
        for peer in &relinked {
            self.tell_links(*peer, now);
        }
        for peer in &readdressed {
            self.tell_addresses(*peer, now);
        }
        self.warn_of_bounds();
        !relinked.is_empty() || !readdressed.is_empty()
    }

    /// How often something of other peers was left out, and what that means for it.
    pub(super) fn left_out(&self) -> [(&'static str, u64); 3] {
        [
            ("unrouted", self.router.topology().left_out()),
            ("undialled", self.router.undialled()),
            ("unshown", self.ipam.left_out()),
        ]
    }

    /// Says once of each bound that what is beyond it is left out; how often is in the metrics.
    fn warn_of_bounds(&mut self) {
        for (reason, times) in self.left_out() {
            if times == 0 || !self.mesh.warned.insert(reason) {
                continue;
            }
            match reason {
                "unrouted" => warn!(
                    "there are more than {MAX_PEERS} peers, or connections of one: no routes are worked out to the others"
                ),
                "undialled" => warn!(
                    "there are more than {MAX_DISCOVERED} peers: the others are not dialled unless they are given as targets"
                ),
                _ => warn!(
                    "peers have more than {MAX_STRANGE} address ranges that cannot be ours: `weft status ipam` does not show all of them"
                ),
            }
        }
    }

    /// Tells the router what a peer says of its connections; only once we know which run of it
    /// speaks.
    fn tell_links(&mut self, peer: PeerName, now: Instant) {
        let Some(info) = self.mesh.info.get(&peer) else {
            return;
        };
        let state = |link: &Link| LinkState {
            established: link.established,
            relayed: link.relayed,
        };
        let links = self.mesh.links.of(peer);
        let links = links.map(|(to, link)| (to, state(link))).collect();
        self.router.handle_links(peer, info.uid, links, now);
    }

    /// Tells the router where a peer may be reached: where it says itself, and where others have. What
    /// discovery dials.
    fn tell_addresses(&mut self, peer: PeerName, now: Instant) {
        if peer == self.config.name {
            return;
        }
        let advertised = self.mesh.info.get(&peer).map(|info| &info.addresses);
        let addresses = nearness::in_order(
            advertised.map_or(&[], Vec::as_slice),
            self.mesh.links.dialled(peer),
            &self.mesh.subnets,
        );
        let datagrams = self.mesh.links.datagrams(peer);
        let info = PeerInfo {
            addresses,
            datagrams,
        };
        self.router.handle_peer_info(peer, info, now);
    }
}

const fn as_said(link: OwnLink) -> Link {
    Link {
        established: link.state.established,
        outbound: link.outbound,
        address: link.address,
        datagrams: link.datagrams,
        relayed: link.state.relayed,
    }
}
