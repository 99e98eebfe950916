//! The allocators of a whole cluster, run against each other; see [`cluster`].

mod births;
mod cluster;
mod faults;
mod merges;
