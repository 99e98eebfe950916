//! What the machines of one peer want done: `src/node/effects.rs` on simulated streams and disks.
//!
//! Invariant: effects are carried out in the order the machines gave them, and a crash may come
//! between any two.

use std::collections::BTreeMap;
use std::net::IpAddr;

use weft_dns::{Filter, Name, Record};
use weft_gossip::{Change, Entry, Event as GossipEvent, Link, SILENCE, Topic};
use weft_ipam::{ContainerId, Event as IpamEvent};
use weft_router::macs::{Kind, Location};
use weft_router::session::{RecvSession, SendSession};
use weft_router::topology::LinkState;
use weft_router::{Carrier, Event, FastEvent, OwnLink, PeerInfo};
use weft_wire::PeerName;

use crate::broken::Broken;
use crate::dataplane::Receiver;
use crate::model::domain;
use crate::peer::{Session, Up, name_entry};
use crate::world::World;

impl World {
    /// Carries out effects until no machine of this peer has any left.
    pub(crate) fn work(&mut self, n: usize) {
        while let Some(up) = &mut self.peers[n].up {
            let (router, ipam) = match up.router.poll_event() {
                Some(event) => (Some(event), None),
                None => (None, up.ipam.poll_event()),
            };
            if (&router, &ipam) == (&None, &None) {
                match up.gossip.poll_event() {
                    Some(event) => self.on_gossip(n, event),
                    None if self.tell_of_links(n) => {}
                    None => break,
                }
                continue;
            }
            // What the allocator wants is rarer than what the router wants, and matters more.
            let crashes = match (&router, &ipam) {
                (_, Some(_)) => 20 * self.crashes,
                (Some(_), None) => self.crashes,
                (None, None) => 0,
            };
            if crashes > 0 && self.random(100_000) < crashes {
                return self.crash(n, ipam);
            }
            match (router, ipam) {
                (Some(event), _) => self.on_router(n, event),
                (None, Some(event)) => self.on_ipam(n, event),
                (None, None) => break,
            }
        }
        let deadline = self.peers[n].deadline();
        let due = deadline.map(|(at, _)| self.by_our_clock(n, at));
        self.set_due(n, due);
        let is_stale = self.peers[n].up.as_ref().is_some_and(|up| up.stale);
        // Where only costs are of interest no frames are sent.
        if is_stale && !self.unchecked {
            self.replace_forwarding(n);
        }
    }

    fn crash(&mut self, n: usize, lost: Option<IpamEvent>) {
        if let Some(IpamEvent::Persist(_)) = lost {
            self.fault("write lost");
        }
        self.fault("killed before an effect");
        let silently = self.chance(500);
        self.kill(n, silently);
        let down = std::time::Duration::from_millis(self.random(5_000));
        self.later(down, crate::world::Delivery::Start(n));
    }

    fn up(&mut self, n: usize) -> &mut Up {
        self.peers[n].up.as_mut().unwrap()
    }

