//! Do datagrams get through to a peer and back, from where do its own come, and how long does it take?
//!
//! ```text
//!              answered                   13 questions in a row not answered
//!   Unproven ───────────▶ Alive ────────────────────────────────────────────────▶ Lost
//!                           ▲                  3 questions answered                │
//!                           └──────────────────────────────────────────────────────┘
//!
//!   Alive: a question every 5 s. Not answered for 1 s, or nothing came back for what was sent: every 200 ms
//!   Unproven, Lost: a question every 500 ms; dead when none was answered for 30 s
//! ```
//!
//! It is questions that count, not time: a host so busy that it does not ask for seconds does not take its
//! connections for lost because of that. And it takes many of them, so that a path which loses one datagram
//! in five stays in use (once in some 800 hours all 13 would be lost by chance), while one that is cut is
//! left within four seconds of the first.
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
    state: State,
    /// Questions since the last one that was answered.
    unanswered: u32,
    asked: Option<Instant>,
    next_question: Instant,
    answered: Option<Instant>,
    rtt: Option<Duration>,
    /// Stamps of the newest heartbeats that came, of each kind.
    newest_question: Option<u64>,
    newest_answer: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Unproven,
    Alive,
    /// So many questions were answered since it was.
    Lost(u32),
}

impl Pulse {
    /// The first question is due at once.
    pub(crate) fn new(epoch: Instant, remote: SocketAddr, now: Instant) -> Self {
        Self {
            epoch,
            started: now,
            remote,
            state: State::Unproven,
            unanswered: 0,
            asked: None,
            next_question: now,
            answered: None,
            rtt: None,
            newest_question: None,
            newest_answer: None,
        }
    }

    /// An authentic heartbeat came, and was answered if it was a question. Returns where the peer's
    /// datagrams come from, if that is somewhere else than before.
    pub(crate) fn handle(
        &mut self,
        from: SocketAddr,
        heartbeat: Heartbeat,
        now: Instant,
    ) -> Option<SocketAddr> {
        let Heartbeat { reply, stamp } = heartbeat;
        let newest = if reply {
            self.newest_answer
        } else {
            self.newest_question
        };
        let newer = newest.is_none_or(|newest| stamp > newest);
        if !newer || (reply && !self.is_ours(stamp, now)) {
            return None;
        }
        if reply {
            self.newest_answer = Some(stamp);
            self.take_answer(stamp, now);
        } else {
            self.newest_question = Some(stamp);
        }
        let moved = from != self.remote;
        self.remote = from;
        moved.then_some(from)
    }

    /// Something was sent to the peer in the last moments, and nothing of it came.
    pub(crate) fn handle_silence(&mut self, now: Instant) {
        let asked = self.asked.is_some_and(|at| now < at + PATIENCE);
        if self.state == State::Alive && self.unanswered == 0 && !asked {
            // What was sent was a question of its kind.
            self.unanswered = 1;
            self.next_question = now;
        }
    }

