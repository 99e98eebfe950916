//! One control connection as the router keeps it: its stage, its peer, its clocks.
//!
//! ```text
//!              Hello came, and…
//!   Greeting ──── nobody else is that peer ───────────────────────────▶ Up
//!      │                                                                ▲
//!      ├── it is a second connection, the other side decides ─▶ Standby ┤ first message, or the other ended
//!      └── who is at the end of the first one? ──────────────▶ Contest ─┘ the other gave no sign of life
//! ```
//!
//! Whatever is not `Up` in time is closed.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use weft_wire::control::{Control, Hello};
use weft_wire::{Nickname, PeerName};

use crate::control::{CannotSend, Channel, ChannelError, Side};
use crate::discovery::Candidate;
use crate::keys::Keys;
use crate::path::{Path, Sight};
use crate::pulse::Pulse;
use crate::relays::Allowance;
use crate::{ConnId, Target};

/// One control connection.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) side: Side,
    pub(crate) remote: SocketAddr,
    pub(crate) origin: Origin,
    pub(crate) channel: Channel,
    /// The other side's static key, once the handshake has shown it.
    pub(crate) key: Option<[u8; 32]>,
    /// We have said who we are.
    pub(crate) greeted: bool,
    /// Who the other side is; from then on it is not `Greeting`.
    pub(crate) hello: Option<Hello>,
    pub(crate) stage: Stage,
    /// When something sealed came last, and how much had come by then. Bytes that do not open are
    /// no sign of life: a stream that lost its order would never be found out.
    heard: Option<Instant>,
    opened: u64,
    /// Nothing ever came.
    mute: bool,
    began: Instant,
}

/// Why a connection was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// They dialled.
    Inbound,
    /// We were told to dial.
    Target(Target),
    /// Gossip told us of a peer there.
    Discovered(Candidate),
    /// They dialled over other peers; this neighbour has handed it to us.
    Relayed { via: PeerName },
}

/// How far a connection is.
#[derive(Debug)]
pub(crate) enum Stage {
    /// Handshake, then waiting for `Hello`.
    Greeting { deadline: Instant },
    /// Whoever has the connection `over` must show that it lives before this one is refused.
    Contest { over: ConnId, deadline: Instant },
    /// The other side says which of this and `over` goes on.
    Standby { over: ConnId, deadline: Instant },
    /// It is the connection of its peer.
    Up(Box<Up>),
}

/// What a connection has while it is its peer's one.
#[derive(Debug)]
pub(crate) struct Up {
    pub(crate) since: Instant,
    pub(crate) keys: Keys,
    pub(crate) pulse: Pulse,
    pub(crate) path: Path,
    /// When the next control heartbeat is due.
    pub(crate) heartbeat_at: Instant,
    /// The rings are equal, as far as we see.
    pub(crate) synced: bool,
    /// What we said last, and what the other side said last.
    pub(crate) we_ready: bool,
    pub(crate) they_ready: bool,
    /// Others may hear of the connection: of a relayed one when datagrams come through.
    pub(crate) announced: bool,
    /// All peers are told of it by gossip: from when it is established, or [`UNTOLD`] old.
    pub(crate) told: bool,
    /// What of relayed connections it may bring.
    pub(crate) allowance: Allowance,
    /// Another connection contests this one: any sign of life settles it.
    pub(crate) challenged: bool,
}

impl Link {
    pub(crate) fn new(
        side: Side,
        remote: SocketAddr,
        origin: Origin,
        channel: Channel,
        now: Instant,
    ) -> Self {
        Self {
            side,
            remote,
            origin,
            channel,
            key: None,
            greeted: false,
            hello: None,
            stage: Stage::Greeting {
                deadline: now + GREETING,
            },
            heard: None,
            opened: 0,
            mute: true,
            began: now,
        }
    }

