//! Discovery: dialling peers that gossip tells of, until everybody is connected to everybody.
//!
//! A peer may listen at several addresses, most of them of no use from here; they are tried in turn.
//! Invariant: what others tell is bounded, and an address that led to ourselves is not tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand_core::Rng;
use weft_wire::PeerName;
use weft_wire::control::RefusalReason;

use crate::backoff::spread;
use crate::dial::{Dial, Ended};
use crate::{ConnId, PeerInfo};

/// Peers heard of, and where they may be dialled.
#[derive(Debug)]
pub(crate) struct Discovery {
    us: PeerName,
    known: BTreeMap<PeerName, Known>,
    /// Addresses that led to ourselves, such as that of a bridge every host has.
    ours: BTreeSet<SocketAddr>,
    /// How often a peer was heard of that there was no room for.
    left_out: u64,
}

#[derive(Debug)]
struct Known {
    addresses: Vec<SocketAddr>,
    /// Where others see its datagrams come from.
    datagrams: Vec<SocketAddr>,
    /// Which of the addresses is dialled next.
    next: usize,
    /// None of them has answered: the next try goes over peers in between.
    relayed: bool,
    /// It is connected over others, and dialled by TCP all the same.
    upgrades: bool,
    /// Why the last try over others came to nothing, if somebody said so.
    in_vain: Option<String>,
    dial: Dial,
}

/// One peer and where it was or will be dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) peer: PeerName,
    pub(crate) address: SocketAddr,
    /// Over peers in between; the address is where its datagrams may come from.
    pub(crate) relayed: bool,
}

impl Discovery {
    pub(crate) fn new(us: PeerName) -> Self {
        Self {
            us,
            known: BTreeMap::new(),
            ours: BTreeSet::new(),
            left_out: 0,
        }
    }

    /// Gossip tells where a peer may be dialled; `connected` if it is connected by that one.
    pub(crate) fn heard(
        &mut self,
        peer: PeerName,
        info: &PeerInfo,
        connected: Option<ConnId>,
        rng: &mut impl Rng,
        now: Instant,
    ) {
        if peer == self.us {
            return;
        }
        if self.known.len() >= MAX_PEERS && !self.known.contains_key(&peer) {
            self.left_out += 1;
            return;
        }
        let usable =
            |a: &&SocketAddr| a.port() != 0 && !a.ip().is_unspecified() && !a.ip().is_multicast();
        let some = |all: &[SocketAddr], most| -> Vec<_> {
            all.iter().filter(usable).take(most).copied().collect()
        };
        let addresses = some(&info.addresses, MAX_ADDRESSES);
        let datagrams = some(&info.datagrams, MAX_DATAGRAMS);
        let first = first_dial(self.us, peer);
        let known = self.known.entry(peer).or_insert_with(|| Known {
            addresses: Vec::new(),
            datagrams: Vec::new(),
            next: 0,
            relayed: false,
            upgrades: false,
            in_vain: None,
            dial: Dial::at(now + spread(first, rng)),
        });
        known.addresses = addresses;
        known.datagrams = datagrams;
        if let Some(conn) = connected.filter(|_| !known.upgrades) {
            known.dial.connected(conn);
        }
    }

    /// How often a peer was not taken because of [`MAX_PEERS`].
    pub(crate) fn left_out(&self) -> u64 {
        self.left_out
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

    /// Where a peer's datagrams may come from and may be sent to, the likeliest first.
    pub(crate) fn seen_at(&self, peer: PeerName) -> Vec<SocketAddr> {
        let known = self.known.get(&peer).into_iter();
        let mut seen = Vec::new();
        for address in known.flat_map(|known| known.datagrams.iter().chain(&known.addresses)) {
            if seen.len() < MAX_SEEN && !seen.contains(address) && !self.ours.contains(address) {
                seen.push(*address);
            }
        }
        seen
    }

    /// Those whose time has come, each with the address whose turn it is, or over peers in between if its
    /// address did not answer and there is such a way.
    pub(crate) fn due(&self, has_way: impl Fn(PeerName) -> bool, now: Instant) -> Vec<Candidate> {
        let due = self
            .known
            .iter()
            .filter(|(_, known)| known.dial.is_due(now));
        due.filter_map(|(peer, known)| {
            let relayed = known.relayed && has_way(*peer);
            self.candidate(*peer, known, relayed)
        })
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
            if !candidate.relayed {
                known.next = known.next.wrapping_add(1);
            } else if ended.reason.is_some() {
                known.in_vain = Some(ended.why.clone());
            }
            let usable = known.addresses.iter().filter(|a| !self.ours.contains(a));
            let all_tried = known.next.checked_rem(usable.count()) == Some(0);
            // Words come from a peer that can be reached, and will say the same over others.
            known.relayed = !candidate.relayed && all_tried && ended.reason.is_none();
            let why = match &known.in_vain {
                Some(in_vain) if !candidate.relayed => format!("{}; {in_vain}", ended.why),
                Some(_) | None => ended.why.clone(),
            };
            // One address being ours does not mean that the peer is.
            let ended = Ended {
                ourselves: false,
                why,
                ..ended.clone()
            };
            known.dial.failed(conn, &ended, rng, now);
        }
    }

