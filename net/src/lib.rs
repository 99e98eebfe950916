//! Everything weft asks of Linux: the bridge, its TAP port, the containers' interfaces, network
//! namespaces, the UDP socket frames travel by, the firewall.
//!
//! The kernel is spoken to by netlink ([`Netlink`], asynchronous) and by files and system calls;
//! only the firewall needs a tool (`nft`). Nothing here knows of peers, sessions or rings: what is
//! done is decided above, and each step says in its error what was refused and what to do about it.
//!
//! * [`bridge`], [`fdb`]: the switch all local containers are plugged into, and what it knows of
//!   remote MACs.
//! * [`tap`], [`taps`], [`udp`]: where frames come from and go to; synchronous, for plain threads.
//! * [`vxlan`]: frames from kernel to kernel, and who may send them; [`packet`]: frames past the kernel.
//! * [`attach`]: a container's interface.
//! * [`netns`]: doing things in another network namespace.
//! * [`forward`]: past the host's packet filter.
//! * [`masquerade`]: address translation for an exposed host.
//! * [`sandbox`]: processes in namespaces of their own, for `weft lab`.
//!
//! Invariant: this is the only crate with `unsafe`, and in it only the files that say so.
#![deny(unsafe_op_in_unsafe_fn)]

mod addresses;
mod arp;
pub mod attach;
pub mod bridge;
mod capability;
pub mod datagrams;
pub mod fdb;
pub mod forward;
mod links;
pub mod masquerade;
mod netlink;
pub mod netns;
mod nft;
pub mod packet;
pub mod priority;
pub mod program;
pub mod sandbox;
pub mod tap;
pub mod taps;
#[cfg(test)]
mod testing;
pub mod udp;
mod uptime;
pub mod vxlan;

pub use capability::has_net_admin;
pub use netlink::{Netlink, NetlinkError};
pub use uptime::uptime;
