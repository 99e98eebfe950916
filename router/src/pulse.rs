//! Do datagrams get through to a peer and back, from where do its own come, and how long does it take?
//!
//! ```text
//!   ask ── answered ──▶ ask again 5 s after
//!    └── not answered ─▶ ask again every 500 ms; not alive after 15 s, dead after 30 s
//! ```
//!
//! Stamps are our own clock in microseconds; the peer gives ours back and is free to lie, about
//! nothing but its own delay. Invariant: the peer's address follows the *newest* authentic heartbeat
//! only, so neither a replayed nor an overtaken one moves it back.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use weft_wire::message::Heartbeat;

/// The heartbeat of one connection over UDP.
#[derive(Debug)]
pub(crate) struct Pulse {
    /// What stamps are counted from.
    epoch: Instant,
    started: Instant,
    /// Where the peer takes datagrams.
    remote: SocketAddr,
    next_question: Instant,
    answered: Option<Instant>,
    rtt: Option<Duration>,
    /// Stamps of the newest heartbeats that came, of each kind.
    newest_question: Option<u64>,
    newest_answer: Option<u64>,
}

/// What a heartbeat calls for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Response {
    /// To be sent back.
    pub(crate) answer: Option<Heartbeat>,
    /// The peer's datagrams come from somewhere else.
    pub(crate) moved: Option<SocketAddr>,
}

impl Pulse {
    /// The first question is due at once.
    pub(crate) fn new(epoch: Instant, remote: SocketAddr, now: Instant) -> Self {
        Self {
            epoch,
            started: now,
            remote,
            next_question: now,
            answered: None,
            rtt: None,
            newest_question: None,
            newest_answer: None,
        }
    }

    /// An authentic heartbeat came.
    pub(crate) fn handle(
        &mut self,
        from: SocketAddr,
        heartbeat: Heartbeat,
        now: Instant,
    ) -> Response {
        let Heartbeat { reply, stamp } = heartbeat;
        let newest = if reply {
            self.newest_answer
        } else {
            self.newest_question
        };
        let newer = newest.is_none_or(|newest| stamp > newest);
        if reply && !(newer && self.is_ours(stamp, now)) {
            return Response::default();
        }
        let mut response = Response::default();
        if newer {
            if reply {
                self.newest_answer = Some(stamp);
                self.take_answer(stamp, now);
            } else {
                self.newest_question = Some(stamp);
            }
            if from != self.remote {
                self.remote = from;
                response.moved = Some(from);
            }
        }
        response.answer = (!reply).then_some(Heartbeat { reply: true, stamp });
        response
    }

    /// The question that is due, if one is.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Option<Heartbeat> {
        (now >= self.next_question).then(|| self.ask(now))
    }

    /// A question, due or not.
    pub(crate) fn ask(&mut self, now: Instant) -> Heartbeat {
        self.next_question = now + ASK_AGAIN;
        let stamp = self.stamp(now);
        Heartbeat {
            reply: false,
            stamp,
        }
    }

    /// When the next question is due. While none is answered that is often enough to see
    /// [`Self::is_alive`] and [`Self::is_dead`] change.
    pub(crate) fn poll_timeout(&self) -> Instant {
        self.next_question
    }

    /// A question was answered not long ago.
    pub(crate) fn is_alive(&self, now: Instant) -> bool {
        self.answered.is_some_and(|at| now < at + ALIVE_FOR)
    }

    /// When the peer counts as dead if nothing more comes.
    pub(crate) fn dead_at(&self) -> Instant {
        self.silent_since() + DEAD_AFTER
    }

    /// No question was answered for too long.
    pub(crate) fn is_dead(&self, now: Instant) -> bool {
        now >= self.dead_at()
    }

    /// Where the peer takes datagrams.
    pub(crate) fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Time to the peer and back, smoothed.
    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    fn take_answer(&mut self, stamp: u64, now: Instant) {
        let sent = self.epoch + Duration::from_micros(stamp);
        let sample = now.saturating_duration_since(sent);
        // One part in eight of what is new, as TCP does it (RFC 6298).
        self.rtt = Some(self.rtt.map_or(sample, |rtt| (rtt * 7 + sample) / 8));
        self.answered = Some(now);
        self.next_question = self.next_question.max(sent + INTERVAL);
    }

    fn is_ours(&self, stamp: u64, now: Instant) -> bool {
        let now = self.stamp(now);
        stamp <= now && now - stamp < u64::try_from(DEAD_AFTER.as_micros()).unwrap_or(u64::MAX)
    }

    fn stamp(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.epoch).as_micros();
        u64::try_from(passed).unwrap_or(u64::MAX)
    }

    fn silent_since(&self) -> Instant {
        self.answered.unwrap_or(self.started)
    }
}

