//! What a request that is not answered yet waits for, in words that say whom to look at.
//!
//! Built anew at each question, like the rest of the status.

use std::collections::BTreeSet;
use std::fmt;

use weft_wire::PeerName;

use crate::addr::{Addr, Cidr};
use crate::allocator::Allocator;
use crate::asks::{Ask, Want};
use crate::birth::Init;
use crate::requests::Wish;
use crate::ring::{Ring, blocking};

/// What a request waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitsFor {
    /// That enough peers agree to make a ring.
    Birth {
        /// How many must agree.
        quorum: usize,
        /// How many there are, us included.
        known: usize,
        /// Those of them that have not agreed so far.
        from: Vec<PeerName>,
    },
    /// That others make a ring, since this peer never does.
    Others {
        /// Whom we asked to.
        from: Vec<PeerName>,
    },
    /// That addresses are settled after two rings met.
    Settling,
    /// Space in a subnet.
    Space {
        /// The subnet.
        subnet: Cidr,
        /// Whom we asked last, or else all reachable peers that own part of it.
        from: Vec<PeerName>,
        /// The owners of part of it that cannot be reached.
        unreachable: Vec<PeerName>,
        /// We were refused because the ring is cut into as many ranges as it may have.
        ring_full: bool,
        /// Somebody has space that it may not use for now.
        fenced: bool,
    },
    /// Word of electors that they know what we own.
    Electors {
        /// How many more must say so.
        lacking: usize,
        /// Those within reach that have not.
        from: Vec<PeerName>,
        /// Those that cannot be reached.
        unreachable: Vec<PeerName>,
    },
    /// The owner of an address.
    Owner {
        /// The address.
        addr: Addr,
        /// Its owner.
        owner: PeerName,
        /// Whether it can be reached.
        reachable: bool,
        /// It may not use the address for now.
        fenced: bool,
    },
}

impl fmt::Display for WaitsFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Birth {
                quorum,
                known,
                from,
            } => {
                write!(f, "waiting for {quorum} peers to divide the pool")?;
                if known < quorum {
                    let lacking = quorum - known;
                    write!(
                        f,
                        ": {lacking} more must be within reach, see 'weft status targets'"
                    )?;
                }
                if !from.is_empty() {
                    f.write_str("; not agreed so far: ")?;
                    write_peers(f, from)?;
                }
                Ok(())
            }
            Self::Others { from } if from.is_empty() => f.write_str(
                "waiting for a peer that may divide the pool: an observer never does, and nobody else is within reach",
            ),
            Self::Others { from } => {
                f.write_str("waiting for the pool to be divided, which was asked of ")?;
                write_peers(f, from)
            }
            Self::Settling => f.write_str("waiting for addresses to settle after two rings met"),
            Self::Space {
                subnet,
                from,
                unreachable,
                ring_full,
                fenced,
            } => {
                write!(f, "waiting for {subnet} space from ")?;
                write_peers(f, from)?;
                if !unreachable.is_empty() {
                    f.write_str("; unreachable: ")?;
                    write_peers(f, unreachable)?;
                }
                if *ring_full {
                    f.write_str("; the ring is cut into as many ranges as it may have")?;
                }
                if *fenced {
                    f.write_str("; some of it waits for the electors itself")?;
                }
                Ok(())
            }
            Self::Electors {
                lacking,
                from,
                unreachable,
            } => {
                write!(
                    f,
                    "waiting for {lacking} more of the electors to acknowledge what this peer owns"
                )?;
                if !from.is_empty() {
                    f.write_str(": asked ")?;
                    write_peers(f, from)?;
                }
                if !unreachable.is_empty() {
                    f.write_str("; unreachable: ")?;
                    write_peers(f, unreachable)?;
                }
                Ok(())
            }
            Self::Owner {
                addr,
                owner,
                reachable,
                fenced,
            } => {
                let lack = match (reachable, fenced) {
                    (false, _) => ", unreachable",
                    (true, true) => ", which waits for the electors itself",
                    (true, false) => "",
                };
                write!(f, "waiting for {addr} from its owner {owner}{lack}")
            }
        }
    }
}

impl Allocator {
    pub(crate) fn waits_for(&self, wish: &Wish) -> WaitsFor {
        let Some(ring) = &self.ring else {
            return self.waits_for_birth();
        };
        let ours = match wish {
            Wish::Prime => false,
            Wish::Allocate { subnet, .. } => {
                let own = ring.owned_by(self.config.us);
                own.iter().any(|s| !s.intersect(subnet.hosts()).is_empty())
            }
            Wish::Claim { addr, .. } => ring.owner_of(*addr) == Some(self.config.us),
        };
        let now = self.clock.read_at();
        if ours && !self.settling(now) && !self.is_unfenced(now) {
            return self.waits_for_electors(ring);
        }
        match wish {
            // There is one.
            Wish::Prime => WaitsFor::Settling,
            // Without an entry among the wants we would ask if addresses were settled.
            Wish::Allocate { subnet, .. } => match self.asks.get(Want::Space(*subnet)) {
                None => WaitsFor::Settling,
                Some(ask) => self.waits_for_space(ring, *subnet, ask),
            },
            Wish::Claim { addr, .. } => {
                match (self.asks.get(Want::Exact(*addr)), ring.owner_of(*addr)) {
                    (Some(ask), Some(owner)) if owner != self.config.us => WaitsFor::Owner {
                        addr: *addr,
                        owner,
                        reachable: self.is_live(owner),
                        fenced: ask.is_put_off(),
                    },
                    (_, _) => WaitsFor::Settling,
                }
            }
        }
    }

