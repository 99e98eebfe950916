//! weft with real Docker daemons: three hosts on this machine, each with a dockerd of its own, and
//! what people do with them. Run by `cargo xtask docker`, which installs what is needed.
//!
//! This target is not part of a plain `cargo test` (`test = false` in `Cargo.toml`), so nothing here ever
//! skips itself: whoever runs it has asked for it, and what is missing is an error.
//!
//! Every scenario brings up a [`bed::Bed`] of its own, which goes down with its guard whatever happens; so
//! scenarios may run at once and one that fails leaves the others alone. A new area is a file of its own
//! here with `#[test]` functions.
#![forbid(unsafe_code)]
// The whole file is a test, which clippy knows of functions with the attribute only.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

#[path = "docker/absence.rs"]
mod absence;
#[path = "docker/bed.rs"]
mod bed;
#[path = "docker/command.rs"]
mod command;
#[path = "docker/groups.rs"]
mod groups;
#[path = "docker/images.rs"]
mod images;
#[path = "docker/isolation.rs"]
mod isolation;
#[path = "docker/managers.rs"]
mod managers;
#[path = "docker/names.rs"]
mod names;
#[path = "docker/networks.rs"]
mod networks;
#[path = "docker/overhead.rs"]
mod overhead;
#[path = "docker/plain.rs"]
mod plain;
#[path = "docker/routers.rs"]
mod routers;
#[path = "docker/swarm.rs"]
mod swarm;
#[path = "docker/traces.rs"]
mod traces;
