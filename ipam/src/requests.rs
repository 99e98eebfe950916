//! Requests of containers: what may be asked, what waits for space, and the answers.
//!
//! A request that cannot be answered at once is data in a bounded list; whenever the ring or our
//! space changes all of them are looked at again, in the order they came. Nothing is remembered of
//! a request that was cancelled.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Instant;

use thiserror::Error;
use weft_wire::PeerName;

use crate::addr::{Addr, Cidr, PrefixFault, Span};
use crate::allocator::Allocator;
use crate::event::Answer;
use crate::message::Denial;
use crate::space::{ContainerId, Hold, Holding};

/// How many requests may wait at once.
pub const MAX_PENDING: usize = 4_096;

/// Names a request; chosen by the caller, who takes a new one for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// Any address of a subnet.
    Allocate {
        /// For whom.
        container: ContainerId,
        /// From where.
        subnet: Cidr,
    },
    /// Just this address.
    Claim {
        /// For whom.
        container: ContainerId,
        /// The address.
        addr: Addr,
        /// Prefix length of its subnet.
        prefix: u8,
    },
    /// That there be a ring.
    Prime,
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allocate { subnet, .. } => write!(f, "{subnet}"),
            Self::Claim { addr, prefix, .. } => write!(f, "{addr}/{prefix}"),
            Self::Prime => f.write_str("a ring"),
        }
    }
}

/// Why there is no address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RequestError {
    /// Too much waits already.
    #[error("{MAX_PENDING} requests wait for addresses already: see `weft status ipam`")]
    TooMany,
    /// We give out no addresses of our own accord.
    #[error(
        "no range of addresses to give out was set, so name a subnet of one that other peers have"
    )]
    NoPool,
    /// The subnet has no address in common with the pool.
    #[error("range {subnet} out of bounds: {pool}")]
    OutOfPool {
        /// The subnet.
        subnet: Cidr,
        /// The pool.
        pool: Cidr,
    },
    /// The subnet has no room for containers.
    #[error(
        "invalid subnet - smaller than minimum size {}: {subnet}",
        Cidr::MIN_SUBNET
    )]
    TooSmall {
        /// The subnet.
        subnet: Cidr,
    },
    /// A prefix length no subnet of the address has.
    #[error("invalid subnet - {}", PrefixFault { addr: *addr, prefix: *prefix })]
    Prefix {
        /// The address.
        addr: Addr,
        /// The prefix length.
        prefix: u8,
    },
    /// The address stands for its own subnet, or for all in it.
    #[error("address {addr} is {} of its subnet /{prefix}: choose another", match addr.to_v4() {
        Some(_) => "the network or broadcast address",
        None => "the first one, which stands for the routers (RFC 4291),",
    })]
    NotAHost {
        /// The address.
        addr: Addr,
        /// The prefix length.
        prefix: u8,
    },
    /// The address is set aside on every peer.
    #[error("address {addr} is reserved on every peer: choose another")]
    Reserved {
        /// The address.
        addr: Addr,
    },
    /// A container of this host holds the address.
    #[error("address {addr} is already owned by {by}")]
    Held {
        /// The address.
        addr: Addr,
        /// Its holder.
        by: ContainerId,
    },
    /// Another peer keeps the address.
    #[error("address {addr} is owned by other peer {peer} - it is in use there")]
    InUse {
        /// The address.
        addr: Addr,
        /// Its owner.
        peer: PeerName,
    },
    /// The ring is as long as it may be.
    #[error(
        "address {addr} is owned by other peer {peer} - the ring is cut into as many ranges as it may have, `weft rmpeer` or `weft reset` of peers that are gone does not change that: allocate instead of claiming"
    )]
    RingFull {
        /// The address.
        addr: Addr,
        /// Its owner.
        peer: PeerName,
    },
    /// The container's addresses were freed while it waited.
    #[error("cancelled: the addresses of {container} were freed meanwhile")]
    Freed {
        /// The container.
        container: ContainerId,
    },
    /// This peer gave its addresses away.
    #[error("cancelled: this peer hands its addresses over")]
    HandedOver,
}

