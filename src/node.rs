//! The node: owns every machine of this peer, and is the only place where they meet.
//!
//! One task, one loop, in a fixed order: what the machines want done is carried out until none wants
//! anything more; then the forwarding snapshot is replaced if something in it changed; then the loop
//! waits for whatever comes first: input, a report of the data plane, a deadline. Machines
//! never call each other, so every effect of one on another can be read in [`effects`].
//!
//! Invariant: an allocation is on the disk before its answer leaves, because effects are carried out
//! in the order the machines gave them.

mod bindings;
mod clash;
mod effects;
pub(crate) mod fast;
mod forwarding;
mod links;
mod macs;
mod networks;
mod renewal;
mod requests;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};
use weft_dns::{Domain, Name, NameTable, Record};
use weft_gossip::{Gossip, Link, Links, PeerInfo};
use weft_ipam::{Pools, RequestId};
use weft_router::networks::Networks;
use weft_router::session::SendSession;
use weft_router::{ConnId, Router, Subnet};
use weft_wire::PeerName;

use crate::config::Config;
use crate::dataplane::{Activity, DataPlane, Heard, Report};
use crate::event::Input;
use crate::fast::FastPath;
use crate::host::Host;
use crate::resolver::Resolver;
use crate::state::{NameState, State, Store};
use crate::streams::Streams;
use clash::Clash;
use fast::Fast;
pub(crate) use macs::Macs;
use requests::Waiting;

/// How often MACs are aged and the report's slow parts are looked at.
const HOUSEKEEPING: Duration = Duration::from_secs(10);
/// How often it is looked whether what is sent to a neighbour is answered by anything.
const LOOK: Duration = Duration::from_millis(500);
/// Inputs, or events of gossip, handled before the machines' effects are carried out, so that a flood of one kind of input
/// cannot keep the deadlines from being met.
const BUDGET: usize = 64;

/// All of one peer.
pub(crate) struct Node {
    config: Config,
    persisted: Persisted,
    router: Router,
    ipam: Pools,
    names: Names,
    macs: Macs,
    /// Who has which network, and under which number.
    networks: Networks,
    mesh: Mesh,
    host: Host,
    fast: Fast,
    streams: Streams,
    data: DataPlane,
    waiting: BTreeMap<RequestId, Waiting>,
    sources: Sources,
}

/// The state and where it is kept.
pub(crate) struct Persisted {
    pub(crate) store: Store,
    pub(crate) state: State,
    /// Where the state that was found at the start is, if it was a copy of another host's.
    pub(crate) set_aside: Option<PathBuf>,
    /// Why the last write failed, if it did.
    pub(crate) failure: Option<String>,
}

/// The name table, the copy of it the resolver reads, and the resolver.
pub(crate) struct Names {
    pub(crate) table: NameTable,
    pub(crate) shared: Arc<ArcSwap<NameTable>>,
    pub(crate) resolver: Option<Resolver>,
    /// What others say was taken in since the copy was made.
    stale: bool,
}

/// What is known of other peers beyond what the machines keep.
pub(crate) struct Mesh {
    pub(crate) gossip: Gossip,
    /// What each peer says of itself.
    info: BTreeMap<PeerName, PeerInfo>,
    /// What each peer says of its connections, and the address it has for each.
    links: Links,
    /// Peers that said something new of their connections, and peers that others have another address of:
    /// the router is still to be told.
    relinked: BTreeSet<PeerName>,
    readdressed: BTreeSet<PeerName>,
    /// Bounds of which it was said that there is more than they allow.
    warned: BTreeSet<&'static str>,
    /// The port each neighbour says it listens on.
    ports: BTreeMap<PeerName, u16>,
    /// Our own links as last published.
    published: BTreeMap<PeerName, Link>,
    /// Keys to seal with towards each connection.
    sessions: BTreeMap<ConnId, Session>,
    /// What goes on on each connection.
    activity: BTreeMap<ConnId, Arc<Activity>>,
    /// What is sent to each peer, if it matters.
    demand: BTreeMap<PeerName, Arc<Activity>>,
    /// Another router with our name.
    clash: Option<Clash>,
    /// Peers that gossip told of before it was begun anew, and not since.
    unconfirmed: BTreeSet<PeerName>,
    renewed: Instant,
    /// The subnets this host is in, as far as they were looked at.
    subnets: Vec<Subnet>,
    /// Connections that ended after they were established.
    terminations: u64,
    /// The forwarding snapshot is not what the machines say any more.
    stale: bool,
}

/// The sending half of one connection's session.
struct Session {
    peer: PeerName,
    send: Arc<SendSession>,
    remote: SocketAddr,
    /// Bytes of the longest datagram that goes there.
    limit: u16,
    activity: Arc<Activity>,
}

/// What the loop waits for.
pub(crate) struct Sources {
    pub(crate) inputs: mpsc::Receiver<Input>,
    pub(crate) reports: mpsc::Receiver<Report>,
}

