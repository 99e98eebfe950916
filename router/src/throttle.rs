//! Who may connect to us, and how often, before anything is known of them.
//!
//! A handshake costs us some 200 µs and holds a slot until its deadline, so one address must not get
//! all of either. An address that tries passwords is not answered for a while.
//!
//! Invariant: what is remembered is bounded, whoever knocks.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Unfinished inbound connections in all; more are closed at once.
const MAX_UNFINISHED: usize = 64;
/// Of these, from one address: a quarter, so that one address cannot shut the others out.
const MAX_UNFINISHED_EACH: usize = 16;
/// Accepts in a burst, and how often another one is allowed, from one address.
const BURST: u32 = 20;
const REFILL: Duration = Duration::from_millis(50);
/// This many wrong passwords within [`WINDOW`] earn an address [`SILENCE`].
const WRONG_PASSWORDS: usize = 3;
const WINDOW: Duration = Duration::from_secs(60);
pub(crate) const SILENCE: Duration = Duration::from_secs(30);
/// Addresses remembered; the one that was here longest ago makes room.
const MAX_VISITORS: usize = 1024;

/// Decides about accepts.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    visitors: BTreeMap<IpAddr, Visitor>,
    /// Sum over all visitors.
    unfinished: usize,
}

#[derive(Debug)]
struct Visitor {
    last: Instant,
    tokens: u32,
    refilled: Instant,
    unfinished: usize,
    wrong: VecDeque<Instant>,
    silence: Option<Silence>,
}

#[derive(Debug)]
struct Silence {
    until: Instant,
    /// A connection was turned away because of it already.
    told: bool,
}

/// Why a connection is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotNow {
    /// Too many, from there or in all.
    Busy,
    /// Too many wrong passwords; `first` for the first connection turned away because of them.
    Silent { first: bool },
}

impl Throttle {
    /// A connection came in; if it is taken, [`Throttle::finish`] must follow once.
    pub(crate) fn accept(&mut self, from: IpAddr, now: Instant) -> Result<(), NotNow> {
        let full = self.unfinished >= MAX_UNFINISHED;
        let visitor = self.visitor(from, now);
        if let Some(silence) = visitor
            .silence
            .as_mut()
            .filter(|silence| now < silence.until)
        {
            let first = !std::mem::replace(&mut silence.told, true);
            return Err(NotNow::Silent { first });
        }
        visitor.refill(now);
        if full || visitor.unfinished >= MAX_UNFINISHED_EACH || visitor.tokens == 0 {
            return Err(NotNow::Busy);
        }
        visitor.tokens -= 1;
        visitor.unfinished += 1;
        self.unfinished += 1;
        Ok(())
    }

    /// A connection taken has ended, or the other side is known.
    pub(crate) fn finish(&mut self, from: IpAddr) {
        self.unfinished = self.unfinished.saturating_sub(1);
        if let Some(visitor) = self.visitors.get_mut(&key(from)) {
            visitor.unfinished = visitor.unfinished.saturating_sub(1);
        }
    }

    /// A handshake failed by its password; returns whether the address is not answered from here on.
    pub(crate) fn wrong_password(&mut self, from: IpAddr, now: Instant) -> bool {
        let visitor = self.visitor(from, now);
        visitor.wrong.push_back(now);
        visitor
            .wrong
            .retain(|at| now.saturating_duration_since(*at) < WINDOW);
        let silenced = visitor.wrong.len() >= WRONG_PASSWORDS;
        if silenced {
            visitor.wrong.clear();
            let until = now + SILENCE;
            visitor.silence = Some(Silence { until, told: false });
        }
        silenced
    }

    fn visitor(&mut self, from: IpAddr, now: Instant) -> &mut Visitor {
        let from = key(from);
        if !self.visitors.contains_key(&from) && self.visitors.len() >= MAX_VISITORS {
            self.make_room();
        }
        let visitor = self.visitors.entry(from).or_insert_with(|| Visitor {
            last: now,
            tokens: BURST,
            refilled: now,
            unfinished: 0,
            wrong: VecDeque::new(),
            silence: None,
        });
        visitor.last = now;
        visitor
    }

