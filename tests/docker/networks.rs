//! Docker networks of the driver `weft`: made by hand or at launch, containers on them, and what happens
//! while the router or dockerd is away.

use std::time::{Duration, Instant};

use super::bed::{Bed, INTERNET};
use super::command::{SOON, ensure, eventually};
use super::images::BUSYBOX;

/// Docker on this many hosts, a router on each, connected, and Docker's network `weft` there.
#[track_caller]
fn hosts_with_networks(count: usize) -> Bed {
    let bed = Bed::up(count);
    bed.launch(&[]);
    bed.on_all(network_is_there);
    bed
}

/// Waits for the network that the plugin makes of itself.
#[track_caller]
pub(crate) fn network_is_there(bed: &Bed, host: &str) {
    eventually("Docker has the network weft", SOON, || {
        let found = bed.on(host, &["docker", "network", "inspect", "weft"]);
        ensure(found.code == Some(0), format!("{found:?}"))
    });
}

/// Runs a container on a network until it is ended.
#[track_caller]
fn start(bed: &Bed, host: &str, name: &str, more: &[&str]) {
    let begin = ["docker", "run", "-d", "--name", name];
    let program = [BUSYBOX, "sleep", "infinity"];
    bed.ok(host, &[&begin, more, program.as_slice()].concat());
}

/// A container's address on a network.
#[track_caller]
fn address(bed: &Bed, host: &str, container: &str, network: &str) -> String {
    let format = format!("{{{{.NetworkSettings.Networks.{network}.IPAddress}}}}");
    let found = bed.ok(host, &["docker", "inspect", "-f", &format, container]);
    found.trim().to_owned()
}

/// The addresses the router holds for containers, with their holders.
#[track_caller]
fn holders(bed: &Bed, host: &str) -> String {
    bed.ok(host, &["weft", "report", "--format", "{{ipam.holders}}"])
}

#[test]
fn the_network_made_at_launch_joins_the_containers_of_two_hosts() {
    let bed = hosts_with_networks(2);
    // Nobody has been asked for an address so far.
    for host in bed.names() {
        assert_eq!(holders(&bed, &host).trim(), "[]");
    }
    start(&bed, "node01", "app01", &["--net=weft", "-p", "8080:80"]);
    start(&bed, "node02", "app02", &["--net=weft"]);
    let there = address(&bed, "node01", "app01", "weft");
    bed.pings("node02", "app02", &there);
    bed.pings("node02", "app02", INTERNET);
    let inside = bed.ok("node01", &["docker", "exec", "app01", "ip", "addr"]);
    assert!(inside.contains("ethwe0"), "{inside}");
    assert!(inside.contains(&format!("{there}/12")), "{inside}");
    assert!(inside.contains("mtu 1376"), "{inside}");

    let serve = "echo hello > /index.html; httpd -h / -p 80";
    bed.ok("node01", &["docker", "exec", "app01", "sh", "-c", serve]);
    let url = "http://10.77.0.1:8080/index.html";
    let page = bed.ok("node02", &["busybox", "wget", "-q", "-O", "-", url]);
    assert_eq!(page.trim(), "hello");

    for (host, container) in [("node01", "app01"), ("node02", "app02")] {
        bed.ok(host, &["docker", "rm", "-f", container]);
        assert_eq!(holders(&bed, host).trim(), "[]");
        let links = bed.ok(host, &["ip", "-o", "link"]);
        assert!(!links.contains("weftp"), "{links}");
    }
}

#[test]
fn a_missing_or_wedged_router_is_an_error_at_once_and_its_return_makes_things_work() {
    let bed = hosts_with_networks(1);
    let host = "node01";
    start(&bed, host, "app01", &["--net=weft"]);
    let try_to_start = || {
        let begin = Instant::now();
        let run = ["docker", "run", "--rm", "--net=weft", BUSYBOX, "true"];
        let said = bed.on(host, &run).failure();
        assert!(begin.elapsed() < Duration::from_secs(12), "{said}");
        bed.ok(host, &["docker", "run", "--rm", BUSYBOX, "true"]);
        said
    };
    // Wedged: nothing answers, but dockerd must not wait for ever.
    let router = bed.ok(host, &["cat", "/run/weft/weft.pid"]);
    bed.ok(host, &["kill", "-STOP", router.trim()]);
    let said = try_to_start();
    assert!(
        said.contains("no address") && said.contains("weft status"),
        "{said}"
    );
    bed.ok(host, &["docker", "rm", "-f", "app01"]);
    bed.ok(host, &["kill", "-CONT", router.trim()]);

    bed.ok(host, &["weft", "stop"]);
    let said = try_to_start();
    assert!(said.contains("start it with `weft launch`"), "{said}");
    bed.ok(host, &["weft", "launch"]);
    bed.ok(
        host,
        &["docker", "run", "--rm", "--net=weft", BUSYBOX, "true"],
    );
}

#[test]
fn containers_come_back_on_their_network_after_crashes_of_dockerd_the_plugin_and_the_host() {
    let mut bed = hosts_with_networks(2);
    start(&bed, "node01", "app01", &["--net=weft", "--restart=always"]);
    start(&bed, "node02", "app02", &["--net=weft", "--restart=always"]);
    let reached = |bed: &Bed| {
        eventually("app02 reaches app01", SOON, || {
            let there = address(bed, "node01", "app01", "weft");
            ensure(!there.is_empty(), "app01 has no address")?;
            bed.ping("node02", "app02", &there)
        });
        // Whatever was held before is given back, or used again.
        eventually("one address is held", SOON, || {
            let held = holders(bed, "node01");
            ensure(held.matches("cidr").count() == 1, held)
        });
    };
    reached(&bed);
    bed.ok("node01", &["docker", "restart", "-t", "0", "app01"]);
    reached(&bed);
    bed.stop_docker("node01");
    bed.start_docker("node01");
    reached(&bed);
    bed.sh(
        "node01",
        "kill -9 $(cat /run/docker.pid) $(cat /run/docker/containerd/containerd.pid)",
    );
    bed.start_docker("node01");
    reached(&bed);

    let plugins = "pgrep -f '^weft --socket .* plugin'";
    let before = bed.sh("node01", plugins);
    bed.sh("node01", &format!("kill -9 $({plugins})"));
    eventually("another plugin is there", SOON, || {
        let found = bed.on("node01", &["sh", "-c", plugins]);
        ensure(
            found.code == Some(0) && found.printed != before,
            format!("{found:?}"),
        )
    });
    bed.ok("node01", &["docker", "restart", "-t", "0", "app01"]);
    reached(&bed);

    bed.power_off("node01");
    bed.power_on("node01");
    bed.ok("node01", &["weft", "launch", "node02"]);
    bed.start_docker("node01");
    eventually("app02 reaches app01 after the loss of power", SOON, || {
        let there = address(&bed, "node01", "app01", "weft");
        ensure(!there.is_empty(), "app01 has no address")?;
        bed.ping("node02", "app02", &there)
    });
}
