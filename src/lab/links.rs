//! The links of a lab, one call each. Netlink is spoken by a runtime of one thread, so that no other
//! thread of this process is in the way of making namespaces.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use tokio::runtime::{Builder, Runtime};
use weft_net::Netlink;
use weft_net::netns::NetNs;
use weft_wire::MacAddr;

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
            Netlink::new()?
        };
        Ok(Self { runtime, netlink })
    }

    /// Makes a bridge, up.
    pub(crate) fn add_bridge(&self, name: &str) -> Result<()> {
        self.runtime.block_on(async {
            self.netlink.add_bridge(name).await?;
            // The LAN itself is nobody on it.
            self.netlink.set_no_own_addresses(name).await?;
            Ok(self.netlink.set_up(name).await?)
        })
    }

    /// Makes a pair of links that are wired to each other: a port of a bridge, and the far end.
    pub(crate) fn add_port(&self, port: &str, bridge: &str, far: &str) -> Result<()> {
        self.runtime.block_on(async {
            self.netlink.add_veth(port, far).await?;
            self.netlink.set_no_own_addresses(port).await?;
            self.netlink.set_master(port, bridge).await?;
            Ok(self.netlink.set_up(port).await?)
        })
    }

    /// Moves a link into the network namespace of a process.
    pub(crate) fn give_away(&self, link: &str, pid: u32) -> Result<()> {
        let namespace = NetNs::of_pid(pid)
            .with_context(|| format!("cannot open the network of process {pid}"))?;
        Ok(self
            .runtime
            .block_on(self.netlink.set_ns(link, &namespace))?)
    }

    /// Takes a link that was given to us: its name here, its address, and up.
    pub(crate) fn take(&self, link: &str, name: &str, address: Ipv4Addr, prefix: u8) -> Result<()> {
        self.runtime.block_on(async {
            self.netlink.rename(link, name).await?;
            self.netlink
                .add_address(name, IpAddr::V4(address), prefix)
                .await?;
            Ok(self.netlink.set_up(name).await?)
        })
    }

    /// Has a link of ours be known by this MAC, and know these others without asking for theirs.
    pub(crate) fn introduce(
        &self,
        name: &str,
        mac: MacAddr,
        others: impl Iterator<Item = (Ipv4Addr, MacAddr)>,
    ) -> Result<()> {
        self.runtime.block_on(async {
            self.netlink.set_mac(name, mac).await?;
            for (address, mac) in others {
                self.netlink
                    .add_neighbour(name, address.into(), mac)
                    .await?;
            }
            Ok(())
        })
    }

    /// Takes the loopback link up.
    pub(crate) fn loopback(&self) -> Result<()> {
        Ok(self.runtime.block_on(self.netlink.set_up("lo"))?)
    }
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links").finish_non_exhaustive()
    }
}
