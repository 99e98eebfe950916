//! Who may be the connection of a peer.
//!
//! One connection per pair. When both dialled, the one begun by the smaller static key goes on; the
//! peer with the smaller key decides and closes the other one, so that the two never decide
//! differently. An established connection is never given up for another one of the same run, and
//! before a second run of a peer is believed (a restart, or a clone of its disk?) the first one is
//! asked for a sign of life.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use weft_wire::control::{Hello, Refusal, RefusalReason};
use weft_wire::{PeerName, PeerUid};

use crate::Subnet;
use crate::control::Side;
use crate::keys::Keys;
use crate::link::{Link, Origin, Stage, Up};
use crate::path::Path;
use crate::pulse::Pulse;
use crate::{ConnId, Event};

use super::Router;
use super::choosing::Room;
use super::ending::End;

/// What becomes of a connection whose peer has said who it is.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Admit,
    Refuse(Refusal),
    /// Takes the place of this one.
    Replace(ConnId),
    /// Another peer's connection, which is of less use, goes for it.
    MakeRoom(ConnId),
    /// Unless this one lives.
    Contest(ConnId),
    /// The other side decides between it and this one.
    Standby(ConnId),
}

/// What stays when another connection of the same peer takes over.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Before {
    synced: bool,
    announced: bool,
    told: bool,
}

impl Before {
    pub(super) fn of(up: &Up) -> Self {
        Self {
            synced: up.synced,
            announced: up.announced,
            told: up.told,
        }
    }
}

impl Router {
    /// The other side has said who it is.
    pub(super) fn meet(&mut self, conn: ConnId, hello: Hello, now: Instant) {
        if hello.port == 0 {
            return self.not_due(conn, "hello without a port", now);
        }
        let Some(link) = self.conns.links.get_mut(&conn) else {
            return;
        };
        if let Origin::Target(target) = &link.origin {
            self.targets.leads_to(target, hello.name);
        }
        link.hello = Some(hello);
        self.admit(conn, now);
    }

    /// Decides about a connection; again when what it waited for is gone.
    pub(super) fn admit(&mut self, conn: ConnId, now: Instant) {
        let Some(verdict) = self
            .conns
            .links
            .get(&conn)
            .and_then(|link| self.judge(conn, link))
        else {
            return;
        };
        match &verdict {
            Verdict::Admit | Verdict::Replace(_) | Verdict::MakeRoom(_) | Verdict::Standby(_) => {
                self.greet(conn, now);
            }
            Verdict::Refuse(_) | Verdict::Contest(_) => {}
        }
        match verdict {
            Verdict::Admit => self.install(conn, Before::default(), now),
            Verdict::Refuse(refusal) => self.end(conn, End::Refuse(refusal), now),
            Verdict::Replace(old) => self.replace(old, conn, now),
            Verdict::MakeRoom(other) => {
                self.end(other, End::Refuse(self.over_limit()), now);
                self.install(conn, Before::default(), now);
            }
            Verdict::Standby(over) => {
                let deadline = now + STANDBY;
                self.set_stage(conn, Stage::Standby { over, deadline });
            }
            Verdict::Contest(over) => self.contest(over, conn, now),
        }
    }

    /// The connection `conn` becomes its peer's in place of `old`, which is told to go.
    pub(super) fn replace(&mut self, old: ConnId, conn: ConnId, now: Instant) {
        let up = self.conns.links.get(&old).and_then(Link::up);
        let before = up.map(Before::of).unwrap_or_default();
        // Not named as its peer's any more, so its end is not the peer's.
        self.conns.peers.retain(|_, held| *held != old);
        self.install(conn, before, now);
        let refusal = Refusal::new(
            RefusalReason::Duplicate,
            "another connection between the two was kept",
        );
        self.end(old, End::Refuse(refusal), now);
    }

