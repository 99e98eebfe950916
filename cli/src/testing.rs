//! What the tests share: a report with something of everything, and texts kept in files.

use std::fs;
use std::path::Path;

use weft_api::report::{
    Conflict, Connection, ConnectionState, Dns, Elector, Encryption, FloodRoute, Holder, Ipam,
    Known, Link, Mac, Name, Overlay, Owner, Peer, Pending, Reach, Reclaim, Report, Router, Suite,
    UnicastRoute,
};
use weft_api::types::Network;
use weft_api::{Cidr, ContainerId};
use weft_wire::PeerName;

/// Compares a text with the one kept under this name. `UPDATE_SNAPSHOTS=1` keeps it instead.
pub(crate) fn assert_kept(name: &str, text: &str) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots");
    let path = dir.join(name);
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::create_dir_all(&dir).unwrap();
        fs::write(&path, text).unwrap();
        return;
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == text,
        "{name} has changed (UPDATE_SNAPSHOTS=1 keeps the new text)\n--- kept\n{kept}\n--- new\n{text}"
    );
}

/// The peer that `hostN` is.
pub(crate) fn peer(n: u8) -> PeerName {
    PeerName::from_bytes([2, 0, 0, 0, 0, n])
}

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn container(id: &str) -> ContainerId {
    ContainerId::new(id).unwrap()
}

/// A router that does nothing yet.
pub(crate) fn fresh() -> Report {
    let us = Peer {
        name: peer(1),
        nickname: "host1".to_owned(),
        uid: "00000000000000a1".to_owned(),
        version: Some("0.1.0".to_owned()),
        links: Vec::new(),
        reachable: Reach::Us,
    };
    let router = Router {
        protocol: "1".to_owned(),
        name: peer(1),
        nickname: "host1".to_owned(),
        encryption: Encryption::Open,
        discovery: true,
        cluster: "weft".to_owned(),
        port: 6783,
        targets: Vec::new(),
        connections: Vec::new(),
        peers: vec![us],
        trusted_subnets: Vec::new(),
        unicast_routes: Vec::new(),
        flood_routes: Vec::new(),
        macs: Vec::new(),
        drops: Default::default(),
    };
    Report {
        version: "0.1.0".to_owned(),
        router,
        ipam: None,
        pools: Vec::new(),
        dns: None,
        networks: Vec::new(),
        network: Network {
            key: weft_wire::NetworkKey::Default,
            number: 0,
            bridge: "weft".to_owned(),
            mtu: 1376,
            fast: false,
            dns: None,
            domain: None,
            default_subnet: None,
            default_subnet6: None,
            pool: None,
        },
        copied_state: None,
        warnings: vec!["no password: anybody who reaches port 6783 can join".to_owned()],
    }
}

/// A router in the middle of its life, with a fault of each kind.
pub(crate) fn busy() -> Report {
    let mut report = fresh();
    report.warnings = vec!["host4 has MTU 9000, this network has 1376".to_owned()];
    let router = &mut report.router;
    router.encryption = Encryption::Enabled;
    router.targets = vec!["host2".to_owned(), "host9:6800".to_owned()];
    router.connections = connections();
    router.peers = peers();
    router.trusted_subnets = vec![cidr("192.168.0.0/16")];
    router.unicast_routes = vec![UnicastRoute {
        destination: peer(3),
        via: peer(2),
    }];
    router.flood_routes = vec![FloodRoute {
        origin: peer(1),
        via: vec![peer(2)],
    }];
    router.macs = vec![Mac {
        mac: "0a:00:00:00:00:07".parse().unwrap(),
        peer: peer(3),
        nickname: "host3".to_owned(),
        known: Known::Registered,
        addresses: vec![[10, 32, 0, 9].into(), [10, 32, 0, 10].into()],
        age_s: 4,
    }];
    router.drops = [("replayed".to_owned(), 3)].into();
    report.ipam = Some(ipam());
    report.dns = Some(dns());
    report.network.dns = Some([169, 254, 67, 83].into());
    report.network.domain = Some("weft.local.".to_owned());
    report.network.default_subnet = Some(cidr("10.32.0.0/12"));
    report.network.pool = Some(cidr("10.32.0.0/12"));
    report
}