    /// The question that is due, if one is.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Option<Heartbeat> {
        if now < self.next_question {
            return None;
        }
        if self.state == State::Alive && self.unanswered >= MISSED {
            self.state = State::Lost(0);
        }
        Some(self.ask(now))
    }

    /// A question, due or not.
    pub(crate) fn ask(&mut self, now: Instant) -> Heartbeat {
        let rtt = self.rtt.unwrap_or_default();
        let pause = match self.state {
            State::Unproven | State::Lost(_) => ASK_AGAIN,
            State::Alive if self.unanswered == 0 => PATIENCE.max(rtt * 2),
            // However long the way is, answers to many of them come before the last one is asked.
            State::Alive => ASK_URGENTLY.max(rtt / 4),
        };
        self.asked = Some(now);
        self.unanswered += 1;
        self.next_question = now + pause;
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

    /// Questions are answered: frames may go this way.
    pub(crate) fn is_alive(&self) -> bool {
        self.state == State::Alive
    }

    /// It is alive, and no question waits for its answer suspiciously long.
    pub(crate) fn is_clear(&self) -> bool {
        self.state == State::Alive && self.unanswered <= 2
    }

    /// When the peer counts as dead if nothing more comes.
    pub(crate) fn dead_at(&self) -> Instant {
        self.silent_since() + DEAD_AFTER
    }

    /// No question was answered for too long.
    pub(crate) fn is_dead(&self, now: Instant) -> bool {
        now >= self.dead_at()
    }

    /// Questions since the last one that was answered.
    pub(crate) fn unanswered(&self) -> u32 {
        self.unanswered
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
        self.unanswered = 0;
        self.state = match self.state {
            State::Lost(answers) if answers + 1 < ANSWERS => State::Lost(answers + 1),
            State::Unproven | State::Alive | State::Lost(_) => State::Alive,
        };
        if self.state == State::Alive {
            self.next_question = sent + INTERVAL;
        }
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
/// Between questions while there is no way to lose.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// How long an answer may take before it is asked for urgently.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between questions when an answer is missing.
const ASK_URGENTLY: Duration = Duration::from_millis(200);
/// After so many questions without an answer frames should go another way.
const MISSED: u32 = 13;
/// After so many answers they may come back.
const ANSWERS: u32 = 3;
/// After this long without an answer the connection is given up.
const DEAD_AFTER: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use rand_chacha::ChaCha20Rng;
    use rand_core::{Rng, SeedableRng};

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
        assert!(!pulse.is_alive());
        let question = pulse.ask(start);
        pulse.handle(addr(1), answer(question), start);
        let mut asked = vec![];
        while pulse.is_alive() {
            let now = pulse.poll_timeout();
            assert!(pulse.handle_timeout(now).is_some());
            asked.push((now - start).as_millis());
        }
        // The last one is the first of those that are asked in vain.
        let urgent = (0..12).map(|n| 6000 + n * 200);
        let expected: Vec<_> = [5000].into_iter().chain(urgent).chain([8400]).collect();
        assert_eq!(asked, expected);
        assert_eq!(pulse.poll_timeout(), start + ms(8900));
        assert!(!pulse.is_dead(start + ms(29_999)));
        assert!(pulse.is_dead(start + ms(30_000)));
    }

    #[test]
    fn what_is_sent_in_vain_is_a_question_at_once() {
        let (mut pulse, start) = start();
        let question = pulse.ask(start);
        pulse.handle(addr(1), answer(question), start);
        // A flow that is answered by nothing but our own heartbeats asks for one a second.
        let mut asked = 0;
        for at in (0..10_000).step_by(500) {
            let now = start + ms(at);
            pulse.handle_silence(now);
            if let Some(question) = pulse.handle_timeout(now) {
                pulse.handle(addr(1), answer(question), now + ms(1));
                asked += 1;
            }
        }
        assert_eq!(asked, 9);
        let cut = start + ms(10_100);
        pulse.handle_silence(cut);
        while pulse.is_alive() {
            let now = pulse.poll_timeout();
            pulse.handle_timeout(now);
        }
        assert_eq!(pulse.poll_timeout() - cut, ms(2400 + 500));
    }

    #[test]
    fn one_that_was_lost_is_alive_again_after_three_answers() {
        let (mut pulse, start) = start();
        let question = pulse.ask(start);
        pulse.handle(addr(1), answer(question), start);
        while pulse.is_alive() {
            pulse.handle_timeout(pulse.poll_timeout());
        }
        for expected in [false, false, true] {
            let now = pulse.poll_timeout();
            let question = pulse.handle_timeout(now).unwrap();
            pulse.handle(addr(1), answer(question), now);
            assert_eq!(pulse.is_alive(), expected);
        }
    }

    #[test]
    fn chance_does_not_take_a_connection_down() {
        for (percent, hours) in [(5, 40), (20, 40)] {
            let mut rng = ChaCha20Rng::seed_from_u64(percent);
            let mut passes = || u64::from(rng.next_u32()) % 100 >= percent;
            let (mut pulse, start) = start();
            let question = pulse.ask(start);
            pulse.handle(addr(1), answer(question), start + ms(50));
            let end = start + Duration::from_secs(hours * 3600);
            let mut on_the_way: VecDeque<(Instant, Heartbeat)> = VecDeque::new();
            while pulse.poll_timeout() < end {
                let now = pulse.poll_timeout();
                while let Some((at, answer)) = on_the_way.pop_front_if(|(at, _)| *at <= now) {
                    pulse.handle(addr(1), answer, at);
                }
                if let Some(question) = pulse.handle_timeout(now)
                    && passes()
                    && passes()
                {
                    on_the_way.push_back((now + ms(50), answer(question)));
                }
                assert!(pulse.is_alive(), "{percent} %, {:?}", now - start);
            }
        }
    }

    #[test]
    fn a_host_that_asks_seldom_keeps_its_connections() {
        let (mut pulse, start) = start();
        let question = pulse.ask(start);
        pulse.handle(addr(1), answer(question), start);
        // Six seconds without a turn, and the answer is in the queue behind the clock.
        let late = start + ms(11_000);
        let question = pulse.handle_timeout(late).unwrap();
        assert!(pulse.is_alive());
        let later = late + ms(6_000);
        assert!(pulse.handle_timeout(later).is_some());
        assert!(pulse.is_alive());
        pulse.handle(addr(1), answer(question), later);
        assert!(pulse.is_clear());
    }

    #[test]
    fn the_address_follows_the_newest_heartbeat_and_not_an_older_one() {
        let (mut pulse, now) = start();
        let question = |stamp| Heartbeat {
            reply: false,
            stamp,
        };
        assert_eq!(pulse.handle(addr(2), question(10), now), Some(addr(2)));
        let late = pulse.handle(addr(1), question(9), now);
        assert_eq!((late, pulse.remote()), (None, addr(2)));
        assert_eq!(pulse.handle(addr(2), question(11), now), None);
    }

    #[test]
    fn answers_to_what_was_never_asked_count_for_nothing() {
        let (mut pulse, start) = start();
        let forged = Heartbeat {
            reply: true,
            stamp: 99_000_000,
        };
        assert_eq!(pulse.handle(addr(2), forged, start), None);
        assert!(!pulse.is_alive());
        let now = start + Duration::from_secs(60);
        let old = Heartbeat {
            reply: true,
            stamp: 1,
        };
        assert_eq!(pulse.handle(addr(2), old, now), None);
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
