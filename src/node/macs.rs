//! What the node does with what it learns of MACs: the table, what we say of our own, the host's bridge,
//! the snapshot.
//!
//! ```text
//!   frames seen ────┐                     ┌──▶ host's bridge, forwarding snapshot
//!   peers' words ───┼─▶ table ─▶ place_mac┤
//!   registrations ──┘                     └──▶ home ─▶ gossip
//! ```
//!
//! Invariant: what the table says of a MAC and what the host and [`Home`] were told of it are the same,
//! because whatever moves a MAC in the table goes through [`Node::place_mac`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};
use weft_gossip::{Binding, Entry, Topic};
use weft_router::bindings::Bindings;
use weft_router::home::{self, Home, Port};
use weft_router::macs::{Kind, Learned, Location, MacTable};
use weft_wire::{MacAddr, Network, PeerName};

use super::Node;
use crate::dataplane::Sighting;

/// All that is known of MACs.
pub(crate) struct Macs {
    /// Where each is.
    pub(super) table: MacTable,
    /// Which addresses each has.
    pub(super) bindings: Bindings,
    /// What we tell of those on this host.
    pub(super) home: Home,
    /// When MACs were registered whose ports need not be there yet.
    pub(super) making: BTreeMap<home::Key, Instant>,
    moves: Moves,
}

impl Macs {
    pub(crate) fn new() -> Self {
        Self {
            table: MacTable::new(),
            bindings: Bindings::new(),
            home: Home::new(),
            making: BTreeMap::new(),
            moves: Moves::default(),
        }
    }

    /// What we publish of MACs, all of it.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        let published = self.home.published();
        let entry = |(key, kind, addresses): (home::Key, Kind, &[_])| entry(key, kind, addresses);
        published.map(entry).collect()
    }
}

impl Node {
    /// A frame came from where the MAC table does not expect it.
    ///
    /// What comes from a peer that is not known is not learned: it may be the last of one that just left,
    /// whose MACs nobody would take out of the table any more.
    pub(super) async fn learn(&mut self, sighting: Sighting, now: Instant) {
        let Sighting { network, mac, at } = sighting;
        if at
            .peer()
            .is_some_and(|peer| !self.mesh.info.contains_key(&peer))
        {
            return;
        }
        let learned = self.macs.table.learn(network, mac, at, now);
        self.follow((network, mac), learned, now).await;
    }

    /// A peer says that a MAC is on its host.
    pub(super) async fn on_binding(
        &mut self,
        peer: PeerName,
        (network, mac): home::Key,
        said: &Binding,
        now: Instant,
    ) {
        if !self.config.mesh.mac_gossip {
            return;
        }
        let at = Location::Peer(peer);
        let kind = if said.registered {
            Kind::Registered
        } else {
            Kind::Learned
        };
        let claimed = self.macs.table.claim(network, mac, at, kind, now);
        self.follow((network, mac), claimed, now).await;
        let addresses = match kind {
            Kind::Registered => said.addresses.as_slice(),
            Kind::Learned => &[],
        };
        let left_out = self.macs.bindings.bind(network, mac, at, addresses);
        if left_out > 0 {
            debug!(%peer, %mac, left_out, "addresses of a MAC not taken over: ARP requests for them are passed on");
        }
        self.mesh.stale = true;
    }

    /// A peer says no more that a MAC is on its host.
    pub(super) async fn on_binding_gone(
        &mut self,
        peer: PeerName,
        (network, mac): home::Key,
        now: Instant,
    ) {
        let at = Location::Peer(peer);
        self.macs.bindings.unbind(network, mac, at);
        self.mesh.stale = true;
        if let Some((network, mac, at)) = self.macs.table.withdraw(network, mac, at) {
            self.place_mac(network, mac, at, now).await;
        }
    }

    /// A peer is gone, and with it the MACs behind it.
    pub(super) async fn forget_macs_of(&mut self, peer: PeerName, now: Instant) {
        self.mesh.stale |= self.macs.bindings.remove_peer(peer);
        for (network, mac, at) in self.macs.table.remove_peer(peer) {
            self.place_mac(network, mac, at, now).await;
        }
    }

    /// MACs nobody has seen for long go.
    pub(super) async fn age_macs(&mut self, now: Instant) {
        for (network, mac, at) in self.macs.table.age_out(now) {
            self.place_mac(network, mac, at, now).await;
        }
        if let Some(left_out) = self.macs.moves.end_minute(now) {
            warn!(
                left_out,
                "more MACs moved than are logged: is one in use twice, or is there a loop?"
            );
        }
    }

