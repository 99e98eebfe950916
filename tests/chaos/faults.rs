//! What is broken, and how it is mended.

use std::fmt;

use rand_chacha::ChaCha20Rng;
use rand_core::Rng;

use crate::support::{Lab, run};

#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// A router ends as after `kill -9`, and is launched again.
    Killed(u16),
    /// A router ends in order, and takes up what it did.
    Stopped(u16),
    /// Two hosts do not reach each other.
    Cut(u16, u16),
    /// A host's cable is out.
    Unplugged(u16),
    /// A host drops the datagrams of routers; their connections stay.
    NoDatagrams(u16),
    /// A host drops all that is for its router.
    NothingIn(u16),
    /// Somebody empties a host's firewall, ours included.
    Flushed(u16),
}

impl Fault {
    pub(crate) fn draw(rng: &mut ChaCha20Rng, hosts: u16) -> Self {
        let mut below = |limit: u16| u16::try_from(rng.next_u64() % u64::from(limit)).unwrap();
        let a = 1 + below(hosts);
        let b = 1 + (a + below(hosts - 1)) % hosts;
        match below(10) {
            0..3 => Self::Killed(a),
            3 => Self::Stopped(a),
            4 | 5 => Self::Cut(a, b),
            6 => Self::Unplugged(a),
            7 => Self::NoDatagrams(a),
            8 => Self::NothingIn(a),
            _ => Self::Flushed(a),
        }
    }

    pub(crate) fn make(&self, lab: &Lab) {
        match self {
            Self::Killed(n) => lab.crash(&host(*n)),
            Self::Stopped(n) => drop(lab.ok(&host(*n), &["weft", "stop"])),
            Self::Cut(a, b) => wires(lab, "cut", *a, *b),
            Self::Unplugged(n) => link(lab, *n, "down"),
            Self::NoDatagrams(n) => drops(lab, *n, "udp dport 6783 drop"),
            Self::NothingIn(n) => drops(lab, *n, "meta l4proto { tcp, udp } th dport 6783 drop"),
            Self::Flushed(n) => drop(lab.ok(&host(*n), &["nft", "flush", "ruleset"])),
        }
    }

    pub(crate) fn mend(&self, lab: &Lab) {
        match self {
            Self::Killed(n) => drop(lab.ok(&host(*n), &["weft", "launch"])),
            Self::Stopped(n) => drop(lab.ok(&host(*n), &["weft", "launch", "--resume"])),
            Self::Cut(a, b) => wires(lab, "mend", *a, *b),
            Self::Unplugged(n) => link(lab, *n, "up"),
            Self::NoDatagrams(n) | Self::NothingIn(n) => {
                drop(lab.ok(&host(*n), &["nft", "delete", "table", "inet", "chaos"]));
            }
            // The router is to put back what it needs, by itself.
            Self::Flushed(_) => {}
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed(n) => write!(f, "the router of host{n} killed"),
            Self::Stopped(n) => write!(f, "the router of host{n} stopped"),
            Self::Cut(a, b) => write!(f, "host{a} and host{b} cut off from each other"),
            Self::Unplugged(n) => write!(f, "host{n} cut off from all"),
            Self::NoDatagrams(n) => write!(f, "datagrams to host{n} dropped"),
            Self::NothingIn(n) => write!(f, "all to the router of host{n} dropped"),
            Self::Flushed(n) => write!(f, "the firewall of host{n} emptied"),
        }
    }
}

fn host(n: u16) -> String {
    format!("host{n}")
}

fn wires(lab: &Lab, word: &str, a: u16, b: u16) {
    run(&mut lab.lab(word, &[&host(a), &host(b)])).success();
}

fn link(lab: &Lab, n: u16, state: &str) {
    lab.ok(&host(n), &["ip", "link", "set", "eth0", state]);
}

fn drops(lab: &Lab, n: u16, rule: &str) {
    let rules = format!(
        "table inet chaos {{ chain input {{ type filter hook input priority -300; {rule}; }}; }}"
    );
    lab.ok(&host(n), &["nft", &rules]);
}
