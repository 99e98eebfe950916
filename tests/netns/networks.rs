//! Several networks on the same hosts: all of an Ethernet each, and nothing from one to another, though
//! their containers are in the same subnet.

use std::collections::BTreeMap;
use std::fs;

use super::helper::read_capture;
use super::support::{Lab, SOON, ensure, eventually, possible, shared_file};

/// In one subnet, so that it is not the addresses that keep the two apart.
const SUBNET: &str = "net:10.50.0.0/16";
/// Where the blue containers are, one on each host.
const BLUE: [(&str, &str); 3] = [("host1", "c1"), ("host2", "c3"), ("host3", "c5")];
const RED: [(&str, &str); 3] = [("host1", "c2"), ("host2", "c4"), ("host3", "c6")];

#[test]
fn two_networks_with_one_subnet_share_three_hosts_and_nothing_else() {
    if !possible() {
        return;
    }
    let lab = Lab::bare("networks", 3, 2);
    launch(&lab);
    let blue = attach_all(&lab, "blue", &BLUE);
    let red = attach_all(&lab, "red", &RED);
    for network in [&blue, &red] {
        everybody_reaches_everybody(&lab, network);
    }
    nobody_reaches(&lab, "c1", &red);
    nobody_reaches(&lab, "c4", &blue);
    no_frame_crosses(&lab, &blue, &red);
    floods_reach_all_of_one_network(&lab);
    one_container_may_be_on_both(&lab, &red);

    // All of it is there again with the router, before anybody asks.
    lab.crash("host2");
    lab.ok("host2", &["weft", "launch", "host1"]);
    everybody_reaches_everybody(&lab, &blue);
    nobody_reaches(&lab, "c1", &red);
    networks_end_with_their_last_container(&lab, &red);
}

fn launch(lab: &Lab) {
    lab.ok("host1", &["weft", "launch"]);
    lab.ok("host2", &["weft", "launch", "host1"]);
    lab.ok("host3", &["weft", "launch", "host1", "host2"]);
    assert_eq!(
        lab.task("host1", &["add-pool", "10.50.0.0/16"]),
        ["10.50.0.0/16"]
    );
    for host in ["host2", "host3"] {
        eventually("the pool is known", SOON, || {
            let shown = lab.ok(host, &["weft", "status"]);
            ensure(shown.contains("10.50.0.0/16"), shown)
        });
    }
}

/// Each container's address in the network, by the container.
type Addresses = BTreeMap<&'static str, String>;

fn attach_all(lab: &Lab, network: &str, places: &[(&'static str, &'static str)]) -> Addresses {
    let mut addresses = BTreeMap::new();
    for (host, name) in places {
        let (target, called) = (format!("netns:{name}"), format!("{network}-{name}"));
        let attach = ["weft", "attach", "--network", network, "--name", &called];
        let printed = lab.ok(host, &[&attach[..], &[SUBNET, &target]].concat());
        addresses.insert(*name, printed.trim().to_owned());
    }
    addresses
}

fn everybody_reaches_everybody(lab: &Lab, network: &Addresses) {
    for from in network.keys() {
        for (to, address) in network.iter().filter(|(to, _)| *to != from) {
            lab.pings(from, address, SOON * 3);
            // The resolver answers on each network's own bridge.
            let known_by = ["blue", "red"].map(|color| format!("{color}-{to}.weft.local"));
            let reached = known_by.iter().any(|name| lab.ping(from, name).is_ok());
            assert!(reached, "{from} does not reach {to} by name");
        }
    }
}

fn nobody_reaches(lab: &Lab, from: &str, network: &Addresses) {
    for (to, address) in network {
        let reached = lab.ping(from, address).is_ok();
        assert!(!reached, "{from} reaches {to} on another network");
    }
}

