//! The network driver: networks, endpoints, and what a container's interface is like.
//!
//! A container's MAC is made from its IPv4 address. So a container that comes back with its address
//! is reached by neighbours that still know the old one's MAC.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use tracing::info;
use weft_api::Cidr;

use super::link::Ends;
use super::pool::Space;
use super::protocol::{
    CreateEndpoint, CreateNetwork, CreatedEndpoint, InterfaceName, Joined, OfEndpoint, OfNetwork,
    StaticRoute,
};
use super::{Plugin, PluginError};
use crate::attach::IFNAME;

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
        ends.make(&network.bridge, network.mtu, address).await?;
        let mut interface = BTreeMap::new();
        if asked.interface.mac_address.is_empty() {
            interface.insert("MacAddress", mac(asked));
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
        Ends::of(&gone.endpoint)?.remove().await
    }
}

/// A MAC for an endpoint: locally administered, from its IPv4 address, or else its id.
fn mac(asked: &CreateEndpoint) -> String {
    let address = asked.interface.address.parse::<Cidr>().map(Cidr::addr);
    let [a, b, c, d] = match address {
        Ok(IpAddr::V4(addr)) => addr.octets(),
        Ok(IpAddr::V6(_)) | Err(_) => {
            // FNV-1a, 32 bits.
            let mix = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
            asked.endpoint.bytes().fold(0x811c_9dc5, mix).to_be_bytes()
        }
    };
    format!("02:57:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}
