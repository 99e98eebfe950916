//! A peer's own clock: it need not run at the rate of the world's, nor show the same time of day.
//!
//! Machines are told elapsed time by it, so a timer of ten seconds takes sixteen where the clock is
//! slow. Invariant: a deadline that was carried over to the world's time has come by the peer's clock
//! when the world gets there.

use std::time::{Duration, Instant};

use crate::world::World;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    /// Seconds it counts in a thousand of the world's.
    pub(crate) rate: u32,
    /// What it has shown more than the world's when that began.
    pub(crate) ahead: Duration,
    /// How much its time of day is late, in seconds.
    pub(crate) late: u64,
}

impl Clock {
    pub(crate) const RIGHT: Self = Self {
        rate: RIGHT,
        ahead: Duration::ZERO,
        late: 0,
    };

    /// What it shows this long after the world began.
    fn shows(self, passed: Duration) -> Duration {
        match self.rate {
            RIGHT => passed + self.ahead,
            rate => passed * rate / RIGHT + self.ahead,
        }
    }

    /// When, after the world began, it will show this.
    fn will_show(self, shown: Duration) -> Duration {
        let shown = shown.saturating_sub(self.ahead);
        match self.rate {
            RIGHT => shown,
            rate => (shown * RIGHT + Duration::from_nanos(u64::from(rate) - 1)) / rate,
        }
    }
}

impl World {
    /// A clock as bad as peers must bear.
    pub(crate) fn wrong_clock(&mut self) -> Clock {
        let rates = self.rates.clone();
        Clock {
            rate: rates.start + u32::try_from(self.random(rates.len() as u64)).unwrap(),
            ahead: Duration::from_millis(self.random(86_400_000)),
            late: self.random(86_400),
        }
    }

    /// The time by a peer's clock.
    pub(crate) fn clock(&self, n: usize) -> Instant {
        let clock = self.peers[n].clock;
        self.start + clock.shows(self.now - self.start)
    }

    /// When it is this late by a peer's clock.
    pub(crate) fn by_our_clock(&self, n: usize, theirs: Instant) -> Instant {
        let clock = self.peers[n].clock;
        self.start + clock.will_show(theirs - self.start)
    }
}

const RIGHT: u32 = 1000;

#[test]
fn a_deadline_has_come_when_the_world_gets_there() {
    let ahead = Duration::from_secs(86_400);
    for (rate, ahead) in [
        (600, ahead),
        (999, Duration::ZERO),
        (1000, ahead),
        (1600, ahead),
    ] {
        let clock = Clock {
            rate,
            ahead,
            late: 0,
        };
        for nanos in (1..5_000_000_000).step_by(7_777_777) {
            let deadline = ahead + Duration::from_nanos(nanos);
            let shown = clock.shows(clock.will_show(deadline));
            assert!(shown >= deadline && shown - deadline < Duration::from_nanos(10));
        }
    }
}