fn connections() -> Vec<Connection> {
    let established = Connection {
        outbound: true,
        address: "198.18.0.2:6783".to_owned(),
        state: ConnectionState::Established,
        peer: Some(peer(2)),
        nickname: Some("host2".to_owned()),
        overlay: Some(Overlay::Udp),
        encrypted: Some(Suite::Aes256Gcm),
        rtt_us: Some(412),
        mtu: Some(1376),
        info: String::new(),
        retry_in_s: None,
    };
    let bare = Connection {
        peer: None,
        nickname: None,
        overlay: None,
        encrypted: None,
        rtt_us: None,
        mtu: None,
        ..established.clone()
    };
    let pending = Connection {
        outbound: false,
        address: "198.18.0.4:40112".to_owned(),
        state: ConnectionState::Pending,
        peer: Some(peer(4)),
        nickname: Some("host4".to_owned()),
        overlay: Some(Overlay::Udp),
        info: "waiting for the address ring".to_owned(),
        ..bare.clone()
    };
    let retrying = Connection {
        address: "host9:6800".to_owned(),
        state: ConnectionState::Retrying,
        info: "cannot connect: connection refused".to_owned(),
        retry_in_s: Some(12),
        ..bare.clone()
    };
    let failed = Connection {
        outbound: false,
        address: "[fd00::66]:51812".to_owned(),
        state: ConnectionState::Failed,
        info: "wrong password".to_owned(),
        ..bare
    };
    vec![established, pending, retrying, failed]
}

fn peers() -> Vec<Peer> {
    let link = |n: u8, outbound, established| Link {
        peer: peer(n),
        nickname: format!("host{n}"),
        address: format!("198.18.0.{n}:6783"),
        outbound,
        established,
    };
    let peer = |n: u8, links, reachable| Peer {
        name: peer(n),
        nickname: format!("host{n}"),
        uid: format!("{n:016x}"),
        version: Some("0.1.0".to_owned()),
        links,
        reachable,
    };
    vec![
        peer(
            1,
            vec![link(2, true, true), link(4, false, false)],
            Reach::Us,
        ),
        peer(
            2,
            vec![link(1, false, true), link(3, true, true)],
            Reach::Direct,
        ),
        peer(3, vec![link(2, false, true)], Reach::Via(self::peer(2))),
        peer(5, vec![], Reach::Unreachable),
    ]
}

fn ipam() -> Ipam {
    let owner = |n: u8, addresses, permille, reachable| Owner {
        peer: peer(n),
        nickname: format!("host{n}"),
        addresses,
        permille,
        reachable,
    };
    Ipam {
        status: "waiting for IP(s) to become available".to_owned(),
        range: cidr("10.32.0.0/12"),
        default_subnet: cidr("10.32.0.0/12"),
        owners: vec![
            owner(1, 524_288, 500, true),
            owner(2, 262_144, 250, true),
            owner(5, 262_144, 250, false),
        ],
        active: 2,
        holders: vec![Holder {
            container: container("netns:/run/netns/c1"),
            cidr: cidr("10.32.0.1/12"),
        }],
        pending: vec![Pending {
            container: container(&"0123456789abcdef".repeat(4)),
            wants: "an address of 10.32.0.0/28".to_owned(),
            waits_for: "waiting for 10.32.0.0/28 space from 02:00:00:00:00:02".to_owned(),
        }],
        conflicts: vec![Conflict {
            container: container("pid-77-123456"),
            cidr: cidr("10.40.0.9/12"),
            holder: peer(2),
            nickname: "host2".to_owned(),
        }],
        electors: [(1, None), (2, Some(4)), (5, None)].map(elector).to_vec(),
        fenced: false,
        reclaims: vec![Reclaim {
            peer: peer(5),
            nickname: "host5".to_owned(),
            silent_s: 3 * 3600 + 90,
            left_s: 21 * 3600 - 90,
            quorum: true,
        }],
    }
}

fn elector((n, acked_s): (u8, Option<u64>)) -> Elector {
    Elector {
        peer: peer(n),
        nickname: format!("host{n}"),
        reachable: n != 5,
        acked_s,
        refuses: false,
    }
}

fn dns() -> Dns {
    let name = |name: &str, id: &str, n: u8| Name {
        name: name.to_owned(),
        container: container(id),
        origin: peer(n),
        address: [10, 32, 0, n].into(),
    };
    Dns {
        domain: "weft.local.".to_owned(),
        addresses: vec!["169.254.67.83:53".parse().unwrap()],
        upstream: vec![
            "192.0.2.53:53".parse().unwrap(),
            "192.0.2.54:5353".parse().unwrap(),
        ],
        ttl: 1,
        entries: vec![
            name("c1.weft.local.", "netns:/run/netns/c1", 1),
            name("web.shop.weft.local.", &"0123456789abcdef".repeat(4), 2),
        ],
    }
}
