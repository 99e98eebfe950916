//! Relayed control connections by name, and how much a neighbour may have us hand on.
//!
//! Invariants: no two connections have one name, and what a neighbour makes us do in a second is bounded,
//! whoever it says it speaks for.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use weft_wire::PeerName;

use crate::ConnId;

/// The name of a relayed connection, as we see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Relay {
    /// The peer at the other end.
    pub(crate) peer: PeerName,
    /// The number its dialler gave it.
    pub(crate) stream: u64,
    /// Whether that was us.
    pub(crate) we_dialled: bool,
}

/// Our ends of relayed connections.
#[derive(Debug, Default)]
pub(crate) struct Relays {
    by_conn: BTreeMap<ConnId, (Relay, bool)>,
    by_name: BTreeMap<Relay, ConnId>,
}

impl Relays {
    pub(crate) fn add(&mut self, conn: ConnId, relay: Relay) {
        self.by_conn.insert(conn, (relay, false));
        self.by_name.insert(relay, conn);
    }

    pub(crate) fn conn(&self, relay: Relay) -> Option<ConnId> {
        self.by_name.get(&relay).copied()
    }

    /// The peer at the other end, if the connection is relayed.
    pub(crate) fn peer(&self, conn: ConnId) -> Option<PeerName> {
        Some(self.by_conn.get(&conn)?.0.peer)
    }

    pub(crate) fn contains(&self, conn: ConnId) -> bool {
        self.by_conn.contains_key(&conn)
    }

    /// The connection's name for a piece that is to be sent, and whether that is the first one.
    pub(crate) fn next_piece(&mut self, conn: ConnId) -> Option<(Relay, bool)> {
        let (relay, said) = self.by_conn.get_mut(&conn)?;
        let first = !std::mem::replace(said, true);
        Some((*relay, first && relay.we_dialled))
    }

    pub(crate) fn remove(&mut self, conn: ConnId) -> Option<Relay> {
        let (relay, _) = self.by_conn.remove(&conn)?;
        self.by_name.remove(&relay);
        Some(relay)
    }
}

/// What one neighbour may still have us hand on, in bytes; it fills up again with time.
#[derive(Debug)]
pub(crate) struct Allowance {
    left: usize,
    filled: Instant,
}

impl Allowance {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            filled: now,
        }
    }

    /// Takes a piece with so many bytes in it; `false` if it must be dropped.
    pub(crate) fn take(&mut self, bytes: usize, now: Instant) -> bool {
        let steps = now.saturating_duration_since(self.filled).as_millis() / STEP.as_millis();
        let steps = u32::try_from(steps).unwrap_or(u32::MAX);
        let gained = usize::try_from(steps).unwrap_or(usize::MAX);
        self.left = self
            .left
            .saturating_add(gained.saturating_mul(PER_STEP))
            .min(BURST);
        self.filled += STEP * steps;
        match self.left.checked_sub(bytes + EACH) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

/// A handshake is about 1 KiB each way, and a connection that is up 100 bytes in five seconds: this is
/// some hundred handshakes at once, then a dozen a second.
const BURST: usize = 256 << 10;
const PER_STEP: usize = 3 << 10;
const STEP: Duration = Duration::from_millis(100);
/// What a piece costs beside its bytes: short ones are work, too.
const EACH: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_neighbour_may_send_a_burst_and_then_a_steady_trickle() {
        let start = crate::clock::start();
        let mut allowance = Allowance::new(start);
        let mut taken = |now| (0..10_000).filter(|_| allowance.take(896, now)).count();
        assert_eq!(taken(start), 256);
        assert_eq!(taken(start + Duration::from_secs(1)), 30);
        assert_eq!(taken(start + Duration::from_millis(1099)), 0);
        assert_eq!(taken(start + Duration::from_secs(3600)), 256);
    }

    #[test]
    fn a_connection_is_known_by_its_whole_name() {
        let mut relays = Relays::default();
        let relay = Relay {
            peer: PeerName::from_bytes([2, 0, 0, 0, 0, 1]),
            stream: 7,
            we_dialled: true,
        };
        relays.add(ConnId(1), relay);
        let theirs = Relay {
            we_dialled: false,
            ..relay
        };
        assert_eq!(relays.conn(theirs), None);
        relays.add(ConnId(2), theirs);
        assert_eq!(relays.next_piece(ConnId(1)), Some((relay, true)));
        assert_eq!(relays.next_piece(ConnId(1)), Some((relay, false)));
        assert_eq!(relays.next_piece(ConnId(2)), Some((theirs, false)));
        assert_eq!(relays.remove(ConnId(1)), Some(relay));
        assert_eq!(relays.conn(relay), None);
        assert_eq!(relays.conn(theirs), Some(ConnId(2)));
    }
}
