//! The network between the peers: TCP as ordered pipes of bytes, UDP as datagrams that may not come,
//! come late, twice or out of order; and what is wrong with either.
//!
//! Invariant: what goes into a pipe comes out in order and once, or the pipe ends.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use weft_router::{ConnId, Target};

use crate::world::{Delivery, World};

pub(crate) const PORT: u16 = 6783;
/// As the node waits for a dial, and the kernel for what it sent to be taken.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// How soon a pipe tries again what could not be delivered.
const RETRANSMIT: Duration = Duration::from_millis(200);
/// Bytes of one TCP segment; and what goes with it, IPv4 on an Ethernet.
const SEGMENT: usize = 536;
const TCP_HEADERS: u64 = 66;
const ACK: u64 = 66;
const UDP_HEADERS: u64 = 42;

/// One end of a pipe: a connection of one run of a peer.
pub(crate) type End = (usize, u64, ConnId);

/// Shares are per mille.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Weather {
    /// Datagrams lost, and datagrams that come twice.
    pub(crate) loss: u64,
    pub(crate) repeat: u64,
    /// Dials that fail for no reason.
    pub(crate) dial_failures: u64,
    /// Messages between allocators that find no way.
    pub(crate) message_loss: u64,
    /// Delays are between 1 ms and this.
    pub(crate) delay_ms: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Underlay {
    pub(crate) weather: Weather,
    /// From whom to whom nothing passes, no datagrams pass, nobody can dial.
    pub(crate) cut: BTreeSet<(usize, usize)>,
    pub(crate) udp_cut: BTreeSet<(usize, usize)>,
    pub(crate) dial_cut: BTreeSet<(usize, usize)>,
    /// By the end that writes.
    pub(crate) pipes: BTreeMap<End, Pipe>,
    dialling: BTreeSet<End>,
    pub(crate) carried: Carried,
}

/// What was sent, in bytes on an Ethernet.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Carried {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    /// Of gossip, without any header.
    pub(crate) gossip: u64,
}

#[derive(Debug)]
pub(crate) struct Pipe {
    pub(crate) to: End,
    items: VecDeque<(Instant, Item)>,
    closed: bool,
}

#[derive(Debug)]
enum Item {
    Dialed(SocketAddr),
    Bytes(Vec<u8>),
    End(&'static str),
}

impl Underlay {
    fn passes(&self, from: usize, to: usize) -> bool {
        !self.cut.contains(&(from, to))
    }

    /// Whether two peers can have a connection: all passes both ways, and one can dial the other.
    pub(crate) fn joins(&self, a: usize, b: usize) -> bool {
        let both = [(a, b), (b, a)];
        both.iter()
            .all(|way| !self.cut.contains(way) && !self.udp_cut.contains(way))
            && !both.iter().all(|way| self.dial_cut.contains(way))
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
        self.udp_cut.clear();
        self.dial_cut.clear();
    }
}

pub(crate) fn address(n: usize) -> SocketAddr {
    let [high, low] = u16::try_from(n + 1).unwrap().to_be_bytes();
    SocketAddr::from(([10, 0, high, low], PORT))
}

fn peer_at(addr: SocketAddr) -> Option<usize> {
    let SocketAddr::V4(v4) = addr else {
        return None;
    };
    let [10, 0, high, low] = v4.ip().octets() else {
        return None;
    };
    usize::from(u16::from_be_bytes([high, low])).checked_sub(1)
}

fn resolve(target: &Target) -> Option<usize> {
    let named = target.host.strip_prefix('n').and_then(|n| n.parse().ok());
    let at = || peer_at(SocketAddr::new(target.host.parse().ok()?, PORT));
    named.or_else(at)
}

impl World {
    pub(crate) fn delay(&mut self) -> Duration {
        let most = self.net.weather.delay_ms.max(1);
        Duration::from_micros(1000 + self.random(most * 1000))
    }

