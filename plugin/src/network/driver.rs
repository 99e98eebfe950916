//! The network driver: networks, endpoints, and what a container's interface is like.
//!
//! A container's MAC is made from its IPv4 address. So a container that comes back with its address
//! is reached by neighbours that still know the old one's MAC.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use tracing::{debug, info, warn};
use weft_api::types::Bind;
use weft_api::{Cidr, ContainerId};
use weft_wire::MacAddr;

use super::link::Ends;
use super::pool::Space;
use super::protocol::{
    CreateEndpoint, CreateNetwork, CreatedEndpoint, InterfaceName, Joined, OfEndpoint, OfNetwork,
    StaticRoute,
};
use super::{Plugin, PluginError};
use crate::attach::IFNAME;
use crate::binding::tell;

/// What the ids of endpoints' interfaces begin with.
const ENDPOINT_PREFIX: &str = "docker-endpoint:";
/// Multicast, to which a container on weft gets a route.
const MULTICAST: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 0);

impl Plugin {
    pub(super) async fn create_network(&self, asked: CreateNetwork) -> Result<(), PluginError> {
        let network = self.router.network().await?;
        let own = network.default_subnet.map(|subnet| subnet.to_string());
        for data in &asked.ipv4 {
            if data.address_space.parse::<Space>().is_err() {
                return Err(PluginError::ForeignIpam);
            }
            if Some(&data.pool) != own.as_ref() {
                return Err(PluginError::OwnSubnet);
            }
            self.end_making(&data.pool);
        }
        info!(network = asked.network, "Docker made a network");
        Ok(())
    }

    pub(super) fn delete_network(&self, gone: &OfNetwork) {
        info!(network = gone.network, "Docker removed a network");
    }

    pub(super) async fn create_endpoint(
        &self,
        asked: &CreateEndpoint,
    ) -> Result<CreatedEndpoint, PluginError> {
        let ends = Ends::of(&asked.endpoint)?;
        let network = self.router.network().await?;
        let address = &asked.interface.address;
        let mac = match asked.interface.mac_address.as_str() {
            "" => mac(asked),
            given => given
                .parse()
                .map_err(|_| PluginError::Mac(given.to_owned()))?,
        };
        let binding = binding(asked, mac, &ends)?;
        if let Some(note) = tell(&self.router, &binding).await {
            warn!(endpoint = asked.endpoint, "{note}");
        }
        ends.make(&network.bridge, network.mtu, address).await?;
        let mut interface = BTreeMap::new();
        if asked.interface.mac_address.is_empty() {
            interface.insert("MacAddress", mac.to_string());
        }
        Ok(CreatedEndpoint { interface })
    }

    pub(super) async fn join(&self, asked: &OfEndpoint) -> Result<Joined, PluginError> {
        let ends = Ends::of(&asked.endpoint)?;
        if !ends.is_there().await? {
            return Err(PluginError::NoEndpoint(asked.endpoint.clone()));
        }
        let network = self.router.network().await?;
        let mut routes = vec![StaticRoute::on_link(MULTICAST.into(), 4)];
        let dns = network.dns.map(|dns| StaticRoute::on_link(dns.into(), 32));
        routes.extend(dns);
        Ok(Joined {
            interface_name: InterfaceName {
                src_name: ends.guest,
                dst_prefix: IFNAME,
            },
            static_routes: routes,
        })
    }

    /// `Leave` and `DeleteEndpoint` alike: whichever comes takes the interface away.
    pub(super) async fn remove_endpoint(&self, gone: &OfEndpoint) -> Result<(), PluginError> {
        Ends::of(&gone.endpoint)?.remove().await?;
        if let Err(error) = self.router.unbind(&holder(&gone.endpoint)?).await {
            // The router finds out by itself that the interface is gone.
            debug!(endpoint = gone.endpoint, %error, "the router was not told that the endpoint is gone");
        }
        Ok(())
    }
}

/// The id under which the router knows an endpoint's interface.
fn holder(endpoint: &str) -> Result<ContainerId, PluginError> {
    let id = ContainerId::new(format!("{ENDPOINT_PREFIX}{endpoint}"));
    id.map_err(|_| PluginError::Endpoint(endpoint.to_owned()))
}

/// What the endpoint's interface will be like.
fn binding(asked: &CreateEndpoint, mac: MacAddr, ends: &Ends) -> Result<Bind, PluginError> {
    let interface = &asked.interface;
    let addresses = [&interface.address, &interface.address_ipv6];
    let addresses = addresses.into_iter().filter_map(|text| text.parse().ok());
    Ok(Bind {
        container: holder(&asked.endpoint)?,
        mac,
        port: ends.host.clone(),
        addresses: addresses.map(|cidr: Cidr| cidr.addr()).collect(),
    })
}

/// A MAC for an endpoint: locally administered, from its IPv4 address, or else its id.
fn mac(asked: &CreateEndpoint) -> MacAddr {
    let address = asked.interface.address.parse::<Cidr>().map(Cidr::addr);
    let [a, b, c, d] = match address {
        Ok(IpAddr::V4(addr)) => addr.octets(),
        Ok(IpAddr::V6(_)) | Err(_) => {
            // FNV-1a, 32 bits.
            let mix = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
            asked.endpoint.bytes().fold(0x811c_9dc5, mix).to_be_bytes()
        }
    };
    MacAddr::from_bytes([0x02, 0x57, a, b, c, d])
}
