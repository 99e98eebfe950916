//! What a network is called by all peers.
//!
//! Hosts make a network without asking each other; that they mean the same one, they know by its key.
//! The number on the wire ([`Network`](crate::Network)) is made from it.
//!
//! Invariant: a key has one spelling, so two keys never stand for one network.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use thiserror::Error;

/// What a network is called by all peers, printed as `default`, `name:blue`, `subnet:10.50.0.0/16` or
/// `swarm:4xbcd1j2…`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NetworkKey {
    /// The network every container joins unless told otherwise.
    Default,
    /// Somebody gave it this name.
    Name(Label),
    /// It is known by its subnet: the first address, and how many bits it shares with the others.
    Subnet(IpAddr, u8),
    /// A Docker swarm made it, under this id.
    Swarm(Label),
}

/// A name or id in a key: letters, digits, `.`, `_` and `-`, at most [`Label::MAX`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(String);

/// Text that is no network's key.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NetworkKeyError {
    /// Not of one of the four forms.
    #[error("{0:?} is no network: give default, name:NAME, subnet:A.B.C.D/N or swarm:ID")]
    Form(String),
    /// Not something a network can be called.
    #[error(
        "{0:?} cannot be the name of a network: use 1 to {max} letters, digits, dots, dashes and underscores",
        max = Label::MAX
    )]
    Label(String),
    /// Not a subnet as it is written by everybody.
    #[error("{0:?} is no subnet: write it as A.B.C.D/N, with no bits set behind the first N")]
    Subnet(String),
}

impl NetworkKey {
    /// The network of this name.
    ///
    /// # Errors
    /// A network cannot be called so.
    pub fn named(name: &str) -> Result<Self, NetworkKeyError> {
        name.parse().map(Self::Name)
    }

    /// As people type it: a key, or just a name.
    ///
    /// # Errors
    /// It is neither.
    pub fn typed(text: &str) -> Result<Self, NetworkKeyError> {
        if text == DEFAULT || text.contains(':') {
            text.parse()
        } else {
            Self::named(text)
        }
    }

    /// The network known by this subnet.
    ///
    /// # Errors
    /// Bits behind the prefix are set, or there are not so many.
    pub fn of_subnet(first: IpAddr, prefix: u8) -> Result<Self, NetworkKeyError> {
        let behind = match first {
            IpAddr::V4(addr) => {
                let shift = u32::from(prefix);
                (prefix <= 32).then(|| addr.to_bits().checked_shl(shift).unwrap_or(0) == 0)
            }
            IpAddr::V6(addr) => {
                let shift = u32::from(prefix);
                (prefix <= 128).then(|| addr.to_bits().checked_shl(shift).unwrap_or(0) == 0)
            }
        };
        if behind == Some(true) {
            Ok(Self::Subnet(first, prefix))
        } else {
            Err(NetworkKeyError::Subnet(format!("{first}/{prefix}")))
        }
    }
}

impl Label {
    /// The longest one, in bytes.
    pub const MAX: usize = 64;

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Label {
    type Err = NetworkKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
        if text.is_empty() || text.len() > Self::MAX || !text.bytes().all(is_plain) {
            return Err(NetworkKeyError::Label(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for NetworkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str(DEFAULT),
            Self::Name(name) => write!(f, "name:{name}"),
            Self::Subnet(first, prefix) => write!(f, "subnet:{first}/{prefix}"),
            Self::Swarm(id) => write!(f, "swarm:{id}"),
        }
    }
}

impl FromStr for NetworkKey {
    type Err = NetworkKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let other = || NetworkKeyError::Form(text.to_owned());
        match text.split_once(':') {
            None if text == DEFAULT => Ok(Self::Default),
            None => Err(other()),
            Some(("name", name)) => Self::named(name),
            Some(("swarm", id)) => id.parse().map(Self::Swarm),
            Some(("subnet", subnet)) => {
                let wrong = || NetworkKeyError::Subnet(subnet.to_owned());
                let (first, prefix) = subnet.split_once('/').ok_or_else(wrong)?;
                let key = Self::of_subnet(
                    first.parse().map_err(|_| wrong())?,
                    prefix.parse().map_err(|_| wrong())?,
                )?;
                // Addresses and numbers have other spellings too.
                if key.to_string() == text {
                    Ok(key)
                } else {
                    Err(wrong())
                }
            }
            Some(_) => Err(other()),
        }
    }
}

const DEFAULT: &str = "default";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_are_read_back() {
        for text in [
            "default",
            "name:blue",
            "swarm:4xbcd1j2",
            "subnet:10.50.0.0/16",
            "subnet:0.0.0.0/0",
            "subnet:10.50.0.1/32",
            "subnet:fd57:1::/64",
        ] {
            let key: NetworkKey = text.parse().unwrap();
            assert_eq!(key.to_string(), text);
        }
        assert!("default".parse::<NetworkKey>().unwrap() < NetworkKey::named("a").unwrap());
    }

    #[test]
    fn people_may_type_a_bare_name() {
        assert_eq!(NetworkKey::typed("blue"), NetworkKey::named("blue"));
        assert_eq!(NetworkKey::typed("default"), Ok(NetworkKey::Default));
        assert_eq!(NetworkKey::typed("swarm:a1"), "swarm:a1".parse());
        assert!(NetworkKey::typed("color:blue").is_err());
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let long = format!("name:{}", "a".repeat(65));
        for text in [
            "",
            "blue",
            "name:",
            "name:a b",
            "name:ä",
            &long,
            "subnet:10.50.0.1/16",
            "subnet:10.50.0.0/33",
            "subnet:10.50.0.0/016",
            "subnet:fd57:0::/64",
            "subnet:10.50.0.0",
            "swarm:a/b",
            "color:blue",
        ] {
            assert!(text.parse::<NetworkKey>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_read_has_this_spelling(text in "((name|swarm):[a-z0-9.:/_-]{0,66}|subnet:[0-9a-f:.]{0,20}/[0-9]{0,3}|.{0,12})") {
            if let Ok(key) = text.parse::<NetworkKey>() {
                prop_assert_eq!(key.to_string(), text);
            }
        }
    }
}