    fn make_room(&mut self) {
        let idle = self.visitors.iter().filter(|(_, v)| v.unfinished == 0);
        let oldest = idle.min_by_key(|(_, v)| v.last).map(|(ip, _)| *ip);
        if let Some(oldest) = oldest {
            self.visitors.remove(&oldest);
        }
    }
}

impl Visitor {
    fn refill(&mut self, now: Instant) {
        while self.tokens < BURST && now.saturating_duration_since(self.refilled) >= REFILL {
            self.tokens += 1;
            self.refilled += REFILL;
        }
        if self.tokens == BURST {
            self.refilled = now;
        }
    }
}

/// An IPv6 host has a whole /64 to choose its address from, so that is what counts as one.
fn key(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() & !u128::from(u64::MAX)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_wrong_passwords_in_a_minute_silence_an_address_for_thirty_seconds() {
        let (mut throttle, start) = (Throttle::default(), crate::clock::start());
        let at = |s| start + Duration::from_secs(s);
        assert!(!throttle.wrong_password(ip(1), at(0)));
        assert!(!throttle.wrong_password(ip(1), at(1)));
        assert!(
            !throttle.wrong_password(ip(1), at(61)),
            "the first two are too old"
        );
        assert!(!throttle.wrong_password(ip(1), at(62)));
        assert!(throttle.wrong_password(ip(1), at(63)));
        assert_eq!(
            throttle.accept(ip(1), at(64)),
            Err(NotNow::Silent { first: true })
        );
        assert_eq!(
            throttle.accept(ip(1), at(92)),
            Err(NotNow::Silent { first: false })
        );
        assert_eq!(throttle.accept(ip(2), at(92)), Ok(()));
        assert_eq!(throttle.accept(ip(1), at(93)), Ok(()));
    }

    #[test]
    fn one_address_cannot_take_all_places() {
        let (mut throttle, now) = (Throttle::default(), crate::clock::start());
        let taken = (0..100)
            .filter(|_| throttle.accept(ip(1), now).is_ok())
            .count();
        assert_eq!(taken, MAX_UNFINISHED_EACH);
        assert_eq!(throttle.accept(ip(2), now), Ok(()));
        throttle.finish(ip(1));
        assert_eq!(throttle.accept(ip(1), now), Ok(()));
    }

    #[test]
    fn all_places_together_are_bounded() {
        let (mut throttle, now) = (Throttle::default(), crate::clock::start());
        let taken = (0..200)
            .filter(|n| throttle.accept(ip(*n), now).is_ok())
            .count();
        assert_eq!(taken, MAX_UNFINISHED);
    }

    #[test]
    fn accepts_from_one_address_are_bounded_in_rate() {
        let (mut throttle, start) = (Throttle::default(), crate::clock::start());
        let mut taken = 0;
        for ms in 0..1000 {
            if throttle
                .accept(ip(1), start + Duration::from_millis(ms))
                .is_ok()
            {
                throttle.finish(ip(1));
                taken += 1;
            }
        }
        assert_eq!(taken, 20 + 19);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_same_ipv6_net_counts_once() {
        let (mut throttle, now) = (Throttle::default(), crate::clock::start());
        for n in 0..u32::try_from(2 * MAX_VISITORS).unwrap() {
            throttle.wrong_password(IpAddr::V4(n.into()), now);
        }
        assert_eq!(throttle.visitors.len(), MAX_VISITORS);
        let a = "2001:db8::1".parse().unwrap();
        let b = "2001:db8::ffff".parse().unwrap();
        throttle.wrong_password(a, now);
        throttle.wrong_password(b, now);
        assert!(throttle.wrong_password(a, now));
    }

    fn ip(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }
}
