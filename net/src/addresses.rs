//! Addresses and routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use nix::errno::Errno;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAttribute, NeighbourState};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteScope, RouteType,
};
use rtnetlink::{RouteMessageBuilder, RouteNextHopBuilder};
use weft_wire::MacAddr;

use crate::netlink::{Asked, attribute};
use crate::{Netlink, NetlinkError};

impl Netlink {
    /// Gives a link an address with the length of its subnet's prefix. That it has it is fine; an IPv6 address
    /// of another prefix gets this one, since a link has such an address only once.
    ///
    /// # Errors
    /// If there is no such link, or the prefix is longer than the address.
    pub async fn add_address(
        &self,
        name: &str,
        addr: IpAddr,
        prefix: u8,
    ) -> Result<(), NetlinkError> {
        let index = self.link_index(name).await?;
        let mut request = self.handle().address().add(index, addr, prefix).replace();
        if addr.is_ipv6() {
            let has = self.addresses_of(index).await?;
            let mut has = has.iter().filter_map(cidr_of);
            if let Some((_, other)) = has.find(|(a, p)| *a == addr && *p != prefix) {
                self.del_address(name, addr, other).await?;
            }
            // Nobody else has the address: the ring says so, and a second of asking around would
            // pass before it can be used.
            let flags = AddressAttribute::Flags(AddressFlags::Nodad);
            request.message_mut().attributes.push(flags);
        }
        request
            .execute()
            .await
            .to(|| format!("add the address {addr}/{prefix} to {name}"))
    }

    /// Says which MAC a neighbour on this link has, once and for all: nobody is asked, and the entry does not count
    /// against the limit of the kernel's table of neighbours, which all network namespaces share
    /// (`net.ipv4.neigh.default.gc_thresh3`).
    ///
    /// # Errors
    /// If there is no such link.
    pub async fn add_neighbour(
        &self,
        name: &str,
        addr: IpAddr,
        mac: MacAddr,
    ) -> Result<(), NetlinkError> {
        let index = self.link_index(name).await?;
        let mut entry = self.handle().neighbours().add(index, addr).replace();
        let lladdr = NeighbourAttribute::LinkLayerAddress(mac.to_bytes().to_vec());
        entry.message_mut().attributes.push(lladdr);
        entry.message_mut().header.state = NeighbourState::Permanent;
        let added = entry.execute().await;
        added.to(|| format!("add the neighbour {addr} to {name}"))
    }

    /// Takes an address from a link. That it does not have it is fine.
    ///
    /// # Errors
    /// If there is no such link.
    pub async fn del_address(
        &self,
        name: &str,
        addr: IpAddr,
        prefix: u8,
    ) -> Result<(), NetlinkError> {
        let index = self.link_index(name).await?;
        let mut all = self.addresses_of(index).await?.into_iter();
        let Some(message) = all.find(|message| cidr_of(message) == Some((addr, prefix))) else {
            return Ok(());
        };
        let deleted = self.handle().address().del(message).execute().await;
        deleted.to_unless(Errno::EADDRNOTAVAIL, || {
            format!("delete the address {addr}/{prefix} from {name}")
        })
    }

    /// The addresses of a link with their prefixes, without those IPv6 gives itself (`fe80::/10`).
    ///
    /// # Errors
    /// If there is no such link.
    pub async fn list_addresses(&self, name: &str) -> Result<Vec<(IpAddr, u8)>, NetlinkError> {
        let index = self.link_index(name).await?;
        let messages = self.addresses_of(index).await?;
        Ok(messages
            .iter()
            .filter_map(cidr_of)
            .filter(is_given)
            .collect())
    }

