//! The snapshot the loops forward by: made whole by the control side, never changed after.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use foldhash::fast::RandomState;
use weft_net::tap::Tap;
use weft_router::ConnId;
use weft_router::bindings::{BindingView, answer};
use weft_router::macs::MacView;
use weft_router::session::SendSession;
use weft_router::switch::View;
use weft_wire::resolution::Answer;
use weft_wire::{Frame, Network, PeerName};

use super::activity::Activity;

/// A map that is looked at for each frame, which is why the hash is a fast one.
pub(crate) type ByPeer<T> = HashMap<PeerName, T, RandomState>;

/// The TAPs of the networks this host has beside the default one.
pub(crate) type Taps = BTreeMap<Network, Arc<Tap>>;

/// What is sent to one neighbour by.
pub(crate) struct Egress {
    pub(crate) conn: ConnId,
    pub(crate) peer: PeerName,
    pub(crate) session: Arc<SendSession>,
    pub(crate) remote: SocketAddr,
    /// Bytes of the longest datagram that goes there.
    pub(crate) limit: usize,
    pub(crate) activity: Arc<Activity>,
}

/// How frames get to one peer.
pub(crate) struct Way {
    /// The neighbour they go to first.
    pub(crate) egress: Arc<Egress>,
    /// Notes that frames captured here are sent to that peer; only if somebody wants to know.
    pub(crate) demand: Option<Arc<Activity>>,
}

/// Where frames go.
pub(crate) struct Forwarding {
    pub(crate) us: PeerName,
    /// The resolver's address, which no ARP packet may speak of across hosts.
    pub(crate) dns: Ipv4Addr,
    /// Addresses of local containers that others hold; sorted.
    pub(crate) conflicts: Vec<IpAddr>,
    /// Where each MAC is.
    pub(crate) macs: MacView,
    /// Which addresses containers of other hosts have; none if nobody is to be answered.
    pub(crate) bindings: BindingView,
    /// The way to each peer.
    pub(crate) ways: ByPeer<Way>,
    /// To whom a flooded frame is passed on, by its origin.
    pub(crate) flood: ByPeer<Vec<Arc<Egress>>>,
    /// Neighbours frames are accepted from: their connections are established.
    pub(crate) neighbours: ByPeer<Arc<Egress>>,
    /// Every connection that there is a key to send with for: whose questions are answered.
    pub(crate) sessions: HashMap<ConnId, Arc<Egress>>,
    /// The further networks of this host; the same map as long as they are the same.
    pub(crate) taps: Arc<Taps>,
}

impl Forwarding {
    /// Nowhere yet.
    pub(crate) fn empty(us: PeerName, dns: Ipv4Addr) -> Self {
        Self {
            us,
            dns,
            conflicts: Vec::new(),
            macs: MacView::default(),
            bindings: BindingView::default(),
            ways: ByPeer::default(),
            flood: ByPeer::default(),
            neighbours: ByPeer::default(),
            sessions: HashMap::default(),
            taps: Arc::default(),
        }
    }

    /// What a decision on one frame rests on.
    pub(crate) fn view(&self) -> View<'_> {
        View {
            us: self.us,
            macs: &self.macs,
            dns: self.dns,
            conflicts: &self.conflicts,
        }
    }

    /// The answer we may give to a frame that would be flooded, in place of the one it asks for.
    pub(crate) fn answer(&self, frame: &Frame<'_>, network: Network) -> Option<Answer> {
        let is_reachable = |peer| self.ways.contains_key(&peer);
        answer(frame, network, &self.bindings, &self.view(), is_reachable)
    }

    /// The neighbours that get a flooded frame of this origin.
    pub(crate) fn flood_to(&self, origin: PeerName) -> &[Arc<Egress>] {
        self.flood.get(&origin).map_or(&[], Vec::as_slice)
    }
}
