//! What must be true at any moment, as a model that knows only what containers were told.
//!
//! * An address is used by one container among those that frames can pass between, and by one
//!   within a ring, unless a peer was taken over while it was cut off; no two peers of a ring may give
//!   it out (`reclaim.rs`); a container keeps its address over restarts of its peer.
//! * A frame is delivered once by each peer at the most, and unchanged; no container hears another
//!   one speak from its own address.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use weft_dns::Domain;
use weft_ipam::{Addr, Allocator, Answer, Cidr, ContainerId, RequestError, RequestId};
use weft_wire::{Frame, MacAddr};

use crate::world::World;

#[derive(Default)]
pub(crate) struct Model {
    /// How many comparisons with what should be were made.
    pub(crate) checks: Cell<u64>,
    pub(crate) containers: Vec<Container>,
    /// Containers that ended.
    pub(crate) gone: BTreeSet<usize>,
    /// Addresses in use: answered, not freed, not lost to another peer.
    pub(crate) holding: BTreeMap<(usize, ContainerId), Addr>,
    /// Containers that lost their address, and still try to speak from it.
    pub(crate) silenced: BTreeMap<(usize, ContainerId), Addr>,
    pub(crate) asked: BTreeMap<(usize, RequestId), usize>,
    pub(crate) errors: Vec<(usize, RequestError)>,
    pub(crate) refusals: BTreeMap<usize, BTreeSet<String>>,
    pub(crate) drops: BTreeMap<usize, u64>,
    pub(crate) relayed: u64,
    pub(crate) conflicts: u64,
    /// Peers that heard of another one with their name.
    pub(crate) clashes: BTreeSet<usize>,
    pub(crate) taken_over: u64,
    /// Addresses that electors took from a dead peer.
    pub(crate) reclaimed: u64,
    /// A peer that is cut off may be taken over: what it gave out shortly before is given out again.
    pub(crate) takeovers: bool,
    /// Frames sent, and how often each run of a peer delivered each.
    frames: Vec<Vec<u8>>,
    delivered: BTreeMap<(usize, usize, u64), u64>,
    /// Addresses that are being claimed anew count like others.
    pub(crate) strict: bool,
    /// Who frames pass between, or who uses what, may have changed.
    pub(crate) recheck: bool,
    recheck_rings: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Container {
    pub(crate) host: usize,
    pub(crate) id: ContainerId,
    pub(crate) mac: MacAddr,
    /// Where its address is to come from, if not from the default pool.
    pub(crate) subnet: Option<Cidr>,
}

pub(crate) fn domain() -> Domain {
    "weft.local".parse().unwrap()
}

impl Model {
    pub(crate) fn checked(&self, times: usize) {
        self.checks.set(self.checks.get() + times as u64);
    }

    pub(crate) fn add_container(&mut self, host: usize, subnet: Option<Cidr>) -> usize {
        let c = self.containers.len();
        let [high, low] = u16::try_from(c).unwrap().to_be_bytes();
        self.containers.push(Container {
            host,
            id: ContainerId::new(&format!("c{c}")),
            mac: MacAddr::from_bytes([0x02, 0xc0, 0, 0, high, low]),
            subnet,
        });
        c
    }

    pub(crate) fn who(&self, c: usize) -> (usize, ContainerId) {
        let container = &self.containers[c];
        (container.host, container.id.clone())
    }

    pub(crate) fn address(&self, c: usize) -> Option<Addr> {
        self.holding.get(&self.who(c)).copied()
    }

    pub(crate) fn is_asked(&self, c: usize) -> bool {
        self.asked.values().any(|asked| *asked == c)
    }

    /// Containers that run on a host.
    pub(crate) fn on(&self, host: usize) -> Vec<usize> {
        let all = 0..self.containers.len();
        all.filter(|c| self.containers[*c].host == host && !self.gone.contains(c))
            .collect()
    }

    pub(crate) fn forget_peer(&mut self, n: usize) {
        self.gone.extend(self.on(n));
        self.holding.retain(|(at, _), _| *at != n);
        self.silenced.retain(|(at, _), _| *at != n);
    }