    /// The peer of a connection has shown that it lives: that settles who else may be it.
    pub(super) fn sign_of_life(&mut self, held: ConnId, now: Instant) {
        let up = self.conns.links.get_mut(&held).and_then(Link::up_mut);
        if !up.is_some_and(|up| std::mem::take(&mut up.challenged)) {
            return;
        }
        for conn in self.waiting_for(held) {
            let Some((holder, link)) = self.conns.links.get(&held).zip(self.conns.links.get(&conn))
            else {
                return;
            };
            let (ours, theirs) = (run_of(holder), run_of(link));
            let (there, here) = (holder.remote, link.remote);
            if !link.is_held() {
                continue;
            }
            if ours.1 == theirs.1 {
                let refusal =
                    Refusal::new(RefusalReason::Duplicate, "the connection there is works");
                self.end(conn, End::Refuse(refusal), now);
            } else if ours < theirs {
                self.end(conn, End::Refuse(clone_of(there)), now);
            } else {
                self.end(held, End::Refuse(clone_of(here)), now);
            }
        }
    }

    /// Connections whose fate hangs on this one.
    pub(super) fn waiting_for(&self, over: ConnId) -> Vec<ConnId> {
        let links = self.conns.links.iter();
        links
            .filter(|(_, link)| link.waits_for() == Some(over))
            .map(|(conn, _)| *conn)
            .collect()
    }

    fn judge(&self, conn: ConnId, link: &Link) -> Option<Verdict> {
        let (key, hello) = (link.key?, link.hello.as_ref()?);
        if let Some(refusal) = self.standing_back() {
            return Some(Verdict::Refuse(refusal));
        }
        if let Err(refusal) = self
            .check_us(&key, hello)
            .and_then(|()| self.check_relayed(conn, &key, hello))
            .and_then(|()| self.check_pools(hello))
        {
            return Some(Verdict::Refuse(refusal));
        }
        let held = self.conns.peers.get(&hello.name).copied();
        let Some((held, holder)) = held.and_then(|held| Some((held, self.conns.links.get(&held)?)))
        else {
            return Some(match self.room_for(hello.name) {
                Room::Free => Verdict::Admit,
                Room::InPlaceOf(other) => Verdict::MakeRoom(other),
                Room::None => Verdict::Refuse(self.over_limit()),
            });
        };
        if holder.key != Some(key) {
            return Some(Verdict::Refuse(name_clash(holder.remote)));
        }
        if holder.hello.as_ref().map(|holding| holding.uid) != Some(hello.uid) {
            return Some(Verdict::Contest(held));
        }
        let relays = &self.conns.relays;
        match (relays.contains(conn), relays.contains(held)) {
            (true, false) => {
                let text = "there is a connection that is not relayed";
                return Some(Verdict::Refuse(Refusal::new(
                    RefusalReason::Duplicate,
                    text,
                )));
            }
            (false, true) => return Some(Verdict::Replace(held)),
            (true, true) | (false, false) => {}
        }
        Some(self.choose(link, (key, hello.name), held, holder))
    }

    /// Two connections with the same run of a peer.
    ///
    /// The side with the smaller key keeps one that is established, else the one it dialled itself,
    /// else the first one. The other side follows: it goes over to the newcomer when the first word
    /// comes that way, except where the first side would keep the older one anyhow. There words may
    /// come from before it saw the older one, so only that one's silence counts.
    fn choose(
        &self,
        link: &Link,
        peer: ([u8; 32], PeerName),
        held: ConnId,
        holder: &Link,
    ) -> Verdict {
        let we_decide = (*self.config.identity.public(), self.config.name) < peer;
        match (we_decide, link.side, holder.side) {
            (true, _, _) if holder.is_established() => Verdict::Contest(held),
            (true, Side::Initiator, Side::Responder) => Verdict::Replace(held),
            (true, _, _) => {
                let text = "another connection between the two is being made";
                Verdict::Refuse(Refusal::new(RefusalReason::Duplicate, text))
            }
            (false, Side::Initiator, Side::Responder) => Verdict::Contest(held),
            (false, _, _) => Verdict::Standby(held),
        }
    }

    /// Is it ourselves at the other end, or somebody who passes for us?
    fn check_us(&self, key: &[u8; 32], hello: &Hello) -> Result<(), Refusal> {
        let ours = key == self.config.identity.public();
        if ours && hello.uid == self.config.uid {
            let text = "this address leads back to the router that dialled it";
            return Err(Refusal::new(RefusalReason::OwnAddress, text));
        }
        if hello.name != self.config.name {
            return Ok(());
        }
        if ours {
            let text = "both ends have the same key and name, as after cloning a disk; \
                        run `weft reset --identity` on one of them";
            return Err(Refusal::new(RefusalReason::Clone, text));
        }
        let text = "both ends have the same name; give one of them another --name";
        Err(Refusal::new(RefusalReason::NameClash, text))
    }

