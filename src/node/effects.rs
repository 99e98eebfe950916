//! What the machines want done, and what gossip brings: the crossings between them.

use std::sync::Arc;
use std::time::Instant;

use tracing::{debug, error, info, warn};
use weft_gossip::{Change, Entry, Event as GossipEvent, Topic};
use weft_ipam::Event as IpamEvent;
use weft_router::session::{RecvSession, SendSession};
use weft_router::{ConnId, Event as RouterEvent};
use weft_wire::PeerName;
use weft_wire::control::{RefusalReason, SessionKey};

use super::{BUDGET, Node, Session};
use crate::convert;
use crate::dataplane::{Activity, Command, Receiver};
use crate::state::PoolState;

impl Node {
    /// Carries out effects until no machine has any left, then puts a fresh forwarding snapshot in
    /// place if one is due.
    ///
    /// What others say comes in bursts: a new snapshot for each piece of it would be much work, and all
    /// of it at once would keep everything else waiting.
    pub(super) async fn carry_out(&mut self) -> anyhow::Result<()> {
        let mut budget = BUDGET;
        loop {
            if let Some(event) = self.router.poll_event() {
                self.on_router(event).await;
            } else if let Some(event) = self.ipam.poll_event() {
                self.on_ipam(event).await;
            } else if let Some(event) = self.macs.home.poll_event() {
                self.on_home(event);
            } else if budget > 0
                && let Some(event) = self.mesh.gossip.poll_event()
            {
                budget -= 1;
                self.on_gossip(event).await?;
            } else if !self.tell_router() {
                break;
            }
        }
        if std::mem::take(&mut self.mesh.stale) {
            self.replace_forwarding();
        }
        if self.names.stale {
            self.names.share();
        }
        Ok(())
    }

    async fn on_router(&mut self, event: RouterEvent) {
        let now = Instant::now();
        match event {
            RouterEvent::Dial { conn, target } => {
                let port = target.port.unwrap_or(self.config.mesh.port);
                self.streams.dial(conn, target.host, port);
            }
            RouterEvent::Transmit { conn, bytes } => {
                if let Err(full) = self.streams.send(conn, bytes) {
                    self.streams.close(conn);
                    self.router.handle_closed(conn, full.to_string(), now);
                }
            }
            RouterEvent::Close { conn } => self.streams.close(conn),
            RouterEvent::InstallSend {
                conn,
                peer,
                key,
                remote,
                limit,
            } => {
                let send = Arc::new(SendSession::new(key.suite, &key.key, key.receiver));
                let activity = self.activity(conn);
                let session = Session {
                    peer,
                    send,
                    remote,
                    limit,
                    activity,
                };
                self.mesh.sessions.insert(conn, session);
                self.mesh.stale = true;
            }
            RouterEvent::InstallReceive { conn, peer, key } => {
                self.install_receive(conn, peer, &key)
            }
            RouterEvent::RetireReceive { receiver } => self.data.command(Command::Retire(receiver)),
            RouterEvent::Remote { conn, addr, .. } => {
                if let Some(session) = self.mesh.sessions.get_mut(&conn) {
                    session.remote = addr;
                    self.mesh.stale = true;
                }
                self.publish_links();
            }
            RouterEvent::SendHeartbeat { conn, heartbeat } => {
                if let Some(session) = self.mesh.sessions.get(&conn) {
                    self.data
                        .send_heartbeat(&session.send, session.remote, heartbeat);
                }
            }
            RouterEvent::Punch {
                conn,
                to,
                heartbeat,
            } => {
                if let Some(session) = self.mesh.sessions.get(&conn) {
                    self.data.send_heartbeat(&session.send, to, heartbeat);
                }
            }
            RouterEvent::SendProbe { conn, probe } => {
                let session = self.mesh.sessions.get(&conn);
                if session.is_some_and(|s| !self.data.send_probe(&s.send, s.remote, probe)) {
                    self.router.handle_too_long(conn, probe.size, now);
                }
            }
            RouterEvent::Limit { conn, peer, limit } => {
                debug!(%peer, limit, "the longest datagram to a peer is another one");
                if let Some(session) = self.mesh.sessions.get_mut(&conn) {
                    session.limit = limit;
                    self.mesh.stale = true;
                }
            }
            RouterEvent::Uninstall { conn } => {
                self.mesh.sessions.remove(&conn);
                self.mesh.activity.remove(&conn);
                self.data.command(Command::Uninstall(conn));
                self.mesh.stale = true;
            }
            RouterEvent::Connected { peer, hello, .. } => {
                info!(%peer, nickname = %hello.nickname, "connected");
                self.mesh.ports.insert(peer, hello.port);
                self.mesh.gossip.handle_connected(peer);
                self.tell_neighbours(now);
                self.ipam.handle_connected(peer, now);
            }
            RouterEvent::Established { peer } => {
                info!(%peer, "established: frames flow");
                self.mesh.stale = true;
            }
            RouterEvent::Disconnected { peer, why, reason } => {
                match reason {
                    Some(
                        RefusalReason::Unneeded | RefusalReason::Limit | RefusalReason::Duplicate,
                    ) => {
                        debug!(%peer, why, "disconnected");
                    }
                    Some(_) | None => {
                        warn!(%peer, why, "disconnected");
                        self.mesh.terminations += 1;
                    }
                }
                self.tell_neighbours(now);
                self.ipam.handle_disconnected(peer, now);
                self.mesh.stale = true;
            }
            RouterEvent::Message { from, body } => self.on_message(from, &body),
            RouterEvent::Gossip { from, bytes } => {
                self.mesh.gossip.handle_message(from, &bytes, now);
            }
            RouterEvent::LinksChanged => self.publish_links(),
            RouterEvent::RoutesChanged => self.on_routes(now),
            RouterEvent::TargetsChanged => {
                self.persisted.state.targets = self
                    .router
                    .targets()
                    .into_iter()
                    .map(|t| t.target.to_string())
                    .collect();
                self.persisted.save();
            }
            RouterEvent::Fast { peer, event } => self.on_fast(peer, event).await,
            // Both dialled and one of the two connections stays, or there are too many to have all.
            RouterEvent::Refused {
                remote,
                reason: RefusalReason::Duplicate | RefusalReason::Limit | RefusalReason::Unneeded,
                text,
                ..
            } => debug!(%remote, "refused: {text}"),
            RouterEvent::Refused {
                remote,
                reason,
                text,
                by_peer,
            } => warn!(%remote, reason = reason.label(), by_peer, "refused: {text}"),
        }
    }

