//! Where containers are is known before they speak: frames go to the one they are for and to nobody else,
//! questions who has an address are answered on the spot, and what is known goes when its container does.

use std::fs;
use std::net::Ipv6Addr;
use std::time::Duration;

use weft_api::report::{Known, Mac};
use weft_wire::MacAddr;

use super::helper::read_capture;
use super::support::{Lab, SOON, ensure, eventually, metrics, possible, shared_file};
use super::traffic::link_local;

/// The MAC of no interface: whoever speaks as it was attached by nobody.
const STRANGER: &str = "02:00:00:00:12:34";

#[test]
fn frames_to_a_known_container_reach_it_alone_and_its_arp_is_answered_at_home() {
    if !possible() {
        return;
    }
    let lab = Lab::up("alone", 3, 2, &[]);
    // Two on each host: c1 and c2, c3 and c4, c5 and c6.
    let [from, to] = fresh_addresses(&lab, [("host1", "c1"), ("host2", "c3")]);
    registered(&lab, "host1", &to, "host2");
    registered(&lab, "host2", &from, "host1");

    let folder = tempfile::tempdir().unwrap();
    let places = ["c2", "c3", "c4", "c5"];
    let captures = places.map(|place| {
        let (path, text) = shared_file(&folder, place);
        (lab.helper(place, &["capture", "ethwe", &text]), path)
    });
    let answered = |host| metrics(&lab, host)["weft_questions_answered_total"];
    let before = ["host1", "host2"].map(answered);
    let ping = ["weft", "lab", "ping", "--count", "5", &to.addr];
    let printed = lab.ok("c1", &ping);
    assert!(printed.contains("5/5 answers"), "{printed}");
    let seen = captures.map(|(capture, path)| {
        capture.end();
        fs::read(path).unwrap()
    });
    for (place, seen) in places.into_iter().zip(&seen) {
        let frames = read_capture(seen);
        let between = |frame: &&&[u8]| {
            let ends = [&frame[..6], &frame[6..12]];
            ends.contains(&&to.mac.to_bytes()[..]) && ends.contains(&&from.mac.to_bytes()[..])
        };
        let questions = frames.iter().filter(|frame| asks_for(frame, &to.addr));
        let between = frames.iter().filter(between).count();
        match place {
            "c3" => assert!(between >= 10, "only {between} frames of five pings"),
            _ => assert_eq!(between, 0, "{place} saw frames of two others"),
        }
        match place {
            // The bridge itself shows a broadcast to all at home.
            "c2" => {}
            _ => assert_eq!(
                questions.count(),
                0,
                "a question for {} came to {place}",
                to.addr
            ),
        }
    }
    for (host, before) in ["host1", "host2"].into_iter().zip(before) {
        assert!(answered(host) > before, "{host} answered nothing");
    }
}

#[test]
fn arp_crosses_to_the_owner_where_answers_are_switched_off() {
    if !possible() {
        return;
    }
    let lab = Lab::up("noanswers", 2, 1, &["--no-arp-answers"]);
    let [_, to] = fresh_addresses(&lab, [("host1", "c1"), ("host2", "c2")]);
    registered(&lab, "host1", &to, "host2");
    let folder = tempfile::tempdir().unwrap();
    let (path, text) = shared_file(&folder, "c2");
    let capture = lab.helper("c2", &["capture", "ethwe", &text]);
    lab.ping("c1", &to.addr).unwrap();
    capture.end();
    let seen = fs::read(path).unwrap();
    let frames = read_capture(&seen);
    let questions = frames.iter().filter(|frame| asks_for(frame, &to.addr));
    assert!(questions.count() >= 1, "no question came");
    assert_eq!(metrics(&lab, "host1")["weft_questions_answered_total"], 0);
}

#[test]
fn neighbour_solicitations_for_a_registered_address_are_answered_at_home() {
    if !possible() {
        return;
    }
    let lab = Lab::up("solicit", 2, 1, &[]);
    link_local(&lab, "c1");
    let to = link_local(&lab, "c2");
    let addr: Ipv6Addr = to.split('%').next().unwrap().parse().unwrap();
    let c2 = Container::with(&lab, "c2", &addr.to_string());
    let bind = ["bind", "c2", &c2.mac.to_string(), "any", &c2.addr];
    lab.task("host2", &bind);
    registered(&lab, "host1", &c2, "host2");

    let folder = tempfile::tempdir().unwrap();
    let (path, text) = shared_file(&folder, "c2");
    let capture = lab.helper("c2", &["capture", "ethwe", &text]);
    let server = lab.helper("c2", &["tcp-serve", "[::]:7000"]);
    assert_eq!(
        lab.task("c1", &["tcp-call", &to, "7000", "10"]),
        ["10 bytes"]
    );
    server.wait();
    capture.end();
    let seen = fs::read(path).unwrap();
    let solicits = |frame: &&&[u8]| {
        let to_all = frame.first() == Some(&0x33) && frame.get(12..14) == Some(&[0x86, 0xdd]);
        to_all && frame.get(54) == Some(&135) && frame.get(62..78) == Some(&addr.octets())
    };
    let solicitations = read_capture(&seen).iter().filter(solicits).count();
    assert_eq!(solicitations, 0, "{addr} was asked for");
    assert!(metrics(&lab, "host1")["weft_questions_answered_total"] >= 1);
}

