//! The key space: what a peer may publish, and the text it travels as.
//!
//! ```text
//!  key                              value
//!  peer                             nickname=.. uid=.. port=.. mtu=.. version=.. started=.. addresses=a,b
//!  link/<peer>                      established=0|1 outbound=0|1 address=..
//!  ring/<pool>                      digest=<hex>
//!  name/<fqdn>/<container>/<addr>   (empty: the key says it all)
//!  mac/<network>/<mac>              registered=0|1 addresses=a,b
//!  net/<network>                    (empty: the key says it all)
//! ```
//!
//! A peer writes only keys of its own, one per entry, so that what changed is sent and no more.
//! Keys of newer versions are skipped by older ones, and so are fields they do not know.
//!
//! Invariants: [`Entry::parse`] is total; an entry has one key only (another spelling of it is
//! refused), so two keys never stand for one thing; what [`Entry::encode`] gives, `parse` reads back.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use thiserror::Error;
use weft_wire::{MacAddr, Network, NetworkKey, Nickname, PeerName, PeerUid};

use crate::text::{Fields, escape, unescape};

/// The longest key, in bytes.
pub const MAX_KEY: usize = 1024;
/// The longest value, in bytes. The longest entry must fit into one message.
pub const MAX_VALUE: usize = 16 * 1024;

/// Something a peer says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// Who the peer is. A peer without it is not shown to others: see [`crate::Gossip::new`].
    Peer(PeerInfo),
    /// One of its connections: the neighbour, and how it is connected.
    Link(PeerName, Link),
    /// The digest of its ring for an address pool: the pool in CIDR form, 1 to 32 hex digits.
    Ring(String, String),
    /// An address by which one of its containers answers to a name.
    Name {
        /// The full name, such as `db.weft.local.`
        fqdn: String,
        /// The container's id.
        container: String,
        /// The container's address.
        addr: IpAddr,
    },
    /// A MAC that is on its host, in this network, and how that is known.
    Mac(Network, MacAddr, Binding),
    /// A network its containers are in, beside the default one.
    Network(NetworkKey),
}

/// What an entry is about: its key. A peer has one entry for a topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// Who the peer is.
    Peer,
    /// Its connection to this neighbour.
    Link(PeerName),
    /// Its ring for this address pool.
    Ring(String),
    /// A name of one of its containers.
    Name {
        /// The full name.
        fqdn: String,
        /// The container's id.
        container: String,
        /// The container's address.
        addr: IpAddr,
    },
    /// A MAC in this network.
    Mac(Network, MacAddr),
    /// A network its containers are in.
    Network(NetworkKey),
}

/// Who a peer is and where it can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// Its name for people.
    pub nickname: Nickname,
    /// The number of this run of it.
    pub uid: PeerUid,
    /// The port it listens on, TCP and UDP.
    pub port: u16,
    /// Underlay addresses it may be dialled at, at most [`PeerInfo::MAX_ADDRESSES`].
    pub addresses: Vec<SocketAddr>,
    /// MTU of its default network, in bytes.
    pub mtu: u16,
    /// The program's version, for people; at most [`PeerInfo::MAX_VERSION`] bytes.
    pub version: String,
    /// When this run started, Unix seconds.
    pub started: u64,
}

/// One connection as one of its ends sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Whether frames may flow as far as this end is concerned.
    pub established: bool,
    /// Whether this end dialled.
    pub outbound: bool,
    /// The other end's address.
    pub address: SocketAddr,
    /// Where the other end's datagrams come from, if that is another address.
    pub datagrams: Option<SocketAddr>,
    /// Whether its control messages go over other peers.
    pub relayed: bool,
}

/// What a peer says of a MAC on its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// Whether it belongs to a container that was attached there, rather than being merely seen.
    pub registered: bool,
    /// The IP addresses it has as far as is known, at most [`Binding::MAX_ADDRESSES`].
    pub addresses: Vec<IpAddr>,
}