    /// Has everything follow what the table made of a sighting or a claim.
    pub(super) async fn follow(
        &mut self,
        (network, mac): home::Key,
        learned: Learned,
        now: Instant,
    ) {
        let at = self.macs.table.lookup(network, mac);
        match learned {
            Learned::Known | Learned::Kept { .. } | Learned::Group => return,
            Learned::Full => {
                return self
                    .host
                    .warn("the MAC table is full: frames to further MACs are flooded".to_owned());
            }
            Learned::New => debug!(%mac, ?at, "learned"),
            Learned::Moved { from } if self.macs.moves.is_worth_a_line(now) => {
                info!(%mac, ?at, ?from, "moved");
            }
            Learned::Moved { from } => debug!(%mac, ?at, ?from, "moved"),
        }
        self.place_mac(network, mac, at, now).await;
    }

    /// A MAC is there from now on, or nowhere any more: has the host and the data plane follow the
    /// table. The one place where a MAC reaches the host.
    pub(super) async fn place_mac(
        &mut self,
        network: Network,
        mac: MacAddr,
        at: Option<Location>,
        now: Instant,
    ) {
        self.mesh.stale = true;
        if !self.place_by_kernel(network, mac, at).await {
            match at {
                Some(Location::Peer(_)) => self.host.add_remote_mac(network, mac).await,
                Some(Location::Local) | None => self.host.forget_remote_mac(network, mac).await,
            }
            self.fast.path.unplace((network, mac)).await;
        }
        self.macs.home.handle_placed((network, mac), at, now);
    }

    /// Tells the others of MACs that have been here for a while.
    pub(super) async fn publish_learned(&mut self, now: Instant) {
        if !self.macs.home.is_due(now) {
            return;
        }
        let learned = self.host.learned_ports().await.into_iter();
        let ports = learned.map(|(key, port)| (key, Port(port)));
        self.macs.home.handle_ports(&ports.collect(), now);
    }

    /// Something is to be said of our MACs.
    pub(super) fn on_home(&mut self, event: home::Event) {
        if !self.config.mesh.mac_gossip {
            return;
        }
        match event {
            home::Event::Publish {
                key,
                kind,
                addresses,
            } => self.publish(&entry(key, kind, &addresses)),
            home::Event::Withdraw {
                key: (network, mac),
            } => {
                self.mesh
                    .gossip
                    .withdraw(&Topic::Mac(network, mac), Instant::now());
            }
        }
    }
}

fn entry((network, mac): home::Key, kind: Kind, addresses: &[std::net::IpAddr]) -> Entry {
    let binding = Binding {
        registered: kind == Kind::Registered,
        addresses: addresses.to_vec(),
    };
    Entry::Mac(network, mac, binding)
}

/// Keeps MACs that move to and fro from filling the log.
#[derive(Debug, Default)]
struct Moves {
    minute: Option<Instant>,
    told: u32,
    left_out: u32,
}

impl Moves {
    /// Whether a move should be logged for whoever looks; if not, it is counted.
    fn is_worth_a_line(&mut self, now: Instant) -> bool {
        self.minute.get_or_insert(now);
        if self.told < MOVES_TOLD {
            self.told += 1;
            return true;
        }
        self.left_out += 1;
        false
    }

    /// How many moves were not logged in the last minute, if it is over and there were any.
    fn end_minute(&mut self, now: Instant) -> Option<u32> {
        let begin = self.minute?;
        if now.saturating_duration_since(begin) < MINUTE {
            return None;
        }
        let left_out = std::mem::take(self).left_out;
        (left_out > 0).then_some(left_out)
    }
}

/// Moves that are logged one by one, in a minute.
const MOVES_TOLD: u32 = 10;
const MINUTE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_that_moves_to_and_fro_makes_few_lines_and_a_count() {
        let mut moves = Moves::default();
        let begin = Instant::now();
        let lines = (0..10_000).filter(|_| moves.is_worth_a_line(begin)).count();
        assert_eq!(lines, 10);
        assert_eq!(moves.end_minute(begin + MINUTE / 2), None);
        assert_eq!(moves.end_minute(begin + MINUTE), Some(9_990));
        assert!(moves.is_worth_a_line(begin + MINUTE));
        assert_eq!(moves.end_minute(begin + 2 * MINUTE), None);
    }
}