    /// Takes bytes from the stream.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), ChannelError> {
        self.mute = false;
        self.channel.push(bytes)
    }

    /// Whether something sealed has come since this was asked last.
    pub(crate) fn has_heard(&mut self, now: Instant) -> bool {
        let opened = self.channel.opened();
        let heard = opened > self.opened;
        if heard {
            self.opened = opened;
            self.heard = Some(now);
        }
        heard
    }

    /// Nothing ever came.
    pub(crate) fn is_mute(&self) -> bool {
        self.mute
    }

    /// Nothing came for too long.
    pub(crate) fn is_silent(&self, now: Instant) -> bool {
        now >= self.silent_at()
    }

    /// Bytes must wait until it is decided what this connection is.
    pub(crate) fn is_held(&self) -> bool {
        matches!(self.stage, Stage::Contest { .. })
    }

    pub(crate) fn up(&self) -> Option<&Up> {
        match &self.stage {
            Stage::Up(up) => Some(up),
            Stage::Greeting { .. } | Stage::Contest { .. } | Stage::Standby { .. } => None,
        }
    }

    pub(crate) fn up_mut(&mut self) -> Option<&mut Up> {
        match &mut self.stage {
            Stage::Up(up) => Some(up),
            Stage::Greeting { .. } | Stage::Contest { .. } | Stage::Standby { .. } => None,
        }
    }

    /// The connection whose fate this one waits for.
    pub(crate) fn waits_for(&self) -> Option<ConnId> {
        match &self.stage {
            Stage::Contest { over, .. } | Stage::Standby { over, .. } => Some(*over),
            Stage::Greeting { .. } | Stage::Up(_) => None,
        }
    }

    pub(crate) fn is_established(&self) -> bool {
        self.up().is_some_and(Up::is_established)
    }

    /// Name and nickname of the other side.
    pub(crate) fn peer(&self) -> Option<(PeerName, Nickname)> {
        self.hello
            .as_ref()
            .map(|hello| (hello.name, hello.nickname.clone()))
    }

    pub(crate) fn send(&mut self, message: &Control) -> Result<(), CannotSend> {
        self.channel.send(message)
    }

    /// Where the peer should take datagrams, as long as none came from it: at the port it says it
    /// listens on, unless an operator said another one.
    pub(crate) fn datagrams_to(&self) -> SocketAddr {
        let mut to = self.remote;
        let explicit = match &self.origin {
            Origin::Inbound => false,
            Origin::Target(target) => target.port.is_some(),
            Origin::Discovered(_) | Origin::Relayed { .. } => true,
        };
        if let (false, Some(hello)) = (explicit, &self.hello) {
            to.set_port(hello.port);
        }
        to
    }

    fn silent_at(&self) -> Instant {
        let since = self.up().map(|up| up.since).max(self.heard);
        since.unwrap_or(self.began) + SILENCE
    }

    /// When something is to be done about it, and what.
    pub(crate) fn poll_timeout(&self) -> (Instant, &'static str) {
        match &self.stage {
            Stage::Greeting { deadline } => (*deadline, "handshake"),
            Stage::Contest { deadline, .. } => (*deadline, "contest"),
            Stage::Standby { deadline, .. } => (*deadline, "standby"),
            Stage::Up(up) => {
                let silence = (self.silent_at(), "control silence");
                up.timeouts().into_iter().fold(
                    silence,
                    |first, next| if next.0 < first.0 { next } else { first },
                )
            }
        }
    }
}

impl Up {
    pub(crate) fn new(keys: Keys, pulse: Pulse, path: Path, now: Instant) -> Self {
        Self {
            since: now,
            keys,
            pulse,
            path,
            heartbeat_at: now + HEARTBEAT,
            synced: false,
            we_ready: false,
            they_ready: false,
            announced: true,
            told: false,
            allowance: Allowance::new(now),
            challenged: false,
        }
    }

    pub(crate) fn is_established(&self) -> bool {
        self.we_ready && self.they_ready
    }

    /// Whether it has just become so old that all are told of it, established or not.
    pub(crate) fn comes_to_be_told(&mut self, now: Instant) -> bool {
        let is_due = !self.told && now >= self.since + UNTOLD;
        self.told |= is_due;
        is_due
    }

    /// Whether a control heartbeat is due; if so, the next one is set.
    pub(crate) fn beats(&mut self, now: Instant) -> bool {
        let due = now >= self.heartbeat_at;
        if due {
            self.heartbeat_at = now + HEARTBEAT;
        }
        due
    }

    /// What is known of short datagrams.
    pub(crate) fn sight(&self) -> Sight {
        Sight {
            rtt: self.pulse.rtt(),
            clear: self.pulse.is_clear(),
        }
    }

    fn timeouts(&self) -> [(Instant, &'static str); 5] {
        // Without a key from the peer there is nothing to ask with; that it gives none shows later.
        let dead_at = self.pulse.dead_at();
        let (question, probe) = if self.keys.can_send() {
            let probe = self.path.poll_timeout().unwrap_or(dead_at);
            (self.pulse.poll_timeout(), probe)
        } else {
            (dead_at, dead_at)
        };
        let told_at = match self.told {
            true => dead_at,
            false => self.since + UNTOLD,
        };
        [
            (told_at, "all are told"),
            (self.heartbeat_at, "control heartbeat"),
            (question, "UDP heartbeat"),
            (probe, "path MTU"),
            (self.keys.poll_timeout(), "rekey"),
        ]
    }
}

/// How long a connection may take until its peer is known.
pub(crate) const GREETING: Duration = Duration::from_secs(10);
/// Most connections are established sooner, and then all are told of them once instead of twice.
const UNTOLD: Duration = Duration::from_secs(1);
/// How often something is said over TCP.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// After this long without a word over TCP the connection is given up: three heartbeats are lost.
pub(crate) const SILENCE: Duration = Duration::from_secs(20);
