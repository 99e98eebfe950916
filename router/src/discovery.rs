//! Discovery: dialling peers that gossip tells of, until everybody is connected to everybody.
//!
//! A peer may listen at several addresses, most of them of no use from here; they are tried in turn.
//! Invariant: what others tell is bounded, and an address that led to ourselves is not tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand_core::Rng;
use weft_wire::PeerName;

use crate::ConnId;
use crate::backoff::spread;
use crate::dial::{Dial, Ended};

/// Peers heard of, and where they may be dialled.
#[derive(Debug)]
pub(crate) struct Discovery {
    us: PeerName,
    known: BTreeMap<PeerName, Known>,
    /// Addresses that led to ourselves, such as that of a bridge every host has.
    ours: BTreeSet<SocketAddr>,
}

#[derive(Debug)]
struct Known {
    addresses: Vec<SocketAddr>,
    /// Which of them is dialled next.
    next: usize,
    dial: Dial,
}

/// One peer and where it was or will be dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) peer: PeerName,
    pub(crate) address: SocketAddr,
}

impl Discovery {
    pub(crate) fn new(us: PeerName) -> Self {
        Self {
            us,
            known: BTreeMap::new(),
            ours: BTreeSet::new(),
        }
    }

    /// Gossip tells where a peer may be dialled; `connected` if it is connected by that one.
    pub(crate) fn heard(
        &mut self,
        peer: PeerName,
        addresses: &[SocketAddr],
        connected: Option<ConnId>,
        rng: &mut impl Rng,
        now: Instant,
    ) {
        if peer == self.us || (!self.known.contains_key(&peer) && self.known.len() >= MAX_PEERS) {
            return;
        }
        let usable =
            |a: &&SocketAddr| a.port() != 0 && !a.ip().is_unspecified() && !a.ip().is_multicast();
        let addresses: Vec<_> = addresses
            .iter()
            .filter(usable)
            .take(MAX_ADDRESSES)
            .copied()
            .collect();
        let first = first_dial(self.us, peer);
        let known = self.known.entry(peer).or_insert_with(|| Known {
            addresses: Vec::new(),
            next: 0,
            dial: Dial::at(now + spread(first, rng)),
        });
        known.addresses = addresses;
        if let Some(conn) = connected {
            known.dial.connected(conn);
        }
    }

    /// Has those be dialled that are wanted, and were not before.
    pub(crate) fn wake(
        &mut self,
        is_wanted: impl Fn(PeerName) -> bool,
        rng: &mut impl Rng,
        now: Instant,
    ) {
        for (peer, known) in self.known.iter_mut().filter(|(peer, _)| is_wanted(**peer)) {
            known
                .dial
                .wake(now + spread(first_dial(self.us, *peer), rng));
        }
    }

    /// Whether nothing speaks against this peer being connected soon.
    pub(crate) fn is_hopeful(&self, peer: PeerName) -> bool {
        let known = self.known.get(&peer);
        known.is_none_or(|known| known.dial.error().is_none())
    }

    /// A peer is gone from gossip; returns the dial under way.
    pub(crate) fn gone(&mut self, peer: PeerName) -> Option<ConnId> {
        self.known.remove(&peer)?.dial.conn()
    }

    /// Those whose time has come, each with the address whose turn it is.
    pub(crate) fn due(&self, now: Instant) -> Vec<Candidate> {
        let due = self
            .known
            .iter()
            .filter(|(_, known)| known.dial.is_due(now));
        due.filter_map(|(peer, known)| self.candidate(*peer, known))
            .collect()
    }

    /// What is being done about one peer.
    pub(crate) fn dial(&mut self, peer: PeerName) -> Option<&mut Dial> {
        self.known.get_mut(&peer).map(|known| &mut known.dial)
    }

    /// A dial, or the connection it made, has ended: the peer's next address has its turn.
    pub(crate) fn failed(
        &mut self,
        candidate: Candidate,
        conn: ConnId,
        ended: &Ended,
        rng: &mut impl Rng,
        now: Instant,
    ) {
        if ended.ourselves && self.ours.len() < MAX_OURS {
            self.ours.insert(candidate.address);
        }
        if let Some(known) = self.known.get_mut(&candidate.peer) {
            known.next = known.next.wrapping_add(1);
            // One address being ours does not mean that the peer is.
            let ended = Ended {
                ourselves: false,
                ..ended.clone()
            };
            known.dial.failed(conn, &ended, rng, now);
        }
    }

    pub(crate) fn peer_connected(&mut self, peer: PeerName, conn: ConnId) {
        if let Some(known) = self.known.get_mut(&peer) {
            known.dial.connected(conn);
        }
    }

    pub(crate) fn peer_disconnected(
        &mut self,
        peer: PeerName,
        ended: &Ended,
        rng: &mut impl Rng,
        now: Instant,
    ) {
        if let Some(known) = self.known.get_mut(&peer) {
            known.dial.disconnected(ended, rng, now);
        }
    }