    /// Pools of both must be the same or apart; what only one has, the other joins.
    fn check_pools(&self, hello: &Hello) -> Result<(), Refusal> {
        let clash = |ours: &str, theirs: &str| {
            let both = ours.parse::<Subnet>().ok().zip(theirs.parse().ok());
            ours != theirs && both.is_some_and(|(ours, theirs)| ours.overlaps(theirs))
        };
        for ours in &self.config.pools {
            if let Some(theirs) = hello.pools.iter().find(|theirs| clash(ours, theirs)) {
                let text = format!(
                    "{ours} here, {theirs} at the other end; both need the same --ipalloc-range"
                );
                return Err(Refusal::new(RefusalReason::Range, text));
            }
        }
        Ok(())
    }

    fn over_limit(&self) -> Refusal {
        let limit = self.config.conn_limit;
        let text = format!(
            "there are to be {limit} connections; connect to other peers, or see --conn-limit"
        );
        Refusal::new(RefusalReason::Limit, text)
    }

    fn contest(&mut self, over: ConnId, conn: ConnId, now: Instant) {
        let Some(link) = self.conns.links.get_mut(&over) else {
            return;
        };
        if let Some(up) = link.up_mut() {
            up.challenged = true;
            if up.keys.can_send() {
                let heartbeat = up.pulse.ask(now);
                self.events.push_back(Event::SendHeartbeat {
                    conn: over,
                    heartbeat,
                });
            }
        }
        let deadline = now + CONTEST;
        self.set_stage(conn, Stage::Contest { over, deadline });
    }

    /// Makes a connection its peer's.
    pub(super) fn install(&mut self, conn: ConnId, before: Before, now: Instant) {
        let Some(link) = self.conns.links.get_mut(&conn) else {
            return;
        };
        let Some(hello) = link.hello.clone() else {
            return;
        };
        let keys = Keys::new(self.config.aes && hello.aes, now);
        let pulse = Pulse::new(self.epoch, link.datagrams_to(), now);
        let path = Path::new(self.config.mtu, now);
        let mut up = Up::new(keys, pulse, path, now);
        up.synced = before.synced;
        up.told = before.told;
        up.announced = before.announced || !self.conns.relays.contains(conn);
        let announced = up.announced;
        link.stage = Stage::Up(Box::new(up));
        let (peer, remote, origin) = (hello.name, link.remote, link.origin.clone());
        if origin == Origin::Inbound {
            self.throttle.finish(remote.ip());
        }
        self.found_another(&origin, conn, peer, now);
        self.conns.peers.insert(peer, conn);
        self.targets.peer_connected(peer, conn);
        self.discovery.peer_connected(peer, conn);
        self.failures.connected(peer, remote);
        if announced {
            self.announce(conn, hello, now);
        }
        self.conns.released.push(conn);
        self.links_changed = true;
        self.peers_changed(now);
        self.offer_key(conn, now);
        self.update_fast(conn, now);
    }

    fn set_stage(&mut self, conn: ConnId, stage: Stage) {
        if let Some(link) = self.conns.links.get_mut(&conn) {
            link.stage = stage;
        }
    }
}

fn name_clash(with: SocketAddr) -> Refusal {
    let text = format!(
        "with {with}, which has the same name and another key; give one of them another --name"
    );
    Refusal::new(RefusalReason::NameClash, text)
}

fn clone_of(other: SocketAddr) -> Refusal {
    let text = format!(
        "with {other}, which has the same key too, as after cloning a disk; run `weft reset --identity` on one of them"
    );
    Refusal::new(RefusalReason::Clone, text)
}

/// Which of two runs of a peer goes before the other: start time, then number.
fn run_of(link: &Link) -> (Option<u64>, Option<PeerUid>) {
    let hello = link.hello.as_ref();
    (
        hello.map(|hello| hello.started),
        hello.map(|hello| hello.uid),
    )
}

/// How long the other side may take to decide; longer than a contest there.
const STANDBY: Duration = Duration::from_secs(10);
/// How long the peer of a contested connection has to show that it lives. Over UDP it is asked at
/// once; if that is broken, a control heartbeat comes within 5 s.
const CONTEST: Duration = Duration::from_secs(6);
