//! Who is worth a connection when there are too many peers for all.
//!
//! * Who is beside us in the graph gets a connection, and who cannot be reached over others does, even if
//!   another one must go for it: that is how somebody new joins a mesh that is full.
//! * Who frames are sent to gets one while that leaves room for those.
//! * Of what is there, each side lets go of what it has dialled itself, so that the two never pull at
//!   one connection. What an operator asked for stays.

use std::time::{Duration, Instant};

use weft_wire::PeerName;
use weft_wire::control::{Refusal, RefusalReason};

use crate::ConnId;
use crate::backoff::spread;
use crate::link::{Link, Origin};

use super::Router;
use super::ending::End;

/// Whether there is room for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    Free,
    /// If this one goes.
    InPlaceOf(ConnId),
    None,
}

impl Router {
    /// Frames that were captured here have been sent to this peer in the last moments, be it over others.
    pub fn handle_demand(&mut self, peer: PeerName, now: Instant) {
        // It may have been full long ago, when everybody was dialled.
        if self.choice.handle_demand(peer, now)
            && let Some(dial) = self.discovery.dial(peer)
        {
            dial.hurry(now);
        }
    }

    /// Whether there are so many peers that we are connected with some of them only.
    pub fn is_sparse(&self) -> bool {
        self.choice.is_sparse()
    }

    pub(super) fn choose_if_due(&mut self, now: Instant) {
        if self.stopping || self.choice.poll_timeout().is_none_or(|at| now < at) {
            return;
        }
        let mut peers = self.mesh.topology().peers();
        peers.extend(self.conns.peers.keys());
        let (conns, discovery) = (&self.conns, &self.discovery);
        // Over one that is relayed nobody hears anything but frames.
        let is_usable = |peer| match conns.peers.get(&peer) {
            Some(conn) => !conns.relays.contains(*conn),
            None => discovery.is_hopeful(peer),
        };
        let came_beside = self.choice.look(&peers, is_usable, now);
        for peer in came_beside {
            // What was in the way when it was none of ours may be so no more.
            if let Some(dial) = self.discovery.dial(peer)
                && dial.error().is_some()
            {
                dial.hurry(now);
            }
        }
        let choice = &self.choice;
        self.discovery
            .wake(|peer| choice.wants(peer), &mut self.rng, now);
        self.let_go(now);
    }

    /// Whether a peer that has no connection with us can have one.
    pub(super) fn room_for(&self, peer: PeerName) -> Room {
        let limit = self.config.conn_limit;
        let count = self.conns.peers.len();
        if limit == 0 {
            return Room::Free;
        }
        let reachable = self.mesh.routes().unicast.contains_key(&peer);
        if reachable && !self.choice.is_beside(peer) {
            let absent = |beside: &PeerName| !self.conns.peers.contains_key(beside);
            let reserved = self.choice.beside().filter(absent).count();
            return match count + reserved < limit {
                true => Room::Free,
                false => Room::None,
            };
        }
        match self.least_useful() {
            _ if count < limit => Room::Free,
            Some(other) => Room::InPlaceOf(other),
            None => Room::None,
        }
    }

    /// How long to wait after a peer had no room for us: it may be the only one we know, or one that will make
    /// room when it has heard that we stand beside it.
    pub(super) fn while_full(&mut self, dialled: &Origin) -> Duration {
        let beside = |peer| self.choice.is_beside(peer);
        let is_beside = matches!(dialled, Origin::Discovered(found) if beside(found.peer));
        let others_do = !is_beside && self.conns.links.values().any(Link::is_established);
        let about = if others_do { OTHERS_DO } else { SOON };
        spread(about, &mut self.rng)
    }

    /// Ends some connections of which nobody has any use.
    fn let_go(&mut self, now: Instant) {
        let holding = self.choice.beside().filter(|peer| self.is_linked(*peer));
        if !self.choice.is_settled() || holding.count() < 2 {
            return;
        }
        let ours = self.conns.peers.iter().filter(|(peer, conn)| {
            let link = self.conns.links.get(conn);
            let old = |link: &Link| link.up().is_some_and(|up| now >= up.since + SETTLED);
            let found = |link: &Link| matches!(link.origin, Origin::Discovered(_));
            !self.choice.wants(**peer) && link.is_some_and(|link| found(link) && old(link))
        });
        let ours: Vec<_> = ours.map(|(_, conn)| *conn).take(MAX_LET_GO).collect();
        for conn in ours {
            let text = "it carries nothing, and peers are reached over others";
            let refusal = Refusal::new(RefusalReason::Unneeded, text);
            self.end(conn, End::Refuse(refusal), now);
        }
    }

    /// The connection that is missed least, of those that nobody asked for and whose peer has others.
    fn least_useful(&self) -> Option<ConnId> {
        let spare = self.conns.peers.iter().filter(|(peer, _)| {
            !self.choice.is_beside(**peer)
                && !self.choice.is_demanded(**peer)
                && self.has_others(**peer)
        });
        let links = spare.filter_map(|(_, conn)| Some((conn, self.conns.links.get(conn)?)));
        let unasked = links.filter(|(_, link)| !matches!(link.origin, Origin::Target(_)));
        let oldest = unasked.min_by_key(|(_, link)| link.up().map(|up| up.since));
        oldest.map(|(conn, _)| *conn)
    }

    /// Whether a peer is connected with two others at least.
    fn has_others(&self, peer: PeerName) -> bool {
        let topology = self.mesh.topology();
        let links = topology.links(peer).into_iter().flatten();
        let others = links.filter(|(other, link)| {
            **other != self.config.name && !link.relayed && topology.linked_both_ways(peer, **other)
        });
        others.take(2).count() == 2
    }

    fn is_linked(&self, peer: PeerName) -> bool {
        let direct = self.conns.direct(peer).is_some();
        direct
            && self
                .mesh
                .topology()
                .linked_both_ways(self.config.name, peer)
    }
}

/// A connection that is younger is not let go: what it is for may not be known yet.
const SETTLED: Duration = Duration::from_secs(30);
/// Connections let go at one look, so that a mesh that has grown too large thins out calmly.
const MAX_LET_GO: usize = 4;
/// About how long a peer that is full is left alone by one that has other neighbours; and by one that has
/// none, or stands beside it.
const OTHERS_DO: Duration = Duration::from_secs(300);
const SOON: Duration = Duration::from_secs(10);
