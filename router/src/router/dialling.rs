//! Whom to dial: targets we were told, and peers gossip tells of.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use weft_wire::PeerName;
use weft_wire::control::RefusalReason;

use crate::backoff::spread;
use crate::control::Side;
use crate::dial::Ended;
use crate::link::Origin;
use crate::{ConnId, Event, Target, TargetStatus};

use super::choosing::Room;
use super::ending::End;
use super::{Conns, Router, report};

/// What gossip tells about where a peer may be dialled.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerInfo {
    /// TCP addresses it may listen at; the first 16 count.
    pub addresses: Vec<SocketAddr>,
    /// Addresses others see its datagrams come from; the first four count.
    pub datagrams: Vec<SocketAddr>,
}

impl Router {
    /// Connects to these targets from here on, at once for those that wait for their next try. With
    /// `replace` all other targets are forgotten.
    pub fn connect(&mut self, targets: &[Target], replace: bool, now: Instant) {
        let added = self.targets.add(targets, now);
        let dropped = replace && self.keep_targets(|target| targets.contains(target), now);
        if added || dropped {
            self.events.push_back(Event::TargetsChanged);
        }
        self.dial_due(now);
    }

    /// Does not dial these targets any more; a connection that is there stays.
    pub fn forget(&mut self, targets: &[Target], now: Instant) {
        if self.keep_targets(|target| !targets.contains(target), now) {
            self.events.push_back(Event::TargetsChanged);
        }
        self.finish(now);
    }

    /// [`Event::Dial`] has led to a TCP connection.
    pub fn handle_dialed(&mut self, conn: ConnId, remote: SocketAddr, now: Instant) {
        match self.conns.dials.remove(&conn) {
            Some(origin) => self.open(conn, Side::Initiator, remote, origin, now),
            None => self.events.push_back(Event::Close { conn }),
        }
    }

    /// [`Event::Dial`] has led to nothing.
    pub fn handle_dial_failed(&mut self, conn: ConnId, why: String, now: Instant) {
        if let Some(origin) = self.conns.dials.remove(&conn) {
            self.dial_ended(&origin, conn, &Ended::because(why), now);
        }
    }

    /// Gossip tells where a peer may be dialled.
    pub fn handle_peer_info(&mut self, peer: PeerName, info: PeerInfo, now: Instant) {
        if self.config.discovery {
            let connected = self.conns.peers.get(&peer).copied();
            self.discovery
                .heard(peer, &info, connected, &mut self.rng, now);
        }
    }

    /// How often a peer was left out, and is not dialled, because discovery knows
    /// [`MAX_DISCOVERED`](crate::MAX_DISCOVERED) already.
    pub fn undialled(&self) -> u64 {
        self.discovery.left_out()
    }

    /// Targets we were told, those of discovery not among them.
    pub fn targets(&self) -> Vec<TargetStatus> {
        self.targets.statuses()
    }

    pub(super) fn dial_due(&mut self, now: Instant) {
        if self.stopping {
            return;
        }
        let off = self.stands_back.as_ref().map(|(until, _)| *until);
        let full = self.limit_reached();
        for target in self.targets.due(now) {
            let Some(dial) = self.targets.dial(&target) else {
                continue;
            };
            if let Some(until) = off {
                dial.put_off(until, Some(RefusalReason::Clone.words()));
                continue;
            }
            if full {
                let until = now + spread(WHILE_FULL, &mut self.rng);
                dial.put_off(until, Some(RefusalReason::Limit.words()));
                continue;
            }
            let conn = self.conns.next();
            dial.begin(conn);
            self.dial(conn, Origin::Target(target.clone()), target);
        }
        // One that is relayed is tried by TCP now and then.
        let relayed = |peer| !self.conns.peers.contains_key(&peer) && self.way_to(peer).is_some();
        for candidate in self.discovery.due(relayed, now) {
            let busy = self.conns.discovering() >= MAX_DISCOVERING;
            let wanted = self.choice.wants(candidate.peer);
            let full = !matches!(self.room_for(candidate.peer), Room::Free);
            let Some(dial) = self.discovery.dial(candidate.peer) else {
                continue;
            };
            if !wanted {
                dial.park();
                continue;
            }
            if let Some(until) = off {
                dial.put_off(until, None);
                continue;
            }
            if full || busy {
                let wait = if full { WHILE_FULL } else { WHILE_BUSY };
                dial.put_off(now + spread(wait, &mut self.rng), None);
                continue;
            }
            let conn = self.conns.next();
            dial.begin(conn);
            if candidate.relayed {
                self.dial_relayed(conn, candidate, now);
                continue;
            }
            let target = report::target_of(&candidate);
            self.dial(conn, Origin::Discovered(candidate), target);
        }
    }

