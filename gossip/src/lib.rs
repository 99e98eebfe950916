//! Gossip: what each peer says of itself, made known to all, over the control connections.
//!
//! A machine like the others: messages of neighbours go in, messages for neighbours and [`Change`]s
//! come out; nothing here opens a socket, reads a clock or waits. `store.rs` keeps what every run of
//! every peer wrote, `view.rs` turns it into the changes of a closed set of entries (`key.rs`),
//! `engine.rs` decides when to speak, `exchange.rs` finds what a neighbour lacks, `message.rs` has the
//! bytes.
//!
//! ```text
//!   node ── publish/withdraw ──► store ──► view ──► Change ──► node
//!                                  ▲
//!            neighbours ◄── messages, to and fro ──► engine
//! ```
//!
//! Invariants: a peer's keys are written by that peer alone; nothing goes to anybody but neighbours;
//! no message, whatever is in it, ends gossip or makes it grow beyond its bounds; what is told is
//! always the difference to what was told before.
//!
//! Start reading with [`Gossip`], then `view.rs`.
#![forbid(unsafe_code)]

mod counters;
mod engine;
mod exchange;
mod key;
mod links;
mod message;
mod run;
mod store;
#[cfg(test)]
mod tests;
mod text;
mod view;

use thiserror::Error;
use weft_wire::PeerName;

pub use counters::Counters;
pub use engine::{DEBOUNCE, Event, Gossip, TICK};
pub use key::{
    Binding, EncodeEntryError, Entry, Link, MAX_KEY, MAX_VALUE, ParseEntryError, PeerInfo, Topic,
};
pub use links::Links;
pub use view::SILENCE;

/// The most entries a peer may publish, and the most that are shown of one.
pub const MAX_ENTRIES: usize = 20_000;

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
    /// The peer left, or was out of reach for [`SILENCE`]. All it said was withdrawn before.
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
