//! The bridge all local containers are plugged into, and the router's port on it.
//!
//! ```text
//!   container   container         ─┐
//!       │           │              │ veth ports: learning, flooding
//!   ┌───┴───────────┴────────────┐ ┘
//!   │ bridge: the PeerName's MAC,│── host: 169.254.67.83 (names), exposed addresses
//!   │ no snooping, no STP        │
//!   └───┬────────────────────────┘
//!       │ TAP port: no learning, isolated
//!     router
//! ```
//!
//! The router's port does not learn: one flooded frame from afar would otherwise bind its sender to
//! the TAP for the whole ageing time, wherever the entries of [`crate::fdb`] say it is. It is
//! isolated, so that frames never pass between it and another isolated port without a decision of
//! the router.
//!
//! Invariant: every function here brings about a state, whatever was there before, so all of them
//! may be repeated.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use futures_util::TryStreamExt;
use nix::errno::Errno;
use rtnetlink::packet_route::link::{BridgeStpState, InfoKind, LinkMessage};
use rtnetlink::packet_route::route::RouteHeader;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{IpVersion, LinkBridge, LinkBridgePort, LinkMessageBuilder};
use thiserror::Error;
use weft_wire::MacAddr;

use crate::addresses::{link_of, masked_v4, subnet_of};
use crate::links::{is_kind, mtu_of, name_of};
use crate::netlink::{Asked, attribute};
use crate::{Netlink, NetlinkError};

/// What a bridge should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeConfig {
    /// Its name, `weft` unless the operator says otherwise.
    pub name: String,
    /// Its MAC. Without one of its own it would take that of its lowest port, and change it.
    pub mac: MacAddr,
    /// The network's MTU in bytes, the same on all peers.
    pub mtu: u32,
}

/// Why there is no bridge as it should be.
#[derive(Debug, Error)]
pub enum BridgeError {
    /// The kernel refused something.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Something else has the name.
    #[error(
        "there is a link {0} that is not a bridge: remove it, or choose another name with --bridge"
    )]
    NotABridge(String),
    /// A container could make the host take it for a router.
    #[error(
        "cannot turn IPv6 router advertisements on {bridge} off in {}: {source}; in a container, weft needs /proc/sys to be writable (--privileged)",
        path.display()
    )]
    RouterAdvertisements {
        /// The bridge.
        bridge: String,
        /// The setting.
        path: PathBuf,
        /// How it failed.
        source: io::Error,
    },
    /// The pool is not one the resolver's address can be reached from.
    #[error("the resolver's address {addr} is IPv4, but the pool {pool} is not")]
    PoolFamily {
        /// The resolver's address.
        addr: Ipv4Addr,
        /// The pool's first address.
        pool: IpAddr,
    },
}

/// Makes the bridge, or brings an existing one to the state it should be in, and answers its link
/// number. To be called in the network namespace of `netlink`.
///
/// # Errors
/// [`BridgeError`] says what to do.
pub async fn ensure_bridge(netlink: &Netlink, config: &BridgeConfig) -> Result<u32, BridgeError> {
    let name = &config.name;
    match netlink.find_link(name).await? {
        None => netlink.add_bridge(name).await?,
        Some(link) if is_kind(&link, &InfoKind::Bridge) => {}
        Some(_) => return Err(BridgeError::NotABridge(name.clone())),
    }
    let link = netlink.link(name).await?;
    let index = link.header.index;
    let recipe = LinkMessageBuilder::<LinkBridge>::new(name)
        .index(index)
        .address(config.mac.to_bytes().to_vec())
        .mcast_snooping(false)
        .stp_state(BridgeStpState::Disabled)
        .build();
    let changed = netlink.handle().link().change(recipe).execute().await;
    changed.to(|| format!("set the bridge {name} up"))?;
    netlink.set_no_own_addresses(name).await?;
    refuse_router_advertisements(name)?;
    netlink.keep_secondary_addresses(name).await?;
    pin_mtu(netlink, &link, config).await?;
    netlink.set_up(name).await?;
    Ok(index)
}

