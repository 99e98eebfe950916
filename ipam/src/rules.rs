//! How long the electors' business takes, the clock it is measured by, and the rules a test may
//! switch off.
//!
//! A checker that never fails may check nothing. So each rule that safety rests on has a name here,
//! and an allocator can be told to break it; a simulation of such allocators must be found out.
//! Routers always keep all of them.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use thiserror::Error;

/// The waits of the electors and of those they watch; see `docs/ipam.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// How often an owner asks the electors to acknowledge what it owns.
    pub ack: Duration,
    /// How long what they acknowledged may be used.
    pub fence: Duration,
    /// How long a peer must have been silent before an elector votes to take it over.
    pub takeover: Duration,
    /// How long nobody else gets an address that a peer had in use when it was taken over.
    pub aside: Duration,
    /// How long a peer must have been asking before it becomes an elector.
    pub season: Duration,
}

impl Times {
    /// What routers use. The takeover is twice the fence: see `docs/ipam.md` for how far clocks may
    /// differ.
    pub const DEFAULT: Self = Self {
        ack: Duration::from_secs(10),
        fence: Duration::from_secs(12 * 3600),
        takeover: Duration::from_secs(24 * 3600),
        aside: Duration::from_secs(7 * 24 * 3600),
        season: Duration::from_secs(3600),
    };
}

impl Default for Times {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A rule that safety rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// No frames on a connection before its ends know the same ring and settled their addresses.
    Barrier,
    /// What we own is used only with fresh acknowledgements of enough electors.
    Fence,
    /// An acknowledgement counts only for what we owned when we asked for it.
    Knowledge,
    /// An elector votes to take a peer over only when it has been silent long enough.
    TakeoverAge,
    /// A ruling needs a majority of the electors.
    ElectorQuorum,
    /// An elector that voted to take a peer over acknowledges nothing of it any more.
    Refusal,
    /// An elector that voted for a change of the electors acknowledges nobody until it knows the
    /// outcome.
    Outcome,
    /// A takeover undoes what the peer granted without the electors' knowledge.
    Cover,
    /// The silence of all peers is counted anew when an elector starts or the electors change.
    Recount,
    /// What an elector voted for is found again after a restart.
    Votes,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Barrier,
        Self::Fence,
        Self::Knowledge,
        Self::TakeoverAge,
        Self::ElectorQuorum,
        Self::Refusal,
        Self::Outcome,
        Self::Cover,
        Self::Recount,
        Self::Votes,
    ];

    /// As it is called on a command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Barrier => "barrier",
            Self::Fence => "fence",
            Self::Knowledge => "knowledge",
            Self::TakeoverAge => "takeover-age",
            Self::ElectorQuorum => "elector-quorum",
            Self::Refusal => "refusal",
            Self::Outcome => "outcome",
            Self::Cover => "cover",
            Self::Recount => "recount",
            Self::Votes => "votes",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Text that names no rule.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is no rule of address allocation")]
pub struct ParseRuleError(String);

impl FromStr for Rule {
    type Err = ParseRuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut all = Self::ALL.into_iter();
        all.find(|rule| rule.name() == text)
            .ok_or_else(|| ParseRuleError(text.to_owned()))
    }
}

/// Which rules are kept: all, but for one that a test broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rules {
    broken: Option<Rule>,
}

impl Rules {
    /// Every rule is kept.
    pub const KEPT: Self = Self { broken: None };

    /// All but this one, for a simulation that must be found out.
    pub const fn breaking(rule: Rule) -> Self {
        Self { broken: Some(rule) }
    }

    pub(crate) fn keep(self, rule: Rule) -> bool {
        self.broken != Some(rule)
    }
}

/// The time since this host's start, times of sleep included (CLOCK_BOOTTIME), and the instant it
/// was read at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    uptime: Duration,
    at: Instant,
}

impl Clock {
    pub(crate) const fn new(uptime: Duration, at: Instant) -> Self {
        Self { uptime, at }
    }

    /// The uptime at an instant. An instant does not count while the host sleeps, so the caller
    /// reads the clock anew before each call.
    pub(crate) fn uptime(&self, now: Instant) -> Duration {
        self.uptime + now.saturating_duration_since(self.at)
    }

    /// The uptime when the clock was read last.
    pub(crate) const fn last(&self) -> Duration {
        self.uptime
    }

    /// When the clock was read last.
    pub(crate) const fn read_at(&self) -> Instant {
        self.at
    }

    /// When the uptime will be this; the last time the clock was read if that is past.
    pub(crate) fn instant(&self, uptime: Duration) -> Instant {
        self.at + uptime.saturating_sub(self.uptime)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_is_found_by_its_name() {
        for rule in Rule::ALL {
            assert_eq!(rule.to_string().parse(), Ok(rule));
            assert!(!Rules::breaking(rule).keep(rule));
            assert!(Rules::KEPT.keep(rule));
        }
        assert!("gravity".parse::<Rule>().is_err());
    }

    #[test]
    fn clocks_may_differ_by_a_factor_of_two() {
        assert!(Times::DEFAULT.takeover >= 2 * Times::DEFAULT.fence);
    }
}
