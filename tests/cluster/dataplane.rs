//! Frames in and out of one peer: `src/dataplane/` and `src/node/forwarding.rs`, a call at a time.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use weft_ipam::{Addr, Allocator};
use weft_router::ConnId;
use weft_router::drop_reason::DropReason;
use weft_router::flood::Seen;
use weft_router::macs::{Learned, Location, MacView};
use weft_router::session::{OpenError, RecvSession, SendSession};
use weft_router::switch::{self, Captured, Flooded, Received, View};
use weft_wire::control::Suite;
use weft_wire::message::{
    FloodHeader, HOP_LIMIT, Heartbeat, Message, PROBE_LEN, Probe, UnicastHeader,
};
use weft_wire::packet::{HEADER_LEN, Header, OVERHEAD, TAG_LEN};
use weft_wire::{Frame, MacAddr, Network, PeerName};

use crate::broken::Broken;
use crate::peer::DNS;
use crate::world::World;

pub(crate) struct Receiver {
    pub(crate) conn: ConnId,
    pub(crate) peer: PeerName,
    pub(crate) session: RecvSession,
    /// What the session was made from.
    pub(crate) suite: Suite,
    pub(crate) key: [u8; 32],
}

impl Receiver {
    /// The session as if nothing had been received.
    fn forgetful(&self) -> RecvSession {
        RecvSession::new(self.suite, &self.key)
    }
}

#[derive(Clone)]
pub(crate) struct Egress {
    pub(crate) peer: PeerName,
    session: Arc<SendSession>,
    remote: SocketAddr,
}

/// What frames are forwarded by; replaced as a whole.
pub(crate) struct Forwarding {
    conflicts: Vec<IpAddr>,
    /// Addresses of ours that are being claimed anew.
    pub(crate) unsettled: Vec<Addr>,
    macs: MacView,
    next_hops: BTreeMap<PeerName, Egress>,
    flood: BTreeMap<PeerName, Vec<Egress>>,
    pub(crate) neighbours: BTreeMap<PeerName, Egress>,
}

impl Forwarding {
    pub(crate) fn empty(macs: MacView) -> Self {
        Self {
            conflicts: Vec::new(),
            unsettled: Vec::new(),
            macs,
            next_hops: BTreeMap::new(),
            flood: BTreeMap::new(),
            neighbours: BTreeMap::new(),
        }
    }

    fn view(&self, us: PeerName) -> View<'_> {
        View {
            us,
            macs: &self.macs,
            dns: DNS,
            conflicts: &self.conflicts,
        }
    }
}

impl World {
    pub(crate) fn replace_forwarding(&mut self, n: usize) {
        let silenced = self.broken != Broken::LoudConflicts;
        let up = self.peers[n].up.as_mut().unwrap();
        up.stale = false;
        let links = up.router.own_links();
        let established = |peer| links.get(peer).is_some_and(|link| link.established);
        let sessions = up.sessions.values().filter(|s| established(&s.peer));
        let neighbours: BTreeMap<_, _> = sessions
            .map(|s| {
                let egress = Egress {
                    peer: s.peer,
                    session: s.send.clone(),
                    remote: s.remote,
                };
                (s.peer, egress)
            })
            .collect();
        let routes = up.router.routes();
        let to = |peer: &PeerName| neighbours.get(peer).cloned();
        let next_hops = routes.unicast.iter();
        let next_hops = next_hops.filter_map(|(peer, via)| Some((*peer, to(via)?)));
        let flood = routes.flood().iter();
        let flood = flood.map(|(origin, via)| (*origin, via.iter().filter_map(to).collect()));
        let unsettled = up.ipam.iter().flat_map(Allocator::unsettled_list);
        let unsettled = unsettled.map(|u| u.addr);
        let conflicts = up.ipam.iter().flat_map(Allocator::conflicts);
        let mut conflicts: Vec<IpAddr> = conflicts
            .filter(|_| silenced)
            .map(|conflict| conflict.addr.into())
            .collect();
        conflicts.sort_unstable();
        up.forwarding = Forwarding {
            conflicts,
            unsettled: unsettled.collect(),
            macs: up.macs.view(),
            next_hops: next_hops.collect(),
            flood: flood.collect(),
            neighbours,
        };
        self.model.recheck = true;
    }

