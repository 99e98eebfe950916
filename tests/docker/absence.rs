//! dockerd itself while weft is away: it starts and serves what is not weft's, whatever became of router and plugin.

use std::time::{Duration, Instant};

use super::bed::Bed;
use super::command::{PATIENCE, SOON, ensure, eventually};
use super::images::BUSYBOX;
use super::networks::network_is_there;

const HOST: &str = "node01";

/// Starts dockerd, has it run a container that has nothing to do with weft, and says how long that took.
#[track_caller]
fn comes_up(bed: &Bed, within: Duration) -> Duration {
    let begin = Instant::now();
    bed.start_docker_within(HOST, within);
    bed.ok(HOST, &["docker", "run", "--rm", BUSYBOX, "true"]);
    begin.elapsed()
}

#[test]
fn dockerd_starts_and_serves_other_networks_whatever_became_of_weft() {
    let bed = Bed::up(1);
    bed.ok(HOST, &["weft", "launch"]);
    network_is_there(&bed, HOST);
    for (name, net) in [("app01", "weft"), ("other", "bridge")] {
        let line = format!(
            "docker run -d --name {name} --net={net} --stop-timeout 1 --restart=always {BUSYBOX} sleep infinity"
        );
        bed.sh(HOST, &line);
    }
    let serves = |bed: &Bed| {
        bed.ok(HOST, &["docker", "exec", "other", "true"]);
    };
    // What dockerd waits for is the plugin, which answers in 5 seconds that the router does not.
    let router = bed.sh(HOST, "cat /run/weft/weft.pid");
    bed.ok(HOST, &["kill", "-STOP", router.trim()]);
    bed.stop_docker(HOST);
    let took = comes_up(&bed, SOON);
    assert!(
        took < Duration::from_secs(15),
        "{took:?} with a stuck router"
    );
    serves(&bed);
    bed.ok(HOST, &["kill", "-CONT", router.trim()]);

    bed.ok(HOST, &["weft", "stop"]);
    bed.stop_docker(HOST);
    let took = comes_up(&bed, SOON);
    assert!(took < Duration::from_secs(10), "{took:?} without a router");
    serves(&bed);

    // Without a plugin Docker itself looks for it for 15 seconds, for the network and for each container.
    bed.stop_docker(HOST);
    bed.sh(HOST, "kill -9 $(pgrep -f '^weft --socket .* plugin')");
    let took = comes_up(&bed, PATIENCE);
    assert!(took < Duration::from_secs(45), "{took:?} without a plugin");
    serves(&bed);

    bed.ok(HOST, &["weft", "launch"]);
    eventually("app01 can be started again", PATIENCE, || {
        let started = bed.on(HOST, &["docker", "start", "app01"]);
        ensure(started.code == Some(0), started.said)
    });
    bed.ok(HOST, &["docker", "rm", "-f", "app01"]);
    bed.ok(HOST, &["weft", "reset"]);
    let refused = bed.on(
        HOST,
        &["docker", "run", "--rm", "--net=weft", BUSYBOX, "true"],
    );
    assert!(refused.failure().contains("network weft not found"));
    bed.stop_docker(HOST);
    let took = comes_up(&bed, SOON);
    assert!(took < Duration::from_secs(10), "{took:?} after a reset");
    serves(&bed);
    let left = bed.sh(HOST, "iptables-save; nft list ruleset; ip -o link; find /run/weft /run/netns /run/docker/plugins -mindepth 1; pgrep -a weft; true");
    assert!(!left.contains("weft"), "{left}");
}
