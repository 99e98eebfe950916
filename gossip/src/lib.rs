//! Gossip: what each peer says of itself, made known to all, over the control connections.
//!
//! chitchat does the reconciling (who lacks which versions of whose keys). This crate gives it a
//! network made of neighbours only (`transport.rs`), screens what they send (`envelope.rs`), decides
//! when to speak (`task.rs`), and turns the state into [`Change`]s of a closed set of entries (`key.rs`,
//! `view.rs`). The node hands messages in and out; nothing here opens a socket.
//!
//! ```text
//!   node ── publish/withdraw ──► own keys ┐                         ┌─► Outgoing ──► control connections
//!   node ◄── Change ◄── view ◄── chitchat ┴── envelopes, to and fro ┴◄─ handle_message ◄──┘
//! ```
//!
//! Invariants: a peer's keys are written by that peer alone; nothing goes to anybody but neighbours;
//! no message, whatever is in it, ends gossip or makes it grow beyond its bounds; what is told is
//! always the difference to what was told before.
//!
//! Start reading with [`Gossip`], then `view.rs`.
#![forbid(unsafe_code)]

mod counters;
mod envelope;
mod key;
mod run;
mod task;
#[cfg(test)]
mod tests;
mod text;
mod transport;
mod view;

use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use chitchat::{ChitchatConfig, ChitchatHandle, FailureDetectorConfig, spawn_chitchat};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use weft_wire::PeerName;

pub use counters::Counters;
pub use key::{
    Binding, EncodeEntryError, Entry, Link, MAX_KEY, MAX_VALUE, ParseEntryError, PeerInfo, Topic,
};
pub use view::SILENCE;

use run::{Run, address};
use task::{Task, push_own};
use transport::{Inbox, Shared};
use view::View;

/// The most entries a peer may publish, and the most that are shown of one.
pub const MAX_ENTRIES: usize = 20_000;
/// The longest name of a cluster, in bytes.
pub const MAX_CLUSTER: usize = 1024;

/// How a peer takes part in gossip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GossipConfig {
    /// Our name.
    pub name: PeerName,
    /// Tells this start from earlier ones: must be greater than at any start before, so it is stored
    /// before it is used.
    pub generation: u64,
    /// The cluster's name; exchanges with peers of another one are refused.
    pub cluster: String,
    /// How often a full exchange with one neighbour is begun. Above zero.
    pub interval: Duration,
}

impl GossipConfig {
    /// With the interval weft uses, one second.
    pub fn new(name: PeerName, generation: u64, cluster: impl Into<String>) -> Self {
        Self {
            name,
            generation,
            cluster: cluster.into(),
            interval: Duration::from_secs(1),
        }
    }
}

/// A message for a neighbour, to be carried by the control connection to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// The neighbour.
    pub to: PeerName,
    /// What [`Gossip::handle_message`] takes at the other end; at most 65,507 bytes.
    pub bytes: Vec<u8>,
}

/// Something that is otherwise now with another peer, or one that passes for us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The peer is known and lives; what it published follows, its [`Entry::Peer`] first.
    Live {
        /// The peer.
        peer: PeerName,
    },
    /// The peer says this, in place of what it said on the same topic.
    Published {
        /// The peer.
        peer: PeerName,
        /// What it says.
        entry: Entry,
    },
    /// The peer does not say this any more.
    Withdrawn {
        /// The peer.
        peer: PeerName,
        /// What it last said on the topic.
        entry: Entry,
    },
    /// The peer left, or was silent and out of reach for [`SILENCE`]. All it said was withdrawn before.
    Dead {
        /// The peer.
        peer: PeerName,
    },
    /// Another run with our name is newer than ours, and others take it for us. Comes again while it lives.
    Clash {
        /// Its generation.
        generation: u64,
        /// Who it is.
        info: PeerInfo,
    },
    /// Gossip ended by itself, after all was withdrawn: start it again, with a greater generation.
    Stopped,
}