    fn dial(&mut self, conn: ConnId, origin: Origin, target: Target) {
        self.conns.dials.insert(conn, origin);
        self.events.push_back(Event::Dial { conn, target });
    }

    pub(super) fn limit_reached(&self) -> bool {
        let limit = self.config.conn_limit;
        limit != 0 && self.conns.peers.len() >= limit
    }

    /// Keeps these targets only; returns whether any was dropped.
    fn keep_targets(&mut self, keep: impl Fn(&Target) -> bool, now: Instant) -> bool {
        let (dropped, dials) = self.targets.retain(keep);
        for conn in dials {
            self.abandon(conn, now);
        }
        dropped
    }

    /// The dial, or the connection it made, is of no interest any more unless it is its peer's.
    pub(super) fn abandon(&mut self, conn: ConnId, now: Instant) {
        if self.conns.dials.remove(&conn).is_some() {
            self.events.push_back(Event::Close { conn });
        } else if self
            .conns
            .links
            .get(&conn)
            .is_some_and(|link| link.up().is_none())
        {
            self.end(
                conn,
                End::Closed("it is not wanted any more".to_owned()),
                now,
            );
        }
    }

    /// A dial has ended, or the connection it made has before that became its peer's.
    pub(super) fn dial_ended(
        &mut self,
        origin: &Origin,
        conn: ConnId,
        ended: &Ended,
        now: Instant,
    ) {
        match origin {
            Origin::Inbound | Origin::Relayed { .. } => {}
            Origin::Target(target) => {
                if let Some(dial) = self.targets.dial(target) {
                    dial.failed(conn, ended, &mut self.rng, now);
                }
            }
            Origin::Discovered(candidate) => {
                self.discovery
                    .failed(*candidate, conn, ended, &mut self.rng, now);
                self.peers_changed(now);
            }
        }
    }

    pub(super) fn dial_superfluous(
        &mut self,
        origin: &Origin,
        conn: ConnId,
        peer: PeerName,
        now: Instant,
    ) {
        match origin {
            Origin::Inbound | Origin::Relayed { .. } => {}
            Origin::Target(target) => {
                self.targets.leads_to(target, peer);
                if let Some(dial) = self.targets.dial(target) {
                    dial.superfluous(conn);
                }
            }
            Origin::Discovered(candidate) if candidate.peer == peer => {
                if let Some(dial) = self.discovery.dial(peer) {
                    dial.superfluous(conn);
                }
            }
            Origin::Discovered(_) => self.found_another(origin, conn, peer, now),
        }
    }

    /// An address gossip gave for one peer leads to another one: that address has failed.
    pub(super) fn found_another(
        &mut self,
        origin: &Origin,
        conn: ConnId,
        found: PeerName,
        now: Instant,
    ) {
        if matches!(origin, Origin::Discovered(candidate) if candidate.peer != found) {
            let ended = Ended::because(format!("another peer is there, {found}"));
            self.dial_ended(origin, conn, &ended, now);
        }
    }
}

impl Conns {
    /// Dials of discovery that have not led to a peer yet.
    fn discovering(&self) -> usize {
        let dials = self.dials.values();
        let links = self.links.values().filter(|link| link.up().is_none());
        let origins = dials.chain(links.map(|link| &link.origin));
        origins
            .filter(|origin| matches!(origin, Origin::Discovered(_)))
            .count()
    }
}

/// Peers of discovery dialled at a time; in a large mesh a newcomer hears of hundreds at once.
const MAX_DISCOVERING: usize = 16;
/// About how long a dial waits for one of those to be done, and for the connection limit.
const WHILE_BUSY: Duration = Duration::from_secs(1);
const WHILE_FULL: Duration = Duration::from_secs(30);
