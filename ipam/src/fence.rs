//! The fence: what we own is used only with word of enough electors that they know it is ours.
//!
//! A peer that owns something asks every elector to *acknowledge* it, again and again. An elector does so
//! only if by its ring, too, that is just what the peer owns, and the electors are the same. With fresh acknowledgements of a *blocking set*, enough electors
//! to have one in every majority, nobody can have taken over what we owned when we asked for them:
//! the majority would have had to wait until they are stale. So we allocate, claim and grant only
//! inside of that; see `docs/ipam.md`.
//!
//! Acknowledgements are never written down: whoever starts asks anew, so a peer that was put back from an
//! old disk learns what it gave away since.
//!
//! Invariant: an acknowledgement counts from the moment its question was asked, not answered.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use weft_wire::PeerName;

use crate::addr::{Addr, Position, Span};
use crate::allocator::Allocator;
use crate::birth::Init;
use crate::council::Ruling;
use crate::digest::{Digest, Fnv};
use crate::message::{Ask, Council, MAX_ADDRS, Message};
use crate::ring::{Ring, blocking};
use crate::rules::Rule;
use crate::space::Hold;
use crate::sync::ANSWER;

/// How soon at the earliest an elector is asked again because our ring changed.
const HURRY: Duration = Duration::from_millis(100);
/// Up to so many owners all ask at the usual pace; more ask the slower, so that an elector
/// is asked no oftener than so many times in each period.
const OWNERS_AT_FULL_PACE: u32 = 10;

/// What the electors said.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fence {
    electors: BTreeMap<PeerName, Elector>,
    nonces: u32,
    /// The ring whose electors these are.
    of: Option<Digest>,
}

#[derive(Debug, Clone)]
struct Elector {
    again: Instant,
    sent: Instant,
    asked: Option<Asked>,
    acked: Option<Asked>,
    refused: bool,
    /// How soon it is asked again if it only lacked what we know.
    wait: Duration,
}

/// What we asked for.
#[derive(Debug, Clone)]
struct Asked {
    nonce: u32,
    /// Our uptime then.
    at: Duration,
    owned: Vec<Span>,
}

/// What one elector said, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word {
    /// How long ago we asked what it acknowledged.
    pub(crate) age: Option<Duration>,
    /// Its last answer was that it does not.
    pub(crate) refused: bool,
}

impl Fence {
    /// The ring is another one, or none: all that was said is void.
    pub(crate) fn clear(&mut self) {
        self.electors.clear();
        self.of = None;
    }
}

impl Allocator {
    /// What of our ranges we may use.
    pub(crate) fn usable(&self, now: Instant) -> Vec<Span> {
        self.usable_at(self.clock.uptime(now))
    }

    pub(crate) fn usable_at(&self, uptime: Duration) -> Vec<Span> {
        let us = self.config.us;
        let Some(ring) = &self.ring else {
            return Vec::new();
        };
        let mut own = ring.owned_by(us);
        if self.config.rules.keep(Rule::Refusal) {
            let barred = self.rulings_under_way().flat_map(Ruling::ranges);
            own = without(own, &barred.collect::<Vec<_>>());
        }
        let electors = ring.roll().electors();
        let others = blocking(electors.len()) - usize::from(self.counts_itself(&electors));
        if others == 0 || !self.config.rules.keep(Rule::Fence) {
            return own;
        }
        let acked: Vec<&[Span]> = electors
            .iter()
            .filter_map(|peer| self.fresh(*peer, uptime))
            .map(|asked| &*asked.owned)
            .collect();
        if !self.config.rules.keep(Rule::Knowledge) && acked.len() >= others {
            return own;
        }
        in_at_least(others, &acked, &own)
    }

    /// First and last address of each part of our ranges that we may use, for simulations.
    pub fn usable_ranges(&self, now: Instant) -> Vec<(Addr, Addr)> {
        self.usable(now)
            .into_iter()
            .filter_map(Span::ends)
            .collect()
    }

    /// Whether we are an elector that acknowledges itself: not while we wait for the outcome of a
    /// ruling that we voted for and that changes the electors, as towards everybody else.
    pub(crate) fn counts_itself(&self, electors: &BTreeSet<PeerName>) -> bool {
        let knows = self.council.electors_stay(electors) || !self.config.rules.keep(Rule::Outcome);
        electors.contains(&self.config.us) && knows
    }

    /// Whether all we own may be used.
    pub(crate) fn is_unfenced(&self, now: Instant) -> bool {
        let owned = self.ring.as_ref().map(|ring| ring.owned_by(self.config.us));
        owned.is_none_or(|owned| owned == self.usable(now))
    }