    /// The addresses of all links with their prefixes, without those IPv6 gives itself.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub async fn all_addresses(&self) -> Result<Vec<(IpAddr, u8)>, NetlinkError> {
        let request = self.handle().address().get().execute();
        let messages: Vec<AddressMessage> = request
            .try_collect()
            .await
            .to(|| "list addresses".to_owned())?;
        Ok(messages
            .iter()
            .filter_map(cidr_of)
            .filter(is_given)
            .collect())
    }

    async fn addresses_of(&self, index: u32) -> Result<Vec<AddressMessage>, NetlinkError> {
        let request = self.handle().address().get().set_link_index_filter(index);
        request
            .execute()
            .try_collect()
            .await
            .to(|| "list addresses".to_owned())
    }

    /// Sends what goes to a subnet out of a link, to a gateway if there is one. A route to the same
    /// subnet is replaced.
    ///
    /// # Errors
    /// If there is no such link, or the gateway cannot be reached through it.
    pub async fn add_route(
        &self,
        subnet: (IpAddr, u8),
        gateway: Option<IpAddr>,
        name: &str,
    ) -> Result<(), NetlinkError> {
        let route = Route {
            subnet,
            gateway,
            index: self.link_index(name).await?,
            table: RouteHeader::RT_TABLE_MAIN.into(),
        };
        self.replace_route(route).await
    }

    pub(crate) async fn replace_route(&self, route: Route) -> Result<(), NetlinkError> {
        let request = self.handle().route().add(route.message()).replace();
        request
            .execute()
            .await
            .to(|| format!("add the route {route}"))
    }

    /// Sends what goes to a subnet out of any of some links.
    pub(crate) async fn replace_routes(
        &self,
        subnet: (IpAddr, u8),
        through: &[u32],
        table: u32,
    ) -> Result<(), NetlinkError> {
        let Some((&index, others)) = through.split_first() else {
            return Ok(());
        };
        let route = Route {
            subnet,
            gateway: None,
            index,
            table,
        };
        let mut message = route.message();
        if !others.is_empty() {
            let hop = |index: &u32| RouteNextHopBuilder::new_ipv4().interface(*index).build();
            let hops = RouteAttribute::MultiPath(through.iter().map(hop).collect());
            let is_link = |part: &RouteAttribute| matches!(part, RouteAttribute::Oif(_));
            message.attributes.retain(|part| !is_link(part));
            message.attributes.push(hops);
        }
        let request = self.handle().route().add(message).replace();
        request
            .execute()
            .await
            .to(|| format!("add the route {route}"))
    }

    /// Adds a route unless there is one to that subnet already, through whatever link.
    pub(crate) async fn add_missing_route(&self, route: Route) -> Result<(), NetlinkError> {
        let request = self.handle().route().add(route.message());
        request
            .execute()
            .await
            .to_unless(Errno::EEXIST, || format!("add the route {route}"))
    }

    /// All unicast IPv4 routes of a table.
    pub(crate) async fn list_routes(&self, table: u32) -> Result<Vec<RouteMessage>, NetlinkError> {
        let wanted = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let routes = self.handle().route().get(wanted).execute();
        let mut routes: Vec<RouteMessage> = routes
            .try_collect()
            .await
            .to(|| "list the routes".to_owned())?;
        routes.retain(|route| table_of(route) == table && route.header.kind == RouteType::Unicast);
        Ok(routes)
    }

    pub(crate) async fn del_route(&self, route: RouteMessage) -> Result<(), NetlinkError> {
        let deleted = self.handle().route().del(route).execute().await;
        deleted.to_unless(Errno::ESRCH, || "delete a route".to_owned())
    }
}

/// Where to send what goes to a subnet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Route {
    pub(crate) subnet: (IpAddr, u8),
    pub(crate) gateway: Option<IpAddr>,
    /// The number of the link.
    pub(crate) index: u32,
    pub(crate) table: u32,
}

impl Route {
    fn message(&self) -> RouteMessage {
        let (addr, prefix) = self.subnet;
        let mut message = match addr {
            IpAddr::V4(addr) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(masked_v4(addr, prefix), prefix)
                .output_interface(self.index)
                .table_id(self.table)
                .build(),
            IpAddr::V6(addr) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(masked_v6(addr, prefix), prefix)
                .output_interface(self.index)
                .table_id(self.table)
                .build(),
        };
        match self.gateway {
            Some(gateway) => {
                let gateway = RouteAttribute::Gateway(RouteAddress::from(gateway));
                message.attributes.push(gateway);
            }
            None => message.header.scope = RouteScope::Link,
        }
        message
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "to {}/{}", self.subnet.0, self.subnet.1)
    }
}

/// Whether an address was given to a link, and is not one that IPv6 gives every link (`fe80::/10`).
fn is_given((addr, _): &(IpAddr, u8)) -> bool {
    match addr {
        IpAddr::V4(_) => true,
        IpAddr::V6(addr) => !addr.is_unicast_link_local(),
    }
}

/// The subnet a route leads to; `None` for IPv6.
pub(crate) fn subnet_of(route: &RouteMessage) -> Option<(Ipv4Addr, u8)> {
    let prefix = route.header.destination_prefix_length;
    let addr = attribute!(route.attributes, RouteAttribute::Destination(RouteAddress::Inet(addr)) => *addr);
    // A default route says no destination.
    match (addr, prefix) {
        (Some(addr), prefix) => Some((addr, prefix)),
        (None, 0) => Some((Ipv4Addr::UNSPECIFIED, 0)),
        (None, _) => None,
    }
}

/// The link a route leads through, by number; `None` if it has several.
pub(crate) fn link_of(route: &RouteMessage) -> Option<u32> {
    attribute!(route.attributes, RouteAttribute::Oif(index) => *index)
}

