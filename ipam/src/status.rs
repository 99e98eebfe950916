//! What an allocator tells about itself, for people and for metrics.
//!
//! Built anew from the allocator's state at each question; nothing is kept for it.

use std::fmt;
use std::time::Duration;

use weft_wire::PeerName;

use crate::addr::{Addr, Cidr};
use crate::allocator::Allocator;
use crate::birth::Init;
use crate::requests::{RequestId, Wish};
use crate::ring::{Ring, RingId};
use crate::space::{ContainerId, Hold};
use crate::waits::WaitsFor;

/// How the allocator of a pool is.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// In a word.
    pub state: State,
    /// All addresses there are.
    pub pool: Cidr,
    /// Where addresses come from unless a request says otherwise.
    pub default_subnet: Cidr,
    /// Which ring it is, if there is one.
    pub ring: Option<RingId>,
    /// Who got a part of the pool at the ring's birth.
    pub founders: Vec<PeerName>,
    /// Who owns how much, ourselves first, then by name; empty before there is a ring.
    pub owners: Vec<Owner>,
    /// How many addresses of the pool are held on this host.
    pub active: usize,
    /// How many ranges the ring is cut into.
    pub ranges: usize,
    /// Everybody that can be reached, without us.
    pub reachable: Vec<PeerName>,
    /// Requests without an answer so far.
    pub pending: Vec<PendingRequest>,
    /// Addresses held here that are being claimed from their owner, since two rings met.
    pub unsettled: Vec<Unsettled>,
    /// Containers that lost their address to another peer.
    pub conflicts: Vec<Conflict>,
    /// Who decides about dead peers, and what each says of what we own.
    pub electors: Vec<Elector>,
    /// What we own may be used: enough electors acknowledged it of late.
    pub unfenced: bool,
    /// Peers out of reach whose addresses the electors will take over.
    pub reclaims: Vec<Reclaim>,
    /// Messages that were malformed, since the start.
    pub malformed: u64,
}

/// The state of an allocator; printed in the words of Weave Net where it has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// There is no ring and nobody asked for one.
    Idle,
    /// Founders are being agreed upon.
    AwaitingConsensus {
        /// How many must agree.
        quorum: usize,
        /// How many there are, us included.
        known: usize,
    },
    /// An observer waits for others to make a ring.
    Priming,
    /// Addresses can be had.
    Ready,
    /// Requests wait for space.
    Waiting,
    /// Two rings met and addresses are being claimed in the one that stays.
    Settling {
        /// How many of ours.
        addresses: usize,
    },
    /// No owner of any address can be reached.
    Unreachable,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle => f.write_str("idle"),
            Self::AwaitingConsensus { quorum, known } => {
                write!(f, "awaiting consensus (quorum: {quorum}, known: {known})")
            }
            Self::Priming => f.write_str("priming"),
            Self::Ready => f.write_str("ready"),
            Self::Waiting => f.write_str("waiting for IP(s) to become available"),
            Self::Settling { addresses } => {
                write!(
                    f,
                    "settling {addresses} address(es) after a change of the ring"
                )
            }
            Self::Unreachable => f.write_str(
                "all IP ranges owned by unreachable peers - use 'rmpeer' if they are dead",
            ),
        }
    }
}

/// A peer's part of the pool.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Owner {
    /// Who.
    pub peer: PeerName,
    /// How many addresses it owns, given out or not.
    pub addresses: u128,
    /// The same in percent of the pool.
    pub percent: f64,
    /// Whether it can be asked for some; true of ourselves.
    pub reachable: bool,
}

/// One of those who decide about dead peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elector {
    /// Who.
    pub peer: PeerName,
    /// Whether it can be asked; true of ourselves.
    pub reachable: bool,
    /// How long ago we asked for what it acknowledged last; none of ourselves.
    pub acked: Option<Duration>,
    /// Its last answer was that it does not acknowledge what we own.
    pub refuses: bool,
}

/// A peer out of reach that is being given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reclaim {
    /// Who.
    pub peer: PeerName,
    /// For how long we, as an elector, have not heard of it.
    pub silent: Duration,
    /// For how long yet we do not vote to take it over.
    pub left: Duration,
    /// Enough electors are there to decide it.
    pub quorum: bool,
}

/// A request that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingRequest {
    /// Which.
    pub id: RequestId,
    /// What is asked for, and for whom.
    pub wish: Wish,
    /// What is lacking.
    pub waits_for: WaitsFor,
}

/// An address being claimed from its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsettled {
    /// The container that holds it.
    pub container: ContainerId,
    /// The address.
    pub addr: Addr,
    /// Its owner.
    pub owner: PeerName,
    /// Whether the owner can be reached.
    pub reachable: bool,
}

