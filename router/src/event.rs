//! What the [`crate::Router`] asks of the node, one thing at a time.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

use weft_wire::PeerName;
use weft_wire::control::{Hello, RefusalReason, SessionKey};
use weft_wire::message::{Heartbeat, Probe};
use weft_wire::packet::ReceiverIndex;

use crate::{Carrier, Target};

/// Names one control connection, from the dial or the accept to its end; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Something for the node to do or to know, from [`crate::Router::poll_event`].
///
/// Over the life of one connection they come in this order, those in brackets any number of times:
///
/// ```text
///  Dial · [Transmit] · Connected · InstallReceive · InstallSend · [SendHeartbeat, SendProbe, Limit, Remote] ·
///  Established · [InstallReceive, InstallSend, RetireReceive, Message, Gossip] · Uninstall · Disconnected · Close
/// ```
///
/// [`FastEvent`]s are about a peer, whatever connections it has: Admit · [Beat, Carry] · Bar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Resolve the target's name afresh and open a TCP connection to it, at our own port if it
    /// names none. Answered by `handle_dialed` or `handle_dial_failed`.
    Dial {
        /// The connection to be.
        conn: ConnId,
        /// Where to.
        target: Target,
    },
    /// Write bytes to a control connection, after all before them.
    Transmit {
        /// The connection.
        conn: ConnId,
        /// What to write.
        bytes: Vec<u8>,
    },
    /// End a control connection (or a dial) once what was transmitted is written, and forget it:
    /// nothing more comes about it, and nothing need be told. Comes after `handle_closed` too.
    Close {
        /// The connection.
        conn: ConnId,
    },
    /// Seal what goes to this peer with this key from here on, instead of the one before.
    InstallSend {
        /// The connection.
        conn: ConnId,
        /// The peer at its other end.
        peer: PeerName,
        /// Key, cipher, and the number the peer knows the session by.
        key: SessionKey,
        /// Where the peer takes datagrams.
        remote: SocketAddr,
        /// Bytes of the longest datagram that may be sent there; frames that need more go in pieces.
        limit: u16,
    },
    /// Open what comes with this number by this key; the keys before it stay good until
    /// [`Event::RetireReceive`].
    InstallReceive {
        /// The connection.
        conn: ConnId,
        /// The peer at its other end.
        peer: PeerName,
        /// Key, cipher and number.
        key: SessionKey,
    },
    /// Forget one key for receiving.
    RetireReceive {
        /// Its number.
        receiver: ReceiverIndex,
    },
    /// The peer takes datagrams somewhere else from here on.
    Remote {
        /// The connection.
        conn: ConnId,
        /// The peer at its other end.
        peer: PeerName,
        /// Where to.
        addr: SocketAddr,
    },
    /// Seal this heartbeat for the connection's peer and send it.
    SendHeartbeat {
        /// The connection.
        conn: ConnId,
        /// What to send.
        heartbeat: Heartbeat,
    },
    /// Seal this heartbeat for the connection's peer and send it to an address where the peer may be seen.
    Punch {
        /// The connection.
        conn: ConnId,
        /// Where to.
        to: SocketAddr,
        /// What to send.
        heartbeat: Heartbeat,
    },
    /// Pad this probe to its size, seal it for the connection's peer and send it. If the kernel says
    /// that it is too long, that is told by `handle_too_long`.
    SendProbe {
        /// The connection.
        conn: ConnId,
        /// What to send.
        probe: Probe,
    },
    /// The longest datagram that may be sent to this peer is another one from here on.
    Limit {
        /// The connection.
        conn: ConnId,
        /// The peer at its other end.
        peer: PeerName,
        /// Its bytes.
        limit: u16,
    },
    /// Forget all keys of a connection.
    Uninstall {
        /// The connection.
        conn: ConnId,
    },
    /// The peer is at the other end and speaks: gossip with it, compare rings. No frames yet.
    ///
    /// Comes again with another `conn`, and no `Disconnected` between, when a better connection to
    /// the same run of the peer takes over.
    Connected {
        /// Who.
        peer: PeerName,
        /// Its connection.
        conn: ConnId,
        /// What it says of itself.
        hello: Hello,
    },
    /// The peer has no connection with us any more.
    Disconnected {
        /// Who.
        peer: PeerName,
        /// Why, in words.
        why: String,
        /// Why, if one of the two said so.
        reason: Option<RefusalReason>,
    },
    /// Both ends are ready: frames may flow to and from this neighbour.
    Established {
        /// Who.
        peer: PeerName,
    },
    /// A machine's message from its like on another peer, sent there by [`crate::Router::send`].
    Message {
        /// Who sent it; a peer in between could have lied about that.
        from: PeerName,
        /// The message.
        body: Vec<u8>,
    },
    /// A gossip envelope from a neighbour.
    Gossip {
        /// The neighbour.
        from: PeerName,
        /// The envelope.
        bytes: Vec<u8>,
    },
    /// [`crate::Router::own_links`] has changed: publish it.
    LinksChanged,
    /// [`crate::Router::routes`] or [`crate::Router::neighbours`] has changed: forward by the new ones.
    RoutesChanged,
    /// The targets of [`crate::Router::targets`] have changed: keep them.
    TargetsChanged,
    /// Something about the fast datapath to a peer.
    Fast {
        /// The peer.
        peer: PeerName,
        /// What.
        event: FastEvent,
    },
    /// A connection was refused, by us or by the other side; for the log and the counters.
    Refused {
        /// The other side.
        remote: SocketAddr,
        /// Why.
        reason: RefusalReason,
        /// Why, in words.
        text: String,
        /// Whether it was the other side that refused.
        by_peer: bool,
    },
}

/// What is to be done or known about the fast datapath to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FastEvent {
    /// Let its kernel send frames to ours from this address: what the peer is told next rests on that.
    Admit(Ipv4Addr),
    /// Let it send no more.
    Bar,
    /// Send this frame, which is for the peer's bridge, to the VXLAN there.
    Beat {
        /// The peer's host.
        addr: Ipv4Addr,
        /// The port its VXLAN listens on.
        port: u16,
        /// The whole frame.
        frame: Vec<u8>,
    },
    /// Frames to it are carried by somebody else from here on. The first time, and after it was held, it
    /// may be the one who carries them anyway.
    Carry {
        /// By whom.
        carrier: Carrier,
        /// Why not by the kernel, in words; empty if nobody wished it.
        why: String,
    },
}
