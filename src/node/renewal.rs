//! Gossip that is begun anew while the router runs, because another router with our name has a newer run.
//!
//! What peers said is told again then; until it is, what was known stands, so that names do not flicker.
//! Invariant: a peer that is not told of again within [`SILENCE`] is gone.

use std::time::Instant;

use tracing::info;
use weft_gossip::SILENCE;
use weft_wire::PeerName;

use super::Node;

impl Node {
    /// Begins gossip anew, as a restart of the router would, with a run that is newer than `above`.
    pub(super) fn renew_gossip(&mut self, above: u64) -> anyhow::Result<()> {
        let generation = &mut self.persisted.state.generation;
        *generation = above.max(*generation).saturating_add(1);
        self.persisted.save();
        // What they say is told again; until then it stands.
        self.mesh.unconfirmed = self.mesh.info.keys().copied().collect();
        self.mesh.renewed = Instant::now();
        self.mesh.gossip = crate::start::gossip(
            &self.config,
            self.persisted.state.generation,
            &self.names.table,
            &self.macs,
            &self.networks,
        )?;
        self.mesh.published.clear();
        self.tell_neighbours(Instant::now());
        self.publish_links();
        let rings = self.ipam.iter().map(|a| (a.pool(), a.digest()));
        for (pool, digest) in rings.collect::<Vec<_>>() {
            self.announce_ring(pool, digest);
        }
        Ok(())
    }

    /// A peer is there; all it says is told next.
    pub(super) async fn on_live(&mut self, peer: PeerName) {
        if self.mesh.unconfirmed.remove(&peer) {
            self.mesh.links.forget(peer);
            self.names.drop_origin(peer);
            self.forget_macs_of(peer, Instant::now()).await;
            self.forget_networks_of(peer).await;
        } else {
            info!(%peer, "a peer appeared");
        }
    }

    /// Peers that went while gossip was begun anew: nobody else tells of their end.
    pub(super) async fn drop_unconfirmed(&mut self) {
        if self.mesh.renewed.elapsed() > SILENCE {
            for peer in std::mem::take(&mut self.mesh.unconfirmed) {
                self.on_dead(peer, Instant::now()).await;
            }
        }
    }
}
