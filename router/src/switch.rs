//! What becomes of one frame: the rules of the one Ethernet that all hosts make up.
//!
//! ```text
//!  decide_captured   a frame off the TAP          Forward to its peer | Flood | Drop
//!  decide_unicast    a frame that a peer sent us  Deliver | Relay | Drop
//!  decide_flood      a flooded frame              Deliver, pass on or not | Drop
//! ```
//!
//! All three are pure functions of the frame and of what the control side knows ([`View`]; for
//! floods also of what has been here before). They neither allocate nor lock, so any thread may call
//! them. Carrying the decision out is the caller's: it knows connections, this file knows none.
//!
//! Invariants: a frame from a peer is never sent to a peer again but along its own route or tree,
//! so the mesh has no loop even though every bridge floods; nothing crosses that must end at a host
//! (link-local groups, ARP about the resolver's address). Everything else that containers say to each
//! other passes, IPv6 router advertisements too.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use weft_wire::message::{FloodHeader, UnicastHeader};
use weft_wire::{Frame, Network, PeerName};

use crate::drop_reason::DropReason;
use crate::flood::Seen;
use crate::macs::{Location, MacView};

/// What a decision rests on.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Our own name.
    pub us: PeerName,
    /// Where each MAC is.
    pub macs: &'a MacView,
    /// The address of the resolver (usually 169.254.67.83), which each host's bridge has for itself.
    pub dns: Ipv4Addr,
    /// Addresses local containers use although another container holds them; sorted.
    pub conflicts: &'a [IpAddr],
}

/// What becomes of a frame captured on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Captured {
    /// Send it to this peer, over the next hop to it.
    Forward(PeerName),
    /// Send it to all, along our broadcast tree.
    Flood,
    /// Nothing.
    Drop(DropReason),
}

/// What becomes of a frame that a peer sent us to deliver or to pass on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// Inject it: it is for this host.
    Deliver,
    /// Send it to the next hop to its destination, with one hop less.
    Relay,
    /// Nothing.
    Drop(DropReason),
}

/// What becomes of a flooded frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flooded {
    /// Inject it and send it on along the broadcast tree of its origin, with one hop less.
    DeliverAndPassOn,
    /// Inject it; it may not be passed on any more.
    Deliver,
    /// Nothing.
    Drop(DropReason),
}

/// Decides on a frame read from the TAP of `network`.
pub fn decide_captured(frame: &Frame<'_>, network: Network, view: &View<'_>) -> Captured {
    if let Err(reason) = may_cross(frame, view) {
        return Captured::Drop(reason);
    }
    if in_conflict(frame, view) {
        return Captured::Drop(DropReason::AddressConflict);
    }
    if frame.dst().is_multicast() {
        return Captured::Flood;
    }
    match view.macs.lookup(network, frame.dst()) {
        Some(Location::Local) => Captured::Drop(DropReason::LocalDestination),
        Some(Location::Peer(peer)) => Captured::Forward(peer),
        None => Captured::Flood,
    }
}

/// Decides on a frame that came with this header.
pub fn decide_unicast(header: &UnicastHeader, frame: &Frame<'_>, view: &View<'_>) -> Received {
    if header.source == view.us {
        return Received::Drop(DropReason::Looped);
    }
    if let Err(reason) = may_cross(frame, view) {
        return Received::Drop(reason);
    }
    if header.destination == view.us {
        Received::Deliver
    } else if header.hops == 0 {
        Received::Drop(DropReason::HopLimit)
    } else {
        Received::Relay
    }
}

/// Decides on a flooded frame that came with this header. Its number counts as seen after that,
/// unless the frame is one that may not cross.
pub fn decide_flood(
    header: &FloodHeader,
    frame: &Frame<'_>,
    view: &View<'_>,
    seen: &mut Seen,
    now: Instant,
) -> Flooded {
    if header.origin == view.us {
        return Flooded::Drop(DropReason::Looped);
    }
    if let Err(reason) = may_cross(frame, view) {
        return Flooded::Drop(reason);
    }
    if !seen.first_time(header.origin, header.number, now) {
        Flooded::Drop(DropReason::DuplicateFlood)
    } else if header.hops == 0 {
        Flooded::Deliver
    } else {
        Flooded::DeliverAndPassOn
    }
}

/// Whether a frame speaks from an address that was taken from its container. Rings born apart may
/// have given one address out twice; when they meet, one of the two falls silent.
fn in_conflict(frame: &Frame<'_>, view: &View<'_>) -> bool {
    let is_taken = |addr| view.conflicts.binary_search(&addr).is_ok();
    !view.conflicts.is_empty() && frame.sender().is_some_and(is_taken)
}

