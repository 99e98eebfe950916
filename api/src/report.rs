//! The answer to `GET /status`: all that can be said of a running router, in one value.
//!
//! `weft status` prints parts of it for people, `weft report` and `--json` print it as it is; its
//! field names are an interface scripts rely on.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use weft_wire::{MacAddr, NetworkKey, PeerName};

use crate::{Cidr, ContainerId, text, types};

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The program's version.
    pub version: String,
    /// Peers, connections, routes.
    pub router: Router,
    /// Addresses of the default pool; none if switched off.
    pub ipam: Option<Ipam>,
    /// Addresses of all other pools: told of at the start, made later, or heard of from peers.
    #[serde(default)]
    pub pools: Vec<Ipam>,
    /// Names; none if switched off.
    pub dns: Option<Dns>,
    /// The network containers are attached to.
    pub network: types::Network,
    /// The default network, and all that this host or another peer is in beside it.
    #[serde(default)]
    pub networks: Vec<Network>,
    /// The file with the state that was found at the start, if that was a copy of another host's; this
    /// peer is a new one then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied_state: Option<String>,
    /// What somebody should look at, a sentence each.
    pub warnings: Vec<String>,
}

impl Report {
    /// All pools, the default one first.
    pub fn all_pools(&self) -> impl Iterator<Item = &Ipam> {
        self.ipam.iter().chain(&self.pools)
    }

    /// Who holds which address on this host, whatever pool it is of.
    pub fn holders(&self) -> impl Iterator<Item = &Holder> {
        self.all_pools().flat_map(|ipam| &ipam.holders)
    }
}

/// One network, whether this host is in it or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// What all peers call it.
    #[serde(with = "text")]
    pub key: NetworkKey,
    /// Its number on the wire at present.
    pub number: u32,
    /// Its bridge; none if this host is not in it.
    pub bridge: Option<String>,
    /// Who uses it here: containers, and networks of Docker's. Containers in the default network are
    /// not listed.
    pub users: Vec<String>,
    /// The peers that are in it; all are in the default network, where none is listed.
    #[serde(with = "text::list")]
    pub peers: Vec<PeerName>,
}

/// The mesh as this peer sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Router {
    /// Version of the control protocol, or `oldest..newest`.
    pub protocol: String,
    /// Our lasting name.
    #[serde(with = "text")]
    pub name: PeerName,
    /// Our name for people.
    pub nickname: String,
    /// Who may join.
    pub encryption: Encryption,
    /// Whether we connect to peers we learn of by gossip.
    pub discovery: bool,
    /// The cluster's name; peers of another one are refused.
    pub cluster: String,
    /// Port of control connections (TCP) and frames (UDP).
    pub port: u16,
    /// `HOST[:PORT]` each, as given to `launch` or `connect`.
    pub targets: Vec<String>,
    /// Connections, wished for or there.
    pub connections: Vec<Connection>,
    /// All known peers, ourselves first.
    pub peers: Vec<Peer>,
    /// Underlay subnets whose peers may get frames in clear.
    pub trusted_subnets: Vec<Cidr>,
    /// Next hops to each reachable peer.
    pub unicast_routes: Vec<UnicastRoute>,
    /// Where flooded frames of each origin go on to.
    pub flood_routes: Vec<FloodRoute>,
    /// The MAC table.
    pub macs: Vec<Mac>,
    /// Frames and datagrams dropped since the start, by reason.
    pub drops: BTreeMap<String, u64>,
}

/// Who can join the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encryption {
    /// Those who know the password.
    Enabled,
    /// Anybody: traffic is sealed, but with whom is not checked.
    Open,
}

impl fmt::Display for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Enabled => "enabled (password)",
            Self::Open => "OPEN to anybody (no password)",
        })
    }
}