/// Why an address could not be freed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FreeError {
    /// The container does not hold it.
    #[error("address {addr} not found for {container}")]
    NotHeld {
        /// The container.
        container: ContainerId,
        /// The address.
        addr: Addr,
    },
}

/// A request without an answer so far.
#[derive(Debug, Clone)]
pub(crate) struct Pending {
    pub(crate) id: RequestId,
    pub(crate) wish: Wish,
}

impl Pending {
    pub(crate) fn is_of(&self, who: &ContainerId) -> bool {
        match &self.wish {
            Wish::Allocate { container, .. } | Wish::Claim { container, .. } => container == who,
            Wish::Prime => false,
        }
    }

    /// Whether there is no answer without a ring.
    pub(crate) fn needs_ring(&self, pool: Cidr) -> bool {
        match &self.wish {
            Wish::Allocate { .. } | Wish::Prime => true,
            Wish::Claim { addr, .. } => pool.contains(*addr),
        }
    }
}

/// What holds for all requests looked at in one go.
struct Pass {
    /// Nothing new is given out.
    settling: bool,
    /// Addresses that containers of other peers have though they are not those peers'.
    claimed: BTreeSet<Addr>,
    /// What of our ranges may be used.
    usable: Vec<Span>,
    /// Subnets found to have nothing free.
    exhausted: BTreeSet<Cidr>,
}

type Outcome = Result<Answer, RequestError>;

impl Allocator {
    /// Takes a request in, or refuses it at once.
    pub(crate) fn submit(&mut self, id: RequestId, wish: Wish, now: Instant) {
        match self.refusal(&wish) {
            Some(error) => self.answer(id, Err(error)),
            None => self.pending.push(Pending { id, wish }),
        }
        self.work(now);
    }

    fn refusal(&self, wish: &Wish) -> Option<RequestError> {
        let pool = self.config.pool;
        let error = match wish {
            Wish::Allocate { subnet, .. } => {
                let subnet = *subnet;
                if subnet.size() < Cidr::MIN_SUBNET {
                    Some(RequestError::TooSmall { subnet })
                } else if !subnet.overlaps(pool) {
                    Some(RequestError::OutOfPool { subnet, pool })
                } else {
                    None
                }
            }
            Wish::Claim { addr, prefix, .. } => self.claim_refusal(*addr, *prefix),
            Wish::Prime => None,
        };
        let full = self.pending.len() >= MAX_PENDING;
        error.or(full.then_some(RequestError::TooMany))
    }

    fn claim_refusal(&self, addr: Addr, prefix: u8) -> Option<RequestError> {
        let Some(subnet) = Cidr::containing(addr, prefix) else {
            return Some(RequestError::Prefix { addr, prefix });
        };
        if !subnet.hosts().contains(addr) {
            return Some(RequestError::NotAHost { addr, prefix });
        }
        let reserved = self.space.is_reserved(addr);
        reserved.then_some(RequestError::Reserved { addr })
    }

    /// Answers what can be answered.
    pub(crate) fn serve(&mut self, now: Instant) {
        if self.pending.is_empty() {
            return;
        }
        let mut pass = Pass {
            settling: self.settling(now),
            claimed: self.claimed_by_others(now),
            usable: self.usable(now),
            exhausted: BTreeSet::new(),
        };
        for pending in std::mem::take(&mut self.pending) {
            match self.try_serve(&pending.wish, &mut pass) {
                Some(outcome) => self.answer(pending.id, outcome),
                None => self.pending.push(pending),
            }
        }
    }

