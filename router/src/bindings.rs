//! Which MAC has which IP address: what peers registered, and the answer to who asks for one.
//!
//! A container that wants to send to an address asks all others who has it. Where the address belongs
//! to a container that a reachable peer has registered, the router answers by itself ([`answer`]), and
//! nobody else is bothered. As with MACs, [`Bindings`] is the table of the control side and
//! [`BindingView`] the copy that threads read.
//!
//! An address that several places, or several MACs, claim is nobody's: the question passes, and
//! those who have it may answer.
//!
//! Invariants: at most [`MAX_ADDRESSES`] addresses, [`MAX_ADDRESSES_PER_LOCATION`] for one place, each
//! one that a single host can have; the view has an address exactly if there is one MAC in one
//! place for it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use weft_wire::resolution::{Answer, Question};
use weft_wire::{Frame, MacAddr, Network, PeerName};

use crate::macs::Location;
use crate::switch::View;

/// Where an address is: the MAC, and the place it is in.
pub type Holder = (Location, MacAddr);

type Key = (Network, IpAddr);

/// Which MAC has which address, by what was registered; bounded.
#[derive(Debug, Default)]
pub struct Bindings {
    addresses: BTreeMap<(Location, Network, MacAddr), BTreeSet<IpAddr>>,
    holders: BTreeMap<Key, BTreeSet<Holder>>,
    count: BTreeMap<Location, usize>,
    sole: Arc<Sole>,
}

/// Who has each address, where that is one.
type Sole = HashMap<Key, Holder>;

impl Bindings {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes that `mac`, in this place, has these addresses and no others. Tells how many of them were
    /// not taken: because of a bound, or because no single host can have them. Those who ask for
    /// these are not answered by us.
    pub fn bind(
        &mut self,
        network: Network,
        mac: MacAddr,
        location: Location,
        addresses: &[IpAddr],
    ) -> usize {
        self.unbind(network, mac, location);
        let mut taken = BTreeSet::new();
        for addr in addresses.iter().filter(|addr| is_of_one_host(**addr)) {
            let crowded = self.count_at(location) >= MAX_ADDRESSES_PER_LOCATION;
            if crowded || self.len() >= MAX_ADDRESSES || !taken.insert(*addr) {
                continue;
            }
            *self.count.entry(location).or_default() += 1;
            let key = (network, *addr);
            self.holders.entry(key).or_default().insert((location, mac));
            self.refresh(key);
        }
        let left_out = addresses.len() - taken.len();
        if !taken.is_empty() {
            self.addresses.insert((location, network, mac), taken);
        }
        left_out
    }

    /// Notes that `mac`, in this place, has no addresses any more.
    pub fn unbind(&mut self, network: Network, mac: MacAddr, location: Location) {
        let had = self.addresses.remove(&(location, network, mac));
        for addr in had.into_iter().flatten() {
            let key = (network, addr);
            if let Some(holders) = self.holders.get_mut(&key) {
                holders.remove(&(location, mac));
                if holders.is_empty() {
                    self.holders.remove(&key);
                }
            }
            if let Some(count) = self.count.get_mut(&location) {
                *count -= 1;
                if *count == 0 {
                    self.count.remove(&location);
                }
            }
            self.refresh(key);
        }
    }

    /// Removes all that was noted of a peer; tells whether there was anything.
    pub fn remove_peer(&mut self, peer: PeerName) -> bool {
        let gone = Location::Peer(peer);
        let first = (
            gone,
            Network::from_bytes([0; 3]),
            MacAddr::from_bytes([0; 6]),
        );
        let keys = self.addresses.range(first..).map(|(key, _)| *key);
        let keys: Vec<_> = keys
            .take_while(|(location, ..)| *location == gone)
            .collect();
        for (location, network, mac) in &keys {
            self.unbind(*network, *mac, *location);
        }
        !keys.is_empty()
    }

