//! The map of the router process: everything that has a clock, a socket or a thread.
//!
//! | module | |
//! | --- | --- |
//! | `launch` | `weft launch`: background or foreground |
//! | `start` | puts the parts together and runs them |
//! | `config` | the arguments, parsed into meaning |
//! | `node` | owns every machine; the event loop |
//! | `event` | what wakes the node, what may be asked of it |
//! | `dataplane` | the two threads frames go through |
//! | `streams` | TCP under the control connections |
//! | `host` | bridge, TAP, addresses |
//! | `resolver` | DNS sockets |
//! | `http` | the API's server side |
//! | `state` | what survives a restart |
//! | `machine` | whether this is the host the state was written on |
//! | `convert` | between the machines' types and those of the API and the state |
//! | [`plugin`] | `weft plugin`: the socket of Docker's network plugin |
//! | `metrics` | what Prometheus is told |
//! | [`proxy`] | `weft proxy`: Docker's API once more |
//! | [`lab`] | several hosts on one machine |
//!
//! It is a library only so that `main` and the tests can use it.
#![forbid(unsafe_code)]

mod config;
mod convert;
mod dataplane;
mod event;
mod fast;
mod handback;
mod host;
mod http;
pub mod lab;
pub mod launch;
mod machine;
mod metrics;
mod node;
pub mod plugin;
pub mod proxy;
mod resolver;
pub mod start;
mod state;
mod streams;
