//! How long may a datagram to a peer be?
//!
//! ```text
//!                  nothing longer is of use, or passes
//!   ┌─── Probing ───────────────────────────────────────▶ Resting
//!   │      ▲ ▲ ▲                                            │  │
//!   └──────┘ │ └──── 15 s … 4 min later: longer ones? ──────┘  │
//!   the size │                                                 │
//!   in use   └── is the size in use still good? ───────────────┘
//!   is lost:     frames flow, and it was not confirmed for 10 s,
//!   anew from    or 2 s if nothing comes back
//!   the least
//! ```
//!
//! Nothing is believed but answers of the peer: routers between us that are silent about what they drop, or
//! say so to somebody else, are found out too. Frames begin at a size that every path carries, and the
//! first question is for all that is of use, so that on most paths one round trip is all it takes. If it is
//! lost, the size is searched for by halves.
//!
//! Invariants: the limit rises by an answer only, and falls at once when the size in use does not pass
//! while short datagrams do. Only sizes of use are asked for, and none above is ever the limit.

use std::time::{Duration, Instant};

use weft_wire::frame::ETHERNET_HEADER;
use weft_wire::message::{MAX_FRAME_HEADER, Probe};
use weft_wire::packet::OVERHEAD;

/// How long the datagrams on the path to one peer may be; lengths are of UDP payload, in bytes.
#[derive(Debug)]
pub(crate) struct Path {
    /// The longest that is of use.
    wanted: u16,
    /// The longest that is sent.
    limit: u16,
    /// The shortest that is known, or believed, not to pass; more than `wanted` if none is.
    above: u16,
    /// Of the last question.
    number: u32,
    /// Answers to questions before this one are about another path.
    since: u32,
    /// When a datagram as long as the limit passed last.
    confirmed: Option<Instant>,
    /// What is being asked; nothing while it rests.
    probing: Option<Probing>,
    /// When longer ones are tried again, if any are of use.
    raise_at: Option<Instant>,
    /// How long it is from one such try to the next.
    pause: Duration,
}

/// Does this size pass? Asked so many times more, next then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Probing {
    size: u16,
    tries: u8,
    due: Instant,
}

/// What is known of short datagrams, by heartbeats.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sight {
    /// Time to the peer and back, once known.
    pub(crate) rtt: Option<Duration>,
    /// Whether they come through these days. If not, it says nothing that long ones do not.
    pub(crate) clear: bool,
}

impl Path {
    /// For frames of a network with this MTU. The first question is due at once.
    pub(crate) fn new(mtu: u16, now: Instant) -> Self {
        let wanted = mtu.saturating_add(AROUND + TAGS).clamp(LEAST, LONGEST);
        let mut path = Self {
            wanted,
            limit: LEAST,
            above: wanted + 1,
            number: 0,
            since: 1,
            confirmed: None,
            probing: None,
            raise_at: None,
            pause: PAUSE,
        };
        path.begin(now);
        path
    }

