//! The two loops that frames go through, each on a plain OS thread.
//!
//! ```text
//!  bridge ─ TAP ─▶ capture ─ decide ─ cut ─ seal ─▶ UDP       (thread "weft-capture")
//!  further TAPs ─▶ the same, one thread for all             (thread "weft-networks")
//!  bridge ◀─ TAP ─ inject ◀─ merge ◀─ decide ◀─ open ◀─ UDP   (thread "weft-receive", relays too)
//! ```
//!
//! The control side owns all state. What the loops need of it they read from an immutable
//! [`Forwarding`] snapshot, which the control side replaces when something changes; what they notice
//! (a new MAC, a heartbeat, a key worn out) they report through a bounded queue that is never waited
//! for. So no frame allocates, locks or awaits, and a slow control side costs nothing but a report.
//!
//! The default network's TAP is read by a thread that waits in the read itself, which is the fastest way there
//! is; those of all other networks by one that waits for any of them.
//!
//! Both work in bulk: a super-frame is decided on once and leaves as a train of datagrams in one system call;
//! what arrives together goes to the TAP together. While short frames come one by one, each goes on before the
//! loop looks for more. On the wire there are only frames, each sealed by itself.
//!
//! Every frame and datagram that goes no further is counted under its [`DropReason`].

mod activity;
mod batch;
mod capture;
mod forwarding;
mod haste;
mod receive;

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc as thread_mpsc;
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwap;
use dashmap::DashSet;
use tokio::sync::mpsc;
use weft_net::tap::Tap;
use weft_net::taps::Waker;
use weft_net::udp::{is_too_long, send_now};
use weft_router::ConnId;
use weft_router::drop_reason::DropReason;
use weft_router::flood::FloodNumber;
use weft_router::macs::Location;
use weft_router::session::{RecvSession, SendSession};
use weft_wire::message::{HEARTBEAT_LEN, Heartbeat, PROBE_LEN, Probe};
use weft_wire::packet::{HEADER_LEN, OVERHEAD, ReceiverIndex, TAG_LEN};
use weft_wire::{MacAddr, Network, PeerName};

pub(crate) use activity::{Activity, Heard};
pub(crate) use forwarding::{ByPeer, Egress, Forwarding, Taps, Way};

/// Reports that may wait for the control side; more are not made (a MAC is reported again with its
/// next frame, a heartbeat again by its sender).
const MAX_REPORTS: usize = 1024;
/// Session changes that may wait for the receiving loop.
const MAX_COMMANDS: usize = 4096;
/// How long a command waits at the most for the receiving loop.
const COMMAND_INTERVAL: Duration = Duration::from_secs(1);
/// What is shorter than this, and came alone as the one before it did, is rather a question or an answer than part
/// of a stream: it goes on before the loop looks whether there is more. That look is a system call.
const SHORT: usize = 1024;
/// The largest datagram and the largest frame, with room for every header.
const BUFFER: usize = 65_536 + 256;

/// What the loops tell the control side.
#[derive(Debug)]
pub(crate) enum Report {
    /// A source MAC was seen where the table does not have it.
    Seen(Sighting),
    /// An authentic heartbeat.
    Heartbeat {
        conn: ConnId,
        from: SocketAddr,
        heartbeat: Heartbeat,
    },
    /// The authentic answer to a probe.
    Probed { conn: ConnId, answer: Probe },
    /// The kernel does not send datagrams of so many bytes to this connection's peer.
    TooLong { conn: ConnId, size: usize },
    /// A session has sealed as much as its key should.
    RekeyDue { conn: ConnId },
}

/// A MAC, and where it was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Sighting {
    pub(crate) network: Network,
    pub(crate) mac: MacAddr,
    pub(crate) at: Location,
}

/// What the control side tells the receiving loop about sessions.
pub(crate) enum Command {
    Install(ReceiverIndex, Receiver),
    Retire(ReceiverIndex),
    Uninstall(ConnId),
}

/// One session we receive on.
pub(crate) struct Receiver {
    pub(crate) conn: ConnId,
    pub(crate) peer: PeerName,
    pub(crate) session: RecvSession,
    pub(crate) activity: Arc<Activity>,
}

/// The running loops and the way to them.
pub(crate) struct DataPlane {
    shared: Arc<Shared>,
    commands: thread_mpsc::SyncSender<Command>,
}

/// What both loops and the control side see.
struct Shared {
    socket: UdpSocket,
    /// The default network's.
    tap: Tap,
    /// Ends the wait for the other networks' TAPs, when there are others.
    waker: Waker,
    forwarding: ArcSwap<Forwarding>,
    counters: Counters,
    /// Numbers the frames we flood, in whatever network.
    floods: FloodNumber,
    /// Numbers frames that go in pieces; no neighbour sees one twice while it matters.
    splits: AtomicU32,
    reports: mpsc::Sender<Report>,
    /// MACs reported and not yet dealt with, so that a burst of frames from one makes one report.
    news: DashSet<Sighting>,
}

/// Frames and datagrams, counted since the start.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) frames_captured: AtomicU64,
    pub(crate) frames_injected: AtomicU64,
    pub(crate) frames_relayed: AtomicU64,
    /// Questions who has an address that we answered.
    pub(crate) questions_answered: AtomicU64,
    /// Frames that went in pieces, being too long for a path.
    pub(crate) frames_split: AtomicU64,
    /// Frames that came in pieces.
    pub(crate) frames_joined: AtomicU64,
    pub(crate) bytes_captured: AtomicU64,
    pub(crate) bytes_injected: AtomicU64,
    pub(crate) datagrams_sent: AtomicU64,
    pub(crate) datagrams_received: AtomicU64,
    /// Datagrams meant to be sent in one call, which had to be sent one by one.
    pub(crate) trains_refused: AtomicU64,
    drops: [AtomicU64; DropReason::ALL.len()],
}

