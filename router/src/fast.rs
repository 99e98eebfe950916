//! Who carries the frames to one peer: the kernels of both hosts, by VXLAN and in clear, or the routers,
//! sealed?
//!
//! ```text
//!            both trust, both have said that they are open        3 beats answered, and established
//!   Sealed ──────────────────────────────────────────────▶ Asking ─────────────────────────────────▶ Kernel
//!     ▲ ▲                                                   ▲   │                                     │   │
//!     │ └─── trust, address or the other's word is gone ────┼───┴─────────────────────────────────────┘   │
//!     │                                                     └───── 8 beats in a row not answered ─────────┤
//!     │  60 s, or another way leads there                                   the connection breaks off     │
//!     └─────────────────────────────────────── Held ◀─────────────────────────────────────────────────────┘
//!                                               └──▶ a new connection: asking, while the kernel goes on
//! ```
//!
//! Each end decides for what it sends. It asks by beats, frames as long as the network allows, through
//! the VXLAN itself; answers come over the control connection. While all is well that is once a second;
//! an answer that is missing makes them come four times as often, so a way that is cut or has become
//! narrow is left within four seconds.
//!
//! A router that dies leaves its kernel forwarding, and so do the others towards it: whoever comes back
//! within the hold goes on without a break.
//!
//! Invariants: frames from an address are let in only while both ends trust the way to it, or for the
//! hold after the peer was last there; the kernel gets frames only for a peer that let us in over this
//! connection, or is held; a number of a beat is answered once.

mod line;
mod terms;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use rand_core::Rng;
use weft_wire::PeerName;
use weft_wire::fast::{Beat, Fast as Word, TAG_LEN};

use crate::ConnId;
use line::{ANSWERS, BeatKey, Line, MISSED, STEADILY, Said};
use terms::{Sealed, objection};

pub(crate) use terms::{Support, Terms};

/// Who carries frames to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// The routers, sealed.
    Router,
    /// The kernel, to a VXLAN there.
    Kernel {
        /// The peer's host.
        addr: Ipv4Addr,
        /// The port its VXLAN listens on.
        port: u16,
    },
}

/// How a peer's frames go, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Carriage {
    /// By the kernel.
    Kernel,
    /// Sealed, by the routers. Why, where somebody wished otherwise.
    Sealed(Option<String>),
}

impl Carriage {
    /// Why not by the kernel; empty if it is, or nobody wished it.
    pub(crate) fn why(self) -> String {
        match self {
            Self::Kernel => String::new(),
            Self::Sealed(why) => why.unwrap_or_default(),
        }
    }
}

/// The fast datapath towards one peer; it outlives the connections with it.
#[derive(Debug)]
pub(crate) struct Fast {
    peer: PeerName,
    /// What the node was told last.
    carrier: Option<Carrier>,
    /// From where the peer's frames are let in.
    open_to: Option<Ipv4Addr>,
    line: Option<Line>,
    /// Since when there is no connection.
    gone: Option<Instant>,
    /// The kernel goes on until then without being proven to get through.
    held_until: Option<Instant>,
    /// When to ask whether another way leads to a peer that is held.
    detour_at: Option<Instant>,
    sealed: Sealed,
    /// When the kernel began to carry.
    risen: Option<Instant>,
    /// For how long all must have been answered before it does so again.
    calm: Duration,
    effects: VecDeque<Effect>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Say this over the connection.
    Say(ConnId, Word),
    /// Let frames from this address in; before anything that comes after.
    Admit(Ipv4Addr),
    /// Let them in no more.
    Bar(Ipv4Addr),
    /// Sign this beat and send it to the VXLAN there.
    Beat {
        addr: Ipv4Addr,
        port: u16,
        frame: Vec<u8>,
    },
    /// This one carries frames from here on.
    Carry(Carrier),
}

impl Fast {
    pub(crate) fn new(peer: PeerName) -> Self {
        Self {
            peer,
            carrier: None,
            open_to: None,
            line: None,
            gone: None,
            held_until: None,
            detour_at: None,
            sealed: Sealed::Unasked,
            risen: None,
            calm: Duration::ZERO,
            effects: VecDeque::new(),
        }
    }

