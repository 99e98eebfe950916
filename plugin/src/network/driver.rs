//! The network driver: networks, endpoints, and what a container's interface is like.
//!
//! A container's MAC is made from its IPv4 address. So a container that comes back with its address
//! is reached by neighbours that still know the old one's MAC.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use tracing::{debug, info, warn};
use weft_api::types::{Bind, JoinNetwork, UsedNetwork};
use weft_api::{Cidr, ContainerId};
use weft_net::attach::inspect;
use weft_net::netns::NetNs;
use weft_wire::{MacAddr, NetworkKey};

use super::link::Ends;
use super::options::{NetworkOptions, user};
use super::pool::Space;
use super::protocol::{
    CreateEndpoint, CreateNetwork, CreatedEndpoint, InterfaceName, Joined, OfEndpoint, OfNetwork,
    StaticRoute,
};
use super::{Plugin, PluginError, Role};
use crate::attach::IFNAME;
use crate::binding::tell;

/// What the ids of endpoints' interfaces begin with.
const ENDPOINT_PREFIX: &str = "docker-endpoint:";
/// Multicast, to which a container on weft gets a route.
const MULTICAST: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 0);

impl Plugin {
    pub(super) async fn create_network(&self, asked: CreateNetwork) -> Result<(), PluginError> {
        let options = NetworkOptions::of_call(&asked.options)?;
        let router = self.router().await?;
        let default = router.network().await?;
        if let Some(asked) = options.mtu.clone()
            && asked != default.mtu.to_string()
        {
            let ours = default.mtu;
            return Err(PluginError::Mtu { asked, ours });
        }
        if asked
            .subnets()
            .any(|data| data.address_space.parse::<Space>().is_err())
        {
            return Err(PluginError::ForeignIpam);
        }
        let first = asked
            .subnets()
            .find_map(|data| data.pool.parse::<Cidr>().ok());
        let key = match self.role {
            Role::Host => options.key(first.filter(|first| Some(*first) != default.default_subnet)),
            // All nodes are told this id.
            Role::Swarm => asked.network.parse().map(NetworkKey::Swarm),
        }?;
        let multicast = options.multicast;
        router
            .join_network(
                &key,
                &user(&asked.network, self.role)?,
                &JoinNetwork { multicast },
            )
            .await?;
        for data in asked.subnets() {
            self.end_making(&data.pool);
        }
        info!(network = asked.network, %key, "Docker made a network");
        Ok(())
    }

    pub(super) async fn delete_network(&self, gone: &OfNetwork) -> Result<(), PluginError> {
        let user = user(&gone.network, self.role)?;
        let router = self.router().await?;
        for used in router.networks_of(&user).await? {
            router.leave_network(&used.network.key, &user).await?;
        }
        info!(network = gone.network, "Docker removed a network");
        Ok(())
    }

    /// What a network of Docker's is to the router. That it is not known must not lead to the default
    /// network: its containers would be where they should not.
    async fn network_of(&self, network: &str) -> Result<UsedNetwork, PluginError> {
        let router = self.router().await?;
        let used = router.networks_of(&user(network, self.role)?).await?;
        let first = used.into_iter().next();
        first.ok_or_else(|| PluginError::UnknownNetwork(network.to_owned()))
    }

    pub(super) async fn create_endpoint(
        &self,
        asked: &CreateEndpoint,
    ) -> Result<CreatedEndpoint, PluginError> {
        let ends = Ends::of(&asked.endpoint)?;
        let network = self.network_of(&asked.network).await?.network;
        let address = &asked.interface.address;
        let mac = match asked.interface.mac_address.as_str() {
            "" => mac(asked),
            given => given
                .parse()
                .map_err(|_| PluginError::Mac(given.to_owned()))?,
        };
        let binding = binding(asked, mac, &ends, network.key.clone())?;
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
        let UsedNetwork { network, multicast } = self.network_of(&asked.network).await?;
        let mut routes = Vec::new();
        if !is_on_weft(&asked.sandbox).await {
            if multicast {
                routes.push(StaticRoute::on_link(MULTICAST.into(), 4));
            }
            routes.extend(network.dns.map(|dns| StaticRoute::on_link(dns.into(), 32)));
        }
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
        let holder = holder(&gone.endpoint)?;
        let told = async { Ok::<_, PluginError>(self.router().await?.unbind(&holder).await?) };
        if let Err(error) = told.await {
            // The router finds out by itself that the interface is gone.
            debug!(endpoint = gone.endpoint, %error, "the router was not told that the endpoint is gone");
        }
        Ok(())
    }
}

/// Whether a container has an interface of ours already, and by it the routes that every one brings: dockerd
/// takes none twice. A namespace that cannot be looked into (we may be in a container) has none.
async fn is_on_weft(sandbox: &str) -> bool {
    let Ok(ns) = NetNs::open(Path::new(sandbox)) else {
        return false;
    };
    let found = inspect(&ns, IFNAME).await;
    found.is_ok_and(|interfaces| !interfaces.is_empty())
}

/// The id under which the router knows an endpoint's interface.
fn holder(endpoint: &str) -> Result<ContainerId, PluginError> {
    let id = ContainerId::new(format!("{ENDPOINT_PREFIX}{endpoint}"));
    id.map_err(|_| PluginError::Endpoint(endpoint.to_owned()))
}

/// What the endpoint's interface will be like.
fn binding(
    asked: &CreateEndpoint,
    mac: MacAddr,
    ends: &Ends,
    network: NetworkKey,
) -> Result<Bind, PluginError> {
    let interface = &asked.interface;
    let addresses = [&interface.address, &interface.address_ipv6];
    let addresses = addresses.into_iter().filter_map(|text| text.parse().ok());
    Ok(Bind {
        container: holder(&asked.endpoint)?,
        network,
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
