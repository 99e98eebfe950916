//! The control side as one machine.
//!
//! The bodies are on their way; the names and types below are what the node is written against.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use thiserror::Error;
use weft_wire::message::Heartbeat;
use weft_wire::{PeerName, PeerUid};

use crate::routes::Routes;
use crate::topology::{LinkState, Topology};
use crate::{Config, ConnId, ConnectionStatus, Event, Target, TargetStatus};

/// A message cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SendError {
    /// No chain of connections leads there.
    #[error("no route to peer {0}")]
    NoRoute(PeerName),
    /// It is longer than a control message may be.
    #[error("a message of {0} bytes is too long to send")]
    TooLong(usize),
}

/// What gossip tells about where a peer may be dialled.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerInfo {
    /// Addresses it may listen at, TCP.
    pub addresses: Vec<SocketAddr>,
}

/// The control side of one peer.
#[derive(Debug)]
pub struct Router;

#[allow(unused_variables, clippy::unused_self, missing_docs)]
impl Router {
    pub fn new(config: Config, seed: [u8; 32], now: Instant) -> Self {
        Self
    }
    pub fn connect(&mut self, targets: &[Target], replace: bool, now: Instant) {}
    pub fn forget(&mut self, targets: &[Target], now: Instant) {}
    pub fn handle_dialed(&mut self, conn: ConnId, remote: SocketAddr, now: Instant) {}
    pub fn handle_dial_failed(&mut self, conn: ConnId, why: String, now: Instant) {}
    pub fn handle_accepted(&mut self, remote: SocketAddr, now: Instant) -> Option<ConnId> {
        None
    }
    pub fn handle_bytes(&mut self, conn: ConnId, bytes: &[u8], now: Instant) {}
    pub fn handle_closed(&mut self, conn: ConnId, why: String, now: Instant) {}
    pub fn handle_heartbeat(&mut self, conn: ConnId, from: SocketAddr, heartbeat: Heartbeat, now: Instant) {}
    pub fn handle_rekey_due(&mut self, conn: ConnId, now: Instant) {}
    pub fn handle_links(&mut self, peer: PeerName, uid: PeerUid, links: BTreeMap<PeerName, LinkState>, now: Instant) {}
    pub fn handle_peer_info(&mut self, peer: PeerName, info: PeerInfo, now: Instant) {}
    pub fn handle_peer_gone(&mut self, peer: PeerName, now: Instant) {}
    pub fn set_synced(&mut self, peer: PeerName, now: Instant) {}
    pub fn send(&mut self, to: PeerName, body: Vec<u8>, now: Instant) -> Result<(), SendError> {
        Ok(())
    }
    pub fn send_gossip(&mut self, to: PeerName, bytes: Vec<u8>) -> Result<(), SendError> {
        Ok(())
    }
    pub fn shutdown(&mut self, now: Instant) {}
    pub fn handle_timeout(&mut self, now: Instant) {}
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        None
    }
    pub fn poll_event(&mut self) -> Option<Event> {
        None
    }
    pub fn connections(&self) -> Vec<ConnectionStatus> {
        Vec::new()
    }
    pub fn targets(&self) -> Vec<TargetStatus> {
        Vec::new()
    }
    /// Peers with an established connection.
    pub fn neighbours(&self) -> Vec<PeerName> {
        Vec::new()
    }
    /// Peers whose control connection is up, established or not: whom to gossip with.
    pub fn connected(&self) -> Vec<PeerName> {
        Vec::new()
    }
    pub fn own_links(&self) -> BTreeMap<PeerName, LinkState> {
        BTreeMap::new()
    }
}
