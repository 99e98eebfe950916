//! What hosts' networks are like: several addresses, either family, addresses that change.

use std::time::{Duration, Instant};

use super::support::{Lab, SOON, connections, ensure, eventually, possible};

#[test]
fn a_host_name_is_looked_up_at_each_try_and_all_its_addresses_get_their_share() {
    if !possible() {
        return;
    }
    let lab = Lab::bare("names", 2, 1);
    lab.ok("host1", &["weft", "launch"]);
    set_hosts(&lab, "198.18.0.77 elsewhere");
    lab.ok("host2", &["weft", "launch", "elsewhere"]);
    eventually("nobody is there", SOON, || {
        let shown = lab.ok("host2", &["weft", "status", "connections"]);
        ensure(shown.contains("198.18.0.77"), shown)
    });
    // Three that nobody has, and one that is right.
    let dead = "198.18.0.77 elsewhere\n198.18.0.78 elsewhere\n198.18.0.79 elsewhere";
    set_hosts(&lab, &format!("{dead}\n198.18.0.1 elsewhere"));
    eventually("host2 is connected", SOON * 3, || {
        established(&lab, "host2", "host1")
    });
}

#[test]
fn the_underlay_may_be_of_ipv6_or_of_both_families() {
    if !possible() {
        return;
    }
    let lab = Lab::bare("six", 3, 1);
    for (host, v6) in [
        ("host1", "fd00:6::1/64"),
        ("host2", "fd00:6::2/64"),
        ("host3", "fd00:6::3/64"),
    ] {
        lab.task(host, &["add-address", "eth0", v6]);
    }
    // One has IPv6 alone, and one knows the others by IPv6 but has both.
    lab.task("host3", &["del-address", "eth0", "198.18.0.3/24"]);
    lab.ok("host1", &["weft", "launch"]);
    lab.ok("host2", &["weft", "launch", "host1"]);
    lab.ok("host3", &["weft", "launch", "fd00:6::1"]);
    for (n, host) in [(1, "host1"), (2, "host2"), (3, "host3")] {
        let (name, target) = (format!("c{n}"), format!("netns:c{n}"));
        lab.ok(host, &["weft", "attach", "--name", &name, &target]);
    }
    for (from, to) in [("c1", "c3"), ("c2", "c1"), ("c2", "c3")] {
        lab.pings(from, to, SOON * 2);
    }
    // host2 and host3 have found each other, over the one family both have: by what host1 sees of host3, and
    // by what it is told.
    eventually("host2 and host3 are connected", SOON * 3, || {
        established(&lab, "host3", "host2")
    });
    // Until host2 has dialled, host3, which cannot reach what host1 sees of it, may have it over host1.
    eventually("all connections of host3 are of IPv6", SOON * 3, || {
        let report = lab.report("host3");
        let all = &report.router.connections;
        let v6 = |address: &str| address.starts_with('[');
        ensure(all.iter().all(|c| v6(&c.address)), format!("{all:?}"))
    });
}

#[test]
fn an_address_that_is_advertised_is_where_others_dial() {
    if !possible() {
        return;
    }
    let lab = Lab::bare("advert", 3, 0);
    // What others see of host2 is of no use to host3.
    lab.task("host2", &["add-address", "eth0", "10.99.0.2/24"]);
    lab.task("host3", &["add-address", "eth0", "10.99.0.3/24"]);
    lab.ok("host1", &["weft", "launch"]);
    let launch = [
        "weft",
        "launch",
        "--advertise-address",
        "10.99.0.2",
        "host1",
    ];
    lab.ok("host2", &launch);
    eventually("host2 is there", SOON, || {
        established(&lab, "host1", "host2")
    });
    lab.ok("host3", &["weft", "launch", "host1"]);
    eventually("host3 is connected", SOON * 2, || {
        established(&lab, "host3", "host2")?;
        let report = lab.report("host3");
        let found = connections(&report, "host2");
        let near = found.iter().any(|c| c.address.starts_with("10.99.0.2:"));
        ensure(
            near || !found.iter().any(|c| c.outbound),
            format!("{found:?}"),
        )
    });
}

#[test]
fn a_host_whose_address_changes_is_followed_within_seconds() {
    if !possible() {
        return;
    }
    let lab = Lab::up("roam", 3, 1, &[]);
    lab.task("host2", &["del-address", "eth0", "198.18.0.2/24"]);
    lab.task("host2", &["add-address", "eth0", "198.18.0.99/24"]);
    let moved = Instant::now();
    for (from, to) in [("c2", "c1"), ("c3", "c2"), ("c1", "c2")] {
        lab.pings(from, to, SOON * 2);
    }
    let took = moved.elapsed();
    println!("followed after {took:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    for host in ["host1", "host3"] {
        eventually("the new address is known", SOON * 2, || {
            let report = lab.report(host);
            let found = connections(&report, "host2");
            let there = found.iter().any(|c| c.address.starts_with("198.18.0.99:"));
            ensure(there, format!("{found:?}"))
        });
    }
}

fn set_hosts(lab: &Lab, lines: &str) {
    let script = format!("printf '127.0.0.1 localhost\n{lines}\n' > /etc/hosts");
    lab.ok("host2", &["sh", "-ec", &script]);
}

fn established(lab: &Lab, host: &str, nickname: &str) -> Result<(), String> {
    let report = lab.report(host);
    let found = connections(&report, nickname);
    let state = weft_api::report::ConnectionState::Established;
    let is_up = found.iter().any(|connection| connection.state == state);
    ensure(is_up, format!("{:?}", report.router.connections))
}
