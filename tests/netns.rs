//! The whole product in real namespaces, through `weft lab`: routers, containers and a virtual LAN
//! as on many machines, with nothing in between replaced.
//!
//! Every test brings up labs of its own, so tests may run at once and one that fails leaves the others
//! alone; [`support`] has the guard that takes a lab down whatever happens. What must run *inside* a lab
//! (to send odd frames, to listen on the LAN) is this very program again, see [`helper`].
//!
//! Tests of traffic send `WEFT_TEST_VOLUME` times as much, if that is set.
//!
//! Root is needed. Where `CI` is set these tests never skip themselves.
#![forbid(unsafe_code)]
// The whole file is a test, which clippy knows of functions with the attribute only.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

#[path = "netns/clones.rs"]
mod clones;
#[path = "netns/containers.rs"]
mod containers;
#[path = "netns/dual_stack.rs"]
mod dual_stack;
#[path = "netns/fast.rs"]
mod fast;
#[path = "netns/faults.rs"]
mod faults;
#[path = "netns/frames.rs"]
mod frames;
#[path = "netns/helper.rs"]
mod helper;
#[path = "netns/hostile.rs"]
mod hostile;
#[path = "netns/leftovers.rs"]
mod leftovers;
#[path = "netns/link_layer.rs"]
mod link_layer;
#[path = "netns/machine.rs"]
mod machine;
#[path = "netns/macs.rs"]
mod macs;
#[path = "netns/merge.rs"]
mod merge;
#[path = "netns/nat.rs"]
mod nat;
#[path = "netns/networks.rs"]
mod networks;
#[path = "netns/path.rs"]
mod path;
#[path = "netns/pools.rs"]
mod pools;
#[path = "netns/privacy.rs"]
mod privacy;
#[path = "netns/refusals.rs"]
mod refusals;
#[path = "netns/relay.rs"]
mod relay;
#[path = "netns/rest.rs"]
mod rest;
#[path = "netns/restart.rs"]
mod restart;
#[path = "netns/support.rs"]
mod support;
#[path = "netns/traffic.rs"]
mod traffic;
#[path = "netns/underlay.rs"]
mod underlay;
#[path = "netns/unprivileged.rs"]
mod unprivileged;
