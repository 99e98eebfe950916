//! What this peer tells the others of the MACs on its own host, so that frames for them need not be
//! flooded.
//!
//! ```text
//!            register                              forget
//!   ───────────────────────▶ registered: published ──────▶
//!
//!   seen here        LIFE later, room at its port         gone, or known elsewhere
//!   ─────────▶ waiting ─────────────────────────▶ published ─────────────────────▶
//!                 ▲  │ no room, or at no port
//!                 └──┘ RETRY later
//! ```
//!
//! A MAC that was *registered*, by whoever attached its container, is published at once, with its
//! addresses. One that was merely *learned* waits a little, because there are senders that live for one frame
//! only, and is published without addresses: nobody vouches for them. Which port of the bridge a learned MAC
//! is behind only the host can say, so that it is asked ([`Home::is_due`], [`Home::handle_ports`]).
//!
//! Invariants: at most [`MAX_REGISTERED`] MACs are registered and [`MAX_LEARNED`] learned ones published,
//! [`MAX_LEARNED_PER_PORT`] for one port; what is published was told by [`Home::poll_event`], and what is not
//! any more was withdrawn.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use thiserror::Error;
use weft_wire::{MacAddr, Network};

use crate::macs::{Kind, Location};

/// How long a learned MAC must be there before others hear of it.
pub const LIFE: Duration = Duration::from_secs(2);
/// How long it waits again if there was no room for it.
pub const RETRY: Duration = Duration::from_secs(60);
/// The most registered MACs: a container at each port of a Linux bridge (`BR_MAX_PORTS`).
pub const MAX_REGISTERED: usize = 1024;
/// The most learned MACs that are published.
pub const MAX_LEARNED: usize = 1024;
/// The most of these behind one port, so that one container gone mad does not use all of them up.
pub const MAX_LEARNED_PER_PORT: usize = 64;

/// A MAC in a network.
pub type Key = (Network, MacAddr);

/// A port of a bridge of this host, by the number the kernel has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(pub u32);

/// What is to be said to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The MAC is here, in place of what was said of it before.
    Publish {
        /// The MAC.
        key: Key,
        /// How that is known.
        kind: Kind,
        /// The addresses it has for sure.
        addresses: Vec<IpAddr>,
    },
    /// The MAC is here no more, as far as we know.
    Withdraw {
        /// The MAC.
        key: Key,
    },
}

/// As many MACs as there may be are registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{MAX_REGISTERED} containers have told their MACs already")]
pub struct Full;

/// The MACs of this host, and what of them is published.
#[derive(Debug, Default)]
pub struct Home {
    registered: BTreeMap<Key, Vec<IpAddr>>,
    learned: BTreeMap<Key, Learned>,
    published_at: BTreeMap<Port, usize>,
    events: VecDeque<Event>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Learned {
    Waiting { until: Instant },
    Published { port: Port },
}

impl Home {
    /// Nothing here yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes that a container of this host has this MAC and these addresses; no others any more, if it was
    /// known already.
    ///
    /// # Errors
    /// [`Full`]; then frames for it are flooded until it has spoken.
    pub fn register(&mut self, key: Key, addresses: Vec<IpAddr>) -> Result<(), Full> {
        if self.registered.get(&key) == Some(&addresses) {
            return Ok(());
        }
        if !self.registered.contains_key(&key) && self.registered.len() >= MAX_REGISTERED {
            return Err(Full);
        }
        // What was learned is said anew, so it is not withdrawn.
        self.unlearn(key);
        self.registered.insert(key, addresses.clone());
        self.events.push_back(Event::Publish {
            key,
            kind: Kind::Registered,
            addresses,
        });
        Ok(())
    }

    /// Notes that no container of this host is known to have this MAC any more.
    pub fn forget(&mut self, key: Key) {
        if self.registered.remove(&key).is_some() {
            self.events.push_back(Event::Withdraw { key });
        }
    }