/// A container that lost its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The container.
    pub container: ContainerId,
    /// The address.
    pub addr: Addr,
    /// Prefix length of its subnet.
    pub prefix: u8,
    /// Who has it.
    pub holder: PeerName,
}

impl Allocator {
    /// How we are.
    pub fn status(&self) -> Status {
        let ring = self.ring.as_ref();
        Status {
            state: self.state(),
            pool: self.config.pool,
            default_subnet: self.config.default_subnet,
            ring: ring.map(Ring::id),
            founders: ring.map(|r| r.founders().to_vec()).unwrap_or_default(),
            owners: self.owners(),
            active: self.space.active(),
            ranges: ring.map_or(0, |ring| ring.entries().len()),
            reachable: self.live().into_iter().collect(),
            pending: self.pending_requests(),
            unsettled: self.unsettled_list(),
            conflicts: self.conflicts(),
            electors: self.elector_list(),
            unfenced: self.is_unfenced(self.clock.read_at()),
            reclaims: self.reclaims(),
            malformed: self.malformed,
        }
    }

    fn state(&self) -> State {
        let Some(ring) = &self.ring else {
            return match &self.config.init {
                _ if !self.needs_ring() => State::Idle,
                Init::Observer => State::Priming,
                Init::Consensus(_) | Init::Seed(_) => State::AwaitingConsensus {
                    quorum: self.quorum(),
                    known: 1 + self.live().len(),
                },
            };
        };
        let us = self.config.us;
        let mut owners = ring.owners().into_keys();
        if !owners.any(|owner| owner == us || self.is_live(owner)) {
            return State::Unreachable;
        }
        let addresses = self.unsettled().count();
        if addresses > 0 {
            State::Settling { addresses }
        } else if self.pending.is_empty() {
            State::Ready
        } else {
            State::Waiting
        }
    }

    fn owners(&self) -> Vec<Owner> {
        let us = self.config.us;
        let owners = self.ring.as_ref().map(Ring::owners).unwrap_or_default();
        // As floats only to be printed; a pool's size, a power of two, is exact in them.
        let size = self.config.pool.size() as f64;
        let mut owners: Vec<_> = owners
            .into_iter()
            .map(|(peer, addresses)| Owner {
                peer,
                addresses,
                percent: 100.0 * addresses as f64 / size,
                reachable: peer == us || self.is_live(peer),
            })
            .collect();
        owners.sort_by_key(|owner| owner.peer != us);
        owners
    }

    fn pending_requests(&self) -> Vec<PendingRequest> {
        let pending = self.pending.iter().map(|pending| PendingRequest {
            id: pending.id,
            wish: pending.wish.clone(),
            waits_for: self.waits_for(&pending.wish),
        });
        pending.collect()
    }

    fn elector_list(&self) -> Vec<Elector> {
        let now = self.clock.read_at();
        let us = self.config.us;
        let electors = self.ring.as_ref().map(|ring| ring.roll().electors());
        let electors = electors.into_iter().flatten().map(|peer| {
            let word = self.word(peer, now);
            Elector {
                peer,
                reachable: peer == us || self.is_live(peer),
                acked: word.and_then(|word| word.age),
                refuses: word.is_some_and(|word| word.refused),
            }
        });
        electors.collect()
    }

    /// What we as an elector reckon of owners out of reach; nothing if we are none.
    fn reclaims(&self) -> Vec<Reclaim> {
        let now = self.clock.read_at();
        let Some(ring) = &self.ring else {
            return Vec::new();
        };
        let electors = ring.roll().electors();
        if !electors.contains(&self.config.us) {
            return Vec::new();
        }
        let quorum = self.electors_here(&electors) >= self.votes_needed(&electors);
        let missing = self.missing(ring).into_iter().map(|peer| {
            let silent = self.silence(peer, now);
            Reclaim {
                peer,
                silent,
                left: self.config.times.takeover.saturating_sub(silent),
                quorum,
            }
        });
        missing.collect()
    }

    /// Addresses held here that are being claimed from their owner.
    pub fn unsettled_list(&self) -> Vec<Unsettled> {
        let unsettled = self.unsettled().map(|(container, addr, owner)| Unsettled {
            container: container.clone(),
            addr,
            owner,
            reachable: self.is_live(owner),
        });
        unsettled.collect()
    }

    /// Containers that lost their address to another peer.
    pub fn conflicts(&self) -> Vec<Conflict> {
        let conflicts =
            self.space
                .iter()
                .filter_map(|(container, addr, holding)| match holding.hold {
                    Hold::Settled | Hold::Unsettled => None,
                    Hold::Conflict(holder) => Some(Conflict {
                        container: container.clone(),
                        addr,
                        prefix: holding.prefix,
                        holder,
                    }),
                });
        conflicts.collect()
    }
}
