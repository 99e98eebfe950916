//! Which number each network has on the wire: a function of the keys that anybody uses.
//!
//! A network's number is made from its key by a hash, so that hosts agree on it without a word. Where
//! two keys come to one number, the larger key moves on to its next one. As every peer says which
//! networks it uses, all come to the same numbers as soon as they know the same keys; nobody decides,
//! and nothing is remembered of networks that nobody uses any more.
//!
//! ```text
//!   keys in ascending order:   name:blue   name:green   subnet:10.50.0.0/16
//!   each takes the first of      1st          1st           1st ─ taken
//!   its numbers that is free                                2nd
//! ```
//!
//! With a hundred networks there is a collision with a probability of 0.0003; then, until a peer has heard
//! of the other network, frames of the two meet.
//!
//! Invariants: no two keys have one number; the default network is number 0, and no other is; at most
//! [`MAX_NETWORKS`] keys are known, and of one peer [`MAX_NETWORKS_OF_PEER`].

use std::collections::{BTreeMap, BTreeSet};

use aws_lc_rs::digest::{Context, SHA256};
use weft_wire::{Network, NetworkKey, PeerName};

/// The keys in use, by whom, and their numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks {
    users: BTreeMap<NetworkKey, BTreeSet<PeerName>>,
    /// A number for each key of `users`.
    numbers: BTreeMap<NetworkKey, Network>,
}

/// One network more than is kept account of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there are {0} networks already, which is all there may be: leave one first")]
pub struct TooMany(usize);

impl Networks {
    /// Nobody uses any.
    pub fn new() -> Self {
        Self::default()
    }

    /// `peer` uses the network; answers whether numbers changed. The default network needs no saying.
    ///
    /// # Errors
    /// There are too many.
    pub fn add(&mut self, peer: PeerName, key: &NetworkKey) -> Result<bool, TooMany> {
        if *key == NetworkKey::Default {
            return Ok(false);
        }
        if let Some(users) = self.users.get_mut(key)
            && users.contains(&peer)
        {
            return Ok(false);
        }
        if self.of(peer).count() >= MAX_NETWORKS_OF_PEER {
            return Err(TooMany(MAX_NETWORKS_OF_PEER));
        }
        let is_new = !self.users.contains_key(key);
        if is_new && self.users.len() >= MAX_NETWORKS {
            return Err(TooMany(MAX_NETWORKS));
        }
        self.users.entry(key.clone()).or_default().insert(peer);
        Ok(is_new && self.renumber())
    }

    /// `peer` does not use the network any more; answers whether numbers changed.
    pub fn remove(&mut self, peer: PeerName, key: &NetworkKey) -> bool {
        let Some(users) = self.users.get_mut(key) else {
            return false;
        };
        users.remove(&peer);
        let is_unused = users.is_empty();
        if is_unused {
            self.users.remove(key);
        }
        is_unused && self.renumber()
    }

    /// `peer` is gone; answers whether numbers changed.
    pub fn remove_peer(&mut self, peer: PeerName) -> bool {
        let before = self.users.len();
        self.users.retain(|_, users| {
            users.remove(&peer);
            !users.is_empty()
        });
        self.users.len() != before && self.renumber()
    }

    /// The number of a network somebody uses.
    pub fn number(&self, key: &NetworkKey) -> Option<Network> {
        if *key == NetworkKey::Default {
            return Some(Network::DEFAULT);
        }
        self.numbers.get(key).copied()
    }

    /// All networks that anybody uses beside the default one.
    pub fn keys(&self) -> impl Iterator<Item = &NetworkKey> {
        self.users.keys()
    }

    /// The networks a peer uses beside the default one.
    pub fn of(&self, peer: PeerName) -> impl Iterator<Item = &NetworkKey> {
        let used = self.users.iter();
        used.filter_map(move |(key, users)| users.contains(&peer).then_some(key))
    }

    /// Who uses a network.
    pub fn users(&self, key: &NetworkKey) -> impl Iterator<Item = PeerName> {
        self.users.get(key).into_iter().flatten().copied()
    }

    /// Finds every number anew, and answers whether that of a key that had one is another now, or a key
    /// came or went.
    fn renumber(&mut self) -> bool {
        let mut taken = BTreeSet::from([Network::DEFAULT]);
        let mut numbers = BTreeMap::new();
        for key in self.users.keys() {
            let number = choices(key).find(|number| taken.insert(*number));
            numbers.extend(number.map(|number| (key.clone(), number)));
        }
        let before = std::mem::replace(&mut self.numbers, numbers);
        before != self.numbers
    }
}

/// The numbers a key may have, in the order it takes them. Far more than there are networks, so one
/// of them is free.
pub fn choices(key: &NetworkKey) -> impl Iterator<Item = Network> {
    let text = key.to_string();
    (0..u32::MAX).map(move |round| {
        let mut hash = Context::new(&SHA256);
        hash.update(DOMAIN);
        hash.update(&round.to_be_bytes());
        hash.update(text.as_bytes());
        let hash = hash.finish();
        Network::from_bytes(hash.as_ref().first_chunk().copied().unwrap_or_default())
    })
}

