//! Where each MAC address is: the table the control side owns, and the view the threads read.
//!
//! The router learns from the source addresses of frames, as a bridge does. A frame whose source is
//! where the table has it, nearly every frame, must cost next to nothing and write to nothing that
//! threads share; so learning is split in two:
//!
//! * [`MacView`] is an immutable copy. A thread looks up where a frame is to go, and asks whether its
//!   source is news ([`MacView::is_news`]). That leaves a mark at the entry, one relaxed flag that is
//!   written only if it is not set.
//! * [`MacTable`] takes the news, hands out new views, and collects the marks when it ages entries
//!   out ([`MacTable::age_out`]), so no thread needs a clock. What was marked counts as seen when
//!   the mark is collected: an entry is as exact in time as that is called often.
//!
//! A view shares its map with the table until the table changes, so taking one costs nothing, and a
//! change after that one copy of the map.
//!
//! Invariants: at most [`MAX_MACS`] entries, [`MAX_MACS_PER_LOCATION`] of them in one place; no group
//! addresses; the table and its newest view have the same entries in the same places.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use weft_wire::{MacAddr, Network, PeerName};

/// Where a MAC address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Location {
    /// On a bridge of this host.
    Local,
    /// On a bridge of another peer's host.
    Peer(PeerName),
}

impl Location {
    /// The other peer; `None` for this host.
    pub fn peer(self) -> Option<PeerName> {
        match self {
            Self::Local => None,
            Self::Peer(peer) => Some(peer),
        }
    }
}

/// What the table made of a MAC that was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learned {
    /// It is where it was.
    Known,
    /// It was not in the table.
    New,
    /// It was somewhere else.
    Moved {
        /// Where it was.
        from: Location,
    },
    /// The table, or what it takes for one place, is full; frames for this MAC are flooded.
    Full,
    /// It is a group address, which no sender has.
    Group,
}

/// One entry of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MacEntry {
    /// The network the address is used in.
    pub network: Network,
    /// The address.
    pub mac: MacAddr,
    /// Where it is.
    pub location: Location,
    /// When it was last seen to send; see the module about how exact this is.
    pub last_seen: Instant,
}

type Key = (Network, MacAddr);

/// Looked at for each frame, which is why the hash is a fast one; it is seeded, and the map bounded.
type Places = HashMap<Key, Place, RandomState>;

/// Where each MAC is, bounded and ageing.
#[derive(Debug, Default)]
pub struct MacTable {
    last_seen: BTreeMap<Key, Instant>,
    places: Arc<Places>,
    count: BTreeMap<Location, usize>,
    refused: u64,
}

/// What the views know of one MAC.
#[derive(Debug, Clone)]
struct Place {
    location: Location,
    /// Set by whoever sees the MAC here, cleared by the table.
    seen: Arc<AtomicBool>,
}

impl MacTable {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes that `mac` has sent from `location`.
    pub fn learn(
        &mut self,
        network: Network,
        mac: MacAddr,
        location: Location,
        now: Instant,
    ) -> Learned {
        if mac.is_multicast() {
            return Learned::Group;
        }
        let key = (network, mac);
        let before = self.lookup(network, mac);
        if before == Some(location) {
            self.last_seen.insert(key, now);
            return Learned::Known;
        }
        let crowded = self.count_at(location) >= MAX_MACS_PER_LOCATION;
        if crowded || before.is_none() && self.len() >= MAX_MACS {
            self.refused += 1;
            return Learned::Full;
        }
        self.remove(key);
        self.last_seen.insert(key, now);
        *self.count.entry(location).or_default() += 1;
        let seen = Arc::default();
        Arc::make_mut(&mut self.places).insert(key, Place { location, seen });
        before.map_or(Learned::New, |from| Learned::Moved { from })
    }

    /// Where `mac` is, as far as is known.
    pub fn lookup(&self, network: Network, mac: MacAddr) -> Option<Location> {
        Some(self.places.get(&(network, mac))?.location)
    }

