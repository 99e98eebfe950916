//! Every request and answer but the report, in the order of the table in [`crate::routes`].
//!
//! Requests refuse fields they do not know, so that a caller's typing error is an error and not a
//! default. Answers without content are `204 No Content`; every refusal carries a [`Refusal`].

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;
use weft_wire::{MacAddr, NetworkKey, PeerName};

use crate::{Cidr, text};

/// Who holds an address or a name: a Docker container's whole id, `pid-<N>-<start time>`,
/// `netns:<path>`, or one of the two constants.
///
/// Invariant: 1 to 255 bytes, no control characters, no blanks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(String);

impl ContainerId {
    /// The host itself, as far as it joined the network (`weft expose`).
    pub const EXPOSE: &str = "weft:expose";
    /// Something outside the network that has a name in it (`weft dns-add IP`).
    pub const EXTERN: &str = "weft:extern";
    /// The longest id in bytes; the bound of the address table's format too.
    pub const MAX: usize = 255;

    /// Checks and keeps an id.
    ///
    /// # Errors
    /// It is empty, too long, or holds blanks or control characters.
    pub fn new(id: impl Into<String>) -> Result<Self, ContainerIdError> {
        let id = id.into();
        if id.is_empty() {
            return Err(ContainerIdError::Empty);
        }
        if id.len() > Self::MAX {
            return Err(ContainerIdError::TooLong { len: id.len() });
        }
        if id.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(ContainerIdError::Blank(id));
        }
        Ok(Self(id))
    }

    /// The host itself.
    pub fn expose() -> Self {
        Self(Self::EXPOSE.to_owned())
    }

    /// Whatever is outside the network.
    pub fn external() -> Self {
        Self(Self::EXTERN.to_owned())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As people see it: a Docker id is cut to its first 12 digits.
    pub fn short(&self) -> &str {
        let docker = self.0.len() == 64 && self.0.bytes().all(|c| c.is_ascii_hexdigit());
        self.0.get(..12).filter(|_| docker).unwrap_or(&self.0)
    }
}

/// Text that cannot be a container id.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ContainerIdError {
    /// Nothing there.
    #[error("a container id is empty")]
    Empty,
    /// Longer than [`ContainerId::MAX`].
    #[error(
        "a container id of {len} bytes is longer than the {} allowed",
        ContainerId::MAX
    )]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// A blank or a control character inside.
    #[error("the container id {0:?} has a blank or a control character in it")]
    Blank(String),
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ContainerId {
    type Err = ContainerIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl Serialize for ContainerId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        text::serialize(self, to)
    }
}

impl<'de> Deserialize<'de> for ContainerId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        text::deserialize(from)
    }
}

/// The body of every answer with a status of 400 or above.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What was wrong, with the values: lower case, no full stop.
    pub error: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// `POST /connect`: dial these peers, again and again until they answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Connect {
    /// `HOST[:PORT]` each, as typed.
    pub targets: Vec<String>,
    /// Whether all other targets are dropped.
    #[serde(default)]
    pub replace: bool,
}

/// `POST /forget`: stop dialling these; live connections stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forget {
    /// `HOST[:PORT]` each, as given to `connect`.
    pub targets: Vec<String>,
}

/// Answer to `POST /reset-prepare`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedOver {
    /// The peer that has our address space; none if nobody was there to take it.
    #[serde(with = "text::option", default)]
    pub heir: Option<PeerName>,
}

/// Answer to `DELETE /peer/{peer}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenOver {
    /// How many addresses changed owner.
    pub addresses: u64,
}

/// `POST /ip/{container}`: an address for a container; answered when there is one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allocate {
    /// The subnet it must come from, in any pool; none = the default subnet.
    #[serde(default)]
    pub subnet: Option<Cidr>,
}

/// `PUT /ip/{container}`: exactly this address, which people chose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// The address and the prefix length of its subnet.
    pub cidr: Cidr,
}

/// Answer to an allocation or a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The container's address and the prefix length of its subnet.
    pub cidr: Cidr,
}

/// Answer to `GET /ip/{container}` (what it holds) and `DELETE /ip/{container}` (what it held).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// Addresses with the prefix lengths of their subnets, in ascending order.
    pub cidrs: Vec<Cidr>,
}

/// Answer to `GET /holders/{ip}`: which containers of this host hold an address.
///
/// At most one in the pool; outside of it nobody keeps two from holding the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holders {
    /// In ascending order.
    pub containers: Vec<ContainerId>,
}

/// `PUT /pool`: see to it that addresses of this subnet can be had. Idempotent; other peers join by
/// themselves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddPool {
    /// The subnet; refused if a pool lies inside it.
    pub subnet: Cidr,
}

/// Answer to `PUT /pool`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// The pool that the subnet is in: the subnet itself, or a larger one that was there.
    pub pool: Cidr,
}

/// Answer to `GET /network` and `GET /network/{network}`: what attaching a container needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// What all peers call it.
    #[serde(with = "text")]
    pub key: NetworkKey,
    /// Its number on the wire at present; 0 is the default network.
    pub number: u32,
    /// The bridge containers are put on.
    pub bridge: String,
    /// MTU of every interface on it, in bytes.
    pub mtu: u16,
    /// Whether the kernel may carry its frames to other hosts (the fast datapath).
    pub fast: bool,
    /// Where containers reach the resolver; none if DNS is off.
    pub dns: Option<Ipv4Addr>,
    /// The domain names are in, with its trailing dot; none if DNS is off.
    pub domain: Option<String>,
    /// Where an address comes from unless another subnet is asked for: of IPv4, or of IPv6 where there
    /// is no range of IPv4; none if IPAM is off.
    pub default_subnet: Option<Cidr>,
    /// Where a container gets an IPv6 address from beside that; none if there are no ranges of both.
    #[serde(default)]
    pub default_subnet6: Option<Cidr>,
    /// The whole range addresses are given out of; none if IPAM is off.
    pub pool: Option<Cidr>,
}

