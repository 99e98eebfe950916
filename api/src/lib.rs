//! What callers and the router say to each other: HTTP/1.1 with JSON bodies on a root-only unix
//! socket.
//!
//! [`types`] holds every request and answer, [`report`] the one big answer behind `weft status`
//! and `weft report`, [`routes`] the table of paths. The router's side is in the root package; the
//! caller's side is `client`, behind the feature of that name, so that those who only need the types
//! open no sockets.
//!
//! Invariant: nothing outside this crate and `wire` is serialized; the machines' own types are
//! turned into these by hand at the boundary.
#![forbid(unsafe_code)]

mod cidr;
#[cfg(feature = "client")]
pub mod client;
pub mod report;
pub mod routes;
mod text;
pub mod types;

pub use cidr::{Cidr, ParseCidrError};
#[cfg(feature = "client")]
pub use client::{CallError, Called, Client};
pub use report::Report;
pub use types::{ContainerId, ContainerIdError};
