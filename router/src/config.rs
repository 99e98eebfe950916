//! What a router is told when it starts, parsed into meaning already.

use std::net::IpAddr;

use weft_wire::control::Hello;
use weft_wire::{Nickname, PeerName, PeerUid};

use crate::{Identity, Psk, Subnet};

/// What a [`crate::Router`] is told once.
#[derive(Debug)]
pub struct Config {
    /// Our static key.
    pub identity: Identity,
    /// Our name; [`Identity::peer_name`] unless the operator chose one.
    pub name: PeerName,
    /// Our name for people.
    pub nickname: Nickname,
    /// The number of this run, random.
    pub uid: PeerUid,
    /// When this run started, Unix seconds.
    pub started: u64,
    /// From the password; `None` lets anybody in.
    pub psk: Option<Psk>,
    /// The cluster's name; peers of another one are refused.
    pub cluster: String,
    /// The port we listen on, TCP and UDP, and that targets without one are dialled at.
    pub port: u16,
    /// MTU of the default network, in bytes.
    pub mtu: u16,
    /// Our version, for people.
    pub version: String,
    /// The address pools we were told of, in CIDR form; a peer with one that overlaps them and is
    /// another is refused.
    pub pools: Vec<String>,
    /// The most connections to have; 0 for no limit.
    pub conn_limit: usize,
    /// Whether peers heard of by gossip are connected to.
    pub discovery: bool,
    /// Underlay subnets where frames may go in clear.
    pub trusted: Vec<Subnet>,
    /// Whether AES-256-GCM runs in hardware here.
    pub aes: bool,
}

impl Config {
    /// How we introduce ourselves to a peer at this address.
    pub(crate) fn hello(&self, to: IpAddr) -> Hello {
        Hello {
            name: self.name,
            nickname: self.nickname.clone(),
            uid: self.uid,
            started: self.started,
            port: self.port,
            aes: self.aes,
            trusts: self.trusted.iter().any(|subnet| subnet.contains(to)),
            mtu: self.mtu,
            pools: self.pools.clone(),
            version: self.version.clone(),
        }
    }
}