    /// Removes all MACs of `peer`; returns them in order.
    pub fn remove_peer(&mut self, peer: PeerName) -> Vec<(Network, MacAddr)> {
        let gone = self.keys_of(|place, _| place.location == Location::Peer(peer));
        for key in &gone {
            self.remove(*key);
        }
        gone
    }

    /// Collects what the views have seen since the last call, and removes what nobody has seen for
    /// [`MAX_AGE`]; returns that in order.
    pub fn age_out(&mut self, now: Instant) -> Vec<(Network, MacAddr, Location)> {
        for (key, last_seen) in &mut self.last_seen {
            let place = self.places.get(key);
            if place.is_some_and(|place| place.seen.swap(false, Ordering::Relaxed)) {
                *last_seen = now;
            }
        }
        let old = self.keys_of(|_, seen| now.saturating_duration_since(seen) >= MAX_AGE);
        old.into_iter()
            .filter_map(|key| Some((key.0, key.1, self.remove(key)?)))
            .collect()
    }

    /// All entries, by network and MAC.
    pub fn iter(&self) -> impl Iterator<Item = MacEntry> + '_ {
        self.last_seen.iter().filter_map(|(key, last_seen)| {
            Some(MacEntry {
                network: key.0,
                mac: key.1,
                location: self.places.get(key)?.location,
                last_seen: *last_seen,
            })
        })
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// How often a MAC was not taken because of a bound.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// The table as it is now, for the threads.
    pub fn view(&self) -> MacView {
        MacView {
            places: self.places.clone(),
        }
    }

    fn count_at(&self, location: Location) -> usize {
        self.count.get(&location).copied().unwrap_or(0)
    }

    fn keys_of(&self, wanted: impl Fn(&Place, Instant) -> bool) -> Vec<Key> {
        let entries = self.last_seen.iter().filter(|(key, last_seen)| {
            let place = self.places.get(key);
            place.is_some_and(|place| wanted(place, **last_seen))
        });
        entries.map(|(key, _)| *key).collect()
    }

    fn remove(&mut self, key: Key) -> Option<Location> {
        self.last_seen.remove(&key)?;
        let location = Arc::make_mut(&mut self.places).remove(&key)?.location;
        if let Some(count) = self.count.get_mut(&location) {
            *count -= 1;
            if *count == 0 {
                self.count.remove(&location);
            }
        }
        Some(location)
    }

    /// Asserts the invariants of the module.
    #[cfg(test)]
    fn check(&self) {
        assert!(self.len() <= MAX_MACS);
        assert!(self.last_seen.keys().eq(self.places_in_order().iter()));
        let mut count = BTreeMap::new();
        for entry in self.iter() {
            *count.entry(entry.location).or_default() += 1;
            assert!(!entry.mac.is_multicast());
        }
        assert_eq!(count, self.count);
        assert!(count.values().all(|n| *n <= MAX_MACS_PER_LOCATION));
    }

    #[cfg(test)]
    fn places_in_order(&self) -> std::collections::BTreeSet<Key> {
        self.places.keys().copied().collect()
    }
}

/// The MAC table as it was at one moment, shared by the threads that forward frames.
#[derive(Debug, Clone, Default)]
pub struct MacView {
    places: Arc<Places>,
}

impl MacView {
    /// Where `mac` is, as far as is known.
    pub fn lookup(&self, network: Network, mac: MacAddr) -> Option<Location> {
        Some(self.places.get(&(network, mac))?.location)
    }

    /// Whether the table should be told ([`MacTable::learn`]) that `mac` has sent from `location`:
    /// it is not known there. If it is, that it was seen again is noted here.
    ///
    /// Group addresses are never news.
    pub fn is_news(&self, network: Network, mac: MacAddr, location: Location) -> bool {
        let place = self.places.get(&(network, mac));
        match place.filter(|place| place.location == location) {
            Some(place) => {
                // Reading first keeps the cache line shared among threads.
                if !place.seen.load(Ordering::Relaxed) {
                    place.seen.store(true, Ordering::Relaxed);
                }
                false
            }
            None => !mac.is_multicast(),
        }
    }
}

