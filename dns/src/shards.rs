//! A map that is cheap to copy again and again while it changes.
//!
//! The name table changes record by record, and after each change the resolver wants a copy. The map
//! is cut into parts by a hash of the key. Copies share them, and a change copies one part only.
//!
//! Invariant: a key is in the part its hash says, so it is looked for in one part only.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// A map from `K` to `V`.
#[derive(Debug, Clone)]
pub(crate) struct Shards<K, V> {
    parts: Vec<Arc<BTreeMap<K, V>>>,
}

impl<K: Ord + Hash + Clone, V: Default + Clone> Shards<K, V> {
    pub(crate) fn new() -> Self {
        Self {
            parts: (0..PARTS).map(|_| Arc::default()).collect(),
        }
    }

    pub(crate) fn find(&self, key: &K) -> Option<&V> {
        self.parts.get(place(key))?.get(key)
    }

    /// Changes the value of a key, which is made if it is not there, and dropped if `change` says that
    /// nothing is left of it.
    pub(crate) fn change(&mut self, key: &K, change: impl FnOnce(&mut V) -> Left) {
        let Some(part) = self.parts.get_mut(place(key)).map(Arc::make_mut) else {
            return;
        };
        match change(part.entry(key.clone()).or_default()) {
            Left::Something => {}
            Left::Nothing => {
                part.remove(key);
            }
        }
    }

    /// All values, in an order that says nothing.
    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.parts.iter().flat_map(|part| part.values())
    }
}

/// What a change left of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    Something,
    Nothing,
}

/// Below [`PARTS`], so there always is such a part.
fn place(key: &impl Hash) -> usize {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    (hasher.finish() % PARTS) as usize
}

/// So many that a part of a large table, with 100,000 names, has a few hundred of them, and so few that
/// copying the list of parts takes no longer than copying one.
const PARTS: u64 = 256;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map_and_copies_keep_what_they_had(
            before in prop::collection::vec((0_u16..600, any::<bool>()), 0..300),
            after in prop::collection::vec((0_u16..600, any::<bool>()), 0..300),
        ) {
            let (mut map, mut model) = (Shards::new(), BTreeMap::new());
            changed(&mut map, &mut model, &before);
            let (copy, then) = (map.clone(), model.clone());
            changed(&mut map, &mut model, &after);
            same(&map, &model)?;
            same(&copy, &then)?;
        }
    }

    fn changed(map: &mut Shards<u16, u32>, model: &mut BTreeMap<u16, u32>, steps: &[(u16, bool)]) {
        for (key, stays) in steps {
            let left = if *stays {
                Left::Something
            } else {
                Left::Nothing
            };
            map.change(key, |value| {
                *value += 1;
                left
            });
            *model.entry(*key).or_default() += 1;
            if !stays {
                model.remove(key);
            }
        }
    }

    fn same(map: &Shards<u16, u32>, model: &BTreeMap<u16, u32>) -> Result<(), TestCaseError> {
        prop_assert!((0..600).all(|key| map.find(&key) == model.get(&key)));
        let (mut here, mut there): (Vec<_>, Vec<_>) =
            (map.values().collect(), model.values().collect());
        here.sort();
        there.sort();
        prop_assert_eq!(here, there);
        Ok(())
    }
}
