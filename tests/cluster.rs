//! Whole peers on a simulated network: the main test of weft.
//!
//! Each peer is put together from the real machines (router, allocator, name table, MAC table, the
//! switch decision, real sealed packets) just as the node does it. What is around them is simulated:
//! one clock that jumps from event to event, TCP and UDP that are late, lossy, cut or one-way, disks,
//! and crashes. Everything random comes from one seed, so a run can be
//! repeated exactly.
//!
//! * `world.rs`: the clock, what is on its way, starting and stopping peers.
//! * `underlay.rs`: TCP pipes and UDP datagrams, and what is wrong with them.
//! * `peer.rs`: one peer, put together; `crossings.rs`: its machines' effects, as in `src/node/effects.rs`.
//! * `dataplane.rs`: frames in and out, as in `src/dataplane/`.
//! * `model.rs`: what must be true at any moment; `settled.rs`: what must be true once all is quiet.
//! * `scenarios.rs`, `sparse.rs`, `liveness.rs`, `clones.rs`, `pools.rs`: single stories. `chaos.rs`: faults of all kinds; `reclaim.rs`: peers that die; `rulings.rs`: stories of those that only seem to; `broken.rs`: the same
//!   with a rule switched off; `seeds.rs`: many such runs, counted.
//!
//! `cargo xtask sim` (the crate `sim`) runs the same with many more seeds, and one of them alone.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    clippy::print_stdout,
    reason = "all of this is test"
)]

#[path = "cluster/broken.rs"]
mod broken;
#[path = "cluster/chaos.rs"]
mod chaos;
#[path = "cluster/clock.rs"]
mod clock;
#[path = "cluster/clones.rs"]
mod clones;
#[path = "cluster/crossings.rs"]
mod crossings;
#[path = "cluster/dataplane.rs"]
mod dataplane;
#[path = "cluster/liveness.rs"]
mod liveness;
#[path = "cluster/model.rs"]
mod model;
#[path = "cluster/peer.rs"]
mod peer;
#[path = "cluster/pools.rs"]
mod pools;
#[path = "cluster/reclaim.rs"]
mod reclaim;
#[path = "cluster/rulings.rs"]
mod rulings;
#[path = "cluster/scenarios.rs"]
mod scenarios;
#[path = "cluster/seeds.rs"]
mod seeds;
#[path = "cluster/settled.rs"]
mod settled;
#[path = "cluster/sparse.rs"]
mod sparse;
#[path = "cluster/underlay.rs"]
mod underlay;
#[path = "cluster/world.rs"]
mod world;
