//! What electors say to each other and to those they watch, and the bytes of it.
//!
//! The number is that of the ruling under way, one more than there were. Whatever a peer asks for is
//! repeated until it is answered, so each may be lost.

use weft_wire::codec::{Reader, Writer};
use weft_wire::{Malformed, PeerName};

use super::{
    bounded, read_addr, read_addrs, read_ballot, read_peers, strange, unknown, write_addr,
    write_addrs, write_ballot, write_peers,
};
use crate::addr::{Addr, Family};
use crate::consensus::Ballot;
use crate::council::{MAX_SPANS, MAX_TAKEN, Ruling};
use crate::digest::Digest;
use crate::ring::MAX_ELECTORS;

/// One of these messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Council {
    /// Acknowledge what I own.
    Ask(Ask),
    /// Acknowledged; and whether to tell which addresses are in use.
    Acked { nonce: u32, tell: bool },
    /// Not acknowledged, because a ruling is under way that may be about what the asker owns.
    Refused { nonce: u32 },
    /// These addresses are in use here; the mark stands for them.
    Used { mark: u64, addrs: Vec<Addr> },
    /// Promise to accept nothing below this ballot; and send your ring if it is not the one of this
    /// digest.
    Prepare {
        number: u32,
        ballot: Ballot,
        digest: Digest,
    },
    /// Promised; and what was accepted before.
    Promise {
        number: u32,
        ballot: Ballot,
        accepted: Option<(Ballot, Ruling)>,
    },
    /// Accept this ruling.
    Accept {
        number: u32,
        ballot: Ballot,
        ruling: Ruling,
    },
    /// Accepted; and which addresses the peers taken over had in use.
    Accepted {
        number: u32,
        ballot: Ballot,
        used: Vec<Addr>,
    },
    /// A higher ballot stands against yours.
    Outbid {
        number: u32,
        ballot: Ballot,
        promised: Ballot,
    },
}

/// A question for acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) nonce: u32,
    /// Of what the asker owns by its ring, and of who the electors are.
    pub(crate) digest: Digest,
    /// The asker cannot use all it owns, so an elector that knows otherwise sends its ring.
    pub(crate) urgent: bool,
    /// The asker would be an elector.
    pub(crate) willing: bool,
    /// Stands for the addresses in use at the asker.
    pub(crate) mark: u64,
}

impl Council {
    pub(super) fn write(&self, w: &mut Writer) {
        w.u8(self.kind());
        match self {
            Self::Ask(ask) => {
                w.u32(ask.nonce).raw(&ask.digest.to_bytes());
                w.bool(ask.urgent).bool(ask.willing).u64(ask.mark);
            }
            Self::Acked { nonce, tell } => {
                w.u32(*nonce).bool(*tell);
            }
            Self::Refused { nonce } => {
                w.u32(*nonce);
            }
            Self::Used { mark, addrs } => write_addrs(w.u64(*mark), addrs),
            Self::Prepare {
                number,
                ballot,
                digest,
            } => {
                write_ballot(w.u32(*number), *ballot);
                w.raw(&digest.to_bytes());
            }
            Self::Promise {
                number,
                ballot,
                accepted,
            } => {
                write_ballot(w.u32(*number), *ballot);
                write_voted(w, accepted.as_ref());
            }
            Self::Accept {
                number,
                ballot,
                ruling,
            } => {
                write_ballot(w.u32(*number), *ballot);
                write_ruling(w, ruling);
            }
            Self::Accepted {
                number,
                ballot,
                used,
            } => {
                write_ballot(w.u32(*number), *ballot);
                write_addrs(w, used);
            }
            Self::Outbid {
                number,
                ballot,
                promised,
            } => {
                write_ballot(w.u32(*number), *ballot);
                write_ballot(w, *promised);
            }
        }
    }

    pub(super) fn read(r: &mut Reader<'_>, family: Family) -> Result<Self, Malformed> {
        let kind = r.u8("kind of an elector's message")?;
        Ok(match kind {
            ASK => Self::Ask(Ask {
                nonce: r.u32("nonce")?,
                digest: Digest::from_bytes(r.array("ring digest")?),
                urgent: r.bool("urgent flag")?,
                willing: r.bool("willing flag")?,
                mark: r.u64("mark")?,
            }),
            ACKED => Self::Acked {
                nonce: r.u32("nonce")?,
                tell: r.bool("tell flag")?,
            },
            REFUSED => Self::Refused {
                nonce: r.u32("nonce")?,
            },
            USED => Self::Used {
                mark: r.u64("mark")?,
                addrs: read_addrs(r, family)?,
            },
            other => Self::read_vote(other, r, family)?,
        })
    }