/// Text that is no entry of ours. Whatever holds it is skipped and counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ParseEntryError {
    /// The key starts like one of ours, but its parts are wrong or spelt another way.
    #[error("the key is not one this version writes")]
    Key,
    /// A field is not there.
    #[error("the field {0} is missing")]
    Missing(&'static str),
    /// A field does not hold what it should.
    #[error("the field {0} cannot be read")]
    Field(&'static str),
    /// The key or value is longer than [`MAX_KEY`] or [`MAX_VALUE`].
    #[error("the entry is {0} bytes long, more than allowed")]
    TooLong(usize),
}

/// An entry others could not read, so that it is not published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum EncodeEntryError {
    /// The key would be too long.
    #[error("the key would be {0} bytes, more than {MAX_KEY}: use a shorter name")]
    KeyTooLong(usize),
    /// The value would be too long.
    #[error("the value would be {0} bytes, more than {MAX_VALUE}: publish less at once")]
    ValueTooLong(usize),
    /// A field is out of the bounds its type states.
    #[error("others could not read it back: {0}")]
    Unreadable(#[source] ParseEntryError),
    /// A field would be read back changed.
    #[error("others would read something else: a field holds what its format cannot carry")]
    Lossy,
}

impl PeerInfo {
    /// The most addresses a peer tells of itself.
    pub const MAX_ADDRESSES: usize = 64;
    /// The longest version text, in bytes.
    pub const MAX_VERSION: usize = 64;
}

impl Binding {
    /// The most IP addresses of one MAC.
    pub const MAX_ADDRESSES: usize = 64;
}

impl Entry {
    /// The key this entry stands under.
    pub fn topic(&self) -> Topic {
        match self {
            Self::Peer(_) => Topic::Peer,
            Self::Link(peer, _) => Topic::Link(*peer),
            Self::Ring(pool, _) => Topic::Ring(pool.clone()),
            Self::Name {
                fqdn,
                container,
                addr,
            } => Topic::Name {
                fqdn: fqdn.clone(),
                container: container.clone(),
                addr: *addr,
            },
            Self::Mac(network, mac, _) => Topic::Mac(*network, *mac),
            Self::Network(network) => Topic::Network(network.clone()),
        }
    }

    /// Key and value as they travel.
    ///
    /// # Errors
    /// The entry is too long, or holds something that other peers would not read back.
    pub fn encode(&self) -> Result<(String, String), EncodeEntryError> {
        let (key, value) = (self.topic().key(), self.value());
        if key.len() > MAX_KEY {
            return Err(EncodeEntryError::KeyTooLong(key.len()));
        }
        if value.len() > MAX_VALUE {
            return Err(EncodeEntryError::ValueTooLong(value.len()));
        }
        match Self::parse(&key, &value) {
            Ok(Some(read)) if read == *self => Ok((key, value)),
            Ok(_) => Err(EncodeEntryError::Lossy),
            Err(error) => Err(EncodeEntryError::Unreadable(error)),
        }
    }

    /// Reads an entry of another peer; `None` if its key is of a kind this version does not know.
    ///
    /// # Errors
    /// The key is of a kind we know, but it or its value is not well formed.
    pub fn parse(key: &str, value: &str) -> Result<Option<Self>, ParseEntryError> {
        let len = key.len().max(value.len());
        if key.len() > MAX_KEY || value.len() > MAX_VALUE {
            return Err(ParseEntryError::TooLong(len));
        }
        let Some(topic) = Topic::parse(key)? else {
            return Ok(None);
        };
        let fields = Fields::new(value);
        let entry = match topic {
            Topic::Peer => Self::Peer(PeerInfo::parse(&fields)?),
            Topic::Link(peer) => Self::Link(peer, Link::parse(&fields)?),
            Topic::Ring(pool) => Self::Ring(pool, parse_digest(&fields)?),
            Topic::Name {
                fqdn,
                container,
                addr,
            } => Self::Name {
                fqdn,
                container,
                addr,
            },
            Topic::Mac(network, mac) => Self::Mac(network, mac, Binding::parse(&fields)?),
            Topic::Network(network) => Self::Network(network),
        };
        Ok(Some(entry))
    }

    fn value(&self) -> String {
        match self {
            Self::Peer(info) => info.to_string(),
            Self::Link(_, link) => link.to_string(),
            Self::Ring(_, digest) => format!("digest={digest}"),
            Self::Name { .. } | Self::Network(_) => String::new(),
            Self::Mac(_, _, binding) => binding.to_string(),
        }
    }
}

impl Topic {
    /// The key as it travels.
    pub fn key(&self) -> String {
        match self {
            Self::Peer => PEER.to_owned(),
            Self::Link(peer) => format!("link/{peer}"),
            Self::Ring(pool) => format!("ring/{}", escape(pool)),
            Self::Name {
                fqdn,
                container,
                addr,
            } => {
                format!("name/{}/{}/{addr}", escape(fqdn), escape(container))
            }
            Self::Mac(network, mac) => format!("mac/{network}/{mac}"),
            Self::Network(network) => format!("net/{}", escape(&network.to_string())),
        }
    }

    fn parse(key: &str) -> Result<Option<Self>, ParseEntryError> {
        let (kind, rest) = key.split_once('/').unwrap_or((key, ""));
        let topic = match kind {
            PEER => Some(Self::Peer),
            "link" => rest.parse().ok().map(Self::Link),
            "ring" => unescape(rest).map(Self::Ring),
            "name" => Self::parse_name(rest),
            "mac" => Self::parse_mac(rest),
            "net" => Self::parse_network(rest),
            _ => return Ok(None),
        };
        topic
            .filter(|topic| topic.key() == key)
            .map(Some)
            .ok_or(ParseEntryError::Key)
    }

    /// Every peer has the default network, so none says so.
    fn parse_network(rest: &str) -> Option<Self> {
        let network = unescape(rest)?.parse().ok()?;
        (network != NetworkKey::Default).then_some(Self::Network(network))
    }

    fn parse_name(rest: &str) -> Option<Self> {
        let (fqdn, rest) = rest.split_once('/')?;
        let (container, addr) = rest.split_once('/')?;
        Some(Self::Name {
            fqdn: unescape(fqdn)?,
            container: unescape(container)?,
            addr: addr.parse().ok()?,
        })
    }

    /// Group addresses are nobody's.
    fn parse_mac(rest: &str) -> Option<Self> {
        let (network, mac) = rest.split_once('/')?;
        let [0, a, b, c] = network.parse::<u32>().ok()?.to_be_bytes() else {
            return None;
        };
        let mac: MacAddr = mac.parse().ok()?;
        let topic = Self::Mac(Network::from_bytes([a, b, c]), mac);
        (!mac.is_multicast()).then_some(topic)
    }
}

impl fmt::Display for PeerInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "nickname={} uid={} port={} mtu={} version={} started={} addresses=",
            escape(self.nickname.as_str()),
            self.uid,
            self.port,
            self.mtu,
            escape(&self.version),
            self.started,
        )?;
        write_list(f, &self.addresses)
    }
}