impl Counters {
    fn drop(&self, reason: DropReason, count: usize) {
        if let Some(counter) = self.drops.get(reason.index()) {
            add(counter, count);
        }
    }

    /// How often each reason has dropped something.
    pub(crate) fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        let counts = self.drops.iter().map(|c| c.load(Ordering::Relaxed));
        DropReason::ALL.into_iter().zip(counts)
    }
}

fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}

impl DataPlane {
    /// Starts the loops on the default network's TAP and a bound UDP socket.
    ///
    /// # Errors
    /// A thread cannot be started, or there are no descriptors left.
    pub(crate) fn start(
        tap: Tap,
        socket: UdpSocket,
        first: Forwarding,
        flood_start: u32,
    ) -> io::Result<(Self, mpsc::Receiver<Report>)> {
        socket.set_read_timeout(Some(COMMAND_INTERVAL))?;
        let (reports, reported) = mpsc::channel(MAX_REPORTS);
        let (commands, commanded) = thread_mpsc::sync_channel(MAX_COMMANDS);
        let shared = Arc::new(Shared {
            socket,
            tap,
            waker: Waker::new()?,
            forwarding: ArcSwap::from_pointee(first),
            counters: Counters::default(),
            floods: FloodNumber::starting_at(flood_start),
            splits: AtomicU32::new(0),
            reports,
            news: DashSet::new(),
        });
        let capture = shared.clone();
        thread::Builder::new()
            .name("weft-capture".to_owned())
            .spawn(move || capture::run(&capture))?;
        let networks = shared.clone();
        thread::Builder::new()
            .name("weft-networks".to_owned())
            .spawn(move || capture::run_further(&networks))?;
        let receive = shared.clone();
        thread::Builder::new()
            .name("weft-receive".to_owned())
            .spawn(move || receive::run(&receive, &commanded))?;
        Ok((Self { shared, commands }, reported))
    }

    /// Replaces what the loops forward by.
    pub(crate) fn set_forwarding(&self, forwarding: Forwarding) {
        let taps = forwarding.taps.clone();
        let before = self.shared.forwarding.swap(Arc::new(forwarding));
        if !Arc::ptr_eq(&before.taps, &taps) {
            self.shared.waker.wake();
        }
    }

    /// Changes the sessions we receive on.
    pub(crate) fn command(&self, command: Command) {
        if self.commands.try_send(command).is_err() {
            // The loop has stopped taking commands, so it has stopped receiving too.
            tracing::error!(
                "the receiving loop does not take commands; the router must be restarted"
            );
        }
    }

    /// A sighting was dealt with: should the MAC be news again, it is reported again.
    pub(crate) fn heard(&self, sighting: &Sighting) {
        self.shared.news.remove(sighting);
    }

    /// Sends a heartbeat through a session.
    pub(crate) fn send_heartbeat(
        &self,
        session: &SendSession,
        to: SocketAddr,
        heartbeat: Heartbeat,
    ) {
        self.shared.send_short(session, to, &heartbeat.emit());
    }

    /// Sends a probe, as long as it says, through a session. Answers whether it is short enough for the
    /// links of this host.
    pub(crate) fn send_probe(&self, session: &SendSession, to: SocketAddr, probe: Probe) -> bool {
        let mut datagram = vec![0; usize::from(probe.size).max(PROBE_LEN + OVERHEAD)];
        if let Some(message) = datagram.get_mut(HEADER_LEN..HEADER_LEN + PROBE_LEN) {
            message.copy_from_slice(&probe.emit());
        }
        let sent = self.shared.seal_and_send(session, to, &mut datagram);
        !sent.is_err_and(|error| is_too_long(&error))
    }

    /// What was counted.
    pub(crate) fn counters(&self) -> &Counters {
        &self.shared.counters
    }
}

impl Shared {
    /// Sends a message that is no longer than a heartbeat, without waiting.
    fn send_short(&self, session: &SendSession, to: SocketAddr, message: &[u8]) {
        let mut room = [0; HEARTBEAT_LEN + OVERHEAD];
        let end = HEADER_LEN + message.len();
        if let Some(place) = room.get_mut(HEADER_LEN..end) {
            place.copy_from_slice(message);
        }
        if let Some(datagram) = room.get_mut(..end + TAG_LEN)
            && self.seal_and_send(session, to, datagram).is_err()
        {
            self.counters.drop(DropReason::SendFailed, 1);
        }
    }

    /// Seals a datagram laid out as header, message, tag, and sends it without waiting.
    fn seal_and_send(
        &self,
        session: &SendSession,
        to: SocketAddr,
        datagram: &mut [u8],
    ) -> io::Result<()> {
        if session.seal(datagram).is_err() {
            self.counters.drop(DropReason::SessionExpired, 1);
            return Ok(());
        }
        send_now(&self.socket, datagram, to)?;
        add(&self.counters.datagrams_sent, 1);
        Ok(())
    }

    /// The TAP of a network, if this host has that.
    fn tap_of<'a>(&'a self, network: Network, forwarding: &'a Forwarding) -> Option<&'a Tap> {
        if network == Network::DEFAULT {
            Some(&self.tap)
        } else {
            forwarding.taps.get(&network).map(|tap| &**tap)
        }
    }

    /// Tells the control side, unless too much is waiting there already.
    fn report(&self, report: Report) {
        let _ = self.reports.try_send(report);
    }

    /// Tells the control side of a MAC, unless that waits there already.
    fn report_mac(&self, sighting: Sighting) {
        if self.news.insert(sighting) && self.reports.try_send(Report::Seen(sighting)).is_err() {
            self.news.remove(&sighting);
        }
    }
}