    pub(crate) fn dial(&mut self, end: End, target: &Target) {
        self.net.dialling.insert(end);
        let Some(to) = resolve(target).filter(|to| *to < self.peers.len()) else {
            let why = format!("cannot resolve {}", target.host);
            return self.later(Duration::ZERO, Delivery::DialFailed(end, why));
        };
        let delay = self.delay();
        self.later(delay, Delivery::Knock(end, to));
        let why = format!("no answer from {target}");
        self.later(DIAL_TIMEOUT, Delivery::DialFailed(end, why));
    }

    /// A dial has come to the one dialled.
    pub(crate) fn knock(&mut self, end: End, to: usize) {
        let from = end.0;
        let open = self.net.passes(from, to)
            && self.net.passes(to, from)
            && !self.net.dial_cut.contains(&(from, to))
            && !self.peers[to].is_dark;
        if !self.net.dialling.contains(&end) || !open {
            return;
        }
        let failures = self.net.weather.dial_failures;
        let fails = self.chance(failures);
        if fails {
            self.fault("dial failed");
        }
        if self.peers[to].up.is_none() || fails {
            let delay = self.delay();
            let why = "connection refused".to_owned();
            return self.later(delay, Delivery::DialFailed(end, why));
        }
        let port = 40_000 + u16::try_from(end.2.0 % 20_000).unwrap();
        let remote = SocketAddr::new(address(from).ip(), port);
        let now = self.clock(to);
        let run = self.peers[to].run;
        let router = &mut self.peers[to].up.as_mut().unwrap().router;
        let accepted = router.handle_accepted(remote, now);
        // A connection closed at once has an end there that nobody knows.
        let there = (to, run, accepted.unwrap_or(ConnId(u64::MAX - end.2.0)));
        self.open_pipe(there, end);
        self.write(there, Item::Dialed(address(to)));
        match accepted {
            Some(_) => self.open_pipe(end, there),
            None => self.close(there),
        }
        self.work(to);
    }

    pub(crate) fn dial_failed(&mut self, end: End, why: String) {
        if self.net.dialling.remove(&end) {
            self.close(end);
            let now = self.clock(end.0);
            self.tell_router(end, |router| router.handle_dial_failed(end.2, why, now));
        }
    }

    fn open_pipe(&mut self, from: End, to: End) {
        let pipe = Pipe {
            to,
            items: VecDeque::new(),
            closed: false,
        };
        self.net.pipes.insert(from, pipe);
    }

    pub(crate) fn transmit(&mut self, end: End, bytes: Vec<u8>) {
        let segments = bytes.len().div_ceil(SEGMENT) as u64;
        self.net.carried.messages += 1;
        self.net.carried.bytes += bytes.len() as u64 + segments * (TCP_HEADERS + ACK);
        self.write(end, Item::Bytes(bytes));
    }

    /// The peer at this end ends the connection, or the dial.
    pub(crate) fn close(&mut self, end: End) {
        self.net.dialling.remove(&end);
        self.write(end, Item::End("the other side closed the connection"));
        if let Some(pipe) = self.net.pipes.get_mut(&end) {
            pipe.closed = true;
        }
    }

    fn write(&mut self, end: End, item: Item) {
        let at = self.now + self.delay();
        let Some(pipe) = self.net.pipes.get_mut(&end).filter(|pipe| !pipe.closed) else {
            return;
        };
        let last = pipe.items.back().map(|(at, _)| *at);
        let at = last.map_or(at, |last| last.max(at));
        pipe.items.push_back((at, item));
        self.at(at, Delivery::Pipe(end));
    }

