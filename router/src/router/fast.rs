//! The fast datapath of every peer: tells each machine what its connection is like, and does what it
//! wants done.

use std::time::Instant;

use weft_wire::PeerName;
use weft_wire::control::Control;
use weft_wire::fast::{Beat, Fast as Word};

use crate::fast::{Carriage, Effect, Fast, Terms};
use crate::{ConnId, Event, FastEvent};

use super::Router;

impl Router {
    /// Our kernel takes frames by VXLAN at this port, or why it cannot; as long as nothing was said
    /// it does not.
    pub fn set_fast(&mut self, support: Result<u16, String>, now: Instant) {
        if self.fast_support != support {
            self.fast_support = support;
            for conn in self.conns.peers.values().copied().collect::<Vec<_>>() {
                self.update_fast(conn, now);
            }
            self.finish(now);
        }
    }

    /// A frame of the ethertype of beats has come to our bridge; from whom, it shows only by itself.
    pub fn handle_beat(&mut self, frame: &[u8], now: Instant) {
        let Ok((beat, tag)) = Beat::parse(frame) else {
            return;
        };
        if let Some(fast) = self.fasts.get_mut(&beat.sender) {
            fast.handle_beat(beat, &tag, self.config.mtu);
            self.carry_out_fast(beat.sender, now);
        }
        self.finish(now);
    }

    /// Who carries frames to this peer.
    pub fn carriage(&self, peer: PeerName) -> Carriage {
        let fast = self.fasts.get(&peer).map(Fast::carriage);
        fast.unwrap_or(Carriage::Sealed(None))
    }

    /// What a peer's connection is like may have changed.
    pub(super) fn update_fast(&mut self, conn: ConnId, now: Instant) {
        let link = self.conns.links.get(&conn);
        // A relayed one has no words for it.
        let Some(link) = link.filter(|_| !self.conns.relays.contains(conn)) else {
            return;
        };
        let (Some(hello), Some(up)) = (&link.hello, link.up()) else {
            return;
        };
        let remote = up.pulse.remote().ip().to_canonical();
        let mut trusted = self.config.trusted.iter();
        let terms = Terms {
            conn,
            addr: up.pulse.rtt().map(|_| remote),
            we_trust: trusted.any(|subnet| subnet.contains(remote)),
            they_trust: hello.trusts,
            our_mtu: self.config.mtu,
            their_mtu: hello.mtu,
            established: link.is_established(),
        };
        let peer = hello.name;
        let fast = self.fasts.entry(peer).or_insert_with(|| Fast::new(peer));
        fast.update(&terms, &self.fast_support, &mut self.rng, now);
        self.carry_out_fast(peer, now);
    }

    pub(super) fn take_fast(&mut self, peer: PeerName, word: Word, now: Instant) {
        if let Some(fast) = self.fasts.get_mut(&peer) {
            fast.handle_word(word, now);
            self.carry_out_fast(peer, now);
        }
    }

    /// The peer has no connection any more; `broke` if nobody meant that.
    pub(super) fn fast_gone(&mut self, peer: PeerName, broke: bool, now: Instant) {
        if let Some(fast) = self.fasts.get_mut(&peer) {
            fast.handle_gone(broke, now);
            self.carry_out_fast(peer, now);
            self.fasts.retain(|_, fast| !fast.is_over(now));
        }
    }

    pub(super) fn fast_timeout(&mut self, now: Instant) {
        let fasts = self.fasts.iter();
        let due = fasts.filter(|(_, fast)| fast.poll_timeout().is_some_and(|at| at <= now));
        for peer in due.map(|(peer, _)| *peer).collect::<Vec<_>>() {
            let elsewhere = self.mesh.routes().unicast.contains_key(&peer);
            if let Some(fast) = self.fasts.get_mut(&peer) {
                fast.handle_timeout(self.config.name, self.config.mtu, elsewhere, now);
            }
            self.carry_out_fast(peer, now);
            self.fasts.retain(|_, fast| !fast.is_over(now));
        }
    }

    fn carry_out_fast(&mut self, peer: PeerName, now: Instant) {
        while let Some(effect) = self.fasts.get_mut(&peer).and_then(Fast::poll_effect) {
            match effect {
                Effect::Say(conn, word) => self.send_control(conn, &Control::Fast(word), now),
                Effect::Admit(addr) => self.tell_fast(peer, FastEvent::Admit(addr)),
                Effect::Bar(_) => self.tell_fast(peer, FastEvent::Bar),
                Effect::Beat { addr, port, frame } => {
                    self.tell_fast(peer, FastEvent::Beat { addr, port, frame });
                }
                Effect::Carry(carrier) => {
                    let why = self.carriage(peer).why();
                    self.tell_fast(peer, FastEvent::Carry { carrier, why });
                }
            }
        }
    }

    fn tell_fast(&mut self, peer: PeerName, event: FastEvent) {
        self.events.push_back(Event::Fast { peer, event });
    }
}