impl Mesh {
    pub(crate) fn new(gossip: Gossip) -> Self {
        Self {
            gossip,
            info: BTreeMap::new(),
            links: Links::default(),
            relinked: BTreeSet::new(),
            readdressed: BTreeSet::new(),
            warned: BTreeSet::new(),
            ports: BTreeMap::new(),
            published: BTreeMap::new(),
            sessions: BTreeMap::new(),
            activity: BTreeMap::new(),
            demand: BTreeMap::new(),
            clash: None,
            unconfirmed: BTreeSet::new(),
            renewed: Instant::now(),
            subnets: Vec::new(),
            terminations: 0,
            stale: true,
        }
    }
}

/// The parts a node is put together from.
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) persisted: Persisted,
    pub(crate) router: Router,
    pub(crate) ipam: Pools,
    pub(crate) names: Names,
    pub(crate) gossip: Gossip,
    pub(crate) macs: Macs,
    pub(crate) networks: Networks,
    pub(crate) host: Host,
    pub(crate) fast: FastPath,
    pub(crate) streams: Streams,
    pub(crate) data: DataPlane,
    pub(crate) sources: Sources,
}

/// Whether the loop goes on.
enum Next {
    Continue,
    Stop,
}

impl Node {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            config: parts.config,
            persisted: parts.persisted,
            router: parts.router,
            ipam: parts.ipam,
            names: parts.names,
            macs: parts.macs,
            networks: parts.networks,
            mesh: Mesh::new(parts.gossip),
            host: parts.host,
            fast: Fast::new(parts.fast),
            streams: parts.streams,
            data: parts.data,
            waiting: BTreeMap::new(),
            sources: parts.sources,
        }
    }

    /// Runs until somebody stops the router.
    ///
    /// # Errors
    /// The state cannot be written any more: going on could hand an address out twice.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.route_answers().await;
        self.review_fast();
        loop {
            self.carry_out().await?;
            let deadline = self.deadline();
            let next = tokio::select! {
                Some(input) = self.sources.inputs.recv() => self.handle_inputs(input).await,
                Some(report) = self.sources.reports.recv() => { self.handle_report(report).await; Next::Continue }
                () = tokio::time::sleep_until(deadline.into()) => { self.handle_timeout().await; Next::Continue }
                _ = looks.tick() => { self.look_at_traffic(); Next::Continue }
                _ = housekeeping.tick() => { self.keep_house().await?; Next::Continue }
            };
            if matches!(next, Next::Stop) {
                return self.stop().await;
            }
        }
    }

    fn deadline(&self) -> Instant {
        let router = self.router.poll_timeout();
        let ipam = self.ipam.poll_timeout();
        let gossip = self.mesh.gossip.poll_timeout();
        let home = self.macs.home.poll_timeout();
        let far = Instant::now() + Duration::from_secs(3600);
        if self.mesh.gossip.has_events() {
            return Instant::now();
        }
        [router, ipam, home, gossip]
            .into_iter()
            .flatten()
            .map(|(at, _)| at)
            .min()
            .unwrap_or(far)
    }

    /// Tells the machines that count the time of sleep too what it is; before they are called.
    fn tell_uptime(&mut self) {
        self.ipam.set_uptime(weft_net::uptime(), Instant::now());
    }

    async fn handle_timeout(&mut self) {
        self.tell_uptime();
        let now = Instant::now();
        self.router.handle_timeout(now);
        self.ipam.handle_timeout(now);
        self.mesh.gossip.handle_timeout(now);
        self.publish_learned(now).await;
    }

    async fn handle_inputs(&mut self, first: Input) -> Next {
        self.tell_uptime();
        let mut input = Some(first);
        for _ in 0..BUDGET {
            match input {
                None => break,
                Some(Input::Stop) => return Next::Stop,
                Some(Input::Request(request)) => self.handle_request(request).await,
                Some(Input::Accepted { stream, remote }) => {
                    if let Some(conn) = self.router.handle_accepted(remote, Instant::now()) {
                        self.streams.open(conn, stream);
                    }
                }
                Some(Input::Dialed { conn, outcome }) => self.handle_dialed(conn, outcome),
                Some(Input::Bytes { conn, bytes }) => {
                    self.router.handle_bytes(conn, &bytes, Instant::now())
                }
                Some(Input::Closed { conn, why }) => self.handle_closed(conn, why),
                Some(Input::Beat(frame)) => self.router.handle_beat(&frame, Instant::now()),
            }
            input = self.sources.inputs.try_recv().ok();
        }
        Next::Continue
    }

    fn handle_dialed(
        &mut self,
        conn: ConnId,
        outcome: Result<(tokio::net::TcpStream, SocketAddr), String>,
    ) {
        let now = Instant::now();
        match outcome {
            Ok((stream, remote)) => {
                self.streams.open(conn, stream);
                self.router.handle_dialed(conn, remote, now);
            }
            Err(why) => self.router.handle_dial_failed(conn, why, now),
        }
    }

    fn handle_closed(&mut self, conn: ConnId, why: String) {
        self.streams.close(conn);
        self.router.handle_closed(conn, why, Instant::now());
    }

    async fn handle_report(&mut self, report: Report) {
        let now = Instant::now();
        match report {
            Report::Heartbeat {
                conn,
                from,
                heartbeat,
            } => self.router.handle_heartbeat(conn, from, heartbeat, now),
            Report::Probed { conn, answer } => self.router.handle_probed(conn, answer, now),
            Report::TooLong { conn, size } => {
                let size = u16::try_from(size).unwrap_or(u16::MAX);
                self.router.handle_too_long(conn, size, now);
            }
            Report::RekeyDue { conn } => self.router.handle_rekey_due(conn, now),
            Report::Seen(sighting) => {
                self.learn(sighting, now).await;
                self.data.heard(&sighting);
            }
        }
    }

    /// Tells the router where frames went since the last time, and whether anything came from there.
    fn look_at_traffic(&mut self) {
        let now = Instant::now();
        for (conn, activity) in &self.mesh.activity {
            if let Some(Heard(heard)) = activity.take() {
                self.router.handle_traffic(*conn, heard, now);
            }
        }
        for (conn, ip) in self.streams.stranded() {
            self.handle_closed(
                conn,
                format!("this host does not have the address {ip} any more"),
            );
        }
        for (peer, _) in self.mesh.demand.iter().filter(|(_, d)| d.take().is_some()) {
            self.router.handle_demand(*peer, now);
        }
        // What the kernel carries shows in no count of ours: the peer is taken for one that is talked to.
        for peer in self.fast.kernel.keys() {
            self.router.handle_demand(*peer, now);
        }
        self.review_fast();
    }

    /// What nobody waits for: old MACs go, what is left of containers and of an earlier run, and who is not
    /// heard of any more.
    async fn keep_house(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        self.age_macs(now).await;
        self.prune_bindings(now).await;
        self.host.drop_unconfirmed(now).await;
        self.fast.path.keep_house(now).await;
        self.mesh.subnets = self.host.subnets().await;
        self.drop_unconfirmed().await;
        self.end_clash()
    }

    /// Ends the router in order: the others hear of it at once, and the state says it was meant.
    async fn stop(mut self) -> anyhow::Result<()> {
        info!("stopping");
        self.mesh.gossip.withdraw_all(Instant::now());
        while self.mesh.gossip.has_events() {
            self.carry_out().await?;
        }
        // The withdrawal leaves by the connections, so they are closed after it was handed out.
        tokio::time::sleep(Duration::from_millis(100)).await;
        self.router.shutdown(Instant::now());
        self.carry_out().await?;
        // The others have heard that we stop, and nobody would look after who may send.
        self.fast.path.stop().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        self.persisted.state.stopped_cleanly = true;
        self.persisted.save();
        Ok(())
    }

    /// Writes our own names to the disk, so that they are back with the router.
    fn save_names(&mut self) {
        let names = self.names.table.own().map(|record| NameState {
            name: record.name.to_string(),
            container: record.container.clone(),
            addr: record.addr,
        });
        self.persisted.state.names = names.collect();
        self.persisted.save();
    }

    /// Everybody that messages between machines get to now, without us.
    fn reachable(&self) -> BTreeSet<PeerName> {
        self.router.routes().control.keys().copied().collect()
    }
}

