//! The control side as one machine: it owns the small ones and makes them work together.
//!
//! * `mod.rs`: what the node calls, and the way of bytes and events.
//! * `clash.rs`: another router with our name.
//! * `dialling.rs`: whom to dial, told or found.
//! * `admission.rs`: who may be a peer's connection; refusals, clones, duplicates.
//! * `choosing.rs`: who is worth a connection when there are too many for all.
//! * `life.rs`: a connection that is up: keys, heartbeats, readiness, time.
//! * `ending.rs`: how a connection ends, and who is told.
//! * `fast.rs`: the kernel carries the frames, where both ends trust what is between.
//! * `relay.rs`: messages to peers further away.
//! * `through.rs`: control connections that go over peers in between.
//! * `report.rs`: what people see.
//!
//! Invariants, checked by `check` in tests: `peers` names exactly the connections that are `Up`, each
//! under its peer's name; no session number is used twice.

mod admission;
mod choosing;
mod clash;
mod dialling;
mod ending;
mod fast;
mod life;
mod relay;
mod report;
mod through;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};
use weft_wire::control::{Control, Refusal, RefusalReason};
use weft_wire::message::{Heartbeat, Probe};
use weft_wire::{PeerName, PeerUid};
use zeroize::Zeroizing;

use crate::choice::Choice;
use crate::connect::Targets;
use crate::control::{Channel, Credentials, Side, Step};
use crate::discovery::Discovery;
use crate::failures::Failures;
use crate::fast::{Fast, Support};
use crate::link::{Link, Origin, Stage};
use crate::links::Links;
use crate::mesh::Mesh;
use crate::relays::Relays;
use crate::routes::Routes;
use crate::throttle::{NotNow, SILENCE, Throttle};
use crate::topology::{LinkState, Topology};
use crate::{Config, ConnId, Event};

pub use dialling::PeerInfo;
use ending::End;
pub use relay::SendError;

/// The control side of one peer.
#[derive(Debug)]
pub struct Router {
    config: Config,
    credentials: Arc<Credentials>,
    rng: ChaCha20Rng,
    /// When we started; heartbeat stamps count from it.
    epoch: Instant,
    conns: Conns,
    targets: Targets,
    discovery: Discovery,
    choice: Choice,
    throttle: Throttle,
    failures: Failures,
    mesh: Mesh,
    /// Whether our kernel can carry frames.
    fast_support: Support,
    /// Peers that have a connection, or had one a short while ago.
    fasts: BTreeMap<PeerName, Fast>,
    events: VecDeque<Event>,
    /// Another router with our name came first: until when we keep off the mesh, and why.
    stands_back: Option<(Instant, String)>,
    /// Pieces of relayed connections that came too fast.
    relayed_dropped: u64,
    /// What to publish of our connections may differ from what was published.
    links_changed: bool,
    /// [`Router::shutdown`] was called: nobody is dialled or let in any more.
    stopping: bool,
}

/// Every connection there is, by how far it is.
#[derive(Debug, Default)]
struct Conns {
    last: u64,
    /// TCP connections the node is opening.
    dials: BTreeMap<ConnId, Origin>,
    links: Links,
    /// The connection of each peer.
    peers: BTreeMap<PeerName, ConnId>,
    /// Those of `links` and `lingering` whose bytes go over other peers.
    relays: Relays,
    /// Told why they end; closed when the other side does so, or then.
    lingering: BTreeMap<ConnId, Lingering>,
    /// Released from waiting, with bytes to be read.
    released: Vec<ConnId>,
}

#[derive(Debug)]
struct Lingering {
    until: Instant,
    /// The address whose place among the unfinished it still takes.
    place: Option<IpAddr>,
}

impl Router {
    /// A router without connections. `seed` is the source of all its keys: fresh from the system,
    /// and never used again.
    pub fn new(config: Config, seed: [u8; 32], now: Instant) -> Self {
        let credentials = Credentials {
            identity: config.identity.clone(),
            psk: config.psk.clone(),
            cluster: config.cluster.clone(),
        };
        let seed = Zeroizing::new(seed);
        Self {
            credentials: Arc::new(credentials),
            rng: ChaCha20Rng::from_seed(*seed),
            epoch: now,
            conns: Conns::default(),
            targets: Targets::default(),
            discovery: Discovery::new(config.name),
            choice: Choice::new(config.name, config.conn_limit),
            throttle: Throttle::default(),
            failures: Failures::default(),
            mesh: Mesh::new(config.name),
            fast_support: Err("the fast datapath is not set up".to_owned()),
            fasts: BTreeMap::new(),
            events: VecDeque::new(),
            stands_back: None,
            relayed_dropped: 0,
            links_changed: false,
            stopping: false,
            config,
        }
    }

