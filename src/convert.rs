//! Between the machines' own types and those of the API and the state file.
//!
//! The machines' types are not serialized: what people and files see is changed on purpose, here,
//! and not by accident with some field.

use std::collections::BTreeMap;
use std::time::Instant;

use weft_api::report as out;
use weft_api::{Cidr as ApiCidr, ContainerId as ApiContainer};
use weft_gossip::Entry;
use weft_ipam::{
    AddPoolError, Addr, Allocator, Cidr, ContainerId, Elector, PendingRequest, Reclaim,
    RequestError, Status, Wish,
};
use weft_router::{Carriage, ConnectionState, ConnectionStatus};
use weft_wire::PeerName;
use weft_wire::control::Suite;

use crate::event::Failure;

/// A container's id as the allocator has it; both forms have the same bounds.
pub(crate) fn container(id: &ApiContainer) -> ContainerId {
    ContainerId::new(id.as_str())
}

/// A subnet as the allocator has it.
pub(crate) fn subnet(cidr: ApiCidr) -> Result<Cidr, Failure> {
    Cidr::new(cidr.addr().into(), cidr.prefix()).map_err(Failure::bad)
}

/// A subnet as the API has it.
pub(crate) fn api_cidr(subnet: &Cidr) -> ApiCidr {
    cidr(subnet.first(), subnet.prefix())
}

/// An address with its prefix length as the API has it.
pub(crate) fn cidr(addr: Addr, prefix: u8) -> ApiCidr {
    ApiCidr::of(addr.into(), prefix)
}

/// A number of addresses as the API has it, which stops counting at 64 bits.
pub(crate) fn countable(addresses: u128) -> u64 {
    u64::try_from(addresses).unwrap_or(u64::MAX)
}

/// A name as it is published.
pub(crate) fn name_entry(record: &weft_dns::Record) -> Entry {
    Entry::Name {
        fqdn: record.name.to_string(),
        container: record.container.clone(),
        addr: record.addr,
    }
}

/// One line of `status connections`.
pub(crate) fn connection(status: ConnectionStatus, now: Instant) -> out::Connection {
    let address = status.address();
    let (peer, nickname) = status
        .peer
        .map(|(name, nick)| (name, nick.to_string()))
        .unzip();
    let live = matches!(
        status.state,
        ConnectionState::Established | ConnectionState::Pending
    );
    let by_kernel = status.carriage == Carriage::Kernel;
    let info = match status.carriage {
        Carriage::Sealed(Some(why)) if live && status.info.is_empty() => {
            format!("no fastdp: {why}")
        }
        Carriage::Kernel | Carriage::Sealed(_) => status.info,
    };
    out::Connection {
        outbound: status.outbound,
        address,
        state: match status.state {
            ConnectionState::Pending => out::ConnectionState::Pending,
            ConnectionState::Established => out::ConnectionState::Established,
            ConnectionState::Failed => out::ConnectionState::Failed,
            ConnectionState::Retrying => out::ConnectionState::Retrying,
            ConnectionState::Connecting => out::ConnectionState::Connecting,
        },
        peer,
        nickname,
        overlay: live.then_some(if by_kernel {
            out::Overlay::Fastdp
        } else {
            out::Overlay::Udp
        }),
        encrypted: status
            .suite
            .filter(|_| !by_kernel)
            .map(|suite| match suite {
                Suite::Aes256Gcm => out::Suite::Aes256Gcm,
                Suite::ChaCha20Poly1305 => out::Suite::ChaCha20Poly1305,
            }),
        rtt_us: status
            .rtt
            .map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
        mtu: status.mtu,
        info,
        retry_in_s: status
            .retry_at
            .map(|at| at.saturating_duration_since(now).as_secs()),
    }
}