    fn fresh(&self, elector: PeerName, uptime: Duration) -> Option<&Asked> {
        let acked = self.fence.electors.get(&elector)?.acked.as_ref()?;
        let age = uptime.saturating_sub(acked.at);
        (age < self.config.times.fence).then_some(acked)
    }

    /// Whether an elector's word still counts, for whatever we owned when we asked.
    pub(crate) fn has_word(&self, elector: PeerName, now: Instant) -> bool {
        self.fresh(elector, self.clock.uptime(now)).is_some()
    }

    /// What an elector said; `None` if it was never asked.
    pub(crate) fn word(&self, elector: PeerName, now: Instant) -> Option<Word> {
        let said = self.fence.electors.get(&elector)?;
        let age = |acked: &Asked| self.clock.uptime(now).saturating_sub(acked.at);
        Some(Word {
            age: said.acked.as_ref().map(age),
            refused: said.refused,
        })
    }

    /// Asks the electors whose time has come.
    pub(crate) fn ask_electors(&mut self, now: Instant) {
        let us = self.config.us;
        let mut asked = self.fence.electors.iter();
        let due = asked.any(|(peer, said)| said.again <= now && self.is_live(*peer));
        let Some(ring) = self
            .ring
            .as_ref()
            .filter(|_| due || self.fence.of != Some(self.digest))
        else {
            return;
        };
        self.fence.of = Some(self.digest);
        let electors = ring.roll().electors();
        let owned = ring.owned_by(us);
        let id = ring.id();
        let digest = ring.digest_of_part(us);
        let asks = !owned.is_empty() || electors.contains(&us);
        let pace = self.pace(ring);
        let others: BTreeSet<_> = electors.into_iter().filter(|e| asks && *e != us).collect();
        self.fence.electors.retain(|peer, _| others.contains(peer));
        if others.is_empty() {
            return;
        }
        let urgent = !self.is_unfenced(now);
        let mark = self.mark();
        for elector in others {
            let Some(nonce) = self.next_question(elector, &owned, urgent, pace, now) else {
                continue;
            };
            let ask = Ask {
                nonce,
                digest,
                urgent,
                willing: !matches!(self.config.init, Init::Observer),
                mark,
            };
            let (ring, say) = (id, Council::Ask(ask));
            self.send(elector, &Message::Council { ring, say });
        }
    }

    /// Notes that an elector is asked now; under which nonce, or that it need not be.
    fn next_question(
        &mut self,
        elector: PeerName,
        owned: &[Span],
        urgent: bool,
        pace: Duration,
        now: Instant,
    ) -> Option<u32> {
        let at = self.clock.uptime(now);
        let live = self.is_live(elector);
        let said = self.fence.electors.entry(elector).or_insert(Elector {
            again: now,
            sent: now,
            asked: None,
            acked: None,
            refused: false,
            wait: HURRY,
        });
        if said.again > now || !live {
            return None;
        }
        self.fence.nonces = self.fence.nonces.wrapping_add(1);
        let nonce = self.fence.nonces;
        said.again = now + if urgent { ANSWER } else { pace };
        said.sent = now;
        let owned = owned.to_vec();
        said.asked = Some(Asked { nonce, at, owned });
        Some(nonce)
    }

    /// How often an elector is asked while nothing is lacking.
    fn pace(&self, ring: &Ring) -> Duration {
        let times = self.config.times;
        let owners = u32::try_from(ring.owners().len()).unwrap_or(u32::MAX);
        let pace = times.ack.saturating_mul(owners) / OWNERS_AT_FULL_PACE;
        pace.min(times.fence / 4).max(times.ack)
    }

    /// Stands for the addresses of the pool in use here; never 0 if there are any.
    fn mark(&self) -> u64 {
        let addrs = self.used();
        let hash = addrs
            .iter()
            .fold(Fnv::new(), |hash, addr| hash.write_addr(*addr));
        match addrs.is_empty() {
            true => 0,
            // The upper half is the better mixed one.
            false => u64::try_from(hash.finish() >> 64)
                .unwrap_or(u64::MAX)
                .max(1),
        }
    }

    /// The addresses of the pool in use here, as many as a message has.
    fn used(&self) -> Vec<crate::Addr> {
        let held = self.space.iter();
        let held = held.filter(|(_, _, holding)| holding.hold == Hold::Settled);
        let addrs: BTreeSet<_> = held
            .map(|(_, addr, _)| addr)
            .filter(|addr| self.config.pool.contains(*addr))
            .collect();
        addrs.into_iter().take(MAX_ADDRS).collect()
    }

    /// The ring changed: what we own may be acknowledged anew, or by others.
    pub(crate) fn hurry_electors(&mut self, now: Instant) {
        if self.is_unfenced(now) {
            return;
        }
        for said in self.fence.electors.values_mut() {
            said.again = said.again.min(now.max(said.sent + HURRY));
        }
    }

