//! Addresses that nobody gets for a while: those a peer had in use when we took it over.
//!
//! The peer may only have been cut off, with its containers alive. When it comes back it claims what
//! they hold, and gets it if we kept it for them.
//!
//! Invariant: there are at most [`MAX_ASIDE`] lists of at most as many addresses as a message has.

use std::collections::BTreeSet;
use std::time::Duration;

use weft_wire::codec::{Reader, Writer};
use weft_wire::{Malformed, PeerName};

use crate::addr::{Addr, Family};
use crate::council::MAX_TAKEN;
use crate::message::{bounded, read_addrs, read_peers, write_addrs, write_peers};

/// How many takeovers we remember the addresses of; of more, the oldest is forgotten.
const MAX_ASIDE: usize = 64;

/// What is set aside after one takeover, as it is saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aside {
    /// The peers that were taken over, in order; they may have the addresses back.
    pub peers: Vec<PeerName>,
    /// The addresses, in order.
    pub addrs: Vec<Addr>,
    /// For how long yet, in seconds.
    pub seconds: u64,
}

/// All that is set aside.
#[derive(Debug, Clone, Default)]
pub(crate) struct SetAside {
    lists: Vec<List>,
}

#[derive(Debug, Clone)]
struct List {
    peers: BTreeSet<PeerName>,
    addrs: BTreeSet<Addr>,
    until: Duration,
}

impl SetAside {
    /// As it was saved, at this uptime.
    pub(crate) fn load(saved: Vec<Aside>, uptime: Duration) -> Self {
        let list = |aside: Aside| List {
            peers: aside.peers.into_iter().collect(),
            addrs: aside.addrs.into_iter().collect(),
            until: uptime + Duration::from_secs(aside.seconds),
        };
        Self {
            lists: saved.into_iter().map(list).collect(),
        }
    }

    pub(crate) fn saved(&self, uptime: Duration) -> Vec<Aside> {
        let aside = |list: &List| Aside {
            peers: list.peers.iter().copied().collect(),
            addrs: list.addrs.iter().copied().collect(),
            seconds: list.until.saturating_sub(uptime).as_secs(),
        };
        self.lists.iter().map(aside).collect()
    }

    pub(crate) fn add(
        &mut self,
        peers: BTreeSet<PeerName>,
        addrs: BTreeSet<Addr>,
        until: Duration,
    ) {
        if addrs.is_empty() {
            return;
        }
        if self.lists.len() == MAX_ASIDE {
            self.lists.remove(0);
        }
        self.lists.push(List {
            peers,
            addrs,
            until,
        });
    }

    /// Lets go of what was kept long enough; whether there was any.
    pub(crate) fn expire(&mut self, uptime: Duration) -> bool {
        let before = self.lists.len();
        self.lists.retain(|list| uptime < list.until);
        self.lists.len() < before
    }

    /// When the next are let go.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.lists.iter().map(|list| list.until).min()
    }

    /// All addresses kept.
    pub(crate) fn addrs(&self) -> BTreeSet<Addr> {
        let all = self.lists.iter().flat_map(|list| &list.addrs);
        all.copied().collect()
    }

    /// The peer an address is kept for, if it is kept and not for this one.
    pub(crate) fn kept_from(&self, addr: Addr, peer: PeerName) -> Option<PeerName> {
        let list = self.lists.iter().rfind(|list| list.addrs.contains(&addr))?;
        let others = list.peers.iter().next().copied();
        others.filter(|_| !list.peers.contains(&peer))
    }
}

impl Aside {
    pub(crate) fn write_all(all: &[Self], w: &mut Writer) {
        w.u32(u32::try_from(all.len()).unwrap_or(u32::MAX));
        for aside in all {
            write_peers(w, aside.peers.iter());
            write_addrs(w, &aside.addrs);
            w.u64(aside.seconds);
        }
    }

    pub(crate) fn read_all(r: &mut Reader<'_>, family: Family) -> Result<Vec<Self>, Malformed> {
        let count = bounded(r.u32("lists set aside")?, MAX_ASIDE, "lists set aside")?;
        let read = |r: &mut Reader<'_>| {
            Ok(Self {
                peers: read_peers(r, MAX_TAKEN)?,
                addrs: read_addrs(r, family)?,
                seconds: r.u64("time set aside")?,
            })
        };
        (0..count).map(|_| read(r)).collect()
    }
}
