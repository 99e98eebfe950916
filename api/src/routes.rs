//! The paths of the API, each in one place for both sides.
//!
//! | method, path | body | answer |
//! | --- | --- | --- |
//! | `GET /status` | | [`Report`](crate::Report) |
//! | `GET /metrics` | | Prometheus text |
//! | `POST /connect` | [`Connect`](crate::types::Connect) | 204 |
//! | `POST /forget` | [`Forget`](crate::types::Forget) | 204 |
//! | `POST /stop` | | 204, then the router ends |
//! | `POST /reset-prepare` | | [`HandedOver`](crate::types::HandedOver) |
//! | `DELETE /peer/{peer}` (name or nickname) | | [`TakenOver`](crate::types::TakenOver) |
//! | `POST /ip/{container}` | [`Allocate`](crate::types::Allocate) | [`Address`](crate::types::Address), when there is one |
//! | `PUT /ip/{container}` | [`Claim`](crate::types::Claim) | [`Address`](crate::types::Address) |
//! | `GET /ip/{container}` | | [`Addresses`](crate::types::Addresses), none is no error |
//! | `DELETE /ip/{container}` | | [`Addresses`](crate::types::Addresses) that were freed |
//! | `DELETE /ip/{container}/{ip}` | | 204 |
//! | `GET /holders/{ip}` | | [`Holders`](crate::types::Holders), none is no error |
//! | `POST /prime` | | 204, when the ring exists |
//! | `PUT /pool` | [`AddPool`](crate::types::AddPool) | [`Pool`](crate::types::Pool), the one the subnet is in |
//! | `GET /network` | | [`Network`](crate::types::Network) |
//! | `GET /network/{network}` | | [`Network`](crate::types::Network), if this host has it |
//! | `PUT /network/{network}/{user}` | [`JoinNetwork`](crate::types::JoinNetwork) | [`Network`](crate::types::Network) |
//! | `DELETE /network/{network}/{user}` | | 204 |
//! | `GET /networks` | | [`NetworkUsers`](crate::types::NetworkUsers) |
//! | `GET /networks/{user}` | | [`UsedNetworks`](crate::types::UsedNetworks), none is no error |
//! | `PUT /name` | [`AddName`](crate::types::AddName) | 204 |
//! | `DELETE /name` | [`RemoveNames`](crate::types::RemoveNames) | [`RemovedNames`](crate::types::RemovedNames) |
//! | `GET /name/{name}` | | [`Found`](crate::types::Found) |
//! | `PUT /binding` | [`Bind`](crate::types::Bind) | 204 |
//! | `DELETE /binding` | [`Unbind`](crate::types::Unbind) | 204 |
//! | `POST /expose` | [`Expose`](crate::types::Expose) | 204 |
//! | `DELETE /expose` | [`Hide`](crate::types::Hide) | 204 |
//!
//! Refusals are a [`Refusal`](crate::types::Refusal) with 400 (the request is wrong), 404 (no such
//! container, name, peer, or that part is switched off), 409 (somebody else has it) or 503 (not at
//! present). `POST /ip`, `PUT /ip` and `POST /prime` may wait for other peers; a caller that goes
//! away withdraws its request. `GET /status` and `GET /metrics` are answered on the status address
//! too.

use std::fmt::Write;
use std::net::IpAddr;

use weft_wire::NetworkKey;

use crate::ContainerId;

/// Where the router listens unless told otherwise; root only.
pub const DEFAULT_SOCKET: &str = "/run/weft/weft.sock";

/// The report.
pub const STATUS: &str = "/status";
/// Prometheus metrics.
pub const METRICS: &str = "/metrics";
/// Add or replace targets.
pub const CONNECT: &str = "/connect";
/// Drop targets.
pub const FORGET: &str = "/forget";
/// End the router.
pub const STOP: &str = "/stop";
/// Hand our address space to another peer.
pub const RESET_PREPARE: &str = "/reset-prepare";
/// Take a dead peer's address space over.
pub const PEER: &str = "/peer/{peer}";
/// All addresses of a container.
pub const IP: &str = "/ip/{container}";
/// One address of a container.
pub const IP_ADDR: &str = "/ip/{container}/{ip}";
/// Who holds an address.
pub const HOLDERS: &str = "/holders/{ip}";
/// Wait for the ring.
pub const PRIME: &str = "/prime";
/// Address pools.
pub const POOL: &str = "/pool";
/// What attaching needs to know.
pub const NETWORK: &str = "/network";
/// The same for one network of this host.
pub const NETWORK_OF: &str = "/network/{network}";
/// Use a network, or not any more.
pub const NETWORK_USER: &str = "/network/{network}/{user}";
/// Who uses networks.
pub const NETWORKS: &str = "/networks";
/// Which networks somebody uses.
pub const NETWORKS_OF: &str = "/networks/{user}";
/// Add and remove records.
pub const NAME: &str = "/name";
/// Look a name up.
pub const NAME_LOOKUP: &str = "/name/{name}";
/// Which MAC and addresses a container's interface has.
pub const BINDING: &str = "/binding";
/// The host's own addresses on the network.
pub const EXPOSE: &str = "/expose";

/// The path of one peer, by name or nickname.
pub fn peer(peer: &str) -> String {
    format!("/peer/{}", segment(peer))
}

/// The path of a container's addresses.
pub fn ip(container: &ContainerId) -> String {
    format!("/ip/{}", segment(container.as_str()))
}

/// The path of one address of a container.
pub fn ip_addr(container: &ContainerId, addr: IpAddr) -> String {
    format!(
        "/ip/{}/{}",
        segment(container.as_str()),
        segment(&addr.to_string())
    )
}

/// The path of an address' holders.
pub fn holders(addr: IpAddr) -> String {
    format!("/holders/{}", segment(&addr.to_string()))
}

/// The path of a network.
pub fn network_of(network: &NetworkKey) -> String {
    format!("/network/{}", segment(&network.to_string()))
}

/// The path of a user of a network.
pub fn network_user(network: &NetworkKey, user: &ContainerId) -> String {
    let network = network_of(network);
    format!("{network}/{}", segment(user.as_str()))
}

/// The path of a user's networks.
pub fn networks_of(user: &ContainerId) -> String {
    format!("/networks/{}", segment(user.as_str()))
}

/// The path of a name.
pub fn name_lookup(name: &str) -> String {
    format!("/name/{}", segment(name))
}

/// One path segment: all but RFC 3986's unreserved characters in percent form.
fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(byte.into());
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_in_an_id_stays_one_segment() {
        let id = ContainerId::new("netns:/run/netns/ä").unwrap();
        assert_eq!(ip(&id), "/ip/netns%3A%2Frun%2Fnetns%2F%C3%A4");
        let addr = "10.32.0.1".parse().unwrap();
        assert_eq!(
            ip_addr(&ContainerId::expose(), addr),
            "/ip/weft%3Aexpose/10.32.0.1"
        );
        assert_eq!(peer("a/../b?c#d"), "/peer/a%2F..%2Fb%3Fc%23d");
        let network = "subnet:10.50.0.0/16".parse().unwrap();
        assert_eq!(
            network_user(&network, &ContainerId::expose()),
            "/network/subnet%3A10.50.0.0%2F16/weft%3Aexpose"
        );
    }
}
