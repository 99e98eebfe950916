//! Targets: what we were told to connect to, when each is dialled next, and what became of it.
//!
//! ```text
//!              due                    TCP and Hello                 ended
//!   Waiting ─────────▶ Dialling ──────────────────▶ Connected ──────────────▶ Waiting
//!      ▲                  │ failed                                   (its peer came or comes
//!      └──────────────────┘          by another connection, or it is ourselves: Suspended)
//! ```
//!
//! A host name is resolved afresh at every dial, because the target keeps the name, not an address.
//! Invariant: at most one dial per target, and none while its peer is connected.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use std::time::Instant;

use thiserror::Error;
use weft_wire::PeerName;

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
        let port = port.map(|p| p.parse().ok().filter(|p| *p != 0).ok_or_else(wrong)).transpose()?;
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

/// A host name (letters, digits, `-`, `_`, `.`; RFC 1123 and what people use) or an IP address.
fn is_host(text: &str) -> bool {
    let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    text.parse::<IpAddr>().is_ok()
        || ((1..=253).contains(&text.len()) && text.chars().all(name) && !text.starts_with(['-', '.']))
}
