//! The control side as one machine: it owns the small ones and makes them work together.
//!
//! * `mod.rs`: what the node calls, and the way of bytes and events.
//! * `admission.rs`: who may be a peer's connection; refusals, clones, duplicates.
//! * `life.rs`: a connection that is up: keys, heartbeats, readiness, time.
//! * `ending.rs`: how a connection ends, and who is told.
//! * `relay.rs`: messages to peers further away.
//! * `report.rs`: what people see.
//!
//! Invariants, checked by `check` in tests: `peers` names exactly the connections that are `Up`, each
//! under its peer's name; no session number is used twice.

mod admission;
mod ending;
mod life;
mod relay;
mod report;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};
use weft_wire::control::{Control, Refusal, RefusalReason};
use weft_wire::message::Heartbeat;
use weft_wire::{PeerName, PeerUid};
use zeroize::Zeroizing;

use crate::connect::Targets;
use crate::control::{Channel, Credentials, Side, Step};
use crate::dial::Ended;
use crate::discovery::Discovery;
use crate::failures::Failures;
use crate::link::{Link, Origin, Stage};
use crate::mesh::Mesh;
use crate::routes::Routes;
use crate::throttle::{NotNow, SILENCE, Throttle};
use crate::topology::{LinkState, Topology};
use crate::{Config, ConnId, Event, Target, TargetStatus};

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
    throttle: Throttle,
    failures: Failures,
    mesh: Mesh,
    events: VecDeque<Event>,
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
    links: BTreeMap<ConnId, Link>,
    /// The connection of each peer.
    peers: BTreeMap<PeerName, ConnId>,
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

