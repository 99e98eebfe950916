//! Targets: what we were told to connect to, when each is dialled next, and what became of it.
//!
//! ```text
//!              due                    TCP and Hello                 ended
//!   Waiting ─────────▶ Dialling ──────────────────▶ Connected ──────────────▶ Waiting
//!      ▲                  │ failed
//!      └──────────────────┘
//! ```
//!
//! A target whose peer is connected by another dial, or from its side, counts as connected too. One
//! that leads to ourselves is kept, but not dialled again.
//!
//! A host name is resolved afresh at every dial, because the target keeps the name, not an address.
//! Invariant: at most one dial per target, and none while its peer is connected.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use std::time::Instant;

use rand_core::Rng;
use thiserror::Error;
use weft_wire::PeerName;

use crate::ConnId;
use crate::dial::{Dial, Ended};

/// Where to connect to: a host name or an address, and a port unless it is the usual one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Host name, IPv4 or IPv6 address (without brackets).
    pub host: String,
    /// The port, or ours if none is named.
    pub port: Option<u16>,
}

/// Text that is no target.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("invalid peer name {0:?}, should be host[:port] or [IPv6][:port]")]
pub struct ParseTargetError(String);

impl FromStr for Target {
    type Err = ParseTargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseTargetError(text.to_owned());
        if text.parse::<Ipv6Addr>().is_ok() {
            let host = text.to_owned();
            return Ok(Self { host, port: None });
        }
        let (host, port) = match text.strip_prefix('[').map(|rest| rest.split_once(']')) {
            Some(Some((host, rest))) if host.parse::<Ipv6Addr>().is_ok() => {
                let port = (!rest.is_empty()).then(|| rest.strip_prefix(':').unwrap_or("?"));
                (host, port)
            }
            Some(_) => return Err(wrong()),
            None => match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let port = port
            .map(|p| p.parse().ok().filter(|p| *p != 0).ok_or_else(wrong))
            .transpose()?;
        if !is_host(host) {
            return Err(wrong());
        }
        let host = host.to_owned();
        Ok(Self { host, port })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.port, self.host.contains(':')) {
            (None, _) => f.write_str(&self.host),
            (Some(port), true) => write!(f, "[{}]:{port}", self.host),
            (Some(port), false) => write!(f, "{}:{port}", self.host),
        }
    }
}

/// What is to be done about a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetState {
    /// It will be dialled when its time comes.
    Waiting,
    /// It is being dialled, or the handshake runs.
    Dialling,
    /// Its peer is connected.
    Connected,
    /// It is not dialled: it leads to ourselves.
    Suspended,
}

/// How a target fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetStatus {
    /// The target as it was given.
    pub target: Target,
    /// What is being done about it.
    pub state: TargetState,
    /// The peer it led to last.
    pub peer: Option<PeerName>,
    /// Why it is not connected, in words.
    pub last_error: Option<String>,
    /// When it will be dialled next.
    pub retry_at: Option<Instant>,
}

/// All targets.
#[derive(Debug, Default)]
pub(crate) struct Targets {
    entries: BTreeMap<Target, Entry>,
}

#[derive(Debug)]
struct Entry {
    dial: Dial,
    /// Whom it led to last.
    peer: Option<PeerName>,
}

impl Targets {
    /// Adds targets, to be dialled at once, waiting ones too; returns whether any is new.
    pub(crate) fn add(&mut self, targets: &[Target], now: Instant) -> bool {
        let before = self.entries.len();
        for target in targets {
            let entry = self.entries.entry(target.clone()).or_insert_with(|| Entry {
                dial: Dial::at(now),
                peer: None,
            });
            entry.dial.hurry(now);
        }
        self.entries.len() != before
    }

    /// Drops the targets that are not to be kept; returns whether there were any, and their dials.
    pub(crate) fn retain(&mut self, keep: impl Fn(&Target) -> bool) -> (bool, Vec<ConnId>) {
        let before = self.entries.len();
        let mut dials = Vec::new();
        self.entries.retain(|target, entry| {
            let keep = keep(target);
            dials.extend(entry.dial.conn().filter(|_| !keep));
            keep
        });
        (self.entries.len() != before, dials)
    }

    /// Those whose time has come.
    pub(crate) fn due(&self, now: Instant) -> Vec<Target> {
        let due = self.entries.iter().filter(|(_, e)| e.dial.is_due(now));
        due.map(|(target, _)| target.clone()).collect()
    }

    /// What is being done about one target.
    pub(crate) fn dial(&mut self, target: &Target) -> Option<&mut Dial> {
        self.entries.get_mut(target).map(|entry| &mut entry.dial)
    }

    /// A target's dial has led to a peer, which may be connected otherwise already.
    pub(crate) fn leads_to(&mut self, target: &Target, peer: PeerName) {
        if let Some(entry) = self.entries.get_mut(target) {
            entry.peer = Some(peer);
        }
    }

    /// A peer is connected by `conn`, whoever dialled: its targets rest.
    pub(crate) fn peer_connected(&mut self, peer: PeerName, conn: ConnId) {
        for entry in self.of(peer) {
            entry.dial.connected(conn);
        }
    }