    /// An elector is being sent our ring: it may acknowledge then what it did not.
    pub(crate) fn hurry_elector(&mut self, elector: PeerName, now: Instant) {
        if self.is_unfenced(now) {
            return;
        }
        if let Some(said) = self.fence.electors.get_mut(&elector) {
            said.again = said.again.min(now.max(said.sent + said.wait));
            said.wait = (said.wait * 2).min(ANSWER);
        }
    }

    pub(crate) fn handle_acked(&mut self, from: PeerName, nonce: u32, tell: bool) {
        let Some(said) = self.fence.electors.get_mut(&from) else {
            return;
        };
        if let Some(asked) = said.asked.take_if(|asked| asked.nonce == nonce) {
            said.acked = Some(asked);
            said.refused = false;
            said.wait = HURRY;
            // Asked in haste perhaps, and now again only in time.
            if let Some(ring) = &self.ring {
                let pace = self.pace(ring);
                if let Some(said) = self.fence.electors.get_mut(&from) {
                    said.again = said.again.max(said.sent + pace);
                }
            }
        }
        if tell && let Some(ring) = self.ring.as_ref().map(Ring::id) {
            let (mark, addrs) = (self.mark(), self.used());
            let say = Council::Used { mark, addrs };
            self.send(from, &Message::Council { ring, say });
        }
    }

    pub(crate) fn handle_refused(&mut self, from: PeerName, nonce: u32) {
        if let Some(said) = self.fence.electors.get_mut(&from)
            && said.asked.as_ref().is_some_and(|a| a.nonce == nonce)
        {
            said.refused = true;
        }
    }

    /// When [`Self::ask_electors`] has something to do again.
    pub(crate) fn fence_deadline(&self) -> Option<Instant> {
        let electors = self.fence.electors.iter();
        electors
            .filter(|(peer, _)| self.is_live(**peer))
            .map(|(_, said)| said.again)
            .min()
    }
}

/// The parts of `own` that are in none of the others.
fn without(own: Vec<Span>, others: &[Span]) -> Vec<Span> {
    others.iter().fold(own, |own, other| {
        let rest = own.into_iter().flat_map(|span| {
            let before = Span {
                end: span.end.min(other.start.max(span.start)),
                ..span
            };
            let after = Span {
                start: span.start.max(other.end.min(span.end)),
                ..span
            };
            [before, after]
        });
        rest.filter(|span| !span.is_empty()).collect()
    })
}

/// The parts of `own` that are in at least so many of the lists.
fn in_at_least(count: usize, lists: &[&[Span]], own: &[Span]) -> Vec<Span> {
    let ends = |span: &Span| [span.start, span.end];
    let points: BTreeSet<Position> = lists
        .iter()
        .flat_map(|list| list.iter())
        .chain(own)
        .flat_map(ends)
        .collect();
    let mut parts: Vec<Span> = Vec::new();
    for (start, end) in points.iter().zip(points.iter().skip(1)) {
        let (start, end) = (*start, *end);
        let inside = |span: &Span| span.start <= start && end <= span.end;
        let known = lists.iter().filter(|list| list.iter().any(inside)).count();
        if known < count || !own.iter().any(inside) {
            continue;
        }
        match parts.last_mut() {
            // Where two of ours meet they are joined in `own` too.
            Some(last) if last.end == start => last.end = end,
            Some(_) | None => parts.push(Span { start, end }),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: Position, end: Position) -> Span {
        Span { start, end }
    }

    #[test]
    fn what_is_barred_is_cut_out_and_all_else_stays() {
        let own = || vec![span(0, 10), span(20, 30)];
        let cut = |barred: &[Span]| without(own(), barred);
        assert_eq!(cut(&[]), own());
        assert_eq!(cut(&[span(10, 20), span(30, 40)]), own());
        assert_eq!(cut(&[span(5, 25)]), [span(0, 5), span(25, 30)]);
        assert_eq!(cut(&[span(2, 4)]), [span(0, 2), span(4, 10), span(20, 30)]);
        assert_eq!(cut(&[span(0, 10), span(29, 40)]), [span(20, 29)]);
    }

    #[test]
    fn only_what_enough_know_of_is_usable() {
        let own = [span(0, 10), span(20, 30)];
        let a = [span(0, 10)];
        let b = [span(5, 25)];
        let lists: [&[Span]; 2] = [&a, &b];
        assert_eq!(in_at_least(1, &lists, &own), [span(0, 10), span(20, 25)]);
        assert_eq!(in_at_least(2, &lists, &own), [span(5, 10)]);
        assert_eq!(in_at_least(3, &lists, &own), []);
        assert_eq!(in_at_least(1, &[&own], &own), own);
    }
}