    /// Somebody has connected to our port. `None`: close it at once.
    pub fn handle_accepted(&mut self, remote: SocketAddr, now: Instant) -> Option<ConnId> {
        if self.stopping {
            return None;
        }
        match self.throttle.accept(remote.ip(), now) {
            Ok(()) => {
                let conn = self.conns.next();
                self.open(conn, Side::Responder, remote, Origin::Inbound, now);
                Some(conn)
            }
            Err(NotNow::Silent { first: true }) => {
                let text = format!(
                    "{} is not answered for {} s",
                    remote.ip(),
                    SILENCE.as_secs()
                );
                let refusal = Refusal::new(RefusalReason::Throttled, text);
                self.note_refusal(remote, refusal, false);
                None
            }
            Err(NotNow::Busy | NotNow::Silent { first: false }) => None,
        }
    }

    /// Bytes came over a control connection.
    pub fn handle_bytes(&mut self, conn: ConnId, bytes: &[u8], now: Instant) {
        let Some(link) = self.conns.links.get_mut(&conn) else {
            // It is lingering, or was closed with these on their way.
            return;
        };
        match link.push(bytes) {
            Ok(()) => self.read(conn, now),
            Err(error) => self.end(conn, End::Broken(error), now),
        }
        self.finish(now);
    }

    /// A control connection has ended, not by [`Event::Close`].
    pub fn handle_closed(&mut self, conn: ConnId, why: String, now: Instant) {
        if let Some(lingering) = self.conns.lingering.remove(&conn) {
            self.close(conn, lingering.place, now);
        }
        self.end(conn, End::Closed(why), now);
        self.finish(now);
    }

    /// The data plane has opened a heartbeat that came over a session of this connection, and has answered
    /// it if it was a question.
    pub fn handle_heartbeat(
        &mut self,
        conn: ConnId,
        from: SocketAddr,
        heartbeat: Heartbeat,
        now: Instant,
    ) {
        self.take_heartbeat(conn, from, heartbeat, now);
        self.finish(now);
    }

    /// The data plane has opened the answer to a probe.
    pub fn handle_probed(&mut self, conn: ConnId, answer: Probe, now: Instant) {
        self.on_path(conn, |path| path.handle_answer(answer, now));
        self.finish(now);
    }

    /// The kernel would not send a datagram of so many bytes to this connection's peer.
    pub fn handle_too_long(&mut self, conn: ConnId, size: u16, now: Instant) {
        self.on_path(conn, |path| path.handle_too_long(size, now));
        self.finish(now);
    }

    /// Frames were sent to this connection's peer in the last moments, and something came from there, or
    /// nothing did.
    pub fn handle_traffic(&mut self, conn: ConnId, heard: bool, now: Instant) {
        if let Some(up) = self.conns.links.get_mut(&conn).and_then(Link::up_mut) {
            up.path.handle_traffic(heard, now);
            if !heard {
                up.pulse.handle_silence(now);
            }
        }
        self.finish(now);
    }

    /// The data plane has sealed about as much with the connection's key as one key should.
    pub fn handle_rekey_due(&mut self, conn: ConnId, now: Instant) {
        let up = self.conns.links.get(&conn).and_then(Link::up);
        if up.is_some_and(|up| up.keys.may_renew(now)) {
            self.offer_key(conn, now);
        }
        self.finish(now);
    }

    /// Gossip tells what connections a peer says it has.
    pub fn handle_links(
        &mut self,
        peer: PeerName,
        uid: PeerUid,
        links: BTreeMap<PeerName, LinkState>,
        now: Instant,
    ) {
        if self.mesh.set_links(peer, uid, links, now) {
            self.peers_changed(now);
        }
    }

    /// Whom we should be connected with may be others now.
    fn peers_changed(&mut self, now: Instant) {
        let peers = self.mesh.topology().count();
        self.choice.peers_changed(peers, now);
    }

    /// A peer is gone from gossip: it is not dialled by discovery, and no route leads there.
    pub fn handle_peer_gone(&mut self, peer: PeerName, now: Instant) {
        if self.mesh.remove(peer, now) {
            self.peers_changed(now);
        }
        if let Some(conn) = self.discovery.gone(peer) {
            self.abandon(conn, now);
        }
        self.finish(now);
    }

