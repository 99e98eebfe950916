//! The links of a lab, one call each. Netlink is spoken by a runtime of one thread, so that no other
//! thread of this process is in the way of making namespaces.

use std::fmt::Display;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use tokio::runtime::{Builder, Runtime};
use weft_net::Netlink;
use weft_net::netns::NetNs;

/// The links of the network namespace this process was in when it opened this.
pub(crate) struct Links {
    runtime: Runtime,
    netlink: Netlink,
}

impl Links {
    /// Opens a way to the kernel.
    pub(crate) fn open() -> Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start a runtime")?;
        let netlink = {
            let _guard = runtime.enter();
            Netlink::new().context("cannot open netlink")?
        };
        Ok(Self { runtime, netlink })
    }

    /// Makes a bridge, up.
    pub(crate) fn add_bridge(&self, name: &str) -> Result<()> {
        self.run(
            format_args!("add the bridge {name}"),
            self.netlink.add_bridge(name),
        )?;
        self.up(name)
    }

    /// Makes a pair of links that are wired to each other.
    pub(crate) fn add_veth(&self, one: &str, other: &str) -> Result<()> {
        self.run(
            format_args!("add the links {one} and {other}"),
            self.netlink.add_veth(one, other),
        )
    }

    /// Moves a link into the network namespace of a process.
    pub(crate) fn give_away(&self, link: &str, pid: u32) -> Result<()> {
        let namespace = NetNs::of_pid(pid)
            .with_context(|| format!("cannot open the network of process {pid}"))?;
        self.run(
            format_args!("move the link {link}"),
            self.netlink.set_ns(link, &namespace),
        )
    }

    /// Makes a link a port of a bridge, and takes it up.
    pub(crate) fn plug_in(&self, link: &str, bridge: &str) -> Result<()> {
        self.run(
            format_args!("plug {link} into {bridge}"),
            self.netlink.set_master(link, bridge),
        )?;
        self.up(link)
    }

    /// Renames a link.
    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.run(
            format_args!("rename the link {from}"),
            self.netlink.rename(from, to),
        )
    }

    /// Gives a link an address.
    pub(crate) fn add_address(&self, link: &str, address: Ipv4Addr, prefix: u8) -> Result<()> {
        let call = self.netlink.add_address(link, IpAddr::V4(address), prefix);
        self.run(format_args!("give {link} its address"), call)
    }

    /// Takes a link up.
    pub(crate) fn up(&self, link: &str) -> Result<()> {
        self.run(
            format_args!("take the link {link} up"),
            self.netlink.set_up(link),
        )
    }

    fn run<E>(&self, what: impl Display, call: impl Future<Output = Result<(), E>>) -> Result<()>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        self.runtime
            .block_on(call)
            .with_context(|| format!("cannot {what}"))
    }
}