    pub(crate) fn note_conflict(&mut self, n: usize, container: &ContainerId, addr: Addr) {
        let who = (n, container.clone());
        if self.holding.remove(&who).is_some() {
            self.silenced.insert(who, addr);
            self.conflicts += 1;
        }
        self.recheck = true;
    }

    pub(crate) fn note_refusal(&mut self, n: usize, text: String) {
        self.refusals.entry(n).or_default().insert(text);
    }

    pub(crate) fn deliveries(&self, frame: usize, n: usize, run: u64) -> u64 {
        self.delivered.get(&(frame, n, run)).copied().unwrap_or(0)
    }
}

impl World {
    pub(crate) fn note_answer(
        &mut self,
        n: usize,
        id: RequestId,
        result: Result<Answer, RequestError>,
    ) {
        let asked = self.model.asked.remove(&(n, id));
        let c = asked.expect("an answer to nothing, or a second one");
        let (_, container) = self.model.who(c);
        self.model.recheck = true;
        self.model.recheck_rings = true;
        match result {
            Ok(Answer::Address { addr, .. }) => {
                let held = self.peers[n].up().ipam.lookup(&container);
                // It may have been lost again already; that is said next.
                if held.iter().any(|(a, _)| *a == addr) && !self.model.gone.contains(&c) {
                    self.model.holding.insert((n, container.clone()), addr);
                    self.name_container(n, &container);
                }
            }
            Ok(Answer::Claimed | Answer::Primed) => {}
            Err(error) => self.model.errors.push((c, error)),
        }
    }

    /// A peer came back: its containers, which went on without it, still have their addresses.
    pub(crate) fn check_kept(&self, n: usize) {
        let ipam = &self.peers[n].up().ipam;
        let held: BTreeSet<_> = ipam
            .holders()
            .map(|(c, addr, _)| (c.clone(), addr))
            .collect();
        self.model.checked(self.model.holding.len());
        for ((at, container), addr) in &self.model.holding {
            assert!(
                *at != n || held.contains(&(container.clone(), *addr)),
                "{container} of n{n} has lost {addr} in a restart {}",
                self.replay()
            );
        }
    }

    pub(crate) fn check_addresses(&mut self) {
        if std::mem::take(&mut self.model.recheck) {
            for group in self.groups(|world, a, b| world.frames_pass(a, b)) {
                self.check_unique("among peers that frames pass between", |n, addr| {
                    group.contains(&n) && !self.is_unsettled(n, addr)
                });
            }
        }
        if std::mem::take(&mut self.model.recheck_rings) {
            self.check_ranges();
            if !self.model.takeovers {
                self.check_rings();
            }
        }
    }

    /// Whether a container's address is being claimed anew, since its owner could not be reached when
    /// the ring was changed. When the owner comes within reach, over other peers, there is a moment in
    /// which both speak.
    fn is_unsettled(&self, n: usize, addr: Addr) -> bool {
        let up = self.peers[n].up.as_ref().filter(|_| !self.model.strict);
        up.is_some_and(|up| up.forwarding.unsettled.contains(&addr))
    }

    fn check_rings(&self) {
        let up = |n: &usize| self.peers[*n].up.is_some();
        let peers: Vec<_> = (0..self.peers.len()).filter(up).collect();
        let statuses: BTreeMap<_, Vec<_>> = peers
            .iter()
            .map(|n| {
                let pools = self.peers[*n].up().ipam.iter();
                (*n, pools.map(Allocator::status).collect())
            })
            .collect();
        let all = statuses.values().flatten();
        let rings: BTreeSet<_> = all.filter_map(|s| Some((s.pool, s.ring?))).collect();
        for (pool, ring) in rings {
            self.check_unique("within a ring", |n, addr| {
                let mut pools = statuses.get(&n).into_iter().flatten();
                pools.any(|status| {
                    let unsettled = status.unsettled.iter().any(|u| u.addr == addr);
                    let ours = status.pool == pool && pool.contains(addr);
                    ours && status.ring == Some(ring) && !unsettled
                })
            });
        }
    }

    fn check_unique(&self, where_: &str, counts: impl Fn(usize, Addr) -> bool) {
        let mut users = BTreeMap::new();
        self.model.checked(self.model.holding.len());
        for (who, addr) in &self.model.holding {
            if !counts(who.0, *addr) {
                continue;
            }
            if let Some(other) = users.insert(*addr, who) {
                panic!(
                    "{addr} is used by {who:?} and {other:?} {where_} {}",
                    self.replay()
                );
            }
        }
    }

