//! Which addresses our containers hold, and which of our ranges are free.
//!
//! The ring says what is ours; this says what of it is in use. Addresses outside of the pool are
//! only written down: nobody allocates them, and two containers may claim the same one.
//!
//! Invariants: an address of the pool has one holder at most, and `used` names just the addresses
//! of the pool in `held`; what is in `freed` is not in use.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use weft_wire::PeerName;

use crate::addr::{Addr, Cidr, Position, Span};
use crate::aside::{Aside, SetAside};
use crate::digest::Fnv;

/// How many freed addresses we keep in mind, so as to use them again last; older ones count as new.
const MAX_FREED: usize = 65_536;

/// Who holds an address: a container's id, or one of the two special ids.
///
/// At most [`Self::MAX`] bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(String);

impl ContainerId {
    /// The host itself, as far as it joined the network.
    pub const EXPOSE: &str = "weft:expose";
    /// Something outside of the network that has a name in it.
    pub const EXTERN: &str = "weft:extern";
    /// The longest id in bytes.
    pub const MAX: usize = 255;

    /// An id; what is over [`Self::MAX`] bytes is left out, so callers refuse such ids before.
    pub fn new(text: &str) -> Self {
        let mut end = text.len().min(Self::MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        Self(text.get(..end).unwrap_or_default().to_owned())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One address in the hands of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holding {
    /// Prefix length of the subnet it was asked for in.
    pub(crate) prefix: u8,
    pub(crate) hold: Hold,
}

/// How sure we are of a holding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    /// The address is ours by the ring, or outside of the pool.
    Settled,
    /// The ring says it is another peer's; we claim it from that peer.
    Unsettled,
    /// That peer holds it itself; our container must give it up.
    Conflict(PeerName),
}

/// The addresses held on this host.
#[derive(Debug, Clone)]
pub(crate) struct Space {
    pool: Cidr,
    reserved: BTreeSet<Addr>,
    held: BTreeMap<ContainerId, BTreeMap<Addr, Holding>>,
    used: BTreeMap<Addr, ContainerId>,
    freed: BTreeMap<Addr, u64>,
    freed_order: BTreeMap<u64, Addr>,
    frees: u64,
    cursor: Option<Position>,
    aside: SetAside,
    /// The addresses in `aside`.
    kept: BTreeSet<Addr>,
}

impl Space {
    pub(crate) fn new(pool: Cidr, reserved: impl IntoIterator<Item = Addr>) -> Self {
        Self {
            pool,
            reserved: reserved.into_iter().collect(),
            held: BTreeMap::new(),
            used: BTreeMap::new(),
            freed: BTreeMap::new(),
            freed_order: BTreeMap::new(),
            frees: 0,
            cursor: None,
            aside: SetAside::default(),
            kept: BTreeSet::new(),
        }
    }

    /// Keeps addresses for peers that were taken over, which had them in use.
    pub(crate) fn set_aside(
        &mut self,
        peers: BTreeSet<PeerName>,
        addrs: BTreeSet<Addr>,
        until: Duration,
    ) {
        self.aside.add(peers, addrs, until);
        self.kept = self.aside.addrs();
    }

    /// Lets go of what was kept long enough; whether there was any.
    pub(crate) fn release_aside(&mut self, uptime: Duration) -> bool {
        let any = self.aside.expire(uptime);
        if any {
            self.kept = self.aside.addrs();
        }
        any
    }

    /// At which uptime something is let go.
    pub(crate) fn next_release(&self) -> Option<Duration> {
        self.aside.next()
    }

    /// What is kept, as it is saved.
    pub(crate) fn aside(&self, uptime: Duration) -> Vec<Aside> {
        self.aside.saved(uptime)
    }

    pub(crate) fn load_aside(&mut self, saved: Vec<Aside>, uptime: Duration) {
        self.aside = SetAside::load(saved, uptime);
        self.kept = self.aside.addrs();
    }

    /// The peer an address is kept for, if not for this one.
    pub(crate) fn kept_from(&self, addr: Addr, peer: PeerName) -> Option<PeerName> {
        self.aside.kept_from(addr, peer)
    }

    pub(crate) fn is_reserved(&self, addr: Addr) -> bool {
        self.reserved.contains(&addr)
    }

    /// Who holds an address of the pool.
    pub(crate) fn holder(&self, addr: Addr) -> Option<&ContainerId> {
        self.used.get(&addr)
    }

    pub(crate) fn get(&self, container: &ContainerId, addr: Addr) -> Option<Holding> {
        self.held.get(container)?.get(&addr).copied()
    }

    pub(crate) fn of(
        &self,
        container: &ContainerId,
    ) -> impl Iterator<Item = (Addr, Holding)> + use<'_> {
        let held = self.held.get(container).into_iter().flatten();
        held.map(|(addr, holding)| (*addr, *holding))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ContainerId, Addr, Holding)> {
        self.held.iter().flat_map(|(container, held)| {
            held.iter()
                .map(move |(addr, holding)| (container, *addr, *holding))
        })
    }

    /// How many addresses of the pool are in use.
    pub(crate) fn active(&self) -> usize {
        self.used.len()
    }

    /// Gives an address to a container. In the pool nobody else may hold it.
    pub(crate) fn hold(&mut self, container: &ContainerId, addr: Addr, holding: Holding) {
        if self.pool.contains(addr) {
            let before = self.used.insert(addr, container.clone());
            debug_assert!(before.is_none_or(|b| b == *container), "{addr} held twice");
            if let Some(number) = self.freed.remove(&addr) {
                self.freed_order.remove(&number);
            }
        }
        let held = self.held.entry(container.clone()).or_default();
        held.insert(addr, holding);
    }

    pub(crate) fn set_hold(&mut self, container: &ContainerId, addr: Addr, hold: Hold) {
        let held = self.held.get_mut(container);
        if let Some(holding) = held.and_then(|held| held.get_mut(&addr)) {
            holding.hold = hold;
        }
    }

    /// Takes an address back; whether the container held it.
    pub(crate) fn free(&mut self, container: &ContainerId, addr: Addr) -> bool {
        let Some(held) = self.held.get_mut(container) else {
            return false;
        };
        if held.remove(&addr).is_none() {
            return false;
        }
        if held.is_empty() {
            self.held.remove(container);
        }
        if self.used.remove(&addr).is_some() {
            self.remember_freed(addr);
        }
        true
    }

    /// Forgets every holding in the pool.
    pub(crate) fn clear(&mut self) {
        let used = std::mem::take(&mut self.used);
        for (addr, container) in used {
            if let Some(held) = self.held.get_mut(&container) {
                held.remove(&addr);
            }
        }
        self.held.retain(|_, held| !held.is_empty());
    }

    /// The next address for a container: one of `own` that was never used, from the last one given
    /// on and round, else the one that was freed first.
    /// None of `avoid`.
    pub(crate) fn pick(
        &self,
        us: PeerName,
        own: &[Span],
        subnet: Cidr,
        avoid: &BTreeSet<Addr>,
    ) -> Option<Addr> {
        let hosts = subnet.hosts();
        let from = self
            .cursor
            .filter(|at| (hosts.start..hosts.end).contains(at))
            .unwrap_or_else(|| starting_point(us, subnet));
        let after = Span {
            start: from,
            ..hosts
        };
        let before = Span { end: from, ..hosts };
        let unused = [after, before].into_iter().find_map(|part| {
            let mut parts = own.iter().map(|span| span.intersect(part));
            parts.find_map(|span| self.first_unused(span, avoid))
        });
        let ours = |addr: Addr| own.iter().any(|span| span.contains(addr));
        unused.or_else(|| {
            let mut freed = self.freed_order.values().copied();
            freed.find(|addr| {
                let free = !avoid.contains(addr) && !self.kept.contains(addr);
                hosts.contains(*addr) && ours(*addr) && free
            })
        })
    }

    /// Notes where the next search begins.
    pub(crate) fn set_cursor(&mut self, given: Addr) {
        self.cursor = Some(given.position() + 1);
    }

    /// How many addresses of a range of ours are free.
    pub(crate) fn free_in(&self, span: Span) -> u128 {
        let busy = self.busy_in(span).len();
        span.size()
            .saturating_sub(u128::try_from(busy).unwrap_or(u128::MAX))
    }

    /// What to give to a peer that has no address left in a subnet: the largest free aligned part
    /// of `own` in it, half of that if it is more than half of all we have free there.
    pub(crate) fn spare(&self, own: &[Span], subnet: Cidr) -> Option<Span> {
        let within = own.iter().map(|span| span.intersect(subnet.span()));
        let mut free = 0;
        let mut best: Option<Span> = None;
        for gap in within.flat_map(|span| self.gaps(span)) {
            free += gap.size();
            let part = gap.largest_aligned();
            let of_use = part.filter(|part| !part.intersect(subnet.hosts()).is_empty());
            if of_use.map(Span::size) > best.map(Span::size) {
                best = of_use;
            }
        }
        let best = best?;
        if best.size() * 2 <= free || best.size() == 1 {
            return Some(best);
        }
        let start = best.start + best.size() / 2;
        Some(Span { start, ..best })
    }

    fn first_unused(&self, span: Span, avoid: &BTreeSet<Addr>) -> Option<Addr> {
        let mut candidates = (span.start..span.end).map(Addr::from_bits);
        candidates.find(|addr| {
            !self.used.contains_key(addr)
                && !self.freed.contains_key(addr)
                && !self.reserved.contains(addr)
                && !self.kept.contains(addr)
                && !avoid.contains(addr)
        })
    }

    /// What of a range cannot be given out: addresses in use, reserved, or kept.
    fn busy_in(&self, span: Span) -> BTreeSet<Addr> {
        let Some((first, last)) = span.ends() else {
            return BTreeSet::new();
        };
        let used = self.used.range(first..=last).map(|(addr, _)| addr);
        let reserved = self.reserved.range(first..=last);
        let kept = self.kept.range(first..=last);
        used.chain(reserved).chain(kept).copied().collect()
    }

    fn gaps(&self, span: Span) -> Vec<Span> {
        let busy = self.busy_in(span).into_iter().map(Addr::position);
        let mut start = span.start;
        let mut gaps = Vec::new();
        for end in busy.chain([span.end]) {
            if start < end {
                gaps.push(Span { start, end });
            }
            start = end + 1;
        }
        gaps
    }

    fn remember_freed(&mut self, addr: Addr) {
        self.frees += 1;
        self.freed.insert(addr, self.frees);
        self.freed_order.insert(self.frees, addr);
        if self.freed.len() > MAX_FREED
            && let Some((_, oldest)) = self.freed_order.pop_first()
        {
            self.freed.remove(&oldest);
        }
    }
}

/// Peers start their search at different places, so that those that allocated alone, each in a ring
/// of its own, rarely chose the same addresses when they meet.
fn starting_point(us: PeerName, subnet: Cidr) -> Position {
    let hosts = subnet.hosts();
    let hash = Fnv::new()
        .write(&us.to_bytes())
        .write_addr(subnet.first())
        .write(&[subnet.prefix()])
        .finish();
    // The upper half of the hash is the better mixed one.
    let [a, b, c, d, e, f, g, h, ..] = hash.to_be_bytes();
    let hash = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    hosts.start + u128::from(hash).checked_rem(hosts.size()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn us() -> PeerName {
        PeerName::from_bytes([2, 0, 0, 0, 0, 1])
    }

    fn pool() -> Cidr {
        "10.0.0.0/28".parse().unwrap()
    }

    fn addr(host: u128) -> Addr {
        Addr::from_bits(pool().first().to_bits() + host)
    }

    fn space() -> Space {
        Space::new(pool(), [addr(14)])
    }

    fn settled() -> Holding {
        Holding {
            prefix: 28,
            hold: Hold::Settled,
        }
    }

    fn take(space: &mut Space, own: &[Span]) -> Option<Addr> {
        let addr = space.pick(us(), own, pool(), &BTreeSet::new())?;
        space.hold(&ContainerId::new(&addr.to_string()), addr, settled());
        space.set_cursor(addr);
        Some(addr)
    }

    fn release(space: &mut Space, addr: Addr) {
        assert!(space.free(&ContainerId::new(&addr.to_string()), addr));
    }

    #[test]
    fn all_hosts_are_given_once_and_nothing_else() {
        let mut space = space();
        let own = [pool().span()];
        let mut given: Vec<_> = std::iter::from_fn(|| take(&mut space, &own)).collect();
        given.sort();
        // Neither network nor broadcast address, nor the reserved one.
        assert_eq!(given, (1..14).map(addr).collect::<Vec<_>>());
        assert_eq!(space.free_in(pool().span()), 2);
    }

    #[test]
    fn of_an_ipv6_subnet_all_but_the_first_are_given() {
        let pool: Cidr = "fd57:1::/124".parse().unwrap();
        let mut space = Space::new(pool, []);
        let own = [pool.span()];
        let mut given = BTreeSet::new();
        while let Some(addr) = space.pick(us(), &own, pool, &BTreeSet::new()) {
            space.hold(&ContainerId::new(&addr.to_string()), addr, settled());
            given.insert(addr.to_string());
        }
        let expected = (1..16).map(|n| format!("fd57:1::{n:x}"));
        assert_eq!(given, expected.collect());
    }

    #[test]
    fn a_large_space_is_found_and_halved_like_a_small_one() {
        let pool: Cidr = "fd00::/8".parse().unwrap();
        let mut space = Space::new(pool, []);
        let own = [pool.span()];
        let first = space.pick(us(), &own, pool, &BTreeSet::new()).unwrap();
        space.hold(&ContainerId::new("a"), first, settled());
        assert_eq!(space.free_in(pool.span()), (1 << 120) - 1);
        let half = space.spare(&own, pool).unwrap();
        assert_eq!(half.size(), 1 << 118);
    }

    #[test]
    fn the_address_freed_first_is_given_again_last_of_all_but_first_of_the_freed() {
        let mut space = space();
        let own = [pool().span()];
        let first = take(&mut space, &own).unwrap();
        let second = take(&mut space, &own).unwrap();
        release(&mut space, second);
        release(&mut space, first);
        let given: Vec<_> = std::iter::from_fn(|| take(&mut space, &own)).collect();
        assert_eq!(given.len(), 13);
        assert_eq!(given[11..], [second, first]);
    }

    #[test]
    fn the_search_goes_on_behind_the_address_given_last() {
        let mut space = space();
        let all = [pool().span()];
        let begin = starting_point(us(), pool());
        assert!((2..10).contains(&(begin - all[0].start)), "no room to tell");
        let third = Span {
            start: begin + 2,
            end: begin + 3,
        };
        assert_eq!(take(&mut space, &[third]), Some(Addr::from_bits(begin + 2)));
        assert_eq!(take(&mut space, &all), Some(Addr::from_bits(begin + 3)));
    }

    #[test]
    fn different_peers_start_at_different_places() {
        let subnet: Cidr = "10.32.0.0/12".parse().unwrap();
        let starts: BTreeSet<_> = (0..100)
            .map(|n| starting_point(PeerName::from_bytes([2, 0, 0, 0, 0, n]), subnet))
            .collect();
        assert!(starts.len() > 95);
        let hosts = subnet.hosts();
        let upper = starts
            .iter()
            .filter(|s| **s > hosts.start + hosts.size() / 2);
        assert!((20..80).contains(&upper.count()));
    }

    #[test]
    fn a_peer_gives_away_half_of_its_largest_part_until_one_is_left() {
        let mut space = space();
        let base = pool().span().start;
        let mut own = vec![pool().span()];
        let mut sizes = Vec::new();
        while let Some(given) = space.spare(&own, pool()) {
            sizes.push(given.size());
            let sides = |s: &Span| {
                let lower = Span {
                    end: given.start.clamp(s.start, s.end),
                    ..*s
                };
                let upper = Span {
                    start: given.end.clamp(s.start, s.end),
                    ..*s
                };
                [lower, upper]
            };
            own = own.iter().flat_map(sides).collect();
        }
        assert_eq!(sizes[0], 4);
        // The reserved address and the broadcast address alone are of no use to anybody.
        let kept = own.iter().flat_map(|s| s.start..s.end);
        assert_eq!(kept.collect::<Vec<_>>(), [base + 14, base + 15]);
        space.hold(&ContainerId::new("c"), addr(3), settled());
        let three = [Span {
            start: base + 3,
            end: base + 4,
        }];
        assert_eq!(space.spare(&three, pool()), None);
    }

    proptest! {
        #[test]
        fn what_is_spared_is_free_and_ours(
            used in proptest::collection::btree_set(0..16_u128, 0..16),
            start in 0..16_u128, len in 0..16_u128,
        ) {
            let mut space = space();
            for host in &used {
                space.hold(&ContainerId::new("c"), addr(*host), settled());
            }
            let base = pool().span().start;
            let own = [Span { start: base + start, end: base + (start + len).min(16) }];
            if let Some(spare) = space.spare(&own, pool()) {
                prop_assert!(!spare.is_empty());
                prop_assert_eq!(spare.intersect(own[0]), spare);
                prop_assert_eq!(space.free_in(spare), spare.size());
            }
        }
    }

    #[test]
    fn an_id_is_bounded() {
        assert_eq!(ContainerId::new(&"é".repeat(200)).as_str().len(), 254);
    }
}