    /// A container of this host sends a frame.
    pub(crate) fn capture(&mut self, n: usize, bytes: &[u8]) -> Result<(), DropReason> {
        let us = self.peers[n].name;
        let frame = Frame::new_checked(bytes).unwrap();
        self.see(n, frame.src(), us);
        let network = Network::DEFAULT;
        let up = self.peers[n].up.as_ref().unwrap();
        match switch::decide_captured(&frame, network, &up.forwarding.view(us)) {
            Captured::Drop(reason) => Err(reason),
            Captured::Forward(destination) => {
                let header = UnicastHeader {
                    hops: HOP_LIMIT,
                    unfinished: false,
                    network,
                    source: us,
                    destination,
                };
                let now = self.clock(n);
                let router = &mut self.peers[n].up.as_mut().unwrap().router;
                router.handle_demand(destination, now);
                self.forward(n, header, bytes)
            }
            Captured::Flood => {
                let header = FloodHeader {
                    hops: HOP_LIMIT,
                    network,
                    origin: us,
                    number: up.numbers.next(),
                };
                self.pass_on(n, header, bytes, None)
            }
        }
    }

    /// A datagram came in.
    pub(crate) fn receive(&mut self, n: usize, from: SocketAddr, mut bytes: Vec<u8>) {
        if self.peers[n].up.is_some()
            && let Err(reason) = self.open(n, from, &mut bytes)
        {
            *self.model.drops.entry(reason.index()).or_default() += 1;
        }
    }

    fn open(&mut self, n: usize, from: SocketAddr, bytes: &mut [u8]) -> Result<(), DropReason> {
        let (now, broken) = (self.clock(n), self.broken);
        let us = self.peers[n].name;
        let up = self.peers[n].up.as_mut().unwrap();
        let header = Header::parse(bytes).map_err(|_| DropReason::MalformedPacket)?;
        let receiver = up.receivers.get_mut(&header.receiver);
        let receiver = receiver.ok_or(DropReason::UnknownReceiver)?;
        let mut forgetful = None;
        let session = match broken {
            Broken::NoReplayWindow => forgetful.insert(receiver.forgetful()),
            _ => &mut receiver.session,
        };
        let message = session.open(bytes).map_err(OpenError::drop_reason)?;
        let (conn, peer) = (receiver.conn, receiver.peer);
        let message = Message::parse(message).map_err(|_| DropReason::MalformedPacket)?;
        let accepts = up.forwarding.neighbours.contains_key(&peer);
        let accepts = accepts.then_some(()).ok_or(DropReason::NotReady);
        match message {
            Message::Heartbeat(heartbeat) => {
                up.router.handle_heartbeat(conn, from, heartbeat, now);
                if let Some(answer) = heartbeat.answer() {
                    self.answer(n, conn, from, &answer.emit());
                }
                Ok(())
            }
            Message::Probe(probe) => {
                match probe.answer() {
                    Some(answer) => self.answer(n, conn, from, &answer.emit()),
                    None => up.router.handle_probed(conn, probe, now),
                }
                Ok(())
            }
            Message::Fragment(..) => panic!("small frames are not split"),
            Message::Unicast(header, bytes) => {
                accepts?;
                self.unicast(n, header, bytes)
            }
            Message::Flood(header, bytes) => {
                accepts?;
                let frame = Frame::new_checked(bytes).map_err(|_| DropReason::MalformedFrame)?;
                let mut forgetful = Seen::new();
                let seen = match broken {
                    Broken::NoSeen => &mut forgetful,
                    _ => &mut up.seen,
                };
                let view = up.forwarding.view(us);
                match switch::decide_flood(&header, &frame, &view, seen, now) {
                    Flooded::Drop(reason) => return Err(reason),
                    Flooded::Deliver => {}
                    Flooded::DeliverAndPassOn => {
                        let hops = header.hops.saturating_sub(1);
                        let onward = FloodHeader { hops, ..header };
                        // Nobody waits for it.
                        let _ = self.pass_on(n, onward, bytes, Some(peer));
                    }
                }
                self.inject(n, bytes, header.origin);
                Ok(())
            }
        }
    }

    fn unicast(&mut self, n: usize, header: UnicastHeader, bytes: &[u8]) -> Result<(), DropReason> {
        let us = self.peers[n].name;
        let frame = Frame::new_checked(bytes).map_err(|_| DropReason::MalformedFrame)?;
        let forwarding = &self.peers[n].up().forwarding;
        match switch::decide_unicast(&header, &frame, &forwarding.view(us)) {
            Received::Drop(reason) => return Err(reason),
            Received::Deliver => self.inject(n, bytes, header.source),
            Received::Relay => {
                let hops = header.hops.saturating_sub(1);
                self.model.relayed += 1;
                return self.forward(n, UnicastHeader { hops, ..header }, bytes);
            }
        }
        Ok(())
    }

