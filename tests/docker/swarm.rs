//! A swarm of two nodes with weft's plugin on each: the second half of what is learned from tutorials.

use std::process::Command;

use super::bed::{Bed, INTERNET};
use super::command::{PATIENCE, SOON, ensure, eventually, run};
use super::images::{self, BUSYBOX};
use super::networks::network_is_there;

/// The driver's name as a swarm wants it.
const DRIVER: &str = "weft2:latest";
/// How a network of a swarm is made.
pub(crate) const CREATE: &str =
    "docker network create --driver=weft2:latest --ipam-driver=weft2:latest --attachable weavenet1";

/// Docker and a router on this many hosts.
#[track_caller]
pub(crate) fn hosts(count: usize) -> Bed {
    let bed = Bed::up(count);
    // Docker looks for a newer image first; here the look-up of the registry's name fails at once.
    bed.on_all(|bed, host| {
        bed.sh(host, "echo nameserver 10.77.0.254 > /etc/resolv.conf");
    });
    bed.launch(&[]);
    // Docker was seen once to answer nothing about plugins any more, and to start no task, after a swarm had begun while it
    // called a plugin for the first time; which it does when the router makes its network.
    bed.on_all(network_is_there);
    bed
}

/// Makes one swarm of all hosts. node01 is its manager, and all others are what their token makes them,
/// `worker` or `manager`.
#[track_caller]
pub(crate) fn join(bed: &Bed, others: &str) {
    bed.ok(
        "node01",
        &["docker", "swarm", "init", "--advertise-addr", "10.77.0.1"],
    );
    let token = bed.ok("node01", &["docker", "swarm", "join-token", "-q", others]);
    for host in bed.names().iter().skip(1) {
        let join = format!("docker swarm join --token {} 10.77.0.1:2377", token.trim());
        bed.sh(host, &join);
    }
}

/// Has Docker run the plugin on all hosts.
#[track_caller]
pub(crate) fn set_up(bed: &Bed) {
    let small = images::stripped();
    bed.on_all(|bed, host| {
        let folder = bed.path(host, "/run/small");
        std::fs::create_dir(&folder).unwrap();
        // By another process: a program that this one has open for writing is "busy" as long as a child that
        // another thread has just forked has it open too.
        let from = small.path().join("weft");
        run(Command::new("cp").arg(from).arg(&folder)).success();
        bed.ok(host, &["/run/small/weft", "setup", "docker-plugin"]);
        std::fs::remove_dir_all(&folder).unwrap();
    });
}

/// Waits until the manager knows of the plugin on all nodes: before that it gives them no task that wants it.
#[track_caller]
pub(crate) fn plugins_are_known(bed: &Bed) {
    for host in bed.names() {
        eventually(
            &format!("the manager knows of the plugin on {host}"),
            PATIENCE,
            || {
                let plugins = [
                    "docker",
                    "node",
                    "inspect",
                    "-f",
                    "{{.Description.Engine.Plugins}}",
                    &host,
                ];
                let listed = bed.on("node01", &plugins);
                ensure(listed.printed.contains(DRIVER), format!("{listed:?}"))
            },
        );
    }
}

/// The names of a service's containers on a host.
pub(crate) fn tasks(bed: &Bed, host: &str, service: &str) -> Vec<String> {
    let filter = format!("label=com.docker.swarm.service.name={service}");
    let list = bed.on(
        host,
        &["docker", "ps", "-f", &filter, "--format", "{{.Names}}"],
    );
    list.printed.lines().map(str::to_owned).collect()
}

/// Waits until a service has one task on each host, and gives back their names.
#[track_caller]
fn one_on_each(bed: &Bed, service: &str) -> [String; 2] {
    eventually(&format!("{service} runs on both hosts"), PATIENCE, || {
        let running = ["node01", "node02"].map(|host| tasks(bed, host, service));
        let told = || {
            bed.on(
                "node01",
                &["docker", "service", "ps", "--no-trunc", service],
            )
        };
        match running {
            [one, other] if one.len() == 1 && other.len() == 1 => {
                Ok([one[0].clone(), other[0].clone()])
            }
            other => Err(format!("{other:?} {:?}", told())),
        }
    })
}

