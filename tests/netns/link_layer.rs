//! The network is an Ethernet: any frame type passes, and what is flooded is delivered once.

use std::collections::BTreeMap;
use std::time::Duration;

use super::support::{Lab, SOON, ensure, eventually, possible, volume};

#[test]
fn frames_of_an_odd_type_reach_all_others_once() {
    if !possible() {
        return;
    }
    let lab = Lab::up("odd", 3, 1, &[]);
    let hearers = ["c2", "c3"].map(|place| lab.helper(place, &["frames-hear"]));
    lab.task("c1", &["frames-say", "ethwe", "200", "2"]);
    for (hearer, place) in hearers.into_iter().zip(["c2", "c3"]) {
        let first = hearer.line();
        assert_eq!(
            first, "0",
            "{place} missed the first frame, or frames were reordered"
        );
        let_copies_arrive();
        let heard = [vec![first], hearer.end()].concat();
        let expected: Vec<_> = (0..200).map(|number| number.to_string()).collect();
        assert_eq!(heard, expected, "heard at {place}");
    }
}

#[test]
fn frames_of_every_kind_come_as_they_were_sent_tagged_or_not() {
    if !possible() {
        return;
    }
    let lab = Lab::up("kinds", 2, 1, &[]);
    let mtu = lab.ok("c1", &["cat", "/sys/class/net/ethwe/mtu"]);
    let echo = lab.helper("c2", &["machine-echo"]);
    let count = (2000 * volume()).to_string();
    let came = lab.task("c1", &["machine-call", &count, mtu.trim()]);
    let [line] = came.as_slice() else {
        panic!("{came:?}");
    };
    let [back, "of", sent, ..] = line.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{line}");
    };
    assert_eq!(back, sent, "{line}");
    assert_eq!(echo.end(), [] as [&str; 0]);
}

/// A copy that comes by another way would be here within this time.
fn let_copies_arrive() {
    std::thread::sleep(Duration::from_millis(300));
}

#[test]
fn nothing_is_delivered_twice_while_a_third_router_restarts() {
    if !possible() {
        return;
    }
    let lab = Lab::up("floods", 3, 1, &[]);
    let hearers = ["c2", "c3"].map(|place| lab.helper(place, &["frames-hear"]));
    let sender = lab.helper("c1", &["frames-say", "ethwe", "1000", "5"]);
    lab.crash("host3");
    lab.ok("host3", &["weft", "launch"]);
    lab.pings("c1", "c3", SOON);
    sender.wait();
    let_copies_arrive();
    let [at_host2, at_host3] = hearers.map(|hearer| copies(hearer.end()));
    for (place, copies) in [("c2", &at_host2), ("c3", &at_host3)] {
        let twice: Vec<_> = copies.iter().filter(|(_, count)| **count > 1).collect();
        assert!(
            twice.is_empty(),
            "delivered more than once at {place}: {twice:?}"
        );
    }
    assert_eq!(
        at_host2.len(),
        1000,
        "frames between two hosts got lost because a third one restarted"
    );
    assert!(
        at_host3.contains_key("999"),
        "the host that restarted hears again; it heard {}",
        at_host3.len()
    );
}

fn copies(heard: Vec<String>) -> BTreeMap<String, u32> {
    let mut copies = BTreeMap::new();
    for number in heard {
        *copies.entry(number).or_default() += 1;
    }
    copies
}

#[test]
fn a_router_knows_the_addresses_behind_each_peer() {
    if !possible() {
        return;
    }
    let lab = Lab::up("macs", 2, 1, &[]);
    let mac = lab.ok("c2", &["cat", "/sys/class/net/ethwe/address"]);
    eventually("host1 learns where c2 is", SOON, || {
        let report = lab.report("host1");
        let found = report
            .router
            .macs
            .iter()
            .any(|entry| entry.mac.to_string() == mac.trim() && entry.nickname == "host2");
        ensure(found, format!("no {mac} in {:?}", report.router.macs))
    });
}