    fn install_receive(&mut self, conn: ConnId, peer: PeerName, key: &SessionKey) {
        let session = RecvSession::new(key.suite, &key.key);
        let activity = self.activity(conn);
        self.data.command(Command::Install(
            key.receiver,
            Receiver {
                conn,
                peer,
                session,
                activity,
            },
        ));
    }

    /// What goes on on a connection, whatever keys it has.
    fn activity(&mut self, conn: ConnId) -> Arc<Activity> {
        self.mesh.activity.entry(conn).or_default().clone()
    }

    fn on_message(&mut self, from: PeerName, body: &[u8]) {
        if let Err(error) = self.ipam.handle_message(from, body, Instant::now()) {
            warn!(peer = %from, %error, "malformed address message");
        }
    }

    fn on_routes(&mut self, now: Instant) {
        self.mesh.stale = true;
        let reachable = self.reachable();
        self.ipam.set_reachable(reachable, now);
    }

    async fn on_ipam(&mut self, event: IpamEvent) {
        match event {
            IpamEvent::Persist(saved) => {
                let state = PoolState::new(&saved);
                let pools = &mut self.persisted.state.pools;
                pools.insert(saved.pool.to_string(), state);
                self.persisted.save();
                // A conflict may be over with this.
                self.mesh.stale = true;
                self.review_fast();
            }
            // What is not on the disk is not said to anybody: the asker hears why, and a peer asks again.
            IpamEvent::Answer { id, result } => self.answer(id, result),
            IpamEvent::Send { to, bytes } => {
                if self.persisted.failure.is_some() {
                    return;
                }
                if let Err(error) = self.router.send(to, bytes, Instant::now()) {
                    debug!(peer = %to, %error, "address message not sent");
                }
            }
            IpamEvent::Announce { pool, digest } => self.announce_ring(pool, digest),
            IpamEvent::Joined(pool) => {
                self.host.check_overlap(convert::api_cidr(&pool)).await;
                self.route_answers().await;
            }
            IpamEvent::Forget(pool) => {
                let pool = pool.to_string();
                self.persisted.state.pools.remove(&pool);
                self.persisted.save();
                self.mesh
                    .gossip
                    .withdraw(&Topic::Ring(pool), Instant::now());
                self.route_answers().await;
            }
            IpamEvent::Synced { peer } => self.router.set_synced(peer, Instant::now()),
            IpamEvent::Conflict {
                container,
                addr,
                holder,
            } => {
                error!(%container, %addr, %holder, "address conflict: two rings met, and {holder} holds {addr} in the one that stays");
                self.cut_off(&container);
                self.review_fast();
            }
        }
    }

    /// Has the resolver hear the containers at every bridge, and its answers find those of every pool.
    pub(super) async fn route_answers(&mut self) {
        let Some(dns) = &self.config.dns else {
            return;
        };
        let pools = self.ipam.iter().map(|a| convert::api_cidr(&a.pool()));
        let pools: Vec<_> = pools.collect();
        if let Err(error) = self.host.resolver_address(dns.address, &pools).await {
            self.host.warn(format!(
                "containers of some networks or address ranges get no DNS answers: {error:#}"
            ));
        }
        if let Some(resolver) = &mut self.names.resolver {
            let bridges = self.host.bridges().map(str::to_owned).collect();
            for error in resolver.listen_at(bridges) {
                self.host.warn(error.to_string());
            }
        }
    }