    /// The connection of the peer may be another one, or like something else.
    pub(crate) fn update(
        &mut self,
        terms: &Terms,
        support: &Support,
        rng: &mut impl Rng,
        now: Instant,
    ) {
        (self.gone, self.detour_at) = (None, None);
        let mut line = match self.line.take() {
            Some(line) if line.conn == terms.conn => line,
            Some(_) | None => Line::new(terms.conn, now),
        };
        let lost = line.established && !terms.established;
        line.established = terms.established;
        self.line = Some(line);
        match objection(terms, support) {
            Some(why) => {
                let told = terms.we_trust && terms.they_trust;
                self.shut(why, told, now);
            }
            None => {
                if let (Ok(port), Some(IpAddr::V4(addr))) = (support, terms.addr) {
                    self.open(addr, *port, rng, now);
                } else if self.sealed == Sealed::Unasked {
                    self.sealed = Sealed::Waiting;
                }
            }
        }
        if lost {
            self.fall(Sealed::Waiting, now);
        }
        self.settle(now);
    }

    /// The peer has no connection with us any more. If that `broke` off, its kernel may go on.
    pub(crate) fn handle_gone(&mut self, broke: bool, now: Instant) {
        self.line = None;
        self.gone = Some(now);
        if broke && matches!(self.carrier, Some(Carrier::Kernel { .. })) {
            self.held_until.get_or_insert(now + HOLD);
            self.detour_at = Some(now + DETOUR);
            return;
        }
        self.fall(Sealed::Waiting, now);
        if !broke {
            self.bar();
        }
    }

    /// The peer says something.
    pub(crate) fn handle_word(&mut self, word: Word, now: Instant) {
        let Some(line) = &mut self.line else {
            return;
        };
        match word {
            Word::Open { port, key } => {
                line.theirs = Some((port, BeatKey::new(key)));
                line.refused = None;
                line.begin(now);
                self.settle(now);
            }
            Word::Shut(why) => {
                line.theirs = None;
                line.refused = Some(why.clone());
                if self.open_to.is_some() {
                    self.fall(Sealed::Refused(why), now);
                }
            }
            Word::Came(number) => {
                let carries = matches!(self.carrier, Some(Carrier::Kernel { .. }));
                line.came(number, carries, now);
                self.settle(now);
            }
        }
    }

    /// A beat of this peer has come through the VXLAN, as it seems. One that is not as long as the
    /// network allows proves nothing.
    pub(crate) fn handle_beat(&mut self, beat: Beat, tag: &[u8; TAG_LEN], mtu: u16) {
        let Some(line) = &mut self.line else {
            return;
        };
        let Some(Said::Open(key)) = &line.said else {
            return;
        };
        let whole = beat.len == Beat::len_for(mtu);
        if whole && beat.number > line.newest && key.made(&beat, tag) {
            line.newest = beat.number;
            let came = Effect::Say(line.conn, Word::Came(beat.number));
            self.effects.push_back(came);
        }
    }

    /// Does what is due. `elsewhere` tells whether another way leads to a peer that has no connection
    /// with us: then it lives, and that way is as good as it gets.
    pub(crate) fn handle_timeout(&mut self, us: PeerName, mtu: u16, elsewhere: bool, now: Instant) {
        let detour = self.detour_at.is_some_and(|at| now >= at);
        if detour {
            // Nobody says when there is one.
            self.detour_at = Some(now + LOOK);
        }
        let expired = self.held_until.is_some_and(|until| now >= until);
        if expired || (detour && elsewhere) {
            self.fall(Sealed::Waiting, now);
        }
        if self.is_over(now) {
            self.bar();
        }
        let Some(line) = self.line.as_mut().filter(|line| line.is_due(now)) else {
            return;
        };
        let (Some(addr), Some((port, key))) = (self.open_to, line.theirs.clone()) else {
            return;
        };
        if line.unanswered() >= MISSED {
            line.answers = 0;
            self.fall(Sealed::Silent { mtu, port }, now);
        }
        let carries = matches!(self.carrier, Some(Carrier::Kernel { .. }));
        if let Some(line) = &mut self.line {
            let beat = line.ask(us, mtu, carries, now);
            self.effects.push_back(Effect::Beat {
                addr,
                port,
                frame: beat.emit(self.peer, key.sign(&beat)),
            });
        }
    }

