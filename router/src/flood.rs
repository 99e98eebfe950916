//! Flooded frames: each is delivered once and passed on once.
//!
//! Broadcast trees agree only while views of the topology do, so a flooded frame can come twice, or
//! run in a circle. It is therefore named by its origin and a number the origin counts up
//! ([`FloodNumber`]), and each peer remembers what it has had of each origin ([`Seen`]).
//!
//! ```text
//!         │◀────────────── RESTART ──────────────▶│◀─────────────── RESTART ───────────────▶│
//!  ───────┼───────────────────┬───────────────────┼─────────────────────────────────────────┼───▶ number
//!  another│  too old: not new │  window: looked up│newest      new: becomes the newest      │another
//!  run    │                   │◀──── WINDOW ─────▶│                                         │run
//! ```
//!
//! Numbers are serial (RFC 1982): they go around. An origin that starts anew starts at a random
//! number, which lies far from its last one with a probability of 1 − 2⁻¹⁵; then a new window is
//! begun. Otherwise its frames are taken for old ones until no new one has come for five
//! seconds, after which there can be no copies of what came before.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use weft_wire::PeerName;

/// Numbers the frames we flood; shared by the threads that capture.
#[derive(Debug)]
pub struct FloodNumber(AtomicU32);

impl FloodNumber {
    /// Counts from `start`, which is to be random at each start of the router.
    pub fn starting_at(start: u32) -> Self {
        Self(AtomicU32::new(start))
    }

    /// The number of the next frame.
    pub fn next(&self) -> u32 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// Which flooded frames have been here, of the last [`WINDOW`] of each origin.
///
/// Invariant: at most [`MAX_ORIGINS`] windows, half a kilobyte each.
#[derive(Debug, Default)]
pub struct Seen {
    origins: HashMap<PeerName, Window>,
    /// Counts questions, so that the origin heard least recently is known.
    clock: u64,
}

#[derive(Debug)]
struct Window {
    newest: u32,
    /// When that came.
    moved: Instant,
    /// One bit for each number of the window, at the number modulo [`WINDOW`].
    bits: Box<[u64; WORDS]>,
    /// [`Seen::clock`] when the origin was last heard.
    heard: u64,
}

impl Seen {
    /// Nothing seen so far.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether frame `number` of `origin` is here for the first time; from now on it was here.
    ///
    /// Allocates only for an origin that was not heard before, or not among the last
    /// [`MAX_ORIGINS`].
    pub fn first_time(&mut self, origin: PeerName, number: u32, now: Instant) -> bool {
        self.clock += 1;
        if let Some(window) = self.origins.get_mut(&origin) {
            window.heard = self.clock;
            return window.first_time(number, now);
        }
        if self.origins.len() >= MAX_ORIGINS {
            self.evict();
        }
        let window = Window::starting_with(number, self.clock, now);
        self.origins.insert(origin, window);
        true
    }

    /// Forgets the origin heard least recently. `heard` differs for all, so the order of the map
    /// does not show.
    fn evict(&mut self) {
        let oldest = self.origins.iter().min_by_key(|(_, window)| window.heard);
        if let Some(oldest) = oldest.map(|(origin, _)| *origin) {
            self.origins.remove(&oldest);
        }
    }
}

impl Window {
    fn starting_with(number: u32, heard: u64, now: Instant) -> Self {
        let mut window = Self {
            newest: number,
            moved: now,
            bits: Box::new([0; WORDS]),
            heard,
        };
        window.set(number);
        window
    }

    fn first_time(&mut self, number: u32, now: Instant) -> bool {
        let ahead = number.wrapping_sub(self.newest);
        let behind = self.newest.wrapping_sub(number);
        let is_still = now.saturating_duration_since(self.moved) >= COPIES;
        if ahead != 0 && ahead <= RESTART {
            self.advance(ahead);
            self.moved = now;
        } else if behind > RESTART || is_still {
            *self.bits = [0; WORDS];
            self.newest = number;
            self.moved = now;
        } else if behind >= WINDOW {
            return false;
        }
        self.set(number)
    }

    /// Moves the window on, forgetting what leaves it.
    fn advance(&mut self, by: u32) {
        if by >= WINDOW {
            *self.bits = [0; WORDS];
        } else {
            for step in 1..=by {
                let (word, bit) = place(self.newest.wrapping_add(step));
                if let Some(word) = self.bits.get_mut(word) {
                    *word &= !bit;
                }
            }
        }
        self.newest = self.newest.wrapping_add(by);
    }

    /// Marks a number of the window; returns whether it was not marked.
    fn set(&mut self, number: u32) -> bool {
        let (word, bit) = place(number);
        let Some(word) = self.bits.get_mut(word) else {
            return false;
        };
        let new = *word & bit == 0;
        *word |= bit;
        new
    }
}

/// Where the window keeps a number: the word and the bit in it.
fn place(number: u32) -> (usize, u64) {
    let at = number % WINDOW;
    ((at / u64::BITS) as usize, 1 << (at % u64::BITS))
}

/// How far a frame may be behind the newest of its origin and still be told apart from a duplicate.
///
/// Copies of a frame arrive within a second or so of each other; this is a second of one origin
/// flooding 4,000 frames in it. A power of two, so that it divides the numbers' 2³².
pub const WINDOW: u32 = 4096;
/// How many origins are remembered: twice [`crate::topology::MAX_PEERS`].
pub const MAX_ORIGINS: usize = 4096;
/// A number further than this from the newest, either way, is of another run of its origin.
const RESTART: u32 = 1 << 16;
/// All copies of a frame have come when it is this old.
const COPIES: Duration = Duration::from_secs(5);
const WORDS: usize = (WINDOW / u64::BITS) as usize;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn seen_is_what_a_plain_list_says(start: u32, steps in prop::collection::vec(step(), 0..200)) {
            let now = crate::clock::start();
            let mut seen = Seen::new();
            let mut list = List::default();
            let mut at = start;
            for step in steps {
                at = at.wrapping_add_signed(step);
                prop_assert_eq!(seen.first_time(peer(1), at, now), list.first_time(at), "number {}", at);
            }
        }

