//! IPv6 beside IPv4, and alone: addresses, names, what is kept over a restart, and the host's own.

use super::support::{Lab, SOON, ensure, eventually, metrics, possible};

const RANGES: &str = "--ipalloc-range=fd57:1::/64,10.32.0.0/16";

/// The addresses of a container that the router has, with their prefixes.
fn held(lab: &Lab, host: &str, container: &str) -> Vec<String> {
    let report = lab.report(host);
    let holders = report.holders();
    let ours = holders.filter(|holder| holder.container.as_str().contains(container));
    ours.map(|holder| holder.cidr.to_string()).collect()
}

/// What a name stands for, at a host's router.
fn found(lab: &Lab, host: &str, name: &str) -> Vec<String> {
    let printed = lab.exec(host, &["weft", "dns-lookup", name]).printed;
    let mut all: Vec<_> = printed.lines().map(str::to_owned).collect();
    all.sort();
    all
}

/// How many questions of containers a router has answered.
fn answered(lab: &Lab, host: &str) -> u64 {
    metrics(lab, host)["weft_questions_answered_total"]
}

#[test]
fn a_container_that_asks_for_nothing_has_an_address_of_each_family() {
    if !possible() {
        return;
    }
    let lab = Lab::bare("dual", 2, 1);
    // Any order of ranges will do.
    lab.ok("host1", &["weft", "launch", RANGES]);
    let other = "--ipalloc-range=10.32.0.0/16,fd57:1::/64";
    lab.ok("host2", &["weft", "launch", other, "host1"]);
    let mut all = Vec::new();
    for (host, name) in [("host1", "c1"), ("host2", "c2")] {
        let target = format!("netns:{name}");
        let printed = lab.ok(host, &["weft", "attach", "--name", name, &target]);
        let addresses: Vec<_> = printed.split_whitespace().map(str::to_owned).collect();
        assert_eq!(addresses.len(), 2, "{printed}");
        assert!(addresses[0].starts_with("10.32."), "{printed}");
        assert!(addresses[1].starts_with("fd57:1:"), "{printed}");
        let shown = lab.ok(host, &["weft", "ps", &target]);
        assert!(addresses.iter().all(|addr| shown.contains(addr)), "{shown}");
        let status = lab.ok(host, &["weft", "status", "ipam"]);
        assert!(status.contains("fd57:1::/64: ready"), "{status}");
        all.push(addresses);
    }
    for (at, from, to, addresses) in [
        ("host1", "c1", "c2", &all[1]),
        ("host2", "c2", "c1", &all[0]),
    ] {
        eventually("the name has both addresses", SOON, || {
            let found = found(&lab, at, to);
            ensure(found == *addresses, format!("{found:?} of {addresses:?}"))
        });
        lab.pings6(from, &addresses[1], SOON);
        // Whoever was asked for in this way has asked back.
        assert!(answered(&lab, at) > 0, "no solicitation was answered");
        lab.pings(from, &addresses[0], SOON);
        lab.pings6(from, to, SOON);
        lab.pings(from, to, SOON);
    }

    // Both are kept over a restart, and freed together.
    let before = held(&lab, "host2", "c2");
    assert_eq!(before.len(), 2, "{before:?}");
    lab.ok("host2", &["weft", "stop"]);
    lab.ok("host2", &["weft", "launch", other, "host1"]);
    assert_eq!(held(&lab, "host2", "c2"), before);
    lab.pings("c1", "c2", SOON * 2);
    lab.pings6("c1", "c2", SOON);
    let detached = lab.ok("host2", &["weft", "detach", "netns:c2"]);
    assert_eq!(detached.split_whitespace().count(), 2, "{detached}");
    assert_eq!(held(&lab, "host2", "c2"), [] as [&str; 0]);
    let links = lab.ok("c2", &["cat", "/proc/net/dev"]);
    assert!(!links.contains("ethwe"), "{links}");
}

#[test]
fn ipv6_addresses_are_asked_for_like_others() {
    if !possible() {
        return;
    }
    let lab = Lab::bare("asked6", 2, 1);
    lab.ok("host1", &["weft", "launch", RANGES]);
    lab.ok("host2", &["weft", "launch", RANGES, "host1"]);
    let attach = |host: &str, what: &str, target: &str| {
        lab.ok(host, &["weft", "attach", what, target])
            .trim()
            .to_owned()
    };
    assert_eq!(attach("host1", "ip:fd57:1::7/64", "netns:c1"), "fd57:1::7");
    let inside = attach("host2", "net:fd57:1::/96", "netns:c2");
    assert!(inside.starts_with("fd57:1::"), "{inside}");
    lab.pings6("c2", "fd57:1::7", SOON);
    let taken = ["weft", "attach", "ip:fd57:1::7/64", "netns:c2"];
    let said = lab.exec("host2", &taken).said;
    assert!(said.contains("in use there"), "{said}");
    let first = ["weft", "attach", "ip:fd57:1::/64", "netns:c2"];
    let said = lab.exec("host2", &first).said;
    assert!(said.contains("stands for the routers"), "{said}");

    // The host itself; its address need not be in the part that c2 is in so far.
    lab.ok("host2", &["weft", "attach", "netns:c2"]);
    let exposed = lab.ok("host1", &["weft", "expose"]);
    let exposed: Vec<_> = exposed.split_whitespace().collect();
    assert_eq!(exposed.len(), 2, "{exposed:?}");
    lab.pings6("c2", exposed[1], SOON);
    assert_eq!(
        lab.ok("host1", &["weft", "hide"])
            .split_whitespace()
            .count(),
        2
    );

    for (range, why) in [
        ("fe80::/64", "link's own"),
        ("ff02::/16", "multicast"),
        ("fd57::/127", "fewer than 4"),
        ("::/0", "IPv4"),
    ] {
        lab.ok("host2", &["weft", "stop"]);
        let range = format!("--ipalloc-range={range}");
        let said = lab.exec("host2", &["weft", "launch", &range, "host1"]).said;
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn a_cluster_may_have_ipv6_addresses_alone() {
    if !possible() {
        return;
    }
    let lab = Lab::bare("only6", 2, 1);
    lab.ok("host1", &["weft", "launch", "--ipalloc-range=fd57:1::/64"]);
    lab.ok(
        "host2",
        &["weft", "launch", "--ipalloc-range=fd57:1::/64", "host1"],
    );
    let mut addresses = Vec::new();
    for (host, name) in [("host1", "c1"), ("host2", "c2")] {
        let target = format!("netns:{name}");
        let address = lab.ok(host, &["weft", "attach", "--name", name, &target]);
        assert!(address.starts_with("fd57:1:"), "{address}");
        addresses.push(address.trim().to_owned());
    }
    lab.pings6("c1", &addresses[1], SOON);
    lab.pings6("c2", &addresses[0], SOON);
    eventually("the name is known", SOON, || {
        let found = found(&lab, "host1", "c2");
        ensure(found == addresses[1..], format!("{found:?}"))
    });
}