    async fn on_gossip(&mut self, event: GossipEvent) -> anyhow::Result<()> {
        match event {
            GossipEvent::Send { to, bytes } => {
                if let Err(error) = self.router.send_gossip(to, bytes, Instant::now()) {
                    debug!(peer = %to, %error, "gossip not sent; what is lacking is found out");
                }
                Ok(())
            }
            GossipEvent::Change(change) => self.handle_change(change).await,
        }
    }

    pub(super) fn tell_neighbours(&mut self, now: Instant) {
        let connected = self.router.connected().into_iter().collect();
        self.mesh.gossip.set_neighbours(&connected, now);
    }

    pub(super) fn announce_ring(&mut self, pool: weft_ipam::Cidr, digest: weft_ipam::Digest) {
        self.publish(&Entry::Ring(pool.to_string(), digest.to_string()));
    }

    pub(super) fn publish(&mut self, entry: &Entry) {
        if let Err(error) = self.mesh.gossip.publish(entry, Instant::now()) {
            error!(%error, "not published");
        }
    }

    pub(super) async fn handle_change(&mut self, change: Change) -> anyhow::Result<()> {
        self.tell_uptime();
        let now = Instant::now();
        match change {
            Change::Published { peer, entry } => self.on_published(peer, entry, now).await,
            Change::Withdrawn { peer, entry } => self.on_withdrawn(peer, &entry, now).await,
            Change::Live { peer } => self.on_live(peer).await,
            Change::Dead { peer } => self.on_dead(peer, now).await,
            Change::Clash { generation, info } => self.on_clash(generation, info)?,
        }
        Ok(())
    }

    async fn on_published(&mut self, peer: PeerName, entry: Entry, now: Instant) {
        match entry {
            Entry::Peer(info) => {
                self.mesh.info.insert(peer, info);
                self.mesh.relinked.insert(peer);
                self.mesh.readdressed.insert(peer);
            }
            Entry::Link(to, link) => {
                self.mesh.links.set(peer, to, link);
                self.mesh.relinked.insert(peer);
                self.mesh.readdressed.insert(to);
            }
            Entry::Ring(pool, digest) => {
                if let (Ok(pool), Ok(digest)) = (pool.parse(), digest.parse()) {
                    self.ipam.handle_digest(peer, pool, digest, now);
                }
            }
            Entry::Name {
                fqdn,
                container,
                addr,
            } => {
                if let Some(dns) = &self.config.dns {
                    self.names.set(peer, &dns.domain, &fqdn, container, addr);
                }
            }
            Entry::Mac(network, mac, binding) => {
                self.on_binding(peer, (network, mac), &binding, now).await;
            }
            Entry::Network(key) => self.on_network(peer, &key, true).await,
        }
    }

    async fn on_withdrawn(&mut self, peer: PeerName, entry: &Entry, now: Instant) {
        match entry {
            Entry::Peer(_) => {
                self.mesh.info.remove(&peer);
            }
            Entry::Link(to, _) => {
                self.mesh.links.unset(peer, *to);
                self.mesh.relinked.insert(peer);
            }
            Entry::Ring(pool, _) => {
                if let Ok(pool) = pool.parse() {
                    self.ipam.handle_digest_gone(peer, pool);
                }
            }
            Entry::Name {
                fqdn,
                container,
                addr,
            } => {
                if let Some(dns) = &self.config.dns {
                    self.names.unset(peer, &dns.domain, fqdn, container, *addr);
                }
            }
            Entry::Mac(network, mac, _) => {
                self.on_binding_gone(peer, (*network, *mac), now).await;
            }
            Entry::Network(key) => self.on_network(peer, key, false).await,
        }
    }

    /// A peer is gone; all it said was withdrawn already.
    pub(super) async fn on_dead(&mut self, peer: PeerName, now: Instant) {
        info!(%peer, "a peer is gone");
        self.mesh.info.remove(&peer);
        self.mesh.links.forget(peer);
        self.router.handle_peer_gone(peer, now);
        self.names.drop_origin(peer);
        self.forget_macs_of(peer, now).await;
        self.forget_networks_of(peer).await;
    }

    /// Takes a container whose address belongs to another one off the network: the data plane lets
    /// it speak no more, and its name goes. The status says how to give it a new address.
    fn cut_off(&mut self, container: &weft_ipam::ContainerId) {
        self.mesh.stale = true;
        let filter = weft_dns::Filter {
            container: Some(container.as_str().to_owned()),
            ..Default::default()
        };
        self.remove_names(&filter);
    }

    pub(super) fn remove_names(&mut self, filter: &weft_dns::Filter) -> u64 {
        let removed = self.names.table.remove_own(filter);
        for record in &removed {
            self.mesh
                .gossip
                .withdraw(&convert::name_entry(record).topic(), Instant::now());
        }
        if !removed.is_empty() {
            self.names.share();
            self.save_names();
        }
        removed.len() as u64
    }
}
