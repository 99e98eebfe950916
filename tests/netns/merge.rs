//! Two networks that gave out addresses apart become one: no address is with two containers that can
//! both be heard.

use super::support::{Lab, SOON, ensure, eventually, possible};

#[test]
fn when_networks_meet_an_address_stays_with_one_container_and_the_other_is_told() {
    if !possible() {
        return;
    }
    // c1 and c2 are on host1, c3 and c4 on host2.
    let lab = Lab::bare("merge", 2, 2);
    for (host, same, other) in [("host1", "c1", "c2"), ("host2", "c3", "c4")] {
        lab.ok(host, &["weft", "launch"]);
        let attach = ["weft", "attach", "--name"];
        let (same_target, other_target) = (format!("netns:{same}"), format!("netns:{other}"));
        let words = [same, "ip:10.32.0.9/12", &same_target];
        lab.ok(host, &[&attach[..], &words].concat());
        lab.ok(host, &[&attach[..], &[other, &other_target]].concat());
    }
    lab.ok("host1", &["weft", "connect", "host2"]);
    // What neither network gave out twice is reachable from everywhere.
    lab.pings("c2", "c4", SOON);
    lab.pings("c4", "c2", SOON);

    let losers = eventually("one of the two is told to be cut off", SOON, || {
        let losers = ["host1", "host2"].map(|host| {
            let ipam = lab.report(host).ipam.unwrap();
            ipam.conflicts.len()
        });
        let found = losers.iter().sum::<usize>();
        ensure(found == 1, format!("{losers:?}")).map(|()| losers)
    });
    let [keeper, loser] = if losers == [0, 1] {
        [("host1", "c1", "c2"), ("host2", "c3", "c4")]
    } else {
        [("host2", "c3", "c4"), ("host1", "c1", "c2")]
    };
    let shown = lab.ok(loser.0, &["weft", "status", "ipam"]);
    assert!(
        shown.contains("conflict") && shown.contains("10.32.0.9"),
        "{shown}"
    );
    let shown = lab.ok(keeper.0, &["weft", "status", "ipam"]);
    assert!(!shown.contains("conflict"), "{shown}");

    // The one that lost is not heard across hosts, the other is, as before.
    lab.ping(keeper.2, keeper.1).unwrap();
    let heard = lab.helper(keeper.2, &["udp-hear", "-", "7001"]);
    let to = lab.ok(keeper.0, &["weft", "dns-lookup", keeper.2]);
    assert!(
        lab.ping(loser.1, to.trim()).is_err(),
        "it is answered across hosts"
    );
    lab.task(loser.1, &["udp-say", "10.47.255.255", "7001", "lost"]);
    lab.task(keeper.1, &["udp-say", "10.47.255.255", "7001", "kept"]);
    lab.task(loser.2, &["udp-say", "10.47.255.255", "7001", "other"]);
    assert_eq!(heard.line(), "kept");
    assert_eq!(heard.line(), "other");
    assert_eq!(heard.end(), [] as [&str; 0]);

    // What status tells to do helps.
    let target = format!("netns:{}", loser.1);
    lab.ok(loser.0, &["weft", "detach", "10.32.0.9/12", &target]);
    lab.ok(loser.0, &["weft", "attach", "--name", loser.1, &target]);
    lab.pings(loser.1, keeper.2, SOON);
    lab.pings(keeper.1, loser.1, SOON);
    lab.pings(loser.2, keeper.1, SOON);
    let ipam = lab.report(loser.0).ipam.unwrap();
    assert!(ipam.conflicts.is_empty(), "{ipam:?}");
}