/// What blue containers send while red ones are listened at: unicast, questions, broadcast, multicast, and
/// a type of frame that nobody knows.
fn no_frame_crosses(lab: &Lab, blue: &Addresses, red: &Addresses) {
    let folder = tempfile::tempdir().unwrap();
    let captures = RED.map(|(_, name)| {
        let (path, text) = shared_file(&folder, name);
        (
            name,
            path,
            lab.helper(name, &["capture", "ethwe-red", &text]),
        )
    });
    lab.task("c1", &["frames-say", "ethwe-blue", "50", "1"]);
    lab.task("c1", &["udp-say", "10.50.255.255", "7003", "to-all"]);
    lab.task("c1", &["udp-say", "224.0.0.77", "7003", "to-a-group"]);
    lab.ping("c1", &blue["c5"]).unwrap();
    // Nobody has it, so it is asked for everywhere.
    assert!(lab.ping("c1", "10.50.99.99").is_err());
    lab.ping("c2", &red["c6"]).unwrap();
    lab.task("c2", &["frames-say", "ethwe-red", "1", "1"]);
    let foreign = BLUE.map(|(_, name)| mac(lab, name, "ethwe-blue"));
    let own = mac(lab, "c2", "ethwe-red");
    for (name, path, capture) in captures {
        capture.end();
        let bytes = fs::read(path).unwrap();
        let frames = read_capture(&bytes);
        let senders: Vec<_> = frames.iter().filter_map(|frame| frame.get(6..12)).collect();
        assert!(
            senders.iter().any(|sender| *sender == own),
            "{name} hears its own network"
        );
        let crossed = senders
            .iter()
            .filter(|sender| foreign.iter().any(|mac| mac == *sender));
        assert_eq!(crossed.count(), 0, "frames from blue came to {name} on red");
    }
}

fn mac(lab: &Lab, place: &str, link: &str) -> Vec<u8> {
    let text = lab.ok(place, &["cat", &format!("/sys/class/net/{link}/address")]);
    let digits = text.trim().split(':');
    digits
        .map(|pair| u8::from_str_radix(pair, 16).unwrap())
        .collect()
}

fn floods_reach_all_of_one_network(lab: &Lab) {
    for (group, to) in [("-", "10.50.255.255"), ("224.0.0.78", "224.0.0.78")] {
        let hear = |name| lab.helper(name, &["udp-hear", group, "7004"]);
        let same = ["c3", "c5"].map(hear);
        let others = ["c2", "c4", "c6"].map(hear);
        lab.task("c1", &["udp-say", to, "7004", "for-blue"]);
        for hearer in same {
            assert_eq!(hearer.line(), "for-blue", "{to}");
            hearer.end();
        }
        // What red containers hear comes after what did not reach them.
        lab.task("c2", &["udp-say", to, "7004", "for-red"]);
        for hearer in others.into_iter().skip(1) {
            assert_eq!(hearer.line(), "for-red", "{to}");
            assert_eq!(hearer.end(), [] as [String; 0], "{to}");
        }
    }
}

fn one_container_may_be_on_both(lab: &Lab, red: &Addresses) {
    let attach = ["weft", "attach", "--network", "red"];
    let same = [&attach[..], &[SUBNET, "netns:c3"]].concat();
    let said = lab.exec("host2", &same).failure(1);
    assert!(said.contains("ethwe-blue"), "{said}");
    lab.ok(
        "host3",
        &[
            "weft",
            "attach",
            "--network",
            "red",
            "10.60.0.6/16",
            "netns:c6",
        ],
    );
    lab.ok(
        "host2",
        &[
            "weft",
            "attach",
            "--network",
            "red",
            "10.60.0.3/16",
            "netns:c3",
        ],
    );
    lab.pings("c3", "10.60.0.6", SOON);
    lab.pings("c3", "blue-c5.weft.local", SOON);
    // Between its two networks it is no bridge.
    nobody_reaches(lab, "c1", red);
}

fn networks_end_with_their_last_container(lab: &Lab, red: &Addresses) {
    let links = |host: &str| lab.ok(host, &["ls", "/sys/class/net"]);
    let bridges = |host: &str| {
        let found = links(host);
        let own = found
            .split_whitespace()
            .filter(|name| name.starts_with("weft-"));
        own.filter(|name| *name != "weft-tap").count()
    };
    assert_eq!(bridges("host1"), 4, "{}", links("host1"));
    lab.ok(
        "host1",
        &["weft", "detach", &format!("{}/16", red["c2"]), "netns:c2"],
    );
    assert_eq!(bridges("host1"), 2, "{}", links("host1"));
    let shown = lab.ok("host1", &["weft", "status", "networks"]);
    assert!(shown.contains("name:red"), "others have it still: {shown}");
    lab.ok("host1", &["weft", "reset"]);
    assert_eq!(bridges("host1"), 0, "{}", links("host1"));
}