impl Persisted {
    pub(crate) fn new(store: Store, state: State, set_aside: Option<PathBuf>) -> Self {
        Self {
            store,
            state,
            set_aside,
            failure: None,
        }
    }

    /// Writes the state to the disk. While that fails nothing that rests on it is said to anybody;
    /// the next change tries again.
    fn save(&mut self) {
        self.failure = self
            .store
            .save(&self.state)
            .err()
            .map(|error| error.to_string());
        if let Some(why) = &self.failure {
            error!(
                why,
                "the state cannot be written: no address is given out until it can"
            );
        }
    }
}

impl Names {
    pub(crate) fn new(
        table: NameTable,
        shared: Arc<ArcSwap<NameTable>>,
        resolver: Option<Resolver>,
    ) -> Self {
        Self {
            table,
            shared,
            resolver,
            stale: false,
        }
    }

    /// Has the resolver answer from the table as it is.
    fn share(&mut self) {
        self.stale = false;
        self.shared.store(Arc::new(self.table.clone()));
    }

    /// Another peer says what one of its containers is called.
    fn set(
        &mut self,
        origin: PeerName,
        domain: &Domain,
        fqdn: &str,
        container: String,
        addr: IpAddr,
    ) {
        let Ok(name) = Name::new(fqdn, domain) else {
            return debug!(peer = %origin, fqdn, "a name outside our domain");
        };
        match self.table.set(Record {
            name,
            container,
            origin,
            addr,
        }) {
            Ok(is_new) => self.stale |= is_new,
            Err(error) => warn!(peer = %origin, %error, "name not taken over"),
        }
    }

    fn unset(
        &mut self,
        origin: PeerName,
        domain: &Domain,
        fqdn: &str,
        container: &str,
        addr: IpAddr,
    ) {
        let name = Name::new(fqdn, domain);
        self.stale |= name.is_ok_and(|name| self.table.unset(origin, &name, container, addr));
    }

    fn drop_origin(&mut self, origin: PeerName) {
        self.stale |= self.table.drop_origin(origin) > 0;
    }
}