/// One connection, or one that is wished for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// Whether we dialled.
    pub outbound: bool,
    /// Address and port of the other end; the target as typed where no address is known.
    pub address: String,
    /// How far it is.
    pub state: ConnectionState,
    /// Who is at the other end, once known.
    #[serde(with = "text::option", default)]
    pub peer: Option<PeerName>,
    /// Its name for people.
    pub nickname: Option<String>,
    /// What carries the frames, once established.
    pub overlay: Option<Overlay>,
    /// What seals the frames; none while there are no keys, or if they go in clear.
    pub encrypted: Option<Suite>,
    /// Round trip of the last heartbeat, in microseconds.
    pub rtt_us: Option<u64>,
    /// The largest frame that goes through unsplit, in bytes without the Ethernet header.
    pub mtu: Option<u16>,
    /// Why it is as it is: what failed, what the other end said.
    pub info: String,
    /// Seconds until it is dialled again.
    pub retry_in_s: Option<u64>,
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConnectionState {
    /// Carries frames.
    Established,
    /// Up, but something is still missing on the way to established.
    Pending,
    /// Ended, to be dialled again.
    Retrying,
    /// Ended, and not dialled again by us.
    Failed,
    /// Being dialled.
    Connecting,
}

impl ConnectionState {
    /// All states, in the order `weft status` counts them.
    pub const ALL: [Self; 5] = [
        Self::Established,
        Self::Pending,
        Self::Retrying,
        Self::Failed,
        Self::Connecting,
    ];
}

impl fmt::Display for ConnectionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Established => "established",
            Self::Pending => "pending",
            Self::Retrying => "retrying",
            Self::Failed => "failed",
            Self::Connecting => "connecting",
        })
    }
}

/// What carries a connection's frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlay {
    /// The router's own sealed datagrams.
    Udp,
    /// The kernel's VXLAN, in clear; frames for several containers go sealed all the same.
    Fastdp,
}

impl fmt::Display for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Udp => "udp",
            Self::Fastdp => "fastdp",
        })
    }
}

/// The cipher of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Suite {
    /// AES-256-GCM.
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
    /// ChaCha20-Poly1305.
    #[serde(rename = "chacha20-poly1305")]
    ChaCha20Poly1305,
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Aes256Gcm => "aes-256-gcm",
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
        })
    }
}

/// One known peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its lasting name.
    #[serde(with = "text")]
    pub name: PeerName,
    /// Its name for people.
    pub nickname: String,
    /// The number of its run, 16 hex digits.
    pub uid: String,
    /// Its program's version, once known.
    pub version: Option<String>,
    /// The connections it says it has.
    pub links: Vec<Link>,
    /// How frames get there.
    pub reachable: Reach,
}

/// How frames get to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// It is us.
    Us,
    /// Over a connection of ours.
    Direct,
    /// Over this neighbour.
    Via(#[serde(with = "text")] PeerName),
    /// Not at all.
    Unreachable,
}

/// A connection as the peer at one end tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The peer at the other end.
    #[serde(with = "text")]
    pub peer: PeerName,
    /// Its name for people.
    pub nickname: String,
    /// Its address as the teller sees it.
    pub address: String,
    /// Whether the teller dialled.
    pub outbound: bool,
    /// Whether the teller holds it for established.
    pub established: bool,
}

/// Where frames for one peer go next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnicastRoute {
    /// Whom the frames are for.
    #[serde(with = "text")]
    pub destination: PeerName,
    /// The next hop; the destination itself if it is a neighbour.
    #[serde(with = "text")]
    pub via: PeerName,
}

/// Where flooded frames of one origin go on to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloodRoute {
    /// Who captured them.
    #[serde(with = "text")]
    pub origin: PeerName,
    /// The neighbours we pass them on to.
    #[serde(with = "text::list")]
    pub via: Vec<PeerName>,
}

/// One entry of the MAC table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mac {
    /// The address.
    #[serde(with = "text")]
    pub mac: MacAddr,
    /// The peer it is at.
    #[serde(with = "text")]
    pub peer: PeerName,
    /// That peer's name for people.
    pub nickname: String,
    /// How that is known.
    #[serde(default)]
    pub known: Known,
    /// The addresses it is known to have.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Seconds since it was last seen.
    pub age_s: u64,
}

