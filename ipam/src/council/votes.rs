//! What a ruling is, what an elector must never forget of its votes, and the bytes of that.

use std::collections::BTreeSet;

use weft_wire::codec::{Reader, Writer};
use weft_wire::{Malformed, PeerName};

use crate::addr::{Addr, Family, Span};
use crate::consensus::Acceptor;
use crate::message::{read_ballot, read_id, read_voted, write_ballot, write_id, write_voted};
use crate::ring::RingId;

/// What electors agree upon: all of it, so that whoever carries a ruling out does the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruling {
    /// The peers that are taken over, and are no electors any more.
    pub taken: BTreeSet<PeerName>,
    /// Who gets their ranges.
    pub heir: PeerName,
    /// The electors from here on.
    pub electors: BTreeSet<PeerName>,
    /// First and last address of each range that is taken over, in order.
    pub spans: Vec<(Addr, Addr)>,
}

impl Ruling {
    pub(crate) fn ranges(&self) -> Vec<Span> {
        let spans = self.spans.iter();
        spans
            .map(|(first, last)| Span::between(*first, *last))
            .collect()
    }

    /// Whether it takes a peer over, or anything of what that owns.
    pub(crate) fn concerns(&self, peer: PeerName, owned: &[Span]) -> bool {
        let ranges = self.ranges();
        let meets = |span: &Span| ranges.iter().any(|r| !r.intersect(*span).is_empty());
        self.taken.contains(&peer) || owned.iter().any(meets)
    }
}

/// What an elector must never forget.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Votes {
    /// The ring, and the number of the ruling under way.
    pub about: Option<(RingId, u32)>,
    /// What it promised and accepted.
    pub acceptor: Acceptor<Ruling>,
}

impl Votes {
    pub(crate) fn write(&self, w: &mut Writer) {
        w.bool(self.about.is_some());
        if let Some((ring, number)) = self.about {
            write_id(w, ring).u32(number);
        }
        w.bool(self.acceptor.promised.is_some());
        if let Some(ballot) = self.acceptor.promised {
            write_ballot(w, ballot);
        }
        write_voted(w, self.acceptor.accepted.as_ref());
    }

    pub(crate) fn read(r: &mut Reader<'_>, family: Family) -> Result<Self, Malformed> {
        let about = match r.bool("votes flag")? {
            true => Some((read_id(r)?, r.u32("number of the ruling")?)),
            false => None,
        };
        let promised = match r.bool("promise flag")? {
            true => Some(read_ballot(r)?),
            false => None,
        };
        let accepted = read_voted(r, family)?;
        Ok(Self {
            about,
            acceptor: Acceptor { promised, accepted },
        })
    }
}
