//! What goes into an allocator at its start, and what comes out of it ever after.

use std::time::Duration;

use weft_wire::PeerName;

use crate::addr::{Addr, Cidr};
use crate::birth::Init;
use crate::digest::Digest;
use crate::requests::{RequestError, RequestId};
use crate::rules::{Rules, Times};
use crate::saved::Saved;
use crate::space::ContainerId;

/// What an allocator is told at its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Who we are.
    pub us: PeerName,
    /// All addresses there are; the same on every peer.
    pub pool: Cidr,
    /// Where addresses come from unless a request says otherwise.
    pub default_subnet: Cidr,
    /// How the first ring is made.
    pub init: Init,
    /// How many peers we were told to connect to.
    pub targets: usize,
    /// Addresses that are never given out; the same on every peer.
    pub reserved: Vec<Addr>,
    /// How long the electors' business takes; the same on every peer.
    pub times: Times,
    /// All kept, but in a test.
    pub rules: Rules,
    /// The time since the host's start, times of sleep included (CLOCK_BOOTTIME).
    pub uptime: Duration,
}

/// What the node has to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "few are alive at a time, and the caller takes each apart at once"
)]
pub enum Event {
    /// Write this down before anything that follows is done.
    Persist(Saved),
    /// Give these bytes to another peer's allocator; they may be lost on the way.
    Send {
        /// Whose.
        to: PeerName,
        /// What its `handle_message` takes.
        bytes: Vec<u8>,
    },
    /// A request is answered; there is no other answer to it.
    Answer {
        /// Which.
        id: RequestId,
        /// The address, or why there is none.
        result: Result<Answer, RequestError>,
    },
    /// Publish this digest of our ring, so that others see whether theirs differs.
    Announce {
        /// The pool it is of.
        pool: Cidr,
        /// The digest.
        digest: Digest,
    },
    /// This pool is one of ours from here on; each is told of once.
    Joined(Cidr),
    /// There is no such pool any more: take back what was published of it, and what was written
    /// down.
    Forget(Cidr),
    /// Frames may flow to this neighbour, as far as addresses are concerned.
    Synced {
        /// The neighbour.
        peer: PeerName,
    },
    /// A container must not use its address any more: another peer has it in the ring that stays.
    Conflict {
        /// The container.
        container: ContainerId,
        /// The address.
        addr: Addr,
        /// Who has it.
        holder: PeerName,
    },
}

/// What a request got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// This address.
    Address {
        /// The address.
        addr: Addr,
        /// Prefix length of the subnet asked for.
        prefix: u8,
    },
    /// The address it claimed.
    Claimed,
    /// There is a ring.
    Primed,
}