    fn waits_for_electors(&self, ring: &Ring) -> WaitsFor {
        let now = self.clock.read_at();
        let us = self.config.us;
        let electors = ring.roll().electors();
        let words = electors.iter().filter(|peer| self.has_word(**peer, now));
        let known = words.count() + usize::from(self.counts_itself(&electors));
        let lacking = blocking(electors.len()).saturating_sub(known);
        let others = electors.iter().copied();
        let others = others.filter(|peer| *peer != us && !self.has_word(*peer, now));
        let (from, unreachable) = others.partition(|peer| self.is_live(*peer));
        WaitsFor::Electors {
            lacking: lacking.max(1),
            from,
            unreachable,
        }
    }

    fn waits_for_birth(&self) -> WaitsFor {
        let live = self.live();
        if matches!(self.config.init, Init::Observer) {
            let from = live.into_iter().collect();
            return WaitsFor::Others { from };
        }
        let agreed = self.election.agreed();
        let voters = live.difference(self.election.abstained());
        WaitsFor::Birth {
            quorum: self.quorum(),
            known: 1 + voters.clone().count(),
            from: voters
                .filter(|peer| !agreed.contains(*peer))
                .copied()
                .collect(),
        }
    }

    fn waits_for_space(&self, ring: &Ring, subnet: Cidr, ask: &Ask) -> WaitsFor {
        let overlaps = ring
            .ranges()
            .filter(|(span, _)| !span.intersect(subnet.hosts()).is_empty());
        let owners: BTreeSet<_> = overlaps.map(|(_, entry)| entry.owner).collect();
        let others = owners.into_iter().filter(|peer| *peer != self.config.us);
        let (live, unreachable): (Vec<_>, Vec<_>) = others.partition(|peer| self.is_live(*peer));
        WaitsFor::Space {
            subnet,
            from: ask.to.map_or(live, |peer| vec![peer]),
            unreachable,
            ring_full: self.settling.ring_full,
            fenced: ask.is_put_off(),
        }
    }
}

fn write_peers(f: &mut fmt::Formatter<'_>, peers: &[PeerName]) -> fmt::Result {
    if peers.is_empty() {
        return f.write_str("nobody: no owner can be reached");
    }
    for (n, peer) in peers.iter().enumerate() {
        let comma = if n == 0 { "" } else { ", " };
        write!(f, "{comma}{peer}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::event::Event;
    use crate::message::Message;
    use crate::requests::RequestId;
    use crate::simulation::cluster::{config, name};
    use crate::space::ContainerId;

    const POOL: &str = "10.32.0.0/24";

    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant can only be had from the clock"
    )]
    fn waiting(init: Init, targets: usize, reach: &[usize]) -> Allocator {
        let now = std::time::Instant::now();
        let config = config(0, POOL.parse().unwrap(), init, targets);
        let mut allocator = Allocator::new(config, None, [1; 32], now).unwrap();
        for n in reach {
            allocator.handle_connected(name(*n), now);
        }
        allocator.allocate(RequestId(1), ContainerId::new("c"), None, now);
        allocator
    }

    fn words(allocator: &Allocator) -> String {
        let pending = allocator.status().pending;
        pending.first().unwrap().waits_for.to_string()
    }

    #[test]
    fn a_birth_says_how_many_are_missing_and_who_has_not_agreed() {
        let mut allocator = waiting(Init::Consensus(Some(5)), 4, &[1]);
        assert_eq!(
            words(&allocator),
            "waiting for 3 peers to divide the pool: 1 more must be within reach, \
             see 'weft status targets'; not agreed so far: 02:00:00:00:00:02"
        );
        let events = std::iter::from_fn(|| allocator.poll_event());
        let mut ballots = events.filter_map(|event| {
            let Event::Send { bytes, .. } = event else {
                return None;
            };
            let message = Message::parse(&bytes, POOL.parse().unwrap());
            let Ok(Message::Prepare { ballot }) = message else {
                return None;
            };
            Some(ballot)
        });
        let ballot = ballots.next().unwrap();
        drop(ballots);
        let accepted = None;
        let promise = Message::Promise { ballot, accepted }.emit(POOL.parse().unwrap());
        let later = allocator.clock.read_at() + Duration::from_millis(10);
        allocator.handle_message(name(1), &promise, later).unwrap();
        assert_eq!(
            words(&allocator),
            "waiting for 3 peers to divide the pool: 1 more must be within reach, see 'weft status targets'"
        );
    }

    #[test]
    fn an_observer_says_whom_it_asked() {
        let alone = waiting(Init::Observer, 0, &[]);
        assert!(words(&alone).contains("nobody else is within reach"));
        let two = waiting(Init::Observer, 0, &[1, 2]);
        assert_eq!(
            words(&two),
            "waiting for the pool to be divided, which was asked of 02:00:00:00:00:02, 02:00:00:00:00:03"
        );
    }
}
