//! Two hosts from one disk image: the copy is found out before it does harm, and nobody is taken down.

use std::time::SystemTime;

use weft_api::report::Report;

use super::support::{Lab, SOON, connections, ensure, eventually, possible};

const STATE: &str = "/var/lib/weft/state.json";

#[test]
fn a_copied_state_is_set_aside_and_the_host_joins_as_a_new_peer() {
    if !possible() {
        return;
    }
    let lab = Lab::bare("copy", 2, 1);
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("state.json").display().to_string();
    mark(&lab, "host1", "one", "02:00:00:00:00:01");
    mark(&lab, "host2", "two", "02:00:00:00:00:02");
    lab.ok("host1", &["weft", "launch"]);
    lab.ok("host1", &["weft", "attach", "--name", "c1", "netns:c1"]);
    let original = lab.report("host1");
    lab.ok("host1", &["cp", STATE, &copy]);

    lab.ok("host2", &["mkdir", "-p", "/var/lib/weft"]);
    lab.ok("host2", &["cp", &copy, STATE]);
    let launched = lab.exec("host2", &["weft", "launch", "host1"]);
    assert!(launched.said.contains("another host's"), "{launched:?}");
    launched.success();
    let report = lab.report("host2");
    assert_ne!(report.router.name, original.router.name);
    assert_eq!(report.holders().count(), 0);
    let kept = report.copied_state.clone().unwrap();
    assert_eq!(
        lab.ok("host2", &["cat", &kept]),
        lab.ok("host2", &["cat", &copy])
    );
    let warned = |report: &Report| report.warnings.iter().any(|text| text.contains(&kept));
    assert!(warned(&report), "{:?}", report.warnings);

    lab.ok("host2", &["weft", "attach", "--name", "c2", "netns:c2"]);
    lab.pings("c1", "c2", SOON);

    // It is itself from here on, and one mark that changes is no copy.
    lab.ok("host2", &["weft", "stop"]);
    mark(&lab, "host2", "two", "02:00:00:00:00:03");
    lab.ok("host2", &["weft", "launch", "host1"]);
    let again = lab.report("host2");
    assert_eq!(again.router.name, report.router.name);
    assert_eq!(again.copied_state, None);
    assert!(!warned(&again), "{:?}", again.warnings);
    eventually("host2 is connected again", SOON, || {
        let found = connections(&lab.report("host2"), "host1").len();
        ensure(found == 1, format!("{found} connections"))
    });
}

#[test]
fn a_copy_that_runs_beside_the_first_harms_nobody_and_is_mended_by_a_new_identity() {
    if !possible() {
        return;
    }
    let lab = Lab::bare("clash", 3, 1);
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("state.json").display().to_string();
    lab.ok("host3", &["weft", "launch"]);
    lab.ok("host1", &["weft", "launch", "host3"]);
    let launched = unix_seconds();
    for n in [1, 3] {
        let (host, name, target) = (format!("host{n}"), format!("c{n}"), format!("netns:c{n}"));
        lab.ok(&host, &["weft", "attach", "--name", &name, &target]);
    }
    lab.pings("c3", "c1", SOON);
    let original = lab.report("host1").router.name;

    // No mark of the machine can be read in a lab but one, which is the same everywhere.
    lab.ok("host1", &["cp", STATE, &copy]);
    lab.ok("host2", &["mkdir", "-p", "/var/lib/weft"]);
    lab.ok("host2", &["cp", &copy, STATE]);
    // Who came first is told by whole seconds; in the same one, chance would decide.
    eventually("it is another second", SOON, || {
        ensure(unix_seconds() > launched, String::new())
    });
    lab.ok("host2", &["weft", "launch", "host1", "host3"]);
    assert_eq!(lab.report("host2").router.name, original);
    for host in ["host1", "host2"] {
        eventually(&format!("{host} shows the clash"), SOON, || {
            let shown = lab.ok(host, &["weft", "status", "connections"]);
            ensure(shown.contains("name clash"), shown)
        });
    }
    for _ in 0..20 {
        lab.ping("c3", "c1").unwrap();
        lab.ping("c1", "c3").unwrap();
    }

    lab.ok("host2", &["weft", "reset", "--identity"]);
    lab.ok("host2", &["sh", "-ec", "ls /var/lib/weft/cloned-*.json"]);
    lab.ok("host2", &["weft", "launch", "host1"]);
    assert_ne!(lab.report("host2").router.name, original);
    lab.ok("host2", &["weft", "attach", "--name", "c2", "netns:c2"]);
    for (from, to) in [("c2", "c1"), ("c3", "c2"), ("c1", "c3")] {
        lab.pings(from, to, SOON);
    }
}

fn unix_seconds() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

/// Gives a host hardware of its own, as far as the router can see: UUID and MAC of its physical link.
fn mark(lab: &Lab, host: &str, uuid: &str, mac: &str) {
    let script = format!(
        "mountpoint -q /sys/class || mount -t tmpfs tmpfs /sys/class
         mkdir -p /sys/class/dmi/id /sys/class/net/eth0/device
         echo {uuid} > /sys/class/dmi/id/product_uuid
         echo {mac} > /sys/class/net/eth0/address"
    );
    lab.ok(host, &["sh", "-ec", &script]);
}
