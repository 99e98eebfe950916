//! The allocators of a whole cluster, run against each other; see [`cluster`].

mod births;
pub(crate) mod cluster;
mod faults;
mod merges;
mod messages;
mod prompt;
mod reclaim;
mod rulings;
