//! The kernel's own way to other hosts: a VXLAN device as one more port of the bridge.
//!
//! ```text
//!   container ── bridge ──┬── TAP: whatever is flooded, and MACs of peers the router seals frames for
//!                         └── VXLAN: MACs of peers that let us in; nothing is flooded into it
//! ```
//!
//! The bridge says which MACs are behind the device ([`crate::fdb`]), the device to which host each of
//! them goes ([`send_to`]). Neither learns. An entry of the bridge without one of the device is a hole:
//! who changes both makes the device's first and removes it last.
//!
//! The kernel listens on every address of the host, whatever a device is told. So the device is up only
//! while a [`guard`] stands before the port.
//!
//! Invariant: like those for the bridge, every function brings about a state and may be repeated; one
//! that finds the device as it should be does not disturb what it carries.

pub mod guard;

use std::net::Ipv4Addr;

use futures_util::TryStreamExt;
use nix::errno::Errno;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkInfo, LinkMessage, VxlanDf,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::{LinkMessageBuilder, LinkVxlan};
use thiserror::Error;
use weft_wire::{MacAddr, Network};

use crate::bridge::set_router_port;
use crate::links::{checked, info_of, is_kind};
use crate::netlink::{Asked, attribute};
use crate::{Netlink, NetlinkError};

/// What a device should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanConfig {
    /// Its name, `weft-vx` unless the operator says otherwise.
    pub name: String,
    /// The network it carries; the number of it on the wire, too.
    pub network: Network,
    /// The UDP port it listens on.
    pub port: u16,
}

/// Why there is no device as it should be.
#[derive(Debug, Error)]
pub enum VxlanError {
    /// The kernel refused something.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Something else has the name.
    #[error(
        "there is a link {0} that is not a VXLAN: remove it, or choose another name with --vxlan"
    )]
    NotAVxlan(String),
}

/// Makes the device a port of the bridge, or brings one that is there to the state it should be in, and
/// answers its link number. The [`guard`] must stand before.
///
/// # Errors
/// [`VxlanError`] says what to do.
pub async fn ensure_vxlan(
    netlink: &Netlink,
    config: &VxlanConfig,
    bridge: &str,
) -> Result<u32, VxlanError> {
    let name = &config.name;
    match netlink.find_link(name).await? {
        None => make(netlink, config).await?,
        Some(link) if !is_kind(&link, &InfoKind::Vxlan) => {
            return Err(VxlanError::NotAVxlan(name.clone()));
        }
        Some(link) if is_as(&link, config) => {}
        // Most of what makes it up cannot be changed.
        Some(_) => {
            netlink.del_link(name).await?;
            make(netlink, config).await?;
        }
    }
    netlink.set_no_own_addresses(name).await?;
    netlink.set_mtu(name, MTU).await?;
    netlink.set_master(name, bridge).await?;
    let index = netlink.link_index(name).await?;
    set_router_port(netlink, name, false).await?;
    netlink.set_up(name).await?;
    Ok(index)
}

/// Whether there is such a device, as it should be.
///
/// # Errors
/// If the kernel cannot be asked.
pub async fn is_there(netlink: &Netlink, config: &VxlanConfig) -> Result<bool, NetlinkError> {
    let link = netlink.find_link(&config.name).await?;
    Ok(link.is_some_and(|link| is_as(&link, config)))
}

/// Removes a VXLAN device. That there is none is fine, and another kind of link is left alone.
///
/// # Errors
/// If the kernel refuses.
pub async fn remove(netlink: &Netlink, name: &str) -> Result<(), NetlinkError> {
    match netlink.find_link(name).await? {
        Some(link) if is_kind(&link, &InfoKind::Vxlan) => netlink.del_link(name).await,
        Some(_) | None => Ok(()),
    }
}

/// Has the device send frames for a MAC to a host.
///
/// # Errors
/// If there is no such device.
pub async fn send_to(
    netlink: &Netlink,
    name: &str,
    mac: MacAddr,
    (host, port): (Ipv4Addr, u16),
) -> Result<(), NetlinkError> {
    let index = netlink.link_index(name).await?;
    let mut request = netlink
        .handle()
        .neighbours()
        .add_bridge(index, &mac.to_bytes())
        .flags(NeighbourFlags::Own)
        // One that is not permanent ages out, whatever else it is.
        .state(NeighbourState::Other(PERMANENT_NOARP))
        .destination(host.into())
        .replace();
    let message = request.message_mut();
    message.attributes.push(NeighbourAttribute::Port(port));
    let added = request.execute().await;
    added.to(|| format!("have {name} send frames for {mac} to {host}"))
}

