//! A router may die at any moment: its host's containers go on, and it takes up where it was.

use std::thread;
use std::time::{Duration, Instant};

use super::support::{Lab, SOON, connections, ensure, eventually, possible};

/// How long it may take from the relaunch of a router to pings by name, all ways.
const BACK_WITHIN: Duration = Duration::from_secs(5);

#[test]
fn containers_of_a_host_keep_talking_while_its_router_is_dead_and_all_is_back_after_relaunch() {
    if !possible() {
        return;
    }
    let lab = Lab::up("crash", 3, 2, &[]);
    let addresses = lab.ok("host2", &["weft", "ps"]);
    let names = lab.ok("host1", &["weft", "status", "dns"]);
    let targets = lab.report("host2").router.targets;
    assert_eq!(targets, ["host1"]);
    // c3 and c4 are on host2. By address: who answers for names is dead, too.
    let c4 = lab.ok("host2", &["weft", "dns-lookup", "c4"]);
    let mut answered = 0;
    lab.crash("host2");
    for _ in 0..20 {
        answered += u32::from(lab.ping("c3", c4.trim()).is_ok());
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(answered, 20, "pings on the host whose router is dead");

    let relaunched = Instant::now();
    lab.ok("host2", &["weft", "launch"]);
    for (from, to) in [("c3", "c1"), ("c5", "c4"), ("c1", "c3")] {
        lab.pings(from, to, SOON);
    }
    let took = relaunched.elapsed();
    assert!(
        took < BACK_WITHIN,
        "cross-host pings returned after {took:?}"
    );
    assert_eq!(lab.ok("host2", &["weft", "ps"]), addresses);
    assert_eq!(lab.report("host2").router.targets, targets);
    eventually("host1 has the same names again", SOON, || {
        let found = lab.ok("host1", &["weft", "status", "dns"]);
        ensure(found == names, format!("{found}\ninstead of\n{names}"))
    });
}

#[test]
fn a_router_is_launched_once_and_resumes_when_told_to() {
    if !possible() {
        return;
    }
    let lab = Lab::up("resume", 2, 1, &[]);
    let said = lab.exec("host2", &["weft", "launch"]).failure(3);
    assert_eq!(said.trim().lines().count(), 1, "{said}");
    assert!(said.contains("already"), "{said}");

    let name = lab.report("host2").router.name;
    lab.ok("host2", &["weft", "stop"]);
    let said = lab.exec("host2", &["weft", "status"]);
    assert_ne!(said.code, Some(0), "{said:?}");
    lab.ok("host2", &["weft", "launch", "--resume"]);
    lab.pings("c2", "c1", SOON);
    lab.pings("c1", "c2", SOON);
    let report = lab.report("host2");
    assert_eq!(report.router.name, name);
    assert_eq!(report.router.targets, ["host1"]);
    assert_eq!(connections(&report, "host1").len(), 1);

    // An orderly stop means that the next launch starts with what it is told only.
    lab.ok("host2", &["weft", "stop"]);
    lab.ok("host2", &["weft", "launch"]);
    assert_eq!(lab.report("host2").router.targets, [] as [&str; 0]);
}

#[test]
fn a_router_is_launched_while_the_kernel_takes_back_what_a_killed_one_held() {
    if !possible() {
        return;
    }
    let lab = Lab::up("handback", 2, 1, &[]);
    lab.crash("host2");
    // The lock is the first of it; somebody else keeps it for a moment here, as an ending process may.
    let launch = "exec 9>/var/lib/weft/lock; flock 9; sleep 1 & exec 9>&-; exec weft launch";
    lab.ok("host2", &["sh", "-c", launch]);
    lab.pings("c1", "c2", SOON);

    // Who keeps it is another router.
    lab.crash("host2");
    let launch = "exec 9>/var/lib/weft/lock; flock 9; sleep 8 & exec 9>&-; exec weft launch";
    let said = lab.exec("host2", &["sh", "-c", launch]).failure(3);
    assert!(said.contains("already"), "{said}");
}

#[test]
fn names_of_a_host_whose_router_restarts_within_seconds_are_known_all_the_while() {
    if !possible() {
        return;
    }
    let lab = Lab::up("blink", 3, 1, &[]);
    let known = |lab: &Lab| lab.ok("host1", &["weft", "dns-lookup", "c2"]);
    let address = known(&lab);
    lab.crash("host2");
    let crashed = Instant::now();
    while crashed.elapsed() < Duration::from_secs(3) {
        assert_eq!(known(&lab), address, "while it is away");
    }
    lab.ok("host2", &["weft", "launch"]);
    let launched = Instant::now();
    while launched.elapsed() < Duration::from_secs(10) {
        assert_eq!(known(&lab), address, "when it is back");
    }
    lab.pings("c1", "c2", SOON);

    // A stop is meant, so the names go; and come back with the router, in a mesh where nothing else is wrong.
    lab.ok("host2", &["weft", "stop"]);
    eventually("the name is gone", SOON, || {
        let found = lab.exec("host1", &["weft", "dns-lookup", "c2"]);
        ensure(found.code == Some(4), format!("{found:?}"))
    });
    lab.ok("host2", &["weft", "launch", "host1"]);
    let launched = Instant::now();
    eventually("the name is back", SOON, || {
        let found = lab.exec("host1", &["weft", "dns-lookup", "c2"]);
        ensure(found.printed == address, format!("{found:?}"))
    });
    println!("names were back after {:?}", launched.elapsed());
}
