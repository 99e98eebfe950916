//! All connections, and which of them is due first.
//!
//! A router asks after every message when to be called next, and with a hundred connections looking at each
//! of them costs more than the message. So their times are kept in order; a connection that somebody has had
//! in hand is asked anew.
//!
//! Invariant: a connection is either `touched`, or in `due` at the time it gives itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::ConnId;
use crate::link::Link;

/// Connections by number.
#[derive(Debug, Default)]
pub(crate) struct Links {
    all: BTreeMap<ConnId, Held>,
    due: BTreeSet<(Instant, ConnId)>,
    /// Those that may have come to be due at another time.
    touched: Vec<ConnId>,
}

#[derive(Debug)]
struct Held {
    link: Link,
    /// Where it stands in `due`; none of one that is touched.
    due: Option<Instant>,
}

/// So many are asked each time before they are put in order again.
const FEW: usize = 4;

impl Links {
    pub(crate) fn get(&self, conn: &ConnId) -> Option<&Link> {
        self.all.get(conn).map(|held| &held.link)
    }

    pub(crate) fn get_mut(&mut self, conn: &ConnId) -> Option<&mut Link> {
        self.make_room();
        let held = self.all.get_mut(conn)?;
        if let Some(at) = held.due.take() {
            self.due.remove(&(at, *conn));
            self.touched.push(*conn);
        }
        Some(&mut held.link)
    }

    pub(crate) fn insert(&mut self, conn: ConnId, link: Link) {
        self.remove(&conn);
        self.make_room();
        self.touched.push(conn);
        self.all.insert(conn, Held { link, due: None });
    }

    pub(crate) fn remove(&mut self, conn: &ConnId) -> Option<Link> {
        let held = self.all.remove(conn)?;
        match held.due {
            Some(at) => {
                self.due.remove(&(at, *conn));
            }
            None => self.touched.retain(|touched| touched != conn),
        }
        Some(held.link)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ConnId, &Link)> {
        self.all.iter().map(|(conn, held)| (conn, &held.link))
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &ConnId> {
        self.all.keys()
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &Link> {
        self.all.values().map(|held| &held.link)
    }

    /// When something is to be done about one of them, and what.
    pub(crate) fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let first = self.due.first().map(|(_, conn)| conn);
        let all = first.into_iter().chain(&self.touched);
        let times = all.filter_map(|conn| Some(self.get(conn)?.poll_timeout()));
        times.min_by_key(|(at, _)| *at)
    }

    /// Those that something is to be done about.
    pub(crate) fn due(&mut self, now: Instant) -> BTreeSet<ConnId> {
        self.put_in_order();
        let due = self.due.iter().take_while(|(at, _)| *at <= now);
        due.map(|(_, conn)| *conn).collect()
    }

    /// For one more that is touched.
    fn make_room(&mut self) {
        if self.touched.len() >= FEW {
            self.put_in_order();
        }
    }

    fn put_in_order(&mut self) {
        for conn in self.touched.drain(..) {
            if let Some(held) = self.all.get_mut(&conn) {
                let (at, _) = held.link.poll_timeout();
                held.due = Some(at);
                self.due.insert((at, conn));
            }
        }
    }
}
