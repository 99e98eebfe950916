//! What dockerd asks of a network driver and an IPAM driver, and the answers, as JSON.
//!
//! The form is libnetwork's remote driver protocol as Docker 20.10 and later speak it: `POST` to
//! `/<Interface>.<Call>`, often with no body at all. Fields that no call here looks at are left out,
//! and unknown ones are passed over: newer daemons add some.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// Options: whatever JSON dockerd sends.
pub(crate) type Options = Map<String, Value>;

/// `IpamDriver.RequestPool`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct RequestPool {
    /// One of the two spaces we name.
    pub(crate) address_space: String,
    /// The subnet asked for; empty = ours to choose.
    pub(crate) pool: String,
    /// The part of it that addresses come from (`--ip-range`); may be empty.
    pub(crate) sub_pool: String,
    /// Whether an IPv6 subnet is wanted.
    pub(crate) v6: bool,
}

/// The answer to it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Pool {
    #[serde(rename = "PoolID")]
    pub(crate) pool_id: String,
    pub(crate) pool: String,
    pub(crate) data: Options,
}

/// `IpamDriver.ReleasePool`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ReleasePool {
    #[serde(rename = "PoolID")]
    pub(crate) pool_id: String,
}

/// `IpamDriver.RequestAddress` and `IpamDriver.ReleaseAddress`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct RequestAddress {
    #[serde(rename = "PoolID")]
    pub(crate) pool_id: String,
    /// The address meant, without a prefix length; empty = ours to choose.
    #[serde(rename = "Address", default)]
    pub(crate) address: String,
    #[serde(rename = "Options", default, deserialize_with = "or_null")]
    pub(crate) options: Options,
}

impl RequestAddress {
    /// Whether the address is for the network's gateway and not for a container.
    pub(crate) fn is_gateway(&self) -> bool {
        let kind = self.options.get("RequestAddressType");
        kind.and_then(Value::as_str) == Some("com.docker.network.gateway")
    }
}

/// The answer to it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct GivenAddress {
    /// With the prefix length of the pool.
    pub(crate) address: String,
    pub(crate) data: Options,
}

/// `NetworkDriver.CreateNetwork`, and `AllocateNetwork`, which says the same.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct CreateNetwork {
    #[serde(rename = "NetworkID")]
    pub(crate) network: String,
    #[serde(rename = "IPv4Data", default, deserialize_with = "or_null")]
    pub(crate) ipv4: Vec<IpamData>,
    #[serde(rename = "IPv6Data", default, deserialize_with = "or_null")]
    pub(crate) ipv6: Vec<IpamData>,
    #[serde(rename = "Options", default, deserialize_with = "or_null")]
    pub(crate) options: Options,
}

impl CreateNetwork {
    /// Its subnets, those of IPv4 first.
    pub(crate) fn subnets(&self) -> impl Iterator<Item = &IpamData> {
        self.ipv4.iter().chain(&self.ipv6)
    }
}

/// What the IPAM driver said of one subnet of a network.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct IpamData {
    pub(crate) address_space: String,
    pub(crate) pool: String,
}

/// Every call about a network and nothing else.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct OfNetwork {
    #[serde(rename = "NetworkID")]
    pub(crate) network: String,
}

/// `NetworkDriver.CreateEndpoint`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct CreateEndpoint {
    #[serde(rename = "NetworkID")]
    pub(crate) network: String,
    #[serde(rename = "EndpointID")]
    pub(crate) endpoint: String,
    /// What dockerd has decided on already.
    #[serde(rename = "Interface", default, deserialize_with = "or_null")]
    pub(crate) interface: Interface,
}

/// An endpoint's addresses; empty = not decided.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Interface {
    /// With its prefix length.
    pub(crate) address: String,
    /// With its prefix length.
    #[serde(rename = "AddressIPv6")]
    pub(crate) address_ipv6: String,
    pub(crate) mac_address: String,
}

/// The answer to `CreateEndpoint`: only what dockerd left to us.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct CreatedEndpoint {
    pub(crate) interface: BTreeMap<&'static str, String>,
}

/// `NetworkDriver.Join`, `Leave`, `DeleteEndpoint`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct OfEndpoint {
    #[serde(rename = "NetworkID")]
    pub(crate) network: String,
    #[serde(rename = "EndpointID")]
    pub(crate) endpoint: String,
    /// Only of `Join`: the file that is the container's network namespace.
    #[serde(rename = "SandboxKey", default, deserialize_with = "or_null")]
    pub(crate) sandbox: String,
}

/// The answer to `Join`.
///
/// No gateway in it: so dockerd gives the container a second interface to its own gateway bridge,
/// which has the default route and the published ports.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Joined {
    pub(crate) interface_name: InterfaceName,
    pub(crate) static_routes: Vec<StaticRoute>,
}

/// The link dockerd takes, and what it is called in the container, a number behind.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct InterfaceName {
    pub(crate) src_name: String,
    pub(crate) dst_prefix: &'static str,
}

/// A route by the container's interface.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct StaticRoute {
    pub(crate) destination: String,
    /// 1 = on the link.
    pub(crate) route_type: u8,
    pub(crate) next_hop: &'static str,
}

impl StaticRoute {
    /// A route to what is on the link itself.
    pub(crate) fn on_link(network: IpAddr, prefix: u8) -> Self {
        Self {
            destination: format!("{network}/{prefix}"),
            route_type: 1,
            next_hop: "",
        }
    }
}

/// Go writes `null` for what is empty.
fn or_null<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}
