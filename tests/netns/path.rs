//! Paths that are narrower than their links: what is too long goes in pieces, and where long packets are
//! swallowed without a word that is found out.

use std::time::{Duration, Instant};

use weft_api::report::Reach;

use super::support::{Lab, SOON, connections, ensure, eventually, metrics, possible, reach};

/// How long a path that begins to swallow long packets may keep the containers from each other.
const FOUND_OUT: Duration = Duration::from_secs(35);
/// How long a path that is cut may be used on: five seconds, and one for the machine the test runs on.
const LEFT: Duration = Duration::from_secs(6);
const HOSTS: [&str; 2] = ["host1", "host2"];

#[test]
fn a_path_that_swallows_long_packets_carries_all_traffic_again_soon() {
    if !possible() {
        return;
    }
    let lab = narrow_lab("swallow");
    // From the first frame on all goes unsplit, over a path that carries it.
    for host in HOSTS {
        assert_eq!(mtu(&lab, host), Some(1376), "{host}");
        assert_eq!(metrics(&lab, host)["weft_frames_split_total"], 0, "{host}");
    }
    lab.ok("c1", &["weft", "lab", "ping", "--size", "1348", "c2"]);

    swallow(&lab);
    let begin = Instant::now();
    let ping = ["weft", "lab", "ping", "--size", "1348", "c2"];
    eventually("a full packet passes", FOUND_OUT, || {
        let outcome = lab.exec("c1", &ping);
        ensure(outcome.code == Some(0), format!("{outcome:?}"))
    });
    println!("found out after {:?}", begin.elapsed());
    // Echoes pass as soon as pieces do; that they are as long as they can be takes a moment more.
    eventually("the size that passes is found", SOON, || {
        let found = HOSTS.map(|host| mtu(&lab, host));
        let good = |mtu: &Option<u16>| mtu.is_some_and(|mtu| (600..=609).contains(&mtu));
        ensure(found.iter().all(good), format!("{found:?}"))
    });
    for host in HOSTS {
        let metrics = metrics(&lab, host);
        assert!(metrics["weft_frames_split_total"] > 0, "{host}");
        assert!(metrics["weft_frames_joined_total"] > 0, "{host}");
    }
    transfers(&lab);
    assert!(
        HOSTS
            .iter()
            .all(|host| lab.report(host).router.connections.len() == 1)
    );

    // With the path as it was, all goes unsplit again.
    lab.ok("lan", &["nft", "delete", "table", "bridge", "narrow"]);
    eventually(
        "long packets are tried again",
        Duration::from_secs(50),
        || {
            let found = HOSTS.map(|host| mtu(&lab, host));
            ensure(found == [Some(1376); 2], format!("{found:?}"))
        },
    );
}

#[test]
fn over_a_narrow_path_everything_comes_as_it_was_sent() {
    if !possible() {
        return;
    }
    let lab = narrow_lab("narrow");
    swallow(&lab);
    let ping = ["weft", "lab", "ping", "--size", "10000", "c2"];
    eventually("large packets pass", FOUND_OUT, || {
        let outcome = lab.exec("c1", &ping);
        ensure(outcome.code == Some(0), format!("{outcome:?}"))
    });
    let echo = lab.helper("c2", &["udp-echo", "0.0.0.0:7002"]);
    let came = lab.task("c1", &["udp-lengths", "c2", "7002", "61"]);
    assert_eq!(came, ["all came back"]);
    assert_eq!(echo.end(), [] as [String; 0]);
    transfers(&lab);
}

