//! Who the electors are, as of how many rulings.
//!
//! Ruling `k` is agreed by a majority of the electors that were after ruling `k - 1`, and says who
//! they are from then on, so there is one set for each number and the larger number is the later
//! state. Beside that stand electors that an operator vouched for to be gone for good, since the
//! last ruling: they count no more.
//!
//! Invariant: `merge` is total, commutative, associative and idempotent; there is always an elector.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use weft_wire::PeerName;

/// The most electors there are.
pub(crate) const MAX_ELECTORS: usize = 7;

/// The electors of a ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Roll {
    rulings: u32,
    electors: BTreeSet<PeerName>,
    /// Electors that are gone for good, and who was told so.
    gone: BTreeMap<PeerName, PeerName>,
}

impl Roll {
    /// At the birth: the first founders.
    pub(crate) fn born(founders: &[PeerName]) -> Self {
        Self {
            rulings: 0,
            electors: founders.iter().copied().take(MAX_ELECTORS).collect(),
            gone: BTreeMap::new(),
        }
    }

    /// From what came over the network or from the disk; `None` if there is no elector or too many,
    /// or one is gone that is none.
    pub(crate) fn from_parts(
        rulings: u32,
        electors: BTreeSet<PeerName>,
        gone: BTreeMap<PeerName, PeerName>,
    ) -> Option<Self> {
        let fits = !electors.is_empty() && electors.len() <= MAX_ELECTORS;
        let known = gone.keys().all(|peer| electors.contains(peer));
        (fits && known).then_some(Self {
            rulings,
            electors,
            gone,
        })
    }

    /// How many rulings there were.
    pub(crate) const fn rulings(&self) -> u32 {
        self.rulings
    }

    /// The electors by the last ruling, those that are gone included.
    pub(crate) const fn named(&self) -> &BTreeSet<PeerName> {
        &self.electors
    }

    pub(crate) const fn gone(&self) -> &BTreeMap<PeerName, PeerName> {
        &self.gone
    }

    /// The electors that count. When all are gone, whoever was told so takes their place.
    pub(crate) fn electors(&self) -> BTreeSet<PeerName> {
        let left = self.electors.iter();
        let left: BTreeSet<_> = left
            .filter(|peer| !self.gone.contains_key(peer))
            .copied()
            .collect();
        if left.is_empty() {
            return self.gone.values().copied().collect();
        }
        left
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        match self.rulings.cmp(&other.rulings) {
            Ordering::Less => self.clone_from(other),
            Ordering::Greater => {}
            Ordering::Equal => {
                // Equal by agreement; the smaller only so that the order of merging never matters.
                match self.electors.cmp(&other.electors) {
                    Ordering::Less => {}
                    Ordering::Greater => self.clone_from(other),
                    Ordering::Equal => {
                        for (peer, by) in &other.gone {
                            let ours = self.gone.entry(*peer).or_insert(*by);
                            *ours = (*ours).min(*by);
                        }
                    }
                }
            }
        }
    }

    /// A ruling was agreed upon.
    pub(crate) fn rule(&mut self, number: u32, electors: &BTreeSet<PeerName>) {
        let ruled = Self {
            rulings: number,
            electors: electors.clone(),
            gone: BTreeMap::new(),
        };
        if number > self.rulings {
            *self = ruled;
        }
    }

    /// An elector is gone for good; so says `by`, or the operator through it.
    pub(crate) fn vouch(&mut self, peer: PeerName, by: PeerName) {
        if self.electors.contains(&peer) {
            self.gone.entry(peer).or_insert(by);
        }
    }
}

/// How many of so many electors agree upon a ruling.
pub(crate) const fn majority(electors: usize) -> usize {
    electors / 2 + 1
}

/// How many of so many electors are enough to have one in every majority.
pub(crate) const fn blocking(electors: usize) -> usize {
    electors.saturating_sub(majority(electors)) + 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn peer(n: u8) -> PeerName {
        PeerName::from_bytes([2, 0, 0, 0, 0, n])
    }

    fn any_roll() -> impl Strategy<Value = Roll> {
        let names = || proptest::collection::btree_set(1..5_u8, 1..4);
        (0..3_u32, names(), names(), 1..5_u8).prop_map(|(rulings, electors, gone, by)| {
            let electors: BTreeSet<_> = electors.into_iter().map(peer).collect();
            let mut roll = Roll::from_parts(rulings, electors, BTreeMap::new()).unwrap();
            for n in gone {
                roll.vouch(peer(n), peer(by));
            }
            roll
        })
    }

    fn merged(a: &Roll, b: &Roll) -> Roll {
        let mut roll = a.clone();
        roll.merge(b);
        roll
    }

    proptest! {
        #[test]
        fn merging_does_not_hang_on_order_grouping_or_repetition(
            a in any_roll(), b in any_roll(), c in any_roll(),
        ) {
            prop_assert_eq!(merged(&a, &b), merged(&b, &a));
            prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
            prop_assert_eq!(merged(&a, &a), a.clone());
            prop_assert!(!merged(&a, &b).electors().is_empty());
        }
    }

    #[test]
    fn a_blocking_set_and_a_majority_always_share_an_elector() {
        for n in 1..=MAX_ELECTORS {
            assert!(blocking(n) + majority(n) > n);
            assert!(blocking(n) - 1 + majority(n) <= n, "no more than needed");
        }
    }

    #[test]
    fn who_is_gone_counts_no_more_until_a_ruling_names_it_again() {
        let founders: Vec<_> = (1..=9).map(peer).collect();
        let mut roll = Roll::born(&founders);
        assert_eq!(roll.electors().len(), MAX_ELECTORS);
        roll.rule(1, &BTreeSet::from([peer(1), peer(2)]));
        roll.vouch(peer(1), peer(5));
        roll.vouch(peer(8), peer(5));
        assert_eq!(roll.electors(), BTreeSet::from([peer(2)]));
        roll.vouch(peer(2), peer(5));
        assert_eq!(roll.electors(), BTreeSet::from([peer(5)]));
        roll.rule(2, &BTreeSet::from([peer(1), peer(5)]));
        assert_eq!(roll.electors(), BTreeSet::from([peer(1), peer(5)]));
    }
}