    /// Whether two peers take frames from each other, as far as they are concerned.
    pub(crate) fn frames_pass(&self, a: usize, b: usize) -> bool {
        let one_way = |a: usize, b: usize| {
            let up = self.peers[a].up.as_ref();
            up.is_some_and(|up| up.forwarding.neighbours.contains_key(&self.peers[b].name))
        };
        one_way(a, b) && one_way(b, a)
    }

    /// Who is joined to whom, directly or over others.
    pub(crate) fn groups(
        &self,
        joined: impl Fn(&Self, usize, usize) -> bool,
    ) -> Vec<BTreeSet<usize>> {
        let mut groups = Vec::new();
        let mut left: BTreeSet<usize> = (0..self.peers.len()).collect();
        while let Some(first) = left.pop_first() {
            let mut group = BTreeSet::from([first]);
            let mut open = vec![first];
            while let Some(a) = open.pop() {
                let next: Vec<_> = left
                    .iter()
                    .copied()
                    .filter(|b| joined(self, a, *b))
                    .collect();
                for b in next {
                    left.remove(&b);
                    group.insert(b);
                    open.push(b);
                }
            }
            groups.push(group);
        }
        groups
    }

    /// A container sends a frame, to one other's MAC or to all; the frame's number.
    ///
    /// It is an ARP message from the address the container has, or had before it lost it; of IPv6 an
    /// advertisement of it.
    pub(crate) fn send_frame(&mut self, c: usize, to: Option<usize>) -> Option<usize> {
        let who = self.model.who(c);
        let addr = self.model.holding.get(&who);
        let addr = *addr.or_else(|| self.model.silenced.get(&who))?;
        self.peers[who.0].up.as_ref()?;
        let id = self.model.frames.len();
        let dst = to.map_or(MacAddr::BROADCAST, |to| self.model.containers[to].mac);
        let src = self.model.containers[c].mac;
        let mut frame = [dst.to_bytes(), src.to_bytes()].concat();
        match IpAddr::from(addr) {
            IpAddr::V4(ip) => {
                frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
                frame.extend(src.to_bytes());
                frame.extend(ip.octets());
                frame.extend([0; 6]);
                frame.extend(ip.octets());
            }
            IpAddr::V6(ip) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255]);
                frame.extend(ip.octets());
                frame.extend(Ipv6Addr::LOCALHOST.octets());
                frame.extend([136, 0, 0, 0, 0, 0, 0, 0]);
                frame.extend(ip.octets());
            }
        }
        frame.extend((id as u64).to_be_bytes());
        self.model.frames.push(frame.clone());
        // A frame that goes nowhere is for the checks to notice.
        let _ = self.capture(who.0, &frame);
        self.work(who.0);
        Some(id)
    }

    pub(crate) fn note_delivery(&mut self, n: usize, bytes: &[u8]) {
        let id = u64::from_be_bytes(*bytes.last_chunk().unwrap());
        let id = usize::try_from(id).unwrap();
        self.model.checked(3);
        assert_eq!(
            self.model.frames.get(id).map(Vec::as_slice),
            Some(bytes),
            "a frame was changed"
        );
        let run = self.peers[n].run;
        let times = self.model.delivered.entry((id, n, run)).or_default();
        *times += 1;
        assert!(
            *times == 1,
            "n{n} delivered a frame twice {}",
            self.replay()
        );
        let frame = Frame::new_checked(bytes).unwrap();
        let (src, from) = (frame.src(), frame.sender().unwrap());
        let mut at = self.model.holding.iter().filter(|((at, _), _)| *at == n);
        let from = from.into();
        let mut speakers = self.model.containers.iter().filter(|c| c.mac == src);
        let speaker = speakers.next().unwrap().host;
        let unsettled = [n, speaker].iter().any(|n| self.is_unsettled(*n, from));
        let twin = at.find(|(_, addr)| **addr == from && !unsettled);
        if let Some(((_, container), addr)) = twin {
            panic!(
                "{container} of n{n} hears another one speak from {addr} {}",
                self.replay()
            );
        }
    }
}
