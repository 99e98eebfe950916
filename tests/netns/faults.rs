//! Faults of the machine a router is launched on: each gets a clear error that says what to do, and
//! nothing is lost.

use super::support::{Lab, SOON, ensure, eventually, possible};

#[test]
fn what_keeps_a_router_from_starting_is_told_and_nothing_is_lost() {
    if !possible() {
        return;
    }
    let lab = Lab::up("faults", 2, 1, &[]);
    let held = lab.ok("host2", &["weft", "ps"]);
    let name = lab.report("host2").router.name;
    lab.ok("host2", &["weft", "stop"]);

    let squatter = lab.helper("host2", &["udp-hear", "-", "6783"]);
    fails(&lab, &["weft", "launch"], "6783");
    squatter.end();

    // Neither there nor to be made.
    let no_tun = "mount -t tmpfs -o ro,nodev none /dev/net && weft launch";
    fails(&lab, &["sh", "-c", no_tun], "/dev/net/tun");
    lab.ok("host2", &["umount", "/dev/net"]);

    let state = "/var/lib/weft/state.json";
    let whole = lab.ok("host2", &["cat", state]);
    let half = &whole[..whole.len() / 2];
    let write = |text: &str| lab.ok("host2", &["sh", "-c", "printf %s \"$0\" > $1", text, state]);
    write(half);
    fails(&lab, &["weft", "launch"], state);
    assert_eq!(lab.ok("host2", &["cat", state]), half, "it was touched");
    write(&whole);

    // With all of that put right, the router is who it was and holds what it held.
    lab.ok("host2", &["weft", "launch", "host1"]);
    assert_eq!(lab.report("host2").router.name, name);
    assert_eq!(lab.ok("host2", &["weft", "ps"]), held);
    lab.pings("c1", "c2", SOON);
}

/// The launch ends with 1 and one sentence that tells of `culprit`; no router is left.
#[track_caller]
fn fails(lab: &Lab, launch: &[&str], culprit: &str) {
    let said = lab.exec("host2", launch).failure(1);
    let errors: Vec<_> = said
        .lines()
        .filter(|line| line.contains("error:"))
        .collect();
    assert_eq!(errors.len(), 1, "{said}");
    assert!(errors[0].contains(culprit), "{said}");
    let status = lab.exec("host2", &["weft", "status"]);
    assert!(status.said.contains("not running"), "{status:?}");
}

#[test]
fn a_peer_whose_name_means_nothing_is_shown_as_such_and_others_are_reached() {
    if !possible() {
        return;
    }
    let lab = Lab::up("nowhere", 2, 1, &[]);
    lab.ok("host1", &["weft", "connect", "no-such-host"]);
    eventually("status tells why there is no connection", SOON, || {
        let shown = lab.ok("host1", &["weft", "status", "connections"]);
        let told = shown
            .lines()
            .any(|line| line.contains("cannot resolve no-such-host") && line.contains("retry"));
        ensure(told, shown)
    });
    lab.ping("c1", "c2").unwrap();
    lab.ok("host1", &["weft", "forget", "no-such-host"]);
    eventually("what is forgotten is not dialled again", SOON, || {
        let shown = lab.ok("host1", &["weft", "status", "connections"]);
        ensure(!shown.contains("no-such-host"), shown)
    });
    assert_eq!(lab.report("host1").router.targets, [] as [&str; 0]);
}

#[test]
fn a_peer_that_takes_nothing_does_not_hold_up_others() {
    if !possible() {
        return;
    }
    let lab = Lab::up("stuck", 3, 1, &[]);
    lab.pings("c1", "c3", SOON);
    let address = lab.ok("host1", &["weft", "dns-lookup", "c3"]);
    let pid = lab.router("host3");
    lab.ok("host3", &["sh", "-c", &format!("kill -STOP {pid}")]);
    let noise = lab.helper("c1", &["udp-noise", address.trim(), "7001", "20000"]);
    let bytes = (8 << 20).to_string();
    let server = lab.helper("c2", &["tcp-serve", "0.0.0.0:7000"]);
    let came = lab.task("c1", &["tcp-call", "c2", "7000", &bytes]);
    assert_eq!(came, [format!("{bytes} bytes")]);
    server.wait();
    noise.wait();
    lab.ok("host3", &["sh", "-c", &format!("kill -CONT {pid}")]);
    lab.pings("c1", "c3", SOON * 2);
}
