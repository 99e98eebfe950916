//! Addresses for containers, each given once in the whole network, without anybody in charge.
//!
//! The words first. A *pool* is one CIDR, the same on every peer. Its *ring* says who owns which
//! part: sorted *tokens*, each the start of a *range* with one *owner*. An owner alone *allocates*
//! addresses of its ranges to containers, so no two peers ever give the same one out; a peer that
//! has none left asks an owner to *grant* it a part. A container may *claim* an address it wants,
//! or holds already.
//!
//! Every peer keeps the whole ring and merges what it hears of others' ([`ring`](self) state is a
//! CRDT): the order, loss and repetition of messages change nothing. Rings *born apart* do not
//! merge; the one with the smaller [`RingId`] survives everywhere, and peers of the other claim the
//! addresses their containers hold in it. A connection carries no frames before its two ends know
//! the same ring and have settled their addresses: the *barrier*.
//!
//! ```text
//!   requests ----> requests.rs --> space.rs      which addresses are free, who holds which
//!                      |   lacks space
//!                      v
//!   messages ----> exchange.rs --> ring.rs       the CRDT
//!                   |      |   |
//!                   |      |   +-> birth.rs --> consensus.rs   the first division
//!                   |      +-----> settle.rs, asks.rs          claims, asking for space
//!   connections -> sync.rs                                     barriers, pulling rings
//!   silence -----> fence.rs, watch.rs, council.rs              who is dead, and who gets its space
//! ```
//!
//! [`Allocator`] holds it together for one pool, [`Pools`] for all: machines without clock, sockets
//! or randomness of their own.
//! `docs/ipam.md` has the rules and why they are safe.
#![forbid(unsafe_code)]

mod addr;
mod allocator;
mod aside;
mod asks;
mod birth;
mod consensus;
mod council;
mod digest;
mod event;
mod exchange;
mod fence;
mod message;
mod pools;
mod requests;
mod ring;
mod rules;
mod saved;
mod settle;
mod space;
mod status;
mod sync;
mod waits;
mod watch;

pub use addr::{Addr, Cidr, CidrError, Unfit};
pub use allocator::Allocator;
pub use aside::Aside;
pub use birth::Init;
pub use consensus::{Acceptor, Ballot, Decree};
pub use council::{Ruling, Votes};
pub use digest::{Digest, ParseDigestError};
pub use event::{Answer, Config, Event};
pub use pools::{AddPoolError, MAX_POOLS, MAX_STRANGE, Pools, PoolsConfig};
pub use requests::{FreeError, MAX_PENDING, RequestError, RequestId, Wish};
pub use ring::{Claim, Entry, MAX_CLAIMS, MAX_ENTRIES, MAX_FOUNDERS, RingError, RingId, RingKind};
pub use rules::{ParseRuleError, Rule, Rules, Times};
pub use saved::{Allocation, LoadError, Saved, SavedRing};
pub use space::ContainerId;
pub use status::{Conflict, Elector, Owner, PendingRequest, Reclaim, State, Status, Unsettled};
pub use waits::WaitsFor;

#[cfg(test)]
mod simulation;