/// Between a question that was answered and the next: NATs forget a mapping after 30 s at the least.
const INTERVAL: Duration = Duration::from_secs(5);
/// Between questions while none is answered.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// After this long without an answer frames should go another way.
const ALIVE_FOR: Duration = Duration::from_secs(15);
/// After this long without an answer the connection is given up.
const DEAD_AFTER: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_come_often_until_one_is_answered_and_then_every_five_seconds() {
        let (mut pulse, start) = start();
        let mut asked = vec![];
        let mut now = start;
        while now < start + Duration::from_secs(13) {
            now = pulse.poll_timeout();
            if let Some(question) = pulse.handle_timeout(now) {
                asked.push((now - start).as_millis());
                if now >= start + Duration::from_secs(1) {
                    pulse.handle(addr(1), answer(question), now + ms(20));
                }
            }
        }
        assert_eq!(asked, [0, 500, 1000, 6000, 11000, 16000]);
        assert_eq!(pulse.rtt(), Some(ms(20)));
    }

    #[test]
    fn without_answers_it_stops_being_alive_and_then_is_dead() {
        let (mut pulse, start) = start();
        assert!(!pulse.is_alive(start));
        let question = pulse.ask(start);
        pulse.handle(addr(1), answer(question), start);
        assert!(pulse.is_alive(start + ms(14_999)));
        assert!(!pulse.is_alive(start + ms(15_000)));
        assert!(!pulse.is_dead(start + ms(29_999)));
        assert!(pulse.is_dead(start + ms(30_000)));
    }

    #[test]
    fn the_address_follows_the_newest_heartbeat_and_not_an_older_one() {
        let (mut pulse, now) = start();
        let question = |stamp| Heartbeat {
            reply: false,
            stamp,
        };
        let response = pulse.handle(addr(2), question(10), now);
        assert_eq!(response.moved, Some(addr(2)));
        assert_eq!(
            response.answer,
            Some(Heartbeat {
                reply: true,
                stamp: 10
            })
        );
        let late = pulse.handle(addr(1), question(9), now);
        assert_eq!((late.moved, pulse.remote()), (None, addr(2)));
        assert_eq!(pulse.handle(addr(2), question(11), now).moved, None);
    }

    #[test]
    fn answers_to_what_was_never_asked_count_for_nothing() {
        let (mut pulse, start) = start();
        let forged = Heartbeat {
            reply: true,
            stamp: 99_000_000,
        };
        assert_eq!(pulse.handle(addr(2), forged, start), Response::default());
        assert!(!pulse.is_alive(start));
        let now = start + Duration::from_secs(60);
        let old = Heartbeat {
            reply: true,
            stamp: 1,
        };
        assert_eq!(pulse.handle(addr(2), old, now), Response::default());
        assert_eq!(pulse.remote(), addr(1));
    }

    fn start() -> (Pulse, Instant) {
        let now = crate::clock::start();
        (Pulse::new(now, addr(1), now), now)
    }

    fn answer(question: Heartbeat) -> Heartbeat {
        Heartbeat {
            reply: true,
            ..question
        }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn addr(n: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, n], 6783))
    }
}
