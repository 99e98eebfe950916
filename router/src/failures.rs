//! Inbound connections that failed a short while ago: the accepting side has no target to show the
//! reason at, and its operator wants to know too.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use weft_wire::{Nickname, PeerName};

/// The latest failures, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    kept: VecDeque<Failure>,
}

/// One inbound connection that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) remote: SocketAddr,
    pub(crate) peer: Option<(PeerName, Nickname)>,
    /// Why, in words.
    pub(crate) info: String,
    pub(crate) at: Instant,
}

impl Failures {
    /// Keeps a failure in place of the one before from the same host: it tries again and again.
    pub(crate) fn add(&mut self, failure: Failure) {
        let same =
            |kept: &Failure| kept.remote.ip() == failure.remote.ip() && kept.peer == failure.peer;
        self.kept.retain(|kept| !same(kept));
        if self.kept.len() >= MAX_KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(failure);
    }

    /// A peer is connected: what failed from it, or from its host before it was known, is past.
    pub(crate) fn connected(&mut self, peer: PeerName, remote: SocketAddr) {
        self.kept.retain(|kept| match &kept.peer {
            Some((name, _)) => *name != peer,
            None => kept.remote.ip() != remote.ip(),
        });
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.kept.retain(|kept| now < kept.at + KEPT_FOR);
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.kept.front().map(|oldest| oldest.at + KEPT_FOR)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Failure> {
        self.kept.iter()
    }
}

const MAX_KEPT: usize = 64;
const KEPT_FOR: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_kept_one_per_host_a_bounded_number_for_a_bounded_time() {
        let (mut failures, now) = (Failures::default(), crate::clock::start());
        for round in 0..3 {
            for n in 0..100 {
                failures.add(failure(n, now + Duration::from_secs(round)));
            }
        }
        assert_eq!(failures.iter().count(), MAX_KEPT);
        let due = failures.poll_timeout().unwrap();
        assert_eq!(due, now + Duration::from_secs(2) + KEPT_FOR);
        failures.handle_timeout(due);
        assert_eq!(failures.poll_timeout(), None);
    }

    #[test]
    fn a_peer_that_is_connected_has_no_failures() {
        let (mut failures, now) = (Failures::default(), crate::clock::start());
        let peer = PeerName::from_bytes([1; 6]);
        failures.add(failure(1, now));
        failures.add(Failure {
            peer: Some((peer, Nickname::new("one"))),
            ..failure(2, now)
        });
        failures.add(failure(3, now));
        failures.connected(peer, failure(1, now).remote);
        assert_eq!(
            failures.iter().map(|f| f.remote).collect::<Vec<_>>(),
            [failure(3, now).remote]
        );
    }

    fn failure(n: u8, at: Instant) -> Failure {
        Failure {
            remote: SocketAddr::from(([192, 0, 2, n], 40_000)),
            peer: None,
            info: "wrong password".to_owned(),
            at,
        }
    }
}