/// The address section of the report.
pub(crate) fn ipam(
    ipam: &Allocator,
    status: &Status,
    nicknames: &BTreeMap<PeerName, String>,
) -> out::Ipam {
    let nick = |peer: PeerName| nicknames.get(&peer).cloned().unwrap_or_default();
    out::Ipam {
        electors: status
            .electors
            .iter()
            .map(|e| elector(e, nick(e.peer)))
            .collect(),
        fenced: !status.unfenced,
        reclaims: status
            .reclaims
            .iter()
            .map(|r| reclaim(r, nick(r.peer)))
            .collect(),
        status: status.state.to_string(),
        range: api_cidr(&status.pool),
        default_subnet: api_cidr(&status.default_subnet),
        owners: status
            .owners
            .iter()
            .map(|owner| out::Owner {
                peer: owner.peer,
                nickname: nick(owner.peer),
                addresses: countable(owner.addresses),
                permille: (owner.percent * 10.0).round() as u16,
                reachable: owner.reachable,
            })
            .collect(),
        active: status.active as u64,
        holders: ipam
            .holders()
            .filter_map(|(container, addr, prefix)| {
                let container = ApiContainer::new(container.as_str()).ok()?;
                Some(out::Holder {
                    container,
                    cidr: cidr(addr, prefix),
                })
            })
            .collect(),
        pending: status.pending.iter().filter_map(pending).collect(),
        conflicts: status
            .conflicts
            .iter()
            .filter_map(|conflict| {
                Some(out::Conflict {
                    container: ApiContainer::new(conflict.container.as_str()).ok()?,
                    cidr: cidr(conflict.addr, conflict.prefix),
                    holder: conflict.holder,
                    nickname: nick(conflict.holder),
                })
            })
            .collect(),
    }
}

fn elector(elector: &Elector, nickname: String) -> out::Elector {
    out::Elector {
        peer: elector.peer,
        nickname,
        reachable: elector.reachable,
        acked_s: elector.acked.map(|age| age.as_secs()),
        refuses: elector.refuses,
    }
}

fn reclaim(reclaim: &Reclaim, nickname: String) -> out::Reclaim {
    out::Reclaim {
        peer: reclaim.peer,
        nickname,
        silent_s: reclaim.silent.as_secs(),
        left_s: reclaim.left.as_secs(),
        quorum: reclaim.quorum,
    }
}

/// A request that waits; `prime` is nobody's and is not listed.
fn pending(request: &PendingRequest) -> Option<out::Pending> {
    let (container, wants) = match &request.wish {
        Wish::Allocate { container, subnet } => (container, format!("an address of {subnet}")),
        Wish::Claim {
            container,
            addr,
            prefix,
        } => (container, format!("{addr}/{prefix}")),
        Wish::Prime => return None,
    };
    Some(out::Pending {
        container: ApiContainer::new(container.as_str()).ok()?,
        wants,
        waits_for: request.waits_for.to_string(),
    })
}

/// Why there can be no such pool, as the API says it.
pub(crate) fn pool_error(error: AddPoolError) -> Failure {
    match error {
        AddPoolError::Unfit { .. } => Failure::bad(error),
        AddPoolError::Overlaps { .. } => Failure::taken(error),
        AddPoolError::TooMany => Failure::unavailable(error),
    }
}

fn no_ipam() -> Failure {
    Failure::missing("address allocation is switched off (--ipalloc-range \"\")")
        .hint("give an address yourself, such as ip:10.32.0.5/12")
}

/// Why there is no address, as the API says it.
pub(crate) fn request_error(error: RequestError) -> Failure {
    match &error {
        RequestError::NoPool => no_ipam(),
        RequestError::OutOfPool { .. }
        | RequestError::TooSmall { .. }
        | RequestError::Prefix { .. }
        | RequestError::NotAHost { .. } => Failure::bad(error),
        RequestError::Reserved { .. }
        | RequestError::Held { .. }
        | RequestError::InUse { .. }
        | RequestError::RingFull { .. } => Failure::taken(error),
        RequestError::TooMany | RequestError::Freed { .. } | RequestError::HandedOver => {
            Failure::unavailable(error)
        }
    }
}