    /// Notes where the MAC table has a MAC from now on.
    pub fn handle_placed(&mut self, key: Key, at: Option<Location>, now: Instant) {
        let is_here = at == Some(Location::Local) && !self.registered.contains_key(&key);
        if is_here {
            let until = now + LIFE;
            self.learned
                .entry(key)
                .or_insert(Learned::Waiting { until });
        } else if let Some(Learned::Published { .. }) = self.unlearn(key) {
            self.events.push_back(Event::Withdraw { key });
        }
    }

    /// When [`Self::is_due`] will hold, and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let waiting = self.learned.values().filter_map(|learned| match learned {
            Learned::Waiting { until } => Some(*until),
            Learned::Published { .. } => None,
        });
        Some((waiting.min()?, "learned MACs are to be published"))
    }

    /// Whether it is time to find out behind which ports MACs are, and call [`Self::handle_ports`].
    pub fn is_due(&self, now: Instant) -> bool {
        self.poll_timeout().is_some_and(|(at, _)| at <= now)
    }

    /// Publishes what has waited long enough and is behind one of the host's ports.
    pub fn handle_ports(&mut self, ports: &BTreeMap<Key, Port>, now: Instant) {
        let is_due =
            |learned: &Learned| matches!(learned, Learned::Waiting { until } if *until <= now);
        let due = self.learned.iter().filter(|(_, learned)| is_due(learned));
        let due: Vec<Key> = due.map(|(key, _)| *key).collect();
        for key in due {
            let port = ports.get(&key).copied();
            let next = match port.filter(|port| self.has_room(*port)) {
                Some(port) => {
                    *self.published_at.entry(port).or_default() += 1;
                    self.events.push_back(Event::Publish {
                        key,
                        kind: Kind::Learned,
                        addresses: Vec::new(),
                    });
                    Learned::Published { port }
                }
                None => Learned::Waiting { until: now + RETRY },
            };
            self.learned.insert(key, next);
        }
    }

    /// The next thing to be said.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// All that is published, in the words of [`Event::Publish`].
    pub fn published(&self) -> impl Iterator<Item = (Key, Kind, &[IpAddr])> {
        let registered = self.registered.iter();
        let registered =
            registered.map(|(key, addresses)| (*key, Kind::Registered, addresses.as_slice()));
        let learned = self.learned.iter().filter_map(|(key, learned)| {
            let published = matches!(learned, Learned::Published { .. });
            published.then_some((*key, Kind::Learned, &[] as &[IpAddr]))
        });
        registered.chain(learned)
    }

    fn has_room(&self, port: Port) -> bool {
        let here = self.published_at.get(&port).copied().unwrap_or(0);
        let all: usize = self.published_at.values().sum();
        here < MAX_LEARNED_PER_PORT && all < MAX_LEARNED
    }

    /// Drops what was learned of a MAC; tells what that was.
    fn unlearn(&mut self, key: Key) -> Option<Learned> {
        let was = self.learned.remove(&key)?;
        if let Learned::Published { port } = was
            && let Some(count) = self.published_at.get_mut(&port)
        {
            *count -= 1;
            if *count == 0 {
                self.published_at.remove(&port);
            }
        }
        Some(was)
    }

    /// Asserts the invariants of the module.
    #[cfg(test)]
    fn check(&self) {
        assert!(self.registered.len() <= MAX_REGISTERED);
        let mut published_at = BTreeMap::new();
        for (key, learned) in &self.learned {
            assert!(!self.registered.contains_key(key));
            if let Learned::Published { port } = learned {
                *published_at.entry(*port).or_default() += 1;
            }
        }
        assert_eq!(published_at, self.published_at);
        assert!(published_at.values().all(|n| *n <= MAX_LEARNED_PER_PORT));
        assert!(published_at.values().sum::<usize>() <= MAX_LEARNED);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use weft_wire::PeerName;

    use super::*;

    #[test]
    fn a_registered_mac_is_published_at_once_and_once() {
        let mut home = Home::new();
        home.register(key(1), vec![ip(1)]).unwrap();
        home.register(key(1), vec![ip(1)]).unwrap();
        home.handle_placed(key(1), Some(Location::Local), start());
        assert_eq!(told(&mut home), [publish(1, Kind::Registered, &[ip(1)])]);
        assert_eq!(home.poll_timeout(), None);
        home.register(key(1), vec![ip(1), ip(2)]).unwrap();
        let both = publish(1, Kind::Registered, &[ip(1), ip(2)]);
        assert_eq!(told(&mut home), [both]);
        home.forget(key(1));
        home.forget(key(1));
        assert_eq!(told(&mut home), [withdraw(1)]);
    }

    #[test]
    fn a_learned_mac_is_published_when_it_has_lived_for_a_while() {
        let mut home = Home::new();
        home.handle_placed(key(1), Some(Location::Local), start());
        assert!(!home.is_due(start() + LIFE / 2));
        home.handle_ports(&ports(&[(1, 7)]), start() + LIFE / 2);
        assert_eq!(told(&mut home), []);
        assert!(home.is_due(start() + LIFE));
        home.handle_ports(&ports(&[(1, 7)]), start() + LIFE);
        assert_eq!(told(&mut home), [publish(1, Kind::Learned, &[])]);
        assert_eq!(home.poll_timeout(), None);
        home.handle_placed(key(1), None, start() + LIFE);
        assert_eq!(told(&mut home), [withdraw(1)]);
        home.check();
    }

    #[test]
    fn a_mac_that_is_gone_before_its_time_is_never_mentioned() {
        let mut home = Home::new();
        home.handle_placed(key(1), Some(Location::Local), start());
        home.handle_placed(key(1), Some(elsewhere()), start() + LIFE / 2);
        assert!(!home.is_due(start() + LIFE));
        home.handle_ports(&ports(&[(1, 7)]), start() + LIFE);
        assert_eq!(told(&mut home), []);
    }

    #[test]
    fn a_mac_at_no_port_waits_on() {
        let mut home = Home::new();
        home.handle_placed(key(1), Some(Location::Local), start());
        home.handle_ports(&ports(&[(2, 7)]), start() + LIFE);
        assert_eq!(told(&mut home), []);
        let again = start() + LIFE + RETRY;
        assert_eq!(home.poll_timeout().unwrap().0, again);
        home.handle_ports(&ports(&[(1, 7)]), again);
        assert_eq!(told(&mut home), [publish(1, Kind::Learned, &[])]);
    }

    #[test]
    fn a_learned_mac_that_is_registered_is_said_anew_and_not_withdrawn() {
        let mut home = Home::new();
        home.handle_placed(key(1), Some(Location::Local), start());
        home.handle_ports(&ports(&[(1, 7)]), start() + LIFE);
        home.register(key(1), vec![ip(1)]).unwrap();
        let expected = [
            publish(1, Kind::Learned, &[]),
            publish(1, Kind::Registered, &[ip(1)]),
        ];
        assert_eq!(told(&mut home), expected);
        home.check();
    }

    #[test]
    fn a_mac_that_another_peer_registers_is_not_ours_to_tell_any_more() {
        let mut home = Home::new();
        home.handle_placed(key(1), Some(Location::Local), start());
        home.handle_ports(&ports(&[(1, 7)]), start() + LIFE);
        told(&mut home);
        home.handle_placed(key(1), Some(elsewhere()), start() + LIFE);
        assert_eq!(told(&mut home), [withdraw(1)]);
        // What we registered ourselves stays said, wherever the table has it.
        home.register(key(2), Vec::new()).unwrap();
        told(&mut home);
        home.handle_placed(key(2), Some(elsewhere()), start() + LIFE);
        assert_eq!(told(&mut home), []);
    }

    #[test]
    fn one_port_cannot_use_all_room_up() {
        let mut home = Home::new();
        let count = MAX_LEARNED_PER_PORT + 1;
        for n in 0..count {
            home.handle_placed(key(n), Some(Location::Local), start());
        }
        let mut at: Vec<_> = (0..count).map(|n| (n, 7)).collect();
        home.handle_ports(&ports(&at), start() + LIFE);
        assert_eq!(told(&mut home).len(), MAX_LEARNED_PER_PORT);
        home.check();
        home.handle_placed(key(count), Some(Location::Local), start());
        at.push((count, 8));
        home.handle_ports(&ports(&at), start() + LIFE);
        assert_eq!(told(&mut home).len(), 1, "another port has room");
        home.handle_placed(key(0), None, start() + LIFE);
        home.handle_ports(&ports(&at), start() + LIFE + RETRY);
        assert_eq!(told(&mut home).len(), 2, "one goes, one comes");
        home.check();
    }

    #[test]
    fn all_ports_together_are_bounded_and_so_is_what_is_registered() {
        let mut home = Home::new();
        let count = MAX_LEARNED + 1;
        for n in 0..count {
            home.handle_placed(key(n), Some(Location::Local), start());
        }
        let at: Vec<_> = (0..count).map(|n| (n, n as u32)).collect();
        home.handle_ports(&ports(&at), start() + LIFE);
        assert_eq!(told(&mut home).len(), MAX_LEARNED);
        for n in 0..MAX_REGISTERED {
            home.register(key(n), Vec::new()).unwrap();
        }
        assert_eq!(home.register(key(MAX_REGISTERED), Vec::new()), Err(Full));
        home.register(key(0), vec![ip(1)]).unwrap();
        home.check();
    }

    proptest! {
        #[test]
        fn what_others_were_told_is_what_is_published(steps in prop::collection::vec(step(), 0..80)) {
            let mut home = Home::new();
            let mut now = start();
            let mut others = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Register(n, addresses) => {
                        home.register(key(n), addresses.into_iter().map(ip).collect()).unwrap();
                    }
                    Step::Forget(n) => home.forget(key(n)),
                    Step::Placed(n, at) => home.handle_placed(key(n), at, now),
                    Step::Ports(seconds) => {
                        now += Duration::from_secs(seconds);
                        home.handle_ports(&ports(&[(0, 1), (1, 1), (2, 2)]), now);
                    }
                }
                for event in told(&mut home) {
                    match event {
                        Event::Publish { key, kind, addresses } => {
                            others.insert(key, (kind, addresses));
                        }
                        Event::Withdraw { key } => prop_assert!(others.remove(&key).is_some()),
                    }
                }
                home.check();
                let published = home.published();
                let published: BTreeMap<_, _> =
                    published.map(|(key, kind, addresses)| (key, (kind, addresses.to_vec()))).collect();
                prop_assert_eq!(&published, &others);
            }
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Register(usize, Vec<usize>),
        Forget(usize),
        Placed(usize, Option<Location>),
        Ports(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let at = prop_oneof![
            4 => Just(Some(Location::Local)),
            1 => Just(Some(elsewhere())),
            1 => Just(None),
        ];
        let addresses = prop::collection::vec(0..4_usize, 0..3);
        prop_oneof![
            2 => (0..4_usize, addresses).prop_map(|(n, addresses)| Step::Register(n, addresses)),
            1 => (0..4_usize).prop_map(Step::Forget),
            4 => (0..4_usize, at).prop_map(|(n, at)| Step::Placed(n, at)),
            2 => (0..90_u64).prop_map(Step::Ports),
        ]
    }

    fn told(home: &mut Home) -> Vec<Event> {
        std::iter::from_fn(|| home.poll_event()).collect()
    }

    fn publish(n: usize, kind: Kind, addresses: &[IpAddr]) -> Event {
        Event::Publish {
            key: key(n),
            kind,
            addresses: addresses.to_vec(),
        }
    }

    fn withdraw(n: usize) -> Event {
        Event::Withdraw { key: key(n) }
    }

    fn ports(at: &[(usize, u32)]) -> BTreeMap<Key, Port> {
        at.iter().map(|(n, port)| (key(*n), Port(*port))).collect()
    }

    fn key(n: usize) -> Key {
        let mac = MacAddr::from_bytes([2, 0, 0, (n >> 16) as u8, (n >> 8) as u8, n as u8]);
        (Network::DEFAULT, mac)
    }

    fn ip(n: usize) -> IpAddr {
        IpAddr::from([10, 32, (n >> 8) as u8, n as u8])
    }

    fn elsewhere() -> Location {
        Location::Peer(PeerName::from_bytes([2, 1, 0, 0, 0, 1]))
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant comes from nowhere else"
    )]
    fn start() -> Instant {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        *START.get_or_init(Instant::now)
    }
}