    /// The outcome of a request, if it has one yet.
    fn try_serve(&mut self, wish: &Wish, pass: &mut Pass) -> Option<Outcome> {
        match wish {
            Wish::Allocate { container, subnet } => {
                if let Some((addr, holding)) = self.held_in(container, *subnet) {
                    // Its own address again; an unsettled one once it is settled.
                    return (holding.hold == Hold::Settled)
                        .then(|| Ok(self.give(container, addr, subnet.prefix())));
                }
                if pass.settling || pass.exhausted.contains(subnet) {
                    return None;
                }
                let us = self.config.us;
                let own = &pass.usable;
                let Some(addr) = self.space.pick(us, own, *subnet, &pass.claimed) else {
                    pass.exhausted.insert(*subnet);
                    return None;
                };
                self.space.set_cursor(addr);
                Some(Ok(self.give(container, addr, subnet.prefix())))
            }
            Wish::Claim {
                container,
                addr,
                prefix,
            } => {
                let outcome = self.try_claim(container, *addr, pass)?;
                Some(outcome.map(|()| {
                    self.give(container, *addr, *prefix);
                    Answer::Claimed
                }))
            }
            Wish::Prime => self.ring.is_some().then_some(Ok(Answer::Primed)),
        }
    }

    /// Whether the container may have the address, if that can be said yet.
    fn try_claim(
        &self,
        container: &ContainerId,
        addr: Addr,
        pass: &Pass,
    ) -> Option<Result<(), RequestError>> {
        if !self.config.pool.contains(addr) {
            return Some(Ok(()));
        }
        if let Some(by) = self.space.holder(addr).filter(|by| *by != container) {
            let by = by.clone();
            return Some(Err(RequestError::Held { addr, by }));
        }
        match self.space.get(container, addr).map(|h| h.hold) {
            Some(Hold::Settled) => Some(Ok(())),
            Some(Hold::Unsettled) => None,
            Some(Hold::Conflict(peer)) => Some(Err(RequestError::InUse { addr, peer })),
            None => {
                let ring = self.ring.as_ref()?;
                let rival = ring.claimants(addr).find(|peer| self.is_live(*peer));
                let us = self.config.us;
                let ours = ring.owner_of(addr) == Some(us);
                let kept = self.space.kept_from(addr, us).filter(|_| ours);
                let usable = pass.usable.iter().any(|span| span.contains(addr));
                let free = !pass.settling && !pass.claimed.contains(&addr) && usable;
                match rival.or(kept) {
                    Some(peer) => Some(Err(RequestError::InUse { addr, peer })),
                    None => free.then_some(Ok(())),
                }
            }
        }
    }

    /// A container's address in a subnet, unless it lost it.
    fn held_in(&self, container: &ContainerId, subnet: Cidr) -> Option<(Addr, Holding)> {
        let mut held = self.space.of(container);
        held.find(|(addr, holding)| {
            let lost = matches!(holding.hold, Hold::Conflict(_));
            subnet.hosts().contains(*addr) && !lost
        })
    }

    fn give(&mut self, container: &ContainerId, addr: Addr, prefix: u8) -> Answer {
        let hold = Hold::Settled;
        let holding = Holding { prefix, hold };
        if self.space.get(container, addr) != Some(holding) {
            self.space.hold(container, addr, holding);
            self.dirty();
        }
        Answer::Address { addr, prefix }
    }

    /// Ends the claims of an address its owner keeps.
    pub(crate) fn deny_claims(&mut self, addr: Addr, peer: PeerName, why: Denial) {
        let error = match why {
            Denial::InUse => RequestError::InUse { addr, peer },
            Denial::Reserved => RequestError::Reserved { addr },
            Denial::RingFull => RequestError::RingFull { addr, peer },
            Denial::Fenced => return, // it may yet grant it
        };
        let is_claim = |pending: &Pending| match &pending.wish {
            Wish::Claim { addr: claimed, .. } => *claimed == addr,
            Wish::Allocate { .. } | Wish::Prime => false,
        };
        self.answer_all(is_claim, &error);
    }

    /// Refuses all waiting requests of a kind.
    pub(crate) fn answer_all(&mut self, of: impl Fn(&Pending) -> bool, error: &RequestError) {
        let (gone, kept) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|pending| of(pending));
        self.pending = kept;
        for pending in gone {
            self.answer(pending.id, Err(error.clone()));
        }
    }
}