/// Takes that back. That there is no such thing, or no device, is fine.
///
/// # Errors
/// If the kernel refuses.
pub async fn forget(netlink: &Netlink, name: &str, mac: MacAddr) -> Result<(), NetlinkError> {
    let Some(link) = netlink.find_link(name).await? else {
        return Ok(());
    };
    let mut entry = NeighbourMessage::default();
    entry.header.family = AddressFamily::Bridge;
    entry.header.ifindex = link.header.index;
    entry.header.flags = NeighbourFlags::Own;
    let address = NeighbourAttribute::LinkLayerAddress(mac.to_bytes().to_vec());
    entry.attributes.push(address);
    let deleted = netlink.handle().neighbours().del(entry).execute().await;
    deleted.to_unless(Errno::ENOENT, || format!("have {name} forget {mac}"))
}

/// What the device sends where, in order.
///
/// # Errors
/// If there is no such device.
pub async fn entries(
    netlink: &Netlink,
    name: &str,
) -> Result<Vec<(MacAddr, Ipv4Addr)>, NetlinkError> {
    let index = netlink.link_index(name).await?;
    let mut request = netlink.handle().neighbours().get();
    request = request.set_address_family(AddressFamily::Bridge);
    let all: Vec<NeighbourMessage> = request
        .execute()
        .try_collect()
        .await
        .to(|| format!("list what {name} sends where"))?;
    let own = all.iter().filter(|entry| {
        entry.header.ifindex == index && entry.header.flags.contains(NeighbourFlags::Own)
    });
    let mut found: Vec<_> = own.filter_map(destination_of).collect();
    found.sort_unstable();
    Ok(found)
}

fn destination_of(entry: &NeighbourMessage) -> Option<(MacAddr, Ipv4Addr)> {
    let mac = attribute!(entry.attributes, NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice())?;
    let host = attribute!(entry.attributes, NeighbourAttribute::Destination(host) => host)?;
    let host: [u8; 4] = match host {
        NeighbourAddress::Inet(host) => host.octets(),
        // What is told of a bridge's family is not told apart.
        NeighbourAddress::Other(bytes) => bytes.as_slice().try_into().ok()?,
        NeighbourAddress::Inet6(_) | _ => return None,
    };
    Some((MacAddr::from_bytes(mac.try_into().ok()?), host.into()))
}

async fn make(netlink: &Netlink, config: &VxlanConfig) -> Result<(), NetlinkError> {
    let name = checked(&config.name)?;
    let mut device = LinkMessageBuilder::<LinkVxlan>::new(name);
    for part in parts(config) {
        device = device.append_info_data(part);
    }
    let added = netlink.handle().link().add(device.build()).execute().await;
    added.to(|| format!("add the VXLAN {name}; `modprobe vxlan` may help"))
}

/// What the device is told when it is made, and is looked for in one that is there. Without a local
/// address: a host may have several ways to its peers.
fn parts(config: &VxlanConfig) -> [InfoVxlan; 5] {
    [
        InfoVxlan::Id(number_of(config.network)),
        InfoVxlan::Port(config.port),
        InfoVxlan::Learning(false),
        InfoVxlan::Ttl(TTL),
        // Pieces would hide from the beats that a path is too narrow.
        InfoVxlan::Df(VxlanDf::Set),
    ]
}

/// A network's number as the device has it.
fn number_of(network: Network) -> u32 {
    let [a, b, c] = network.to_bytes();
    u32::from_be_bytes([0, a, b, c])
}

fn is_as(link: &LinkMessage, config: &VxlanConfig) -> bool {
    let found = attribute!(info_of(link), LinkInfo::Data(InfoData::Vxlan(found)) => found);
    found.is_some_and(|found| parts(config).iter().all(|part| found.contains(part)))
}

