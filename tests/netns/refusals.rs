//! Peers that do not belong together: refused, with the reason at both ends, and nobody else is harmed.

use weft_api::report::{ConnectionState, Encryption};

use super::support::{Lab, SOON, connections, ensure, eventually, possible};

const RIGHT: &str = "WEFT_PASSWORD=a-password-of-the-right-kind";
const WRONG: &str = "WEFT_PASSWORD=a-password-of-the-wrong-kind";

#[test]
fn a_peer_that_does_not_belong_is_refused_and_both_ends_say_why() {
    if !possible() {
        return;
    }
    let lab = Lab::bare("refuse", 3, 1);
    lab.ok("host1", &["env", RIGHT, "weft", "launch"]);
    lab.ok("host2", &["env", RIGHT, "weft", "launch", "host1"]);
    for host in ["host1", "host2"] {
        let container = format!("netns:c{}", &host[4..]);
        let name = format!("c{}", &host[4..]);
        lab.ok(host, &["weft", "attach", "--name", &name, &container]);
    }
    lab.pings("c1", "c2", SOON);
    let host2 = lab.report("host2").router.name.to_string();
    let cases: [(&str, &[&str], &str); 5] = [
        (WRONG, &[], "wrong password"),
        ("WEFT_PASSWORD=", &[], "password on one side only"),
        (RIGHT, &["--cluster", "other"], "other cluster"),
        (
            RIGHT,
            &["--ipalloc-range", "10.40.0.0/16"],
            "address ranges differ",
        ),
        (RIGHT, &["--name", &host2], "name clash"),
    ];
    for (password, flags, reason) in cases {
        is_refused(&lab, password, flags, reason);
        stays_up(&lab);
    }
    // The same host with the right words is welcome.
    lab.ok("host3", &["env", RIGHT, "weft", "launch", "host1"]);
    eventually("host3 is let in", SOON * 4, || established(&lab, "host3"));
}

/// Host 3 dials host 1 with these flags; both ends' status comes to show the reason.
fn is_refused(lab: &Lab, password: &str, flags: &[&str], reason: &str) {
    let launch = ["env", password, "weft", "launch"];
    lab.ok("host3", &[launch.as_slice(), flags, &["host1"]].concat());
    for host in ["host1", "host3"] {
        eventually(&format!("{host} shows {reason:?}"), SOON, || {
            let shown = lab.ok(host, &["weft", "status", "connections"]);
            let refused = |line: &str| line.contains("failed") && line.contains(reason);
            ensure(shown.lines().any(refused), shown)
        });
    }
    let none_up = |report: &weft_api::report::Report| {
        let connections = &report.router.connections;
        connections
            .iter()
            .all(|connection| connection.state != ConnectionState::Established)
    };
    assert!(
        none_up(&lab.report("host3")),
        "{reason}: let in all the same"
    );
    lab.ok("host3", &["weft", "stop"]);
}

fn stays_up(lab: &Lab) {
    established(lab, "host2").unwrap();
    lab.ping("c1", "c2").unwrap();
}

fn established(lab: &Lab, nickname: &str) -> Result<(), String> {
    let report = lab.report("host1");
    let found = connections(&report, nickname);
    let is_up = found
        .iter()
        .any(|connection| connection.state == ConnectionState::Established);
    ensure(is_up, format!("{:?}", report.router.connections))
}

#[test]
fn a_password_is_not_to_be_seen_in_the_list_of_processes() {
    if !possible() {
        return;
    }
    let lab = Lab::bare("hidden", 1, 0);
    // The one who types it shows it while that command runs; what stays must not.
    lab.ok(
        "host1",
        &["weft", "launch", "--password", "seen-by-everybody"],
    );
    let processes = lab.ok("host1", &["sh", "-c", "cat /proc/[0-9]*/cmdline"]);
    assert!(processes.contains("launch"), "no router in {processes}");
    assert!(!processes.contains("seen-by-everybody"), "{processes}");
    assert_eq!(lab.report("host1").router.encryption, Encryption::Enabled);
    for file in ["/var/lib/weft/state.json", "/var/lib/weft/weft.log"] {
        let text = lab.ok("host1", &["cat", file]);
        assert!(!text.contains("seen-by-everybody"), "in {file}: {text}");
    }
}
