//! Hosts that cannot reach each other: those in between pass frames on, for as long as it takes.

use std::time::Duration;

use weft_api::report::Reach;

use super::support::{Lab, SOON, ensure, eventually, possible, reach, run};

/// How long a peer may take to find that a wire is dead, or that it carries again.
const NOTICED: Duration = Duration::from_secs(60);

#[test]
fn the_ends_of_a_line_reach_each_other_through_the_middle_and_directly_once_they_can() {
    if !possible() {
        return;
    }
    let lab = Lab::bare("line", 3, 1);
    run(&mut lab.lab("cut", &["host1", "host3"])).success();
    for (host, peers) in [
        ("host1", &[][..]),
        ("host2", &["host1"]),
        ("host3", &["host2"]),
    ] {
        lab.ok(host, &[&["weft", "launch"], peers].concat());
    }
    for number in ["1", "2", "3"] {
        let (host, container) = (format!("host{number}"), format!("netns:c{number}"));
        let name = format!("c{number}");
        lab.ok(&host, &["weft", "attach", "--name", &name, &container]);
    }
    lab.pings("c1", "c3", SOON);
    lab.pings("c3", "c1", SOON);
    for (here, there) in [("host1", "host3"), ("host3", "host1")] {
        goes(&lab, here, there, "through the middle", |reach| {
            matches!(reach, Some(Reach::Via(_)))
        });
    }
    let shown = lab.ok("host1", &["weft", "status", "peers"]);
    assert!(shown.contains("via"), "{shown}");
    // Large frames pass on, too.
    let printed = lab.ok("c1", &["weft", "lab", "ping", "--size", "10000", "c3"]);
    assert!(printed.contains("1/1 answers"), "{printed}");

    run(&mut lab.lab("mend", &["host1", "host3"])).success();
    for (here, there) in [("host1", "host3"), ("host3", "host1")] {
        goes(&lab, here, there, "directly", |reach| {
            reach == Some(Reach::Direct)
        });
    }
    let relayed = relayed(&lab);
    let ping = ["weft", "lab", "ping", "--count", "10", "c3"];
    assert!(lab.ok("c1", &ping).contains("10/10 answers"));
    let more = self::relayed(&lab) - relayed;
    assert!(
        more < 10,
        "{more} frames still went through the middle for 20 that should not"
    );
}

#[test]
fn a_wire_that_breaks_under_traffic_is_gone_round() {
    if !possible() {
        return;
    }
    let lab = Lab::up("break", 3, 1, &[]);
    run(&mut lab.lab("cut", &["host1", "host2"])).success();
    lab.pings("c1", "c2", NOTICED);
    lab.pings("c2", "c1", SOON);
    assert!(matches!(
        reach(&lab.report("host1"), "host2"),
        Some(Reach::Via(_))
    ));
}

fn goes(lab: &Lab, here: &str, there: &str, how: &str, wanted: impl Fn(Option<Reach>) -> bool) {
    eventually(&format!("{here} reaches {there} {how}"), NOTICED, || {
        let report = lab.report(here);
        let found = reach(&report, there);
        ensure(
            wanted(found),
            format!("{found:?}; {:?}", report.router.connections),
        )
    });
}

/// Frames the middle has passed on.
fn relayed(lab: &Lab) -> u64 {
    let metrics = super::support::metrics(lab, "host2");
    metrics["weft_frames_relayed_total"]
}
