//! What gossip dropped, counted: each field ends as a metric.
//!
//! Nothing that is dropped here is lost for good: gossip repeats. A count that keeps growing says
//! which bound is hit, or that somebody sends what no weft sends.

use std::sync::atomic::{AtomicU64, Ordering};

/// How often each thing happened since the start of this [`crate::Gossip`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages handed to the control connections.
    pub sent: u64,
    /// Messages for neighbours that were dropped because the outbox was full.
    pub outbox_full: u64,
    /// Messages from neighbours taken over by chitchat.
    pub received: u64,
    /// Messages from neighbours that were dropped because the inbox was full.
    pub inbox_full: u64,
    /// Messages from neighbours that are no gossip envelope, or a damaged one.
    pub undecodable: u64,
    /// Parts of envelopes left out: ids, keys or values no weft makes, or above a bound.
    pub refused: u64,
    /// Entries of peers that are of a kind this version does not know, malformed, or too many.
    pub ignored: u64,
}

/// The counting side of [`Counters`].
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) sent: Count,
    pub(crate) outbox_full: Count,
    pub(crate) received: Count,
    pub(crate) inbox_full: Count,
    pub(crate) undecodable: Count,
    pub(crate) refused: Count,
    pub(crate) ignored: Count,
}

/// One number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counts {
    pub(crate) fn read(&self) -> Counters {
        Counters {
            sent: self.sent.read(),
            outbox_full: self.outbox_full.read(),
            received: self.received.read(),
            inbox_full: self.inbox_full.read(),
            undecodable: self.undecodable.read(),
            refused: self.refused.read(),
            ignored: self.ignored.read(),
        }
    }
}