#[test]
fn frames_larger_than_the_links_between_the_hosts_pass() {
    if !possible() {
        return;
    }
    let lab = Lab::up("jumbo", 2, 1, &["--mtu", "9000"]);
    // Each link carries 1500 bytes, of which 1409 are left for a packet.
    for host in HOSTS {
        let found = eventually("what the links carry is found", SOON, || {
            let found = mtu(&lab, host);
            ensure(found.is_some_and(|mtu| mtu > 1400), format!("{found:?}")).map(|()| found)
        });
        assert!(found.is_some_and(|mtu| mtu <= 1409), "{host}: {found:?}");
    }
    for size in ["1500", "8972", "30000"] {
        let ping = ["weft", "lab", "ping", "--size", size, "c2"];
        let printed = lab.ok("c1", &ping);
        assert!(printed.contains("1/1 answers"), "{printed}");
    }
    transfers(&lab);
    let metrics = metrics(&lab, "host1");
    assert!(metrics["weft_frames_split_total"] > 0);
    assert_eq!(
        metrics.get("weft_drops_total{reason=\"datagram_too_long\"}"),
        Some(&0)
    );
}

#[test]
fn a_path_that_is_cut_under_traffic_is_left_within_seconds() {
    if !possible() {
        return;
    }
    let lab = Lab::up("left", 3, 1, &[]);
    // First datagrams alone, which the control connection does not see; then everything.
    for what in ["udp dport 6783", "meta length > 0"] {
        lab.pings("c1", "c2", SOON);
        let rules = format!(
            "nft -f - <<E
add table bridge narrow
add chain bridge narrow forward {{ type filter hook forward priority 0; }}
add rule bridge narrow forward iifname host1 oifname host2 {what} drop
add rule bridge narrow forward iifname host2 oifname host1 {what} drop
E"
        );
        lab.ok("lan", &["sh", "-c", &rules]);
        let begin = Instant::now();
        let ping = ["weft", "lab", "ping", "--timeout", "200", "c2"];
        eventually("the third host is asked to help", LEFT, || {
            let outcome = lab.exec("c1", &ping);
            ensure(outcome.code == Some(0), format!("{outcome:?}"))
        });
        println!("{what}: left after {:?}", begin.elapsed());
        assert!(matches!(
            reach(&lab.report("host1"), "host2"),
            Some(Reach::Via(_))
        ));
        lab.ok("lan", &["nft", "delete", "table", "bridge", "narrow"]);
        eventually("the path is taken again", SOON * 3, || {
            let found = HOSTS.map(|host| reach(&lab.report(host), other(host)));
            ensure(found == [Some(Reach::Direct); 2], format!("{found:?}"))
        });
    }
}

/// A lab whose hosts send no packet that is longer than their link, as real ones do: cut by the kernel on
/// the far side of the rule that drops, none would be.
fn narrow_lab(name: &str) -> Lab {
    let lab = Lab::up(name, 2, 1, &[]);
    for host in HOSTS {
        let off = ["tso", "off", "gso", "off", "tx-udp-segmentation", "off"];
        lab.ok(host, &[&["ethtool", "-K", "eth0"], &off[..]].concat());
    }
    lab
}

/// Packets of more than 700 bytes do not cross the LAN any more, whatever they are.
fn swallow(lab: &Lab) {
    let rules = "nft -f - <<E
add table bridge narrow
add chain bridge narrow forward { type filter hook forward priority 0; }
add rule bridge narrow forward meta length > 700 drop
E";
    lab.ok("lan", &["sh", "-c", rules]);
}

/// What a host says of its way to the other.
fn mtu(lab: &Lab, host: &str) -> Option<u16> {
    let report = lab.report(host);
    let mut all = connections(&report, other(host)).into_iter();
    all.find_map(|connection| connection.mtu)
}

fn other(host: &str) -> &'static str {
    if host == "host1" { "host2" } else { "host1" }
}

/// A megabyte there and back, compared byte by byte at both ends.
fn transfers(lab: &Lab) {
    let bytes = (1 << 20).to_string();
    let server = lab.helper("c2", &["tcp-serve", "0.0.0.0:7000"]);
    let came = lab.task("c1", &["tcp-call", "c2", "7000", &bytes]);
    assert_eq!(came, [format!("{bytes} bytes")]);
    assert_eq!(server.wait(), [format!("{bytes} bytes")]);
}
