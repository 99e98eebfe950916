//! How long to wait before the next dial.

use std::time::Duration;

use rand_core::Rng;

/// Waits that grow from one second to one minute, each spread by half either way, so that peers
/// that lost the same neighbour do not all come back at once.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { next: FIRST }
    }

    /// The next wait.
    pub(crate) fn wait(&mut self, rng: &mut impl Rng) -> Duration {
        let wait = spread(self.next, rng);
        self.next = (self.next * 3 / 2).min(LONGEST);
        wait.min(LONGEST)
    }

    /// After an end: a connection that held for a while is no reason to wait longer than at first.
    pub(crate) fn wait_after(&mut self, lived: Option<Duration>, rng: &mut impl Rng) -> Duration {
        if lived.is_some_and(|lived| lived > LIVED) {
            *self = Self::new();
        }
        self.wait(rng)
    }
}

/// `around`, half of it less or half of it more, evenly.
pub(crate) fn spread(around: Duration, rng: &mut impl Rng) -> Duration {
    // 2^16 steps are fine enough, and the product stays far below the limit of Duration.
    let share = rng.next_u32() >> 16;
    around / 2 + around * share / (1 << 16)
}

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// A connection that lived longer than this was a good one.
const LIVED: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    use super::*;

    #[test]
    fn waits_grow_by_half_up_to_a_minute_and_are_spread_by_half() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let mut backoff = Backoff::new();
        let mut middle = 1.0_f64;
        for _ in 0..20 {
            let wait = backoff.wait(&mut rng).as_secs_f64();
            assert!(
                (middle / 2.0..=(middle * 1.5).min(60.0)).contains(&wait),
                "{wait} around {middle}"
            );
            middle = (middle * 1.5).min(60.0);
        }
    }

    #[test]
    fn a_connection_that_lived_starts_the_waits_anew() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let mut backoff = Backoff::new();
        for _ in 0..20 {
            backoff.wait_after(Some(Duration::from_secs(59)), &mut rng);
        }
        assert!(backoff.wait(&mut rng) >= Duration::from_secs(30));
        let fresh = backoff.wait_after(Some(Duration::from_secs(61)), &mut rng);
        assert!(fresh <= Duration::from_millis(1500));
    }
}
