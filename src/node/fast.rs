//! The node's part of the fast datapath: what the router machine decides of a peer becomes entries of the
//! kernel for each MAC of that peer.
//!
//! Invariant: the kernel carries frames for the MACs of exactly those peers of whom the router said so
//! last; only a peer that is held, its router being dead, keeps the MACs it had.

use std::collections::BTreeMap;
use std::time::Instant;

use tracing::{debug, info, warn};
use weft_router::macs::Location;
use weft_router::{Carrier, FastEvent};
use weft_wire::{MacAddr, Network, PeerName};

use super::Node;
use crate::fast::{Destination, FastPath, Key};

/// The fast datapath as the node sees it.
pub(crate) struct Fast {
    pub(super) path: FastPath,
    /// Peers whose frames the kernel carries, and where to.
    pub(super) kernel: BTreeMap<PeerName, Destination>,
    /// How often that began, and how often it ended.
    pub(super) changes: Changes,
}

/// How often frames to some peer began to be carried by somebody else.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Changes {
    pub(crate) to_kernel: u64,
    pub(crate) to_router: u64,
}

impl Fast {
    pub(crate) fn new(path: FastPath) -> Self {
        Self {
            path,
            kernel: BTreeMap::new(),
            changes: Changes::default(),
        }
    }
}

impl Node {
    /// What the router wants of the fast datapath to a peer.
    pub(super) async fn on_fast(&mut self, peer: PeerName, event: FastEvent) {
        match event {
            FastEvent::Admit(addr) => {
                if let Err(why) = self.fast.path.admit(peer, addr, Instant::now()).await {
                    warn!(%peer, why, "no fast datapath");
                    self.review_fast();
                }
            }
            FastEvent::Bar => self.fast.path.bar(peer).await,
            FastEvent::Beat { addr, port, frame } => {
                self.fast.path.send_beat(peer, (addr, port), &frame).await;
            }
            FastEvent::Carry { carrier, why } => self.on_carry(peer, carrier, &why).await,
        }
    }

    /// Tells the router whether there can be a fast datapath.
    pub(super) fn review_fast(&mut self) {
        let support = self.fast.path.support();
        // The kernel does not know which addresses a container must not speak from.
        let support = if self.conflicts().is_empty() {
            support
        } else {
            Err("a container was cut off, see `weft status ipam` there".to_owned())
        };
        self.router.set_fast(support, Instant::now());
    }

    /// A MAC is at a peer, or not any more: has the kernel carry its frames if it does so for that peer.
    /// Returns whether nothing is left to be done.
    pub(super) async fn place_by_kernel(
        &mut self,
        network: Network,
        mac: MacAddr,
        at: Option<Location>,
    ) -> bool {
        let key = (network, mac);
        if let Some(Location::Peer(peer)) = at {
            if let Some(to) = self.fast.kernel.get(&peer).copied() {
                match self.fast.path.place(key, peer, to).await {
                    Ok(()) => return true,
                    Err(error) => debug!(%peer, %mac, "the kernel does not carry it: {error:#}"),
                }
            } else if self.fast.path.is_inherited(key, peer) {
                return true;
            }
        }
        // A router that is dead says nothing of its MACs.
        let held = |owner: PeerName| {
            at.is_none()
                && self.fast.kernel.contains_key(&owner)
                && !self.router.connected().contains(&owner)
        };
        self.fast.path.owner(key).is_some_and(held)
    }

    /// Somebody else carries a peer's frames, or it is confirmed who does.
    async fn on_carry(&mut self, peer: PeerName, carrier: Carrier, why: &str) {
        let before = self.fast.kernel.contains_key(&peer);
        match carrier {
            Carrier::Kernel { addr, port } => {
                self.fast.kernel.insert(peer, (addr, port));
                if !before {
                    info!(%peer, host = %addr, "the kernel carries frames (fastdp)");
                    self.fast.changes.to_kernel += 1;
                }
            }
            Carrier::Router => {
                self.fast.kernel.remove(&peer);
                if before {
                    warn!(%peer, why, "frames go sealed, not by the kernel (fastdp)");
                    self.fast.changes.to_router += 1;
                } else if !why.is_empty() {
                    info!(%peer, why, "frames go sealed, not by the kernel (fastdp)");
                }
            }
        }
        self.fast.path.decide(peer);
        let now = Instant::now();
        let known = self.macs.table.iter();
        let known = known.filter(|entry| entry.location == Location::Peer(peer));
        let mut keys: Vec<Key> = known.map(|entry| (entry.network, entry.mac)).collect();
        keys.extend(self.fast.path.placed_of(peer));
        keys.sort_unstable();
        keys.dedup();
        for (network, mac) in keys {
            let at = self.macs.table.lookup(network, mac);
            self.place_mac(network, mac, at, now).await;
        }
    }
}
