//! A container's interface: a veth pair with one end in the container, the other a port of the
//! bridge.
//!
//! ```text
//!   container's namespace │ host's namespace
//!                 ethwe ──┼── weftpl… ── bridge
//! ```
//!
//! A container is a network namespace here, whatever runs in it. All of this runs on threads made
//! for it, one at a time in this process. What was begun runs to its end even if nobody waits for it
//! any more, and what was given up before does not begin: so a [`detach`] called because an
//! [`attach`] was given up finds all that it made.
//!
//! Invariant: a failed [`attach`] leaves no interface behind that was not there before.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::Arc;
use std::{fs, io};

use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::RouteHeader;
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth};
use thiserror::Error;
use tokio::sync::Mutex;
use tracing::warn;
use weft_wire::MacAddr;
use weft_wire::frame::ETHERNET_HEADER;
use weft_wire::message::MAX_FRAME_HEADER;
use weft_wire::packet::OVERHEAD;

use crate::addresses::Route;
use crate::datagrams::{MAX_TRAIN, MAX_TRAIN_BYTES};
use crate::links::{
    checked, is_kind, mac_of, master_of, name_of, peer_namespace_of, peer_of, wait_until_forwarding,
};
use crate::netlink::Asked;
use crate::netns::{EnterError, NetNs, with_netlink};
use crate::{Netlink, NetlinkError};

/// What interface a container should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachSpec {
    /// The bridge it is plugged into.
    pub bridge: String,
    /// The name of the host's end, of at most 15 bytes and no other link's.
    pub host_ifname: String,
    /// The name of the container's end: `ethwe`, or what Docker wants.
    pub ifname: String,
    /// The MAC of the container's end, if it is made anew.
    pub mac: MacAddr,
    /// Its addresses, with the prefixes of their subnets. Those it has already stay.
    pub addresses: Vec<(IpAddr, u8)>,
    /// The network's MTU in bytes.
    pub mtu: u32,
    /// Whether its super-frames are no longer than what the router sends in one train: that spares a second,
    /// short train for the rest, but is no use where the kernel carries frames.
    pub trains: bool,
    /// Whether multicast leaves by it (unless the container has a way for multicast already).
    pub multicast_route: bool,
    /// The resolver's address, if the container should have a way to it.
    pub dns: Option<Ipv4Addr>,
}

/// What interface a container has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The MAC of the container's end: as asked for, or as it was.
    pub mac: MacAddr,
    /// The host's end: as asked for, or as it was if the container was attached already.
    pub host_ifname: String,
}

/// One interface of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceView {
    /// Its name in the container.
    pub name: String,
    /// Its MAC.
    pub mac: MacAddr,
    /// Its addresses with the prefixes of their subnets, without those IPv6 gives itself.
    pub addresses: Vec<(IpAddr, u8)>,
}

/// Why a container's interface is not as it should be.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Enter(#[from] EnterError),
    /// The kernel refused something.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The container shares the host's namespace.
    #[error(
        "the container has the host's own network: it cannot be attached; use `weft expose` to give the host an address"
    )]
    HostNetwork,
    /// There is no bridge.
    #[error("there is no bridge {0}: is the router running? start it with `weft launch`")]
    NoBridge(String),
    /// The host's end would have the name of another link.
    #[error(
        "there is a link {0} on the host already: remove it with `ip link delete {0}` if it is a leftover"
    )]
    HostNameTaken(String),
    /// The container has an interface of this name that is not ours.
    #[error(
        "the container has an interface {ifname} that does not lead to the bridge {bridge}: remove or rename it"
    )]
    Foreign {
        /// Its name.
        ifname: String,
        /// Where it should lead.
        bridge: String,
    },
    /// It is to have an IPv6 address, and cannot.
    #[error(
        "IPv6 is switched off in the container, and cannot be switched on at {ifname}: {source}; in a container, weft needs /proc/sys to be writable (--privileged)"
    )]
    Ipv6 {
        /// Its name.
        ifname: String,
        /// What the system says.
        source: io::Error,
    },
    /// A new interface without a MAC: not Ethernet.
    #[error("the interface {0} has no MAC address")]
    NoMac(String),
}

/// Attaches a container, or gives one that is attached more addresses. The neighbours are told of
/// each address.
///
/// # Errors
/// [`AttachError`] says what to do; an interface that was not there before is gone again.
pub async fn attach(ns: &NetNs, spec: &AttachSpec) -> Result<Attached, AttachError> {
    let (container, own) = (
        ns.try_clone()
            .map_err(|source| EnterError::Enter { source })?,
        own_namespace(ns)?,
    );
    let spec = spec.clone();
    let waiting = Arc::new(());
    let waited_for = Arc::downgrade(&waiting);
    let done = with_netlink(ns, async move |host, there| {
        let _alone = ALONE.lock().await;
        if waited_for.strong_count() == 0 {
            return Err(EnterError::BrokeOff.into());
        }
        let ends = Ends { host, there, own };
        let attempt = Attempt {
            ends,
            container,
            spec,
        };
        attempt.run().await
    });
    let done = done.await;
    drop(waiting);
    done?
}

