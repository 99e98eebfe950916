//! One run of a peer, and the address chitchat knows it by.
//!
//! chitchat tells nodes apart by (id, generation, address), so a restarted peer is a new node to it.
//! Here that triple is a [`Run`]: the peer's name and a generation that grows with each start. The
//! address is *synthetic*, made from the name: it never leaves chitchat, and stays the same
//! wherever the peer moves. Invariant: `Run::of(&run.id()) == Some(run)`, and no other id has a run.

use std::net::{Ipv6Addr, SocketAddr};

use chitchat::ChitchatId;
use weft_wire::PeerName;

/// One run of a peer. Ordered by name, then by generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Run {
    pub(crate) name: PeerName,
    pub(crate) generation: u64,
}

impl Run {
    /// What chitchat calls this run.
    pub(crate) fn id(self) -> ChitchatId {
        let node_id: String = node_id(self.name).collect();
        ChitchatId::new(node_id, self.generation, address(self.name))
    }

    /// The run behind chitchat's id, if the id is one that [`Run::id`] makes.
    pub(crate) fn of(id: &ChitchatId) -> Option<Self> {
        Self::from_parts(&id.node_id, id.generation_id, id.gossip_advertise_addr)
    }

    /// As [`Run::of`], from an id that is not put together yet.
    pub(crate) fn from_parts(
        node_id_text: &str,
        generation: u64,
        gossip_address: SocketAddr,
    ) -> Option<Self> {
        let name = name_behind(gossip_address)?;
        let same = node_id(name).eq(node_id_text.chars());
        same.then_some(Self { name, generation })
    }
}

/// A peer's address as chitchat sees it.
pub(crate) fn address(name: PeerName) -> SocketAddr {
    let [a, b, c, d, e, f] = name.to_bytes();
    let [p0, p1, p2, p3, p4, p5, p6, p7, p8, p9] = PREFIX;
    let octets = [p0, p1, p2, p3, p4, p5, p6, p7, p8, p9, a, b, c, d, e, f];
    SocketAddr::from((Ipv6Addr::from(octets), PORT))
}

/// The peer whose address this is.
pub(crate) fn name_behind(gossip_address: SocketAddr) -> Option<PeerName> {
    let SocketAddr::V6(v6) = gossip_address else {
        return None;
    };
    let octets = v6.ip().octets();
    let name = PeerName::from_bytes(*octets.last_chunk::<6>()?);
    (address(name) == gossip_address).then_some(name)
}

/// The name as 12 hex digits.
fn node_id(name: PeerName) -> impl Iterator<Item = char> {
    let nibbles = name
        .to_bytes()
        .into_iter()
        .flat_map(|byte| [byte >> 4, byte & 0xf]);
    nibbles.filter_map(|nibble| char::from_digit(nibble.into(), 16))
}

/// A unique-local prefix (RFC 4193) spelling "weft"; nothing is ever sent to it.
const PREFIX: [u8; 10] = [0xfd, b'w', b'e', b'f', b't', 0, 0, 0, 0, 0];
/// chitchat wants a port; every peer has the same.
const PORT: u16 = 6783;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_run_is_found_behind_its_id(name: [u8; 6], generation: u64) {
            let run = Run { name: PeerName::from_bytes(name), generation };
            prop_assert_eq!(Run::of(&run.id()), Some(run));
        }
    }

    #[test]
    fn ids_we_do_not_make_have_no_run() {
        let name = PeerName::from_bytes([2, 0, 0, 0, 0, 1]);
        let other = PeerName::from_bytes([2, 0, 0, 0, 0, 2]);
        for (id, at) in [
            ("020000000002", address(name)),
            ("02000000000", address(name)),
            ("020000000001", address(other)),
            ("020000000001", "10.0.0.1:6783".parse().unwrap()),
            (
                "020000000001",
                "[fd77:6566:7400::200:0:1]:1".parse().unwrap(),
            ),
        ] {
            assert_eq!(Run::from_parts(id, 1, at), None, "{id} {at}");
        }
        assert!(Run::from_parts("020000000001", 1, address(name)).is_some());
    }
}