    fn on_router(&mut self, n: usize, event: Event) {
        let now = self.clock(n);
        match event {
            Event::Dial { conn, target } => self.dial(self.end(n, conn), &target),
            Event::Transmit { conn, bytes } => self.transmit(self.end(n, conn), bytes),
            Event::Close { conn } => self.close(self.end(n, conn)),
            Event::InstallSend {
                conn,
                peer,
                key,
                remote,
                ..
            } => {
                let send = SendSession::new(key.suite, &key.key, key.receiver).into();
                let session = Session { peer, send, remote };
                self.up(n).sessions.insert(conn, session);
                self.up(n).stale = true;
            }
            Event::InstallReceive { conn, peer, key } => {
                let session = RecvSession::new(key.suite, &key.key);
                let receiver = Receiver {
                    conn,
                    peer,
                    session,
                    suite: key.suite,
                    key: key.key,
                };
                let before = self.up(n).receivers.insert(key.receiver, receiver);
                assert!(before.is_none(), "a session number is used twice");
            }
            Event::RetireReceive { receiver } => {
                self.up(n).receivers.remove(&receiver);
            }
            Event::Remote { conn, addr, .. } => {
                if let Some(session) = self.up(n).sessions.get_mut(&conn) {
                    session.remote = addr;
                    self.up(n).stale = true;
                }
                self.publish_links(n);
            }
            Event::SendHeartbeat { conn, heartbeat } => self.send_heartbeat(n, conn, heartbeat),
            Event::Punch {
                conn,
                to,
                heartbeat,
            } => self.punch(n, conn, to, heartbeat),
            Event::SendProbe { conn, probe } => self.send_probe(n, conn, probe),
            // Frames are small here.
            Event::Limit { .. } => {}
            Event::Uninstall { conn } => {
                let up = self.up(n);
                up.sessions.remove(&conn);
                up.receivers.retain(|_, receiver| receiver.conn != conn);
                up.stale = true;
            }
            Event::Connected { peer, hello, .. } => {
                self.up(n).ports.insert(peer, hello.port);
                self.up(n).gossip.handle_connected(peer);
                self.tell_neighbours(n);
                self.up(n).ipam.handle_connected(peer, now);
                if self.broken == Broken::NoBarrier {
                    self.up(n).router.set_synced(peer, now);
                }
            }
            Event::Established { .. } => self.up(n).stale = true,
            Event::Disconnected { peer, .. } => {
                self.tell_neighbours(n);
                self.up(n).ipam.handle_disconnected(peer, now);
                self.up(n).stale = true;
            }
            Event::Message { from, body } => {
                let taken = self.up(n).ipam.handle_message(from, &body, now);
                taken.expect("peers of one version understand each other");
            }
            Event::Gossip { from, bytes } => {
                self.up(n).gossip.handle_message(from, &bytes, now);
            }
            Event::LinksChanged => self.publish_links(n),
            Event::RoutesChanged => {
                let up = self.up(n);
                up.stale = true;
                let reachable = up.router.routes().control.keys().copied().collect();
                up.ipam.set_reachable(reachable, now);
            }
            Event::TargetsChanged => {
                let targets = self.up(n).router.targets();
                let targets = targets.into_iter().map(|t| t.target.to_string());
                self.peers[n].disk.targets = targets.collect();
            }
            Event::Refused { text, .. } => self.model.note_refusal(n, text),
            // Nobody trusts anybody here: routers carry all frames.
            Event::Fast { event, .. } => match event {
                FastEvent::Carry { carrier, .. } => assert_eq!(carrier, Carrier::Router),
                FastEvent::Admit(_) | FastEvent::Bar | FastEvent::Beat { .. } => {
                    panic!("{event:?} without trust")
                }
            },
        }
    }

    fn on_gossip(&mut self, n: usize, event: GossipEvent) {
        let now = self.clock(n);
        match event {
            // What finds no way is made up for.
            GossipEvent::Send { to, bytes } => {
                self.net.carried.gossip += bytes.len() as u64;
                let _ = self.up(n).router.send_gossip(to, bytes, now);
            }
            GossipEvent::Change(change) => self.handle_change(n, change),
        }
    }

    fn tell_neighbours(&mut self, n: usize) {
        let now = self.clock(n);
        let up = self.up(n);
        let connected = up.router.connected().into_iter().collect();
        up.gossip.set_neighbours(&connected, now);
    }

    fn on_ipam(&mut self, n: usize, event: IpamEvent) {
        let now = self.clock(n);
        match event {
            IpamEvent::Persist(saved) => {
                if self.broken != Broken::ForgetfulDisk {
                    let pools = &mut self.peers[n].disk.pools;
                    pools.insert(saved.pool, saved.emit());
                }
                self.up(n).stale = true;
            }
            IpamEvent::Answer { id, result } => self.note_answer(n, id, result),
            IpamEvent::Send { to, bytes } => {
                let lost = self.net.weather.message_loss;
                if self.chance(lost) {
                    self.fault("message lost");
                } else {
                    // No way there is like a message that is lost on the way.
                    let _ = self.up(n).router.send(to, bytes, now);
                }
            }
            IpamEvent::Announce { pool, digest } => {
                let entry = Entry::Ring(pool.to_string(), digest.to_string());
                self.up(n).gossip.publish(&entry, now).unwrap();
            }
            IpamEvent::Joined(_) => {}
            IpamEvent::Forget(pool) => {
                self.peers[n].disk.pools.remove(&pool);
                self.up(n)
                    .gossip
                    .withdraw(&Topic::Ring(pool.to_string()), now);
            }
            IpamEvent::Synced { peer } => self.up(n).router.set_synced(peer, now),
            IpamEvent::Conflict {
                container, addr, ..
            } => {
                self.model.note_conflict(n, &container, addr);
                self.up(n).stale = true;
                self.remove_names(n, &container);
            }
        }
    }