    /// When [`Self::handle_timeout`] has something to do.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let beat = self.line.as_ref().filter(|line| line.theirs.is_some());
        let beat = beat.filter(|_| self.open_to.is_some()).map(|line| line.due);
        let over = self.gone.map(|at| at + HOLD);
        let all = [beat, over, self.detour_at, self.held_until];
        all.into_iter().flatten().min()
    }

    /// Nothing of it need be kept.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        let nothing = self.open_to.is_none() && self.held_until.is_none();
        self.gone.is_some_and(|at| nothing || now >= at + HOLD)
    }

    /// The next thing to do.
    pub(crate) fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// How the peer's frames go.
    pub(crate) fn carriage(&self) -> Carriage {
        match self.carrier {
            Some(Carrier::Kernel { .. }) => Carriage::Kernel,
            Some(Carrier::Router) | None => Carriage::Sealed(self.sealed.words()),
        }
    }

    fn open(&mut self, addr: Ipv4Addr, port: u16, rng: &mut impl Rng, now: Instant) {
        if self.open_to != Some(addr) {
            if self.open_to.is_some() {
                self.fall(Sealed::Waiting, now);
                self.bar();
            }
            self.open_to = Some(addr);
            self.effects.push_back(Effect::Admit(addr));
        }
        if let Some(line) = &mut self.line
            && !matches!(line.said, Some(Said::Open(_)))
        {
            let mut key = [0; 32];
            rng.fill_bytes(&mut key);
            line.said = Some(Said::Open(BeatKey::new(key)));
            line.newest = 0;
            let open = Word::Open { port, key };
            self.effects.push_back(Effect::Say(line.conn, open));
            self.sealed = match &line.refused {
                Some(why) => Sealed::Refused(why.clone()),
                None => Sealed::Waiting,
            };
            line.begin(now);
        }
    }

    /// There is no use in letting the peer's frames in.
    fn shut(&mut self, why: Sealed, told: bool, now: Instant) {
        let words = why.words().unwrap_or_default();
        self.fall(why, now);
        if let Some(line) = &mut self.line {
            let known = match &line.said {
                None => !told,
                Some(Said::Open(_)) => false,
                Some(Said::Shut(said)) => *said == words,
            };
            if !known {
                let shut = Word::Shut(words.clone());
                self.effects.push_back(Effect::Say(line.conn, shut));
                line.said = Some(Said::Shut(words));
            }
        }
        self.bar();
    }

    fn bar(&mut self) {
        self.effects.extend(self.open_to.take().map(Effect::Bar));
    }

    /// Has the kernel carry frames if it is proven that it can.
    fn settle(&mut self, now: Instant) {
        let Some(line) = &self.line else {
            return;
        };
        let (Some(addr), Some((port, _))) = (self.open_to, &line.theirs) else {
            return;
        };
        let proven = line.answers >= ANSWERS && now >= line.row_began + self.calm;
        if !proven || !line.established {
            return;
        }
        let carrier = Carrier::Kernel { addr, port: *port };
        if self.held_until.take().is_some() {
            // What went on without the peer is looked at again.
            self.carrier = None;
        }
        self.risen.get_or_insert(now);
        self.carry(carrier);
    }

    /// Has the routers carry frames, if they do not.
    fn fall(&mut self, why: Sealed, now: Instant) {
        self.sealed = why;
        (self.held_until, self.detour_at) = (None, None);
        if let Some(line) = &mut self.line {
            line.answers = 0;
        }
        if let Some(risen) = self.risen.take() {
            // On a way that works now and then it would be to and fro all the time.
            self.calm = if now < risen + STEADY {
                (self.calm * 2).clamp(STEADILY, STEADY)
            } else {
                Duration::ZERO
            };
        }
        self.carry(Carrier::Router);
    }

    fn carry(&mut self, carrier: Carrier) {
        if self.carrier != Some(carrier) {
            self.carrier = Some(carrier);
            self.effects.push_back(Effect::Carry(carrier));
        }
    }
}

/// How long a peer's frames are let in, and the kernel goes on towards it, after its connection broke off.
const HOLD: Duration = Duration::from_secs(60);
/// After this long it has got round that the peer's router is dead, if it is.
const DETOUR: Duration = Duration::from_secs(3);
/// How often it is asked whether there is another way.
const LOOK: Duration = Duration::from_secs(1);
/// On a way that was lost within this time answers must come for twice as long as the last time before it
/// is taken again, and for this long at the most.
const STEADY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
