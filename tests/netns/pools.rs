//! Several address pools: given to every router, made while routers run, and passed on by a router
//! that gives out no addresses.

use super::support::{Lab, SOON, possible};

#[test]
fn containers_get_addresses_of_the_pool_they_ask_for_on_every_host() {
    if !possible() {
        return;
    }
    let lab = Lab::bare("pools", 3, 1);
    let ranges = "--ipalloc-range=10.32.0.0/16,172.30.0.0/24";
    lab.ok("host1", &["weft", "launch", ranges]);
    lab.ok("host2", &["weft", "launch", ranges, "host1"]);
    // A router without a range of its own is no obstacle between the others.
    lab.ok(
        "host3",
        &["weft", "launch", "--ipalloc-range=", "host1", "host2"],
    );
    for (host, name) in [("host1", "c1"), ("host2", "c2"), ("host3", "c3")] {
        let target = format!("netns:{name}");
        let attach = [
            "weft",
            "attach",
            "--name",
            name,
            "net:172.30.0.0/24",
            &target,
        ];
        let address = lab.ok(host, &attach);
        assert!(address.starts_with("172.30.0."), "{address}");
    }
    for (from, to) in [("c1", "c2"), ("c2", "c3"), ("c3", "c1")] {
        lab.pings(from, to, SOON);
    }

    // Made at one router, known to all.
    let made = lab.task("host2", &["add-pool", "192.168.70.0/24"]);
    assert_eq!(made, ["192.168.70.0/24"]);
    let inside = lab.task("host2", &["add-pool", "172.30.0.64/26"]);
    assert_eq!(inside, ["172.30.0.0/24"]);
    let around = lab.task("host2", &["add-pool", "192.168.0.0/16"]);
    assert!(around[0].contains("overlaps"), "{around:?}");
    for (host, name) in [("host1", "c1"), ("host2", "c2"), ("host3", "c3")] {
        let target = format!("netns:{name}");
        super::support::eventually("the pool is known", SOON, || {
            let shown = lab.ok(host, &["weft", "status"]);
            super::support::ensure(shown.contains("192.168.70.0/24"), shown)
        });
        let address = lab.ok(host, &["weft", "attach", "net:192.168.70.0/24", &target]);
        assert!(address.starts_with("192.168.70."), "{address}");
    }

    // All of it is found again.
    let holders = |host: &str| {
        let report = lab.report(host);
        let held = report.holders().map(|holder| holder.cidr.to_string());
        held.collect::<Vec<_>>()
    };
    let before = holders("host2");
    assert_eq!(before.len(), 2, "{before:?}");
    lab.ok("host2", &["weft", "stop"]);
    lab.ok("host2", &["weft", "launch", ranges, "host1"]);
    assert_eq!(holders("host2"), before);
    lab.pings("c1", "c2", SOON * 4);
    let detach = ["weft", "detach", "net:172.30.0.0/24", "netns:c2"];
    let detached = lab.ok("host2", &detach);
    assert!(detached.starts_with("172.30.0."), "{detached}");
    assert_eq!(holders("host2").len(), 1);
}
