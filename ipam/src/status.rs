//! What an allocator tells about itself, for people and for metrics.
//!
//! Built anew from the allocator's state at each question; nothing is kept for it.

use std::collections::BTreeSet;
use std::fmt;

use weft_wire::PeerName;

use crate::addr::{Addr, Cidr};
use crate::allocator::Allocator;
use crate::asks::Want;
use crate::birth::Init;
use crate::requests::{RequestId, Wish};
use crate::ring::{Ring, RingId};
use crate::space::{ContainerId, Hold};

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
    pub addresses: u64,
    /// The same in percent of the pool.
    pub percent: f64,
    /// Whether it can be asked for some; true of ourselves.
    pub reachable: bool,
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

/// What a request waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitsFor {
    /// A ring.
    Ring,
    /// That addresses are settled after two rings met.
    Settling,
    /// Space in a subnet.
    Space {
        /// The subnet.
        subnet: Cidr,
        /// Whom we asked last, or else all reachable peers that own part of it.
        from: Vec<PeerName>,
        /// The owners of part of it that cannot be reached.
        unreachable: Vec<PeerName>,
        /// We were refused because the ring is cut into as many ranges as it may have.
        ring_full: bool,
    },
    /// The owner of an address.
    Owner {
        /// The address.
        addr: Addr,
        /// Its owner.
        owner: PeerName,
        /// Whether it can be reached.
        reachable: bool,
    },
}

impl fmt::Display for WaitsFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring => f.write_str("waiting for a ring"),
            Self::Settling => f.write_str("waiting for addresses to settle after two rings met"),
            Self::Space {
                subnet,
                from,
                unreachable,
                ring_full,
            } => {
                write!(f, "waiting for {subnet} space from ")?;
                write_peers(f, from)?;
                if !unreachable.is_empty() {
                    f.write_str("; unreachable: ")?;
                    write_peers(f, unreachable)?;
                }
                if *ring_full {
                    f.write_str("; the ring is cut into as many ranges as it may have")?;
                }
                Ok(())
            }
            Self::Owner {
                addr,
                owner,
                reachable,
            } => {
                let reach = if *reachable { "" } else { ", unreachable" };
                write!(f, "waiting for {addr} from its owner {owner}{reach}")
            }
        }
    }
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
        // As floats only to be printed; a pool's size is exact in them.
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

    fn waits_for(&self, wish: &Wish) -> WaitsFor {
        let Some(ring) = &self.ring else {
            return WaitsFor::Ring;
        };
        match wish {
            Wish::Prime => WaitsFor::Ring,
            // Without an entry among the wants we would ask if addresses were settled.
            Wish::Allocate { subnet, .. } => match self.asks.get(Want::Space(*subnet)) {
                None => WaitsFor::Settling,
                Some(ask) => self.waits_for_space(ring, *subnet, ask.to),
            },
            Wish::Claim { addr, .. } => {
                match (self.asks.get(Want::Exact(*addr)), ring.owner_of(*addr)) {
                    (Some(_), Some(owner)) if owner != self.config.us => WaitsFor::Owner {
                        addr: *addr,
                        owner,
                        reachable: self.is_live(owner),
                    },
                    (_, _) => WaitsFor::Settling,
                }
            }
        }
    }

    fn waits_for_space(&self, ring: &Ring, subnet: Cidr, asked: Option<PeerName>) -> WaitsFor {
        let overlaps = ring
            .ranges()
            .filter(|(span, _)| !span.intersect(subnet.hosts()).is_empty());
        let owners: BTreeSet<_> = overlaps.map(|(_, entry)| entry.owner).collect();
        let others = owners.into_iter().filter(|peer| *peer != self.config.us);
        let (live, unreachable): (Vec<_>, Vec<_>) = others.partition(|peer| self.is_live(*peer));
        WaitsFor::Space {
            subnet,
            from: asked.map_or(live, |peer| vec![peer]),
            unreachable,
            ring_full: self.settling.ring_full,
        }
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

fn write_peers(f: &mut fmt::Formatter<'_>, peers: &[PeerName]) -> fmt::Result {
    if peers.is_empty() {
        return f.write_str("nobody: no owner can be reached");
    }
    for (n, peer) in peers.iter().enumerate() {
        let comma = if n == 0 { "" } else { ", " };
        write!(f, "{comma}{peer}")?;
    }
    Ok(())
}
