//! What the machines of one peer want done: `src/node/effects.rs` on simulated streams and disks.
//!
//! Invariant: effects are carried out in the order the machines gave them, and a crash may come
//! between any two.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use weft_dns::{Filter, Name, Record};
use weft_gossip::{Change, Entry, Link, Topic};
use weft_ipam::{ContainerId, Event as IpamEvent};
use weft_router::macs::{Kind, Location};
use weft_router::session::{RecvSession, SendSession};
use weft_router::topology::LinkState;
use weft_router::{Carrier, Event, FastEvent, PeerInfo};
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
        self.plan_look(n);
        let deadline = self.peers[n].deadline();
        let due = deadline.map(|(at, _)| self.by_our_clock(n, at));
        let peer = &mut self.peers[n];
        peer.due = due;
        if peer.up.as_ref().is_some_and(|up| up.stale) {
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
            }
            Event::SendHeartbeat { conn, heartbeat } => self.send_heartbeat(n, conn, heartbeat),
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
                if let Some(envelope) = self.open_mail(&bytes) {
                    let out = self.up(n).gossip.handle(from, envelope, now);
                    self.post(n, out);
                }
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

    fn tell_neighbours(&mut self, n: usize) {
        let up = self.up(n);
        let connected = up.router.connected().into_iter().collect();
        let out = up.gossip.set_neighbours(connected);
        self.post(n, out);
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
                self.up(n).gossip.publish(entry);
            }
            IpamEvent::Joined(_) => {}
            IpamEvent::Forget(pool) => {
                self.peers[n].disk.pools.remove(&pool);
                self.up(n).gossip.withdraw(&Topic::Ring(pool.to_string()));
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
        let up = self.up(n);
        let links = own_links(up);
        let old = std::mem::replace(&mut up.published, links.clone());
        for peer in old.keys().filter(|peer| !links.contains_key(peer)) {
            up.gossip.withdraw(&Topic::Link(*peer));
        }
        for (peer, link) in links {
            if old.get(&peer) != Some(&link) {
                up.gossip.publish(Entry::Link(peer, link));
            }
        }
    }

    pub(crate) fn handle_change(&mut self, n: usize, change: Change) {
        if self.peers[n].up.is_none() {
            return;
        }
        match change {
            Change::Live { .. } => {}
            Change::Published { peer, entry } => self.on_published(n, peer, entry),
            Change::Withdrawn { peer, entry } => self.on_withdrawn(n, peer, &entry),
            Change::Dead { peer } => {
                let now = self.clock(n);
                let up = self.up(n);
                up.info.remove(&peer);
                up.links.remove(&peer);
                up.router.handle_peer_gone(peer, now);
                up.names.drop_origin(peer);
                let forgotten = up.macs.remove_peer(peer);
                up.stale |= !forgotten.is_empty();
            }
            Change::Clash { generation, info } => self.on_clash(n, generation, &info),
            Change::Stopped => panic!("simulated gossip does not stop"),
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
        let generation = disk.generation;
        let out = self.up(n).gossip.renew(generation);
        self.post(n, out);
    }

    fn on_published(&mut self, n: usize, peer: PeerName, entry: Entry) {
        let now = self.clock(n);
        match entry {
            Entry::Peer(info) => {
                self.up(n).info.insert(peer, info);
                self.tell_links(n, peer);
            }
            Entry::Link(to, link) => {
                let said = self.up(n).links.entry(peer).or_default();
                said.insert(to, link);
                self.tell_links(n, peer);
                self.tell_addresses(n, to);
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
                if let Some(links) = self.up(n).links.get_mut(&peer) {
                    links.remove(to);
                }
                self.tell_links(n, peer);
            }
            Entry::Ring(..) => {}
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

    fn tell_links(&mut self, n: usize, peer: PeerName) {
        let now = self.clock(n);
        let up = self.up(n);
        let Some(info) = up.info.get(&peer) else {
            return;
        };
        let links = up.links.get(&peer).into_iter().flatten();
        let state = |link: &Link| LinkState {
            established: link.established,
        };
        let links = links.map(|(to, link)| (*to, state(link))).collect();
        up.router.handle_links(peer, info.uid, links, now);
    }

    fn tell_addresses(&mut self, n: usize, peer: PeerName) {
        let now = self.clock(n);
        if peer == self.peers[n].name {
            return;
        }
        let up = self.up(n);
        let said = up.links.values();
        let mut addresses: Vec<_> = said
            .filter_map(|links| Some(links.get(&peer)?.address))
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        up.router
            .handle_peer_info(peer, PeerInfo { addresses }, now);
    }

    pub(crate) fn add_name(&mut self, n: usize, name: Name, container: &ContainerId, addr: IpAddr) {
        let Some(up) = &mut self.peers[n].up else {
            return;
        };
        let added = up.names.add_own(name, container.as_str(), addr).unwrap();
        if let Some(record) = added {
            self.peers[n].disk.names.push(record.clone());
            self.up(n).gossip.publish(name_entry(&record));
        }
    }

    pub(crate) fn remove_names(&mut self, n: usize, container: &ContainerId) {
        let filter = Filter {
            container: Some(container.as_str().to_owned()),
            ..Filter::default()
        };
        let Some(up) = &mut self.peers[n].up else {
            return;
        };
        let removed = up.names.remove_own(&filter);
        for record in &removed {
            up.gossip.withdraw(&name_entry(record).topic());
        }
        let own = up.names.own().cloned().collect();
        self.peers[n].disk.names = own;
    }
}

fn own_links(up: &Up) -> BTreeMap<PeerName, Link> {
    let states = up.router.own_links();
    let connections = up.router.connections().into_iter();
    connections
        .filter_map(|c| {
            let (peer, remote) = (c.peer?.0, c.remote?);
            let established = states.get(&peer)?.established;
            let port = if c.outbound {
                remote.port()
            } else {
                *up.ports.get(&peer)?
            };
            let address = SocketAddr::new(remote.ip(), port);
            let link = Link {
                established,
                outbound: c.outbound,
                address,
            };
            Some((peer, link))
        })
        .collect()
}
