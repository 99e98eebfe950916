//! Which packets of a session have been received: a window over their counters.
//!
//! A ring of bits, as RFC 6479 has it: one bit for each counter, and when the window moves on whole
//! words are cleared instead of bits shifted. The word being filled is the reason why
//! [`ReplayWindow::SIZE`] is one word short of the ring.
//!
//! Invariant: a counter is marked only after its packet was found authentic. A forger could
//! otherwise move the window past packets that are still to come. Hence the two steps,
//! [`ReplayWindow::check`] and [`ReplayWindow::mark`].

use thiserror::Error;
use weft_wire::packet::Counter;

/// Why a counter is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Replay {
    /// The counter was marked before.
    #[error("the packet was received before")]
    Seen,
    /// The counter is behind the window, so nobody knows whether it was marked.
    #[error("the packet is more than {} packets late", ReplayWindow::SIZE)]
    TooOld,
}

/// The counters received last.
#[derive(Debug, Clone)]
pub struct ReplayWindow {
    newest: Option<u64>,
    ring: Box<[u64; WORDS as usize]>,
}

impl ReplayWindow {
    /// How many counters, the newest included, the window tells apart.
    ///
    /// Packets are reordered by a few batches at the most (a batch is up to 64 packets); at a
    /// million packets a second this is 8 ms of delay between two paths.
    pub const SIZE: u64 = (WORDS - 1) * WORD;

    /// A window that has seen nothing.
    pub fn new() -> Self {
        Self {
            newest: None,
            ring: Box::new([0; WORDS as usize]),
        }
    }

    /// Whether `counter` may belong to a new packet. Changes nothing.
    ///
    /// # Errors
    /// It was marked before, or may have been.
    pub fn check(&self, Counter(counter): Counter) -> Result<(), Replay> {
        let Some(behind) = self.newest.and_then(|newest| newest.checked_sub(counter)) else {
            return Ok(());
        };
        if behind >= Self::SIZE {
            return Err(Replay::TooOld);
        }
        let (word, bit) = place(counter);
        match self.ring.get(word) {
            Some(word) if word & bit == 0 => Ok(()),
            Some(_) | None => Err(Replay::Seen),
        }
    }

    /// Marks the counter of an authentic packet. Checks it again, since with several threads the
    /// same packet may have been opened twice meanwhile.
    ///
    /// # Errors
    /// It was marked before, or may have been; the packet must be dropped.
    pub fn mark(&mut self, Counter(counter): Counter) -> Result<(), Replay> {
        self.check(Counter(counter))?;
        if self.newest.is_none_or(|newest| newest < counter) {
            self.advance(counter);
        }
        let (word, bit) = place(counter);
        if let Some(word) = self.ring.get_mut(word) {
            *word |= bit;
        }
        Ok(())
    }

    /// Moves the window on to a newer counter.
    fn advance(&mut self, to: u64) {
        let from = self.newest.unwrap_or(0);
        let words = (to / WORD - from / WORD).min(WORDS);
        for step in 1..=words {
            let (word, _) = place((from / WORD + step) * WORD);
            if let Some(word) = self.ring.get_mut(word) {
                *word = 0;
            }
        }
        self.newest = Some(to);
    }
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self::new()
    }
}

/// Where the ring keeps a counter: the word and the bit in it.
fn place(counter: u64) -> (usize, u64) {
    // Below WORDS, so the cast keeps the value.
    let word = (counter / WORD % WORDS) as usize;
    (word, 1 << (counter % WORD))
}

const WORD: u64 = u64::BITS as u64;
/// One kilobyte for each session.
const WORDS: u64 = 128;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_window_says_what_a_plain_list_says(
            start in prop_oneof![0..3_u64, any::<u64>()],
            steps in prop::collection::vec(step(), 0..300),
        ) {
            let mut window = ReplayWindow::new();
            let mut list = List::default();
            let mut at = start;
            for step in steps {
                at = at.saturating_add_signed(step);
                let expected = list.check(at);
                prop_assert_eq!(window.check(Counter(at)), expected);
                prop_assert_eq!(window.mark(Counter(at)), expected);
                list.mark(at);
            }
        }
    }

    #[test]
    fn checking_marks_nothing() {
        let mut window = ReplayWindow::new();
        assert_eq!(window.check(Counter(9)), Ok(()));
        assert_eq!(window.check(Counter(9)), Ok(()));
        assert_eq!(window.mark(Counter(9)), Ok(()));
        assert_eq!(window.check(Counter(9)), Err(Replay::Seen));
        assert_eq!(window.mark(Counter(9)), Err(Replay::Seen));
    }

    #[test]
    fn the_window_ends_where_it_says() {
        let mut window = ReplayWindow::new();
        let newest = 3 * ReplayWindow::SIZE;
        assert_eq!(window.mark(Counter(newest)), Ok(()));
        let last = Counter(newest - (ReplayWindow::SIZE - 1));
        assert_eq!(window.check(last), Ok(()));
        let gone = Counter(newest - ReplayWindow::SIZE);
        assert_eq!(window.check(gone), Err(Replay::TooOld));
    }

    #[test]
    fn the_largest_counters_are_no_special_case() {
        let mut window = ReplayWindow::new();
        assert_eq!(window.mark(Counter(0)), Ok(()));
        assert_eq!(window.mark(Counter(u64::MAX)), Ok(()));
        assert_eq!(window.mark(Counter(u64::MAX - 1)), Ok(()));
        assert_eq!(window.mark(Counter(u64::MAX)), Err(Replay::Seen));
        assert_eq!(window.mark(Counter(0)), Err(Replay::TooOld));
    }

    /// The rule without a ring.
    #[derive(Default)]
    struct List {
        marked: BTreeSet<u64>,
    }

    impl List {
        fn check(&self, counter: u64) -> Result<(), Replay> {
            let newest = self.marked.last().copied().unwrap_or(0);
            if newest.saturating_sub(counter) >= ReplayWindow::SIZE {
                Err(Replay::TooOld)
            } else if self.marked.contains(&counter) {
                Err(Replay::Seen)
            } else {
                Ok(())
            }
        }

        fn mark(&mut self, counter: u64) {
            if self.check(counter).is_ok() {
                self.marked.insert(counter);
            }
        }
    }

    /// Mostly near, sometimes about a window away, sometimes anywhere.
    fn step() -> impl Strategy<Value = i64> {
        let size = ReplayWindow::SIZE.cast_signed();
        prop_oneof![
            6 => -70..90_i64,
            2 => -size - 70..size + 70,
            1 => size - 2..size + 67,
            1 => -size - 1..-size + 2,
            1 => any::<i64>(),
        ]
    }
}
