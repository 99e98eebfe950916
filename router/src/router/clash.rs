//! Another router with our name came first: we keep off the mesh for a while, so that nobody has to choose.
//!
//! Peers that have connections with both see to it themselves (`admission.rs`); this is for a mesh in which
//! the two have different neighbours.

use std::time::{Duration, Instant};

use weft_wire::control::{Refusal, RefusalReason};

use super::Router;
use super::ending::End;

impl Router {
    /// Another live router with our name started before us: ends all connections and makes none for a minute.
    pub fn stand_back(&mut self, why: &str, now: Instant) {
        self.stands_back = Some((now + STAND_BACK, why.to_owned()));
        for conn in self.conns.dials.keys().copied().collect::<Vec<_>>() {
            self.abandon(conn, now);
        }
        for conn in self.conns.links.keys().copied().collect::<Vec<_>>() {
            self.end(conn, End::Refuse(refusal(why)), now);
        }
        self.finish(now);
    }

    /// Why nobody is let in, if we keep off the mesh.
    pub(super) fn standing_back(&self) -> Option<Refusal> {
        let (_, why) = self.stands_back.as_ref()?;
        Some(refusal(why))
    }
}

fn refusal(why: &str) -> Refusal {
    Refusal::new(RefusalReason::Clone, why)
}

/// How long to keep off: by then somebody may have mended it, or the other one is gone.
const STAND_BACK: Duration = Duration::from_secs(60);
