//! A connection that is up: keys both ways, heartbeats both ways, ready both ways.
//!
//! ```text
//!   Connected ─▶ Key ⇄ Key ─▶ UDP heartbeat answered ─▶ rings equal ─▶ Ready ⇄ Ready ─▶ Established
//! ```
//!
//! Losing the heartbeat for a while takes `Ready` back, so that frames go another way; losing it for
//! longer ends the connection. Beside the heartbeat it is found out how long datagrams may be.

use std::net::SocketAddr;
use std::time::Instant;

use weft_wire::control::{Control, Refusal, RefusalReason, SessionKey};
use weft_wire::message::Heartbeat;

use crate::link::{GREETING, Link, SILENCE, Stage};
use crate::path::Path;
use crate::{ConnId, Event};

use super::ending::End;
use super::{Router, name_of, through};

impl Router {
    /// A message from the other side of a connection that is greeted.
    pub(super) fn take_message(&mut self, conn: ConnId, message: Control, now: Instant) {
        // The other side decides between two connections by going on with one of them.
        let over = self.conns.links.get(&conn).and_then(Link::waits_for);
        if let Some(over) = over {
            self.replace(over, conn, now);
        }
        let link = self.conns.links.get_mut(&conn);
        let Some((peer, _)) = link.as_ref().and_then(|link| link.peer()) else {
            return;
        };
        let Some(up) = link.and_then(Link::up_mut) else {
            return;
        };
        match message {
            Control::Gossip(_) | Control::Routed(_) | Control::Fast(_) | Control::Relayed(_)
                if self.conns.relays.contains(conn) =>
            {
                self.not_due(conn, name_of(&message), now);
            }
            Control::Hello(_) => self.not_due(conn, name_of(&message), now),
            Control::Refusal(refusal) => self.end(conn, End::Refused(refusal), now),
            Control::Heartbeat => {}
            Control::Key(key) => self.take_key(conn, key, now),
            Control::Ready(ready) => {
                let before = up.is_established();
                up.they_ready = ready;
                self.note_established(conn, before, now);
            }
            Control::Gossip(bytes) => self.events.push_back(Event::Gossip { from: peer, bytes }),
            Control::Routed(routed) => self.take_routed(conn, routed, now),
            Control::Fast(word) => self.take_fast(peer, word, now),
            Control::Relayed(relayed) => self.take_relayed(conn, relayed, now),
        }
    }

    /// Makes a key to receive with and tells it to the peer.
    pub(super) fn offer_key(&mut self, conn: ConnId, now: Instant) {
        let Some(mut link) = self.conns.links.remove(&conn) else {
            return;
        };
        let others = &self.conns.links;
        let taken = |receiver| {
            others
                .values()
                .filter_map(Link::up)
                .any(|up| up.keys.holds(receiver))
        };
        let peer = link.peer();
        let key = link
            .up_mut()
            .map(|up| up.keys.offer(taken, &mut self.rng, now));
        self.conns.links.insert(conn, link);
        if let (Some((peer, _)), Some(key)) = (peer, key) {
            let offer = Control::Key(key.clone());
            self.events
                .push_back(Event::InstallReceive { conn, peer, key });
            self.send_control(conn, &offer, now);
        }
    }

    pub(super) fn take_heartbeat(
        &mut self,
        conn: ConnId,
        from: SocketAddr,
        heartbeat: Heartbeat,
        now: Instant,
    ) {
        let link = self.conns.links.get_mut(&conn);
        let Some((peer, _)) = link.as_ref().and_then(|link| link.peer()) else {
            return;
        };
        let Some(up) = link.and_then(Link::up_mut) else {
            return;
        };
        if let Some(addr) = up.pulse.handle(from, heartbeat, now) {
            self.events.push_back(Event::Remote { conn, peer, addr });
            self.on_path(conn, |path| path.begin(now));
        }
        self.proven(conn, now);
        self.sign_of_life(conn, now);
        self.update_ready(conn, now);
        self.update_fast(conn, now);
    }

    /// Lets something happen to what is known of a path, and tells if the limit is another one then.
    pub(super) fn on_path(&mut self, conn: ConnId, happen: impl FnOnce(&mut Path)) {
        let link = self.conns.links.get_mut(&conn);
        let Some((peer, _)) = link.as_ref().and_then(|link| link.peer()) else {
            return;
        };
        let Some(up) = link.and_then(Link::up_mut) else {
            return;
        };
        let before = up.path.limit();
        happen(&mut up.path);
        let limit = up.path.limit();
        if limit != before {
            self.events.push_back(Event::Limit { conn, peer, limit });
        }
    }

