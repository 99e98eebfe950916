//! How connections look to people: what `weft status connections` is made from.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use weft_wire::control::Suite;
use weft_wire::{Nickname, PeerName};

use crate::topology::LinkState;
use crate::{Carriage, Target};

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConnectionState {
    /// There, but not ready for frames; the info says what it waits for.
    Pending,
    /// Frames may flow.
    Established,
    /// It did not come about or has ended; the info says why, and it may be tried again.
    Failed,
    /// Being dialled again after a failure; the info says what that was.
    Retrying,
    /// Being dialled for the first time.
    Connecting,
}

/// One connection, one wished for, or one that failed a short while ago.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionStatus {
    /// Whether we dial, or dialled.
    pub outbound: bool,
    /// The address at the other end, once known.
    pub remote: Option<SocketAddr>,
    /// What we were told to dial, or found by discovery.
    pub target: Option<Target>,
    /// How far it is.
    pub state: ConnectionState,
    /// Who is at the other end, once known.
    pub peer: Option<(PeerName, Nickname)>,
    /// The cipher that seals its frames, once agreed.
    pub suite: Option<Suite>,
    /// Time to the peer and back over UDP, once measured.
    pub rtt: Option<Duration>,
    /// The largest packet that goes there in one datagram, as far as the network's MTU, in bytes; larger
    /// ones go in pieces.
    pub mtu: Option<u16>,
    /// Who carries its frames.
    pub carriage: Carriage,
    /// Where the peer's datagrams come from, once they do.
    pub datagrams: Option<SocketAddr>,
    /// Whether control goes over other peers, since neither end can dial the other.
    pub relayed: bool,
    /// What it waits for or why it failed, in words; empty if there is nothing to say.
    pub info: String,
    /// When it will be dialled next.
    pub retry_at: Option<Instant>,
}

impl ConnectionStatus {
    /// The address for people: where the connection leads, else what was to be dialled.
    pub fn address(&self) -> String {
        match (self.remote, &self.target) {
            (Some(remote), _) => remote.to_string(),
            (None, Some(target)) => target.to_string(),
            (None, None) => String::new(),
        }
    }
}

/// A connection of ours as others should hear of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnLink {
    /// What routes are worked out from.
    pub state: LinkState,
    /// Whether we dialled.
    pub outbound: bool,
    /// Where the peer can be dialled; of one that is relayed, which nobody has dialled, where it is.
    pub address: SocketAddr,
    /// Where the peer's datagrams come from, if that is another address.
    pub datagrams: Option<SocketAddr>,
}
