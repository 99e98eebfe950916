//! The bytes of a ring, in messages and on the disk.
//!
//! ```text
//!  | id (17) | founders | rulings (4), electors, gone | covers | entries | claims |
//! ```
//!
//! Every list is preceded by its length. Rings on a disk of the first format have neither rulings
//! nor covers; their electors are those of the birth.

use weft_wire::codec::{Reader, Writer};
use weft_wire::{Malformed, PeerName};

use super::{
    bounded, read_addr, read_id, read_peers, strange, unknown, write_addr, write_id, write_peers,
};
use crate::addr::{Addr, Cidr, Family};
use crate::ring::{
    Claim, Entry, MAX_CLAIMS, MAX_COVERS, MAX_ELECTORS, MAX_ENTRIES, MAX_FOUNDERS, Ring, RingError,
};
use crate::saved::SavedRing;

pub(crate) fn write_ring(w: &mut Writer, ring: &SavedRing) {
    write_peers(write_id(w, ring.id), ring.founders.iter());
    w.u32(ring.rulings);
    write_peers(w, ring.electors.iter());
    write_len(w, ring.gone.len());
    for (peer, by) in &ring.gone {
        w.peer(*peer).peer(*by);
    }
    write_len(w, ring.covers.len());
    for (first, last, ruling) in &ring.covers {
        write_addr(write_addr(w, *first), *last).u32(*ruling);
    }
    write_len(w, ring.entries.len());
    for (token, entry) in &ring.entries {
        write_addr(w, *token).u32(entry.ruling).u32(entry.version);
        w.peer(entry.owner).u32(entry.stamp).u32(entry.free);
    }
    write_len(w, ring.claims.len());
    for (addr, claimant, claim) in &ring.claims {
        write_addr(w, *addr).peer(*claimant);
        w.u32(claim.stamp).bool(claim.held);
    }
}

pub(crate) fn read_ring(r: &mut Reader<'_>, pool: Cidr) -> Result<Ring, Malformed> {
    let id = read_id(r)?;
    let founders = read_peers(r, MAX_FOUNDERS)?;
    let rulings = r.u32("number of rulings")?;
    let electors = read_peers(r, MAX_ELECTORS)?;
    let count = bounded(r.u32("electors gone")?, MAX_ELECTORS, "electors gone")?;
    let gone = (0..count).map(|_| Ok((r.peer("elector gone")?, r.peer("who was told so")?)));
    let gone = gone.collect::<Result<_, Malformed>>()?;
    let covers = read_covers(r, pool.family())?;
    let entries = read_entries(r, pool.family(), |r| r.u32("ruling"))?;
    let claims = read_claims(r, pool.family())?;
    let parts = SavedRing {
        id,
        founders,
        rulings,
        electors,
        gone,
        covers,
        entries,
        claims,
    };
    Ring::from_parts(pool, parts).map_err(malformed)
}

/// A ring of the first format on the disk.
pub(crate) fn read_first_ring(r: &mut Reader<'_>, pool: Cidr) -> Result<Ring, Malformed> {
    let id = read_id(r)?;
    let founders = read_peers(r, MAX_FOUNDERS)?;
    let entries = read_entries(r, pool.family(), |_| Ok(0))?;
    let claims = read_claims(r, pool.family())?;
    let parts = SavedRing {
        id,
        rulings: 0,
        electors: founders.iter().copied().take(MAX_ELECTORS).collect(),
        founders,
        gone: Vec::new(),
        covers: Vec::new(),
        entries,
        claims,
    };
    Ring::from_parts(pool, parts).map_err(malformed)
}

fn malformed(error: RingError) -> Malformed {
    match error {
        RingError::Start => unknown("first token of the ring", 0),
        RingError::Outside(token) => strange("token or claim outside of the pool", token),
        RingError::Order(token) => strange("token or claim out of order", token),
        RingError::Void(token) => strange("token of an old ruling", token),
        RingError::TooMany | RingError::Founders => unknown("founders of the ring", 0),
        RingError::Electors => unknown("electors of the ring", 0),
    }
}

fn read_entries(
    r: &mut Reader<'_>,
    family: Family,
    ruling: impl Fn(&mut Reader<'_>) -> Result<u32, Malformed>,
) -> Result<Vec<(Addr, Entry)>, Malformed> {
    let count = bounded(r.u32("ring size")?, MAX_ENTRIES, "ring")?;
    let mut entries = Vec::new();
    for _ in 0..count {
        let token = read_addr(r, family, "token")?;
        let entry = Entry {
            ruling: ruling(r)?,
            version: r.u32("ring entry version")?,
            owner: r.peer("ring entry owner")?,
            stamp: r.u32("ring entry stamp")?,
            free: r.u32("ring entry free count")?,
        };
        entries.push((token, entry));
    }
    Ok(entries)
}

fn read_covers(r: &mut Reader<'_>, family: Family) -> Result<Vec<(Addr, Addr, u32)>, Malformed> {
    let count = bounded(r.u32("number of covers")?, MAX_COVERS, "covers")?;
    let mut covers = Vec::new();
    for _ in 0..count {
        let first = read_addr(r, family, "first address covered")?;
        let last = read_addr(r, family, "last address covered")?;
        if last < first {
            return Err(strange("covered range", last));
        }
        covers.push((first, last, r.u32("ruling of a cover")?));
    }
    Ok(covers)
}

fn read_claims(
    r: &mut Reader<'_>,
    family: Family,
) -> Result<Vec<(Addr, PeerName, Claim)>, Malformed> {
    let count = bounded(r.u32("number of claims")?, MAX_CLAIMS, "claims")?;
    let mut claims = Vec::new();
    for _ in 0..count {
        let addr = read_addr(r, family, "claimed address")?;
        let claimant = r.peer("claimant")?;
        let claim = Claim {
            stamp: r.u32("claim stamp")?,
            held: r.bool("claim flag")?,
        };
        claims.push((addr, claimant, claim));
    }
    Ok(claims)
}

fn write_len(w: &mut Writer, len: usize) {
    w.u32(u32::try_from(len).unwrap_or(u32::MAX));
}
