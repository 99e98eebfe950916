//! The task that keeps gossip going and tells what it learned.
//!
//! chitchat answers when it is spoken to; when to speak, and what to make of what was heard, is
//! decided here:
//!
//! * every second a full exchange with one neighbour, in turn: repairs whatever was lost, and carries
//!   heartbeats on;
//! * [`DEBOUNCE`] after a change of our own, or one a neighbour told us, the change itself to all
//!   neighbours that have not heard it: a change crosses a line of peers at one debounce a hop;
//! * a full exchange at once with a neighbour that told us something we have no basis for, or whose
//!   message was so long that there is more.
//!
//! Invariants: nothing is sent to anybody but neighbours; at most one round per [`DEBOUNCE`]; while the
//! node does not take its [`Change`]s no new ones are made (they are the difference to what was told,
//! so nothing is lost), and gossip goes on.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use chitchat::{Chitchat, ChitchatHandle, DeletionStatus, NodeState, VersionedValue};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tracing::warn;
use weft_wire::PeerName;

use crate::Change;
use crate::envelope::{Holding, Push, STATUS_DELETED, STATUS_EXPIRING, STATUS_SET, Set};
use crate::run::{Run, address};
use crate::transport::{Heard, Shared};
use crate::view::{News, States, View};

/// How long changes are gathered before they are passed on.
pub(crate) const DEBOUNCE: Duration = Duration::from_millis(25);

/// What the task works with; made by [`crate::Gossip::start`].
pub(crate) struct Task {
    pub(crate) us: Run,
    pub(crate) shared: Arc<Shared>,
    pub(crate) chitchat: Arc<ChitchatHandle>,
    pub(crate) changes: mpsc::Sender<Change>,
    pub(crate) view: View,
    /// Changes the node has not taken yet.
    pub(crate) pending: VecDeque<Change>,
    /// The neighbour of the last full exchange.
    pub(crate) last: Option<PeerName>,
}

impl Task {
    /// Runs until chitchat ends, the node stops listening, or `alive` says that no handle is left.
    pub(crate) async fn run(mut self, every: Duration, mut alive: oneshot::Receiver<Infallible>) {
        let ended = self.chitchat.termination_watcher();
        tokio::pin!(ended);
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut due: Option<Instant> = None;
        let (shared, changes) = (Arc::clone(&self.shared), self.changes.clone());
        loop {
            tokio::select! {
                outcome = &mut ended => {
                    warn!(error = ?outcome.err(), "gossip ended by itself");
                    return self.stopped().await;
                }
                _ = &mut alive => break,
                _ = ticks.tick() => {
                    self.exchange_in_turn();
                    self.look().await;
                }
                () = shared.wake.notified(), if due.is_none() => {
                    due = Some(Instant::now() + DEBOUNCE);
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    due = None;
                    self.look().await;
                }
                permit = changes.reserve(), if !self.pending.is_empty() => {
                    let Ok(permit) = permit else { break };
                    if let Some(change) = self.pending.pop_front() {
                        permit.send(change);
                    }
                    // What came up while the node was busy.
                    if self.pending.is_empty() {
                        shared.wake.notify_one();
                    }
                }
            }
        }
        // Fails if it has ended already, which is what we want.
        let _ = self.chitchat.initiate_shutdown();
    }

    /// Tells the node that nothing is known any more, and why.
    async fn stopped(mut self) {
        self.pending.extend(self.view.end());
        self.pending.push_back(Change::Stopped);
        for change in self.pending {
            if self.changes.send(change).await.is_err() {
                return;
            }
        }
    }

    fn exchange_in_turn(&mut self) {
        let neighbours = self.shared.neighbours();
        let after = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let mut behind = neighbours.range((after, Bound::Unbounded));
        self.last = behind.next().or_else(|| neighbours.first()).copied();
        if let Some(peer) = self.last {
            self.exchange(peer);
        }
    }