    /// Nothing is known any more: the peer is somewhere else.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.limit = LEAST;
        self.since = self.number.wrapping_add(1);
        self.confirmed = None;
        self.pause = PAUSE;
        self.raise(now);
    }

    /// The longest datagram that may be sent.
    pub(crate) fn limit(&self) -> u16 {
        self.limit
    }

    /// The largest packet that goes in one datagram: what is known of the path's MTU, as far as the
    /// network's own.
    pub(crate) fn mtu(&self) -> u16 {
        (self.limit - AROUND).min(self.wanted - AROUND - TAGS)
    }

    /// Frames were sent to the peer in the last moments, and something came from there or, as when all of
    /// them are swallowed, nothing did.
    pub(crate) fn handle_traffic(&mut self, heard: bool, now: Instant) {
        let good_for = if heard { CONFIRMED_FOR } else { IN_DOUBT };
        let old = self.confirmed.is_none_or(|at| now >= at + good_for);
        // Below the least there is nothing to fall back to.
        if self.probing.is_none() && old && self.limit > LEAST {
            self.probe(self.limit, CONFIRMATIONS, now);
        }
    }

    /// An answer to one of our questions came.
    pub(crate) fn handle_answer(&mut self, answer: Probe, now: Instant) {
        let asked = self.number.wrapping_sub(self.since);
        let ours = answer.number.wrapping_sub(self.since) <= asked && asked < u32::MAX / 2;
        if !ours || answer.size < self.limit || answer.size > self.wanted {
            return;
        }
        self.confirmed = Some(now);
        let before = std::mem::replace(&mut self.limit, answer.size);
        if self.above <= self.limit {
            self.above = self.wanted + 1;
        }
        match self.probing {
            Some(probing) if probing.size <= before => self.probing = None,
            Some(probing) if probing.size <= self.limit => self.search(now),
            Some(_) | None => {}
        }
    }

    /// The kernel would not send a datagram of this size: a link of this host is too narrow.
    pub(crate) fn handle_too_long(&mut self, size: u16, now: Instant) {
        if size <= self.limit {
            if self.limit > LEAST {
                self.begin(now);
            }
            return;
        }
        self.above = self.above.min(size);
        if self.probing.is_some_and(|probing| probing.size >= size) {
            self.search(now);
        }
    }

    /// The question that is due, if one is.
    pub(crate) fn handle_timeout(&mut self, sight: Sight, now: Instant) -> Option<Probe> {
        if now < self.poll_timeout()? {
            return None;
        }
        match self.probing {
            None => self.raise(now),
            Some(Probing { size, tries: 0, .. }) => self.is_lost(size, now),
            Some(_) => {}
        }
        let (limit, probing) = (self.limit, self.probing.as_mut()?);
        let spacing = if probing.size > limit && sight.clear {
            ASK_AGAIN
        } else {
            CONFIRM_AGAIN
        };
        probing.due = now + spacing.max(sight.rtt.unwrap_or_default() * 3);
        probing.tries -= u8::from(sight.clear);
        self.number = self.number.wrapping_add(1);
        Some(Probe {
            reply: false,
            size: probing.size,
            number: self.number,
        })
    }

    /// When [`Self::handle_timeout`] has something to do.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.probing.map(|probing| probing.due).or(self.raise_at)
    }

    /// A question was asked as often as it may be.
    fn is_lost(&mut self, size: u16, now: Instant) {
        if size > self.limit {
            self.above = size;
            self.search(now);
        } else {
            self.begin(now);
        }
    }

    /// Tries all that is of use.
    fn raise(&mut self, now: Instant) {
        self.above = self.wanted + 1;
        (self.probing, self.raise_at) = (None, None);
        if self.limit < self.wanted {
            self.probe(self.wanted, TRIES, now);
        }
    }

    /// Goes on between what passes and what does not.
    fn search(&mut self, now: Instant) {
        (self.probing, self.raise_at) = (None, None);
        if self.limit == self.wanted {
            self.pause = PAUSE;
        } else if self.above - self.limit <= STEP {
            self.raise_at = Some(now + self.pause);
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        } else {
            self.probe(self.limit.midpoint(self.above), TRIES, now);
        }
    }

    fn probe(&mut self, size: u16, tries: u8, now: Instant) {
        self.probing = Some(Probing {
            size,
            tries,
            due: now,
        });
    }
}