    /// Tells the other side when we become ready for frames, or cease to be.
    pub(super) fn update_ready(&mut self, conn: ConnId, now: Instant) {
        let Some(up) = self.conns.links.get_mut(&conn).and_then(Link::up_mut) else {
            return;
        };
        let ready = up.synced && up.pulse.is_alive();
        if ready != up.we_ready {
            let before = up.is_established();
            up.we_ready = ready;
            self.send_control(conn, &Control::Ready(ready), now);
            self.note_established(conn, before, now);
        }
    }

    /// What is due on one connection.
    pub(super) fn link_timeout(&mut self, conn: ConnId, now: Instant) {
        let Some(link) = self.conns.links.get(&conn) else {
            return;
        };
        match &link.stage {
            Stage::Greeting { deadline } => {
                if now >= *deadline {
                    let why = format!("no handshake within {} s", GREETING.as_secs());
                    self.end(conn, End::Closed(why), now);
                }
            }
            Stage::Contest { over, deadline } => {
                if now >= *deadline {
                    let why = "it gave no sign of life when its peer came anew".to_owned();
                    self.end(*over, End::Closed(why), now);
                }
            }
            Stage::Standby { deadline, .. } => {
                if now >= *deadline {
                    let text = "the other connection between the two goes on";
                    self.end(
                        conn,
                        End::Refuse(Refusal::new(RefusalReason::Duplicate, text)),
                        now,
                    );
                }
            }
            Stage::Up(up) => {
                if link.is_silent(now) {
                    let why = format!("nothing was heard over TCP for {} s", SILENCE.as_secs());
                    self.end(conn, End::Closed(why), now);
                } else if Self::is_hopeless(up, now) {
                    let refusal = through::in_vain(up.pulse.remote());
                    self.end(conn, End::Refuse(refusal), now);
                } else if up.pulse.is_dead(now) {
                    let text = format!("is UDP port {} open?", up.pulse.remote().port());
                    self.end(
                        conn,
                        End::Refuse(Refusal::new(RefusalReason::NoHeartbeat, text)),
                        now,
                    );
                } else {
                    self.up_timeout(conn, now);
                }
            }
        }
    }

    fn up_timeout(&mut self, conn: ConnId, now: Instant) {
        let Some(up) = self.conns.links.get_mut(&conn).and_then(Link::up_mut) else {
            return;
        };
        if up.keys.can_send() {
            self.ask(conn, now);
        }
        let Some(up) = self.conns.links.get_mut(&conn).and_then(Link::up_mut) else {
            return;
        };
        if up.comes_to_be_told(now) {
            self.events.push_back(Event::LinksChanged);
        }
        let retired = up.keys.retire(now).into_iter();
        self.events
            .extend(retired.map(|receiver| Event::RetireReceive { receiver }));
        let (beat, rekey) = (up.beats(now), up.keys.is_due(now));
        if beat {
            self.send_control(conn, &Control::Heartbeat, now);
        }
        if rekey {
            self.offer_key(conn, now);
        }
        self.update_ready(conn, now);
    }

    /// Asks what is to be asked over UDP: whether datagrams come through, and how long they may be.
    fn ask(&mut self, conn: ConnId, now: Instant) {
        let mut probe = None;
        if let Some(up) = self.conns.links.get_mut(&conn).and_then(Link::up_mut) {
            let question = up.pulse.handle_timeout(now);
            let sight = up.sight();
            if let Some(heartbeat) = question {
                self.events
                    .push_back(Event::SendHeartbeat { conn, heartbeat });
                self.punch(conn, heartbeat);
            }
            self.on_path(conn, |path| probe = path.handle_timeout(sight, now));
        }
        let probe = probe.map(|probe| Event::SendProbe { conn, probe });
        self.events.extend(probe);
    }

    fn take_key(&mut self, conn: ConnId, key: SessionKey, now: Instant) {
        let Some(link) = self.conns.links.get_mut(&conn) else {
            return;
        };
        let Some((peer, _)) = link.peer() else {
            return;
        };
        let Some(up) = link.up_mut() else {
            return;
        };
        let renew = up.keys.handle_offer(now);
        let (remote, limit) = (up.pulse.remote(), up.path.limit());
        self.events.push_back(Event::InstallSend {
            conn,
            peer,
            key,
            remote,
            limit,
        });
        if renew {
            self.offer_key(conn, now);
        }
    }

    fn note_established(&mut self, conn: ConnId, before: bool, now: Instant) {
        let Some(link) = self.conns.links.get_mut(&conn) else {
            return;
        };
        let after = link.is_established();
        if let Some(up) = link.up_mut() {
            up.told |= after;
        }
        self.links_changed |= before != after;
        if let (false, true, Some((peer, _))) = (before, after, link.peer()) {
            self.events.push_back(Event::Established { peer });
        }
        self.update_fast(conn, now);
    }
}