/// The most entries in all; it bounds the memory (about 10 MB) and what copying the map costs.
pub const MAX_MACS: usize = 65_536;
/// The most entries in one place, so that one host gone mad does not fill the table for all: as
/// many as a Linux bridge has ports (`BR_MAX_PORTS`).
pub const MAX_MACS_PER_LOCATION: usize = 1024;
/// An entry nobody has seen for so long is removed. Twice what a Linux bridge waits, because a host
/// may be silent longer than the ARP entries of those who talk to it live.
pub const MAX_AGE: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_mac_is_new_then_known_then_moved() {
        let mut table = MacTable::new();
        let now = start();
        assert_eq!(table.learn(NET, mac(1), at(1), now), Learned::New);
        assert_eq!(table.learn(NET, mac(1), at(1), now), Learned::Known);
        let moved = Learned::Moved { from: at(1) };
        assert_eq!(table.learn(NET, mac(1), Location::Local, now), moved);
        assert_eq!(table.lookup(NET, mac(1)), Some(Location::Local));
        table.check();
    }

    #[test]
    fn networks_are_apart() {
        let mut table = MacTable::new();
        let other = Network::from_bytes([0, 0, 1]);
        table.learn(NET, mac(1), at(1), start());
        assert_eq!(table.lookup(other, mac(1)), None);
        assert_eq!(table.learn(other, mac(1), at(2), start()), Learned::New);
        assert_eq!(table.lookup(NET, mac(1)), Some(at(1)));
    }

    #[test]
    fn group_addresses_are_never_learned_nor_news() {
        let mut table = MacTable::new();
        let group = MacAddr::BROADCAST;
        assert_eq!(table.learn(NET, group, at(1), start()), Learned::Group);
        assert!(!table.view().is_news(NET, group, at(1)));
        table.check();
    }

    #[test]
    fn an_entry_nobody_sees_goes_after_its_time() {
        let mut table = MacTable::new();
        table.learn(NET, mac(1), at(1), start());
        let before = start() + MAX_AGE - Duration::from_secs(1);
        assert_eq!(table.age_out(before), []);
        assert_eq!(table.age_out(start() + MAX_AGE), [(NET, mac(1), at(1))]);
        assert!(table.is_empty());
        table.check();
    }

    #[test]
    fn what_a_view_sees_keeps_the_entry() {
        let mut table = MacTable::new();
        table.learn(NET, mac(1), at(1), start());
        let view = table.view();
        // A change behind the view's back: the entry is still one and the same.
        table.learn(NET, mac(2), at(1), start());
        let late = start() + MAX_AGE;
        assert!(!view.is_news(NET, mac(1), at(1)));
        assert_eq!(table.age_out(late), [(NET, mac(2), at(1))]);
        let seen = table.iter().map(|e| (e.mac, e.last_seen));
        assert_eq!(seen.collect::<Vec<_>>(), [(mac(1), late)]);
        assert_eq!(table.age_out(late + MAX_AGE), [(NET, mac(1), at(1))]);
    }

    #[test]
    fn a_mac_seen_elsewhere_is_news_and_not_a_sign_of_life() {
        let mut table = MacTable::new();
        table.learn(NET, mac(1), at(1), start());
        assert!(table.view().is_news(NET, mac(1), at(2)));
        assert!(table.view().is_news(NET, mac(1), Location::Local));
        assert!(table.view().is_news(NET, mac(2), at(1)));
        assert_eq!(table.age_out(start() + MAX_AGE).len(), 1);
    }

    #[test]
    fn a_view_does_not_change() {
        let mut table = MacTable::new();
        table.learn(NET, mac(1), at(1), start());
        let view = table.view();
        table.learn(NET, mac(1), at(2), start());
        table.remove_peer(peer(2));
        assert_eq!(view.lookup(NET, mac(1)), Some(at(1)));
        assert_eq!(table.view().lookup(NET, mac(1)), None);
    }

    #[test]
    fn a_peer_that_is_gone_takes_its_macs_along() {
        let mut table = MacTable::new();
        for (n, location) in [(3, at(1)), (1, at(1)), (2, at(2)), (4, Location::Local)] {
            table.learn(NET, mac(n), location, start());
        }
        assert_eq!(table.remove_peer(peer(1)), [(NET, mac(1)), (NET, mac(3))]);
        assert_eq!(table.len(), 2);
        assert_eq!(table.remove_peer(peer(1)), []);
        table.check();
    }

    #[test]
    fn one_peer_cannot_fill_the_table() {
        let mut table = MacTable::new();
        for n in 0..MAX_MACS_PER_LOCATION {
            assert_eq!(table.learn(NET, mac(n), at(1), start()), Learned::New);
        }
        let next = mac(MAX_MACS_PER_LOCATION);
        assert_eq!(table.learn(NET, next, at(1), start()), Learned::Full);
        assert_eq!(table.learn(NET, mac(0), at(1), start()), Learned::Known);
        assert_eq!(table.learn(NET, next, at(2), start()), Learned::New);
        assert_eq!(table.learn(NET, next, at(1), start()), Learned::Full);
        assert_eq!(table.lookup(NET, next), Some(at(2)));
        assert_eq!(table.refused(), 2);
        table.check();
    }

    #[test]
    fn a_full_table_takes_moves_but_nothing_new() {
        let mut table = MacTable::new();
        for n in 0..MAX_MACS {
            let learned = table.learn(NET, mac(n), at(n / MAX_MACS_PER_LOCATION), start());
            assert_eq!(learned, Learned::New);
        }
        assert_eq!(
            table.learn(NET, mac(MAX_MACS), at(99), start()),
            Learned::Full
        );
        let moved = Learned::Moved { from: at(0) };
        assert_eq!(table.learn(NET, mac(0), at(99), start()), moved);
        table.check();
    }

    proptest! {
        #[test]
        fn the_table_and_its_views_agree_whatever_happens(steps in prop::collection::vec(step(), 0..60)) {
            let mut table = MacTable::new();
            let mut now = start();
            for step in steps {
                match step {
                    Step::Learn(n, location) => {
                        let news = table.view().is_news(NET, mac(n), location);
                        let learned = table.learn(NET, mac(n), location, now);
                        prop_assert_eq!(news, learned != Learned::Known);
                        prop_assert!(!table.view().is_news(NET, mac(n), location));
                    }
                    Step::RemovePeer(n) => {
                        table.remove_peer(peer(n));
                    }
                    Step::AgeOut(minutes) => {
                        now += Duration::from_secs(60 * minutes);
                        table.age_out(now);
                    }
                }
                table.check();
            }
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Learn(usize, Location),
        RemovePeer(usize),
        AgeOut(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let location = prop_oneof![Just(Location::Local), (0..3_usize).prop_map(at)];
        prop_oneof![
            5 => (0..6_usize, location).prop_map(|(n, location)| Step::Learn(n, location)),
            1 => (0..3_usize).prop_map(Step::RemovePeer),
            2 => (0..12_u64).prop_map(Step::AgeOut),
        ]
    }

    const NET: Network = Network::DEFAULT;

    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant comes from nowhere else"
    )]
    fn start() -> Instant {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        *START.get_or_init(Instant::now)
    }

    fn mac(n: usize) -> MacAddr {
        MacAddr::from_bytes([2, 0, 0, (n >> 16) as u8, (n >> 8) as u8, n as u8])
    }

    fn peer(n: usize) -> PeerName {
        PeerName::from_bytes([2, 1, 0, 0, (n >> 8) as u8, n as u8])
    }

    fn at(n: usize) -> Location {
        Location::Peer(peer(n))
    }
}