/// Makes a service on the network, with so many tasks spread over the nodes.
#[track_caller]
pub(crate) fn serve(bed: &Bed, manager: &str, name: &str, replicas: usize) {
    let create = format!(
        "docker service create -d --name {name} --endpoint-mode dnsrr --replicas {replicas} \
         --placement-pref spread=node.id --network weavenet1 --no-resolve-image {BUSYBOX} tail -f /dev/null"
    );
    bed.sh(manager, &create);
}

#[test]
fn tasks_of_a_swarm_on_two_hosts_reach_each_other_by_name_and_the_internet() {
    let bed = hosts(2);
    join(&bed, "worker");
    set_up(&bed);
    plugins_are_known(&bed);
    bed.sh("node01", CREATE);
    serve(&bed, "node01", "web", 2);
    serve(&bed, "node01", "db", 2);
    let web = one_on_each(&bed, "web");
    let db = one_on_each(&bed, "db");
    let inside = bed.ok(
        "node02",
        &["docker", "exec", &web[1], "ip", "-4", "-o", "addr"],
    );
    assert!(inside.contains("ethwe0"), "{inside}");
    assert!(inside.contains("/12"), "{inside}");
    // By the service's name, by the other task's, from either side.
    for (host, from, to) in [
        ("node01", &web[0], "db"),
        ("node02", &web[1], "db"),
        ("node01", &db[0], web[1].as_str()),
        ("node02", &db[1], web[0].as_str()),
    ] {
        bed.pings(host, from, to);
    }
    bed.pings("node02", &web[1], INTERNET);
    let addresses = bed.ok("node01", &["docker", "exec", &web[0], "nslookup", "db"]);
    assert_eq!(
        addresses.matches("Name:").count(),
        2,
        "not both tasks: {addresses}"
    );

    // A container by hand, and one that is on weft without the swarm: they find the services too.
    let run = format!("docker run -d --name hand --network weavenet1 {BUSYBOX} sleep infinity");
    bed.sh("node02", &run);
    bed.pings("node02", "hand", &web[0]);
    for name in ["web", "db", "hand"] {
        eventually(&format!("weft knows {name}"), SOON, || {
            let found = bed.on("node01", &["weft", "dns-lookup", name]);
            let count = found.printed.split_whitespace().count();
            ensure(
                count == if name == "hand" { 1 } else { 2 },
                format!("{found:?}"),
            )
        });
    }
    goes_without_a_trace(&bed);
}

/// Everything is removed again, and so are the addresses.
#[track_caller]
fn goes_without_a_trace(bed: &Bed) {
    bed.ok("node02", &["docker", "rm", "-f", "hand"]);
    bed.ok("node01", &["docker", "service", "rm", "web", "db"]);
    eventually("no task is left", PATIENCE, || {
        let left = ["node01", "node02"].map(|host| bed.ok(host, &["docker", "ps", "-aq"]));
        ensure(left.concat().trim().is_empty(), left.concat())
    });
    eventually("the network is removed", PATIENCE, || {
        let removed = bed.on("node01", &["docker", "network", "rm", "weavenet1"]);
        ensure(removed.code == Some(0), removed.said)
    });
    for host in bed.names() {
        eventually("no address is held, no name is left", PATIENCE, || {
            let holders = bed.ok(&host, &["weft", "report", "--format", "{{ipam.holders}}"]);
            let names = bed.ok(&host, &["weft", "report", "--format", "{{dns.entries}}"]);
            ensure(
                holders.trim() == "[]" && names.trim() == "[]",
                format!("{holders} {names}"),
            )
        });
        eventually("the plugin is removed", PATIENCE, || {
            let undone = bed.on(&host, &["weft", "setup", "docker-plugin", "--undo"]);
            ensure(undone.code == Some(0), undone.said)
        });
        let left = bed.ok(&host, &["docker", "plugin", "ls"]);
        assert!(!left.contains(DRIVER), "{left}");
    }
}