    /// The addresses of `mac` in this place, in order.
    pub fn addresses(
        &self,
        network: Network,
        mac: MacAddr,
        location: Location,
    ) -> impl Iterator<Item = IpAddr> {
        let addresses = self.addresses.get(&(location, network, mac));
        addresses.into_iter().flatten().copied()
    }

    /// How many addresses somebody has.
    pub fn len(&self) -> usize {
        self.holders.len()
    }

    /// Whether nobody has an address.
    pub fn is_empty(&self) -> bool {
        self.holders.is_empty()
    }

    /// The table as it is now, for the threads.
    pub fn view(&self) -> BindingView {
        BindingView {
            sole: self.sole.clone(),
        }
    }

    fn count_at(&self, location: Location) -> usize {
        self.count.get(&location).copied().unwrap_or(0)
    }

    /// Has the view of an address follow the table.
    fn refresh(&mut self, key: Key) {
        let mut holders = self.holders.get(&key).into_iter().flatten();
        let sole = holders.next().filter(|_| holders.next().is_none()).copied();
        if self.sole.get(&key).copied() == sole {
            return;
        }
        let view = Arc::make_mut(&mut self.sole);
        match sole {
            Some(holder) => view.insert(key, holder),
            None => view.remove(&key),
        };
    }

    /// Asserts the invariants of the module.
    #[cfg(test)]
    fn check(&self) {
        assert!(self.len() <= MAX_ADDRESSES);
        let (mut holders, mut count) = (BTreeMap::<_, BTreeSet<_>>::new(), BTreeMap::new());
        for ((location, network, mac), addresses) in &self.addresses {
            assert!(!addresses.is_empty());
            for addr in addresses {
                let holder = (*location, *mac);
                assert!(holders.entry((*network, *addr)).or_default().insert(holder));
                *count.entry(*location).or_default() += 1;
            }
        }
        assert_eq!(holders, self.holders);
        assert_eq!(count, self.count);
        assert!(count.values().all(|n| *n <= MAX_ADDRESSES_PER_LOCATION));
        holders.retain(|_, holders| holders.len() == 1);
        assert_eq!(holders.len(), self.sole.len());
        for (key, holder) in &*self.sole {
            assert!(holders[key].contains(holder));
        }
    }
}

/// The table as it was at one moment, shared by the threads.
#[derive(Debug, Clone, Default)]
pub struct BindingView {
    sole: Arc<Sole>,
}

impl BindingView {
    /// The one who has an address.
    pub fn holder(&self, network: Network, addr: IpAddr) -> Option<Holder> {
        self.sole.get(&(network, addr)).copied()
    }
}

/// The answer to a captured frame that asks for an address, if we may speak for whoever has it:
/// registered at one peer, which frames reach (`is_reachable`) and where the MAC is by all we know. The
/// frame must be one that [`crate::switch::decide_captured`] would flood.
///
/// The resolver's address is each host's own, and an address that one of our containers must not use
/// any more is in dispute on this host: these are never answered for.
pub fn answer(
    frame: &Frame<'_>,
    network: Network,
    bindings: &BindingView,
    view: &View<'_>,
    is_reachable: impl Fn(PeerName) -> bool,
) -> Option<Answer> {
    if bindings.sole.is_empty() {
        return None;
    }
    let question = Question::parse(frame)?;
    let not_ours_to_say = |addr| match addr {
        addr if view.conflicts.binary_search(&addr).is_ok() => true,
        IpAddr::V4(addr) => addr == view.dns,
        IpAddr::V6(_) => false,
    };
    if not_ours_to_say(question.asker()) || not_ours_to_say(question.target()) {
        return None;
    }
    let (location, mac) = bindings.holder(network, question.target())?;
    let is_there = view.macs.lookup(network, mac) == Some(location);
    let may_speak = is_there && location.peer().is_some_and(is_reachable);
    may_speak.then(|| question.answer(mac))
}

