//! Which parts of the pool were taken over, and by which ruling the last time.
//!
//! A peer that is taken over may have granted parts of its ranges to others that nobody heard of.
//! Such a grant must not come back: the part that was taken is *covered*, and an entry of an
//! earlier ruling inside it is void wherever it comes from.
//!
//! A function from addresses to rulings, joined by taking the larger one, kept as a list of
//! disjoint parts. Invariants: parts are not empty, do not overlap, and neighbours of one ruling
//! are joined, so that equal functions are equal lists.

use std::collections::{BTreeMap, BTreeSet};

use crate::addr::{Position, Span};

/// The most parts there may be; up to 36 bytes each.
pub(crate) const MAX_COVERS: usize = 2_048;

/// What was taken over.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Covers {
    parts: BTreeMap<Span, u32>,
}

impl Covers {
    /// From parts in order; `None` if they are not, or overlap, or are empty.
    pub(crate) fn from_parts(parts: &[(Span, u32)]) -> Option<Self> {
        let apart = parts.is_sorted_by(|(a, _), (b, _)| a.end <= b.start);
        let real = parts.iter().all(|(s, ruling)| !s.is_empty() && *ruling > 0);
        (apart && real).then(|| Self::of(parts.iter().copied()))
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = (Span, u32)> + use<'_> {
        self.parts.iter().map(|(span, ruling)| (*span, *ruling))
    }

    pub(crate) fn len(&self) -> usize {
        self.parts.len()
    }

    /// The ruling that took an address over the last time; 0 if none did.
    pub(crate) fn at(&self, position: Position) -> u32 {
        let up_to = Span {
            start: position,
            end: Position::MAX,
        };
        let before = self.parts.range(..=up_to).next_back();
        before
            .filter(|(span, _)| position < span.end)
            .map_or(0, |(_, ruling)| *ruling)
    }

    pub(crate) fn add(&mut self, spans: &[Span], ruling: u32) {
        let more = spans.iter().map(|span| (*span, ruling));
        *self = Self::of(self.iter().chain(more).collect::<Vec<_>>());
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        if self != other {
            *self = Self::of(self.iter().chain(other.iter()).collect::<Vec<_>>());
        }
    }

    /// The larger ruling wherever parts overlap.
    fn of(parts: impl IntoIterator<Item = (Span, u32)>) -> Self {
        let mut starts: BTreeMap<Position, Vec<u32>> = BTreeMap::new();
        let mut ends: BTreeMap<Position, Vec<u32>> = BTreeMap::new();
        for (span, ruling) in parts {
            starts.entry(span.start).or_default().push(ruling);
            ends.entry(span.end).or_default().push(ruling);
        }
        let points: BTreeSet<_> = starts.keys().chain(ends.keys()).copied().collect();
        let mut over: BTreeMap<u32, usize> = BTreeMap::new();
        let mut joined: Vec<(Span, u32)> = Vec::new();
        let mut last = None;
        for point in points {
            if let (Some(start), Some((ruling, _))) = (last, over.last_key_value()) {
                let span = Span { start, end: point };
                match joined.last_mut() {
                    Some((before, same)) if before.end == start && same == ruling => {
                        before.end = point;
                    }
                    Some(_) | None => joined.push((span, *ruling)),
                }
            }
            for ruling in ends.remove(&point).into_iter().flatten() {
                if let Some(count) = over.get_mut(&ruling) {
                    *count -= 1;
                    if *count == 0 {
                        over.remove(&ruling);
                    }
                }
            }
            for ruling in starts.remove(&point).into_iter().flatten() {
                *over.entry(ruling).or_default() += 1;
            }
            last = Some(point);
        }
        Self {
            parts: joined.into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_parts() -> impl Strategy<Value = Vec<(Span, u32)>> {
        let part = (0..20_u8, 1..6_u8, 1..4_u32);
        proptest::collection::vec(part, 0..5).prop_map(|parts| {
            let part = |(start, len, ruling): (u8, u8, u32)| {
                let (start, len) = (Position::from(start), Position::from(len));
                let end = start + len;
                (Span { start, end }, ruling)
            };
            parts.into_iter().map(part).collect()
        })
    }

    proptest! {
        #[test]
        fn each_address_has_the_largest_ruling_over_it(a in any_parts(), b in any_parts()) {
            let mut covers = Covers::of(a.clone());
            covers.merge(&Covers::of(b.clone()));
            for at in 0..30 {
                let over = a.iter().chain(&b).filter(|(s, _)| s.start <= at && at < s.end);
                prop_assert_eq!(covers.at(at), over.map(|(_, r)| *r).max().unwrap_or(0));
            }
            let list: Vec<_> = covers.iter().collect();
            prop_assert_eq!(Covers::from_parts(&list), Some(covers.clone()));
            // Equal functions are equal lists.
            let mut other = Covers::of(b);
            other.merge(&Covers::of(a));
            prop_assert_eq!(other, covers);
        }
    }

    #[test]
    fn parts_out_of_order_or_empty_are_refused() {
        let span = |start, end| Span { start, end };
        assert!(Covers::from_parts(&[(span(5, 9), 1), (span(0, 5), 1)]).is_none());
        assert!(Covers::from_parts(&[(span(0, 6), 1), (span(5, 9), 1)]).is_none());
        assert!(Covers::from_parts(&[(span(5, 5), 1)]).is_none());
        assert!(Covers::from_parts(&[(span(5, 6), 0)]).is_none());
    }
}
