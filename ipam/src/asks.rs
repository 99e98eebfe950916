//! What we ask other peers for: space in a subnet, or just one address.
//!
//! Nothing here waits for anything: a question that got no answer within [`RETRY`] is asked again,
//! of somebody else if there is one. Who may not use for now what it owns (it is *fenced*) says so and
//! is asked again soon at first, because that is over soon, most often. Invariant: there is one entry for each want that some
//! request or unsettled address has, and none else.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rand_core::Rng;
use weft_wire::PeerName;

use crate::addr::{Addr, Cidr};
use crate::ring::Ring;

/// How often a question is repeated.
pub(crate) const RETRY: Duration = Duration::from_secs(5);
/// How soon one that is fenced is asked again the first time; then half as long again each time, up
/// to [`RETRY`].
const SOON: Duration = Duration::from_millis(100);

/// What we lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Want {
    /// Just this address, whose owner is to be asked.
    Exact(Addr),
    /// Any space in this subnet.
    Space(Cidr),
}

/// How far a want is.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    /// Who was asked last, if anybody can be.
    pub(crate) to: Option<PeerName>,
    /// When to ask (again).
    pub(crate) again: Instant,
    /// Who had nothing, since the last time all were asked.
    pub(crate) denied: BTreeSet<PeerName>,
    /// Who was fenced, since we last waited for that.
    fenced: BTreeSet<PeerName>,
    /// How long we wait for it the next time.
    pause: Duration,
}

impl Ask {
    const fn new(now: Instant) -> Self {
        Self {
            to: None,
            again: now,
            denied: BTreeSet::new(),
            fenced: BTreeSet::new(),
            pause: SOON,
        }
    }

    /// Whether a peer need not be asked for now.
    pub(crate) fn passes_over(&self, peer: PeerName) -> bool {
        self.denied.contains(&peer) || self.fenced.contains(&peer)
    }

    /// Whether it is only that somebody is fenced that we have to wait.
    pub(crate) fn is_put_off(&self) -> bool {
        self.pause > SOON
    }

    /// Nobody is left to ask: begins anew, soon if it is only that some are fenced.
    pub(crate) fn start_over(&mut self, now: Instant) {
        if self.fenced.is_empty() {
            self.denied.clear();
            self.pause = SOON;
        } else {
            self.put_off(now);
        }
    }

    fn put_off(&mut self, now: Instant) {
        if self.pause == RETRY {
            self.denied.clear();
        }
        self.fenced.clear();
        self.again = now + self.pause;
        self.pause = (self.pause * 3 / 2).min(RETRY);
    }
}

/// All wants.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asks {
    asks: BTreeMap<Want, Ask>,
}

impl Asks {
    /// Keeps what is still wanted and adds what is new.
    pub(crate) fn set_wants(&mut self, wants: &BTreeSet<Want>, now: Instant) {
        self.asks.retain(|want, _| wants.contains(want));
        for want in wants {
            self.asks.entry(*want).or_insert_with(|| Ask::new(now));
        }
    }

    /// The wants to ask for at this time, each put off to the next time.
    pub(crate) fn due(&mut self, now: Instant) -> impl Iterator<Item = (Want, &mut Ask)> {
        let due = self.asks.iter_mut().filter(move |(_, a)| a.again <= now);
        due.map(move |(want, ask)| {
            ask.again = now + RETRY;
            (*want, ask)
        })
    }

    /// A peer has no space in a subnet: the next one is to be asked at once.
    pub(crate) fn handle_no_space(&mut self, from: PeerName, subnet: Cidr, now: Instant) {
        let ask = self.asks.get_mut(&Want::Space(subnet));
        if let Some(ask) = ask.filter(|ask| ask.to == Some(from)) {
            ask.denied.insert(from);
            ask.again = now;
        }
    }

    /// A peer that was asked is fenced: for space another one is to be asked at once.
    pub(crate) fn handle_fenced(&mut self, from: PeerName, want: Want, now: Instant) {
        let ask = self.asks.get_mut(&want);
        let Some(ask) = ask.filter(|ask| ask.to == Some(from)) else {
            return;
        };
        match want {
            Want::Exact(_) => ask.put_off(now),
            Want::Space(_) => {
                ask.fenced.insert(from);
                ask.again = now;
            }
        }
    }