    /// When the next one is due; peers without a usable address never are.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        // Most peers are connected and not due at all; that is asked first.
        let waiting = self.known.iter();
        let waiting = waiting.filter_map(|(peer, known)| Some((known.dial.due_at()?, peer, known)));
        let usable = waiting.filter(|(_, peer, known)| self.candidate(**peer, known).is_some());
        usable.map(|(at, _, _)| at).min()
    }

    /// Peers that were dialled and are not connected, with the address that is next.
    pub(crate) fn failing(&self) -> impl Iterator<Item = (Candidate, &Dial)> {
        let failing = self
            .known
            .iter()
            .filter(|(_, known)| known.dial.error().is_some());
        failing.filter_map(|(peer, known)| Some((self.candidate(*peer, known)?, &known.dial)))
    }

    fn candidate(&self, peer: PeerName, known: &Known) -> Option<Candidate> {
        let usable = || known.addresses.iter().filter(|a| !self.ours.contains(a));
        let count = usable().count();
        let address = usable().nth(known.next.checked_rem(count)?).copied()?;
        Some(Candidate { peer, address })
    }
}

/// When somebody joins, it and all others hear of each other at once. The smaller name dials first, the
/// larger one only if that does not get through.
fn first_dial(us: PeerName, peer: PeerName) -> Duration {
    if us < peer {
        FIRST_DIAL
    } else {
        FIRST_DIAL * 6
    }
}

/// Peers remembered: as many as the topology keeps, and some that are only talked of.
const MAX_PEERS: usize = 4096;
/// Addresses remembered of one peer.
const MAX_ADDRESSES: usize = 16;
const MAX_OURS: usize = 256;
/// About how long to wait before a peer is dialled for the first time.
const FIRST_DIAL: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    use super::*;

    #[test]
    fn a_peers_addresses_are_tried_in_turn() {
        let (mut discovery, mut rng, mut now) = start();
        discovery.heard(peer(2), &[addr(1), addr(2)], None, &mut rng, now);
        assert!(
            discovery.due(now).is_empty(),
            "not at once, others dial too"
        );
        let mut tried = vec![];
        for n in 0..4 {
            now = discovery.poll_timeout().unwrap();
            let due = discovery.due(now);
            tried.extend(due.iter().map(|c| c.address));
            discovery.dial(peer(2)).unwrap().begin(ConnId(n));
            assert_eq!(discovery.poll_timeout(), None);
            discovery.failed(
                due[0],
                ConnId(n),
                &Ended::because("no answer"),
                &mut rng,
                now,
            );
        }
        assert_eq!(tried, [addr(1), addr(2), addr(1), addr(2)]);
        assert_eq!(discovery.failing().count(), 1);
    }

    #[test]
    fn the_smaller_name_dials_first() {
        let (mut discovery, mut rng, now) = start();
        discovery.heard(peer(9), &[addr(1)], None, &mut rng, now);
        let smaller = discovery.poll_timeout().unwrap();
        discovery.gone(peer(9));
        discovery.heard(peer(0), &[addr(1)], None, &mut rng, now);
        assert!(discovery.poll_timeout().unwrap() > smaller);
    }

    #[test]
    fn an_address_that_leads_to_ourselves_is_left_out_and_others_are_not() {
        let (mut discovery, mut rng, now) = start();
        discovery.heard(peer(2), &[addr(1), addr(2)], None, &mut rng, now);
        discovery.dial(peer(2)).unwrap().begin(ConnId(1));
        let ended = Ended {
            ourselves: true,
            ..Ended::because("ourselves")
        };
        let candidate = Candidate {
            peer: peer(2),
            address: addr(1),
        };
        discovery.failed(candidate, ConnId(1), &ended, &mut rng, now);
        let due = discovery.due(now + Duration::from_secs(60));
        assert_eq!(
            due,
            [Candidate {
                peer: peer(2),
                address: addr(2)
            }]
        );
        discovery.heard(peer(2), &[addr(1)], None, &mut rng, now);
        assert_eq!(discovery.poll_timeout(), None);
    }

    #[test]
    fn nobody_is_dialled_who_is_connected_or_gone_or_ourselves() {
        let (mut discovery, mut rng, now) = start();
        discovery.heard(peer(1), &[addr(1)], None, &mut rng, now);
        discovery.heard(peer(2), &[addr(1)], Some(ConnId(1)), &mut rng, now);
        discovery.heard(peer(3), &[], None, &mut rng, now);
        assert_eq!(discovery.poll_timeout(), None);
        discovery.peer_disconnected(peer(2), &Ended::because("gone"), &mut rng, now);
        assert!(discovery.poll_timeout().is_some());
        assert_eq!(discovery.gone(peer(2)), None);
        assert_eq!(discovery.poll_timeout(), None);
    }

    #[test]
    fn what_others_tell_is_bounded() {
        let (mut discovery, mut rng, now) = start();
        let many: Vec<_> = (0..200).map(addr).collect();
        for n in 0..u16::try_from(MAX_PEERS + 10).unwrap() {
            let [a, b] = n.to_be_bytes();
            discovery.heard(
                PeerName::from_bytes([2, 0, 0, 9, a, b]),
                &many,
                None,
                &mut rng,
                now,
            );
        }
        assert_eq!(discovery.known.len(), MAX_PEERS);
        assert!(
            discovery
                .known
                .values()
                .all(|known| known.addresses.len() == MAX_ADDRESSES)
        );
    }

    fn start() -> (Discovery, ChaCha20Rng, Instant) {
        (
            Discovery::new(peer(1)),
            ChaCha20Rng::seed_from_u64(1),
            crate::clock::start(),
        )
    }

    fn peer(n: u8) -> PeerName {
        PeerName::from_bytes([2, 0, 0, 0, 0, n])
    }

    fn addr(n: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, n], 6783))
    }
}
