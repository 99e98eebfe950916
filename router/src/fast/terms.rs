//! What a connection must be like for kernels to carry frames, and what is said where it is not.

use std::net::IpAddr;

use crate::ConnId;

/// What a connection is like at present.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) conn: ConnId,
    /// Where the peer's datagrams come from, once that is proven.
    pub(crate) addr: Option<IpAddr>,
    /// Whether each end trusts what is between.
    pub(crate) we_trust: bool,
    pub(crate) they_trust: bool,
    /// The MTU of each end.
    pub(crate) our_mtu: u16,
    pub(crate) their_mtu: u16,
    /// Whether frames may flow at all.
    pub(crate) established: bool,
}

/// The port of our VXLAN, or why there is none.
pub(crate) type Support = Result<u16, String>;

/// Why frames go sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sealed {
    /// Nobody wished otherwise.
    Unasked,
    Unsupported(String),
    UntrustedHere,
    UntrustedThere,
    Ipv6,
    Mtu(u16, u16),
    Refused(String),
    Waiting,
    Silent {
        mtu: u16,
        port: u16,
    },
}

impl Sealed {
    /// For people; nothing if nobody wished otherwise.
    pub(super) fn words(&self) -> Option<String> {
        Some(match self {
            Self::Unasked => return None,
            Self::Unsupported(why) => why.clone(),
            Self::UntrustedHere => {
                "trusted by the peer only: launch with the subnet in --trusted-subnets here too"
                    .to_owned()
            }
            Self::UntrustedThere => {
                "trusted by us only: launch with the subnet in --trusted-subnets there too"
                    .to_owned()
            }
            Self::Ipv6 => "the hosts must reach each other by IPv4 for that".to_owned(),
            Self::Mtu(ours, theirs) => format!("--mtu is {ours} here and {theirs} there"),
            Self::Refused(why) => format!("peer says: {why}"),
            Self::Waiting => "not proven yet".to_owned(),
            Self::Silent { mtu, port } => format!(
                "frames of {mtu} bytes do not get through: is UDP port {port} open, and the path wide enough for {} bytes?",
                mtu.saturating_add(AROUND)
            ),
        })
    }
}

/// What keeps two peers from letting each other's frames in.
pub(super) fn objection(terms: &Terms, support: &Support) -> Option<Sealed> {
    match (terms.we_trust, terms.they_trust) {
        (false, false) => return Some(Sealed::Unasked),
        (false, true) => return Some(Sealed::UntrustedHere),
        (true, false) => return Some(Sealed::UntrustedThere),
        (true, true) => {}
    }
    if let Err(why) = support {
        return Some(Sealed::Unsupported(why.clone()));
    }
    if matches!(terms.addr, Some(IpAddr::V6(_))) {
        return Some(Sealed::Ipv6);
    }
    let (ours, theirs) = (terms.our_mtu, terms.their_mtu);
    (ours != theirs).then_some(Sealed::Mtu(ours, theirs))
}

/// Bytes around a packet in the underlay's: Ethernet, VXLAN, UDP and IPv4 headers.
const AROUND: u16 = 14 + 8 + 8 + 20;
