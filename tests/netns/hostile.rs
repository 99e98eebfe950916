//! Strangers on the underlay: noise, replays and forgeries do no harm, and are counted.

use std::collections::BTreeMap;
use std::fs;

use weft_api::report::ConnectionState;

use super::helper::{read_capture, udp_payload};
use super::support::{Helper, Lab, connections, metrics, possible, shared_file};

#[test]
fn noise_and_replays_leave_the_router_alive_and_are_counted() {
    if !possible() {
        return;
    }
    let lab = Lab::up("hostile", 3, 1, &["--password", "a-password-for-the-lan"]);
    let folder = tempfile::tempdir().unwrap();
    let (path, text) = shared_file(&folder, "frames");
    let capture = lab.helper("lan", &["capture", "host1", &text]);
    let ping = ["weft", "lab", "ping", "--count", "10", "c1"];
    assert!(lab.ok("c2", &ping).contains("10/10 answers"));
    capture.end();
    let captured = fs::read(path).unwrap();
    let known = read_capture(&captured)
        .iter()
        .filter(|frame| udp_payload(frame, 6783).is_some())
        .count();
    assert!(known >= 20, "only {known} datagrams to replay");
    let pid = lab.router("host1");
    let before = drops(&lab);

    // Host 3 plays the stranger as well: only its own socket tells it apart.
    let noise = [
        lab.helper("host3", &["udp-noise", "host1", "6783", "20000"]),
        lab.helper("host3", &["udp-replay", "host1", "6783", &text]),
        lab.helper("host3", &["tcp-noise", "host1", "6783", "300"]),
    ];
    while_it_lasts(&lab, noise);

    assert_eq!(lab.router("host1"), pid, "the router was started again");
    let report = lab.report("host1");
    for peer in ["host2", "host3"] {
        let states: Vec<_> = connections(&report, peer)
            .iter()
            .map(|connection| connection.state)
            .collect();
        assert!(states.contains(&ConnectionState::Established), "{report:?}");
    }
    let after = drops(&lab);
    let more = |reason: &str| after[reason] - before[reason];
    assert!(
        more("malformed_packet") + more("unknown_receiver") > 10_000,
        "noise is counted: {after:?}"
    );
    // Each datagram for host 1 was sent again as it was, and with bytes changed: with a counter not seen
    // before, only its seal tells it from a true one.
    assert!(more("replayed") + more("too_old") > 10, "{after:?}");
    assert!(more("forged") > 10, "{after:?}");
}

/// Containers talk on while it is noisy; a ping may get lost where the noise fills a socket.
fn while_it_lasts(lab: &Lab, noise: [Helper; 3]) {
    let ping = ["weft", "lab", "ping", "--count", "20", "c1"];
    let printed = lab.ok("c2", &ping);
    let answered = printed.split(": ").nth(1).unwrap();
    let answered: u32 = answered.split('/').next().unwrap().parse().unwrap();
    assert!(answered >= 15, "{printed}");
    for helper in noise {
        helper.wait();
    }
    lab.ping("c1", "c2").unwrap();
    lab.ping("c3", "c1").unwrap();
}

/// Drops of host 1 by reason, as `/metrics` has them; those of the report agree.
fn drops(lab: &Lab) -> BTreeMap<String, u64> {
    let metrics = metrics(lab, "host1");
    let drops: BTreeMap<_, _> = metrics
        .iter()
        .filter_map(|(name, count)| {
            let reason = name.strip_prefix("weft_drops_total{reason=\"")?;
            Some((reason.strip_suffix("\"}")?.to_owned(), *count))
        })
        .collect();
    for (reason, count) in lab.report("host1").router.drops {
        assert!(count >= drops[&reason], "{reason}: {count}, {drops:?}");
    }
    drops
}
