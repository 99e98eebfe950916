//! Asking that there be rings: of several pools, and answered once.

use std::time::Instant;

use super::Pools;
use crate::addr::Cidr;
use crate::event::Answer;
use crate::requests::{RequestError, RequestId};

/// What came so far of a request to several pools.
#[derive(Debug, Clone)]
pub(super) struct Priming {
    /// How many have not answered.
    left: usize,
    failed: Option<RequestError>,
}

impl Pools {
    /// Asks that the default pools of both families have a ring; the others get theirs when they are
    /// used.
    pub fn prime(&mut self, id: RequestId, now: Instant) {
        let pools = Cidr::first_of_each_family(&self.config.pools);
        if pools.is_empty() {
            return self.answer(id, Err(RequestError::NoPool));
        }
        let (left, failed) = (pools.len(), None);
        self.priming.insert(id, Priming { left, failed });
        for pool in pools {
            if let Some(allocator) = self.allocators.get_mut(&pool) {
                allocator.prime(id, now);
            }
        }
    }

    /// What to answer to a request now that a pool has: nothing while others have not.
    pub(super) fn answered(
        &mut self,
        id: RequestId,
        result: Result<Answer, RequestError>,
    ) -> Option<Result<Answer, RequestError>> {
        let Some(priming) = self.priming.get_mut(&id) else {
            return Some(result);
        };
        priming.left -= 1;
        if priming.left > 0 {
            priming.failed = result.err();
            return None;
        }
        let failed = self.priming.remove(&id)?.failed;
        Some(failed.map_or(result, Err))
    }
}