/// Takes addresses from a container's interface, or all with `None`, and the interface with the last
/// one. Answers which of them it had. That there is nothing to take is fine, and an interface that
/// [`attach`] would not have made is left alone.
///
/// # Errors
/// If the namespace cannot be entered, or the kernel refuses.
pub async fn detach(
    ns: &NetNs,
    ifname: &str,
    addresses: Option<&[(IpAddr, u8)]>,
) -> Result<Vec<(IpAddr, u8)>, AttachError> {
    let own = own_namespace(ns)?;
    let ifname = ifname.to_owned();
    let wanted = addresses.map(<[_]>::to_vec);
    with_netlink(ns, async move |host, there| {
        let _alone = ALONE.lock().await;
        let ends = Ends { host, there, own };
        let there = &ends.there;
        match there.find_link(&ifname).await? {
            Some(link) if ends.host_end(&link).await?.is_some() => {}
            Some(_) | None => return Ok(Vec::new()),
        }
        let has = there.list_addresses(&ifname).await?;
        let goes = |address: &(IpAddr, u8)| {
            wanted
                .as_ref()
                .is_none_or(|wanted| wanted.contains(address))
        };
        let (removed, stay): (Vec<_>, Vec<_>) = has.into_iter().partition(goes);
        if stay.is_empty() {
            there.del_link(&ifname).await?;
        } else {
            there.keep_secondary_addresses(&ifname).await?;
            for (addr, prefix) in &removed {
                there.del_address(&ifname, *addr, *prefix).await?;
            }
        }
        Ok(removed)
    })
    .await?
}

/// All interfaces of a container whose names begin like this, in order.
///
/// # Errors
/// If the namespace cannot be entered, or the kernel refuses.
pub async fn inspect(ns: &NetNs, ifname_prefix: &str) -> Result<Vec<InterfaceView>, AttachError> {
    let prefix = ifname_prefix.to_owned();
    with_netlink(ns, async move |_, there| {
        let mut views = Vec::new();
        for link in there.all_links().await? {
            let name = name_of(&link);
            let Some(mac) = mac_of(&link).filter(|_| name.starts_with(&prefix)) else {
                continue;
            };
            let (name, addresses) = (name.to_owned(), there.list_addresses(name).await?);
            views.push(InterfaceView {
                name,
                mac,
                addresses,
            });
        }
        views.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(views)
    })
    .await?
}

/// Our own namespace, if that of the container is another one.
fn own_namespace(container: &NetNs) -> Result<NetNs, AttachError> {
    let own = NetNs::current().map_err(|source| EnterError::Enter { source })?;
    if container.is_same(&own) {
        return Err(AttachError::HostNetwork);
    }
    Ok(own)
}

/// The two sides of a container's interface.
struct Ends {
    host: Netlink,
    there: Netlink,
    /// The host's side.
    own: NetNs,
}

impl Ends {
    /// The host's end of a container's interface, if it has one.
    async fn host_end(&self, link: &LinkMessage) -> Result<Option<LinkMessage>, NetlinkError> {
        if !is_kind(link, &InfoKind::Veth) {
            return Ok(None);
        }
        // The number of the far end means nothing in another namespace than its own.
        let namespace = peer_namespace_of(link);
        if namespace.is_none() || namespace != self.there.namespace_id(&self.own).await? {
            return Ok(None);
        }
        let links = self.host.all_links().await?;
        Ok(links
            .into_iter()
            .find(|far| Some(far.header.index) == peer_of(link)))
    }
}

/// One attach, on a thread in the container's namespace.
struct Attempt {
    ends: Ends,
    container: NetNs,
    spec: AttachSpec,
}

impl Attempt {
    async fn run(&self) -> Result<Attached, AttachError> {
        let Ends { host, there, .. } = &self.ends;
        let bridge = self.bridge().await?;
        if let Some(link) = there.find_link(&self.spec.ifname).await? {
            let host_ifname = self.adopt(&link, bridge).await?;
            return self.configure(host_ifname).await;
        }
        self.plug_in(bridge).await?;
        let done = self.finish().await;
        if done.is_err()
            && let Err(error) = host.del_link(&self.spec.host_ifname).await
        {
            warn!(link = self.spec.host_ifname, %error, "a half-made interface stays");
        }
        done
    }

    async fn bridge(&self) -> Result<u32, AttachError> {
        match self.ends.host.find_link(&self.spec.bridge).await? {
            Some(link) if is_kind(&link, &InfoKind::Bridge) => Ok(link.header.index),
            Some(_) | None => Err(AttachError::NoBridge(self.spec.bridge.clone())),
        }
    }

    /// The host's end of an interface that is there already. One whose bridge went away, by a reset
    /// say, is plugged into ours.
    async fn adopt(&self, link: &LinkMessage, bridge: u32) -> Result<String, AttachError> {
        let AttachSpec {
            bridge: bridge_name,
            ifname,
            ..
        } = &self.spec;
        let foreign = || AttachError::Foreign {
            ifname: ifname.clone(),
            bridge: bridge_name.clone(),
        };
        let far = self.ends.host_end(link).await?.ok_or_else(foreign)?;
        let host_ifname = name_of(&far).to_owned();
        match master_of(&far) {
            Some(master) if master == bridge => {}
            Some(_) => return Err(foreign()),
            None => {
                self.ends.host.set_master(&host_ifname, bridge_name).await?;
                self.ends.host.set_up(&host_ifname).await?;
            }
        }
        Ok(host_ifname)
    }