    /// Something in a pipe is due.
    pub(crate) fn drain(&mut self, end: End) {
        while let Some(pipe) = self.net.pipes.get_mut(&end) {
            let Some((due, _)) = pipe.items.front() else {
                return;
            };
            let (due, to) = (*due, pipe.to);
            if due > self.now {
                return;
            }
            if self.peers[to.0].is_dark || self.net.cut.contains(&(end.0, to.0)) {
                if self.now - due > USER_TIMEOUT {
                    self.net.pipes.remove(&end);
                    self.closed(end, "connection timed out");
                } else {
                    self.later(RETRANSMIT, Delivery::Pipe(end));
                }
                return;
            }
            let (_, item) = pipe.items.pop_front().unwrap();
            self.read(end, to, item);
        }
    }

    fn read(&mut self, from: End, to: End, item: Item) {
        let now = self.clock(to.0);
        let is_end = matches!(item, Item::End(_));
        if is_end {
            self.net.pipes.remove(&from);
        }
        if let Item::Dialed(remote) = item {
            if self.net.dialling.remove(&to) {
                self.tell_router(to, |router| router.handle_dialed(to.2, remote, now));
            }
            return;
        }
        let open = self.net.pipes.get(&to).is_some_and(|pipe| !pipe.closed);
        match item {
            Item::Bytes(bytes) if open => {
                self.tell_router(to, |router| router.handle_bytes(to.2, &bytes, now));
            }
            Item::End(why) if open => self.closed(to, why),
            // Nobody has that connection there: the kernel says so.
            Item::Bytes(_)
                if self
                    .net
                    .pipes
                    .remove(&from)
                    .is_some_and(|pipe| !pipe.closed) =>
            {
                self.closed(from, "connection reset by peer");
            }
            Item::Bytes(_) | Item::End(_) | Item::Dialed(_) => {}
        }
    }

    fn closed(&mut self, end: End, why: &str) {
        let now = self.clock(end.0);
        self.tell_router(end, |router| {
            router.handle_closed(end.2, why.to_owned(), now)
        });
    }

    /// Ends both ends of a random connection, or only one of them for now.
    pub(crate) fn break_a_pipe(&mut self) {
        let ends: Vec<_> = self.net.pipes.keys().copied().collect();
        if ends.is_empty() {
            return;
        }
        let end = ends[self.pick(ends.len())];
        let pipe = self.net.pipes.remove(&end).unwrap();
        if self.chance(500) && self.net.pipes.remove(&pipe.to).is_some() {
            self.closed(pipe.to, "connection reset by peer");
        }
        self.closed(end, "connection reset by peer");
    }

    /// A process is gone: the kernel ends its connections, unless the power went too.
    pub(crate) fn drop_pipes_of(&mut self, n: usize, silently: bool) {
        self.net.dialling.retain(|end| end.0 != n);
        let ends: Vec<_> = self.net.pipes.keys().copied().collect();
        for end in ends.into_iter().filter(|end| end.0 == n) {
            if silently {
                self.net.pipes.remove(&end);
            } else {
                self.close(end);
            }
        }
    }

    pub(crate) fn send_datagram(&mut self, from: usize, to: SocketAddr, bytes: &[u8]) {
        self.net.carried.messages += 1;
        self.net.carried.bytes += bytes.len() as u64 + UDP_HEADERS;
        let Some(to) = peer_at(to).filter(|to| *to < self.peers.len()) else {
            return;
        };
        let weather = self.net.weather;
        let copies = match self.chance(weather.loss) {
            true => 0,
            false => 1 + u64::from(self.chance(weather.repeat)),
        };
        match copies {
            0 => self.fault("datagram lost"),
            1 => {}
            _ => self.fault("datagram repeated"),
        }
        for _ in 0..copies {
            let delay = self.delay();
            self.later(delay, Delivery::Datagram(from, to, bytes.to_vec()));
        }
    }

    pub(crate) fn datagram(&mut self, from: usize, to: usize, bytes: Vec<u8>) {
        if self.net.passes(from, to) && !self.net.udp_cut.contains(&(from, to)) {
            self.receive(to, address(from), bytes);
            self.work(to);
        }
    }
}