/// Sets the MTU so that it stays. A bridge whose MTU was never *changed* follows its ports', so one
/// that happens to have the right one is given another first.
async fn pin_mtu(
    netlink: &Netlink,
    link: &LinkMessage,
    config: &BridgeConfig,
) -> Result<(), NetlinkError> {
    if mtu_of(link) == Some(config.mtu) {
        // Not less if there is more: below 1280 a link loses its IPv6 addresses.
        let other = if config.mtu < MAX_MTU {
            config.mtu + 1
        } else {
            config.mtu - 1
        };
        netlink.set_mtu(&config.name, other).await?;
    }
    netlink.set_mtu(&config.name, config.mtu).await
}

/// With `accept_ra` on, any container can become the host's IPv6 router (CVE-2020-11091).
fn refuse_router_advertisements(bridge: &str) -> Result<(), BridgeError> {
    let path = PathBuf::from(format!("/proc/sys/net/ipv6/conf/{bridge}/accept_ra"));
    match fs::read(&path) {
        // No IPv6 here.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(value) if value.trim_ascii() == b"0" => Ok(()),
        Ok(_) | Err(_) => {
            fs::write(&path, "0").map_err(|source| BridgeError::RouterAdvertisements {
                bridge: bridge.to_owned(),
                path,
                source,
            })
        }
    }
}

/// Removes a link. That there is none is fine.
///
/// # Errors
/// If the kernel refuses.
pub async fn remove_link(netlink: &Netlink, name: &str) -> Result<(), NetlinkError> {
    netlink.del_link(name).await
}

/// Makes the router's TAP a port of the bridge: no learning, isolated, flooded to, and up.
///
/// # Errors
/// If one of the links is missing.
pub async fn enslave_tap(netlink: &Netlink, tap: &str, bridge: &str) -> Result<(), NetlinkError> {
    netlink.set_no_own_addresses(tap).await?;
    netlink.set_mtu(tap, TAP_MTU).await?;
    netlink.set_master(tap, bridge).await?;
    set_router_port(netlink, tap, true).await?;
    netlink.set_up(tap).await
}

/// Makes a port of a bridge one that only the router decides about: no learning, isolated. Frames to nobody
/// in particular go there if it is `flooded`.
pub(crate) async fn set_router_port(
    netlink: &Netlink,
    name: &str,
    flooded: bool,
) -> Result<(), NetlinkError> {
    let port = LinkBridgePort::new(netlink.link_index(name).await?)
        .learning(false)
        .isolated(true)
        .flood(flooded)
        .mcast_flood(flooded)
        .bcast_flood(flooded);
    let set = netlink
        .handle()
        .link()
        .set_port(port.build())
        .execute()
        .await;
    set.to(|| format!("set the bridge port {name} up"))
}

/// Gives a link an address. That it has it is fine.
///
/// # Errors
/// If there is no such link.
pub async fn add_address(
    netlink: &Netlink,
    name: &str,
    addr: IpAddr,
    prefix: u8,
) -> Result<(), NetlinkError> {
    netlink.add_address(name, addr, prefix).await
}

/// Takes an address from a link. That it does not have it is fine.
///
/// # Errors
/// If there is no such link.
pub async fn del_address(
    netlink: &Netlink,
    name: &str,
    addr: IpAddr,
    prefix: u8,
) -> Result<(), NetlinkError> {
    netlink.del_address(name, addr, prefix).await
}

/// What notes at the links of networks beside the default one begin with, where that one's bridge is
/// `bridge`.
pub fn note_of(bridge: &str) -> String {
    format!("weft network beside {bridge}: ")
}

