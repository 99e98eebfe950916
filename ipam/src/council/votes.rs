//! What a ruling is, what an elector must never forget of its votes, and the bytes of that.

use std::collections::BTreeSet;

use weft_wire::codec::{Reader, Writer};
use weft_wire::{Malformed, PeerName};

use crate::addr::Addr;
use crate::consensus::Acceptor;
use crate::message::{
    bounded, read_ballot, read_id, read_voted, write_ballot, write_id, write_voted,
};
use crate::ring::{MAX_ENTRIES, RingId};

/// What electors agree upon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruling {
    /// The peers that are taken over, and are no electors any more.
    pub taken: BTreeSet<PeerName>,
    /// Who gets their ranges.
    pub heir: PeerName,
    /// The electors from here on.
    pub electors: BTreeSet<PeerName>,
}

/// What an elector must never forget.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Votes {
    /// The ring, and the number of the ruling under way.
    pub about: Option<(RingId, u32)>,
    /// What it promised and accepted.
    pub acceptor: Acceptor<Ruling>,
    /// First and last address of what the ruling accepted takes away, as we knew it.
    pub barred: Vec<(Addr, Addr)>,
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
        w.u32(u32::try_from(self.barred.len()).unwrap_or(u32::MAX));
        for (first, last) in &self.barred {
            w.u32(first.to_bits()).u32(last.to_bits());
        }
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let about = match r.bool("votes flag")? {
            true => Some((read_id(r)?, r.u32("number of the ruling")?)),
            false => None,
        };
        let promised = match r.bool("promise flag")? {
            true => Some(read_ballot(r)?),
            false => None,
        };
        let accepted = read_voted(r)?;
        let count = bounded(r.u32("barred ranges")?, MAX_ENTRIES, "barred ranges")?;
        let mut barred = Vec::new();
        for _ in 0..count {
            let first = Addr::from_bits(r.u32("first address barred")?);
            let last = Addr::from_bits(r.u32("last address barred")?);
            barred.push((first, last));
        }
        Ok(Self {
            about,
            acceptor: Acceptor { promised, accepted },
            barred,
        })
    }
}