/// Why gossip cannot be started.
#[derive(Debug, Error)]
pub enum StartError {
    /// An entry to begin with cannot be published.
    #[error("an entry cannot be published")]
    Entry(#[from] EncodeEntryError),
    /// More entries to begin with than a peer may publish.
    #[error("{0} entries are more than the {MAX_ENTRIES} a peer may publish")]
    TooMany(usize),
    /// The cluster's name is too long.
    #[error("the cluster's name has {0} bytes, more than {MAX_CLUSTER}: use a shorter one")]
    Cluster(usize),
    /// The interval is zero.
    #[error("the interval is zero: gossip would never rest")]
    Interval,
    /// chitchat does not start.
    #[error("chitchat does not start")]
    Chitchat(#[source] Box<dyn Error + Send + Sync>),
}

/// Why an entry is not published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PublishError {
    /// The entry is too long, or others could not read it.
    #[error(transparent)]
    Entry(#[from] EncodeEntryError),
    /// We publish as much as a peer may.
    #[error("{MAX_ENTRIES} entries are published already: withdraw some first")]
    TooMany,
}

/// A handle on running gossip; clones stand for the same. Gossip ends when the last one is dropped.
#[derive(Clone)]
pub struct Gossip {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    chitchat: Arc<ChitchatHandle>,
    /// Its drop tells the task that no handle is left.
    _alive: oneshot::Sender<Infallible>,
}

impl Gossip {
    /// Starts gossip on the current tokio runtime.
    ///
    /// `initial` is what we say of ourselves from the first moment. It should hold an
    /// [`Entry::Peer`], without which others do not show us, and all that we said before a restart
    /// and still say: others go over from our last run to this one when it arrived whole, so that what
    /// is in both is never withdrawn.
    ///
    /// Messages for neighbours go to `outbox`; those that find it full are dropped. Changes wait in
    /// the receiver; when it is dropped, gossip ends.
    ///
    /// # Errors
    /// An initial entry cannot be published, or a setting is out of its bounds.
    pub async fn start(
        config: GossipConfig,
        initial: Vec<Entry>,
        outbox: mpsc::Sender<Outgoing>,
    ) -> Result<(Self, mpsc::Receiver<Change>), StartError> {
        let initial = encode_initial(&config, initial)?;
        let us = Run {
            name: config.name,
            generation: config.generation,
        };
        let (shared, inbox) = Shared::new(us, outbox);
        let chitchat = spawn(us, config.cluster, initial, &inbox).await?;
        let chitchat = Arc::new(chitchat);
        // What we begin with reaches neighbours by the exchange that a new connection starts with.
        let version = chitchat.with_chitchat(|c| c.self_node_state().max_version());
        shared.set_pushed(version.await);
        let (changes, receiver) = mpsc::channel(CHANGES);
        let (alive, gone) = oneshot::channel();
        let task = Task {
            us,
            shared: Arc::clone(&shared),
            chitchat: Arc::clone(&chitchat),
            changes,
            view: View::new(us),
            pending: VecDeque::new(),
            last: Some(us.name),
        };
        tokio::spawn(task.run(config.interval, gone));
        let inner = Inner {
            shared,
            chitchat,
            _alive: alive,
        };
        let inner = Arc::new(inner);
        Ok((Self { inner }, receiver))
    }

    /// Says `entry` to all, in place of what we said on its topic.
    ///
    /// # Errors
    /// The entry cannot be carried, or we publish too many; what was said before stands.
    pub async fn publish(&self, entry: Entry) -> Result<(), PublishError> {
        let (key, value) = entry.encode()?;
        let set = |chitchat: &mut chitchat::Chitchat| {
            let state = chitchat.self_node_state();
            if !state.contains_key(&key) && state.num_key_values() >= MAX_ENTRIES {
                return Err(PublishError::TooMany);
            }
            state.set(&key, &value);
            Ok(())
        };
        self.inner.chitchat.with_chitchat(set).await?;
        self.inner.shared.wake.notify_one();
        Ok(())
    }

    /// Stops saying what we said on `topic`; nothing if we did not.
    ///
    /// Without [`Topic::Peer`] others take us for gone, whatever else we publish.
    pub async fn withdraw(&self, topic: &Topic) {
        let key = topic.key();
        let delete = |chitchat: &mut chitchat::Chitchat| {
            let state = chitchat.self_node_state();
            if state.contains_key(&key) {
                state.delete(&key);
            }
        };
        self.inner.chitchat.with_chitchat(delete).await;
        self.inner.shared.wake.notify_one();
    }

    /// Stops saying anything: others take us for gone as soon as they hear of it.
    ///
    /// The farewell is one message to each neighbour, in the outbox when this returns; it needs no
    /// answer, so the connections may be closed once it is on its way.
    pub async fn withdraw_all(&self) {
        let Inner {
            shared, chitchat, ..
        } = &*self.inner;
        let delete = |state: &mut chitchat::Chitchat| {
            delete_all(state.self_node_state());
            push_own(state, shared, chitchat);
        };
        chitchat.with_chitchat(delete).await;
    }

    /// Takes a message that came over the control connection to the neighbour `from`.
    ///
    /// Never waits; a message that is no gossip, or finds too many waiting, is dropped and counted.
    pub fn handle_message(&self, from: PeerName, bytes: Vec<u8>) {
        self.inner.shared.receive(from, bytes);
    }

    /// Sets whom we have a control connection with. With new ones everything is exchanged at once.
    pub fn set_neighbours(&self, neighbours: BTreeSet<PeerName>) {
        for peer in self.inner.shared.set_neighbours(neighbours) {
            // Fails when chitchat has ended, which the task tells the node.
            let _ = self.inner.chitchat.gossip(address(peer));
        }
        self.inner.shared.wake.notify_one();
    }

    /// What was dropped, and how much was carried.
    pub fn counters(&self) -> Counters {
        self.inner.shared.counts.read()
    }
}

/// The entries to begin with as chitchat takes them, ours of [`Entry::Peer`] last: keys arrive in this
/// order, so whoever has that one has all.
fn encode_initial(
    config: &GossipConfig,
    mut initial: Vec<Entry>,
) -> Result<Vec<(String, String)>, StartError> {
    if config.cluster.len() > MAX_CLUSTER {
        return Err(StartError::Cluster(config.cluster.len()));
    }
    if config.interval.is_zero() {
        return Err(StartError::Interval);
    }
    if initial.len() > MAX_ENTRIES {
        return Err(StartError::TooMany(initial.len()));
    }
    initial.sort_by_key(|entry| entry.topic() == Topic::Peer);
    let encoded = initial.iter().map(Entry::encode);
    Ok(encoded.collect::<Result<_, _>>()?)
}

async fn spawn(
    us: Run,
    cluster: String,
    initial: Vec<(String, String)>,
    inbox: &Inbox,
) -> Result<ChitchatHandle, StartError> {
    let config = ChitchatConfig {
        chitchat_id: us.id(),
        cluster_id: cluster,
        gossip_interval: UPKEEP,
        listen_addr: address(us.name),
        seed_nodes: Vec::new(),
        failure_detector_config: FailureDetectorConfig {
            phi_threshold: 8.0,
            sampling_window_size: SAMPLES,
            max_interval: GRACE,
            initial_interval: Duration::from_secs(10),
            dead_node_grace_period: GRACE,
        },
        marked_for_deletion_grace_period: GRACE,
        catchup_callback: None,
        extra_liveness_predicate: None,
    };
    let spawned = spawn_chitchat(config, initial, inbox).await;
    spawned.map_err(|error| StartError::Chitchat(error.into()))
}

/// Deletes our keys, the one that makes us known first: it alone must fit into the farewell.
fn delete_all(state: &mut chitchat::NodeState) {
    let mut keys: Vec<String> = state.key_values().map(|(key, _)| key.to_owned()).collect();
    keys.sort_by_key(|key| key != key::PEER);
    for key in keys {
        state.delete(&key);
    }
}

/// How often chitchat itself wakes up: it collects tombstones and nodes long dead. It also speaks to
/// three nodes then, of which our transport lets neighbours through; our own timer does the gossiping.
const UPKEEP: Duration = Duration::from_secs(10);
/// How long tombstones and dead nodes are remembered, so that peers cut off for less miss nothing.
const GRACE: Duration = Duration::from_secs(5 * 60);
/// Intervals of which chitchat's failure detector takes the mean. It decides only when a node is
/// forgotten (who is live is decided in `view.rs`): a burst of messages makes the mean small, and the
/// fewer samples, the sooner that is over.
const SAMPLES: usize = 16;
/// Changes waiting for the node; more stay a difference that is not worked out yet.
const CHANGES: usize = 1024;
