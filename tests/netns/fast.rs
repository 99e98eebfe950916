//! The fast datapath: kernels carry frames between hosts that trust what is between them, for as long as
//! that works, and nobody else gets a word in.

use std::thread;
use std::time::{Duration, Instant};

use weft_api::report::{Connection, Overlay};

use super::support::{Lab, SOON, connections, ensure, eventually, metrics, possible};

/// The virtual LAN of a lab.
const TRUST: [&str; 2] = ["--trusted-subnets", "198.18.0.0/15"];
const HOSTS: [&str; 2] = ["host1", "host2"];
/// How long a way that is cut may be used on: four seconds, and some for the machine the test runs on.
const LEFT: Duration = Duration::from_secs(8);
/// How long it may take until a way that works is taken again.
const TAKEN: Duration = Duration::from_secs(30);

#[test]
fn kernels_carry_unicast_frames_between_hosts_that_trust_each_other() {
    if !possible() {
        return;
    }
    let lab = fast_lab("fastdp");
    let shown = lab.ok("host1", &["weft", "status", "connections"]);
    assert!(shown.contains("unencrypted fastdp"), "{shown}");
    let c2 = lab.ok("host1", &["weft", "dns-lookup", "c2"]);
    lab.pings("c1", c2.trim(), SOON);
    let (sent, captured) = (by_kernel(&lab, "host1"), captured(&lab, "host1"));
    let ping = ["weft", "lab", "ping", "--count", "50", c2.trim()];
    let printed = lab.ok("c1", &ping);
    assert!(printed.contains("50/50 answers"), "{printed}");
    assert!(by_kernel(&lab, "host1") - sent >= 50);
    let by_router = self::captured(&lab, "host1") - captured;
    assert!(
        by_router < 10,
        "the router of host1 captured {by_router} frames"
    );
    // Broadcasts are the router's.
    let hearer = lab.helper("c2", &["frames-hear"]);
    let sent = by_kernel(&lab, "host1");
    lab.task("c1", &["frames-say", "ethwe", "100", "1"]);
    assert_eq!(hearer.line(), "0");
    hearer.end();
    // Beats go on meanwhile.
    assert!(by_kernel(&lab, "host1") - sent < 20);
    assert_eq!(metrics(&lab, "host1")["weft_fastdp_connections"], 1);
}

#[test]
fn kernels_go_on_while_a_router_is_dead_and_it_takes_over_without_a_break() {
    if !possible() {
        return;
    }
    let lab = fast_lab("takeover");
    let c2 = lab.ok("host1", &["weft", "dns-lookup", "c2"]);
    let server = lab.helper("c2", &["flow-serve", "0.0.0.0:7000"]);
    let flow = lab.helper("c1", &["flow", c2.trim(), "7000"]);
    lab.pings("c1", c2.trim(), SOON);
    let device = lab.ok("host2", &["cat", "/sys/class/net/weft-vx/ifindex"]);

    lab.crash("host2");
    let mut lost = 0;
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        lost += u32::from(lab.ping("c1", c2.trim()).is_err());
        thread::sleep(Duration::from_millis(50));
    }
    lab.ok("host2", &[&["weft", "launch"], &TRUST[..]].concat());
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        lost += u32::from(lab.ping("c1", c2.trim()).is_err());
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(lost, 0, "pings while a router was dead, and after");
    carried(&lab, Overlay::Fastdp, TAKEN);
    let sent = flow.end();
    assert_eq!(server.wait(), sent);
    assert_eq!(
        lab.ok("host2", &["cat", "/sys/class/net/weft-vx/ifindex"]),
        device
    );
    let changes = metrics(&lab, "host1");
    assert_eq!(changes["weft_carrier_changes_total{carrier=\"sealed\"}"], 0);
}

