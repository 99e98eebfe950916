//! What a Docker network is to weft: its options, and the key all hosts know it by.
//!
//! The driver is never told a network's name, so the name that counts is an option: `-o
//! weft.network=NAME`. Without it a network of a subnet of its own is known by that subnet; any other is the
//! default network.

use serde_json::Value;
use weft_api::{Cidr, ContainerId};
use weft_wire::{NetworkKey, NetworkKeyError};

use super::protocol::Options;
use super::{PluginError, Role};

/// What the ids begin with under which Docker's networks use networks of the router's.
pub(crate) const USER_PREFIX: &str = "docker-network:";

/// The same for networks of a swarm.
const SWARM_USER_PREFIX: &str = "docker-swarm-network:";

/// The options of `docker network create -o`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NetworkOptions {
    /// `weft.network`.
    pub(super) name: Option<String>,
    /// `weft.multicast`: whether containers send multicast there.
    pub(super) multicast: bool,
    /// `com.docker.network.driver.mtu`.
    pub(super) mtu: Option<String>,
}

impl NetworkOptions {
    /// Reads options as Docker keeps them. One of ours that is not known is refused, lest it be misspelt;
    /// those of others mean nothing here.
    pub(super) fn read<'a>(
        options: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, PluginError> {
        let mut read = Self {
            name: None,
            multicast: true,
            mtu: None,
        };
        for (name, value) in options {
            match name {
                "weft.network" => read.name = Some(value.to_owned()),
                "weft.multicast" => {
                    read.multicast = value.parse().map_err(|_| PluginError::Option {
                        name: name.to_owned(),
                        wanted: "true or false",
                    })?;
                }
                "com.docker.network.driver.mtu" => read.mtu = Some(value.to_owned()),
                other if other.starts_with("weft.") => {
                    return Err(PluginError::Option {
                        name: other.to_owned(),
                        wanted: "left out: there are weft.network and weft.multicast",
                    });
                }
                _ => {}
            }
        }
        Ok(read)
    }

    /// As they come in a call: one level down.
    pub(super) fn of_call(options: &Options) -> Result<Self, PluginError> {
        let generic = options.get("com.docker.network.generic");
        let generic = generic.and_then(Value::as_object).into_iter().flatten();
        Self::read(generic.filter_map(|(name, value)| Some((name.as_str(), value.as_str()?))))
    }

    /// The network of the router's. `subnet` is the first one that Docker names, if it is not the default
    /// subnet.
    pub(super) fn key(&self, subnet: Option<Cidr>) -> Result<NetworkKey, NetworkKeyError> {
        match (&self.name, subnet) {
            (Some(name), _) => NetworkKey::named(name),
            (None, Some(subnet)) => NetworkKey::of_subnet(subnet.addr(), subnet.prefix()),
            (None, None) => Ok(NetworkKey::Default),
        }
    }
}

/// The id under which a network of Docker's uses one of the router's.
pub(super) fn user(network: &str, role: Role) -> Result<ContainerId, PluginError> {
    let prefix = match role {
        Role::Host => USER_PREFIX,
        Role::Swarm => SWARM_USER_PREFIX,
    };
    ContainerId::new(format!("{prefix}{network}"))
        .map_err(|_| PluginError::Network(network.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: &[(&str, &str)]) -> Result<NetworkOptions, PluginError> {
        NetworkOptions::read(options.iter().copied())
    }

    #[test]
    fn a_name_comes_before_the_subnet_and_both_before_the_default() {
        let subnet = || Some("10.50.0.0/16".parse().unwrap());
        let named = read(&[("weft.network", "blue")]).unwrap();
        let plain = read(&[("com.example", "1")]).unwrap();
        let text = |key: Result<NetworkKey, _>| key.unwrap().to_string();
        assert_eq!(text(named.key(subnet())), "name:blue");
        assert_eq!(text(plain.key(subnet())), "subnet:10.50.0.0/16");
        assert_eq!(text(plain.key(None)), "default");
        assert!(plain.multicast);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let off = read(&[("weft.multicast", "false")]).unwrap();
        assert!(!off.multicast);
        for wrong in [("weft.multicast", "no"), ("weft.netwrok", "blue")] {
            let said = read(&[wrong]).unwrap_err().to_string();
            assert!(said.contains(wrong.0), "{said}");
        }
        let strange = read(&[("weft.network", "a b")]).unwrap();
        assert!(strange.key(None).is_err());
    }
}