/// Puts the resolver's address on the bridges, and has what is sent from it to the pools leave by them,
/// whatever the host's own routes say of them. The host needs no address in a pool.
///
/// Containers of any pool may be at any bridge, so each pool's route leads through all: by which one an
/// answer leaves, the socket says that it is sent from.
///
/// # Errors
/// [`BridgeError::PoolFamily`] for an IPv6 pool, or what the kernel refused.
pub async fn dns_address(
    netlink: &Netlink,
    bridges: &[&str],
    addr: Ipv4Addr,
    pools: &[(IpAddr, u8)],
) -> Result<(), BridgeError> {
    let subnet = |(first, prefix): &(IpAddr, u8)| match first {
        IpAddr::V4(first) => Ok((masked_v4(*first, *prefix), *prefix)),
        IpAddr::V6(_) => Err(BridgeError::PoolFamily { addr, pool: *first }),
    };
    let subnets: Vec<_> = pools.iter().map(subnet).collect::<Result<_, _>>()?;
    let mut through = Vec::new();
    for bridge in bridges {
        through.push(netlink.link_index(bridge).await?);
        netlink.add_address(bridge, addr.into(), 32).await?;
    }
    for route in netlink.list_routes(DNS_TABLE).await? {
        if !subnet_of(&route).is_some_and(|subnet| subnets.contains(&subnet)) {
            netlink.del_route(route).await?;
        }
    }
    for subnet in pools {
        netlink.replace_routes(*subnet, &through, DNS_TABLE).await?;
    }
    let (ours, others): (Vec<_>, Vec<_>) = dns_rules(netlink)
        .await?
        .into_iter()
        .partition(|rule| source_of(rule) == Some((addr.into(), 32)));
    for rule in others.into_iter().chain(ours.iter().skip(1).cloned()) {
        del_rule(netlink, rule).await?;
    }
    if ours.is_empty() {
        add_rule(netlink, addr).await?;
    }
    Ok(())
}

/// Takes back what [`dns_address`] did. That there is nothing of it is fine.
///
/// # Errors
/// If the kernel refuses.
pub async fn remove_dns_address(
    netlink: &Netlink,
    bridge: &str,
    addr: Ipv4Addr,
) -> Result<(), NetlinkError> {
    for rule in dns_rules(netlink).await? {
        del_rule(netlink, rule).await?;
    }
    for route in netlink.list_routes(DNS_TABLE).await? {
        netlink.del_route(route).await?;
    }
    match netlink.del_address(bridge, addr.into(), 32).await {
        Err(NetlinkError::NoLink(_)) => Ok(()),
        other => other,
    }
}

async fn dns_rules(netlink: &Netlink) -> Result<Vec<RuleMessage>, NetlinkError> {
    let rules = netlink.handle().rule().get(IpVersion::V4).execute();
    let mut rules: Vec<RuleMessage> = rules
        .try_collect()
        .await
        .to(|| "list the routing rules".to_owned())?;
    rules.retain(|rule| {
        rule.attributes.contains(&RuleAttribute::Table(DNS_TABLE))
            && rule
                .attributes
                .contains(&RuleAttribute::Priority(DNS_PRIORITY))
    });
    Ok(rules)
}

async fn add_rule(netlink: &Netlink, addr: Ipv4Addr) -> Result<(), NetlinkError> {
    let request = netlink
        .handle()
        .rule()
        .add()
        .v4()
        .source_prefix(addr, 32)
        .table_id(DNS_TABLE)
        .priority(DNS_PRIORITY)
        .action(RuleAction::ToTable);
    request
        .execute()
        .await
        .to(|| format!("add the routing rule for {addr}"))
}

async fn del_rule(netlink: &Netlink, rule: RuleMessage) -> Result<(), NetlinkError> {
    let deleted = netlink.handle().rule().del(rule).execute().await;
    deleted.to_unless(Errno::ENOENT, || "delete a routing rule".to_owned())
}

fn source_of(rule: &RuleMessage) -> Option<(IpAddr, u8)> {
    let addr = attribute!(rule.attributes, RuleAttribute::Source(addr) => *addr);
    Some((addr?, rule.header.src_len))
}

