//! Control connections that go over peers in between, where neither end can dial the other.
//!
//! Such a connection is like any other, save that its bytes travel in pieces over the connections of
//! neighbours, and that its first questions over UDP go to every address its peer may be seen at: that is
//! what opens a way through NATs on both sides. It carries keys and signs of life only. What else peers say
//! to each other goes as it did before.
//!
//! Until datagrams come through it is an attempt: nobody else hears of it, and it ends soon. Invariants:
//! nothing is relayed over what is relayed itself; the peer at the other end has the key its name is made
//! from, so nobody in between can pass for it; what others make us send is bounded.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand_core::Rng;
use weft_wire::control::{Control, Hello, Refusal, RefusalReason};
use weft_wire::message::{HOP_LIMIT, Heartbeat};
use weft_wire::relayed::{MAX_RELAYED, Part, Relayed};
use weft_wire::{Nickname, PeerName};

use crate::control::Side;
use crate::discovery::Candidate;
use crate::identity::name_of_key;
use crate::link::{Link, Origin, Up};
use crate::relays::Relay;
use crate::{ConnId, Event};

use super::Router;
use super::ending::End;

impl Router {
    /// Pieces of relayed connections that were dropped because a neighbour sent too many.
    pub fn relayed_dropped(&self) -> u64 {
        self.relayed_dropped
    }

    /// The neighbour a relayed connection goes over, if it is one and there is a way now.
    pub(super) fn relayed_via(&self, conn: ConnId) -> Option<(PeerName, Nickname)> {
        let way = self.way_to(self.conns.relays.peer(conn)?)?;
        self.conns.links.get(&way)?.peer()
    }

    /// Dials a peer over those in between.
    pub(super) fn dial_relayed(&mut self, conn: ConnId, candidate: Candidate, now: Instant) {
        let relay = Relay {
            peer: candidate.peer,
            stream: self.rng.next_u64(),
            we_dialled: true,
        };
        self.conns.relays.add(conn, relay);
        let (side, remote) = (Side::Initiator, candidate.address);
        self.open(conn, side, remote, Origin::Discovered(candidate), now);
    }

    /// A neighbour has handed us a piece of a relayed connection.
    pub(super) fn take_relayed(&mut self, from: ConnId, relayed: Relayed, now: Instant) {
        let bytes = match &relayed.part {
            Part::Open(bytes) | Part::Bytes(bytes) => bytes.len(),
            Part::End => 0,
        };
        let up = self.conns.links.get_mut(&from).and_then(Link::up_mut);
        if !up.is_some_and(|up| up.allowance.take(bytes, now)) {
            self.relayed_dropped += 1;
        } else if relayed.destination == self.config.name {
            self.take_piece(from, relayed, now);
        } else if let (Some(onward), Some(hops), true) = (
            self.way_to(relayed.destination)
                .filter(|onward| *onward != from),
            relayed.hops.checked_sub(1),
            relayed.source != self.config.name,
        ) {
            let message = Control::Relayed(Relayed { hops, ..relayed });
            self.send_control(onward, &message, now);
        }
    }

    fn take_piece(&mut self, from: ConnId, relayed: Relayed, now: Instant) {
        let relay = Relay {
            peer: relayed.source,
            stream: relayed.stream,
            we_dialled: !relayed.by_dialler,
        };
        let known = self.conns.relays.conn(relay);
        match (relayed.part, known) {
            (Part::Open(bytes), None) if relayed.by_dialler => {
                if let Some(conn) = self.accept_relayed(from, relay, now) {
                    self.take_relayed_bytes(conn, &bytes, now);
                }
            }
            (Part::Bytes(bytes), Some(conn)) => self.take_relayed_bytes(conn, &bytes, now),
            (Part::End, Some(conn)) => {
                self.conns.relays.remove(conn);
                self.conns.lingering.remove(&conn);
                let why = "the other side closed the connection".to_owned();
                self.end(conn, End::Closed(why), now);
            }
            // The peer has an end of something that is over here, or was before we were started anew.
            (Part::Bytes(_), None) => self.send_part(relay, Part::End, now),
            (Part::Open(_), _) | (Part::End, None) => {}
        }
    }

    fn take_relayed_bytes(&mut self, conn: ConnId, bytes: &[u8], now: Instant) {
        match self.conns.links.get_mut(&conn).map(|link| link.push(bytes)) {
            // Read when the message this came in is dealt with.
            Some(Ok(())) => self.conns.released.push(conn),
            Some(Err(error)) => self.end(conn, End::Broken(error), now),
            // Told why it ends.
            None => {}
        }
    }

