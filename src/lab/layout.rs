//! What a lab consists of: its places, their names and their addresses on the virtual LAN.
//!
//! All of it follows from two numbers, so that every process of a lab knows the whole without being
//! told. Hosts are `host1`, `host2`, …; containers are numbered through over all hosts (`c1`, `c2`,
//! …); the virtual LAN itself is the place `lan`.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How large a lab is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args, Serialize, Deserialize)]
pub(crate) struct Layout {
    /// How many hosts to emulate, 1 to 64
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) hosts: u16,
    /// How many containers on each host, 0 to 16
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(0..=16))]
    pub(crate) containers: u16,
}

impl Layout {
    /// All hosts, in order.
    pub(crate) fn hosts(self) -> impl Iterator<Item = Place> {
        (1..=self.hosts).map(Place::Host)
    }

    /// All containers, in order.
    pub(crate) fn containers(self) -> impl Iterator<Item = Place> {
        (1..=self.hosts * self.containers).map(Place::Container)
    }

    /// The containers of host number `host`.
    pub(crate) fn containers_of(self, host: u16) -> impl Iterator<Item = Place> {
        let first = host.saturating_sub(1) * self.containers + 1;
        (first..first + self.containers).map(Place::Container)
    }

    /// Whether the lab has this place.
    pub(crate) fn has(self, place: Place) -> bool {
        match place {
            Place::Lan => true,
            Place::Host(number) => (1..=self.hosts).contains(&number),
            Place::Container(number) => (1..=self.hosts * self.containers).contains(&number),
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.hosts {
            1 => write!(f, "host1")?,
            hosts => write!(f, "host1 to host{hosts}")?,
        }
        match self.hosts * self.containers {
            0 => write!(f, ", no containers"),
            1 => write!(f, ", c1"),
            containers => write!(f, ", c1 to c{containers}"),
        }
    }
}

/// Somewhere in a lab where a command can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// The virtual LAN: its bridge and the hosts' ports, named like the hosts.
    Lan,
    /// An emulated host, counted from 1.
    Host(u16),
    /// A container, counted from 1 over all hosts.
    Container(u16),
}

impl Place {
    /// Address on the virtual LAN (198.18.0.0/15 is set aside for tests, RFC 2544); hosts only.
    pub(crate) fn address(self) -> Option<Ipv4Addr> {
        match self {
            Self::Host(number) => u8::try_from(number)
                .ok()
                .map(|last| Ipv4Addr::new(198, 18, 0, last)),
            Self::Lan | Self::Container(_) => None,
        }
    }
}

/// Length of the prefix of the virtual LAN.
pub(crate) const LAN_PREFIX: u8 = 24;

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lan => f.pad("lan"),
            Self::Host(number) => f.pad(&format!("host{number}")),
            Self::Container(number) => f.pad(&format!("c{number}")),
        }
    }
}

/// Text that names no place of any lab.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{0:?} is no place of a lab: give a host (host1, host2, …), a container (c1, c2, …) or lan"
)]
pub(crate) struct ParsePlaceError(String);

impl FromStr for Place {
    type Err = ParsePlaceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |digits: &str| {
            let plain = !digits.starts_with('0') && digits.bytes().all(|c| c.is_ascii_digit());
            plain.then(|| digits.parse().ok()).flatten()
        };
        let place = if text == "lan" {
            Some(Self::Lan)
        } else if let Some(digits) = text.strip_prefix("host") {
            number(digits).map(Self::Host)
        } else {
            text.strip_prefix('c').and_then(number).map(Self::Container)
        };
        place.ok_or_else(|| ParsePlaceError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAB: Layout = Layout {
        hosts: 3,
        containers: 2,
    };

    #[test]
    fn containers_are_numbered_through_over_the_hosts() {
        let of = |host| {
            LAB.containers_of(host)
                .map(|c| c.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(of(1), ["c1", "c2"]);
        assert_eq!(of(3), ["c5", "c6"]);
        assert_eq!(LAB.containers().count(), 6);
    }

    #[test]
    fn a_lab_may_have_no_containers() {
        let lab = Layout {
            hosts: 2,
            containers: 0,
        };
        assert_eq!(lab.containers().count(), 0);
        assert_eq!(lab.containers_of(2).count(), 0);
        assert!(!lab.has(Place::Container(1)));
    }

    #[test]
    fn a_layout_is_told_by_its_first_and_last_places() {
        let told = |hosts, containers| Layout { hosts, containers }.to_string();
        assert_eq!(told(3, 2), "host1 to host3, c1 to c6");
        assert_eq!(told(1, 1), "host1, c1");
        assert_eq!(told(2, 0), "host1 to host2, no containers");
    }

    #[test]
    fn places_are_read_as_they_are_written() {
        for place in [
            Place::Lan,
            Place::Host(1),
            Place::Host(64),
            Place::Container(12),
        ] {
            assert_eq!(place.to_string().parse(), Ok(place));
        }
        for text in [
            "",
            "host",
            "host0",
            "host01",
            "c",
            "c-1",
            "c+1",
            "lan1",
            "x1",
            "host99999",
        ] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_lab_knows_its_places() {
        assert!(LAB.has(Place::Lan) && LAB.has(Place::Host(3)) && LAB.has(Place::Container(6)));
        assert!(
            !LAB.has(Place::Host(4)) && !LAB.has(Place::Container(7)) && !LAB.has(Place::Host(0))
        );
    }

    #[test]
    fn hosts_have_addresses() {
        assert_eq!(Place::Host(3).address(), Some(Ipv4Addr::new(198, 18, 0, 3)));
        assert_eq!(Place::Container(3).address(), None);
    }
}
