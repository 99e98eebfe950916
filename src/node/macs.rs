//! What the node does with what it learns of MACs: the table, the host's bridge, the snapshot.
//!
//! Invariant: what the table says of a MAC and what the host was told of it are the same, because
//! whatever moves a MAC in the table goes through [`Node::place_mac`].

use std::time::Instant;

use tracing::{debug, info};
use weft_router::macs::{Learned, Location};
use weft_wire::{MacAddr, Network, PeerName};

use super::Node;
use crate::dataplane::Sighting;

impl Node {
    /// A frame came from where the MAC table does not expect it.
    pub(super) async fn learn(&mut self, sighting: Sighting, now: Instant) {
        let Sighting { network, mac, at } = sighting;
        match self.macs.learn(network, mac, at, now) {
            Learned::Known | Learned::Kept { .. } | Learned::Group => return,
            Learned::Full => {
                return self
                    .host
                    .warn("the MAC table is full: frames to further MACs are flooded".to_owned());
            }
            Learned::New => debug!(%mac, ?at, "learned"),
            Learned::Moved { from } => info!(%mac, ?at, ?from, "moved"),
        }
        self.place_mac(network, mac, Some(at)).await;
    }

    /// A peer is gone, and with it the MACs behind it.
    pub(super) async fn forget_macs_of(&mut self, peer: PeerName) {
        for (network, mac, at) in self.macs.remove_peer(peer) {
            self.place_mac(network, mac, at).await;
        }
    }

    /// MACs nobody has seen for long go.
    pub(super) async fn age_macs(&mut self, now: Instant) {
        for (network, mac, at) in self.macs.age_out(now) {
            self.place_mac(network, mac, at).await;
        }
    }

    /// A MAC is there from now on, or nowhere any more: has the host and the data plane follow the
    /// table. The one place where a MAC reaches the host.
    async fn place_mac(&mut self, network: Network, mac: MacAddr, at: Option<Location>) {
        self.mesh.stale = true;
        match at {
            Some(Location::Peer(_)) => self.host.add_remote_mac(network, mac).await,
            Some(Location::Local) | None => self.host.forget_remote_mac(network, mac).await,
        }
    }
}
