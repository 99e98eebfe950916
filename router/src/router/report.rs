//! What people see of the connections: those there are, those wished for, those that failed.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use weft_wire::PeerName;

use crate::connect::TargetStatus;
use crate::control::Side;
use crate::dial::Dial;
use crate::discovery::Candidate;
use crate::failures::Failure;
use crate::link::{Link, Origin, Stage, Up};
use crate::{Carriage, ConnId, ConnectionState, ConnectionStatus, OwnLink, Target, TargetState};

use super::Router;

impl Router {
    /// Every connection that is there or being made, every target and discovered peer that failed, and
    /// inbound connections that failed in the last five minutes.
    pub fn connections(&self) -> Vec<ConnectionStatus> {
        let links = self
            .conns
            .links
            .iter()
            .map(|(conn, link)| self.of_link(*conn, link));
        let dials = self
            .conns
            .dials
            .values()
            .filter_map(|origin| self.of_dial(origin));
        let targets = self.targets.statuses();
        let targets = targets.iter().filter_map(of_target);
        // What is relayed goes on being dialled, and shows already.
        let discovered = self.discovery.failing();
        let discovered = discovered.filter(|(to, _)| !self.conns.peers.contains_key(&to.peer));
        let discovered = discovered.filter_map(of_discovered);
        let failures = self.failures.iter().map(of_failure);
        links
            .chain(dials)
            .chain(targets)
            .chain(discovered)
            .chain(failures)
            .collect()
    }

    /// What to publish of our connections, of those that are established, or were, or are a second old. A peer
    /// that dialled us can be dialled at the port it says it listens on, which `listens` knows.
    pub fn published_links(
        &self,
        listens: impl Fn(PeerName) -> Option<u16>,
    ) -> BTreeMap<PeerName, OwnLink> {
        let mut states = self.own_links();
        states.retain(|peer, _| self.is_told(*peer));
        let published = self.connections().into_iter().filter_map(|c| {
            let (peer, remote) = (c.peer?.0, c.remote?);
            let state = *states.get(&peer)?;
            let address = if state.relayed {
                c.datagrams?
            } else if c.outbound {
                remote
            } else {
                SocketAddr::new(remote.ip(), listens(peer)?)
            };
            let link = OwnLink {
                state,
                outbound: c.outbound,
                address,
                datagrams: c.datagrams.filter(|datagrams| *datagrams != address),
            };
            Some((peer, link))
        });
        published.collect()
    }

    fn is_told(&self, peer: PeerName) -> bool {
        let conn = self.conns.peers.get(&peer);
        let link = conn.and_then(|conn| self.conns.links.get(conn));
        link.and_then(Link::up).is_some_and(|up| up.told)
    }

    fn of_link(&self, conn: ConnId, link: &Link) -> ConnectionStatus {
        let state = match link.is_established() {
            true => ConnectionState::Established,
            false => ConnectionState::Pending,
        };
        let up = link.up();
        ConnectionStatus {
            remote: Some(link.remote),
            target: match &link.origin {
                Origin::Inbound | Origin::Relayed { .. } => None,
                Origin::Target(target) => Some(target.clone()),
                Origin::Discovered(candidate) => Some(target_of(candidate)),
            },
            peer: link.peer(),
            suite: up.map(|up| up.keys.suite()),
            rtt: up.and_then(|up| up.pulse.rtt()),
            mtu: up.map(|up| up.path.mtu()),
            carriage: match (up, link.peer()) {
                (Some(_), Some((peer, _))) => self.carriage(peer),
                (None | Some(_), _) => Carriage::Sealed(None),
            },
            info: match &link.stage {
                Stage::Greeting { .. } => "handshake".to_owned(),
                Stage::Contest { .. } => {
                    "asking whether another connection of this peer lives".to_owned()
                }
                Stage::Standby { .. } => "the peer chooses between two connections".to_owned(),
                Stage::Up(up) => self.over_others(conn, waits_for(up)),
            },
            datagrams: up.and_then(|up| up.pulse.rtt().map(|_| up.pulse.remote())),
            relayed: self.conns.relays.contains(conn),
            ..blank(link.side == Side::Initiator, state)
        }
    }