impl PeerInfo {
    fn parse(fields: &Fields<'_>) -> Result<Self, ParseEntryError> {
        let nickname = text(fields, "nickname")?;
        let version = text(fields, "version")?;
        let uid = u64::from_str_radix(required(fields, "uid")?, 16);
        if version.len() > Self::MAX_VERSION || version.chars().any(char::is_control) {
            return Err(ParseEntryError::Field("version"));
        }
        Ok(Self {
            nickname: Nickname::new(&nickname),
            uid: PeerUid(uid.map_err(|_| ParseEntryError::Field("uid"))?),
            port: parsed(fields, "port")?,
            addresses: parse_list(fields, "addresses", Self::MAX_ADDRESSES)?,
            mtu: parsed(fields, "mtu")?,
            version,
            started: parsed(fields, "started")?,
        })
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (established, outbound) = (u8::from(self.established), u8::from(self.outbound));
        let address = self.address;
        write!(
            f,
            "established={established} outbound={outbound} address={address}"
        )?;
        // Most connections have neither, and all peers keep this of all.
        if let Some(datagrams) = self.datagrams {
            write!(f, " datagrams={datagrams}")?;
        }
        if self.relayed {
            write!(f, " relayed=1")?;
        }
        Ok(())
    }
}

impl Link {
    fn parse(fields: &Fields<'_>) -> Result<Self, ParseEntryError> {
        Ok(Self {
            established: flag(fields, "established")?,
            outbound: flag(fields, "outbound")?,
            address: parsed(fields, "address")?,
            datagrams: match fields.find("datagrams") {
                None => None,
                Some(_) => Some(parsed(fields, "datagrams")?),
            },
            relayed: fields.find("relayed").is_some() && flag(fields, "relayed")?,
        })
    }
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "registered={} addresses=", u8::from(self.registered))?;
        write_list(f, &self.addresses)
    }
}