    fn publish_links(&mut self, n: usize) {
        let now = self.clock(n);
        let up = self.up(n);
        let links = own_links(up);
        let old = std::mem::replace(&mut up.published, links.clone());
        for peer in old.keys().filter(|peer| !links.contains_key(peer)) {
            up.gossip.withdraw(&Topic::Link(*peer), now);
        }
        for (peer, link) in links {
            if old.get(&peer) != Some(&link) {
                up.gossip.publish(&Entry::Link(peer, link), now).unwrap();
            }
        }
    }

    pub(crate) fn handle_change(&mut self, n: usize, change: Change) {
        if self.peers[n].up.is_none() {
            return;
        }
        match change {
            Change::Live { peer } => self.on_live(n, peer),
            Change::Published { peer, entry } => self.on_published(n, peer, entry),
            Change::Withdrawn { peer, entry } => self.on_withdrawn(n, peer, &entry),
            Change::Dead { peer } => self.on_dead(n, peer),
            Change::Clash { generation, info } => self.on_clash(n, generation, &info),
        }
    }

    /// As `src/node/clash.rs` does.
    fn on_clash(&mut self, n: usize, generation: u64, other: &weft_gossip::PeerInfo) {
        let now = self.clock(n);
        let us = &self.up(n).own;
        let is_ours = (us.started, us.uid) < (other.started, other.uid);
        self.model.clashes.insert(n);
        if !is_ours {
            self.up(n).router.stand_back("with another", now);
            return;
        }
        let disk = &mut self.peers[n].disk;
        disk.generation = disk.generation.max(generation) + 1;
        self.renew_gossip(n);
    }

    /// As `src/node/renewal.rs` does.
    fn renew_gossip(&mut self, n: usize) {
        let now = self.clock(n);
        let peer = &mut self.peers[n];
        let up = peer.up.as_ref().unwrap();
        let gossip = peer.gossip(&up.names, &up.own, now);
        let up = self.up(n);
        up.gossip = gossip;
        up.unconfirmed = up.info.keys().copied().collect();
        up.renewed = now;
        up.published.clear();
        self.tell_neighbours(n);
        self.publish_links(n);
        let rings = self.up(n).ipam.iter().map(|a| (a.pool(), a.digest()));
        for (pool, digest) in rings.collect::<Vec<_>>() {
            let entry = Entry::Ring(pool.to_string(), digest.to_string());
            self.up(n).gossip.publish(&entry, now).unwrap();
        }
    }

    fn on_live(&mut self, n: usize, peer: PeerName) {
        let up = self.up(n);
        if up.unconfirmed.remove(&peer) {
            up.links.forget(peer);
            up.names.drop_origin(peer);
            let forgotten = up.macs.remove_peer(peer);
            up.stale |= !forgotten.is_empty();
        }
    }

    fn on_dead(&mut self, n: usize, peer: PeerName) {
        let now = self.clock(n);
        let up = self.up(n);
        up.info.remove(&peer);
        up.links.forget(peer);
        up.router.handle_peer_gone(peer, now);
        up.names.drop_origin(peer);
        let forgotten = up.macs.remove_peer(peer);
        up.stale |= !forgotten.is_empty();
    }

    pub(crate) fn drop_unconfirmed(&mut self, n: usize) {
        let now = self.clock(n);
        let up = self.up(n);
        if now.saturating_duration_since(up.renewed) > SILENCE {
            for peer in std::mem::take(&mut up.unconfirmed) {
                self.on_dead(n, peer);
            }
        }
    }

    fn on_published(&mut self, n: usize, peer: PeerName, entry: Entry) {
        let now = self.clock(n);
        match entry {
            Entry::Peer(info) => {
                self.up(n).info.insert(peer, info);
                self.up(n).relinked.insert(peer);
            }
            Entry::Link(to, link) => {
                let up = self.up(n);
                up.links.set(peer, to, link);
                up.relinked.insert(peer);
                up.readdressed.insert(to);
            }
            Entry::Ring(pool, digest) => {
                let (pool, digest) = (pool.parse().unwrap(), digest.parse().unwrap());
                self.up(n).ipam.handle_digest(peer, pool, digest, now);
            }
            Entry::Name {
                fqdn,
                container,
                addr,
            } => {
                let name = Name::new(&fqdn, &domain()).unwrap();
                let record = Record {
                    name,
                    container,
                    origin: peer,
                    addr,
                };
                self.up(n).names.set(record).unwrap();
            }
            Entry::Mac(network, mac, binding) => {
                let kind = if binding.registered {
                    Kind::Registered
                } else {
                    Kind::Learned
                };
                let up = self.up(n);
                up.macs.claim(network, mac, Location::Peer(peer), kind, now);
                up.stale = true;
            }
            // The cluster has the default network only.
            Entry::Network(_) => {}
        }
    }

