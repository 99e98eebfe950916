//! The command line: what people type, the calls that follow, and what is printed.
//!
//! [`args`] and [`launch`] are the arguments, as typed. The root package makes its own top command
//! out of [`ClientCommand`], [`LaunchArgs`] and [`GlobalArgs`], adds what only the router knows, and
//! ends with one of the [`exit`] codes.
#![forbid(unsafe_code)]

pub mod args;
pub mod exit;
pub mod launch;

pub use args::{ClientCommand, GlobalArgs};
pub use launch::LaunchArgs;