impl Binding {
    fn parse(fields: &Fields<'_>) -> Result<Self, ParseEntryError> {
        Ok(Self {
            registered: flag(fields, "registered")?,
            addresses: parse_list(fields, "addresses", Self::MAX_ADDRESSES)?,
        })
    }
}

fn parse_digest(fields: &Fields<'_>) -> Result<String, ParseEntryError> {
    let digest = required(fields, "digest")?;
    let hex = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
    if (1..=MAX_DIGEST).contains(&digest.len()) && digest.bytes().all(hex) {
        Ok(digest.to_owned())
    } else {
        Err(ParseEntryError::Field("digest"))
    }
}

fn required<'a>(fields: &Fields<'a>, name: &'static str) -> Result<&'a str, ParseEntryError> {
    fields.find(name).ok_or(ParseEntryError::Missing(name))
}

fn text(fields: &Fields<'_>, name: &'static str) -> Result<String, ParseEntryError> {
    unescape(required(fields, name)?).ok_or(ParseEntryError::Field(name))
}

fn parsed<T: FromStr>(fields: &Fields<'_>, name: &'static str) -> Result<T, ParseEntryError> {
    let value = required(fields, name)?;
    value.parse().map_err(|_| ParseEntryError::Field(name))
}

/// Items with commas between.
fn write_list<T: fmt::Display>(f: &mut fmt::Formatter<'_>, items: &[T]) -> fmt::Result {
    for (at, item) in items.iter().enumerate() {
        write!(f, "{}{item}", if at == 0 { "" } else { "," })?;
    }
    Ok(())
}

/// At most `most` items with commas between.
fn parse_list<T: FromStr>(
    fields: &Fields<'_>,
    name: &'static str,
    most: usize,
) -> Result<Vec<T>, ParseEntryError> {
    let wrong = ParseEntryError::Field(name);
    let items = required(fields, name)?.split(',');
    let items = items.filter(|item| !item.is_empty()).take(most + 1);
    let items: Result<Vec<T>, _> = items.map(|item| item.parse().map_err(|_| wrong)).collect();
    items.and_then(|items| {
        if items.len() > most {
            return Err(wrong);
        }
        Ok(items)
    })
}

fn flag(fields: &Fields<'_>, name: &'static str) -> Result<bool, ParseEntryError> {
    match required(fields, name)? {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(ParseEntryError::Field(name)),
    }
}

/// The key of the entry that makes a peer known.
pub(crate) const PEER: &str = "peer";
/// What keys of links begin with.
pub(crate) const LINKS: &str = "link/";
/// 128 bits in hex.
const MAX_DIGEST: usize = 32;

#[cfg(test)]
pub(crate) mod tests;