/// Super-frames go through whole; what leaves the host is cut to the container's MTU.
const MTU: u32 = 65_535;
const TTL: u8 = 64;
/// `NUD_PERMANENT | NUD_NOARP` in linux/neighbour.h; the kernel takes neither alone for what it is.
const PERMANENT_NOARP: u16 = 0x80 | 0x40;

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::link::{InfoBridgePort, InfoPortData, LinkFlags};

    use super::*;
    use crate::bridge::{BridgeConfig, ensure_bridge};
    use crate::fdb::{fdb_dump_extern, fdb_replace};
    use crate::links::{master_of, mtu_of};
    use crate::testing;

    const MAC: MacAddr = MacAddr::from_bytes([0x02, 0, 0, 0, 0, 7]);
    const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

    fn config(port: u16) -> VxlanConfig {
        VxlanConfig {
            name: "weft-vx".to_owned(),
            network: Network::DEFAULT,
            port,
        }
    }

    async fn bridge(netlink: &Netlink) -> u32 {
        let config = BridgeConfig {
            name: "weft".to_owned(),
            mac: MacAddr::from_bytes([0x7a, 0, 0, 0, 0, 9]),
            mtu: 1376,
        };
        ensure_bridge(netlink, &config).await.unwrap()
    }

    #[test]
    fn a_device_is_made_by_the_recipe_and_one_that_is_there_is_kept() {
        testing::in_namespace(async |netlink, _| {
            let bridge = bridge(&netlink).await;
            let first = ensure_vxlan(&netlink, &config(6784), "weft").await.unwrap();
            send_to(&netlink, "weft-vx", MAC, (HOST, 6784))
                .await
                .unwrap();
            let second = ensure_vxlan(&netlink, &config(6784), "weft").await.unwrap();
            assert_eq!(first, second);
            assert_eq!(entries(&netlink, "weft-vx").await.unwrap(), [(MAC, HOST)]);
            let link = netlink.link("weft-vx").await.unwrap();
            assert!(is_as(&link, &config(6784)));
            assert_eq!(master_of(&link), Some(bridge));
            assert_eq!(mtu_of(&link), Some(MTU));
            assert!(link.header.flags.contains(LinkFlags::Up));
            let options = attribute!(info_of(&link), LinkInfo::PortData(InfoPortData::BridgePort(options)) => options);
            let options = options.unwrap();
            for option in [
                InfoBridgePort::Learning(false),
                InfoBridgePort::Isolated(true),
                InfoBridgePort::UnicastFlood(false),
                InfoBridgePort::MulticastFlood(false),
                InfoBridgePort::BroadcastFlood(false),
            ] {
                assert!(options.contains(&option), "{option:?} in {options:?}");
            }
            // The network's MTU is not the device's affair.
            assert_eq!(mtu_of(&netlink.link("weft").await.unwrap()), Some(1376));
        });
    }

    #[test]
    fn a_device_with_another_port_is_made_anew() {
        testing::in_namespace(async |netlink, _| {
            bridge(&netlink).await;
            let first = ensure_vxlan(&netlink, &config(6784), "weft").await.unwrap();
            assert!(!is_there(&netlink, &config(7000)).await.unwrap());
            let second = ensure_vxlan(&netlink, &config(7000), "weft").await.unwrap();
            assert_ne!(first, second);
            assert!(is_there(&netlink, &config(7000)).await.unwrap());
        });
    }

    #[test]
    fn another_kind_of_link_is_not_touched() {
        testing::in_namespace(async |netlink, _| {
            bridge(&netlink).await;
            netlink.add_veth("weft-vx", "b").await.unwrap();
            let error = ensure_vxlan(&netlink, &config(6784), "weft")
                .await
                .unwrap_err();
            assert!(error.to_string().contains("--vxlan"), "{error}");
            remove(&netlink, "weft-vx").await.unwrap();
            assert!(netlink.exists("weft-vx").await.unwrap());
        });
    }

    #[test]
    fn entries_are_replaced_and_go_and_those_of_the_bridge_are_apart() {
        testing::in_namespace(async |netlink, _| {
            bridge(&netlink).await;
            ensure_vxlan(&netlink, &config(6784), "weft").await.unwrap();
            let other = Ipv4Addr::new(192, 0, 2, 3);
            send_to(&netlink, "weft-vx", MAC, (HOST, 6784))
                .await
                .unwrap();
            send_to(&netlink, "weft-vx", MAC, (other, 7000))
                .await
                .unwrap();
            fdb_replace(&netlink, MAC, "weft-vx").await.unwrap();
            assert_eq!(entries(&netlink, "weft-vx").await.unwrap(), [(MAC, other)]);
            assert_eq!(fdb_dump_extern(&netlink, "weft-vx").await.unwrap(), [MAC]);
            for _ in 0..2 {
                forget(&netlink, "weft-vx", MAC).await.unwrap();
                assert_eq!(entries(&netlink, "weft-vx").await.unwrap(), []);
                assert_eq!(fdb_dump_extern(&netlink, "weft-vx").await.unwrap(), [MAC]);
            }
            for _ in 0..2 {
                remove(&netlink, "weft-vx").await.unwrap();
                forget(&netlink, "weft-vx", MAC).await.unwrap();
            }
        });
    }
}