    /// A peer is connected no more: its targets are dialled again.
    pub(crate) fn peer_disconnected(
        &mut self,
        peer: PeerName,
        ended: &Ended,
        rng: &mut impl Rng,
        now: Instant,
    ) {
        for entry in self.of(peer) {
            entry.dial.disconnected(ended, rng, now);
        }
    }

    /// When the next one is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.entries
            .values()
            .filter_map(|entry| entry.dial.due_at())
            .min()
    }

    /// How each fares, by target.
    pub(crate) fn statuses(&self) -> Vec<TargetStatus> {
        self.entries
            .iter()
            .map(|(target, entry)| entry.status(target))
            .collect()
    }

    fn of(&mut self, peer: PeerName) -> impl Iterator<Item = &mut Entry> {
        self.entries
            .values_mut()
            .filter(move |entry| entry.peer == Some(peer))
    }
}

impl Entry {
    fn status(&self, target: &Target) -> TargetStatus {
        TargetStatus {
            target: target.clone(),
            state: self.dial.state(),
            peer: self.peer,
            last_error: self.dial.error().map(str::to_owned),
            retry_at: self.dial.due_at(),
        }
    }
}

/// A host name (letters, digits, `-`, `_`, `.`; RFC 1123 and what people use) or an IP address.
fn is_host(text: &str) -> bool {
    let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    text.parse::<IpAddr>().is_ok()
        || ((1..=253).contains(&text.len())
            && text.chars().all(name)
            && !text.starts_with(['-', '.']))
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    use super::*;

    #[test]
    fn targets_are_read_and_printed_back() {
        for (text, host, port) in [
            ("host1", "host1", None),
            ("host1.example.org:7000", "host1.example.org", Some(7000)),
            ("192.0.2.1", "192.0.2.1", None),
            ("192.0.2.1:6783", "192.0.2.1", Some(6783)),
            ("2001:db8::1", "2001:db8::1", None),
            ("[2001:db8::1]:6783", "2001:db8::1", Some(6783)),
        ] {
            let target: Target = text.parse().unwrap();
            assert_eq!((target.host.as_str(), target.port), (host, port));
            assert_eq!(target.to_string(), text);
        }
        assert_eq!("[fd00::1]".parse::<Target>().unwrap().host, "fd00::1");
    }

    #[test]
    fn what_is_no_target_is_refused_with_the_form_it_should_have() {
        for text in [
            "",
            ":1",
            "host:",
            "host:0",
            "host:70000",
            "host:x",
            "a b",
            "[::1",
            "[host]:1",
            "[::1]x",
            "[::1]:",
            "a:b:c",
            "-x",
            "http://host",
        ] {
            let error = text.parse::<Target>().unwrap_err();
            assert!(
                error
                    .to_string()
                    .ends_with("should be host[:port] or [IPv6][:port]"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_target_rests_while_its_peer_is_connected_by_anybody() {
        let (mut targets, mut rng, now) = start();
        targets.dial(&target()).unwrap().begin(ConnId(1));
        targets.leads_to(&target(), peer());
        targets.peer_connected(peer(), ConnId(1));
        assert_eq!(targets.statuses()[0].state, TargetState::Connected);
        targets.peer_disconnected(peer(), &Ended::because("gone"), &mut rng, now);
        assert!(targets.poll_timeout().is_some());
        targets.peer_connected(peer(), ConnId(7));
        assert_eq!(targets.poll_timeout(), None);
    }

    #[test]
    fn a_target_that_is_ourselves_is_kept_and_not_dialled_until_it_is_added_anew() {
        let (mut targets, mut rng, now) = start();
        let dial = targets.dial(&target()).unwrap();
        dial.begin(ConnId(1));
        let ended = Ended {
            ourselves: true,
            ..Ended::because("ourselves")
        };
        dial.failed(ConnId(1), &ended, &mut rng, now);
        assert_eq!(targets.poll_timeout(), None);
        assert_eq!(targets.statuses()[0].state, TargetState::Suspended);
        assert!(!targets.add(&[target()], now));
        assert_eq!(targets.due(now), [target()]);
    }

    #[test]
    fn forgetting_gives_back_the_dial_under_way() {
        let (mut targets, _, now) = start();
        targets.dial(&target()).unwrap().begin(ConnId(1));
        assert!(targets.add(&["other".parse().unwrap()], now));
        assert_eq!(targets.retain(|t| *t != target()), (true, vec![ConnId(1)]));
        assert_eq!(targets.statuses().len(), 1);
        assert_eq!(targets.retain(|_| true), (false, vec![]));
    }

    fn start() -> (Targets, ChaCha20Rng, Instant) {
        let (mut targets, now) = (Targets::default(), crate::clock::start());
        assert!(targets.add(&[target()], now));
        assert_eq!(targets.due(now), [target()]);
        (targets, ChaCha20Rng::seed_from_u64(1), now)
    }

    fn target() -> Target {
        "host1:6783".parse().unwrap()
    }

    fn peer() -> PeerName {
        PeerName::from_bytes([2, 0, 0, 0, 0, 1])
    }
}