#[test]
fn a_cut_of_the_kernels_way_makes_frames_go_sealed_and_its_end_brings_them_back() {
    if !possible() {
        return;
    }
    let lab = fast_lab("fastcut");
    cut(&lab, "udp dport 6784");
    carried(&lab, Overlay::Udp, LEFT);
    lab.ping("c1", "c2").unwrap();
    let why = connection(&lab, "host1").info;
    assert!(why.contains("is UDP port 6784 open"), "{why}");
    let shown = lab.ok("host1", &["weft", "status", "connections"]);
    assert!(shown.contains("encrypted   udp"), "{shown}");
    mend(&lab);
    carried(&lab, Overlay::Fastdp, TAKEN);
    lab.ping("c1", "c2").unwrap();
    for host in HOSTS {
        let changes = metrics(&lab, host);
        assert_eq!(
            changes["weft_carrier_changes_total{carrier=\"sealed\"}"], 1,
            "{host}"
        );
        assert_eq!(
            changes["weft_carrier_changes_total{carrier=\"fastdp\"}"], 2,
            "{host}"
        );
    }
}

#[test]
fn a_way_that_is_too_narrow_for_full_frames_is_not_taken() {
    if !possible() {
        return;
    }
    let lab = fast_lab("fastnarrow");
    for host in HOSTS {
        let off = ["tso", "off", "gso", "off", "tx-udp-segmentation", "off"];
        lab.ok(host, &[&["ethtool", "-K", "eth0"], &off[..]].concat());
    }
    // Short frames pass, as they would if nobody asked with long ones.
    cut(&lab, "meta length > 1400");
    carried(&lab, Overlay::Udp, LEFT);
    let why = connection(&lab, "host1").info;
    assert!(why.contains("1426 bytes"), "{why}");
    let ping = ["weft", "lab", "ping", "--size", "1348", "c2"];
    eventually("full packets pass, in pieces", SOON * 2, || {
        let outcome = lab.exec("c1", &ping);
        ensure(outcome.code == Some(0), format!("{outcome:?}"))
    });
    mend(&lab);
    carried(&lab, Overlay::Fastdp, TAKEN);
}

#[test]
fn what_a_stranger_forges_reaches_nobody() {
    if !possible() {
        return;
    }
    let lab = Lab::bare("forged", 3, 1);
    for (host, peers) in [("host1", &[][..]), ("host2", &["host1"])] {
        lab.ok(host, &[&["weft", "launch"], &TRUST[..], peers].concat());
        lab.ok(host, &["weft", "attach", &format!("netns:c{}", &host[4..])]);
    }
    carried(&lab, Overlay::Fastdp, TAKEN);
    let hearer = lab.helper("c1", &["frames-hear"]);
    // Host 3 is on the same LAN, and nobody's peer.
    lab.task("host3", &["vxlan-forge", "host1", "6784"]);
    thread::sleep(Duration::from_millis(300));
    assert_eq!(hearer.end(), [] as [&str; 0]);
    // From a host that is let in the very same packets come through, so it is the guard that holds them off.
    let hearer = lab.helper("c1", &["frames-hear"]);
    lab.task("host2", &["vxlan-forge", "host1", "6784"]);
    assert_eq!(hearer.line(), "forged 0");
    hearer.end();
    // Who takes the guard away does not open the door for long.
    lab.ok("host1", &["nft", "flush", "ruleset"]);
    eventually("the guard is back", SOON, || {
        let rules = lab.ok("host1", &["nft", "list", "ruleset"]);
        ensure(
            rules.contains("udp dport 6784 ip saddr @fast accept"),
            rules,
        )
    });
    let hearer = lab.helper("c1", &["frames-hear"]);
    lab.task("host3", &["vxlan-forge", "host1", "6784"]);
    thread::sleep(Duration::from_millis(300));
    assert_eq!(hearer.end(), [] as [&str; 0]);
}

#[test]
fn without_trust_at_both_ends_or_if_switched_off_frames_go_sealed_and_both_ends_say_why() {
    if !possible() {
        return;
    }
    let lab = Lab::bare("sealed", 2, 1);
    let trust = &TRUST[..];
    let off = &[TRUST[0], TRUST[1], "--no-fastdp"][..];
    let cases: [(&[&str], &[&str], &str, &str); 2] = [
        (trust, &[], "trusted by us only", "trusted by the peer only"),
        (
            trust,
            off,
            "peer says: switched off (--no-fastdp)",
            "switched off (--no-fastdp)",
        ),
    ];
    for (first, second, here, there) in cases {
        lab.ok("host1", &[&["weft", "launch"], first].concat());
        lab.ok("host2", &[&["weft", "launch", "host1"], second].concat());
        for (host, why) in [("host1", here), ("host2", there)] {
            eventually(&format!("{host} says {why:?}"), SOON, || {
                let shown = lab.ok(host, &["weft", "status", "connections"]);
                let said =
                    shown.contains("established") && shown.contains(&format!("no fastdp: {why}"));
                ensure(said, shown)
            });
        }
        let links = lab.ok("host2", &["ls", "/sys/class/net"]);
        assert!(!links.contains("weft-vx"), "{links}");
        for host in HOSTS {
            lab.ok(host, &["weft", "stop"]);
        }
    }
}