    fn read_vote(kind: u8, r: &mut Reader<'_>, family: Family) -> Result<Self, Malformed> {
        let number = r.u32("number of the ruling")?;
        let ballot = read_ballot(r)?;
        Ok(match kind {
            PREPARE => Self::Prepare {
                number,
                ballot,
                digest: Digest::from_bytes(r.array("ring digest")?),
            },
            PROMISE => Self::Promise {
                number,
                ballot,
                accepted: read_voted(r, family)?,
            },
            ACCEPT => Self::Accept {
                number,
                ballot,
                ruling: read_ruling(r, family)?,
            },
            ACCEPTED => Self::Accepted {
                number,
                ballot,
                used: read_addrs(r, family)?,
            },
            OUTBID => Self::Outbid {
                number,
                ballot,
                promised: read_ballot(r)?,
            },
            other => return Err(unknown("kind of an elector's message", other.into())),
        })
    }

    const fn kind(&self) -> u8 {
        match self {
            Self::Ask(_) => ASK,
            Self::Acked { .. } => ACKED,
            Self::Refused { .. } => REFUSED,
            Self::Used { .. } => USED,
            Self::Prepare { .. } => PREPARE,
            Self::Promise { .. } => PROMISE,
            Self::Accept { .. } => ACCEPT,
            Self::Accepted { .. } => ACCEPTED,
            Self::Outbid { .. } => OUTBID,
        }
    }
}

pub(crate) fn write_voted(w: &mut Writer, accepted: Option<&(Ballot, Ruling)>) {
    w.bool(accepted.is_some());
    if let Some((ballot, ruling)) = accepted {
        write_ballot(w, *ballot);
        write_ruling(w, ruling);
    }
}

pub(crate) fn read_voted(
    r: &mut Reader<'_>,
    family: Family,
) -> Result<Option<(Ballot, Ruling)>, Malformed> {
    Ok(match r.bool("accepted flag")? {
        true => Some((read_ballot(r)?, read_ruling(r, family)?)),
        false => None,
    })
}

fn write_ruling(w: &mut Writer, ruling: &Ruling) {
    write_peers(w, ruling.taken.iter());
    w.peer(ruling.heir);
    write_peers(w, ruling.electors.iter());
    w.u32(u32::try_from(ruling.spans.len()).unwrap_or(u32::MAX));
    for (first, last) in &ruling.spans {
        write_addr(write_addr(w, *first), *last);
    }
}

fn read_ruling(r: &mut Reader<'_>, family: Family) -> Result<Ruling, Malformed> {
    let taken = read_peers(r, MAX_TAKEN)?.into_iter().collect();
    let heir: PeerName = r.peer("heir")?;
    let electors: std::collections::BTreeSet<_> =
        read_peers(r, MAX_ELECTORS)?.into_iter().collect();
    bounded(u32::from(electors.is_empty()), 0, "ruling without electors")?;
    let count = bounded(r.u32("ranges taken over")?, MAX_SPANS, "ranges taken over")?;
    let mut spans: Vec<(Addr, Addr)> = Vec::new();
    for _ in 0..count {
        let first = read_addr(r, family, "first address taken over")?;
        let last = read_addr(r, family, "last address taken over")?;
        if last < first || spans.last().is_some_and(|(_, before)| *before >= first) {
            return Err(strange("order of ranges taken over", first));
        }
        spans.push((first, last));
    }
    Ok(Ruling {
        taken,
        heir,
        electors,
        spans,
    })
}

const ASK: u8 = 1;
const ACKED: u8 = 2;
const REFUSED: u8 = 3;
const USED: u8 = 4;
const PREPARE: u8 = 5;
const PROMISE: u8 = 6;
const ACCEPT: u8 = 7;
const ACCEPTED: u8 = 8;
const OUTBID: u8 = 9;

#[cfg(test)]
pub(super) fn samples(
    ring: crate::RingId,
    digest: Digest,
    [first, last]: [Addr; 2],
) -> Vec<super::Message> {
    let peer = |n| PeerName::from_bytes([2, 0, 0, 0, 0, n]);
    let ballot = Ballot {
        round: 9,
        proposer: peer(1),
    };
    let ruling = Ruling {
        taken: [peer(2), peer(3)].into(),
        heir: peer(1),
        electors: [peer(1), peer(4)].into(),
        spans: vec![(first, last)],
    };
    let ask = Ask {
        nonce: 1,
        digest,
        urgent: true,
        willing: false,
        mark: 8,
    };
    let addrs = vec![first, last];
    let number = 3;
    let says = [
        Council::Ask(ask),
        Council::Acked {
            nonce: 1,
            tell: true,
        },
        Council::Used {
            mark: 8,
            addrs: addrs.clone(),
        },
        Council::Prepare {
            number,
            ballot,
            digest,
        },
        Council::Promise {
            number,
            ballot,
            accepted: None,
        },
        Council::Promise {
            number,
            ballot,
            accepted: Some((ballot, ruling.clone())),
        },
        Council::Accept {
            number,
            ballot,
            ruling,
        },
        Council::Accepted {
            number,
            ballot,
            used: addrs,
        },
        Council::Outbid {
            number,
            ballot,
            promised: ballot,
        },
    ];
    let message = |say| super::Message::Council { ring, say };
    says.into_iter().map(message).collect()
}
