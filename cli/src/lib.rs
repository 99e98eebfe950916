//! The command line: what people type, the calls that follow, and what is printed.
//!
//! [`args`], [`launch`] and [`proxy`] are the arguments, as typed; [`run()`] does every command but
//! `launch` and `proxy`, which run for long; [`status`] turns the report into the text of `weft status`, and
//! [`template`] fills in `weft report --format`.
//!
//! The root package makes its own top command out of [`ClientCommand`], [`LaunchArgs`] and
//! [`GlobalArgs`], adds what only the router knows, and ends with one of the [`exit`] codes.
//!
//! Invariant: standard output carries what was asked for and nothing else, as text or as one JSON
//! value; everything else goes to standard error. A reader that goes away early is no error.
#![forbid(unsafe_code)]

pub mod args;
mod docker;
pub mod exit;
pub mod launch;
mod output;
pub mod proxy;
mod reset;
mod run;
pub mod status;
pub mod template;
#[cfg(test)]
mod testing;

pub use args::{ClientCommand, GlobalArgs};
pub use launch::LaunchArgs;
pub use output::{Output, Paint};
pub use proxy::ProxyArgs;
pub use run::run;
