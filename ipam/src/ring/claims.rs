//! The claims in a ring: peers' word on addresses whose owner they cannot ask.

use std::collections::BTreeMap;

use weft_wire::PeerName;

use super::{GrantError, MAX_CLAIMS_TO_ADD, Ring, RingError};
use crate::addr::{Addr, Cidr};

/// A peer's word on one address. Ordered as claims are merged: the larger one wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// Grows with every change.
    pub stamp: u32,
    /// Whether a container of the claimant holds the address.
    pub held: bool,
}

/// Whose word on which address.
pub(crate) type Claims = BTreeMap<(Addr, PeerName), Claim>;

impl Ring {
    pub(crate) const fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Gives our word that a container here holds an address.
    ///
    /// # Errors
    /// There are as many claims as there may be.
    pub(crate) fn claim(&mut self, addr: Addr, us: PeerName) -> Result<(), GrantError> {
        if self.claims.len() >= MAX_CLAIMS_TO_ADD && !self.claims.contains_key(&(addr, us)) {
            return Err(GrantError::Full);
        }
        self.set_claim(addr, us, true);
        Ok(())
    }

    /// Takes our word back.
    pub(crate) fn withdraw(&mut self, addr: Addr, us: PeerName) {
        if self.is_claimed_by(addr, us) {
            self.set_claim(addr, us, false);
        }
    }

    pub(crate) fn is_claimed_by(&self, addr: Addr, peer: PeerName) -> bool {
        self.claims.get(&(addr, peer)).is_some_and(|c| c.held)
    }

    /// Everybody whose word stands on an address.
    pub(crate) fn claimants(&self, addr: Addr) -> impl Iterator<Item = PeerName> + use<'_> {
        let all = (addr, PeerName::from_bytes([0; 6]))..=(addr, PeerName::from_bytes([0xff; 6]));
        let held = self.claims.range(all).filter(|(_, claim)| claim.held);
        held.map(|((_, claimant), _)| *claimant)
    }

    fn set_claim(&mut self, addr: Addr, us: PeerName, held: bool) {
        let claim = self.claims.entry((addr, us));
        let claim = claim.or_insert(Claim { stamp: 0, held });
        claim.held = held;
        claim.stamp = claim.stamp.saturating_add(1);
    }
}

pub(super) fn check_claims(
    pool: Cidr,
    list: &[(Addr, PeerName, Claim)],
) -> Result<Claims, RingError> {
    let mut claims = Claims::new();
    for (addr, claimant, claim) in list {
        let key = (*addr, *claimant);
        if !pool.contains(*addr) {
            return Err(RingError::Outside(*addr));
        }
        if claims
            .last_key_value()
            .is_some_and(|(last, _)| *last >= key)
        {
            return Err(RingError::Order(*addr));
        }
        claims.insert(key, *claim);
    }
    Ok(claims)
}