    /// Our rings and this peer's are equal: as far as we are concerned frames may flow.
    pub fn set_synced(&mut self, peer: PeerName, now: Instant) {
        let Some(conn) = self.conns.peers.get(&peer).copied() else {
            return;
        };
        if let Some(up) = self.conns.links.get_mut(&conn).and_then(Link::up_mut) {
            up.synced = true;
        }
        self.update_ready(conn, now);
        self.finish(now);
    }

    /// Tells all peers that we stop, and closes all connections. Targets are kept as they are.
    pub fn shutdown(&mut self, now: Instant) {
        self.stopping = true;
        for conn in self.conns.dials.keys().copied().collect::<Vec<_>>() {
            self.abandon(conn, now);
        }
        for conn in self.conns.links.keys().copied().collect::<Vec<_>>() {
            let refusal = Refusal::new(RefusalReason::Stopping, "weft is being stopped there");
            self.end(conn, End::Refuse(refusal), now);
        }
        self.close_lingering(|_| true, now);
        self.finish(now);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.close_lingering(|lingering| lingering.until <= now, now);
        for conn in self.conns.links.due(now) {
            self.link_timeout(conn, now);
        }
        self.failures.handle_timeout(now);
        self.fast_timeout(now);
        if self.mesh.handle_timeout(now) {
            self.events.push_back(Event::RoutesChanged);
        }
        self.stands_back.take_if(|(until, _)| *until <= now);
        self.choose_if_due(now);
        self.dial_due(now);
        self.finish(now);
    }