    fn accept_relayed(&mut self, from: ConnId, relay: Relay, now: Instant) -> Option<ConnId> {
        let via = self.conns.links.get(&from)?.hello.as_ref()?.name;
        let unfinished = |by: Option<PeerName>| {
            let links = self.conns.links.values().filter(|link| link.up().is_none());
            let origins = links.filter_map(|link| match link.origin {
                Origin::Relayed { via } => Some(via),
                Origin::Inbound | Origin::Target(_) | Origin::Discovered(_) => None,
            });
            origins.filter(|via| by.is_none_or(|by| by == *via)).count()
        };
        let full = unfinished(None) >= MAX_UNFINISHED || unfinished(Some(via)) >= MAX_EACH;
        if self.stopping || full || relay.peer == self.config.name {
            return None;
        }
        // Without an address there is nothing to find out.
        let remote = *self.discovery.seen_at(relay.peer).first()?;
        let conn = self.conns.next();
        self.conns.relays.add(conn, relay);
        self.open(conn, Side::Responder, remote, Origin::Relayed { via }, now);
        Some(conn)
    }

    /// Whether the peer at the other end of a relayed connection is the one that was meant.
    pub(super) fn check_relayed(
        &self,
        conn: ConnId,
        key: &[u8; 32],
        hello: &Hello,
    ) -> Result<(), Refusal> {
        let Some(meant) = self.conns.relays.peer(conn) else {
            return Ok(());
        };
        if hello.name != meant {
            let text = format!("{meant} was meant, and {} has answered", hello.name);
            return Err(Refusal::new(RefusalReason::Protocol, text));
        }
        if name_of_key(key) != meant {
            let text = "over others only peers are connected whose name is made from their key: \
                        somebody in between could pass for one with a --name of its own";
            return Err(Refusal::new(RefusalReason::NameClash, text));
        }
        Ok(())
    }

    /// Sends bytes of a connection: over TCP, or in pieces over others.
    pub(super) fn write(&mut self, conn: ConnId, bytes: Vec<u8>, now: Instant) {
        if !self.conns.relays.contains(conn) {
            return self.events.push_back(Event::Transmit { conn, bytes });
        }
        for piece in bytes.chunks(MAX_RELAYED) {
            if let Some((relay, first)) = self.conns.relays.next_piece(conn) {
                let piece = piece.to_vec();
                let part = if first {
                    Part::Open(piece)
                } else {
                    Part::Bytes(piece)
                };
                self.send_part(relay, part, now);
            }
        }
    }

    /// A piece that finds no way is lost: the connection ends by that, sooner or later.
    pub(super) fn send_part(&mut self, relay: Relay, part: Part, now: Instant) {
        if let Some(way) = self.way_to(relay.peer) {
            let message = Control::Relayed(Relayed {
                source: self.config.name,
                destination: relay.peer,
                hops: HOP_LIMIT,
                stream: relay.stream,
                by_dialler: relay.we_dialled,
                part,
            });
            self.send_control(way, &message, now);
        }
    }

    /// Sends a question to every address a peer may be seen at, beside the one it goes to anyway.
    pub(super) fn punch(&mut self, conn: ConnId, heartbeat: Heartbeat) {
        let Some((peer, up)) = self
            .conns
            .relays
            .peer(conn)
            .zip(self.conns.links.get(&conn).and_then(Link::up))
        else {
            return;
        };
        if up.pulse.is_alive() || up.pulse.unanswered() > PUNCHES {
            return;
        }
        let remote = up.pulse.remote();
        let others = self.discovery.seen_at(peer).into_iter();
        let others = others.filter(|to| *to != remote);
        let punches = others.map(|to| Event::Punch {
            conn,
            to,
            heartbeat,
        });
        self.events.extend(punches);
    }

    /// Datagrams come through: from here on the connection is one.
    pub(super) fn proven(&mut self, conn: ConnId, now: Instant) {
        let Some(link) = self.conns.links.get_mut(&conn) else {
            return;
        };
        let Some(hello) = link.hello.clone() else {
            return;
        };
        if let Some(up) = link.up_mut()
            && !up.announced
            && up.pulse.is_alive()
        {
            up.announced = true;
            self.announce(conn, hello, now);
        }
    }

    /// The connection is one that others may hear of. One that is relayed, be it in place of another, is not
    /// the last word.
    pub(super) fn announce(&mut self, conn: ConnId, hello: Hello, now: Instant) {
        let peer = hello.name;
        if self.conns.relays.contains(conn) {
            self.discovery.relayed(peer, &mut self.rng, now);
        }
        self.events
            .push_back(Event::Connected { peer, conn, hello });
    }

    /// An attempt has taken so long that no datagram will come through.
    pub(super) fn is_hopeless(up: &Up, now: Instant) -> bool {
        !up.announced && now >= up.since + ATTEMPT
    }
}

/// What people read of an attempt that came to nothing.
pub(super) fn in_vain(to: SocketAddr) -> Refusal {
    let text = format!(
        "nothing came from {to}: a firewall, or a NAT that gives each destination a port of its own; \
         frames go over others"
    );
    Refusal::new(RefusalReason::NoHeartbeat, text)
}

/// Inbound relayed connections whose peer is not known yet, in all and handed on by one neighbour.
const MAX_UNFINISHED: usize = 32;
const MAX_EACH: usize = 8;
/// Questions that are sent to all addresses of a peer: both ends need a moment to begin.
const PUNCHES: u32 = 10;
/// How long an attempt takes.
const ATTEMPT: Duration = Duration::from_secs(10);
