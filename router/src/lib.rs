//! The router as pure machines: who our neighbours are, and where each frame goes.
//!
//! The control side is one machine, [`Router`]. It keeps a control connection to each neighbour
//! (TCP, Noise inside), agrees with it on the keys that seal frames, asks over UDP whether frames
//! get through, and dials whom it was told to, or has heard of. It opens no socket and reads no
//! clock: the node tells it what happened and does what it asks for. It has four kinds of method:
//!
//! * `handle_*`: something happened. Takes what and when; never fails, never blocks.
//! * `poll_event`: what is to be done about it. Called until it is empty, after every `handle_*`.
//! * `poll_timeout`: when `handle_timeout` wants to be called next, and why.
//! * the rest: questions (`connections`, `routes`…) and orders (`connect`, `send`…), which may make
//!   events too.
//!
//! The data side has no state of its own to speak of: [`switch`] decides on one frame, [`session`]
//! seals and opens one datagram, both on what the control side has put together in [`macs`] and
//! [`routes`]. The node's threads call them without a lock.
//!
//! Randomness comes from one seed given at the start, handshakes included, so that a run can be
//! repeated byte for byte.
#![forbid(unsafe_code)]

mod backoff;
pub mod bindings;
mod choice;
#[cfg(test)]
mod clock;
mod config;
mod connect;
mod control;
mod dial;
mod discovery;
pub mod drop_reason;
mod event;
mod failures;
mod fast;
pub mod flood;
pub mod fragment;
mod graph;
pub mod home;
mod identity;
mod keys;
mod link;
mod links;
pub mod macs;
mod mesh;
pub mod nearness;
pub mod networks;
pub mod offload;
mod path;
mod pulse;
mod relays;
mod router;
pub mod routes;
pub mod session;
mod status;
mod subnet;
pub mod switch;
mod throttle;
pub mod topology;

pub use config::Config;
pub use connect::{ParseTargetError, Target, TargetState, TargetStatus};
pub use discovery::MAX_PEERS as MAX_DISCOVERED;
pub use event::{ConnId, Event, FastEvent};
pub use fast::{Carriage, Carrier};
pub use identity::{Identity, IdentityError, Psk, PskError};
pub use router::{PeerInfo, Router, SendError};
pub use status::{ConnectionState, ConnectionStatus, OwnLink};
pub use subnet::{ParseSubnetError, Subnet};
