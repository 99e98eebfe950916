//! One place to dial: when it is dialled next, and what became of it.
//!
//! ```text
//!             due                 the peer is connected               ended
//!   Waiting ───────▶ Dialling ──────────────────────────▶ Connected ─────────▶ Waiting
//!      ▲                │ failed
//!      └────────────────┴──── it is ourselves ────▶ Suspended
//! ```
//!
//! Invariant: at most one dial at a time, and none while the peer is connected.

use std::time::{Duration, Instant};

use rand_core::Rng;
use weft_wire::control::RefusalReason;

use crate::backoff::Backoff;
use crate::{ConnId, TargetState};

/// The state of one place to dial.
#[derive(Debug)]
pub(crate) struct Dial {
    state: State,
    backoff: Backoff,
    error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting { at: Instant },
    Dialling(ConnId),
    Connected,
    Suspended,
}

/// How a dial, or the connection it made, ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Why, in words.
    pub(crate) why: String,
    /// The reason one of the two gave.
    pub(crate) reason: Option<RefusalReason>,
    /// How long the peer was connected, if it came that far.
    pub(crate) lived: Option<Duration>,
    /// It leads to ourselves.
    pub(crate) ourselves: bool,
    /// The next dial comes no sooner than this.
    pub(crate) at_least: Duration,
}

impl Ended {
    /// An end that calls for nothing but another try.
    pub(crate) fn because(why: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            reason: None,
            lived: None,
            ourselves: false,
            at_least: Duration::ZERO,
        }
    }
}

impl Dial {
    /// To be dialled at that time.
    pub(crate) fn at(at: Instant) -> Self {
        Self {
            state: State::Waiting { at },
            backoff: Backoff::new(),
            error: None,
        }
    }

    /// Dial at once, if nothing is under way.
    pub(crate) fn hurry(&mut self, now: Instant) {
        match self.state {
            State::Waiting { .. } | State::Suspended => {
                self.state = State::Waiting { at: now };
                self.backoff = Backoff::new();
            }
            State::Dialling(_) | State::Connected => {}
        }
    }

    /// It is not to be dialled until it is woken.
    pub(crate) fn park(&mut self) {
        if let State::Waiting { .. } = self.state {
            self.state = State::Suspended;
        }
    }

    /// Dial then, if it was parked.
    pub(crate) fn wake(&mut self, at: Instant) {
        if self.state == State::Suspended {
            self.state = State::Waiting { at };
        }
    }

    /// It is being dialled.
    pub(crate) fn begin(&mut self, conn: ConnId) {
        self.state = State::Dialling(conn);
    }

    /// It cannot be dialled before that time, for a reason of ours.
    pub(crate) fn put_off(&mut self, until: Instant, why: Option<&str>) {
        self.state = State::Waiting { at: until };
        if let Some(why) = why {
            self.error = Some(why.to_owned());
        }
    }

    /// The peer there is connected, by `conn`.
    pub(crate) fn connected(&mut self, conn: ConnId) {
        // Another dial to the same peer goes on to its own end, which is to be found a duplicate.
        if !matches!(self.state, State::Dialling(dial) if dial != conn) {
            self.rest();
        }
    }

    /// The dial led to a peer that is connected otherwise.
    pub(crate) fn superfluous(&mut self, conn: ConnId) {
        if self.state == State::Dialling(conn) {
            self.rest();
        }
    }

    /// The peer there is connected no more.
    pub(crate) fn disconnected(&mut self, ended: &Ended, rng: &mut impl Rng, now: Instant) {
        if self.state == State::Connected {
            self.wait(ended, rng, now);
        }
    }

    /// The dial failed, or the connection it made ended before the peer was connected by it.
    pub(crate) fn failed(&mut self, conn: ConnId, ended: &Ended, rng: &mut impl Rng, now: Instant) {
        if self.state == State::Dialling(conn) {
            self.wait(ended, rng, now);
        }
    }

    /// When it is to be dialled.
    pub(crate) fn due_at(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { at } => Some(at),
            State::Dialling(_) | State::Connected | State::Suspended => None,
        }
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.due_at().is_some_and(|at| at <= now)
    }

    /// The dial under way.
    pub(crate) fn conn(&self) -> Option<ConnId> {
        match self.state {
            State::Dialling(conn) => Some(conn),
            State::Waiting { .. } | State::Connected | State::Suspended => None,
        }
    }

    pub(crate) fn state(&self) -> TargetState {
        match self.state {
            State::Waiting { .. } => TargetState::Waiting,
            State::Dialling(_) => TargetState::Dialling,
            State::Connected => TargetState::Connected,
            State::Suspended => TargetState::Suspended,
        }
    }

    /// Why it is not connected.
    pub(crate) fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    fn rest(&mut self) {
        self.state = State::Connected;
        self.error = None;
    }

    fn wait(&mut self, ended: &Ended, rng: &mut impl Rng, now: Instant) {
        self.error = Some(ended.why.clone());
        let wait = self
            .backoff
            .wait_after(ended.lived, rng)
            .max(ended.at_least);
        self.state = if ended.ourselves {
            State::Suspended
        } else {
            State::Waiting { at: now + wait }
        };
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    use super::*;

    #[test]
    fn a_failed_dial_is_tried_again_later_with_its_error_kept() {
        let (mut dial, mut rng, now) = start();
        assert!(dial.is_due(now));
        dial.begin(ConnId(1));
        assert!(!dial.is_due(now));
        dial.failed(ConnId(1), &Ended::because("refused"), &mut rng, now);
        assert_eq!(dial.error(), Some("refused"));
        assert!(!dial.is_due(now));
        assert!(dial.is_due(now + Duration::from_secs(2)));
    }

    #[test]
    fn an_end_can_ask_for_a_longer_wait() {
        let (mut dial, mut rng, now) = start();
        dial.begin(ConnId(1));
        let at_least = Duration::from_secs(40);
        dial.failed(
            ConnId(1),
            &Ended {
                at_least,
                ..Ended::because("")
            },
            &mut rng,
            now,
        );
        assert_eq!(dial.due_at(), Some(now + at_least));
        dial.hurry(now);
        assert!(dial.is_due(now));
    }

    #[test]
    fn an_old_dial_that_fails_late_changes_nothing() {
        let (mut dial, mut rng, now) = start();
        dial.begin(ConnId(2));
        dial.failed(ConnId(1), &Ended::because("late"), &mut rng, now);
        dial.superfluous(ConnId(1));
        assert_eq!(dial.conn(), Some(ConnId(2)));
        dial.connected(ConnId(1));
        assert_eq!(dial.state(), TargetState::Dialling);
    }

    #[test]
    fn a_superfluous_dial_rests_until_the_peer_is_gone() {
        let (mut dial, mut rng, now) = start();
        dial.begin(ConnId(1));
        dial.superfluous(ConnId(1));
        assert_eq!(
            (dial.state(), dial.due_at()),
            (TargetState::Connected, None)
        );
        dial.disconnected(&Ended::because("gone"), &mut rng, now);
        assert_eq!(
            (dial.state(), dial.error()),
            (TargetState::Waiting, Some("gone"))
        );
    }

    fn start() -> (Dial, ChaCha20Rng, Instant) {
        let now = crate::clock::start();
        (Dial::at(now), ChaCha20Rng::seed_from_u64(1), now)
    }
}