/// What every path carries: IPv4 promises datagrams of 576 bytes with their headers (RFC 1122 §3.3.2),
/// IPv6 more.
const LEAST: u16 = 576 - 20 - 8;
/// The longest datagram over IPv4.
const LONGEST: u16 = u16::MAX - 20 - 8;
/// What a datagram has around the packet in an untagged frame.
const AROUND: u16 = (ETHERNET_HEADER + MAX_FRAME_HEADER + OVERHEAD) as u16;
/// Two tags, which no MTU counts.
const TAGS: u16 = 8;
/// So close to what does not pass that it is not worth more questions.
const STEP: u16 = 8;
/// How often a size is asked for before it counts as too long. With one datagram in five lost, each way,
/// one in twenty is believed to be that without being it, until longer ones are tried again.
const TRIES: u8 = 3;
/// How often the size in use is asked for before it is given up.
const CONFIRMATIONS: u8 = 6;
/// Between two questions for a size, if the way there and back is not long.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// Between two questions for the size in use: so far apart that no one burst of losses takes them all.
/// As seldom is asked while nothing comes through.
const CONFIRM_AGAIN: Duration = Duration::from_millis(400);
/// How long an answer for the size in use is good enough.
const CONFIRMED_FOR: Duration = Duration::from_secs(10);
/// How long, when frames are not answered by anything.
const IN_DOUBT: Duration = Duration::from_secs(2);
/// How long it is until longer ones are tried again, at first and at last.
const PAUSE: Duration = Duration::from_secs(15);
const LONGEST_PAUSE: Duration = Duration::from_secs(240);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand_chacha::ChaCha20Rng;
    use rand_core::{Rng, SeedableRng};

    use super::*;

    /// What a network with an MTU of 1376 wants.
    const WANTED: u16 = 1447;
    const RTT: Duration = Duration::from_millis(20);

    /// A way that carries datagrams up to a size, some of them.
    struct World {
        path: Path,
        now: Instant,
        start: Instant,
        carries: u16,
        /// What the link of this host carries.
        link: u16,
        /// So many of a hundred are lost, each way.
        loss: u32,
        rng: ChaCha20Rng,
        /// Whether frames are answered by others.
        heard: bool,
        answers: Vec<(Instant, Probe)>,
        asked: Vec<u16>,
    }

    impl World {
        fn new(carries: u16) -> Self {
            let now = crate::clock::start();
            Self {
                path: Path::new(1376, now),
                now,
                start: now,
                carries,
                link: u16::MAX,
                loss: 0,
                rng: ChaCha20Rng::seed_from_u64(1),
                heard: true,
                answers: vec![],
                asked: vec![],
            }
        }

        /// Lets time pass, with frames being sent all the while.
        fn run(&mut self, duration: Duration) {
            let end = self.now + duration;
            let mut traffic = self.now;
            loop {
                let answer = self.answers.iter().map(|(at, _)| *at).min();
                let due = [self.path.poll_timeout(), answer, Some(traffic)];
                let next = due.into_iter().flatten().min().unwrap().max(self.now);
                if next > end {
                    break;
                }
                self.now = next;
                if traffic <= self.now {
                    self.path.handle_traffic(self.heard, self.now);
                    traffic = self.now + Duration::from_millis(500);
                }
                self.step();
            }
            self.now = end;
        }

        fn step(&mut self) {
            let now = self.now;
            let (due, later) = self.answers.drain(..).partition(|(at, _)| *at <= now);
            self.answers = later;
            let due: Vec<(Instant, Probe)> = due;
            for (_, answer) in due {
                self.path.handle_answer(answer, now);
            }
            let sight = Sight {
                rtt: Some(RTT),
                clear: self.carries > 0,
            };
            while let Some(probe) = self.path.handle_timeout(sight, now) {
                self.asked.push(probe.size);
                assert!(self.asked.len() < 5000, "it asks without end");
                let mut passes = || self.rng.next_u32() % 100 >= self.loss;
                if probe.size > self.link {
                    self.path.handle_too_long(probe.size, now);
                } else if probe.size <= self.carries && passes() && passes() {
                    self.answers.push((now + RTT, probe.answer().unwrap()));
                }
            }
            let limit = self.path.limit();
            assert!((LEAST..=WANTED).contains(&limit), "{limit}");
        }

        /// The time until the limit is that, or near enough.
        fn settles(&mut self, within: Duration) -> Duration {
            let begin = self.now;
            let best = self.carries.min(self.link).min(WANTED);
            let good = |path: &Path| (best - STEP..=best).contains(&path.limit());
            while !good(&self.path) {
                assert!(
                    self.now - begin < within,
                    "{} for {best} after {:?}",
                    self.path.limit(),
                    self.now - self.start
                );
                self.run(Duration::from_millis(10));
            }
            self.now - begin
        }
    }

    #[test]
    fn on_most_paths_one_round_trip_tells_all() {
        let mut world = World::new(1472);
        assert_eq!(world.settles(RTT), RTT);
        assert_eq!(world.path.limit(), WANTED);
        assert_eq!(world.path.mtu(), 1376);
        world.run(Duration::from_secs(9));
        assert_eq!(world.asked, [WANTED]);
    }

    #[test]
    fn without_frames_nothing_is_asked() {
        let mut world = World::new(1472);
        world.settles(RTT);
        assert_eq!(world.path.poll_timeout(), None);
    }

    #[test]
    fn the_size_in_use_is_confirmed_every_ten_seconds() {
        let mut world = World::new(1472);
        world.run(Duration::from_secs(3600));
        let count = world.asked.len();
        assert!((300..=361).contains(&count), "{count}");
        assert_eq!(world.path.limit(), WANTED);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_a_path_carries_is_found_out(carries in LEAST..1500, link in LEAST..1500) {
            let mut world = World { link, ..World::new(carries) };
            world.settles(Duration::from_secs(4));
            world.run(Duration::from_secs(60));
            world.settles(Duration::ZERO);
        }

        #[test]
        fn a_path_that_changes_is_found_out(first in LEAST..1500, second in LEAST..1500, at in 0_u64..60) {
            let mut world = World::new(first);
            world.run(Duration::from_secs(at));
            world.carries = second;
            // What is narrower shows at the next confirmation, what is wider when it is looked for.
            let within = if second < first { 20 } else { 250 };
            world.settles(Duration::from_secs(within));
        }
    }

    #[test]
    fn a_path_that_begins_to_swallow_long_datagrams_is_narrow_within_thirteen_seconds() {
        let mut world = World::new(1472);
        world.run(Duration::from_secs(101));
        world.carries = 672;
        let begin = world.now;
        while world.path.limit() > 672 {
            world.run(Duration::from_millis(10));
        }
        assert!(world.now - begin < Duration::from_secs(13));
        let more = world.settles(Duration::from_secs(4));
        assert!(more > Duration::ZERO);
        world.carries = 1472;
        world.settles(Duration::from_secs(250));
    }

    #[test]
    fn frames_that_nothing_answers_make_it_look_sooner() {
        let mut world = World::new(1472);
        world.run(Duration::from_secs(101));
        (world.carries, world.heard) = (672, false);
        world.run(Duration::from_secs(5));
        assert!(world.path.limit() <= 672);
    }

    #[test]
    fn a_link_that_becomes_narrow_is_believed_at_once() {
        let mut world = World::new(1472);
        world.run(Duration::from_secs(5));
        world.link = 1172;
        world.path.handle_too_long(1447, world.now);
        assert_eq!(world.path.limit(), LEAST);
        world.settles(Duration::from_secs(1));
    }

    #[test]
    fn one_datagram_in_five_lost_costs_little() {
        let mut world = World {
            loss: 20,
            ..World::new(1472)
        };
        let mut full = 0;
        for _ in 0..3600 {
            world.run(Duration::from_secs(1));
            full += u32::from(world.path.limit() == WANTED);
        }
        assert!(full > 3400, "{full} of 3600 seconds");
    }

    #[test]
    fn silence_of_all_sizes_tells_nothing() {
        let mut world = World::new(1472);
        world.run(Duration::from_secs(5));
        world.carries = 0;
        world.run(Duration::from_secs(60));
        assert_eq!(world.path.limit(), WANTED);
        let seldom = world.asked.len();
        assert!(seldom < 150, "{seldom} questions");
        world.carries = 1472;
        world.run(Duration::from_secs(2));
        assert_eq!(world.path.limit(), WANTED);
    }

    #[test]
    fn another_address_is_another_path() {
        let mut world = World::new(1472);
        world.run(Duration::from_secs(1));
        let old = Probe {
            reply: true,
            size: WANTED,
            number: world.path.number,
        };
        world.path.begin(world.now);
        assert_eq!(world.path.limit(), LEAST);
        world.path.handle_answer(old, world.now);
        assert_eq!(world.path.limit(), LEAST, "an answer of the old path");
        assert_eq!(world.settles(RTT), RTT);
    }

    #[test]
    fn answers_that_were_not_asked_for_change_nothing() {
        let mut path = Path::new(1376, crate::clock::start());
        for number in [0, 1, 2, u32::MAX] {
            let answer = Probe {
                reply: true,
                size: 1000,
                number,
            };
            path.handle_answer(answer, crate::clock::start());
        }
        assert_eq!(path.limit(), LEAST);
    }

    #[test]
    fn any_mtu_has_its_sizes() {
        let now = crate::clock::start();
        for mtu in [0, 68, 576, 1376, 9000, u16::MAX] {
            let path = Path::new(mtu, now);
            assert!(path.mtu() <= mtu.max(LEAST));
            assert!(path.wanted <= LONGEST);
        }
    }
}