    pub(crate) fn peer_connected(&mut self, peer: PeerName, conn: ConnId) {
        if let Some(known) = self.known.get_mut(&peer) {
            known.relayed = false;
            known.upgrades = false;
            known.in_vain = None;
            known.dial.connected(conn);
        }
    }

    /// A peer is connected over others, and datagrams come through: it is dialled by TCP all the same, since
    /// such a connection hangs on others; soon if that was not tried yet, else without hurry.
    pub(crate) fn relayed(&mut self, peer: PeerName, rng: &mut impl Rng, now: Instant) {
        if let Some(known) = self.known.get_mut(&peer) {
            known.upgrades = true;
            if known.dial.conn().is_none() {
                let about = if known.next == 0 { FIRST_DIAL } else { UPGRADE };
                known.dial.put_off(now + spread(about, rng), None);
            }
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
            if std::mem::take(&mut known.upgrades) {
                // What was found once is looked for first.
                known.relayed = true;
                if known.dial.conn().is_none() {
                    known.dial.put_off(now + spread(FIRST_DIAL, rng), None);
                }
            }
            let in_vain = ended.reason == Some(RefusalReason::NoHeartbeat);
            known.in_vain = in_vain.then(|| ended.why.clone());
            known.dial.disconnected(ended, rng, now);
        }
    }

