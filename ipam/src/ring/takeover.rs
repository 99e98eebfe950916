//! How ranges of a peer become another's without its doing: by a ruling of the electors, or by an
//! operator's word.

use std::collections::BTreeSet;

use weft_wire::PeerName;

use super::{Entry, Ring, TAKEOVER_STEP};
use crate::addr::{Addr, Span};
use crate::digest::Fnv;

/// Who gives a peer's ranges to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takeover {
    /// The peer itself, which knows its last version.
    Owner,
    /// Another peer, told by the operator that the owner is gone for good.
    Stranger,
}

impl Ring {
    /// Makes every range of one peer another's; says how many addresses that were.
    pub(crate) fn take_over(&mut self, from: PeerName, to: PeerName, by: Takeover) -> u64 {
        let taken = self.owned_by(from).into_iter().map(Span::size).sum();
        let step = match by {
            Takeover::Owner => 1,
            Takeover::Stranger => TAKEOVER_STEP,
        };
        for entry in self.entries.values_mut().filter(|e| e.owner == from) {
            *entry = entry.owned_anew(to, step);
        }
        taken
    }

    /// An elector is gone for good and counts no more; so says `by`, or the operator through it.
    pub(crate) fn vouch(&mut self, peer: PeerName, by: PeerName) {
        self.roll.vouch(peer, by);
    }

    /// A ruling was agreed upon: who the electors are from here on, and whose the ranges are that it
    /// took over. Each of `spans` starts and ends where a range does.
    pub(crate) fn rule(
        &mut self,
        number: u32,
        electors: &BTreeSet<PeerName>,
        spans: &[Span],
        heir: PeerName,
        cover: bool,
    ) {
        self.roll.rule(number, electors);
        let inside = |token: &Addr| spans.iter().any(|span| span.contains(*token));
        for (token, entry) in &mut self.entries {
            if inside(token) && entry.ruling < number {
                *entry = Entry {
                    ruling: number,
                    version: 1,
                    owner: heir,
                    stamp: 0,
                    free: 0,
                };
            }
        }
        if cover && !spans.is_empty() {
            self.covers.add(spans, number);
        }
        self.check();
    }

    /// Whom rulings took ranges from since the ring was like `before`.
    pub(crate) fn losers(&self, before: &Self) -> BTreeSet<PeerName> {
        let known = before.roll.rulings();
        let ruled = self.ranges().filter(|(_, entry)| entry.ruling > known);
        let ruled: Vec<_> = ruled.map(|(span, _)| span).collect();
        let old = before.ranges();
        let taken = old.filter(|(span, _)| ruled.iter().any(|r| !r.intersect(*span).is_empty()));
        taken.map(|(_, entry)| entry.owner).collect()
    }

    /// Drops what was granted before its range was taken over.
    pub(super) fn drop_void(&mut self) {
        let covers = &self.covers;
        self.entries
            .retain(|token, entry| entry.ruling >= covers.at(token.position()));
    }

    pub(super) fn digest_of_rulings(&self, hash: Fnv) -> Fnv {
        let mut hash = hash.write(&self.roll.rulings().to_be_bytes());
        for elector in self.roll.named() {
            hash = hash.write(&elector.to_bytes());
        }
        for (peer, by) in self.roll.gone() {
            hash = hash.write(b"gone").write(&peer.to_bytes());
            hash = hash.write(&by.to_bytes());
        }
        for (span, ruling) in self.covers.iter() {
            hash = hash.write(b"cover").write(&ruling.to_be_bytes());
            hash = hash.write(&span.start.to_be_bytes());
            hash = hash.write(&span.end.to_be_bytes());
        }
        hash
    }
}