/// Keeps these hashes apart from all others.
const DOMAIN: &[u8] = b"weft network 1";
/// Networks in all that are kept account of.
pub const MAX_NETWORKS: usize = 4096;
/// Of one peer; each is a bridge and a TAP there.
pub const MAX_NETWORKS_OF_PEER: usize = 256;

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    const US: PeerName = PeerName::from_bytes([2, 0, 0, 0, 0, 1]);
    const THEM: PeerName = PeerName::from_bytes([2, 0, 0, 0, 0, 2]);

    fn key(number: usize) -> NetworkKey {
        NetworkKey::named(&format!("net-{number}")).unwrap()
    }

    /// The first two keys with one number, the smaller one first. Found once: it takes thousands of hashes.
    fn colliding() -> (NetworkKey, NetworkKey) {
        static FOUND: LazyLock<(NetworkKey, NetworkKey)> = LazyLock::new(find_colliding);
        FOUND.clone()
    }

    fn find_colliding() -> (NetworkKey, NetworkKey) {
        let mut first = BTreeMap::new();
        for key in (0..).map(key) {
            let number = choices(&key).next().unwrap();
            if let Some(other) = first.insert(number, key.clone()) {
                return if other < key {
                    (other, key)
                } else {
                    (key, other)
                };
            }
        }
        unreachable!("24 bits are used up some time")
    }

    #[test]
    fn a_number_follows_from_the_key_alone() {
        let mut networks = Networks::new();
        assert_eq!(networks.add(US, &key(1)), Ok(true));
        assert_eq!(networks.number(&key(1)), choices(&key(1)).next());
        assert_eq!(networks.number(&key(2)), None);
        let by_hand = NetworkKey::named("blue").unwrap();
        assert_eq!(
            choices(&by_hand).next().map(Network::to_bytes),
            Some([0x85, 0x2d, 0x9c]),
            "another number on the wire cuts hosts of two versions off each other"
        );
    }

    #[test]
    fn the_default_network_is_number_0_whoever_uses_it() {
        let mut networks = Networks::new();
        assert_eq!(
            networks.number(&NetworkKey::Default),
            Some(Network::DEFAULT)
        );
        assert_eq!(networks.add(US, &NetworkKey::Default), Ok(false));
        assert_eq!(networks.of(US).count(), 0);
    }

    #[test]
    fn of_two_keys_with_one_number_the_larger_moves_and_comes_back() {
        let (smaller, larger) = colliding();
        let number = choices(&smaller).next();
        let mut networks = Networks::new();
        networks.add(US, &larger).unwrap();
        assert_eq!(networks.number(&larger), number);
        assert_eq!(networks.add(THEM, &smaller), Ok(true));
        assert_eq!(networks.number(&smaller), number);
        assert_eq!(networks.number(&larger), choices(&larger).nth(1));
        assert!(networks.remove_peer(THEM));
        assert_eq!(networks.number(&larger), number);
    }

    #[test]
    fn a_network_is_known_as_long_as_anybody_uses_it() {
        let mut networks = Networks::new();
        assert_eq!(networks.add(US, &key(1)), Ok(true));
        assert_eq!(networks.add(THEM, &key(1)), Ok(false));
        assert_eq!(networks.users(&key(1)).collect::<Vec<_>>(), [US, THEM]);
        assert!(!networks.remove(US, &key(1)));
        assert!(networks.number(&key(1)).is_some());
        assert!(networks.remove(THEM, &key(1)));
        assert_eq!(networks, Networks::new());
        assert!(!networks.remove(THEM, &key(1)));
    }

    #[test]
    fn one_peer_cannot_use_up_the_memory() {
        let mut networks = Networks::new();
        for number in 0..MAX_NETWORKS_OF_PEER {
            networks.add(THEM, &key(number)).unwrap();
        }
        let more = key(MAX_NETWORKS_OF_PEER);
        let refused = networks.add(THEM, &more);
        assert_eq!(refused, Err(TooMany(MAX_NETWORKS_OF_PEER)));
        assert_eq!(networks.add(THEM, &key(0)), Ok(false));
        assert_eq!(networks.add(US, &more), Ok(true));
    }

    proptest! {
        #[test]
        fn whoever_knows_the_same_keys_has_the_same_numbers(
            uses in prop::collection::vec((0_u8..4, 0_usize..40), 0..60),
            order in any::<prop::sample::Index>(),
        ) {
            let peer = |n| PeerName::from_bytes([2, 0, 0, 0, 0, n]);
            let (colliding, moved) = colliding();
            let mut ours = Networks::new();
            let mut theirs = Networks::new();
            for key in [&colliding, &moved] {
                ours.add(US, key).unwrap();
            }
            for (by, number) in &uses {
                ours.add(peer(*by), &key(*number)).unwrap();
            }
            // The other one hears of it in another order, and of some that went since.
            theirs.add(peer(9), &key(99)).unwrap();
            let (later, sooner) = uses.split_at(order.index(uses.len().max(1)).min(uses.len()));
            for (by, number) in sooner.iter().chain(later) {
                theirs.add(peer(*by), &key(*number)).unwrap();
            }
            for key in [&moved, &colliding] {
                theirs.add(US, key).unwrap();
            }
            theirs.remove_peer(peer(9));
            prop_assert_eq!(&ours, &theirs);
            let distinct: BTreeSet<_> = ours.numbers.values().collect();
            prop_assert_eq!(distinct.len(), ours.users.len());
        }
    }
}