    fn forward(&mut self, n: usize, header: UnicastHeader, frame: &[u8]) -> Result<(), DropReason> {
        let next_hops = &self.peers[n].up().forwarding.next_hops;
        let egress = next_hops.get(&header.destination).cloned();
        let egress = egress.ok_or(DropReason::NoRoute)?;
        self.seal(n, &egress.session, egress.remote, &header.emit(), frame);
        Ok(())
    }

    fn pass_on(
        &mut self,
        n: usize,
        header: FloodHeader,
        frame: &[u8],
        from: Option<PeerName>,
    ) -> Result<(), DropReason> {
        let flood = &self.peers[n].up().forwarding.flood;
        let along = flood.get(&header.origin).cloned();
        let along = along.ok_or(DropReason::NoRoute)?;
        for egress in along.iter().filter(|egress| Some(egress.peer) != from) {
            self.seal(n, &egress.session, egress.remote, &header.emit(), frame);
        }
        Ok(())
    }

    pub(crate) fn send_heartbeat(&mut self, n: usize, conn: ConnId, heartbeat: Heartbeat) {
        if let Some(session) = self.peers[n].up().sessions.get(&conn) {
            let (send, remote) = (session.send.clone(), session.remote);
            self.seal(n, &send, remote, &heartbeat.emit(), &[]);
        }
    }

    pub(crate) fn punch(&mut self, n: usize, conn: ConnId, to: SocketAddr, heartbeat: Heartbeat) {
        if let Some(session) = self.peers[n].up().sessions.get(&conn) {
            let send = session.send.clone();
            self.seal(n, &send, to, &heartbeat.emit(), &[]);
        }
    }

    pub(crate) fn send_probe(&mut self, n: usize, conn: ConnId, probe: Probe) {
        if let Some(session) = self.peers[n].up().sessions.get(&conn) {
            let (send, remote) = (session.send.clone(), session.remote);
            let padding = vec![0; usize::from(probe.size) - OVERHEAD - PROBE_LEN];
            self.seal(n, &send, remote, &probe.emit(), &padding);
        }
    }

    fn answer(&mut self, n: usize, conn: ConnId, to: SocketAddr, answer: &[u8]) {
        if let Some(session) = self.peers[n].up().sessions.get(&conn) {
            let send = session.send.clone();
            self.seal(n, &send, to, answer, &[]);
        }
    }

    fn seal(
        &mut self,
        n: usize,
        session: &SendSession,
        to: SocketAddr,
        header: &[u8],
        rest: &[u8],
    ) {
        let mut datagram = vec![0; HEADER_LEN];
        datagram.extend_from_slice(header);
        datagram.extend_from_slice(rest);
        datagram.extend([0; TAG_LEN]);
        session.seal(&mut datagram).unwrap();
        self.send_datagram(n, to, &datagram);
    }

    fn inject(&mut self, n: usize, bytes: &[u8], source: PeerName) {
        let mac = Frame::new_checked(bytes).unwrap().src();
        self.see(n, mac, source);
        self.note_delivery(n, bytes);
    }

    /// A frame came from there: learned if the table does not have it so.
    fn see(&mut self, n: usize, mac: MacAddr, at: PeerName) {
        let (now, us) = (self.clock(n), self.peers[n].name);
        let up = self.peers[n].up.as_mut().unwrap();
        let location = match at == us {
            true => Location::Local,
            false => Location::Peer(at),
        };
        if up.forwarding.macs.is_news(Network::DEFAULT, mac, location) {
            match up.macs.learn(Network::DEFAULT, mac, location, now) {
                Learned::New | Learned::Moved { .. } => self.replace_forwarding(n),
                Learned::Known | Learned::Kept { .. } | Learned::Group => {}
                Learned::Full => panic!("the MAC table is full of a few containers"),
            }
        }
    }

    pub(crate) fn age_macs(&mut self, n: usize) {
        let now = self.clock(n);
        if let Some(up) = &mut self.peers[n].up {
            up.stale |= !up.macs.age_out(now).is_empty();
        }
    }
}