/// The host's routes that overlap a pool, in words ("10.32.0.0/16 through eth0"): hosts behind them
/// and containers would take each other's addresses. Default routes and those through `bridge` do
/// not count. There are none for an IPv6 pool, which is chosen from its owner's own space.
///
/// # Errors
/// If the kernel cannot be asked.
pub async fn overlapping_routes(
    netlink: &Netlink,
    pool: (IpAddr, u8),
    bridge: &str,
) -> Result<Vec<String>, NetlinkError> {
    let (IpAddr::V4(pool_first), pool_prefix) = pool else {
        return Ok(Vec::new());
    };
    let links = netlink.all_links().await?;
    let name = |index: u32| {
        links
            .iter()
            .find(|link| link.header.index == index)
            .map(name_of)
    };
    let mut found = Vec::new();
    for route in netlink
        .list_routes(RouteHeader::RT_TABLE_MAIN.into())
        .await?
    {
        let Some((first, prefix)) = subnet_of(&route) else {
            continue;
        };
        let common = prefix.min(pool_prefix);
        let through = link_of(&route).and_then(name);
        if prefix == 0
            || through == Some(bridge)
            || masked_v4(first, common) != masked_v4(pool_first, common)
        {
            continue;
        }
        found.push(match through {
            Some(link) => format!("{first}/{prefix} through {link}"),
            None => format!("{first}/{prefix}"),
        });
    }
    Ok(found)
}

