//! What is left of weft on a host where it was used in every way, when it is given up: nothing.

use std::collections::BTreeSet;

use super::bed::Bed;
use super::command::{PATIENCE, SOON, ensure, eventually};
use super::images::BUSYBOX;
use super::networks::network_is_there;

/// What can be left: links, routes, rules, namespaces, sockets, files in `/run`, processes. Counters are left
/// out, and Docker's namespaces, which it takes away when it likes; and so is the folder `/run/weft`, which may be
/// a mount, but not what is in it.
const LOOK: &str = "\
    ip -o link | sed 's/^[0-9]*: /link /; s/[@:].*//'; ip -4 rule; ip -4 route show table all | sed 's/linkdown//; s/^/route /'; \
    for save in iptables-save iptables-legacy-save; do $save | sed 's/\\[.*//; /^#/d'; done; \
    nft list ruleset | sed 's/packets.*bytes [0-9]*//'; \
    ss -Hlntu | awk '{ print \"socket\", $1, $5 }'; \
    find /run/netns /run/docker/plugins /run/bin /etc/docker /etc/cni; find /run/weft -mindepth 1; find /run -type s; \
    ps -eo comm= | sed 's/^/process /'; docker network ls --format 'network {{.Name}}'; docker ps -a --format 'container {{.Names}}'";

/// Everything on a host, each line once.
#[track_caller]
fn look(bed: &Bed, host: &str) -> BTreeSet<String> {
    let seen = bed.sh(host, &format!("({LOOK}) 2>/dev/null; true"));
    seen.lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn nothing_is_left_after_a_reset_however_weft_was_used() {
    let bed = Bed::up(2);
    // Docker's own, which it makes with the first container on a plugin's network, and keeps.
    let gateway = "docker network create -o com.docker.network.bridge.name=docker_gwbridge \
        -o com.docker.network.bridge.enable_icc=false -o com.docker.network.bridge.enable_ip_masquerade=true docker_gwbridge";
    bed.on_all(|bed, host| {
        bed.sh(host, gateway);
        bed.sh(host, &format!("docker run --rm -p 8080:80 {BUSYBOX} true"));
    });
    let before: Vec<_> = bed.names().iter().map(|host| look(&bed, host)).collect();
    for host in bed.names() {
        let peer = if host == "node01" { "node02" } else { "node01" };
        let trusted = "--trusted-subnets=10.77.0.0/24";
        bed.ok(&host, &["weft", "launch", trusted, peer]);
        bed.ok(&host, &["weft", "setup", "docker"]);
    }
    bed.on_all(|bed, host| {
        let run = |name: &str, more: &str| {
            let run = format!("docker run -d --name {name} {more} {BUSYBOX} sleep infinity");
            bed.sh(host, &run);
        };
        network_is_there(bed, host);
        run("runtime", "--runtime=weft");
        run("blue", "--runtime=weft -e WEFT_NETWORK=blue");
        run("plugin", "--net=weft -p 8080:80");
        run("plain", "");
        bed.ok(host, &["weft", "attach", "plain"]);
        bed.ok(host, &["weft", "expose"]);
        let create = "docker network create -d weft --ipam-driver weft --subnet 10.50.0.0/16 own";
        bed.sh(host, create);
        run("own", "--net=own");
    });
    bed.pings("node01", "runtime", "plain");
    eventually("the kernels carry frames", SOON, || {
        let links = bed.ok("node01", &["ip", "-o", "link"]);
        ensure(links.contains("weft-vx"), links)
    });
    bed.on_all(|bed, host| {
        bed.sh(host, "docker rm -f runtime blue plugin plain own");
        bed.ok(host, &["docker", "network", "rm", "own"]);
        bed.ok(host, &["weft", "setup", "docker", "--undo"]);
        bed.ok(host, &["weft", "reset"]);
    });
    for (host, before) in bed.names().iter().zip(&before) {
        eventually("all is as it was before weft", PATIENCE, || {
            let now = look(&bed, host);
            let (more, less): (Vec<_>, Vec<_>) = (
                now.difference(before).collect(),
                before.difference(&now).collect(),
            );
            ensure(
                more.is_empty() && less.is_empty(),
                format!("{host} has {more:#?}, and lacks {less:#?}"),
            )
        });
    }
}