    /// When [`Router::handle_timeout`] is to be called, and what for.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        if self.stopping {
            return None;
        }
        let lingering = self.conns.lingering.values().map(|l| (l.until, "linger"));
        let links = self.conns.links.poll_timeout();
        let dialling = [self.targets.poll_timeout(), self.discovery.poll_timeout()];
        let dialling = dialling.into_iter().flatten();
        let failures = self.failures.poll_timeout().map(|at| (at, "failures"));
        let routes = self.mesh.poll_timeout().map(|at| (at, "routes"));
        let off = self.stands_back.as_ref();
        let off = off.map(|(until, _)| (*until, "name clash"));
        let choice = self
            .choice
            .poll_timeout()
            .map(|at| (at, "choice of neighbours"));
        let fasts = self.fasts.values().filter_map(Fast::poll_timeout);
        let fasts = fasts.map(|at| (at, "fast datapath"));
        let all = lingering
            .chain(choice)
            .chain(off)
            .chain(links)
            .chain(dialling.map(|at| (at, "dial")));
        let all = all.chain(failures).chain(routes).chain(fasts);
        all.min_by_key(|(at, _)| *at)
    }

    /// The next thing to do, until there is none.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Which neighbour frames for each peer go to.
    pub fn routes(&self) -> &Routes {
        self.mesh.routes()
    }

    /// What all peers say of their connections.
    pub fn topology(&self) -> &Topology {
        self.mesh.topology()
    }

    /// Peers whose connection with us is established.
    pub fn neighbours(&self) -> Vec<PeerName> {
        let links = self.own_links().into_iter();
        links
            .filter(|(_, link)| link.established)
            .map(|(peer, _)| peer)
            .collect()
    }

    /// Peers that have a connection with us, established or not: those to gossip with. Relayed ones are
    /// for frames only.
    pub fn connected(&self) -> Vec<PeerName> {
        let peers = self.conns.peers.iter();
        let direct = peers.filter(|(_, conn)| !self.conns.relays.contains(**conn));
        direct.map(|(peer, _)| *peer).collect()
    }

    /// What to publish of our connections: relayed ones are some only when frames may flow.
    pub fn own_links(&self) -> BTreeMap<PeerName, LinkState> {
        let state = |conn: &ConnId| LinkState {
            established: self.conns.links.get(conn).is_some_and(Link::is_established),
            relayed: self.conns.relays.contains(*conn),
        };
        let peers = self.conns.peers.iter();
        let states = peers.map(|(peer, conn)| (*peer, state(conn)));
        states
            .filter(|(_, state)| state.established || !state.relayed)
            .collect()
    }

    fn open(&mut self, conn: ConnId, side: Side, remote: SocketAddr, origin: Origin, now: Instant) {
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let channel = Channel::new(side, self.credentials.clone(), seed);
        let link = Link::new(side, remote, origin, channel, now);
        self.conns.links.insert(conn, link);
        self.transmit(conn, now);
    }

    /// Takes what a connection has received, one thing after the other.
    fn read(&mut self, conn: ConnId, now: Instant) {
        while let Some(link) = self.conns.links.get_mut(&conn) {
            if link.is_held() {
                return;
            }
            match link.channel.step() {
                Ok(Some(step)) => self.take_step(conn, step, now),
                Ok(None) => break,
                Err(error) => self.end(conn, End::Broken(error), now),
            }
        }
        self.transmit(conn, now);
        let link = self.conns.links.get_mut(&conn);
        if link.is_some_and(|link| link.has_heard(now)) {
            self.sign_of_life(conn, now);
        }
    }

    fn take_step(&mut self, conn: ConnId, step: Step, now: Instant) {
        let Some(link) = self.conns.links.get_mut(&conn) else {
            return;
        };
        let greeting = matches!(link.stage, Stage::Greeting { .. });
        match step {
            Step::Secured(key) => {
                link.key = Some(key);
                // The accepting side answers when it has decided, so that nobody is connected at
                // one end and refused at the other.
                if link.side == Side::Initiator {
                    self.greet(conn, now);
                }
            }
            Step::Refused(refusal) | Step::Message(Control::Refusal(refusal)) => {
                self.end(conn, End::Refused(refusal), now);
            }
            Step::Message(Control::Hello(hello)) if greeting => self.meet(conn, hello, now),
            Step::Message(message) if greeting => self.not_due(conn, name_of(&message), now),
            Step::Message(message) => self.take_message(conn, message, now),
        }
    }

    /// Says who we are, once.
    fn greet(&mut self, conn: ConnId, now: Instant) {
        let Some(link) = self.conns.links.get_mut(&conn) else {
            return;
        };
        if !std::mem::replace(&mut link.greeted, true) {
            let remote = link.remote.ip();
            let mut hello = self.config.hello(remote);
            // Where frames will go is not known yet.
            hello.trusts &= !self.conns.relays.contains(conn);
            self.send_control(conn, &Control::Hello(hello), now);
        }
    }

    fn not_due(&mut self, conn: ConnId, what: &str, now: Instant) {
        let refusal = Refusal::new(RefusalReason::Protocol, format!("a {what} was not due"));
        self.end(conn, End::Refuse(refusal), now);
    }

    fn send_control(&mut self, conn: ConnId, message: &Control, now: Instant) {
        let Some(link) = self.conns.links.get_mut(&conn) else {
            return;
        };
        match link.send(message) {
            Ok(()) => self.transmit(conn, now),
            Err(_) => self.end(
                conn,
                End::Closed("its sealing key is used up".to_owned()),
                now,
            ),
        }
    }

    fn transmit(&mut self, conn: ConnId, now: Instant) {
        let bytes = self
            .conns
            .links
            .get_mut(&conn)
            .map(|link| link.channel.take_output());
        if let Some(bytes) = bytes.filter(|bytes| !bytes.is_empty()) {
            self.write(conn, bytes, now);
        }
    }

    /// The last thing each `handle_*` does: reads on where a wait has ended, until nothing is left.
    fn finish(&mut self, now: Instant) {
        while let Some(conn) = self.conns.released.pop() {
            self.read(conn, now);
        }
        self.publish_links(now);
    }

    fn publish_links(&mut self, now: Instant) {
        if !std::mem::take(&mut self.links_changed) {
            return;
        }
        let (links, routes) = self.mesh.set_own(self.own_links(), now);
        let links = links.then_some(Event::LinksChanged);
        let routes = routes.then_some(Event::RoutesChanged);
        self.events.extend(links.into_iter().chain(routes));
    }
}

impl Conns {
    /// The connection with a peer, if it is not relayed.
    fn direct(&self, peer: PeerName) -> Option<ConnId> {
        let conn = self.peers.get(&peer).copied();
        conn.filter(|conn| !self.relays.contains(*conn))
    }

    fn next(&mut self) -> ConnId {
        self.last += 1;
        ConnId(self.last)
    }
}

fn name_of(message: &Control) -> &'static str {
    match message {
        Control::Hello(_) => "hello",
        Control::Refusal(_) => "refusal",
        Control::Heartbeat => "heartbeat",
        Control::Key(_) => "key",
        Control::Ready(_) => "ready",
        Control::Gossip(_) => "gossip",
        Control::Routed(_) => "routed message",
        Control::Fast(_) => "word about the fast datapath",
        Control::Relayed(_) => "relayed piece",
    }
}

/// How long a connection that was told why it ends is kept for the other side to read that.
const LINGER: Duration = Duration::from_secs(2);