/// Whether one host can have this address on a network.
fn is_of_one_host(addr: IpAddr) -> bool {
    let broadcast = match addr {
        IpAddr::V4(addr) => addr.is_broadcast(),
        IpAddr::V6(_) => false,
    };
    !(broadcast || addr.is_multicast() || addr.is_unspecified() || addr.is_loopback())
}

/// The most addresses in all; it bounds the memory (about 15 MB) and what copying the view costs.
pub const MAX_ADDRESSES: usize = 65_536;
/// The most addresses in one place, so that one host gone mad does not fill the table for all: a few for
/// each port of a Linux bridge.
pub const MAX_ADDRESSES_PER_LOCATION: usize = 4096;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;
    use crate::macs::{Kind, MacTable, MacView};

    #[test]
    fn an_address_is_found_until_its_container_goes() {
        let mut table = Bindings::new();
        assert_eq!(table.bind(NET, mac(1), at(1), &[ip(1), ip(2)]), 0);
        assert_eq!(table.view().holder(NET, ip(2)), Some((at(1), mac(1))));
        assert_eq!(table.view().holder(OTHER_NET, ip(2)), None);
        let addresses: Vec<_> = table.addresses(NET, mac(1), at(1)).collect();
        assert_eq!(addresses, [ip(1), ip(2)]);
        table.bind(NET, mac(1), at(1), &[ip(1)]);
        assert_eq!(table.view().holder(NET, ip(2)), None);
        table.unbind(NET, mac(1), at(1));
        assert!(table.is_empty() && !table.remove_peer(peer(1)));
        table.check();
    }

    #[test]
    fn an_address_of_two_is_nobodys_until_one_gives_it_up() {
        let mut table = Bindings::new();
        table.bind(NET, mac(1), at(1), &[ip(1)]);
        table.bind(NET, mac(2), at(2), &[ip(1)]);
        assert_eq!(table.view().holder(NET, ip(1)), None);
        assert!(table.remove_peer(peer(1)));
        assert_eq!(table.view().holder(NET, ip(1)), Some((at(2), mac(2))));
        table.check();
    }

    #[test]
    fn addresses_of_no_single_host_and_too_many_are_left_out() {
        let mut table = Bindings::new();
        let odd = [
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "127.0.0.1",
            "::",
            "::1",
            "ff02::1",
        ];
        let odd = odd.map(|addr| addr.parse().unwrap());
        assert_eq!(table.bind(NET, mac(1), at(1), &odd), odd.len());
        let many: Vec<_> = (0..=MAX_ADDRESSES_PER_LOCATION).map(ip).collect();
        assert_eq!(table.bind(NET, mac(1), at(1), &many), 1);
        assert_eq!(table.bind(NET, mac(2), at(1), &[ip(9)]), 1);
        assert_eq!(table.bind(NET, mac(2), at(2), &[ip(70_000)]), 0);
        table.check();
    }

    #[test]
    fn a_registered_address_of_a_reachable_peer_is_answered_for() {
        let world = World::new();
        let answer = world.ask(ip(1), ip(2)).unwrap();
        assert_eq!(answer.bytes()[6..12], mac(2).to_bytes());
        assert_eq!(answer.bytes()[..6], mac(1).to_bytes());
    }

    #[test]
    fn nobody_else_is_answered_for() {
        let world = World::new();
        let unknown = world.ask(ip(1), ip(99));
        let ours = world.ask(ip(1), ip(1));
        let local = world.ask(ip(1), ip(3));
        let unreachable = world.ask(ip(1), ip(4));
        let moved = world.ask(ip(1), ip(5));
        let disputed = world.ask(ip(1), ip(6));
        let silenced = world.ask(ip(6), ip(2));
        let resolver = world.ask(ip(1), DNS.into());
        let asks = [
            unknown,
            ours,
            local,
            unreachable,
            moved,
            disputed,
            silenced,
            resolver,
        ];
        assert_eq!(asks, [None; 8]);
    }

    /// A few addresses, and where they are: 1 and 3 on this host, 2 at a peer, 4 at one that cannot be reached,
    /// 5 at one where its MAC is not, 6 at a peer although a container here uses it.
    struct World {
        bindings: BindingView,
        macs: MacView,
    }

    impl World {
        fn new() -> Self {
            let (mut bindings, mut macs) = (Bindings::new(), MacTable::new());
            let places = [
                (2, at(1)),
                (3, Location::Local),
                (4, at(4)),
                (5, at(1)),
                (6, at(1)),
            ];
            for (n, location) in places {
                bindings.bind(NET, mac(n), location, &[ip(n)]);
                let seen = if n == 5 { at(2) } else { location };
                macs.claim(NET, mac(n), seen, Kind::Registered, start());
            }
            bindings.bind(NET, mac(9), at(1), &[IpAddr::V4(DNS)]);
            macs.claim(NET, mac(9), at(1), Kind::Registered, start());
            let (bindings, macs) = (bindings.view(), macs.view());
            Self { bindings, macs }
        }

        fn ask(&self, asker: IpAddr, target: IpAddr) -> Option<Answer> {
            let (IpAddr::V4(asker), IpAddr::V4(target)) = (asker, target) else {
                panic!("IPv4 only");
            };
            let parts = [
                &[0xff; 6][..],
                &mac(1).to_bytes(),
                &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
                &mac(1).to_bytes(),
                &asker.octets(),
                &[0; 6],
                &target.octets(),
            ];
            let bytes = parts.concat();
            let view = View {
                us: peer(0),
                macs: &self.macs,
                dns: DNS,
                conflicts: &[ip(6)],
            };
            let frame = Frame::new_checked(&bytes).unwrap();
            answer(&frame, NET, &self.bindings, &view, |at| at != peer(4))
        }
    }

    proptest! {
        #[test]
        fn the_table_and_its_view_agree_whatever_happens(steps in prop::collection::vec(step(), 0..60)) {
            let mut table = Bindings::new();
            for step in steps {
                match step {
                    Step::Bind(n, location, addresses) => {
                        let addresses: Vec<_> = addresses.into_iter().map(ip).collect();
                        table.bind(NET, mac(n), location, &addresses);
                    }
                    Step::Unbind(n, location) => table.unbind(NET, mac(n), location),
                    Step::RemovePeer(n) => {
                        table.remove_peer(peer(n));
                    }
                }
                table.check();
            }
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Bind(usize, Location, Vec<usize>),
        Unbind(usize, Location),
        RemovePeer(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let location = || prop_oneof![Just(Location::Local), (0..3_usize).prop_map(at)];
        let addresses = prop::collection::vec(0..6_usize, 0..4);
        prop_oneof![
            6 => (0..4_usize, location(), addresses).prop_map(|(n, at, addresses)| Step::Bind(n, at, addresses)),
            2 => (0..4_usize, location()).prop_map(|(n, at)| Step::Unbind(n, at)),
            1 => (0..3_usize).prop_map(Step::RemovePeer),
        ]
    }

    const NET: Network = Network::DEFAULT;
    const OTHER_NET: Network = Network::from_bytes([0, 0, 1]);
    const DNS: Ipv4Addr = Ipv4Addr::new(169, 254, 67, 83);

    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant comes from nowhere else"
    )]
    fn start() -> Instant {
        Instant::now()
    }

    fn mac(n: usize) -> MacAddr {
        MacAddr::from_bytes([2, 0, 0, 0, (n >> 8) as u8, n as u8])
    }

    fn ip(n: usize) -> IpAddr {
        Ipv4Addr::from_bits(0x0a20_0000 + n as u32).into()
    }

    fn peer(n: usize) -> PeerName {
        PeerName::from_bytes([2, 1, 0, 0, 0, n as u8])
    }

    fn at(n: usize) -> Location {
        Location::Peer(peer(n))
    }
}
