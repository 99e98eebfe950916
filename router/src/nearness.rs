//! In which order a peer's addresses are tried.
//!
//! A host has several: what its operator says, and what others have reached it at. An address in a subnet of
//! ours needs no router in between, so it comes first; then what the operator says; then the rest, those last
//! that are of a family we have no address of.

use std::net::{IpAddr, SocketAddr};

use crate::Subnet;

/// A peer's addresses in the order they are to be tried, each once. `ours` are the subnets that this host is in.
pub fn in_order(
    advertised: &[SocketAddr],
    seen: impl IntoIterator<Item = SocketAddr>,
    ours: &[Subnet],
) -> Vec<SocketAddr> {
    let rank = |address: &SocketAddr| {
        let ip = address.ip().to_canonical();
        let is_near = ours.iter().any(|subnet| subnet.contains(ip));
        let is_foreign = !ours.is_empty() && !ours.iter().any(|s| s.is_ipv4() == ip.is_ipv4());
        let is_told = advertised.contains(address);
        (!is_near, is_foreign, !is_told, *address)
    };
    let mut all: Vec<_> = advertised.iter().copied().chain(seen).collect();
    all.sort_unstable_by_key(rank);
    all.dedup();
    all
}

/// The subnet of an address of this host; none for one that only this host has.
pub fn subnet_of(ip: IpAddr, prefix: u8) -> Option<Subnet> {
    let subnet = Subnet::around(ip, prefix)?;
    (!ip.is_loopback()).then_some(subnet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_addresses_come_first_then_what_is_advertised_then_the_rest() {
        let ours = [subnet("192.0.2.7", 24), subnet("2001:db8:1::7", 64)];
        let advertised = ["203.0.113.1:6783", "198.51.100.1:7000"].map(addr);
        let seen = [
            "10.0.0.9:6783",
            "2001:db8:1::9:6783",
            "192.0.2.9:6783",
            "203.0.113.1:6783",
            "2001:db8:2::9:6783",
        ];
        let seen = seen.map(|text| match text.strip_suffix(":6783") {
            Some(ip) => SocketAddr::new(ip.parse().unwrap(), 6783),
            None => addr(text),
        });
        let order = in_order(&advertised, seen, &ours);
        let order: Vec<_> = order.iter().map(ToString::to_string).collect();
        assert_eq!(
            order,
            [
                "192.0.2.9:6783",
                "[2001:db8:1::9]:6783",
                "198.51.100.1:7000",
                "203.0.113.1:6783",
                "10.0.0.9:6783",
                "[2001:db8:2::9]:6783",
            ]
        );
    }

    #[test]
    fn addresses_of_a_family_we_lack_come_last_and_nothing_is_known_of_no_subnets() {
        let seen = ["[2001:db8::1]:1", "192.0.2.1:1"].map(addr);
        let v6 = [subnet("2001:db8:9::1", 64)];
        assert_eq!(in_order(&[], seen, &v6), seen);
        let v4 = [subnet("10.0.0.1", 8)];
        assert_eq!(in_order(&[], seen, &v4), [seen[1], seen[0]]);
        assert_eq!(in_order(&[], seen, &[]), [seen[1], seen[0]]);
        assert_eq!(subnet_of("127.0.0.1".parse().unwrap(), 8), None);
        assert_eq!(subnet_of("10.0.0.1".parse().unwrap(), 33), None);
    }

    fn subnet(ip: &str, prefix: u8) -> Subnet {
        subnet_of(ip.parse().unwrap(), prefix).unwrap()
    }

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }
}