    fn exchange(&self, peer: PeerName) {
        // Fails when chitchat has ended, which is noticed elsewhere.
        let _ = self.chitchat.gossip(address(peer));
    }

    /// Takes in what changed, passes it on, and finds what is to be told.
    async fn look(&mut self) {
        let heard = self.shared.take_heard();
        let chitchat = self.chitchat.chitchat();
        let mut chitchat = chitchat.lock().await;
        let now = Instant::now();
        let news = self.view.observe(chitchat.node_states(), now);
        self.take_census();
        if self.pending.is_empty() {
            let neighbours = self.shared.neighbours();
            let told = self.view.tell(chitchat.node_states(), &neighbours, now);
            self.shared.counts.ignored.add(told.ignored);
            self.pending.extend(told.changes);
        }
        push_own(&mut chitchat, &self.shared, &self.chitchat);
        if !news.is_empty() {
            self.relay(&news, &heard, chitchat.node_states());
        }
        drop(chitchat);
        for (peer, hint) in heard {
            if hint.behind || (hint.long && !news.is_empty()) {
                self.exchange(peer);
            }
        }
    }

    fn take_census(&self) {
        let mut census = self.shared.census();
        let us = (self.us, Holding::default());
        census.replace(self.view.holdings().chain([us]).collect());
    }

    /// Passes on what neighbours told us to those they do not reach themselves.
    fn relay(&self, news: &[News], heard: &Heard, states: &States) {
        let has_it = |peer: PeerName| {
            let told_by = |sender| sender == peer || self.view.is_linked(sender, peer);
            !heard.is_empty() && heard.keys().all(|sender| told_by(*sender))
        };
        let push = push_news(news, states).map(Push::into_bytes);
        for peer in self.shared.neighbours() {
            match &push {
                _ if has_it(peer) => {}
                Some(bytes) => self.shared.send(peer, bytes.clone()),
                None => self.exchange(peer),
            }
        }
    }
}

/// Tells all neighbours what is new of our own keys.
pub(crate) fn push_own(chitchat: &mut Chitchat, shared: &Shared, handle: &ChitchatHandle) {
    let us = Run::of(chitchat.self_chitchat_id());
    let state = chitchat.self_node_state();
    let since = shared.set_pushed(state.max_version());
    let Some(run) = us.filter(|_| since < state.max_version()) else {
        return;
    };
    let mut push = Push::default();
    let complete = add_news(&mut push, run, since, state);
    let bytes = push.into_bytes();
    for peer in shared.neighbours() {
        shared.send(peer, bytes.clone());
        if !complete {
            // Fails when chitchat has ended, which the task notices.
            let _ = handle.gossip(address(peer));
        }
    }
}

/// All news in one message; `None` if a full exchange must carry it: it is too much, or about a run
/// the others may never have heard of, which only a digest makes known.
fn push_news(news: &[News], states: &States) -> Option<Push> {
    let mut push = Push::default();
    for News { run, since } in news {
        let state = states.get(&run.id())?;
        let follows =
            *since > 0 && *since < state.max_version() && state.last_gc_version() <= *since;
        if !follows || !add_news(&mut push, *run, *since, state) {
            return None;
        }
    }
    Some(push)
}

fn add_news(push: &mut Push, run: Run, since: u64, state: &NodeState) -> bool {
    let mut fresh: Vec<(&str, &VersionedValue)> = state
        .key_values_including_deleted()
        .filter(|(_, value)| value.version > since)
        .collect();
    fresh.sort_unstable_by_key(|(_, value)| value.version);
    let sets = fresh.into_iter().map(|(key, value)| Set {
        key,
        value: &value.value,
        version: value.version,
        status: match value.status {
            DeletionStatus::Set => STATUS_SET,
            DeletionStatus::Deleted(_) => STATUS_DELETED,
            DeletionStatus::DeleteAfterTtl(_) => STATUS_EXPIRING,
        },
    });
    push.add(run, state.last_gc_version(), since, sets)
}
