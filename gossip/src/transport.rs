//! chitchat's network: the control connections to our neighbours.
//!
//! chitchat believes it sends to addresses; each is a peer's name in disguise (see [`crate::run`]).
//! What goes to a neighbour is put into the outbox, what goes to anybody else is dropped, for chitchat
//! likes to talk to all it knows of while we only ever talk to neighbours. What neighbours sent waits in
//! the inbox until chitchat takes it, through [`admit`].
//!
//! Invariants: nothing here waits for anybody, so a stuck neighbour or node holds up no one; both
//! queues are bounded, and what does not fit is counted and dropped, because gossip repeats; `recv`
//! never fails, since that would end chitchat's loop.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatMessage, Serializable};
use thiserror::Error;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};
use tracing::{debug, warn};
use weft_wire::PeerName;

use crate::Outgoing;
use crate::counters::Counts;
use crate::envelope::{Census, MAX_ENVELOPE, MAX_RUNS, admit};
use crate::run::{Run, address, name_behind};

/// What the handle, chitchat's socket and the task share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) counts: Counts,
    /// Something happened that the task should look at.
    pub(crate) wake: Notify,
    neighbours: Mutex<BTreeSet<PeerName>>,
    outbox: mpsc::Sender<Outgoing>,
    inbox: mpsc::Sender<Incoming>,
    census: Mutex<Census>,
    heard: Mutex<Heard>,
    /// The version of our own keys up to which neighbours were told.
    pushed: AtomicU64,
}

/// Whom chitchat took messages from since the task last looked.
pub(crate) type Heard = BTreeMap<PeerName, Hint>;

/// What a neighbour's messages say beside their content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Hint {
    /// They had changes we cannot use before we know what came before.
    pub(crate) behind: bool,
    /// They were so long that there may be more to come.
    pub(crate) long: bool,
}

#[derive(Debug)]
struct Incoming {
    from: PeerName,
    bytes: Vec<u8>,
}

impl Shared {
    /// The shared part, and the transport to open chitchat's socket with.
    pub(crate) fn new(us: Run, outbox: mpsc::Sender<Outgoing>) -> (Arc<Self>, Inbox) {
        let (inbox, incoming) = mpsc::channel(INBOX);
        let shared = Arc::new(Self {
            counts: Counts::default(),
            wake: Notify::new(),
            neighbours: Mutex::default(),
            outbox,
            inbox,
            census: Mutex::new(Census::new(us)),
            heard: Mutex::default(),
            pushed: AtomicU64::new(0),
        });
        let inbox = Inbox {
            shared: Arc::clone(&shared),
            incoming: Mutex::new(Some(incoming)),
        };
        (shared, inbox)
    }

    pub(crate) fn neighbours(&self) -> BTreeSet<PeerName> {
        lock(&self.neighbours).clone()
    }

    /// Replaces the neighbours; gives those that are new.
    pub(crate) fn set_neighbours(&self, neighbours: BTreeSet<PeerName>) -> Vec<PeerName> {
        let mut current = lock(&self.neighbours);
        let new = neighbours.difference(&current).copied().collect();
        *current = neighbours;
        new
    }

    /// Hands a message to the control connection of a neighbour, or drops it.
    pub(crate) fn send(&self, to: PeerName, bytes: Vec<u8>) {
        if !lock(&self.neighbours).contains(&to) {
            return;
        }
        match self.outbox.try_send(Outgoing { to, bytes }) {
            Ok(()) => self.counts.sent.add(1),
            Err(TrySendError::Full(_)) => self.counts.outbox_full.add(1),
            // Nobody is left to send anything: the node is stopping.
            Err(TrySendError::Closed(_)) => {}
        }
    }

    /// Takes a neighbour's message for chitchat, or drops it.
    pub(crate) fn receive(&self, from: PeerName, bytes: Vec<u8>) {
        if bytes.len() > MAX_ENVELOPE {
            self.counts.undecodable.add(1);
        } else if self.inbox.try_send(Incoming { from, bytes }).is_err() {
            self.counts.inbox_full.add(1);
        }
    }

    pub(crate) fn census(&self) -> MutexGuard<'_, Census> {
        lock(&self.census)
    }

    /// Whom was heard of since this was last called.
    pub(crate) fn take_heard(&self) -> Heard {
        std::mem::take(&mut lock(&self.heard))
    }

    /// Notes that neighbours are being told our keys up to `version`; gives the version before.
    pub(crate) fn set_pushed(&self, version: u64) -> u64 {
        self.pushed.swap(version, Ordering::Relaxed)
    }

    fn note_heard(&self, from: PeerName, hint: Hint) {
        let mut heard = lock(&self.heard);
        let known = heard.entry(from).or_default();
        known.behind |= hint.behind;
        known.long |= hint.long;
    }
}

/// The transport: opens one socket, which reads the inbox.
pub(crate) struct Inbox {
    shared: Arc<Shared>,
    incoming: Mutex<Option<mpsc::Receiver<Incoming>>>,
}

#[derive(Debug, Error)]
#[error("the gossip socket is open already")]
struct OpenTwice;

#[async_trait]
impl Transport for Inbox {
    async fn open(&self, _: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let incoming = lock(&self.incoming).take().ok_or(OpenTwice)?;
        Ok(Box::new(Wire {
            shared: Arc::clone(&self.shared),
            incoming,
            taken: None,
            warned: false,
        }))
    }
}

/// chitchat's socket.
struct Wire {
    shared: Arc<Shared>,
    incoming: mpsc::Receiver<Incoming>,
    /// The message chitchat is working on; when it asks for the next one, it is done with it.
    taken: Option<(PeerName, Hint)>,
    /// Too many peers is said once.
    warned: bool,
}

#[async_trait]
impl Socket for Wire {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        if let Some(peer) = name_behind(to).filter(|peer| self.is_neighbour(*peer)) {
            self.shared.send(peer, message.serialize_to_vec());
        }
        Ok(())
    }

    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        if let Some((from, hint)) = self.taken.take() {
            self.shared.note_heard(from, hint);
            self.shared.wake.notify_one();
        }
        loop {
            // Nothing is awaited once a message is out of the queue, so this can be cancelled.
            let Some(incoming) = self.incoming.recv().await else {
                return std::future::pending().await;
            };
            if let Some(message) = self.take(&incoming) {
                return Ok((address(incoming.from), message));
            }
        }
    }
}

impl Wire {
    fn is_neighbour(&self, peer: PeerName) -> bool {
        lock(&self.shared.neighbours).contains(&peer)
    }

    fn take(&mut self, incoming: &Incoming) -> Option<ChitchatMessage> {
        let from = incoming.from;
        let counts = &self.shared.counts;
        match admit(&incoming.bytes, &mut self.shared.census()) {
            Ok(admitted) => {
                counts.received.add(1);
                counts.refused.add(admitted.refused);
                if admitted.full && !std::mem::replace(&mut self.warned, true) {
                    warn!("gossip carries {MAX_RUNS} peers and no more: some are not known here");
                }
                let behind = admitted.behind;
                let long = incoming.bytes.len() > LONG;
                self.taken = Some((from, Hint { behind, long }));
                Some(admitted.message)
            }
            Err(error) => {
                counts.undecodable.add(1);
                debug!(peer = %from, %error, "a gossip message cannot be read");
                None
            }
        }
    }
}

/// Locks; a holder that panicked cannot have left these plain collections half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Messages waiting for chitchat: at most 8 MiB.
const INBOX: usize = 128;
/// A message longer than half of what fits may have been cut.
const LONG: usize = MAX_ENVELOPE / 2;
