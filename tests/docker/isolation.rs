//! Several Docker networks on several hosts, each an Ethernet of its own, with every option that makes one.

use super::bed::{Bed, INTERNET};
use super::command::{SOON, ensure, eventually};
use super::groups::{self, Member};
use super::images::BUSYBOX;

/// Docker on three hosts, a router on each, connected.
#[track_caller]
fn hosts() -> Bed {
    let bed = Bed::up(3);
    bed.launch(&[]);
    bed
}

/// Makes one network on a host.
#[track_caller]
fn make(bed: &Bed, host: &str, name: &str, options: &str) {
    let create = "docker network create -d weft --ipam-driver weft";
    bed.sh(host, &format!("{create} {options} {name}"));
}

/// Runs a container on a network until it is ended.
#[track_caller]
fn start(bed: &Bed, host: &str, name: &str, network: &str, more: &str) {
    let line =
        format!("docker run -d --name {name} --net={network} {more} {BUSYBOX} sleep infinity");
    bed.sh(host, &line);
}

/// A container's address on a network.
#[track_caller]
fn address(bed: &Bed, host: &str, container: &str, network: &str, field: &str) -> String {
    let format = format!("{{{{.NetworkSettings.Networks.{network}.{field}}}}}");
    let found = bed.ok(host, &["docker", "inspect", "-f", &format, container]);
    found.trim().to_owned()
}

#[track_caller]
fn never_pings(bed: &Bed, host: &str, container: &str, to: &str) {
    let reached = bed.ping(host, container, to).is_ok();
    assert!(
        !reached,
        "{container} reaches {to}, which is on another network"
    );
}

#[test]
fn two_networks_are_two_ethernets_and_a_container_on_both_talks_to_both() {
    let bed = hosts();
    let (blue, green) = (
        // One subnet for both, so that it is not the addresses that keep them apart.
        "-o weft.network=blue --subnet 10.50.0.0/16 --ip-range 10.50.1.0/24",
        "-o weft.network=green --subnet 10.50.0.0/16 --ip-range 10.50.2.0/24",
    );
    let apart = "--subnet 10.60.0.0/16";
    for host in bed.names() {
        make(&bed, &host, "blue", blue);
        make(&bed, &host, "green", green);
        make(&bed, &host, "apart", apart);
    }
    for (host, number) in [("node01", 1), ("node02", 2), ("node03", 3)] {
        for network in ["blue", "green", "apart"] {
            start(&bed, host, &format!("{network}{number}"), network, "");
        }
    }
    let on = |number: u8, network: &str| {
        let (host, name) = (format!("node0{number}"), format!("{network}{number}"));
        address(&bed, &host, &name, network, "IPAddress")
    };
    for network in ["blue", "green", "apart"] {
        bed.pings("node01", &format!("{network}1"), &on(2, network));
        bed.pings("node02", &format!("{network}2"), &on(3, network));
    }
    for (from, to) in [("blue", "green"), ("green", "blue"), ("apart", "blue")] {
        for number in [1, 2] {
            never_pings(&bed, "node01", &format!("{from}1"), &on(number, to));
        }
    }

    let mut members = Vec::new();
    for number in 1..=3 {
        for network in ["blue", "green"] {
            let (host, name) = (format!("node0{number}"), format!("{network}{number}"));
            let address = on(number, network).parse().unwrap();
            members.push(Member::join(&bed, &host, &name, network, address));
        }
    }
    groups::each_hears_its_own_network_and_no_other(&members, [10, 50, 255, 255].into());

    bed.ok(
        "node03",
        &["docker", "network", "connect", "apart", "blue3"],
    );
    bed.pings("node03", "blue3", &on(1, "blue"));
    bed.pings("node03", "blue3", &on(1, "apart"));
    never_pings(&bed, "node01", "blue1", &on(1, "apart"));
    bed.ok(
        "node03",
        &["docker", "network", "disconnect", "apart", "blue3"],
    );
    never_pings(&bed, "node03", "blue3", &on(1, "apart"));
    bed.pings("node03", "blue3", &on(1, "blue"));

    // Over a restart of the router, and of dockerd.
    bed.sh("node02", "kill -9 $(cat /run/weft/weft.pid)");
    bed.ok("node02", &["weft", "launch", "node01"]);
    bed.pings("node01", "blue1", &on(2, "blue"));
    never_pings(&bed, "node01", "green1", &on(2, "blue"));

    // What is sent to all of a network that only node01 has ends at the others, and is counted.
    make(&bed, "node01", "lone", "--subnet 10.70.0.0/16");
    start(&bed, "node01", "lone1", "lone", "");
    bed.ping("node01", "lone1", "10.70.9.9").unwrap_err();
    eventually(
        "node03 drops frames of a network it is not in",
        SOON,
        || {
            let report = ["weft", "report", "--format", "{{router.drops}}"];
            let drops = bed.ok("node03", &report);
            ensure(drops.contains("unknown_network"), drops)
        },
    );
    bed.ok("node01", &["docker", "rm", "-f", "lone1"]);
    bed.ok("node01", &["docker", "network", "rm", "lone"]);

    let bridges = || bed.ok("node01", &["ip", "-o", "link", "show", "type", "bridge"]);
    assert_eq!(bridges().matches(": weft-").count(), 3, "{}", bridges());
    bed.ok("node01", &["docker", "rm", "-f", "green1"]);
    bed.ok("node01", &["docker", "network", "rm", "green"]);
    assert_eq!(bridges().matches(": weft-").count(), 2, "{}", bridges());
}