    /// Makes both ends, each where it belongs, in one step of the kernel.
    async fn plug_in(&self, bridge: u32) -> Result<(), AttachError> {
        let AttachSpec {
            host_ifname,
            ifname,
            mtu,
            trains,
            ..
        } = &self.spec;
        if self.ends.host.exists(host_ifname).await? {
            return Err(AttachError::HostNameTaken(host_ifname.clone()));
        }
        let mut inside = LinkMessageBuilder::<LinkUnspec>::new()
            .name(checked(ifname)?)
            .address(self.spec.mac.to_bytes().to_vec())
            .mtu(*mtu)
            .setns_by_fd(self.container.as_fd().as_raw_fd());
        if *trains {
            let most = LinkAttribute::GsoMaxSegs(train_len(*mtu));
            inside = inside.append_extra_attribute(most);
        }
        let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(checked(host_ifname)?)
            .mtu(*mtu)
            .controller(bridge)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(inside.build())))
            .build();
        let added = self.ends.host.handle().link().add(pair).execute().await;
        Ok(added.to(|| format!("add the veth pair {host_ifname} and {ifname}"))?)
    }

    async fn finish(&self) -> Result<Attached, AttachError> {
        let host_ifname = &self.spec.host_ifname;
        self.ends.host.set_no_own_addresses(host_ifname).await?;
        self.ends.host.set_up(host_ifname).await?;
        self.configure(host_ifname.clone()).await
    }

    /// Everything that a second attach may change, too.
    async fn configure(&self, host_ifname: String) -> Result<Attached, AttachError> {
        let AttachSpec {
            ifname, addresses, ..
        } = &self.spec;
        if addresses.iter().any(|(addr, _)| addr.is_ipv6()) {
            switch_ipv6_on(ifname)?;
        }
        for (addr, prefix) in addresses {
            self.ends.there.add_address(ifname, *addr, *prefix).await?;
        }
        self.ends.there.set_up(ifname).await?;
        let link = self.ends.there.link(ifname).await?;
        let mac = mac_of(&link).ok_or_else(|| AttachError::NoMac(ifname.clone()))?;
        self.add_routes(link.header.index).await?;
        wait_until_forwarding(&self.ends.host, &host_ifname).await;
        self.announce(mac).await;
        Ok(Attached { mac, host_ifname })
    }

    async fn add_routes(&self, index: u32) -> Result<(), NetlinkError> {
        let route = |addr: Ipv4Addr, prefix| Route {
            subnet: (addr.into(), prefix),
            gateway: None,
            index,
            table: RouteHeader::RT_TABLE_MAIN.into(),
        };
        if self.spec.multicast_route {
            self.ends
                .there
                .add_missing_route(route(MULTICAST, 4))
                .await?;
        }
        if let Some(dns) = self.spec.dns {
            self.ends.there.replace_route(route(dns, 32)).await?;
        }
        Ok(())
    }

    /// The container can be reached without it, only not at once by those who knew the address
    /// before.
    async fn announce(&self, mac: MacAddr) {
        let ifname = &self.spec.ifname;
        if let Err(error) = self.ends.there.announce(ifname, mac).await {
            warn!(ifname, %error, "the neighbours were not told of the container's addresses");
        }
    }
}

/// Docker switches IPv6 off in containers none of whose networks of its own has it. To be called in the
/// container's namespace.
fn switch_ipv6_on(ifname: &str) -> Result<(), AttachError> {
    let conf = Path::new("/proc/sys/net/ipv6/conf").join(ifname);
    let disabled = conf.join("disable_ipv6");
    let failed = |source| AttachError::Ipv6 {
        ifname: ifname.to_owned(),
        source,
    };
    if fs::read_to_string(&disabled).map_err(failed)?.trim() != "0" {
        fs::write(&disabled, "0").map_err(failed)?;
    }
    // Neighbours are told of the addresses when the MAC is set, as of those of IPv4, see `arp.rs`.
    if let Err(error) = fs::write(conf.join("ndisc_notify"), "1") {
        warn!(ifname, %error, "neighbours are not told of the container's IPv6 addresses");
    }
    Ok(())
}

/// How many frames of this MTU go to another host in one train.
fn train_len(mtu: u32) -> u32 {
    let datagram = mtu as usize + ETHERNET_HEADER + MAX_FRAME_HEADER + OVERHEAD;
    let fit = (MAX_TRAIN_BYTES / datagram).clamp(1, MAX_TRAIN);
    // At most MAX_TRAIN.
    fit as u32
}

/// Held by whoever attaches or detaches; their runtimes have nothing else to do than to wait for it.
static ALONE: Mutex<()> = Mutex::const_new(());
const MULTICAST: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 0);

#[cfg(test)]
mod tests;
