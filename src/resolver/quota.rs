//! A bound on what clients have under way: in total, and lower for each of them, so that the greediest
//! leaves room for the others.
//!
//! Invariant: the counts are those of the [`Place`]s that exist; a client without one is not listed.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The bound and who is inside it.
#[derive(Debug, Clone)]
pub(super) struct Quota {
    most: usize,
    most_of_one: usize,
    inside: Arc<Mutex<Inside>>,
}

#[derive(Debug, Default)]
struct Inside {
    total: usize,
    by_client: HashMap<IpAddr, usize>,
}

impl Quota {
    /// Room for `most` in total, of which no client gets more than `most_of_one`.
    pub(super) fn new(most: usize, most_of_one: usize) -> Self {
        Self {
            most,
            most_of_one,
            inside: Arc::default(),
        }
    }

    /// A place for one thing more of this client, given back when it is dropped; none if there is no
    /// room.
    pub(super) fn enter(&self, client: IpAddr) -> Option<Place> {
        let mut inside = lock(&self.inside);
        let of_client = inside.by_client.get(&client).copied().unwrap_or(0);
        if inside.total >= self.most || of_client >= self.most_of_one {
            return None;
        }
        inside.total += 1;
        inside.by_client.insert(client, of_client + 1);
        Some(Place {
            client,
            inside: self.inside.clone(),
        })
    }
}

/// Room taken by one thing of one client.
#[derive(Debug)]
pub(super) struct Place {
    client: IpAddr,
    inside: Arc<Mutex<Inside>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inside = lock(&self.inside);
        inside.total = inside.total.saturating_sub(1);
        let left = inside.by_client.get_mut(&self.client).map_or(0, |count| {
            *count = count.saturating_sub(1);
            *count
        });
        if left == 0 {
            inside.by_client.remove(&self.client);
        }
    }
}

/// The counts are whole between any two statements that could panic, so a poisoned lock is none.
fn lock(inside: &Mutex<Inside>) -> MutexGuard<'_, Inside> {
    inside.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greediest_client_leaves_room_for_others() {
        let quota = Quota::new(3, 2);
        let [greedy, other, third] = [1, 2, 3].map(|last| IpAddr::from([10, 0, 0, last]));
        let first = quota.enter(greedy).unwrap();
        let second = quota.enter(greedy).unwrap();
        assert!(quota.enter(greedy).is_none());
        let of_other = quota.enter(other).unwrap();
        assert!(quota.enter(third).is_none(), "it is full");
        drop(first);
        assert!(quota.enter(greedy).is_some());
        drop((second, of_other));
        assert!(lock(&quota.inside).by_client.is_empty() && lock(&quota.inside).total == 0);
    }
}