#[test]
fn a_network_has_what_its_options_say() {
    let bed = hosts();
    let options = "--subnet 10.60.0.0/16 --ip-range 10.60.4.0/24 --gateway 10.60.255.254 --aux-address spare=10.60.4.9";
    for host in ["node01", "node02"] {
        make(&bed, host, "chosen", options);
        make(&bed, host, "inner", "--internal --subnet 10.61.0.0/16");
        make(
            &bed,
            host,
            "six",
            "--ipv6 --subnet 10.62.0.0/16 --subnet fd57:1::/64 -o weft.multicast=false",
        );
    }
    start(&bed, "node01", "one", "chosen", "--ip 10.60.7.7 -p 8080:80");
    start(&bed, "node02", "two", "chosen", "");
    let two = address(&bed, "node02", "two", "chosen", "IPAddress");
    assert!(two.starts_with("10.60.4.") && two != "10.60.4.9", "{two}");
    bed.pings("node02", "two", "10.60.7.7");
    let taken = bed.on(
        "node02",
        &[
            "docker",
            "run",
            "--rm",
            "--net=chosen",
            "--ip=10.60.7.7",
            BUSYBOX,
            "true",
        ],
    );
    let said = taken.failure();
    assert!(said.contains("10.60.7.7"), "{said}");

    // The gateway bridge has the way out and the published ports.
    bed.pings("node01", "one", INTERNET);
    bed.sh(
        "node01",
        "docker exec one sh -c 'echo hello > /index.html; httpd -h / -p 80'",
    );
    let url = "http://10.77.0.1:8080/index.html";
    let page = bed.ok("node02", &["busybox", "wget", "-q", "-O", "-", url]);
    assert_eq!(page.trim(), "hello");

    start(&bed, "node01", "in1", "inner", "");
    start(&bed, "node02", "in2", "inner", "");
    bed.pings(
        "node01",
        "in1",
        &address(&bed, "node02", "in2", "inner", "IPAddress"),
    );
    never_pings(&bed, "node01", "in1", INTERNET);

    start(&bed, "node01", "six1", "six", "");
    start(&bed, "node02", "six2", "six", "");
    let six = address(&bed, "node02", "six2", "six", "GlobalIPv6Address");
    eventually("six1 pings six2", SOON, || {
        let ping = [
            "docker", "exec", "six1", "ping", "-6", "-c", "1", "-w", "1", &six,
        ];
        let pinged = bed.on("node01", &ping);
        ensure(pinged.code == Some(0), format!("{pinged:?}"))
    });
    // Out of the ring, so nobody else gets it.
    let held = bed.ok("node02", &["weft", "report"]);
    assert!(
        held.contains(&format!("{six}/64")),
        "{six} is not in {held}"
    );
    let ip6 = format!("--ip6={six}");
    let run = ["docker", "run", "--rm", "--net=six", &ip6, BUSYBOX, "true"];
    let said = bed.on("node01", &run).failure();
    assert!(said.contains(&six), "{said}");
    let routes = bed.ok("node01", &["docker", "exec", "six1", "ip", "route"]);
    assert!(!routes.contains("224.0.0.0"), "{routes}");

    for (option, why) in [
        ("com.docker.network.driver.mtu=9000", "--mtu 9000"),
        ("weft.colour=blue", "weft.colour"),
    ] {
        let create = [
            "docker",
            "network",
            "create",
            "-d",
            "weft",
            "--ipam-driver=weft",
        ];
        let wrong = [&create[..], &["-o", option, "wrong"]].concat();
        let said = bed.on("node01", &wrong).failure();
        assert!(said.contains(why), "{said}");
    }
}