#[test]
fn a_reset_leaves_neither_the_kernels_way_nor_its_guard() {
    if !possible() {
        return;
    }
    let lab = fast_lab("fastreset");
    lab.ok("host1", &["weft", "reset"]);
    let links = lab.ok("host1", &["ls", "/sys/class/net"]);
    assert!(!links.contains("weft"), "{links}");
    let rules = lab.ok("host1", &["nft", "list", "ruleset"]);
    assert!(!rules.contains("weft"), "{rules}");
    eventually("host2 lets nobody in", SOON, || {
        let links = lab.ok("host2", &["ls", "/sys/class/net"]);
        let rules = lab.ok("host2", &["nft", "list", "ruleset"]);
        ensure(
            !links.contains("weft-vx") && !rules.contains("6784"),
            format!("{links}{rules}"),
        )
    });
}

#[test]
fn nothing_is_damaged_or_doubled_while_frames_change_ways() {
    if !possible() {
        return;
    }
    let lab = fast_lab("toandfro");
    let c2 = lab.ok("host1", &["weft", "dns-lookup", "c2"]);
    let server = lab.helper("c2", &["flow-serve", "0.0.0.0:7000"]);
    let flow = lab.helper("c1", &["flow", c2.trim(), "7000"]);
    let hearer = lab.helper("c2", &["numbers-hear", "7001"]);
    let numbers = lab.helper("c1", &["numbers-say", c2.trim(), "7001"]);
    for _ in 0..3 {
        cut(&lab, "udp dport 6784");
        carried(&lab, Overlay::Udp, LEFT);
        mend(&lab);
        carried(&lab, Overlay::Fastdp, TAKEN);
    }
    numbers.end();
    let counted = hearer.end().concat();
    assert!(counted.ends_with(" came, 0 again, 0 damaged"), "{counted}");
    let sent = flow.end();
    assert_eq!(server.wait(), sent);
}

/// Two hosts with a container each, whose kernels carry their frames.
fn fast_lab(name: &str) -> Lab {
    let lab = Lab::up(name, 2, 1, &TRUST);
    carried(&lab, Overlay::Fastdp, TAKEN);
    lab
}

/// Waits until both hosts say that frames to the other go this way.
fn carried(lab: &Lab, overlay: Overlay, within: Duration) {
    eventually(&format!("frames go by {overlay}"), within, || {
        let found = HOSTS.map(|host| connection(lab, host));
        let all = found.iter().all(|found| found.overlay == Some(overlay));
        ensure(all, format!("{found:?}"))
    });
}

fn connection(lab: &Lab, host: &str) -> Connection {
    let other = if host == "host1" { "host2" } else { "host1" };
    let report = eventually(&format!("{host} has a connection"), SOON, || {
        let report = lab.report(host);
        let found = !connections(&report, other).is_empty();
        ensure(found, "none").map(|()| report)
    });
    connections(&report, other)[0].clone()
}

/// Frames that a host's kernel has sent to other hosts.
fn by_kernel(lab: &Lab, host: &str) -> u64 {
    let sent = lab.ok(
        host,
        &["cat", "/sys/class/net/weft-vx/statistics/tx_packets"],
    );
    sent.trim().parse().unwrap()
}

fn captured(lab: &Lab, host: &str) -> u64 {
    metrics(lab, host)["weft_frames_captured_total"]
}

/// What fits a rule does not cross the LAN any more.
fn cut(lab: &Lab, what: &str) {
    let rules = format!(
        "nft -f - <<E
add table bridge narrow
add chain bridge narrow forward {{ type filter hook forward priority 0; }}
add rule bridge narrow forward {what} drop
E"
    );
    lab.ok("lan", &["sh", "-c", &rules]);
}

fn mend(lab: &Lab) {
    lab.ok("lan", &["nft", "delete", "table", "bridge", "narrow"]);
}