/// The longest the kernel lets a TAP have: super-frames are as long as an IP packet can be.
const TAP_MTU: u32 = 65_521;
/// The longest a bridge can have.
const MAX_MTU: u32 = 65_535;
/// The routing table and the rule's priority for the resolver's answers: the number of weft's ports,
/// so that who sees it in `ip rule` knows whose it is.
const DNS_TABLE: u32 = 6783;
const DNS_PRIORITY: u32 = 6783;

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridge, InfoBridgePort, InfoData,
        InfoPortData, LinkAttribute, LinkFlags, LinkInfo,
    };

    use super::*;
    use crate::links::{info_of, mac_of, master_of};
    use crate::tap::Tap;
    use crate::testing;

    const MAC: MacAddr = MacAddr::from_bytes([0x7a, 1, 2, 3, 4, 5]);
    const DNS: Ipv4Addr = Ipv4Addr::new(169, 254, 67, 83);

    fn config(mtu: u32) -> BridgeConfig {
        BridgeConfig {
            name: "weft".to_owned(),
            mac: MAC,
            mtu,
        }
    }

    fn pool(text: &str) -> (IpAddr, u8) {
        let (addr, prefix) = text.split_once('/').unwrap();
        (addr.parse().unwrap(), prefix.parse().unwrap())
    }

    async fn assert_recipe(netlink: &Netlink, mtu: u32) {
        let link = netlink.link("weft").await.unwrap();
        assert_eq!(mac_of(&link), Some(MAC));
        assert_eq!(mtu_of(&link), Some(mtu));
        assert!(link.header.flags.contains(LinkFlags::Up));
        let options =
            attribute!(info_of(&link), LinkInfo::Data(InfoData::Bridge(options)) => options);
        let options = options.unwrap();
        assert!(options.contains(&InfoBridge::MulticastSnooping(false)));
        assert!(options.contains(&InfoBridge::StpState(BridgeStpState::Disabled)));
        assert_eq!(address_mode(&link), Some(In6AddrGenMode::None));
        let accept_ra = fs::read_to_string("/proc/sys/net/ipv6/conf/weft/accept_ra").unwrap();
        assert_eq!(accept_ra.trim(), "0");
    }

    fn address_mode(link: &LinkMessage) -> Option<In6AddrGenMode> {
        let families =
            attribute!(link.attributes, LinkAttribute::AfSpecUnspec(families) => families)?;
        let inet6 = attribute!(families, AfSpecUnspec::Inet6(inet6) => inet6)?;
        attribute!(inet6, AfSpecInet6::AddrGenMode(mode) => *mode)
    }

    #[test]
    fn a_bridge_is_made_by_the_recipe_and_stays_so() {
        testing::in_namespace(async |netlink, _| {
            let first = ensure_bridge(&netlink, &config(1376)).await.unwrap();
            assert_recipe(&netlink, 1376).await;
            let second = ensure_bridge(&netlink, &config(1376)).await.unwrap();
            assert_recipe(&netlink, 1376).await;
            assert_eq!(first, second);
        });
    }

    #[test]
    fn a_bridge_of_somebody_else_is_brought_to_the_same_state() {
        testing::in_namespace(async |netlink, _| {
            let other = LinkMessageBuilder::<LinkBridge>::new("weft")
                .stp_state(BridgeStpState::KernelStp)
                .build();
            netlink.handle().link().add(other).execute().await.unwrap();
            netlink.set_up("weft").await.unwrap();
            ensure_bridge(&netlink, &config(9000)).await.unwrap();
            assert_recipe(&netlink, 9000).await;
        });
    }

    #[test]
    fn the_mtu_stays_whatever_ports_come_and_go() {
        // 1500 is what a new bridge has, so setting it changes nothing and would not count.
        for mtu in [1376, 1500, 65_535] {
            testing::in_namespace(async move |netlink, _| {
                ensure_bridge(&netlink, &config(mtu)).await.unwrap();
                let _tap = Tap::attach("weft-tap").unwrap();
                enslave_tap(&netlink, "weft-tap", "weft").await.unwrap();
                assert_recipe(&netlink, mtu).await;
                netlink.add_veth("a", "b").await.unwrap();
                netlink.set_mtu("a", 1280).await.unwrap();
                netlink.set_master("a", "weft").await.unwrap();
                assert_recipe(&netlink, mtu).await;
            });
        }
    }

    #[test]
    fn another_kind_of_link_is_not_touched() {
        testing::in_namespace(async |netlink, _| {
            netlink.add_veth("weft", "b").await.unwrap();
            let error = ensure_bridge(&netlink, &config(1376)).await.unwrap_err();
            assert!(matches!(error, BridgeError::NotABridge(_)));
            assert!(error.to_string().contains("--bridge"), "{error}");
            remove_link(&netlink, "weft").await.unwrap();
            remove_link(&netlink, "weft").await.unwrap();
        });
    }

    #[test]
    fn the_routers_port_does_not_learn_and_is_isolated() {
        testing::in_namespace(async |netlink, _| {
            let bridge = ensure_bridge(&netlink, &config(1376)).await.unwrap();
            let _tap = Tap::attach("weft-tap").unwrap();
            for _ in 0..2 {
                enslave_tap(&netlink, "weft-tap", "weft").await.unwrap();
                let link = netlink.link("weft-tap").await.unwrap();
                assert_eq!(master_of(&link), Some(bridge));
                assert_eq!(mtu_of(&link), Some(65_521));
                assert_eq!(address_mode(&link), Some(In6AddrGenMode::None));
                assert!(link.header.flags.contains(LinkFlags::Up));
                let options = port_options(&link);
                for option in [
                    InfoBridgePort::Learning(false),
                    InfoBridgePort::Isolated(true),
                    InfoBridgePort::UnicastFlood(true),
                    InfoBridgePort::MulticastFlood(true),
                    InfoBridgePort::BroadcastFlood(true),
                ] {
                    assert!(options.contains(&option), "{option:?} in {options:?}");
                }
            }
        });
    }

    fn port_options(link: &LinkMessage) -> &[InfoBridgePort] {
        let data = attribute!(info_of(link), LinkInfo::PortData(InfoPortData::BridgePort(options)) => options.as_slice());
        data.unwrap()
    }

    #[test]
    fn the_resolvers_address_is_there_once_however_often_it_is_put() {
        testing::in_namespace(async |netlink, _| {
            ensure_bridge(&netlink, &config(1376)).await.unwrap();
            for range in ["10.32.0.0/12", "10.32.0.0/12", "10.99.1.7/16"] {
                dns_address(&netlink, &["weft"], DNS, &[pool(range)])
                    .await
                    .unwrap();
                assert_eq!(
                    netlink.list_addresses("weft").await.unwrap(),
                    [(DNS.into(), 32)]
                );
                assert_eq!(dns_rules(&netlink).await.unwrap().len(), 1);
                assert_eq!(netlink.list_routes(DNS_TABLE).await.unwrap().len(), 1);
            }
            let routes = netlink.list_routes(DNS_TABLE).await.unwrap();
            assert_eq!(
                subnet_of(&routes[0]),
                Some((Ipv4Addr::new(10, 99, 0, 0), 16))
            );
            for _ in 0..2 {
                remove_dns_address(&netlink, "weft", DNS).await.unwrap();
                assert_eq!(netlink.list_addresses("weft").await.unwrap(), []);
                assert_eq!(dns_rules(&netlink).await.unwrap().len(), 0);
                assert_eq!(netlink.list_routes(DNS_TABLE).await.unwrap().len(), 0);
            }
        });
    }

    #[test]
    fn the_resolver_answers_to_every_pool_that_there_is() {
        testing::in_namespace(async |netlink, _| {
            ensure_bridge(&netlink, &config(1376)).await.unwrap();
            let (first, second) = (pool("10.32.0.0/12"), pool("172.30.0.0/24"));
            for pools in [&[first][..], &[first, second], &[second], &[]] {
                dns_address(&netlink, &["weft"], DNS, pools).await.unwrap();
                let routes = netlink.list_routes(DNS_TABLE).await.unwrap();
                let mut found: Vec<_> = routes.iter().filter_map(subnet_of).collect();
                found.sort_unstable();
                let found: Vec<_> = found.into_iter().map(|(a, p)| (a.into(), p)).collect();
                assert_eq!(found, pools);
            }
        });
    }

    #[test]
    fn the_rule_follows_the_resolvers_address() {
        testing::in_namespace(async |netlink, _| {
            ensure_bridge(&netlink, &config(1376)).await.unwrap();
            let range = &[pool("10.32.0.0/12")];
            dns_address(&netlink, &["weft"], Ipv4Addr::new(169, 254, 1, 1), range)
                .await
                .unwrap();
            dns_address(&netlink, &["weft"], DNS, range).await.unwrap();
            let rules = dns_rules(&netlink).await.unwrap();
            assert_eq!(
                rules.iter().filter_map(source_of).collect::<Vec<_>>(),
                [(DNS.into(), 32)]
            );
            let error = dns_address(&netlink, &["weft"], DNS, &[pool("fd00::/64")])
                .await
                .unwrap_err();
            assert!(matches!(error, BridgeError::PoolFamily { .. }));
        });
    }

    #[test]
    fn routes_that_overlap_the_pool_are_told() {
        testing::in_namespace(async |netlink, _| {
            ensure_bridge(&netlink, &config(1376)).await.unwrap();
            netlink.add_bridge("eth0").await.unwrap();
            netlink.set_up("eth0").await.unwrap();
            for range in [
                "0.0.0.0/0",
                "10.40.0.0/16",
                "10.0.0.0/8",
                "10.48.0.0/16",
                "192.168.0.0/16",
            ] {
                netlink.add_route(pool(range), None, "eth0").await.unwrap();
            }
            netlink
                .add_route(pool("10.33.0.0/16"), None, "weft")
                .await
                .unwrap();
            let range = pool("10.32.0.0/12");
            let found = overlapping_routes(&netlink, range, "weft").await.unwrap();
            assert_eq!(
                found,
                ["10.0.0.0/8 through eth0", "10.40.0.0/16 through eth0"]
            );
            assert!(
                overlapping_routes(&netlink, pool("10.64.0.1/16"), "weft")
                    .await
                    .unwrap()
                    == ["10.0.0.0/8 through eth0"]
            );
        });
    }
}
