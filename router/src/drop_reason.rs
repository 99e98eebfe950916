//! Why a frame or a datagram goes no further: one closed list, for logs, metrics and tests alike.
//!
//! Nothing on the data path is dropped without one of these. Refused connections are another matter
//! and have reasons of their own ([`weft_wire::control::RefusalReason`]).

/// Why a frame or a datagram was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// A datagram is no packet of ours, or what was sealed in it is no message.
    MalformedPacket,
    /// A packet names a session we do not have: a stale key, or a stranger.
    UnknownReceiver,
    /// A packet was received before.
    Replayed,
    /// A packet is so late that it cannot be told from a replayed one.
    TooOld,
    /// A packet does not carry the seal of its session.
    Forged,
    /// The key of a session has sealed as many packets as it may.
    SessionExpired,
    /// A frame came from a peer whose connection is not established: rings may still differ.
    NotReady,
    /// A frame is too short to be one, or too long to be carried.
    MalformedFrame,
    /// A frame belongs to a network that this host has no part in.
    UnknownNetwork,
    /// The sender's address in a frame is a group address.
    MulticastSource,
    /// A frame is for a group that ends at a bridge (`01:80:c2:00:00:0x`).
    LinkLocalGroup,
    /// An ARP packet speaks of the resolver's address, which every host has for itself.
    DnsAddress,
    /// A container speaks from an address that another one holds; it is cut off until it has a new one.
    AddressConflict,
    /// A captured frame is for a container of this host; the bridge has brought it there.
    LocalDestination,
    /// No connection leads to the peer a frame is for.
    NoRoute,
    /// A frame was passed on too often: views of the topology differ.
    HopLimit,
    /// A frame that we captured came back to us: views of the topology differ.
    Looped,
    /// A flooded frame was here before: views of the topology differ.
    DuplicateFlood,
    /// A piece of a frame did not come in time, or not at all.
    FragmentLost,
    /// A datagram is too long for a link of this host, as was not known; the next ones are shorter.
    DatagramTooLong,
    /// The kernel did not take a datagram: its buffer is full, or the underlay has no way.
    SendFailed,
    /// The kernel did not take a frame: the TAP's queue is full, or its link is down.
    TapFull,
}

impl DropReason {
    /// Every reason, in the order of [`Self::index`].
    pub const ALL: [Self; 22] = [
        Self::MalformedPacket,
        Self::UnknownReceiver,
        Self::Replayed,
        Self::TooOld,
        Self::Forged,
        Self::SessionExpired,
        Self::NotReady,
        Self::MalformedFrame,
        Self::UnknownNetwork,
        Self::MulticastSource,
        Self::LinkLocalGroup,
        Self::DnsAddress,
        Self::AddressConflict,
        Self::LocalDestination,
        Self::NoRoute,
        Self::HopLimit,
        Self::Looped,
        Self::DuplicateFlood,
        Self::FragmentLost,
        Self::DatagramTooLong,
        Self::SendFailed,
        Self::TapFull,
    ];

    /// The reason's position in [`Self::ALL`], for an array of counters.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The reason as a metric label and log field.
    pub const fn label(self) -> &'static str {
        match self {
            Self::MalformedPacket => "malformed_packet",
            Self::UnknownReceiver => "unknown_receiver",
            Self::Replayed => "replayed",
            Self::TooOld => "too_old",
            Self::Forged => "forged",
            Self::SessionExpired => "session_expired",
            Self::NotReady => "not_ready",
            Self::MalformedFrame => "malformed_frame",
            Self::UnknownNetwork => "unknown_network",
            Self::MulticastSource => "multicast_source",
            Self::LinkLocalGroup => "link_local_group",
            Self::DnsAddress => "dns_address",
            Self::AddressConflict => "address_conflict",
            Self::LocalDestination => "local_destination",
            Self::NoRoute => "no_route",
            Self::HopLimit => "hop_limit",
            Self::Looped => "looped",
            Self::DuplicateFlood => "duplicate_flood",
            Self::FragmentLost => "fragment_lost",
            Self::DatagramTooLong => "datagram_too_long",
            Self::SendFailed => "send_failed",
            Self::TapFull => "tap_full",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reason_is_listed_at_its_index() {
        for (at, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), at, "{reason:?}");
        }
        assert_eq!(
            DropReason::TapFull.index() + 1,
            DropReason::ALL.len(),
            "the last reason"
        );
    }

    #[test]
    fn labels_differ_and_are_fit_for_metrics() {
        let labels: BTreeSet<_> = DropReason::ALL.map(DropReason::label).into();
        assert_eq!(labels.len(), DropReason::ALL.len());
        for label in labels {
            assert!(label.bytes().all(|c| c.is_ascii_lowercase() || c == b'_'));
        }
    }
}
