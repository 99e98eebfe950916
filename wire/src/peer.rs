//! Who a router is: its lasting name, its name for people, and the number of one run of it.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::MacAddr;

/// A peer's lasting identity: 48 bits from a hash of its static key, printed like a MAC.
///
/// It routes and labels; it never authenticates (the 32-byte static key does).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerName([u8; 6]);

impl PeerName {
    /// From bytes in wire order.
    pub const fn from_bytes(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// Made from the first bytes of a hash: a locally administered unicast address, so that it can
    /// also serve as the MAC of the bridge.
    pub const fn from_hash(hash: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = hash;
        Self([(a & 0xfc) | 0x02, b, c, d, e, f])
    }

    /// Bytes in wire order.
    pub const fn to_bytes(self) -> [u8; 6] {
        self.0
    }

    /// The same 48 bits as an Ethernet address, the MAC of this peer's bridge.
    pub const fn to_mac(self) -> MacAddr {
        MacAddr::from_bytes(self.0)
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.to_mac(), f)
    }
}

impl fmt::Debug for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that names no peer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is not a peer name, such as 3a:01:02:03:04:05 or ::1")]
pub struct ParsePeerNameError(String);

impl FromStr for PeerName {
    type Err = ParsePeerNameError;

    /// Six hex groups with colons between; one run of zero groups may be left out as `::`, and a
    /// group may be one digit, as Weave Net allowed (`::1`).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParsePeerNameError(text.to_owned());
        let groups = |part: &str| -> Option<Vec<u8>> {
            if part.is_empty() {
                return Some(Vec::new());
            }
            part.split(':')
                .map(|g| {
                    let hex =
                        (1..=2).contains(&g.len()) && g.bytes().all(|c| c.is_ascii_hexdigit());
                    hex.then(|| u8::from_str_radix(g, 16).ok()).flatten()
                })
                .collect()
        };
        let bytes = match text.split_once("::") {
            None => groups(text).ok_or_else(wrong)?,
            Some((head, tail)) => {
                let (mut head, tail) = groups(head).zip(groups(tail)).ok_or_else(wrong)?;
                let missing = 6_usize
                    .checked_sub(head.len() + tail.len())
                    .filter(|n| *n > 0)
                    .ok_or_else(wrong)?;
                head.extend(std::iter::repeat_n(0, missing));
                head.extend(tail);
                head
            }
        };
        bytes.try_into().map(Self).map_err(|_| wrong())
    }
}

/// The number of one run of a router: random at each start, so that a restart and a clone show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerUid(pub u64);

impl fmt::Display for PeerUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A peer's name for people, usually its host name; printable, at most [`Nickname::MAX`] bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nickname(String);

impl Nickname {
    /// The longest nickname in bytes: what Linux allows a host name (`HOST_NAME_MAX`).
    pub const MAX: usize = 64;

    /// Makes a nickname, leaving out control characters and what is over [`Self::MAX`] bytes.
    pub fn new(text: &str) -> Self {
        let mut kept = String::new();
        for c in text.chars().filter(|c| !c.is_control()) {
            if kept.len() + c.len_utf8() > Self::MAX {
                break;
            }
            kept.push(c);
        }
        Self(kept)
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Nickname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_weaves_short_form_too() {
        let one = PeerName::from_bytes([0, 0, 0, 0, 0, 1]);
        assert_eq!("::1".parse(), Ok(one));
        assert_eq!("00:00:00:00:00:01".parse(), Ok(one));
        assert_eq!("1::".parse(), Ok(PeerName::from_bytes([1, 0, 0, 0, 0, 0])));
        for text in [
            "",
            ":",
            ":::",
            "1:2:3:4:5:6::",
            "1:2:3:4:5",
            "g::1",
            "1::2::3",
            "host1",
        ] {
            assert!(text.parse::<PeerName>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_name_from_a_hash_is_a_local_unicast_mac() {
        let name = PeerName::from_hash([0xff; 6]);
        assert!(!name.to_mac().is_multicast());
        assert_eq!(name.to_bytes()[0] & 2, 2);
    }

    #[test]
    fn nicknames_are_bounded_and_printable() {
        assert_eq!(Nickname::new("a\x1b[2Jb").as_str(), "a[2Jb");
        assert_eq!(Nickname::new(&"é".repeat(60)).as_str().len(), 64);
    }
}
