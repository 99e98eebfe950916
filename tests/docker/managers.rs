//! A swarm of three managers whose first one loses its power, and comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::bed::Bed;
use super::command::{ensure, eventually};
use super::swarm::{CREATE, hosts, join, plugins_are_known, serve, set_up, tasks};

/// How long a swarm may take to notice that a node is gone and to start its tasks elsewhere.
const LONG: Duration = Duration::from_secs(120);

/// What each of a service's containers on a host has on weft, by container.
#[track_caller]
fn addresses(bed: &Bed, host: &str, service: &str) -> BTreeMap<String, String> {
    let of = |task: String| {
        let format = "{{.NetworkSettings.Networks.weavenet1.IPAddress}}";
        let found = bed.ok(host, &["docker", "inspect", "-f", format, &task]);
        (task, found.trim().to_owned())
    };
    tasks(bed, host, service).into_iter().map(of).collect()
}

/// Waits until so many tasks of a service run on these hosts, and gives back what they have.
#[track_caller]
fn running(bed: &Bed, hosts: &[&str], service: &str, count: usize) -> BTreeMap<String, String> {
    eventually(
        &format!("{count} of {service} run on {hosts:?}"),
        LONG,
        || {
            let found: BTreeMap<_, _> = hosts
                .iter()
                .flat_map(|host| addresses(bed, host, service))
                .collect();
            let told = || {
                bed.on(
                    hosts[0],
                    &["docker", "service", "ps", "--no-trunc", service],
                )
            };
            ensure(found.len() == count, format!("{found:?} {:?}", told()))?;
            Ok::<_, String>(found)
        },
    )
}

#[test]
fn when_another_takes_over_networks_and_addresses_stay_true() {
    let mut bed = hosts(3);
    // With the plugin before the swarm, which then knows of it from the first; else only after some time.
    set_up(&bed);
    join(&bed, "manager");
    plugins_are_known(&bed);
    let others = ["node02", "node03"];
    bed.sh("node01", CREATE);
    serve(&bed, "node01", "web", 3);
    let before = running(&bed, &["node01", "node02", "node03"], "web", 3);
    let stay: BTreeMap<_, _> = running(&bed, &others, "web", 2);
    bed.power_off("node01");
    eventually("another manager leads", LONG, || {
        let nodes = bed.on(
            "node02",
            &[
                "docker",
                "node",
                "ls",
                "--format",
                "{{.Hostname}} {{.ManagerStatus}}",
            ],
        );
        let leads = |line: &str| line.ends_with("Leader") && !line.starts_with("node01");
        ensure(nodes.printed.lines().any(leads), format!("{nodes:?}"))
    });
    // What ran there is started elsewhere, with addresses of its own; what runs is as it was.
    let after = running(&bed, &others, "web", 3);
    for (task, address) in &stay {
        assert_eq!(after.get(task), Some(address), "{task} {after:?}");
    }
    serve(&bed, "node02", "db", 2);
    let db = running(&bed, &others, "db", 2);
    let all: BTreeSet<_> = before
        .values()
        .chain(after.values())
        .chain(db.values())
        .collect();
    // Three, the one for node01's, and two.
    assert_eq!(all.len(), 6, "{before:?} {after:?} {db:?}");
    for host in others {
        let from = &tasks(&bed, host, "web")[0];
        bed.pings(host, from, "db");
        for address in after.values().chain(db.values()) {
            bed.pings(host, from, address);
        }
    }

    // The first is back, and one of many now.
    bed.power_on("node01");
    bed.ok("node01", &["weft", "launch", "node02"]);
    bed.start_docker("node01");
    bed.ok("node02", &["docker", "service", "scale", "-d", "web=6"]);
    let all_hosts = ["node01", "node02", "node03"];
    let more = running(&bed, &all_hosts, "web", 6);
    let distinct: BTreeSet<_> = more.values().chain(db.values()).collect();
    assert_eq!(distinct.len(), 8, "{more:?} {db:?}");
    let there = &tasks(&bed, "node01", "web")[0];
    for address in more.values().chain(db.values()) {
        bed.pings("node01", there, address);
    }
}
