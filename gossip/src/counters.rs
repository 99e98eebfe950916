//! What gossip dropped, counted: each field ends as a metric.
//!
//! Nothing that is dropped here is lost for good: gossip repeats. A count that keeps growing says
//! which bound is hit, or that somebody sends what no weft sends.

/// How often each thing happened since the start of this [`crate::Gossip`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages handed to the control connections.
    pub sent: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Messages from neighbours that were understood.
    pub received: u64,
    /// Messages from neighbours that are no gossip, or damaged.
    pub undecodable: u64,
    /// Answers not given, because the neighbour had as many as one gets in a second.
    pub throttled: u64,
    /// Blocks and entries left out: in our name, or more than there is room for.
    pub refused: u64,
    /// Entries of peers that are of a kind this version does not know, malformed, or too many.
    pub ignored: u64,
}