    fn on_withdrawn(&mut self, n: usize, peer: PeerName, entry: &Entry) {
        match entry {
            Entry::Peer(_) => {
                self.up(n).info.remove(&peer);
            }
            Entry::Link(to, _) => {
                self.up(n).links.unset(peer, *to);
                self.up(n).relinked.insert(peer);
            }
            Entry::Ring(pool, _) => {
                let pool = pool.parse().unwrap();
                self.up(n).ipam.handle_digest_gone(peer, pool);
            }
            Entry::Name {
                fqdn,
                container,
                addr,
            } => {
                if self.broken != Broken::StickyNames {
                    let name = Name::new(fqdn, &domain()).unwrap();
                    self.up(n).names.unset(peer, &name, container, *addr);
                }
            }
            Entry::Mac(network, mac, _) => {
                let up = self.up(n);
                up.macs.withdraw(*network, *mac, Location::Peer(peer));
                up.stale = true;
            }
            Entry::Network(_) => {}
        }
    }

    /// As the node does, once for all that gossip brought.
    fn tell_of_links(&mut self, n: usize) -> bool {
        let relinked = std::mem::take(&mut self.up(n).relinked);
        let readdressed = std::mem::take(&mut self.up(n).readdressed);
        for peer in &relinked {
            self.tell_links(n, *peer);
        }
        for peer in &readdressed {
            self.tell_addresses(n, *peer);
        }
        !relinked.is_empty() || !readdressed.is_empty()
    }

    fn tell_links(&mut self, n: usize, peer: PeerName) {
        let now = self.clock(n);
        let up = self.up(n);
        let Some(info) = up.info.get(&peer) else {
            return;
        };
        let state = |link: &Link| LinkState {
            established: link.established,
            relayed: link.relayed,
        };
        let links = up.links.of(peer);
        let links = links.map(|(to, link)| (to, state(link))).collect();
        up.router.handle_links(peer, info.uid, links, now);
    }

    fn tell_addresses(&mut self, n: usize, peer: PeerName) {
        let now = self.clock(n);
        if peer == self.peers[n].name {
            return;
        }
        let up = self.up(n);
        let info = PeerInfo {
            addresses: up.links.dialled(peer),
            datagrams: up.links.datagrams(peer),
        };
        up.router.handle_peer_info(peer, info, now);
    }

    pub(crate) fn add_name(&mut self, n: usize, name: Name, container: &ContainerId, addr: IpAddr) {
        let Some(up) = &mut self.peers[n].up else {
            return;
        };
        let added = up.names.add_own(name, container.as_str(), addr).unwrap();
        if let Some(record) = added {
            self.peers[n].disk.names.push(record.clone());
            let now = self.clock(n);
            self.up(n)
                .gossip
                .publish(&name_entry(&record), now)
                .unwrap();
        }
    }

    pub(crate) fn remove_names(&mut self, n: usize, container: &ContainerId) {
        let filter = Filter {
            container: Some(container.as_str().to_owned()),
            ..Filter::default()
        };
        let now = self.clock(n);
        let Some(up) = &mut self.peers[n].up else {
            return;
        };
        let removed = up.names.remove_own(&filter);
        for record in &removed {
            up.gossip.withdraw(&name_entry(record).topic(), now);
        }
        let own = up.names.own().cloned().collect();
        self.peers[n].disk.names = own;
    }
}

fn own_links(up: &Up) -> BTreeMap<PeerName, Link> {
    let links = up
        .router
        .published_links(|peer| up.ports.get(&peer).copied());
    let as_said = |link: OwnLink| Link {
        established: link.state.established,
        outbound: link.outbound,
        address: link.address,
        datagrams: link.datagrams,
        relayed: link.state.relayed,
    };
    let links = links.into_iter();
    links.map(|(peer, link)| (peer, as_said(link))).collect()
}