        #[test]
        fn within_one_run_no_frame_is_new_twice(start: u32, offsets in prop::collection::vec(0..20_000_u32, 0..300)) {
            let now = crate::clock::start();
            let mut seen = Seen::new();
            let mut new = BTreeSet::new();
            for number in offsets.into_iter().map(|o| start.wrapping_add(o)) {
                if seen.first_time(peer(1), number, now) {
                    prop_assert!(new.insert(number));
                }
            }
        }
    }

    #[test]
    fn each_origin_counts_for_itself() {
        let now = crate::clock::start();
        let mut seen = Seen::new();
        assert!(seen.first_time(peer(1), 7, now));
        assert!(seen.first_time(peer(2), 7, now));
        assert!(!seen.first_time(peer(1), 7, now));
        assert!(!seen.first_time(peer(2), 7, now));
    }

    #[test]
    fn late_frames_are_new_while_the_window_knows_them() {
        let now = crate::clock::start();
        let mut seen = Seen::new();
        assert!(seen.first_time(peer(1), 10_000, now));
        assert!(seen.first_time(peer(1), 10_000 - (WINDOW - 1), now));
        assert!(!seen.first_time(peer(1), 10_000 - (WINDOW - 1), now));
        assert!(!seen.first_time(peer(1), 10_000 - WINDOW, now));
    }

    #[test]
    fn numbers_go_around() {
        let now = crate::clock::start();
        let mut seen = Seen::new();
        for number in [u32::MAX - 1, 0, u32::MAX] {
            assert!(seen.first_time(peer(1), number, now));
            assert!(!seen.first_time(peer(1), number, now));
        }
    }

    #[test]
    fn an_origin_that_starts_anew_is_heard_at_once() {
        let now = crate::clock::start();
        for far in [RESTART + 1, 1 << 31, u32::MAX - RESTART] {
            let mut seen = Seen::new();
            assert!(seen.first_time(peer(1), 5, now));
            let number = far.wrapping_add(5);
            assert!(seen.first_time(peer(1), number, now));
            assert!(!seen.first_time(peer(1), number, now));
            assert!(seen.first_time(peer(1), number.wrapping_add(1), now));
        }
    }

    #[test]
    fn an_origin_that_starts_anew_a_little_behind_is_heard_when_there_can_be_no_copies() {
        let now = crate::clock::start();
        for behind in [0, 1, WINDOW + 10, RESTART] {
            let mut seen = Seen::new();
            assert!(seen.first_time(peer(1), 100_000, now));
            let mut number = 100_000 - behind;
            let mut later = now + Duration::from_millis(500);
            while later < now + COPIES {
                let is_new = seen.first_time(peer(1), number, later);
                assert!(behind < WINDOW || !is_new, "{behind}");
                (number, later) = (number + 1, later + Duration::from_secs(1));
            }
            for _ in 0..10 {
                assert!(seen.first_time(peer(1), number, later), "{behind}");
                assert!(!seen.first_time(peer(1), number, later), "{behind}");
                (number, later) = (number + 1, later + Duration::from_secs(1));
            }
        }
    }

    #[test]
    fn the_origin_heard_least_recently_is_forgotten() {
        let now = crate::clock::start();
        let mut seen = Seen::new();
        for n in 0..MAX_ORIGINS {
            assert!(seen.first_time(peer(n), 1, now));
        }
        assert!(!seen.first_time(peer(0), 1, now));
        assert!(seen.first_time(peer(MAX_ORIGINS), 1, now));
        assert!(!seen.first_time(peer(0), 1, now), "heard a moment ago");
        assert!(seen.first_time(peer(1), 1, now), "made room");
        assert_eq!(seen.origins.len(), MAX_ORIGINS);
    }

    #[test]
    fn our_own_numbers_count_up_and_around() {
        let numbers = FloodNumber::starting_at(u32::MAX);
        assert_eq!([numbers.next(), numbers.next()], [u32::MAX, 0]);
    }

    /// The rule without a bitmap: all numbers had since the last restart.
    #[derive(Default)]
    struct List {
        newest: Option<u32>,
        had: BTreeSet<u32>,
    }

    impl List {
        fn first_time(&mut self, number: u32) -> bool {
            let Some(newest) = self.newest else {
                self.newest = Some(number);
                return self.had.insert(number);
            };
            let distance = i64::from(number.wrapping_sub(newest).cast_signed());
            if distance.abs() > i64::from(RESTART) {
                self.had.clear();
            }
            if distance > 0 || distance.abs() > i64::from(RESTART) {
                self.newest = Some(number);
            }
            distance > -i64::from(WINDOW) && self.had.insert(number)
                || distance < -i64::from(RESTART) && self.had.insert(number)
        }
    }

    /// Mostly near, sometimes at the bounds, sometimes anywhere.
    fn step() -> impl Strategy<Value = i32> {
        let window = WINDOW.cast_signed();
        let restart = RESTART.cast_signed();
        prop_oneof![
            6 => -70..70_i32,
            3 => -2 * window..2 * window,
            1 => restart - 2..restart + 3,
            1 => -restart - 2..-restart + 3,
            1 => any::<i32>(),
        ]
    }

    fn peer(n: usize) -> PeerName {
        PeerName::from_bytes([2, 0, 0, 0, (n >> 8) as u8, n as u8])
    }
}