    /// A peer had no ring, or another one, and is sent ours: what it was asked for is asked again soon.
    pub(crate) fn handle_lesson(&mut self, peer: PeerName, now: Instant) {
        for ask in self.asks.values_mut() {
            if ask.to == Some(peer) {
                ask.again = ask.again.min(now + SOON);
            }
        }
    }

    /// The ring or the reach changed: asks at once again where nobody could be asked, or the wrong
    /// one was.
    pub(crate) fn reconsider(
        &mut self,
        ring: &Ring,
        live: impl Fn(PeerName) -> bool,
        now: Instant,
    ) {
        for (want, ask) in &mut self.asks {
            let right = match want {
                Want::Exact(addr) => ask.to.is_some() && ask.to == ring.owner_of(*addr),
                Want::Space(_) => ask.to.is_some(),
            };
            if !right || ask.to.is_some_and(|peer| !live(peer)) {
                ask.again = now;
            }
        }
    }

    pub(crate) fn clear(&mut self) {
        self.asks.clear();
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.asks.values().map(|ask| ask.again).min()
    }

    pub(crate) fn get(&self, want: Want) -> Option<&Ask> {
        self.asks.get(&want)
    }
}

/// Whom to ask for space: by chance, the more free space a peer has in the subnet the likelier.
/// What peers last said of their free space may be old, so one that said none is asked when no
/// other is left.
pub(crate) fn choose_donor(
    ring: &Ring,
    subnet: Cidr,
    eligible: impl Fn(PeerName) -> bool,
    rng: &mut impl Rng,
) -> Option<PeerName> {
    let mut weights: BTreeMap<PeerName, u64> = BTreeMap::new();
    for (span, entry) in ring.ranges().filter(|(_, entry)| eligible(entry.owner)) {
        let overlap = span.intersect(subnet.hosts());
        if !overlap.is_empty() {
            let free = u64::try_from(overlap.size()).unwrap_or(u64::MAX);
            *weights.entry(entry.owner).or_default() += free.min(entry.free.into());
        }
    }
    let total: u64 = weights.values().sum();
    if total == 0 {
        weights.values_mut().for_each(|weight| *weight = 1);
    }
    let total = weights.values().sum();
    let mut ticket = rng.next_u64().checked_rem(total)?;
    weights.into_iter().find_map(|(peer, weight)| {
        let drawn = ticket < weight;
        ticket = ticket.saturating_sub(weight);
        drawn.then_some(peer)
    })
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    use super::*;

    fn peer(n: u8) -> PeerName {
        PeerName::from_bytes([2, 0, 0, 0, 0, n])
    }

    #[test]
    fn peers_with_more_free_space_are_asked_more_often_and_full_ones_last() {
        let pool: Cidr = "10.0.0.0/24".parse().unwrap();
        let names = (1..=4).map(peer).collect();
        let mut ring = Ring::seeded(pool, &names);
        ring.advise(peer(1), |_| 60);
        ring.advise(peer(2), |_| 6);
        ring.advise(peer(3), |_| 0);
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let mut count = |eligible: &dyn Fn(PeerName) -> bool| {
            let mut asked = BTreeMap::new();
            for _ in 0..1000 {
                let donor = choose_donor(&ring, pool, eligible, &mut rng);
                *asked.entry(donor).or_insert(0) += 1;
            }
            asked
        };
        let asked = count(&|p| p != peer(4));
        assert!(asked[&Some(peer(1))] > 800);
        assert!(asked[&Some(peer(2))] > 30);
        assert_eq!(asked.len(), 2);
        let asked = count(&|p| p == peer(3));
        assert_eq!(asked, BTreeMap::from([(Some(peer(3)), 1000)]));
        assert_eq!(count(&|_| false), BTreeMap::from([(None, 1000)]));
    }

    #[expect(clippy::disallowed_methods, reason = "a test may look at the clock")]
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_denial_leads_to_the_next_peer_at_once_and_only_from_the_one_asked() {
        let now = start();
        let subnet: Cidr = "10.0.0.0/24".parse().unwrap();
        let want = Want::Space(subnet);
        let mut asks = Asks::default();
        asks.set_wants(&BTreeSet::from([want]), now);
        for (_, ask) in asks.due(now) {
            ask.to = Some(peer(1));
        }
        assert_eq!(asks.deadline(), Some(now + RETRY));
        asks.handle_no_space(peer(2), subnet, now);
        assert_eq!(asks.due(now).count(), 0);
        asks.handle_no_space(peer(1), subnet, now);
        let due: Vec<_> = asks.due(now).map(|(_, ask)| ask.denied.clone()).collect();
        assert_eq!(due, [BTreeSet::from([peer(1)])]);
    }

    #[test]
    fn who_is_fenced_is_asked_again_soon_and_then_less_and_less_often() {
        let began = start();
        let exact = Want::Exact("10.0.0.1".parse().unwrap());
        let space = Want::Space("10.0.0.0/24".parse().unwrap());
        for want in [exact, space] {
            let mut asks = Asks::default();
            asks.set_wants(&BTreeSet::from([want]), began);
            let mut times = Vec::new();
            let mut now = began;
            while now < began + Duration::from_secs(60) {
                for (_, ask) in asks.due(now) {
                    let next = Some(peer(1)).filter(|peer| !ask.passes_over(*peer));
                    ask.to = next;
                    match next {
                        Some(_) => times.push((now - began).as_millis()),
                        None => ask.start_over(now),
                    }
                }
                asks.handle_fenced(peer(1), want, now);
                now = asks.deadline().unwrap();
            }
            assert_eq!(times[..5], [0, 100, 250, 475, 812]);
            assert!(times.iter().zip(&times[1..]).all(|(a, b)| b - a <= 5000));
            assert!(times.len() < 22, "{times:?}");
        }
    }

    #[test]
    fn one_that_is_fenced_is_no_reason_to_ask_again_who_has_nothing() {
        let now = start();
        let want = Want::Space("10.0.0.0/24".parse().unwrap());
        let subnet = "10.0.0.0/24".parse().unwrap();
        let mut asks = Asks::default();
        asks.set_wants(&BTreeSet::from([want]), now);
        asks.due(now).for_each(|(_, ask)| ask.to = Some(peer(1)));
        asks.handle_no_space(peer(1), subnet, now);
        asks.due(now).for_each(|(_, ask)| ask.to = Some(peer(2)));
        asks.handle_fenced(peer(2), want, now);
        for (_, ask) in asks.due(now) {
            assert!(ask.passes_over(peer(1)) && ask.passes_over(peer(2)));
            ask.start_over(now);
        }
        assert_eq!(asks.due(now).count(), 0);
        for (_, ask) in asks.due(now + SOON) {
            assert!(ask.passes_over(peer(1)) && !ask.passes_over(peer(2)));
        }
    }

    #[test]
    fn whoever_cannot_answer_any_more_is_not_waited_for() {
        let now = start();
        let pool: Cidr = "10.0.0.0/24".parse().unwrap();
        let ring = Ring::seeded(pool, &(1..=2).map(peer).collect());
        let exact = Want::Exact("10.0.0.9".parse().unwrap());
        let mut asks = Asks::default();
        let mut asked = |to: Option<PeerName>, live: bool| {
            asks.clear();
            asks.set_wants(&BTreeSet::from([exact, Want::Space(pool)]), now);
            for (_, ask) in asks.due(now) {
                ask.to = to;
            }
            asks.reconsider(&ring, |_| live, now);
            asks.due(now).map(|(want, _)| want).collect::<Vec<_>>()
        };
        let both = [exact, Want::Space(pool)];
        assert_eq!(asked(Some(peer(1)), true), []);
        assert_eq!(asked(Some(peer(1)), false), both);
        assert_eq!(asked(None, true), both);
        // Not the owner of that address.
        assert_eq!(asked(Some(peer(2)), true), [exact]);
    }

    #[test]
    fn only_owners_within_the_subnet_are_asked() {
        let pool: Cidr = "10.0.0.0/24".parse().unwrap();
        let ring = Ring::seeded(pool, &(1..=4).map(peer).collect());
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let subnet = "10.0.0.64/26".parse().unwrap();
        for _ in 0..20 {
            let donor = choose_donor(&ring, subnet, |_| true, &mut rng);
            assert_eq!(donor, Some(peer(2)));
        }
    }
}
