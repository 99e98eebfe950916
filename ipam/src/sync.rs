//! Keeping rings alike: the barrier of a new connection, and pulling after an announcement.
//!
//! A *barrier* stands on every new connection until we and the neighbour know the same, so
//! that no frame passes between containers that might hold one address:
//!
//! ```text
//!  connected -> Asking --(Same, or Ring like ours)-> Merged --(addresses settled)--> Open
//!                 ^                                   |
//!                 +--- we put a claim in the ring ----+
//! ```
//!
//! An announcement with a digest that is not ours makes its peer a *suspect*; we ask one suspect
//! at a time, because the first answer usually makes the others equal to us.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use weft_wire::PeerName;

use crate::digest::Digest;

/// How long an answer to a question about the ring may take before it is asked again.
pub(crate) const ANSWER: Duration = Duration::from_secs(1);
/// How soon at the earliest a neighbour is asked again that did not know all we know.
const HURRY: Duration = Duration::from_millis(100);
/// How long a suspect that did not answer is left alone.
const SUSPECT_PAUSE: Duration = Duration::from_secs(5);
/// The most suspects kept; gossip tells of the others again.
const MAX_SUSPECTS: usize = 4_096;

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Barrier {
    /// We asked for the neighbour's ring under this nonce, and ask again at that time.
    Asking { nonce: u32, again: Instant },
    /// We knew the same; addresses here may be unsettled.
    Merged,
    /// Frames may flow as far as addresses are concerned.
    Open,
}

#[derive(Debug, Clone, Copy)]
struct Suspect {
    digest: Digest,
    due: Instant,
}

/// Whom we ask for their ring, and why.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sync {
    neighbours: BTreeMap<PeerName, Barrier>,
    suspects: BTreeMap<PeerName, Suspect>,
    asked: Option<(PeerName, Instant)>,
    nonces: u32,
}

