//! Names of containers on the plugin's networks, and what must follow what Docker does while somebody is away.

use std::collections::BTreeSet;

use super::bed::Bed;
use super::command::{PATIENCE, SOON, ensure, eventually};
use super::images::BUSYBOX;
use super::networks::network_is_there;

/// Docker, a router and the plugin on this many hosts.
#[track_caller]
fn hosts(count: usize) -> Bed {
    let bed = Bed::up(count);
    bed.launch(&[]);
    bed.on_all(network_is_there);
    bed
}

/// Waits until a name stands for so many addresses on a host, and gives them back.
#[track_caller]
fn resolves(bed: &Bed, host: &str, name: &str, count: usize) -> Vec<String> {
    eventually(&format!("{host} finds {count} of {name}"), PATIENCE, || {
        let found = bed.on(host, &["weft", "dns-lookup", name]);
        let addresses: Vec<_> = found
            .printed
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        ensure(addresses.len() == count, format!("{found:?}"))?;
        Ok::<_, String>(addresses)
    })
}

#[test]
fn containers_on_the_plugins_network_have_all_their_names_on_every_host() {
    let bed = hosts(2);
    let run = |host: &str, more: &str| {
        let line = format!(
            "eval $(weft env 2>/dev/null); docker run -d --net weft {more} {BUSYBOX} sleep infinity"
        );
        bed.sh(host, &line);
    };
    run(
        "node01",
        "--name app01 --hostname www --network-alias shop --label com.docker.compose.service=web",
    );
    run("node01", "--name app03 --network-alias shop");
    run("node02", "--name app02 --network-alias shop");
    run("node02", "--name own --dns 192.0.2.53");
    for name in ["app01", "www", "web"] {
        resolves(&bed, "node02", name, 1);
        // By Docker's own resolver, which passes on what it does not know.
        bed.pings("node02", "app02", name);
    }
    bed.pings("node01", "app01", "app02");
    // One that chose its resolver keeps it.
    let chosen = ["docker", "inspect", "-f", "{{.HostConfig.Dns}}", "own"];
    assert_eq!(bed.ok("node02", &chosen).trim(), "[192.0.2.53]");
    resolves(&bed, "node02", "shop", 3);
    eventually("the order changes", SOON, || {
        let orders: BTreeSet<String> = (0..12)
            .map(|_| {
                let lookup = [
                    "docker",
                    "exec",
                    "app02",
                    "nslookup",
                    "shop.weft.local",
                    "169.254.67.83",
                ];
                bed.ok("node02", &lookup)
            })
            .collect();
        ensure(orders.len() > 1, format!("{orders:?}"))
    });
    bed.ok(
        "node01",
        &["docker", "network", "disconnect", "weft", "app03"],
    );
    resolves(&bed, "node02", "shop", 2);
    bed.ok(
        "node01",
        &[
            "docker", "network", "connect", "--alias", "late", "weft", "app03",
        ],
    );
    resolves(&bed, "node02", "late", 1);
    bed.ok("node01", &["docker", "rename", "app03", "app04"]);
    resolves(&bed, "node02", "app04", 1);
    resolves(&bed, "node02", "app03", 0);
    bed.ok("node01", &["docker", "rm", "-f", "app04"]);
    resolves(&bed, "node02", "app04", 0);
}

#[test]
fn what_happens_while_somebody_is_away_is_made_good() {
    let bed = hosts(1);
    let host = "node01";
    let run = |name: &str, more: &str| {
        bed.sh(
            host,
            &format!("docker run -d --name {name} {more} {BUSYBOX} sleep infinity"),
        );
    };
    run("gone", "--net=weft");
    run("stays", "--net=weft --restart=always");
    run("loose", "--restart=always");
    run("lost", "");
    bed.ok(host, &["weft", "attach", "loose"]);
    bed.ok(host, &["weft", "attach", "lost"]);
    for name in ["gone", "stays", "loose", "lost"] {
        resolves(&bed, host, name, 1);
    }
    let before = resolves(&bed, host, "loose", 1);
    let lost = bed.ok(host, &["docker", "inspect", "-f", "{{.Id}}", "lost"]);
    // The router is away.
    bed.ok(host, &["weft", "stop"]);
    bed.ok(host, &["docker", "rm", "-f", "gone", "lost"]);
    bed.ok(host, &["weft", "launch"]);
    for (name, count) in [("gone", 0), ("lost", 0), ("stays", 1), ("loose", 1)] {
        resolves(&bed, host, name, count);
    }
    eventually("what the lost had is freed", PATIENCE, || {
        let holders = bed.ok(host, &["weft", "report", "--format", "{{ipam.holders}}"]);
        ensure(!holders.contains(lost.trim()), holders)
    });
    // dockerd is away, and what it starts anew is attached anew.
    bed.stop_docker(host);
    bed.start_docker(host);
    for name in ["stays", "loose"] {
        resolves(&bed, host, name, 1);
    }
    let show = [
        "docker", "exec", "loose", "ip", "-4", "-o", "addr", "show", "ethwe",
    ];
    eventually("loose is attached again", PATIENCE, || {
        let shown = bed.on(host, &show);
        ensure(
            shown.printed.contains(&format!("{}/", before[0])),
            format!("{shown:?}"),
        )
    });
    assert_eq!(resolves(&bed, host, "loose", 1), before);
}

#[test]
fn containers_of_a_host_set_up_for_it_ask_weft_for_names_without_being_told() {
    let bed = hosts(2);
    let keep = format!("{BUSYBOX} sleep infinity");
    bed.sh(
        "node01",
        &format!("docker run -d --name app01 --net weft {keep}"),
    );
    let there = resolves(&bed, "node02", "app01", 1).concat();
    let docker_anew = |setup: &[&str]| {
        bed.ok("node02", &[&["weft", "setup", "docker"], setup].concat());
        bed.stop_docker("node02");
        bed.start_docker("node02");
    };
    docker_anew(&["--dns"]);
    bed.sh("node02", "docker network create other");
    // On weft, on a network of theirs that weft is no part of, on Docker's own, and by the runtime.
    for (name, more) in [
        ("on-weft", "--net weft"),
        ("on-other", "--net other"),
        ("on-bridge", ""),
        ("by-runtime", "--runtime=weft"),
    ] {
        bed.sh(
            "node02",
            &format!("docker run -d --name {name} {more} {keep}"),
        );
        eventually(&format!("{name} finds app01"), SOON, || {
            let found = bed.on("node02", &["docker", "exec", name, "nslookup", "app01"]);
            ensure(found.printed.contains(&there), format!("{found:?}"))
        });
    }
    bed.pings("node02", "on-weft", "app01");
    bed.pings("node02", "by-runtime", "app01");
    docker_anew(&["--undo"]);
    let cat = format!("docker run --rm {BUSYBOX} cat /etc/resolv.conf");
    let asked = bed.sh("node02", &cat);
    assert!(!asked.contains("169.254.67.83"), "{asked}");
}