/// What gossip tells about where a peer may be dialled.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerInfo {
    /// TCP addresses it may listen at; the first 16 count.
    pub addresses: Vec<SocketAddr>,
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
            throttle: Throttle::default(),
            failures: Failures::default(),
            mesh: Mesh::new(config.name),
            events: VecDeque::new(),
            links_changed: false,
            stopping: false,
            config,
        }
    }

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
        link.hear(now);
        let challenged = link.up().is_some_and(|up| up.challenged);
        if let Err(error) = link.channel.push(bytes) {
            self.end(conn, End::Broken(error), now);
        } else {
            if challenged {
                self.settle_contest(conn, now);
            }
            self.read(conn, now);
        }
        self.finish(now);
    }

    /// A control connection has ended, not by [`Event::Close`].
    pub fn handle_closed(&mut self, conn: ConnId, why: String, now: Instant) {
        if let Some(lingering) = self.conns.lingering.remove(&conn) {
            self.close(conn, lingering.place);
        }
        self.end(conn, End::Closed(why), now);
        self.finish(now);
    }

    /// The data plane has opened a heartbeat that came over a session of this connection.
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
        self.mesh.set_links(peer, uid, links, now);
    }

    /// Gossip tells where a peer may be dialled.
    pub fn handle_peer_info(&mut self, peer: PeerName, info: PeerInfo, now: Instant) {
        if self.config.discovery {
            let connected = self.conns.peers.get(&peer).copied();
            self.discovery
                .heard(peer, &info.addresses, connected, &mut self.rng, now);
        }
    }

    /// A peer is gone from gossip: it is not dialled by discovery, and no route leads there.
    pub fn handle_peer_gone(&mut self, peer: PeerName, now: Instant) {
        self.mesh.remove(peer, now);
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
        self.close_lingering(|_| true);
        self.finish(now);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.close_lingering(|lingering| lingering.until <= now);
        for conn in self.conns.links.keys().copied().collect::<Vec<_>>() {
            self.link_timeout(conn, now);
        }
        self.failures.handle_timeout(now);
        if self.mesh.handle_timeout(now) {
            self.events.push_back(Event::RoutesChanged);
        }
        self.dial_due(now);
        self.finish(now);
    }

    /// When [`Router::handle_timeout`] is to be called, and what for.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        if self.stopping {
            return None;
        }
        let lingering = self.conns.lingering.values().map(|l| (l.until, "linger"));
        let links = self.conns.links.values().map(Link::poll_timeout);
        let dialling = [self.targets.poll_timeout(), self.discovery.poll_timeout()];
        let dialling = dialling.into_iter().flatten();
        let failures = self.failures.poll_timeout().map(|at| (at, "failures"));
        let routes = self.mesh.poll_timeout().map(|at| (at, "routes"));
        let all = lingering
            .chain(links)
            .chain(dialling.map(|at| (at, "dial")));
        all.chain(failures).chain(routes).min_by_key(|(at, _)| *at)
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

    /// Targets we were told, those of discovery not among them.
    pub fn targets(&self) -> Vec<TargetStatus> {
        self.targets.statuses()
    }

    /// Peers whose connection with us is established.
    pub fn neighbours(&self) -> Vec<PeerName> {
        let links = self.own_links().into_iter();
        links
            .filter(|(_, link)| link.established)
            .map(|(peer, _)| peer)
            .collect()
    }

    /// Peers that have a connection with us, established or not: those to gossip with.
    pub fn connected(&self) -> Vec<PeerName> {
        self.conns.peers.keys().copied().collect()
    }

    /// What to publish of our connections.
    pub fn own_links(&self) -> BTreeMap<PeerName, LinkState> {
        let state = |conn: &ConnId| LinkState {
            established: self.conns.links.get(conn).is_some_and(Link::is_established),
        };
        self.conns
            .peers
            .iter()
            .map(|(peer, conn)| (*peer, state(conn)))
            .collect()
    }

    fn open(&mut self, conn: ConnId, side: Side, remote: SocketAddr, origin: Origin, now: Instant) {
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let channel = Channel::new(side, self.credentials.clone(), seed);
        let link = Link::new(side, remote, origin, channel, now);
        self.conns.links.insert(conn, link);
        self.transmit(conn);
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
        self.transmit(conn);
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
            let hello = self.config.hello(remote);
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
            Ok(()) => self.transmit(conn),
            Err(_) => self.end(
                conn,
                End::Closed("its sealing key is used up".to_owned()),
                now,
            ),
        }
    }

    fn transmit(&mut self, conn: ConnId) {
        let bytes = self
            .conns
            .links
            .get_mut(&conn)
            .map(|link| link.channel.take_output());
        if let Some(bytes) = bytes.filter(|bytes| !bytes.is_empty()) {
            self.events.push_back(Event::Transmit { conn, bytes });
        }
    }

    /// The last thing each `handle_*` does: reads on where a wait has ended, until nothing is left.
    fn finish(&mut self, now: Instant) {
        while let Some(conn) = self.conns.released.pop() {
            self.read(conn, now);
        }
        self.publish_links();
    }

    fn publish_links(&mut self) {
        if std::mem::take(&mut self.links_changed) && self.mesh.set_own(self.own_links()) {
            self.events
                .extend([Event::LinksChanged, Event::RoutesChanged]);
        }
    }

    fn dial_due(&mut self, now: Instant) {
        if self.stopping {
            return;
        }
        for target in self.targets.due(now) {
            let full = self.limit_reached();
            let Some(dial) = self.targets.dial(&target) else {
                continue;
            };
            if full {
                dial.put_off(RefusalReason::Limit.words(), &mut self.rng, now);
                continue;
            }
            let conn = self.conns.next();
            dial.begin(conn);
            self.dial(conn, Origin::Target(target.clone()), target);
        }
        for candidate in self.discovery.due(now) {
            let full = self.limit_reached() || self.conns.discovering() >= MAX_DISCOVERING;
            let Some(dial) = self.discovery.dial(candidate.peer) else {
                continue;
            };
            if full {
                dial.put_off("too many connections are being made", &mut self.rng, now);
                continue;
            }
            let conn = self.conns.next();
            dial.begin(conn);
            self.dial(
                conn,
                Origin::Discovered(candidate),
                report::target_of(&candidate),
            );
        }
    }

    fn dial(&mut self, conn: ConnId, origin: Origin, target: Target) {
        self.conns.dials.insert(conn, origin);
        self.events.push_back(Event::Dial { conn, target });
    }

    fn limit_reached(&self) -> bool {
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
}

impl Conns {
    fn next(&mut self) -> ConnId {
        self.last += 1;
        ConnId(self.last)
    }

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

fn name_of(message: &Control) -> &'static str {
    match message {
        Control::Hello(_) => "hello",
        Control::Refusal(_) => "refusal",
        Control::Heartbeat => "heartbeat",
        Control::Key(_) => "key",
        Control::Ready(_) => "ready",
        Control::Gossip(_) => "gossip",
        Control::Routed(_) => "routed message",
    }
}

/// Peers of discovery dialled at a time; in a large mesh a newcomer hears of hundreds at once.
const MAX_DISCOVERING: usize = 16;
/// How long a connection that was told why it ends is kept for the other side to read that.
const LINGER: Duration = Duration::from_secs(2);