/// How it is known where a MAC is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Known {
    /// A container with it was attached there.
    Registered,
    /// That peer says that it has seen it at home.
    Told,
    /// We have seen frames from there.
    #[default]
    Seen,
}

impl Known {
    /// All ways, the surest first.
    pub const ALL: [Self; 3] = [Self::Registered, Self::Told, Self::Seen];
}

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Registered => "registered",
            Self::Told => "told",
            Self::Seen => "seen",
        })
    }
}

/// Addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipam {
    /// How the ring is, in the words of `weft status`.
    pub status: String,
    /// All addresses of the pool.
    pub range: Cidr,
    /// Where addresses come from unless another subnet is asked for.
    pub default_subnet: Cidr,
    /// Who owns how much, ourselves first; empty before the ring exists.
    pub owners: Vec<Owner>,
    /// How many addresses are held on this host.
    pub active: u64,
    /// Who holds which address on this host.
    pub holders: Vec<Holder>,
    /// Requests without an answer so far.
    pub pending: Vec<Pending>,
    /// Containers of this host whose address is another's.
    pub conflicts: Vec<Conflict>,
    /// Who decides that a peer is dead and who gets its addresses.
    #[serde(default)]
    pub electors: Vec<Elector>,
    /// Too few electors acknowledged of late what this peer owns, so it gives nothing new out.
    #[serde(default)]
    pub fenced: bool,
    /// Peers out of reach that will be taken over; empty unless this peer is an elector.
    #[serde(default)]
    pub reclaims: Vec<Reclaim>,
}

/// One of those who decide about dead peers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elector {
    /// Who.
    #[serde(with = "text")]
    pub peer: PeerName,
    /// Its name for people.
    pub nickname: String,
    /// Whether it can be asked.
    pub reachable: bool,
    /// Seconds since we asked for what it acknowledged last; none if it never did, or is us.
    pub acked_s: Option<u64>,
    /// It refuses, because a decision is under way that may be about what we own.
    pub refuses: bool,
}

/// A peer out of reach whose addresses will be another's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reclaim {
    /// Who.
    #[serde(with = "text")]
    pub peer: PeerName,
    /// Its name for people.
    pub nickname: String,
    /// For how many seconds we have not heard of it.
    pub silent_s: u64,
    /// For how many more seconds we do not vote to take it over.
    pub left_s: u64,
    /// Whether enough electors are within reach to decide it.
    pub quorum: bool,
}

/// A peer's part of the ring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Who.
    #[serde(with = "text")]
    pub peer: PeerName,
    /// Its name for people.
    pub nickname: String,
    /// How many addresses it owns, given out or not.
    pub addresses: u64,
    /// The same in thousandths of the pool.
    pub permille: u16,
    /// Whether it can be asked for some.
    pub reachable: bool,
}

/// An address in use on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Who holds it.
    pub container: ContainerId,
    /// The address and the prefix length of its subnet.
    pub cidr: Cidr,
}

/// A request that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// For whom.
    pub container: ContainerId,
    /// What it asks for, in words.
    pub wants: String,
    /// Why it is not answered, in words: `waiting for …`.
    pub waits_for: String,
}

/// A container whose address belongs to another since two rings met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// The container that is cut from the network.
    pub container: ContainerId,
    /// Its address.
    pub cidr: Cidr,
    /// The peer whose container keeps it.
    #[serde(with = "text")]
    pub holder: PeerName,
    /// That peer's name for people.
    pub nickname: String,
}

/// Names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// The domain, with its trailing dot.
    pub domain: String,
    /// Where the resolver listens.
    pub addresses: Vec<SocketAddr>,
    /// Who is asked for all other names, in this order.
    pub upstream: Vec<SocketAddr>,
    /// How long answers may be kept, in seconds.
    pub ttl: u32,
    /// All records of reachable peers.
    pub entries: Vec<Name>,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    /// The whole name, with its trailing dot.
    pub name: String,
    /// Who it belongs to.
    pub container: ContainerId,
    /// The peer it was registered at.
    #[serde(with = "text")]
    pub origin: PeerName,
    /// What it stands for.
    pub address: IpAddr,
}