    /// Says of a relayed connection over whom it goes.
    fn over_others(&self, conn: ConnId, waits_for: String) -> String {
        if !self.conns.relays.contains(conn) {
            return waits_for;
        }
        let via = match self.relayed_via(conn) {
            Some((_, nickname)) => format!("control over {nickname}"),
            None => "no way for control".to_owned(),
        };
        match waits_for.is_empty() {
            true => via,
            false => format!("{waits_for}; {via}"),
        }
    }

    fn of_dial(&self, origin: &Origin) -> Option<ConnectionStatus> {
        let (target, error) = match origin {
            Origin::Inbound | Origin::Relayed { .. } => return None,
            Origin::Target(target) => {
                let targets = self.targets.statuses().into_iter();
                let error = targets
                    .filter(|status| status.target == *target)
                    .find_map(|status| status.last_error);
                (target.clone(), error)
            }
            Origin::Discovered(candidate) => {
                let mut failing = self.discovery.failing();
                let dial = failing.find(|(failing, _)| failing.peer == candidate.peer);
                let error = dial.and_then(|(_, dial)| dial.error());
                (target_of(candidate), error.map(str::to_owned))
            }
        };
        let state = match error {
            Some(_) => ConnectionState::Retrying,
            None => ConnectionState::Connecting,
        };
        let info = error.unwrap_or_default();
        Some(ConnectionStatus {
            target: Some(target),
            info,
            ..blank(true, state)
        })
    }
}

/// What keeps frames from flowing; empty if nothing does.
fn waits_for(up: &Up) -> String {
    if !up.keys.can_send() {
        "waiting for the peer's key".to_owned()
    } else if up.pulse.rtt().is_none() {
        format!(
            "waiting for a UDP heartbeat from port {}",
            up.pulse.remote().port()
        )
    } else if !up.synced {
        "waiting for equal address rings".to_owned()
    } else if !up.we_ready {
        format!(
            "UDP heartbeat lost: is UDP port {} open?",
            up.pulse.remote().port()
        )
    } else if !up.they_ready {
        "waiting for the peer to be ready".to_owned()
    } else {
        String::new()
    }
}

/// Targets that are dialled or connected show as connections already.
fn of_target(status: &TargetStatus) -> Option<ConnectionStatus> {
    let state = match (status.state, &status.last_error) {
        (TargetState::Dialling | TargetState::Connected, _) => return None,
        (TargetState::Waiting | TargetState::Suspended, Some(_)) => ConnectionState::Failed,
        (TargetState::Waiting | TargetState::Suspended, None) => ConnectionState::Connecting,
    };
    Some(ConnectionStatus {
        target: Some(status.target.clone()),
        info: status.last_error.clone().unwrap_or_default(),
        retry_at: status.retry_at,
        ..blank(true, state)
    })
}

fn of_discovered((candidate, dial): (Candidate, &Dial)) -> Option<ConnectionStatus> {
    Some(ConnectionStatus {
        target: Some(target_of(&candidate)),
        info: dial.error()?.to_owned(),
        relayed: candidate.relayed,
        retry_at: Some(dial.due_at()?),
        ..blank(true, ConnectionState::Failed)
    })
}

fn of_failure(failure: &Failure) -> ConnectionStatus {
    ConnectionStatus {
        remote: Some(failure.remote),
        peer: failure.peer.clone(),
        info: failure.info.clone(),
        ..blank(false, ConnectionState::Failed)
    }
}

pub(super) fn target_of(candidate: &Candidate) -> Target {
    Target {
        host: candidate.address.ip().to_string(),
        port: Some(candidate.address.port()),
    }
}

fn blank(outbound: bool, state: ConnectionState) -> ConnectionStatus {
    ConnectionStatus {
        outbound,
        remote: None,
        target: None,
        state,
        peer: None,
        suite: None,
        rtt: None,
        mtu: None,
        carriage: Carriage::Sealed(None),
        datagrams: None,
        relayed: false,
        info: String::new(),
        retry_at: None,
    }
}
