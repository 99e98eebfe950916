//! How ranges of a peer become another's without its doing: by a ruling of the electors, or by an
//! operator's word.

use std::collections::BTreeSet;

use weft_wire::PeerName;

use super::{Entry, Ring, TAKEOVER_STEP};
use crate::addr::Span;
use crate::digest::{Digest, Fnv};

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
    pub(crate) fn take_over(&mut self, from: PeerName, to: PeerName, by: Takeover) -> u128 {
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
    /// took over. What was inside of them is forgotten, so it comes out the same in every ring.
    pub(crate) fn rule(
        &mut self,
        number: u32,
        electors: &BTreeSet<PeerName>,
        spans: &[Span],
        heir: PeerName,
        cover: bool,
    ) {
        self.roll.rule(number, electors);
        let entry = Entry {
            ruling: number,
            version: 1,
            owner: heir,
            stamp: 0,
            free: 0,
        };
        let spans = spans.iter().map(|span| span.intersect(self.pool.span()));
        let spans: Vec<_> = spans.filter(|span| !span.is_empty()).collect();
        for span in &spans {
            self.cut_at(span.end);
            self.entries.retain(|token, _| !span.contains(*token));
            self.entries.insert(span.first(), entry);
        }
        if cover && !spans.is_empty() {
            self.covers.add(&spans, number);
        }
        self.check();
    }

    /// Who owns any of these ranges.
    pub(crate) fn owners_within(&self, spans: &[Span]) -> BTreeSet<PeerName> {
        let inside = |other: Span| spans.iter().any(|span| !span.intersect(other).is_empty());
        let ranges = self.ranges().filter(|(span, _)| inside(*span));
        ranges.map(|(_, entry)| entry.owner).collect()
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

    /// Stands for what a peer owns and who the electors are: what must be known of a peer to
    /// acknowledge what it owns.
    pub(crate) fn digest_of_part(&self, owner: PeerName) -> Digest {
        let hash = Fnv::new().write(&self.id.bits.to_be_bytes());
        let mut hash = self.digest_of_rulings(hash).write(b"part");
        for (span, entry) in self.ranges().filter(|(_, entry)| entry.owner == owner) {
            hash = hash
                .write(&span.start.to_be_bytes())
                .write(&span.end.to_be_bytes())
                .write(&entry.ruling.to_be_bytes())
                .write(&entry.version.to_be_bytes());
        }
        Digest(hash.finish())
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
