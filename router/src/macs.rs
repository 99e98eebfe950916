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
//! Besides being seen, a MAC may be *claimed* for a place, by whoever attached the container it belongs
//! to ([`Kind::Registered`]), or by a peer that saw it at home ([`Kind::Learned`]). Where it is then:
//!
//! * where it was registered, whatever is seen elsewhere; if in several places, the last of these that
//!   registered it or sent from it;
//! * else where it was seen last;
//! * else where somebody says to have learned it.
//!
//! Invariants: at most [`MAX_MACS`] entries, of which in one place [`MAX_MACS_PER_LOCATION`] were only
//! seen, and [`MAX_CLAIMS_PER_LOCATION`] are claimed for it; no group addresses; a claimed MAC has an
//! entry; the table and its newest view have the same entries in the same places.

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

/// How somebody knows that a MAC is in a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// It was seen to send from there.
    Learned,
    /// A container with it was attached there.
    Registered,
}

/// What the table made of a MAC that was seen, or claimed.
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
    /// It stays where it is: that counts more.
    Kept {
        /// Where it is.
        at: Location,
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
    /// How somebody says to know that it is there; none if it was only seen.
    pub claim: Option<Kind>,
    /// When it was last seen to send, or claimed; see the module about how exact this is.
    pub last_seen: Instant,
}

/// A MAC is elsewhere now, or nowhere.
pub type Placed = (Network, MacAddr, Option<Location>);

type Key = (Network, MacAddr);

/// Looked at for each frame, which is why the hash is a fast one; it is seeded, and the map bounded.
type Places = HashMap<Key, Place, RandomState>;

/// Where each MAC is, bounded and ageing.
#[derive(Debug, Default)]
pub struct MacTable {
    last_seen: BTreeMap<Key, Instant>,
    places: Arc<Places>,
    claims: BTreeMap<Key, BTreeMap<Location, Kind>>,
    claimed: BTreeMap<Location, usize>,
    /// Entries in a place that are not claimed for it.
    count: BTreeMap<Location, usize>,
    refused: u64,
}

