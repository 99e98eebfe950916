//! The router as a process of the host and as a container: both serve containers, who find each other by
//! name.

use super::bed::Bed;
use super::command::{SOON, ensure, eventually};
use super::images::{self, BUSYBOX};
use super::networks::network_is_there;

/// How README.md says the router is run as a container, between `docker run` and the image.
const RIGHTS: &str = "--net=host --pid=host --cap-add NET_ADMIN --cap-add SYS_ADMIN --device /dev/net/tun \
    --security-opt systempaths=unconfined -v /run/weft:/run/weft -v /var/lib/weft:/var/lib/weft \
    -v /run/netns:/run/netns -v /run/docker/plugins:/run/docker/plugins -v /var/run/docker.sock:/var/run/docker.sock";
/// How a container is told to ask weft for names.
pub(crate) const DNS: [&str; 4] = ["--dns", "169.254.67.83", "--dns-search", "weft.local"];

#[test]
fn containers_on_three_hosts_find_each_other_by_name_with_routers_of_both_kinds() {
    let bed = Bed::up(3);
    bed.ok("node01", &["weft", "launch"]);
    bed.ok("node02", &["weft", "launch", "node01"]);
    images::build_router(&bed, "node03");
    launch_as_container(&bed, "node03", &["node01"]);
    for number in 1..=3 {
        let (host, container) = (format!("node0{number}"), format!("app0{number}"));
        start_container(&bed, &host, &container, &[]);
        let attach = ["weft", "attach", &container];
        let inside: &[&str] = if number == 3 {
            &["docker", "exec", "weft"]
        } else {
            &[]
        };
        bed.ok(&host, &[inside, &attach].concat());
    }
    for from in 1..=3 {
        for to in (1..=3).filter(|to| *to != from) {
            let (host, container) = (format!("node0{from}"), format!("app0{from}"));
            bed.pings(&host, &container, &format!("app0{to}"));
            bed.pings(&host, &container, &format!("app0{to}.weft.local"));
        }
    }
    // The plugin is in the router's container too.
    network_is_there(&bed, "node03");
    start_container(&bed, "node03", "app04", &["--net=weft"]);
    bed.pings("node01", "app01", "app04");
    bed.pings("node03", "app04", "app01");
}

#[test]
fn a_host_keeps_its_containers_over_a_restart_of_docker_and_a_loss_of_power() {
    let mut bed = Bed::up(1);
    start_container(&bed, "node01", "app01", &["--restart=always"]);
    let runs = |bed: &Bed| {
        eventually("app01 runs again", SOON, || {
            let up = bed.on("node01", &["docker", "exec", "app01", "true"]);
            ensure(up.code == Some(0), up.said)
        });
    };
    bed.stop_docker("node01");
    let refused = bed.on("node01", &["docker", "ps"]).failure();
    assert!(refused.contains("docker.sock"), "{refused}");
    bed.start_docker("node01");
    runs(&bed);
    bed.power_off("node01");
    bed.power_on("node01");
    assert!(!bed.path("node01", "/run/docker.pid").exists());
    bed.start_docker("node01");
    runs(&bed);
}

/// Runs a container that lasts until it is ended.
#[track_caller]
pub(crate) fn start_container(bed: &Bed, host: &str, name: &str, more: &[&str]) {
    let begin = ["docker", "run", "-d", "--name", name];
    let program = [BUSYBOX, "sleep", "infinity"];
    bed.ok(
        host,
        &[&begin, DNS.as_slice(), more, program.as_slice()].concat(),
    );
}

/// Runs the router as a container, and waits until it answers.
#[track_caller]
pub(crate) fn launch_as_container(bed: &Bed, host: &str, peers: &[&str]) {
    let begin = ["docker", "run", "-d", "--name", "weft"];
    let rights: Vec<&str> = RIGHTS.split_whitespace().collect();
    let launch = [images::ROUTER, "launch", "--foreground"];
    bed.ok(
        host,
        &[&begin, rights.as_slice(), launch.as_slice(), peers].concat(),
    );
    eventually("the router in a container answers", SOON, || {
        let status = bed.on(host, &["docker", "exec", "weft", "weft", "status"]);
        let logs = || bed.on(host, &["docker", "logs", "weft"]);
        ensure(status.code == Some(0), format!("{status:?} {:?}", logs()))
    });
}