    /// When the next one is due; peers without a usable address never are.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        // Most peers are connected and not due at all, and most others no sooner than the first of them:
        // whether they can be dialled is asked last.
        let mut first: Option<Instant> = None;
        for (peer, known) in &self.known {
            let due = known.dial.due_at();
            let due = due.filter(|at| first.is_none_or(|first| *at < first));
            if due.is_some() && self.candidate(*peer, known, false).is_some() {
                first = due;
            }
        }
        first
    }

    /// Peers that were dialled and are not connected, with the address that is next.
    pub(crate) fn failing(&self) -> impl Iterator<Item = (Candidate, &Dial)> {
        let failing = self
            .known
            .iter()
            .filter(|(_, known)| known.dial.error().is_some());
        failing.filter_map(|(peer, known)| {
            Some((self.candidate(*peer, known, known.relayed)?, &known.dial))
        })
    }

    fn candidate(&self, peer: PeerName, known: &Known, relayed: bool) -> Option<Candidate> {
        if relayed {
            let address = *self.seen_at(peer).first()?;
            return Some(Candidate {
                peer,
                address,
                relayed,
            });
        }
        let usable = || known.addresses.iter().filter(|a| !self.ours.contains(a));
        let count = usable().count();
        let address = usable().nth(known.next.checked_rem(count)?).copied()?;
        Some(Candidate {
            peer,
            address,
            relayed,
        })
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
pub const MAX_PEERS: usize = 4096;
/// Addresses remembered of one peer.
const MAX_ADDRESSES: usize = 16;
/// Of these, where its datagrams come from, and addresses that questions are sent to at once.
const MAX_DATAGRAMS: usize = 4;
const MAX_SEEN: usize = 6;
const MAX_OURS: usize = 256;
/// About how long to wait before a peer is dialled for the first time.
const FIRST_DIAL: Duration = Duration::from_millis(500);
/// About how long after a way was found over others TCP is tried again.
const UPGRADE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    use super::*;

    #[test]
    fn a_peers_addresses_are_tried_in_turn() {
        let (mut discovery, mut rng, mut now) = start();
        discovery.heard(peer(2), &info(&[addr(1), addr(2)]), None, &mut rng, now);
        assert!(
            discovery.due(|_| false, now).is_empty(),
            "not at once, others dial too"
        );
        let mut tried = vec![];
        for n in 0..4 {
            now = discovery.poll_timeout().unwrap();
            let due = discovery.due(|_| false, now);
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
    fn when_no_address_has_answered_the_next_try_goes_over_others_if_there_is_a_way() {
        let (mut discovery, mut rng, now) = start();
        discovery.heard(peer(2), &info(&[addr(1), addr(2)]), None, &mut rng, now);
        let mut tried = vec![];
        for n in 0..6 {
            let due = discovery.due(|_| true, discovery.poll_timeout().unwrap());
            tried.push((due[0].address, due[0].relayed));
            discovery.dial(peer(2)).unwrap().begin(ConnId(n));
            let ended = Ended::because("no answer");
            discovery.failed(due[0], ConnId(n), &ended, &mut rng, now);
        }
        let round = [(addr(1), false), (addr(2), false), (addr(1), true)];
        assert_eq!(tried, [round, round].concat());

        // Without a way over others it is the first address's turn.
        for n in 6..8 {
            let due = discovery.due(|_| false, discovery.poll_timeout().unwrap());
            discovery.dial(peer(2)).unwrap().begin(ConnId(n));
            let ended = Ended::because("no answer");
            discovery.failed(due[0], ConnId(n), &ended, &mut rng, now);
        }
        let due = discovery.due(|_| false, discovery.poll_timeout().unwrap());
        assert_eq!((due[0].address, due[0].relayed), (addr(1), false));
    }

    #[test]
    fn one_that_is_relayed_is_dialled_soon_if_it_never_was() {
        let (mut discovery, mut rng, now) = start();
        discovery.heard(peer(2), &info(&[addr(1)]), None, &mut rng, now);
        for (n, about) in [(1, FIRST_DIAL), (3, UPGRADE)] {
            // The peer has found us over others.
            discovery.peer_connected(peer(2), ConnId(n));
            assert_eq!(discovery.poll_timeout(), None);
            discovery.relayed(peer(2), &mut rng, now);
            let at = discovery.poll_timeout().unwrap();
            assert!(now < at && at <= now + 2 * about, "{:?}", at - now);
            let due = discovery.due(|_| false, at);
            discovery.dial(peer(2)).unwrap().begin(ConnId(n + 1));
            let ended = Ended::because("no answer");
            discovery.failed(due[0], ConnId(n + 1), &ended, &mut rng, now);
        }
    }

    #[test]
    fn the_smaller_name_dials_first() {
        let (mut discovery, mut rng, now) = start();
        discovery.heard(peer(9), &info(&[addr(1)]), None, &mut rng, now);
        let smaller = discovery.poll_timeout().unwrap();
        discovery.gone(peer(9));
        discovery.heard(peer(0), &info(&[addr(1)]), None, &mut rng, now);
        assert!(discovery.poll_timeout().unwrap() > smaller);
    }

    #[test]
    fn an_address_that_leads_to_ourselves_is_left_out_and_others_are_not() {
        let (mut discovery, mut rng, now) = start();
        discovery.heard(peer(2), &info(&[addr(1), addr(2)]), None, &mut rng, now);
        discovery.dial(peer(2)).unwrap().begin(ConnId(1));
        let ended = Ended {
            ourselves: true,
            ..Ended::because("ourselves")
        };
        let candidate = Candidate {
            peer: peer(2),
            address: addr(1),
            relayed: false,
        };
        discovery.failed(candidate, ConnId(1), &ended, &mut rng, now);
        let due = discovery.due(|_| false, now + Duration::from_secs(60));
        assert_eq!(
            due,
            [Candidate {
                peer: peer(2),
                address: addr(2),
                relayed: false,
            }]
        );
        discovery.heard(peer(2), &info(&[addr(1)]), None, &mut rng, now);
        assert_eq!(discovery.poll_timeout(), None);
    }

    #[test]
    fn nobody_is_dialled_who_is_connected_or_gone_or_ourselves() {
        let (mut discovery, mut rng, now) = start();
        discovery.heard(peer(1), &info(&[addr(1)]), None, &mut rng, now);
        discovery.heard(peer(2), &info(&[addr(1)]), Some(ConnId(1)), &mut rng, now);
        discovery.heard(peer(3), &info(&[]), None, &mut rng, now);
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
                &info(&many),
                None,
                &mut rng,
                now,
            );
        }
        assert_eq!(
            (discovery.known.len(), discovery.left_out()),
            (MAX_PEERS, 10)
        );
        // Who is known already is no peer more.
        let known = PeerName::from_bytes([2, 0, 0, 9, 0, 0]);
        discovery.heard(known, &info(&many), None, &mut rng, now);
        assert_eq!(discovery.left_out(), 10);
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

    fn info(addresses: &[SocketAddr]) -> PeerInfo {
        PeerInfo {
            addresses: addresses.to_vec(),
            datagrams: Vec::new(),
        }
    }

    fn peer(n: u8) -> PeerName {
        PeerName::from_bytes([2, 0, 0, 0, 0, n])
    }

    fn addr(n: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, n], 6783))
    }
}