impl Sync {
    pub(crate) fn neighbours(&self) -> impl Iterator<Item = PeerName> + use<'_> {
        self.neighbours.keys().copied()
    }

    pub(crate) fn is_neighbour(&self, peer: PeerName) -> bool {
        self.neighbours.contains_key(&peer)
    }

    pub(crate) fn connect(&mut self, peer: PeerName, now: Instant) {
        let nonce = self.nonce();
        let again = now;
        self.neighbours
            .insert(peer, Barrier::Asking { nonce, again });
    }

    pub(crate) fn disconnect(&mut self, peer: PeerName) {
        self.neighbours.remove(&peer);
    }

    /// What a neighbour knows besides us may matter now: barriers not yet open ask again.
    pub(crate) fn restart(&mut self, now: Instant) {
        let nonce = self.nonce();
        let again = now;
        for barrier in self.neighbours.values_mut() {
            match barrier {
                Barrier::Asking { .. } | Barrier::Merged => {
                    *barrier = Barrier::Asking { nonce, again };
                }
                Barrier::Open => {}
            }
        }
    }

    /// Notes a digest a peer announced.
    pub(crate) fn suspect(&mut self, peer: PeerName, digest: Digest, ours: Digest, due: Instant) {
        if digest == ours {
            self.suspects.remove(&peer);
        } else if self.suspects.len() < MAX_SUSPECTS || self.suspects.contains_key(&peer) {
            self.suspects.insert(peer, Suspect { digest, due });
        }
    }

    /// A peer answered, and knows no less and no more of the ring than we do.
    pub(crate) fn handle_answer(&mut self, peer: PeerName, nonce: u32) {
        if let Some(barrier) = self.neighbours.get_mut(&peer)
            && matches!(barrier, Barrier::Asking { nonce: asked, .. } if *asked == nonce)
        {
            *barrier = Barrier::Merged;
        }
        self.forget_suspect(peer);
    }

    /// A neighbour's answer was that it knows less than we do, or has another ring: it is asked
    /// again as soon as it can have ours.
    pub(crate) fn handle_lesson(&mut self, peer: PeerName, now: Instant) {
        if let Some(Barrier::Asking { again, .. }) = self.neighbours.get_mut(&peer) {
            *again = (*again).min(now + HURRY);
        }
        self.forget_suspect(peer);
    }

    fn forget_suspect(&mut self, peer: PeerName) {
        self.suspects.remove(&peer);
        if self.asked.is_some_and(|(asked, _)| asked == peer) {
            self.asked = None;
        }
    }

    /// The questions due: to whom, and under which nonce.
    pub(crate) fn questions(
        &mut self,
        ours: Digest,
        live: impl Fn(PeerName) -> bool,
        now: Instant,
    ) -> Vec<(PeerName, u32)> {
        let mut questions = Vec::new();
        for (peer, barrier) in &mut self.neighbours {
            match barrier {
                Barrier::Asking { nonce, again } if *again <= now => {
                    *again = now + ANSWER;
                    questions.push((*peer, *nonce));
                }
                Barrier::Asking { .. } | Barrier::Merged | Barrier::Open => {}
            }
        }
        self.suspects.retain(|_, suspect| suspect.digest != ours);
        if self.asked.is_some_and(|(_, until)| until <= now) {
            self.asked = None;
        }
        if self.asked.is_none() {
            let mut due = self.suspects.iter_mut();
            let next = due.find(|(peer, suspect)| suspect.due <= now && live(**peer));
            if let Some((peer, suspect)) = next {
                suspect.due = now + SUSPECT_PAUSE;
                self.asked = Some((*peer, now + ANSWER));
                questions.push((*peer, 0));
            }
        }
        questions
    }

    /// Takes every neighbour for one that knows the same; only a test wants that.
    pub(crate) fn skip(&mut self) {
        for barrier in self.neighbours.values_mut() {
            if matches!(barrier, Barrier::Asking { .. }) {
                *barrier = Barrier::Merged;
            }
        }
    }

    /// Opens the barriers that only waited for our addresses; whose they are.
    pub(crate) fn open(&mut self) -> Vec<PeerName> {
        let merged = |barrier: &Barrier| *barrier == Barrier::Merged;
        let waiting = self.neighbours.iter_mut().filter(|(_, b)| merged(b));
        waiting
            .map(|(peer, barrier)| {
                *barrier = Barrier::Open;
                *peer
            })
            .collect()
    }

    /// When [`Self::questions`] has some again.
    pub(crate) fn deadline(&self, live: impl Fn(PeerName) -> bool) -> Option<Instant> {
        let barriers = self
            .neighbours
            .values()
            .filter_map(|barrier| match barrier {
                Barrier::Asking { again, .. } => Some(*again),
                Barrier::Merged | Barrier::Open => None,
            });
        let suspects = self.suspects.iter().filter(|(peer, _)| live(**peer));
        let suspect = suspects.map(|(_, suspect)| suspect.due).min();
        // Nobody else is asked before the answer is in or overdue.
        let suspect = suspect.map(|due| self.asked.map_or(due, |(_, until)| due.max(until)));
        barriers.chain(suspect).min()
    }

    /// Never 0, which stands for a question or an answer outside of any barrier.
    fn nonce(&mut self) -> u32 {
        self.nonces = self.nonces.checked_add(1).unwrap_or(1);
        self.nonces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> PeerName {
        PeerName::from_bytes([2, 0, 0, 0, 0, n])
    }

    #[expect(clippy::disallowed_methods, reason = "a test may look at the clock")]
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_barrier_opens_only_by_the_answer_to_its_own_question() {
        let now = start();
        let mut sync = Sync::default();
        sync.connect(peer(1), now);
        let first = sync.questions(Digest::NONE, |_| true, now);
        sync.disconnect(peer(1));
        sync.connect(peer(1), now);
        let second = sync.questions(Digest::NONE, |_| true, now);
        sync.handle_answer(peer(1), first[0].1);
        assert!(sync.open().is_empty());
        sync.handle_answer(peer(1), 0);
        assert!(sync.open().is_empty());
        sync.handle_answer(peer(1), second[0].1);
        assert_eq!(sync.open(), [peer(1)]);
        assert!(sync.open().is_empty());
    }

    #[test]
    fn a_question_is_repeated_until_it_is_answered() {
        let now = start();
        let mut sync = Sync::default();
        sync.connect(peer(1), now);
        assert_eq!(sync.questions(Digest::NONE, |_| true, now).len(), 1);
        assert_eq!(sync.questions(Digest::NONE, |_| true, now).len(), 0);
        let later = sync.deadline(|_| true).unwrap();
        assert_eq!(sync.questions(Digest::NONE, |_| true, later).len(), 1);
    }

    #[test]
    fn suspects_are_asked_one_at_a_time_and_not_once_they_are_like_us() {
        let now = start();
        let ours = Digest(1);
        let mut sync = Sync::default();
        for n in 1..=3 {
            sync.suspect(peer(n), Digest(2), ours, now);
        }
        assert_eq!(sync.questions(ours, |_| true, now), [(peer(1), 0)]);
        assert_eq!(sync.questions(ours, |_| true, now), []);
        sync.handle_answer(peer(1), 0);
        assert_eq!(sync.questions(ours, |p| p != peer(2), now), [(peer(3), 0)]);
        // Peer 3 stays silent; by then peer 2 is like us.
        assert_eq!(sync.questions(Digest(2), |_| true, now + ANSWER), []);
        assert_eq!(sync.deadline(|_| true), None);
    }

    #[test]
    fn a_restart_makes_every_closed_barrier_ask_again() {
        let now = start();
        let mut sync = Sync::default();
        sync.connect(peer(1), now);
        let before = sync.questions(Digest::NONE, |_| true, now);
        sync.connect(peer(2), now);
        for (peer, nonce) in sync.questions(Digest::NONE, |_| true, now) {
            sync.handle_answer(peer, nonce);
        }
        sync.restart(now);
        sync.handle_answer(peer(1), before[0].1);
        assert!(sync.open().is_empty());
        assert_eq!(sync.questions(Digest::NONE, |_| true, now).len(), 2);
    }

    #[test]
    fn a_suspect_that_stays_silent_is_asked_again_later() {
        let now = start();
        let mut sync = Sync::default();
        sync.suspect(peer(1), Digest(2), Digest(1), now);
        assert_eq!(sync.questions(Digest(1), |_| true, now), [(peer(1), 0)]);
        let later = sync.deadline(|_| true).unwrap();
        assert!(later > now && later <= now + SUSPECT_PAUSE);
        assert_eq!(sync.questions(Digest(1), |_| true, later), [(peer(1), 0)]);
    }
}