/// What the views know of one MAC.
#[derive(Debug, Clone)]
struct Place {
    location: Location,
    /// It was registered here and nowhere else, so what is seen elsewhere is no news.
    settled: bool,
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
        let claim = self.claim_of(key, location);
        if let Some(at) = before
            && claim != Some(Kind::Registered)
            && self.registered_at(key).next().is_some()
        {
            return Learned::Kept { at };
        }
        let crowded = claim.is_none() && self.count_at(location) >= MAX_MACS_PER_LOCATION;
        if crowded || before.is_none() && self.len() >= MAX_MACS {
            self.refused += 1;
            return Learned::Full;
        }
        self.place(key, location, now);
        before.map_or(Learned::New, |from| Learned::Moved { from })
    }

    /// Notes that somebody says where `mac` is, in place of what was said of it and this `location`
    /// before. It stays said until [`Self::withdraw`].
    pub fn claim(
        &mut self,
        network: Network,
        mac: MacAddr,
        location: Location,
        kind: Kind,
        now: Instant,
    ) -> Learned {
        if mac.is_multicast() {
            return Learned::Group;
        }
        let key = (network, mac);
        let before = self.lookup(network, mac);
        let known = self.claim_of(key, location);
        let crowded = known.is_none() && self.claimed_at(location) >= MAX_CLAIMS_PER_LOCATION;
        if crowded || before.is_none() && self.len() >= MAX_MACS {
            self.refused += 1;
            return Learned::Full;
        }
        // The entry is counted by whether its place is claimed, so it is put back after that changed.
        let last_seen = self.last_seen.get(&key).copied().unwrap_or(now);
        self.unplace(key);
        self.claims.entry(key).or_default().insert(location, kind);
        if known.is_none() {
            *self.claimed.entry(location).or_default() += 1;
        }
        let moves = kind == Kind::Registered && known != Some(kind);
        let at = self.choose(key, if moves { Some(location) } else { before });
        self.place(key, at.unwrap_or(location), last_seen);
        match (before, at) {
            (None, _) => Learned::New,
            (Some(from), Some(at)) if from != at => Learned::Moved { from },
            (Some(at), _) if at != location => Learned::Kept { at },
            (Some(_), _) => Learned::Known,
        }
    }

    /// Notes that nobody says any more that `mac` is at `location`. Tells where it is after that if
    /// it was there.
    pub fn withdraw(
        &mut self,
        network: Network,
        mac: MacAddr,
        location: Location,
    ) -> Option<Placed> {
        let key = (network, mac);
        self.claim_of(key, location)?;
        let was = self.places.get(&key)?.location;
        let last_seen = self.unplace(key)?;
        self.unclaim(key, location);
        let stays = Some(was).filter(|was| *was != location);
        let at = self.choose(key, stays);
        if let Some(at) = at {
            self.place(key, at, last_seen);
        }
        (at != Some(was)).then_some((network, mac, at))
    }

    /// Where `mac` is, as far as is known.
    pub fn lookup(&self, network: Network, mac: MacAddr) -> Option<Location> {
        Some(self.places.get(&(network, mac))?.location)
    }

    /// Removes all MACs of `peer`, and all it said; returns, in order, where they are after that.
    pub fn remove_peer(&mut self, peer: PeerName) -> Vec<Placed> {
        let gone = Location::Peer(peer);
        let said = self.claims.iter();
        let said = said.filter(|(_, claims)| claims.contains_key(&gone));
        let said: Vec<Key> = said.map(|(key, _)| *key).collect();
        let mut placed: BTreeMap<Key, Option<Location>> = said
            .into_iter()
            .filter_map(|(network, mac)| self.withdraw(network, mac, gone))
            .map(|(network, mac, at)| ((network, mac), at))
            .collect();
        for key in self.keys_of(|_, place, _| place.location == gone) {
            placed.insert(key, self.leave(key));
        }
        let placed = placed.into_iter();
        placed
            .map(|((network, mac), at)| (network, mac, at))
            .collect()
    }

    /// Collects what the views have seen since the last call, and removes what nobody has seen for
    /// [`MAX_AGE`] nor claims; returns that in order.
    pub fn age_out(&mut self, now: Instant) -> Vec<Placed> {
        for (key, last_seen) in &mut self.last_seen {
            let place = self.places.get(key);
            if place.is_some_and(|place| place.seen.swap(false, Ordering::Relaxed)) {
                *last_seen = now;
            }
        }
        let old = self.keys_of(|key, place, seen| {
            now.saturating_duration_since(seen) >= MAX_AGE
                && self.claim_of(key, place.location).is_none()
        });
        old.into_iter()
            .map(|key| (key.0, key.1, self.leave(key)))
            .collect()
    }

    /// All entries, by network and MAC.
    pub fn iter(&self) -> impl Iterator<Item = MacEntry> + '_ {
        self.last_seen.iter().filter_map(|(key, last_seen)| {
            let location = self.places.get(key)?.location;
            Some(MacEntry {
                network: key.0,
                mac: key.1,
                location,
                claim: self.claim_of(*key, location),
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

    fn claimed_at(&self, location: Location) -> usize {
        self.claimed.get(&location).copied().unwrap_or(0)
    }

    fn claim_of(&self, key: Key, location: Location) -> Option<Kind> {
        self.claims.get(&key)?.get(&location).copied()
    }

    fn registered_at(&self, key: Key) -> impl Iterator<Item = Location> {
        let claims = self.claims.get(&key).into_iter().flatten();
        let registered = claims.filter(|(_, kind)| **kind == Kind::Registered);
        registered.map(|(location, _)| *location)
    }

    /// Where a MAC is by what is claimed, if nothing counts more than that it was, or is said to be,
    /// at `hint`.
    fn choose(&self, key: Key, hint: Option<Location>) -> Option<Location> {
        let mut registered = self.registered_at(key).peekable();
        if let Some(first) = registered.peek().copied() {
            return hint
                .filter(|hint| registered.any(|at| at == *hint))
                .or(Some(first));
        }
        let claimed = || self.claims.get(&key)?.keys().next().copied();
        hint.or_else(claimed)
    }

    fn keys_of(&self, wanted: impl Fn(Key, &Place, Instant) -> bool) -> Vec<Key> {
        let entries = self.last_seen.iter().filter(|(key, last_seen)| {
            let place = self.places.get(key);
            place.is_some_and(|place| wanted(**key, place, **last_seen))
        });
        entries.map(|(key, _)| *key).collect()
    }

    /// Takes a MAC from where it was only seen; it goes where it is said to be, if anywhere.
    fn leave(&mut self, key: Key) -> Option<Location> {
        let last_seen = self.unplace(key)?;
        let at = self.choose(key, None)?;
        self.place(key, at, last_seen);
        Some(at)
    }

    /// Puts a MAC in a place, wherever it was before.
    fn place(&mut self, key: Key, location: Location, last_seen: Instant) {
        self.unplace(key);
        self.last_seen.insert(key, last_seen);
        if self.claim_of(key, location).is_none() {
            *self.count.entry(location).or_default() += 1;
        }
        let mut registered = self.registered_at(key);
        let settled = registered.next() == Some(location) && registered.next().is_none();
        drop(registered);
        let place = Place {
            location,
            settled,
            seen: Arc::default(),
        };
        Arc::make_mut(&mut self.places).insert(key, place);
    }

    /// Takes an entry out; its claims stay. Tells when it was last seen.
    fn unplace(&mut self, key: Key) -> Option<Instant> {
        let location = Arc::make_mut(&mut self.places).remove(&key)?.location;
        if self.claim_of(key, location).is_none() {
            take_one(&mut self.count, location);
        }
        self.last_seen.remove(&key)
    }

    fn unclaim(&mut self, key: Key, location: Location) {
        if let Some(claims) = self.claims.get_mut(&key)
            && claims.remove(&location).is_some()
        {
            if claims.is_empty() {
                self.claims.remove(&key);
            }
            take_one(&mut self.claimed, location);
        }
    }

    /// Asserts the invariants of the module.
    #[cfg(test)]
    fn check(&self) {
        assert!(self.len() <= MAX_MACS);
        assert!(self.last_seen.keys().eq(self.places_in_order().iter()));
        let mut count = BTreeMap::new();
        for entry in self.iter() {
            let key = (entry.network, entry.mac);
            if self.claim_of(key, entry.location).is_none() {
                *count.entry(entry.location).or_default() += 1;
            }
            assert!(!entry.mac.is_multicast());
            let registered = entry.claim == Some(Kind::Registered);
            assert!(registered || self.registered_at(key).next().is_none());
        }
        assert_eq!(count, self.count);
        assert!(count.values().all(|n| *n <= MAX_MACS_PER_LOCATION));
        let mut claimed = BTreeMap::new();
        for (key, claims) in &self.claims {
            assert!(self.places.contains_key(key) && !claims.is_empty());
            for location in claims.keys() {
                *claimed.entry(*location).or_default() += 1;
            }
        }
        assert_eq!(claimed, self.claimed);
        assert!(claimed.values().all(|n| *n <= MAX_CLAIMS_PER_LOCATION));
    }

    #[cfg(test)]
    fn places_in_order(&self) -> std::collections::BTreeSet<Key> {
        self.places.keys().copied().collect()
    }
}

fn take_one(counts: &mut BTreeMap<Location, usize>, location: Location) {
    if let Some(count) = counts.get_mut(&location) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&location);
        }
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
    /// it is not known there, and not only there for sure. If it is known there, that it was seen again
    /// is noted here.
    ///
    /// Group addresses are never news.
    pub fn is_news(&self, network: Network, mac: MacAddr, location: Location) -> bool {
        match self.places.get(&(network, mac)) {
            Some(place) if place.location == location => {
                // Reading first keeps the cache line shared among threads.
                if !place.seen.load(Ordering::Relaxed) {
                    place.seen.store(true, Ordering::Relaxed);
                }
                false
            }
            Some(place) => !place.settled,
            None => !mac.is_multicast(),
        }
    }
}

/// The most entries in all; it bounds the memory (about 10 MB) and what copying the map costs.
pub const MAX_MACS: usize = 65_536;
/// The most entries in one place that were only seen there, so that one host gone mad does not fill the
/// table for all: as many as a Linux bridge has ports (`BR_MAX_PORTS`).
pub const MAX_MACS_PER_LOCATION: usize = 1024;
/// The most MACs that may be claimed for one place: a container at each port of a bridge, and as many
/// that were learned.
pub const MAX_CLAIMS_PER_LOCATION: usize = 2 * MAX_MACS_PER_LOCATION;
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
        assert_eq!(table.age_out(start() + MAX_AGE), [(NET, mac(1), None)]);
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
        assert_eq!(table.age_out(late), [(NET, mac(2), None)]);
        let seen = table.iter().map(|e| (e.mac, e.last_seen));
        assert_eq!(seen.collect::<Vec<_>>(), [(mac(1), late)]);
        assert_eq!(table.age_out(late + MAX_AGE), [(NET, mac(1), None)]);
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
        let gone = [(NET, mac(1), None), (NET, mac(3), None)];
        assert_eq!(table.remove_peer(peer(1)), gone);
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

    #[test]
    fn a_registered_mac_is_where_it_was_registered_whatever_is_seen() {
        let mut table = MacTable::new();
        table.learn(NET, mac(1), at(2), start());
        let claimed = table.claim(NET, mac(1), at(1), Kind::Registered, start());
        assert_eq!(claimed, Learned::Moved { from: at(2) });
        assert!(!table.view().is_news(NET, mac(1), at(2)));
        for elsewhere in [at(2), Location::Local] {
            let learned = table.learn(NET, mac(1), elsewhere, start());
            assert_eq!(learned, Learned::Kept { at: at(1) });
            let claimed = table.claim(NET, mac(1), elsewhere, Kind::Learned, start());
            assert_eq!(claimed, Learned::Kept { at: at(1) });
        }
        assert_eq!(table.age_out(start() + MAX_AGE), []);
        table.check();
    }

    #[test]
    fn of_two_that_registered_a_mac_the_last_to_speak_has_it() {
        let mut table = MacTable::new();
        table.claim(NET, mac(1), at(1), Kind::Registered, start());
        table.claim(NET, mac(1), at(2), Kind::Registered, start());
        assert_eq!(table.lookup(NET, mac(1)), Some(at(2)));
        assert!(table.view().is_news(NET, mac(1), at(1)));
        let moved = Learned::Moved { from: at(2) };
        assert_eq!(table.learn(NET, mac(1), at(1), start()), moved);
        // Saying it again moves nothing.
        let again = table.claim(NET, mac(1), at(2), Kind::Registered, start());
        assert_eq!(again, Learned::Kept { at: at(1) });
        let placed = table.withdraw(NET, mac(1), at(1));
        assert_eq!(placed, Some((NET, mac(1), Some(at(2)))));
        table.check();
    }

    #[test]
    fn what_others_learned_counts_less_than_what_is_seen() {
        let mut table = MacTable::new();
        let learned =
            |table: &mut MacTable, n| table.claim(NET, mac(1), at(n), Kind::Learned, start());
        assert_eq!(learned(&mut table, 1), Learned::New);
        assert_eq!(learned(&mut table, 2), Learned::Kept { at: at(1) });
        let seen = table.learn(NET, mac(1), Location::Local, start());
        assert_eq!(seen, Learned::Moved { from: at(1) });
        assert_eq!(table.withdraw(NET, mac(1), at(1)), None);
        let aged = table.age_out(start() + MAX_AGE);
        assert_eq!(aged, [(NET, mac(1), Some(at(2)))]);
        assert_eq!(table.age_out(start() + 2 * MAX_AGE), []);
        let gone = [(NET, mac(1), None)];
        assert_eq!(table.remove_peer(peer(2)), gone);
        table.check();
    }

    #[test]
    fn one_peer_cannot_claim_without_end() {
        let mut table = MacTable::new();
        for n in 0..MAX_CLAIMS_PER_LOCATION {
            let claimed = table.claim(NET, mac(n), at(1), Kind::Registered, start());
            assert_eq!(claimed, Learned::New);
        }
        let next = mac(MAX_CLAIMS_PER_LOCATION);
        let claimed = table.claim(NET, next, at(1), Kind::Registered, start());
        assert_eq!(claimed, Learned::Full);
        assert_eq!(table.learn(NET, next, at(1), start()), Learned::New);
        table.check();
        assert_eq!(
            table.remove_peer(peer(1)).len(),
            MAX_CLAIMS_PER_LOCATION + 1
        );
        assert!(table.is_empty());
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
                        let kept = matches!(learned, Learned::Kept { .. });
                        prop_assert!(kept || news == (learned != Learned::Known));
                        prop_assert!(kept || !table.view().is_news(NET, mac(n), location));
                    }
                    Step::Claim(n, location, kind) => {
                        let before = table.lookup(NET, mac(n));
                        let claimed = table.claim(NET, mac(n), location, kind, now);
                        let after = table.lookup(NET, mac(n));
                        match claimed {
                            Learned::New => prop_assert_eq!((before, after), (None, Some(location))),
                            Learned::Moved { from } => {
                                prop_assert_eq!((before, after), (Some(from), table.lookup(NET, mac(n))));
                                prop_assert_ne!(before, after);
                            }
                            Learned::Kept { at } => {
                                prop_assert_eq!((before, after), (Some(at), Some(at)));
                                prop_assert_ne!(at, location);
                            }
                            Learned::Known => prop_assert_eq!((before, after), (Some(location), Some(location))),
                            Learned::Full | Learned::Group => prop_assert!(false),
                        }
                    }
                    Step::Withdraw(n, location) => {
                        let before = table.lookup(NET, mac(n));
                        let placed = table.withdraw(NET, mac(n), location);
                        let after = table.lookup(NET, mac(n));
                        prop_assert_eq!(placed.is_some(), before != after);
                        prop_assert!(placed.is_none_or(|(_, _, at)| at == after));
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
        Claim(usize, Location, Kind),
        Withdraw(usize, Location),
        RemovePeer(usize),
        AgeOut(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let location = || prop_oneof![Just(Location::Local), (0..3_usize).prop_map(at)];
        let kind = prop_oneof![Just(Kind::Learned), Just(Kind::Registered)];
        prop_oneof![
            5 => (0..6_usize, location()).prop_map(|(n, location)| Step::Learn(n, location)),
            5 => (0..6_usize, location(), kind).prop_map(|(n, location, kind)| Step::Claim(n, location, kind)),
            3 => (0..6_usize, location()).prop_map(|(n, location)| Step::Withdraw(n, location)),
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
