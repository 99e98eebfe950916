//! Putting containers on the network, from outside the router: callers of `api` that use `net`.
//!
//! The router gives out addresses and names and owns the bridge; whoever attaches a container makes
//! the interface, in the namespaces where it runs. So attaching works for anything with a network
//! namespace, and the router need not know Docker.
//!
//! [`Target`] and [`AddressSpec`] are what people type; [`find`] turns the first into a
//! [`Container`]; [`runtime`] and [`proxy`] attach what Docker starts; [`network`] is Docker's plugin, which
//! [`managed`] has Docker run for a swarm; [`watch`] follows what Docker does; [`attach`], [`detach`], [`expose`], [`names`] and [`list`] are one command each.
//!
//! Invariant: a command that fails has given back whatever it was given on the way.
#![forbid(unsafe_code)]

pub mod address;
mod archive;
pub mod attach;
mod binding;
pub mod detach;
pub mod docker;
pub mod expose;
pub mod find;
pub mod list;
pub mod managed;
pub mod names;
pub mod network;
mod obtain;
pub mod proxy;
pub mod runtime;
pub mod setup;
pub mod target;
#[cfg(test)]
mod testing;
pub mod watch;

pub use address::{AddressSpec, ParseAddressError};
pub use find::{Container, DockerNames};
pub use target::{ParseTargetError, Target};