impl Network {
    /// All subnets that a container has an address of if it asks for nothing in particular.
    pub fn default_subnets(&self) -> impl Iterator<Item = Cidr> + use<> {
        [self.default_subnet, self.default_subnet6]
            .into_iter()
            .flatten()
    }
}

/// `PUT /network/{network}/{user}`: this host has the network from here on, as long as anybody uses it.
///
/// A user is a container, which uses a network until it holds no address any more, or a network of
/// Docker's, which does until it is removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinNetwork {
    /// Whether containers of this user send multicast into the network; kept for whoever attaches them.
    #[serde(default = "yes")]
    pub multicast: bool,
}

impl Default for JoinNetwork {
    fn default() -> Self {
        Self { multicast: true }
    }
}

fn yes() -> bool {
    true
}

/// One network of a user; see [`JoinNetwork`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedNetwork {
    /// The network.
    pub network: Network,
    /// As it was said when the user joined.
    pub multicast: bool,
}

/// Answer to `GET /networks/{user}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedNetworks {
    /// By key; none is no error.
    pub networks: Vec<UsedNetwork>,
}

/// Answer to `GET /networks`: who uses which network on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkUsers {
    /// All users, in ascending order.
    pub users: Vec<ContainerId>,
}

/// `PUT /name`: one record more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddName {
    /// A name in the domain, or a bare label.
    pub name: String,
    /// Who the name belongs to; the record goes when this container does.
    pub container: ContainerId,
    /// What the name stands for.
    pub addr: IpAddr,
}

/// `DELETE /name`: drop own records that match all that is given.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveNames {
    /// Records of this name; none = of any.
    #[serde(default)]
    pub name: Option<String>,
    /// Records of this container; none = of any.
    #[serde(default)]
    pub container: Option<ContainerId>,
    /// Records with this address; none = with any.
    #[serde(default)]
    pub addr: Option<IpAddr>,
}

/// Answer to `DELETE /name`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedNames {
    /// How many records went.
    pub removed: u64,
}

/// Answer to `GET /name/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// At least one address; an unknown name is refused with 404.
    pub addresses: Vec<IpAddr>,
}

/// `PUT /binding`: a container's interface has this MAC and these addresses, and no others. Other peers
/// know where it is before it sends anything. Idempotent.
///
/// It is forgotten when the container's last address is freed, or when there is no such port for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bind {
    /// Whose interface it is.
    pub container: ContainerId,
    /// The network it is on.
    #[serde(with = "text")]
    pub network: NetworkKey,
    /// Its MAC.
    #[serde(with = "text")]
    pub mac: MacAddr,
    /// The host's end of it, a port of the bridge; it need not be there yet.
    pub port: String,
    /// Its addresses, at most [`Bind::MAX_ADDRESSES`].
    pub addresses: Vec<IpAddr>,
}

impl Bind {
    /// The most addresses of one interface.
    pub const MAX_ADDRESSES: usize = 64;
}

/// `DELETE /binding`: a container has no interface any more. That none was known is no error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unbind {
    /// Whose interface it was.
    pub container: ContainerId,
}

/// `POST /expose`: give the host itself an address on the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expose {
    /// An address that [`ContainerId::EXPOSE`] holds, and its subnet's prefix length.
    pub cidr: Cidr,
    /// Whether traffic between the subnet and the rest of the world is masqueraded.
    pub masquerade: bool,
}

/// `DELETE /expose`: take such an address back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hide {
    /// The address as it was exposed.
    pub cidr: Cidr,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_field_is_an_error() {
        let misspelt = r#"{"targets": ["host1"], "repalce": true}"#;
        assert!(serde_json::from_str::<Connect>(misspelt).is_err());
    }

    #[test]
    fn what_may_be_left_out_may_be_left_out() {
        assert_eq!(
            serde_json::from_str::<Allocate>("{}").unwrap(),
            Allocate::default()
        );
        assert_eq!(
            serde_json::from_str::<RemoveNames>("{}").unwrap(),
            RemoveNames::default()
        );
        let handed: HandedOver = serde_json::from_str("{}").unwrap();
        assert_eq!(handed.heir, None);
        let join: JoinNetwork = serde_json::from_str("{}").unwrap();
        assert_eq!(join, JoinNetwork::default());
    }

    #[test]
    fn only_docker_ids_are_cut_for_display() {
        let docker = "0123456789abcdef".repeat(4);
        assert_eq!(ContainerId::new(docker).unwrap().short(), "0123456789ab");
        let other = ContainerId::new("netns:/run/netns/c1").unwrap();
        assert_eq!(other.short(), "netns:/run/netns/c1");
    }

    #[test]
    fn container_ids_are_bounded_and_printable() {
        assert_eq!(ContainerId::new(""), Err(ContainerIdError::Empty));
        assert!(ContainerId::new("a b").is_err());
        assert!(ContainerId::new("a\x1b").is_err());
        assert!(ContainerId::new("a".repeat(255)).is_ok());
        assert!(ContainerId::new("a".repeat(256)).is_err());
        assert!(serde_json::from_str::<ContainerId>("\"\"").is_err());
    }
}