#[test]
fn bridge_entries_of_an_earlier_run_serve_on_and_go_unless_they_are_confirmed() {
    if !possible() {
        return;
    }
    let lab = Lab::up("entries", 2, 1, &[]);
    let addr = lab.ok("host2", &["weft", "dns-lookup", "c2"]);
    let c2 = Container::with(&lab, "c2", addr.trim());
    registered(&lab, "host1", &c2, "host2");
    lab.crash("host1");
    lab.task("host1", &["bridge-entry", STRANGER]);
    lab.ok("host1", &["weft", "launch"]);
    eventually("what nobody confirms goes", SOON * 3, || {
        let entries = lab.task("host1", &["bridge-entries"]);
        assert!(entries.contains(&c2.mac.to_string()), "{entries:?}");
        ensure(
            !entries.contains(&STRANGER.to_owned()),
            format!("{entries:?}"),
        )
    });
}

#[test]
fn without_mac_gossip_a_peer_learns_from_frames_alone() {
    if !possible() {
        return;
    }
    let lab = Lab::up("nogossip", 2, 1, &["--no-mac-gossip"]);
    for (from, to) in [("c1", "c2"), ("c2", "c1")] {
        lab.pings(from, to, SOON);
    }
    let away: Vec<Mac> = macs(&lab, "host1")
        .into_iter()
        .filter(|mac| mac.nickname == "host2")
        .collect();
    assert!(!away.is_empty(), "nothing was learned");
    assert!(away.iter().all(|mac| mac.known == Known::Seen), "{away:?}");
}

#[test]
fn a_container_that_moves_is_found_at_once_and_one_that_is_gone_is_forgotten() {
    if !possible() {
        return;
    }
    let lab = Lab::up("moves", 3, 1, &[]);
    let [_, old] = fresh_addresses(&lab, [("host1", "c1"), ("host2", "c2")]);
    registered(&lab, "host1", &old, "host2");
    lab.pings("c1", &old.addr, SOON);
    let detach = ["weft", "detach", "10.99.0.2/24", "net:default", "netns:c2"];
    lab.ok("host2", &detach);
    lab.ok("host3", &["weft", "attach", "10.99.0.2/24", "netns:c3"]);
    lab.pings("c1", &old.addr, Duration::from_secs(3));
    let new = Container::with(&lab, "c3", &old.addr);
    registered(&lab, "host1", &new, "host3");
    gone(&lab, "host1", old.mac);

    // Nobody says that it ends: its interface is gone, which is found out.
    lab.task("c3", &["del-link", "ethwe"]);
    gone(&lab, "host1", new.mac);
}

#[test]
fn what_was_registered_is_said_again_by_a_router_that_starts_anew() {
    if !possible() {
        return;
    }
    let lab = Lab::up("again", 2, 1, &[]);
    lab.ok("host2", &["weft", "expose", "net:default"]);
    let addr = lab.ok("host2", &["weft", "dns-lookup", "c2"]);
    let c2 = Container::with(&lab, "c2", addr.trim());
    registered(&lab, "host1", &c2, "host2");
    let host = eventually("host1 knows where host2 itself is", SOON, || {
        let name = lab.report("host2").router.name.to_string();
        let macs = macs(&lab, "host1");
        let entry = macs.iter().find(|mac| mac.mac.to_string() == name);
        let entry = entry.filter(|mac| mac.known == Known::Registered);
        entry.cloned().ok_or(format!("{macs:?}"))
    });
    lab.crash("host2");
    lab.ok("host2", &["weft", "launch"]);
    // Its own table, so nothing has been heard from the containers.
    registered(&lab, "host2", &c2, "host2");
    eventually("host1 is connected again", SOON, || {
        let links = lab.report("host1").router.connections;
        let up = links.iter().any(|link| link.mtu.is_some());
        ensure(up, format!("{links:?}"))
    });
    registered(&lab, "host1", &c2, "host2");
    let again = macs(&lab, "host1");
    let again = again.iter().find(|mac| mac.mac == host.mac);
    assert_eq!(again.map(|mac| &mac.addresses), Some(&host.addresses));
    // Entries that the bridge kept meanwhile are confirmed, not lost.
    lab.pings("c1", &c2.addr, SOON);
    lab.ok("host2", &["weft", "stop"]);
    gone(&lab, "host1", c2.mac);
}

