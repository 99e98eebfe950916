//! The keys that seal one connection's datagrams: when a new one is due, when an old one goes.
//!
//! Each side chooses the key it *receives* with and tells it over the control connection. So two
//! sides change keys independently; but who gets a new key answers with one of its own, unless that is
//! fresh too. Thus a side whose *sending* key is worn out need only offer a new receiving one.
//!
//! Invariant: a receiving key outlives its successor's offer by [`GRACE`], for what is on its way.

use std::time::{Duration, Instant};

use rand_core::Rng;
use weft_wire::control::{SessionKey, Suite};
use weft_wire::packet::ReceiverIndex;

use crate::backoff::spread;

/// The session keys of one connection.
#[derive(Debug)]
pub(crate) struct Keys {
    suite: Suite,
    /// What we receive with, and when it was offered.
    receiving: Option<(ReceiverIndex, Instant)>,
    retiring: Vec<(ReceiverIndex, Instant)>,
    /// When the next key is offered anyway.
    rekey_at: Instant,
    /// The peer has offered a key, so we can send.
    can_send: bool,
}

impl Keys {
    /// AES where both ends have it in hardware, ChaCha20 else.
    pub(crate) fn new(aes: bool, now: Instant) -> Self {
        Self {
            suite: if aes {
                Suite::Aes256Gcm
            } else {
                Suite::ChaCha20Poly1305
            },
            receiving: None,
            retiring: Vec::new(),
            rekey_at: now,
            can_send: false,
        }
    }

    /// Makes a new receiving key; the one before is on its way out. `taken` tells numbers in use.
    pub(crate) fn offer(
        &mut self,
        taken: impl Fn(ReceiverIndex) -> bool,
        rng: &mut impl Rng,
        now: Instant,
    ) -> SessionKey {
        let mut receiver = ReceiverIndex(rng.next_u32());
        while taken(receiver) || self.holds(receiver) {
            receiver = ReceiverIndex(rng.next_u32());
        }
        if let Some((old, _)) = self.receiving.replace((receiver, now)) {
            self.retiring.push((old, now + GRACE));
        }
        self.rekey_at = now + INTERVAL - INTERVAL / 10 + spread(INTERVAL / 10, rng);
        let mut key = [0; 32];
        rng.fill_bytes(&mut key);
        SessionKey {
            receiver,
            suite: self.suite,
            key,
        }
    }

    /// The peer has offered a key; returns whether ours is to be renewed too.
    pub(crate) fn handle_offer(&mut self, now: Instant) -> bool {
        self.can_send = true;
        self.may_renew(now)
    }

    /// Whether our key is old enough to be renewed out of turn.
    pub(crate) fn may_renew(&self, now: Instant) -> bool {
        self.receiving
            .is_some_and(|(_, offered)| now >= offered + GRACE)
    }

    /// Whether a new key is due.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        now >= self.rekey_at
    }

    /// Old keys that are to be forgotten.
    pub(crate) fn retire(&mut self, now: Instant) -> Vec<ReceiverIndex> {
        let (due, kept) = self.retiring.iter().partition(|(_, at)| now >= *at);
        self.retiring = kept;
        let due: Vec<(ReceiverIndex, Instant)> = due;
        due.into_iter().map(|(receiver, _)| receiver).collect()
    }

    /// When [`Self::is_due`] or [`Self::retire`] has something.
    pub(crate) fn poll_timeout(&self) -> Instant {
        let retire = self.retiring.iter().map(|(_, at)| *at);
        retire.fold(self.rekey_at, Instant::min)
    }

    /// Whether we receive by this number.
    pub(crate) fn holds(&self, receiver: ReceiverIndex) -> bool {
        let mut all = self.receiving.iter().chain(&self.retiring);
        all.any(|(held, _)| *held == receiver)
    }

    pub(crate) fn can_send(&self) -> bool {
        self.can_send
    }

    pub(crate) fn suite(&self) -> Suite {
        self.suite
    }
}

/// About how long a key is used.
const INTERVAL: Duration = Duration::from_secs(120);
/// How long a receiving key stays good after its successor was offered; no key is renewed sooner.
const GRACE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    use super::*;

    #[test]
    fn an_old_key_stays_for_ten_seconds() {
        let (mut keys, mut rng, now) = start();
        let one = keys.offer(|_| false, &mut rng, now);
        let later = now + Duration::from_secs(100);
        let two = keys.offer(|_| false, &mut rng, later);
        assert_ne!((one.receiver, one.key), (two.receiver, two.key));
        assert!(keys.holds(one.receiver) && keys.holds(two.receiver));
        assert_eq!(keys.poll_timeout(), later + GRACE);
        assert!(
            keys.retire(later + GRACE - Duration::from_millis(1))
                .is_empty()
        );
        assert_eq!(keys.retire(later + GRACE), [one.receiver]);
        assert!(!keys.holds(one.receiver));
    }

    #[test]
    fn a_new_key_is_due_after_two_minutes_more_or_less() {
        let (mut keys, mut rng, now) = start();
        assert!(keys.is_due(now));
        for _ in 0..50 {
            keys.offer(|_| false, &mut rng, now);
            let due = (keys.poll_timeout() - now).as_secs();
            assert!(
                due == GRACE.as_secs() || (114..=126).contains(&due),
                "{due}"
            );
        }
        assert!(keys.is_due(now + Duration::from_secs(126)));
        assert!(!keys.is_due(now + Duration::from_secs(113)));
    }

    #[test]
    fn an_offer_is_answered_by_one_unless_ours_is_fresh() {
        let (mut keys, mut rng, now) = start();
        assert!(!keys.can_send());
        keys.offer(|_| false, &mut rng, now);
        assert!(!keys.handle_offer(now + GRACE / 2));
        assert!(keys.can_send());
        assert!(keys.handle_offer(now + GRACE));
    }

    #[test]
    fn a_number_in_use_is_not_chosen_again() {
        let (mut keys, _, now) = start();
        let mut other = ChaCha20Rng::seed_from_u64(1);
        let first = keys
            .offer(|_| false, &mut ChaCha20Rng::seed_from_u64(1), now)
            .receiver;
        let second = keys.offer(|_| false, &mut other, now).receiver;
        assert_ne!(first, second);
        let third = keys
            .offer(|r| r == second, &mut ChaCha20Rng::seed_from_u64(1), now)
            .receiver;
        assert!(third != first && third != second);
    }

    fn start() -> (Keys, ChaCha20Rng, Instant) {
        let now = crate::clock::start();
        (Keys::new(false, now), ChaCha20Rng::seed_from_u64(7), now)
    }
}
