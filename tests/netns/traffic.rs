//! What passes between containers on different hosts: echoes by name, large ones, TCP both ways.

use std::time::Duration;

use super::support::{Lab, SOON, eventually, possible, run, volume, weft};

#[test]
fn plain_lab_ends_with_a_full_matrix_of_pings_by_name() {
    if !possible() {
        return;
    }
    let lab = Lab::named("plain");
    let words = ["lab", "--name", lab.name(), "--json"];
    let outcome = run(&mut weft(&words));
    let findings: serde_json::Value = serde_json::from_str(&outcome.success()).unwrap();
    assert_eq!(findings["full"], true, "{findings}");
    let cells = findings["round_trips"].as_array().unwrap();
    assert_eq!(cells.len(), 6, "{findings}");
    assert_eq!(
        findings["containers"].as_array().unwrap().len(),
        3,
        "{findings}"
    );
}

#[test]
fn containers_on_two_hosts_exchange_whatever_is_sent() {
    if !possible() {
        return;
    }
    let lab = Lab::up("traffic", 2, 1, &[]);
    for (from, to) in [
        ("c1", "c2"),
        ("c2", "c1"),
        ("c1", "c2.weft.local"),
        ("c2", "c1.weft.local"),
    ] {
        lab.ping(from, to).unwrap();
    }
    // Ten times what one Ethernet frame holds.
    for (from, to) in [("c1", "c2"), ("c2", "c1")] {
        let ping = ["weft", "lab", "ping", "--size", "10000", "--count", "3", to];
        let printed = lab.ok(from, &ping);
        assert!(printed.contains("3/3 answers"), "{printed}");
    }
    for (from, to) in [("c1", "c2"), ("c2", "c1")] {
        transfers(&lab, from, to, to, "0.0.0.0:7000");
        link_local(&lab, from);
        transfers(&lab, from, to, &link_local(&lab, to), "[::]:7000");
    }
}

#[test]
fn datagrams_of_every_length_come_as_they_were_sent() {
    if !possible() {
        return;
    }
    let lab = Lab::up("lengths", 2, 1, &[]);
    link_local(&lab, "c1");
    for (at, to) in [
        ("0.0.0.0:7002", "c2".to_owned()),
        ("[::]:7002", link_local(&lab, "c2")),
    ] {
        let echo = lab.helper("c2", &["udp-echo", at]);
        let step = if volume() > 1 { "1" } else { "61" };
        let came = lab.task("c1", &["udp-lengths", &to, "7002", step]);
        assert_eq!(came, ["all came back"], "{to}");
        assert_eq!(echo.end(), [] as [String; 0]);
    }
}

/// The IPv6 address a container has by itself, with the link it is to be called over, once the
/// container may use it: at first it asks whether somebody else does.
pub(crate) fn link_local(lab: &Lab, place: &str) -> String {
    eventually("a link-local address", SOON, || {
        let all = lab.ok(place, &["cat", "/proc/net/if_inet6"]);
        let mut lines = all.lines().map(|line| line.split_whitespace().collect());
        // Address, index, length, scope, flags (IFA_F_PERMANENT alone), link.
        let line = lines.find(|line: &Vec<_>| line[4..] == ["80", "ethwe"]);
        let digits = line.ok_or(all.clone())?[0];
        let address = u128::from_str_radix(digits, 16).map_err(|error| error.to_string())?;
        Ok::<_, String>(format!("{}%ethwe", std::net::Ipv6Addr::from(address)))
    })
}

/// Eight megabytes there and eight back (or more, see [`volume`]), compared byte by byte at both ends.
fn transfers(lab: &Lab, from: &str, place: &str, to: &str, at: &str) {
    let bytes = ((8 << 20) * volume()).to_string();
    let server = lab.helper(place, &["tcp-serve", at]);
    let came = lab.task(from, &["tcp-call", to, "7000", &bytes]);
    assert_eq!(came, [format!("{bytes} bytes")]);
    assert_eq!(server.wait(), [format!("{bytes} bytes")]);
}

#[test]
fn broadcast_and_multicast_from_one_container_reach_all_others() {
    if !possible() {
        return;
    }
    let lab = Lab::up("groups", 3, 1, &[]);
    for (group, to) in [("-", "255.255.255.255"), ("239.1.2.3", "239.1.2.3")] {
        // A broadcast to everybody needs a route; containers have one to their subnet's.
        let to = if group == "-" {
            broadcast_address(&lab)
        } else {
            to.to_owned()
        };
        let hearers = ["c1", "c3"].map(|place| lab.helper(place, &["udp-hear", group, "7001"]));
        lab.task("c2", &["udp-say", &to, "7001", "hello"]);
        for hearer in hearers {
            assert_eq!(hearer.line(), "hello", "{group}");
            assert_eq!(
                hearer.end(),
                [] as [String; 0],
                "{group} delivered more than once"
            );
        }
    }
}

fn broadcast_address(lab: &Lab) -> String {
    let report = lab.report("host1");
    let range = report.ipam.unwrap().range.to_string();
    assert_eq!(range, "10.32.0.0/12", "the lab's range");
    "10.47.255.255".to_owned()
}

#[test]
fn a_route_to_the_resolver_and_to_groups_comes_with_the_interface() {
    if !possible() {
        return;
    }
    let lab = Lab::up("routes", 1, 2, &[]);
    lab.pings("c1", "c2", SOON);
    let routes = lab.ok("c1", &["cat", "/proc/net/route"]);
    // As the kernel prints them: bytes of 224.0.0.0 and 169.254.67.83, last first.
    for destination in ["000000E0", "5343FEA9"] {
        let there = routes
            .lines()
            .any(|line| line.starts_with("ethwe") && line.contains(destination));
        assert!(there, "no route to {destination} in\n{routes}");
    }
    let begin = std::time::Instant::now();
    assert!(
        lab.ping("c1", "nobody").is_err(),
        "a name nobody has was resolved"
    );
    assert!(
        begin.elapsed() < Duration::from_secs(4),
        "the resolver did not answer"
    );
}