#[test]
fn a_mac_that_nobody_registered_is_told_when_it_has_lived_for_a_while() {
    if !possible() {
        return;
    }
    let lab = Lab::up("told", 2, 1, &[]);
    let speaker = lab.helper("c2", &["frames-as", "ethwe", STRANGER, "200", "50"]);
    knows(&lab, "host1", STRANGER, |mac| mac.known == Known::Told);
    speaker.wait();
}

#[test]
fn a_router_that_ends_while_frames_come_leaves_no_mac_behind() {
    if !possible() {
        return;
    }
    let lab = Lab::up("last", 2, 1, &[]);
    let speaker = lab.helper("c2", &["frames-as", "ethwe", STRANGER, "20000", "1"]);
    knows(&lab, "host1", STRANGER, |_| true);
    lab.ok("host2", &["weft", "stop"]);
    gone(&lab, "host1", STRANGER.parse().unwrap());
    drop(speaker);
}

#[test]
fn a_mac_that_is_used_on_two_hosts_at_once_does_not_flood_the_log() {
    if !possible() {
        return;
    }
    let lab = Lab::up("twice", 3, 1, &[]);
    let say = ["frames-as", "ethwe", STRANGER, "400", "5"];
    let speakers = ["c2", "c3"].map(|place| lab.helper(place, &say));
    for speaker in speakers {
        speaker.wait();
    }
    let log = lab.ok("host1", &["cat", "/var/lib/weft/weft.log"]);
    let about = log.lines().filter(|line| line.contains(STRANGER)).count();
    assert!(about >= 1, "it was not seen to move:\n{log}");
    assert!(about <= 10, "{about} lines of 800 frames:\n{log}");
}

/// A container as it is attached.
struct Container {
    mac: MacAddr,
    addr: String,
}

impl Container {
    fn with(lab: &Lab, place: &str, addr: &str) -> Self {
        let mac = lab.ok(place, &["cat", "/sys/class/net/ethwe/address"]);
        Self {
            mac: mac.trim().parse().unwrap(),
            addr: addr.to_owned(),
        }
    }
}

/// Gives two containers addresses that nobody has asked for yet, outside of the range, so that any host
/// may have them.
#[track_caller]
fn fresh_addresses(lab: &Lab, places: [(&str, &str); 2]) -> [Container; 2] {
    let mut number = 0;
    places.map(|(host, place)| {
        number += 1;
        let addr = format!("10.99.0.{number}");
        let target = format!("netns:{place}");
        lab.ok(host, &["weft", "attach", &format!("{addr}/24"), &target]);
        Container::with(lab, place, &addr)
    })
}

/// All that a host knows of MACs.
fn macs(lab: &Lab, host: &str) -> Vec<Mac> {
    lab.report(host).router.macs
}

/// Waits until a host knows of a container with its address, by its being attached.
#[track_caller]
fn registered(lab: &Lab, host: &str, container: &Container, at: &str) {
    knows(lab, host, &container.mac.to_string(), |mac| {
        let mut addresses = mac.addresses.iter();
        mac.nickname == at
            && mac.known == Known::Registered
            && addresses.any(|addr| addr.to_string() == container.addr)
    });
}

/// Waits until a host knows of a MAC, as it should.
#[track_caller]
fn knows(lab: &Lab, host: &str, mac: &str, as_wanted: impl Fn(&Mac) -> bool) {
    eventually(&format!("{host} knows {mac}"), SOON, || {
        let macs = macs(lab, host);
        let mut found = macs.iter().filter(|entry| entry.mac.to_string() == mac);
        ensure(found.any(&as_wanted), format!("{macs:?}"))
    });
}

/// Waits until a host knows nothing of a MAC any more; a container whose port is not there is looked for
/// now and then, and may be being attached for a while.
#[track_caller]
fn gone(lab: &Lab, host: &str, mac: MacAddr) {
    eventually(&format!("{host} forgets {mac}"), SOON * 4, || {
        let macs = macs(lab, host);
        ensure(
            macs.iter().all(|entry| entry.mac != mac),
            format!("{macs:?}"),
        )
    });
}

/// Whether a frame is an ARP request for this address.
fn asks_for(frame: &[u8], addr: &str) -> bool {
    let addr: std::net::Ipv4Addr = addr.parse().unwrap();
    frame.get(12..14) == Some(&[8, 6])
        && frame.get(20..22) == Some(&[0, 1])
        && frame.get(38..42) == Some(&addr.octets())
        && frame.get(28..32) != Some(&addr.octets())
}