fn table_of(route: &RouteMessage) -> u32 {
    let long = attribute!(route.attributes, RouteAttribute::Table(table) => *table);
    long.unwrap_or(route.header.table.into())
}

/// What a link is given, with its prefix. On a point-to-point link that is the local end.
fn cidr_of(message: &AddressMessage) -> Option<(IpAddr, u8)> {
    let local = attribute!(message.attributes, AddressAttribute::Local(addr) => *addr);
    let address = attribute!(message.attributes, AddressAttribute::Address(addr) => *addr);
    Some((local.or(address)?, message.header.prefix_len))
}

/// The first address of a subnet. A prefix over 32 counts as 32.
pub(crate) fn masked_v4(addr: Ipv4Addr, prefix: u8) -> Ipv4Addr {
    let host_bits = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
    Ipv4Addr::from_bits(addr.to_bits() & !host_bits)
}

/// The first address of a subnet. A prefix over 128 counts as 128.
pub(crate) fn masked_v6(addr: Ipv6Addr, prefix: u8) -> Ipv6Addr {
    let host_bits = u128::MAX.checked_shr(prefix.into()).unwrap_or(0);
    Ipv6Addr::from_bits(addr.to_bits() & !host_bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn subnets_begin_where_the_host_bits_are_zero() {
        let addr = Ipv4Addr::new(10, 47, 255, 255);
        assert_eq!(masked_v4(addr, 12), Ipv4Addr::new(10, 32, 0, 0));
        assert_eq!(masked_v4(addr, 0), Ipv4Addr::UNSPECIFIED);
        assert_eq!(masked_v4(addr, 32), addr);
        assert_eq!(masked_v4(addr, 200), addr);
        let addr: Ipv6Addr = "fd00:1:2:3::7".parse().unwrap();
        assert_eq!(
            masked_v6(addr, 64),
            "fd00:1:2:3::".parse::<Ipv6Addr>().unwrap()
        );
        assert_eq!(masked_v6(addr, 128), addr);
    }

    #[test]
    fn addresses_come_and_go_alone() {
        testing::in_namespace(async |netlink, _| {
            netlink.add_bridge("weft").await.unwrap();
            netlink.keep_secondary_addresses("weft").await.unwrap();
            let first = ("10.32.0.1".parse().unwrap(), 12);
            let second = ("10.32.0.2".parse().unwrap(), 12);
            let third = ("fd00::1".parse().unwrap(), 64);
            for (addr, prefix) in [first, second, third, first, third] {
                netlink.add_address("weft", addr, prefix).await.unwrap();
            }
            assert_eq!(
                netlink.list_addresses("weft").await.unwrap(),
                [first, second, third]
            );
            // The second is in the subnet of the first, and would go with it by default.
            netlink.del_address("weft", first.0, first.1).await.unwrap();
            netlink.del_address("weft", first.0, first.1).await.unwrap();
            assert_eq!(
                netlink.list_addresses("weft").await.unwrap(),
                [second, third]
            );
        });
    }

    #[test]
    fn routes_are_replaced_not_doubled() {
        testing::in_namespace(async |netlink, _| {
            netlink.add_bridge("weft").await.unwrap();
            netlink.set_up("weft").await.unwrap();
            let subnet = ("10.40.0.0".parse().unwrap(), 16);
            netlink.add_route(subnet, None, "weft").await.unwrap();
            netlink.add_route(subnet, None, "weft").await.unwrap();
            let routes = netlink.list_routes(254).await.unwrap();
            assert_eq!(routes.len(), 1);
            assert_eq!(
                subnet_of(&routes[0]),
                Some((Ipv4Addr::new(10, 40, 0, 0), 16))
            );
            assert_eq!(
                link_of(&routes[0]),
                Some(netlink.link_index("weft").await.unwrap())
            );
            netlink.del_route(routes[0].clone()).await.unwrap();
            assert!(netlink.list_routes(254).await.unwrap().is_empty());
        });
    }

    #[test]
    fn a_gateway_must_be_reachable() {
        testing::in_namespace(async |netlink, _| {
            netlink.add_bridge("weft").await.unwrap();
            netlink.set_up("weft").await.unwrap();
            let subnet = ("10.40.0.0".parse().unwrap(), 16);
            let gateway = "192.0.2.1".parse().unwrap();
            let error = netlink
                .add_route(subnet, Some(gateway), "weft")
                .await
                .unwrap_err();
            assert!(
                error
                    .to_string()
                    .starts_with("cannot add the route to 10.40.0.0/16: "),
                "{error}"
            );
        });
    }
}