/// Whether a frame may go from host to host at all, in either direction.
fn may_cross(frame: &Frame<'_>, view: &View<'_>) -> Result<(), DropReason> {
    if frame.src().is_multicast() {
        return Err(DropReason::MulticastSource);
    }
    if frame.dst().is_link_local_group() {
        return Err(DropReason::LinkLocalGroup);
    }
    match frame.arp() {
        Some(arp) if arp.sender == view.dns || arp.target == view.dns => {
            Err(DropReason::DnsAddress)
        }
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use weft_wire::MacAddr;
    use weft_wire::message::HOP_LIMIT;

    use super::*;
    use crate::macs::MacTable;

    #[test]
    fn known_unicast_goes_to_its_peer_and_unknown_to_all() {
        let macs = macs();
        let decide = |dst| decide_captured(&Ether::to(dst).view(), NET, &view(&macs));
        assert_eq!(decide(REMOTE), Captured::Forward(THEM));
        assert_eq!(decide(mac(99)), Captured::Flood);
        assert_eq!(decide(LOCAL), Captured::Drop(DropReason::LocalDestination));
    }

    #[test]
    fn a_mac_known_in_one_network_is_unknown_in_another() {
        let macs = macs();
        let other = Network::from_bytes([0, 0, 9]);
        let decided = decide_captured(&Ether::to(REMOTE).view(), other, &view(&macs));
        assert_eq!(decided, Captured::Flood);
    }

    #[test]
    fn broadcast_and_multicast_go_to_all() {
        let macs = macs();
        let mdns = MacAddr::from_bytes([1, 0, 0x5e, 0, 0, 0xfb]);
        // Where IPv6 router advertisements go.
        let all_nodes = MacAddr::from_bytes([0x33, 0x33, 0, 0, 0, 1]);
        for dst in [MacAddr::BROADCAST, mdns, all_nodes] {
            let decided = decide_captured(&Ether::to(dst).view(), NET, &view(&macs));
            assert_eq!(decided, Captured::Flood, "{dst}");
        }
    }

    #[test]
    fn link_local_groups_and_group_senders_never_cross() {
        let lldp = Ether::to(MacAddr::from_bytes([1, 0x80, 0xc2, 0, 0, 0x0e]));
        never_crosses(&lldp, DropReason::LinkLocalGroup);
        let mut forged = Ether::to(REMOTE);
        forged.0[6] |= 1;
        never_crosses(&forged, DropReason::MulticastSource);
    }

    #[test]
    fn arp_about_the_resolvers_address_never_crosses() {
        let container = Ipv4Addr::new(10, 32, 0, 1);
        never_crosses(&Ether::arp(container, DNS), DropReason::DnsAddress);
        never_crosses(&Ether::arp(DNS, container), DropReason::DnsAddress);
        let other = Ether::arp(container, Ipv4Addr::new(10, 32, 0, 2));
        let macs = macs();
        let decided = decide_captured(&other.view(), NET, &view(&macs));
        assert_eq!(decided, Captured::Flood);
    }

    #[test]
    fn what_is_for_us_is_delivered_even_on_its_last_hop() {
        for hops in [HOP_LIMIT, 0] {
            assert_eq!(unicast(THEM, US, hops), Received::Deliver);
        }
    }

    #[test]
    fn what_is_for_others_is_relayed_while_it_has_hops_left() {
        assert_eq!(unicast(THEM, OTHER, 1), Received::Relay);
        let dropped = Received::Drop(DropReason::HopLimit);
        assert_eq!(unicast(THEM, OTHER, 0), dropped);
    }

    #[test]
    fn our_own_frames_are_not_taken_back() {
        let looped = Received::Drop(DropReason::Looped);
        assert_eq!(unicast(US, US, 3), looped);
        assert_eq!(unicast(US, OTHER, 3), looped);
        let flooded = flood(US, 1, 3, &mut Seen::new());
        assert_eq!(flooded, Flooded::Drop(DropReason::Looped));
    }

    #[test]
    fn a_flood_is_delivered_and_passed_on_once() {
        let mut seen = Seen::new();
        assert_eq!(flood(THEM, 1, 3, &mut seen), Flooded::DeliverAndPassOn);
        let again = Flooded::Drop(DropReason::DuplicateFlood);
        assert_eq!(flood(THEM, 1, 9, &mut seen), again);
        assert_eq!(flood(OTHER, 1, 3, &mut seen), Flooded::DeliverAndPassOn);
    }

    #[test]
    fn a_flood_without_hops_left_ends_here() {
        let mut seen = Seen::new();
        assert_eq!(flood(THEM, 1, 0, &mut seen), Flooded::Deliver);
        let again = Flooded::Drop(DropReason::DuplicateFlood);
        assert_eq!(flood(THEM, 1, 3, &mut seen), again);
    }

    #[test]
    fn a_container_whose_address_was_taken_is_not_heard() {
        let macs = macs();
        let taken = ["10.32.0.7", "10.32.0.9", "fd57::9"].map(|text| text.parse().unwrap());
        let view = View {
            conflicts: &taken,
            ..view(&macs)
        };
        let captured = |sender: u8| {
            let mut bytes = [REMOTE.to_bytes(), LOCAL.to_bytes()].concat();
            bytes.extend([8, 0, 0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0]);
            bytes.extend([10, 32, 0, sender, 10, 32, 0, 1]);
            decide_captured(&Frame::new_checked(&bytes).unwrap(), NET, &view)
        };
        assert_eq!(captured(9), Captured::Drop(DropReason::AddressConflict));
        assert_eq!(captured(8), Captured::Forward(THEM));
        // From fd57::S: echo requests, or an advertisement of it that comes from elsewhere.
        let captured = |source: u16, kind: u8, about: u16| {
            let ip = |n| std::net::Ipv6Addr::new(0xfd57, 0, 0, 0, 0, 0, 0, n).octets();
            let mut bytes = [REMOTE.to_bytes(), LOCAL.to_bytes()].concat();
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 24, 58, 255]);
            bytes.extend([ip(source), ip(1)].concat());
            bytes.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
            bytes.extend(ip(about));
            decide_captured(&Frame::new_checked(&bytes).unwrap(), NET, &view)
        };
        let silenced = Captured::Drop(DropReason::AddressConflict);
        for (source, kind, about, decided) in [
            (9, 128, 1, silenced),
            (8, 128, 9, Captured::Forward(THEM)),
            (8, 136, 9, silenced),
            (8, 136, 8, Captured::Forward(THEM)),
        ] {
            assert_eq!(
                captured(source, kind, about),
                decided,
                "{source} {kind} {about}"
            );
        }
    }

    const NET: Network = Network::DEFAULT;
    const US: PeerName = PeerName::from_bytes([2, 0, 0, 0, 0, 1]);
    const THEM: PeerName = PeerName::from_bytes([2, 0, 0, 0, 0, 2]);
    const OTHER: PeerName = PeerName::from_bytes([2, 0, 0, 0, 0, 3]);
    const DNS: Ipv4Addr = Ipv4Addr::new(169, 254, 67, 83);
    const LOCAL: MacAddr = mac(10);
    const REMOTE: MacAddr = mac(20);

    fn view(macs: &MacView) -> View<'_> {
        let (us, dns) = (US, DNS);
        View {
            us,
            macs,
            dns,
            conflicts: &[],
        }
    }

    fn macs() -> MacView {
        #[expect(
            clippy::disallowed_methods,
            reason = "an Instant comes from nowhere else"
        )]
        let now = Instant::now();
        let mut table = MacTable::new();
        table.learn(NET, LOCAL, Location::Local, now);
        table.learn(NET, REMOTE, Location::Peer(THEM), now);
        table.view()
    }

    fn unicast(source: PeerName, destination: PeerName, hops: u8) -> Received {
        let header = UnicastHeader {
            hops,
            unfinished: false,
            network: NET,
            source,
            destination,
        };
        decide_unicast(&header, &Ether::to(LOCAL).view(), &view(&macs()))
    }

    fn flood(origin: PeerName, number: u32, hops: u8, seen: &mut Seen) -> Flooded {
        let header = FloodHeader {
            hops,
            network: NET,
            origin,
            number,
        };
        let frame = Ether::to(MacAddr::BROADCAST);
        decide_flood(
            &header,
            &frame.view(),
            &view(&macs()),
            seen,
            crate::clock::start(),
        )
    }

    /// Captured or received, by whichever way, the frame is dropped for this reason, and a flood
    /// with its number may still come.
    fn never_crosses(ether: &Ether, reason: DropReason) {
        let macs = macs();
        let (frame, view) = (ether.view(), view(&macs));
        let captured = decide_captured(&frame, NET, &view);
        assert_eq!(captured, Captured::Drop(reason));
        for destination in [US, OTHER] {
            let header = UnicastHeader {
                hops: 3,
                unfinished: false,
                network: NET,
                source: THEM,
                destination,
            };
            let received = decide_unicast(&header, &frame, &view);
            assert_eq!(received, Received::Drop(reason));
        }
        let header = FloodHeader {
            hops: 3,
            network: NET,
            origin: THEM,
            number: 1,
        };
        let mut seen = Seen::new();
        let flooded = decide_flood(&header, &frame, &view, &mut seen, crate::clock::start());
        assert_eq!(flooded, Flooded::Drop(reason));
        assert!(seen.first_time(THEM, 1, crate::clock::start()));
    }

    struct Ether(Vec<u8>);

    impl Ether {
        fn to(dst: MacAddr) -> Self {
            let mut bytes = dst.to_bytes().to_vec();
            bytes.extend(mac(30).to_bytes());
            bytes.extend([0x88, 0xb5, 1, 2, 3]);
            Self(bytes)
        }

        fn arp(sender: Ipv4Addr, target: Ipv4Addr) -> Self {
            let mut bytes = MacAddr::BROADCAST.to_bytes().to_vec();
            bytes.extend(mac(30).to_bytes());
            bytes.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
            bytes.extend(mac(30).to_bytes());
            bytes.extend(sender.octets());
            bytes.extend([0; 6]);
            bytes.extend(target.octets());
            Self(bytes)
        }

        fn view(&self) -> Frame<'_> {
            Frame::new_checked(&self.0).unwrap()
        }
    }

    const fn mac(n: u8) -> MacAddr {
        MacAddr::from_bytes([2, 0, 0, 0, 1, n])
    }
}
