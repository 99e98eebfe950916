//! Two hosts behind NATs, which nobody can dial, and one that everybody reaches: frames go over that one until
//! a way is opened right through, and again when it is shut.

use std::time::Duration;

use weft_api::report::{Connection, Reach};

use super::support::{Lab, SOON, connections, ensure, eventually, metrics, possible, reach};

/// A dial that is not answered, an attempt over others, and what lies between.
const FOUND: Duration = Duration::from_secs(60);
/// Each host behind a NAT, and the host that is the NAT.
const BEHIND: [(&str, &str); 2] = [("host4", "host2"), ("host5", "host3")];
const ENDS: [(&str, &str); 2] = [("host4", "host5"), ("host5", "host4")];

#[test]
fn hosts_behind_two_nats_find_a_direct_way_and_fall_back_when_it_is_shut() {
    if !possible() {
        return;
    }
    let lab = behind_nats("punch", "masquerade");
    // At once, over the one that both reach.
    lab.pings("c4", "c5", SOON);
    goes(&lab, "directly", |reach| reach == Some(Reach::Direct));
    for (here, there) in ENDS {
        let found = connection(&lab, here, there);
        assert!(found.info.contains("control over host1"), "{found:?}");
    }
    let before = relayed(&lab);
    let ping = ["weft", "lab", "ping", "--count", "20", "c5"];
    assert!(lab.ok("c4", &ping).contains("20/20 answers"));
    let more = relayed(&lab) - before;
    assert!(more < 10, "{more} frames still went over host1");

    shut(&lab, true);
    goes(&lab, "over host1", |reach| {
        matches!(reach, Some(Reach::Via(_)))
    });
    lab.pings("c4", "c5", SOON);
    shut(&lab, false);
    goes(&lab, "directly again", |reach| reach == Some(Reach::Direct));
    lab.pings("c5", "c4", SOON);
}

#[test]
fn where_both_nats_give_each_destination_a_port_of_its_own_frames_stay_relayed() {
    if !possible() {
        return;
    }
    let lab = behind_nats("symmetric", "masquerade fully-random");
    lab.pings("c4", "c5", SOON);
    for (here, there) in ENDS {
        eventually("the status says why", FOUND, || {
            let shown = lab.ok(here, &["weft", "status", "connections"]);
            ensure(shown.contains("a port of its own"), shown)
        });
        let found = reach(&lab.report(here), there);
        assert!(matches!(found, Some(Reach::Via(_))), "{found:?}");
    }
    lab.pings("c5", "c4", SOON);
}

/// host1 is public; host4 and host5 are each behind a NAT, which lets in answers only.
fn behind_nats(name: &str, masquerade: &str) -> Lab {
    let lab = Lab::bare(name, 5, 1);
    for (n, (inside, nat)) in (4..).zip(BEHIND) {
        let (net, lan) = (format!("10.0.{n}"), format!("198.18.0.{n}/24"));
        // All are on one wire, but those inside have addresses that nobody else can reach.
        let script = format!(
            "ip addr add {net}.1/24 dev eth0
             echo 1 > /proc/sys/net/ipv4/ip_forward
             echo 0 > /proc/sys/net/ipv4/conf/all/send_redirects
             echo 0 > /proc/sys/net/ipv4/conf/eth0/send_redirects
             nft -f - <<E
table ip nat {{
  chain out {{
    type nat hook postrouting priority 100;
    ip saddr {net}.0/24 ip daddr != {net}.0/24 {masquerade}
  }}
  chain in {{
    type filter hook input priority 0; policy drop;
    ct state established,related accept
    ip saddr {net}.0/24 accept
  }}
  chain through {{
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    ip saddr {net}.0/24 accept
  }}
}}
E"
        );
        lab.ok(nat, &["sh", "-ec", &script]);
        let script = format!(
            "ip addr del {lan} dev eth0
             ip addr add {net}.2/24 dev eth0
             ip route add default via {net}.1"
        );
        lab.ok(inside, &["sh", "-ec", &script]);
    }
    lab.ok("host1", &["weft", "launch"]);
    for (n, (host, _)) in (4..).zip(BEHIND) {
        lab.ok(host, &["weft", "launch", "198.18.0.1"]);
        let (name, container) = (format!("c{n}"), format!("netns:c{n}"));
        lab.ok(host, &["weft", "attach", "--name", &name, &container]);
    }
    lab
}

/// Lets nothing pass between the two NATs, or lets it pass again.
fn shut(lab: &Lab, shut: bool) {
    let script = match shut {
        true => {
            "nft -f - <<E
table ip shut {
  chain through {
    type filter hook forward priority 10;
    ip saddr 198.18.0.3 drop
    ip daddr 198.18.0.3 drop
  }
}
E"
        }
        false => "nft delete table ip shut",
    };
    lab.ok("host2", &["sh", "-ec", script]);
}

fn goes(lab: &Lab, how: &str, wanted: impl Fn(Option<Reach>) -> bool) {
    for (here, there) in ENDS {
        eventually(&format!("{here} reaches {there} {how}"), FOUND, || {
            let report = lab.report(here);
            let found = reach(&report, there);
            ensure(
                wanted(found),
                format!("{found:?}; {:?}", report.router.connections),
            )
        });
    }
}

fn connection(lab: &Lab, here: &str, there: &str) -> Connection {
    let report = lab.report(here);
    let found = connections(&report, there);
    (*found.first().unwrap()).clone()
}

/// Frames that the host in between has passed on.
fn relayed(lab: &Lab) -> u64 {
    metrics(lab, "host1")["weft_frames_relayed_total"]
}
