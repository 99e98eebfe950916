//! Each kind of filter in a namespace of its own: put in, put back, taken out, others' rules left alone.

use std::process::Command;
use std::time::Duration;

use super::*;
use crate::testing::in_namespace;

/// Runs a line that must succeed; what it printed comes back.
fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn bridged_frames_are_filtered() {
    sh("sysctl -q -w net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1");
}

async fn found(bridge: &str) -> Forwarding {
    accept(bridge).await.unwrap()
}

#[test]
fn without_a_filter_that_drops_there_is_no_rule() {
    in_namespace(async |_, _| {
        bridged_frames_are_filtered();
        assert_eq!(found("weft").await, Forwarding::NotFiltered);
        assert_eq!(sh("nft list ruleset"), "");
        sh(
            "nft add table inet t; nft 'add chain inet t c { type filter hook forward priority 0; policy accept; }'",
        );
        let before = sh("nft -a list ruleset");
        assert_eq!(found("weft").await, Forwarding::NotFiltered);
        assert_eq!(sh("nft -a list ruleset"), before);
        sh(
            "sysctl -q -w net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0",
        );
        sh("iptables-nft -P FORWARD DROP");
        assert_eq!(found("weft").await, Forwarding::NotFiltered);
    });
}

#[test]
fn both_kinds_of_iptables_get_the_rule_where_docker_wants_it() {
    for tool in [
        "iptables-legacy",
        "iptables-nft",
        "ip6tables-legacy",
        "ip6tables-nft",
    ] {
        in_namespace(async |_, _| {
            bridged_frames_are_filtered();
            sh(&format!(
                "{tool} -P FORWARD DROP; {tool} -A FORWARD -i eth7 -j ACCEPT"
            ));
            let before = sh(&format!("{tool}-save | grep -v '^#'"));
            assert_eq!(found("weft").await, Forwarding::NowAccepted, "{tool}");
            assert_eq!(found("weft").await, Forwarding::Accepted, "{tool}");
            assert_eq!(found("other").await, Forwarding::NowAccepted, "{tool}");
            let rules = sh(&format!("{tool} -S FORWARD"));
            assert_eq!(
                rules.matches("--comment weft").count(),
                2,
                "{tool}: {rules}"
            );
            remove("other").await;

            // As when Docker starts.
            sh(&format!(
                "{tool} -N DOCKER-USER; {tool} -A DOCKER-USER -j RETURN; {tool} -I FORWARD -j DOCKER-USER"
            ));
            assert_eq!(found("weft").await, Forwarding::NowAccepted, "{tool}");
            let rules = sh(&format!("{tool} -S DOCKER-USER"));
            let ours = "-A DOCKER-USER -i weft -o weft -m comment --comment weft -j ACCEPT";
            assert_eq!(rules.lines().nth(1), Some(ours), "{tool}");
            assert_eq!(found("weft").await, Forwarding::Accepted, "{tool}");
            remove("weft").await;
            sh(&format!(
                "{tool} -D FORWARD -j DOCKER-USER; {tool} -F DOCKER-USER; {tool} -X DOCKER-USER"
            ));
            assert_eq!(sh(&format!("{tool}-save | grep -v '^#'")), before);
        });
    }
}

#[test]
fn chains_of_nftables_that_drop_get_the_rule_and_others_do_not() {
    in_namespace(async |_, _| {
        bridged_frames_are_filtered();
        for (family, table, policy, last) in [
            ("inet", "people", "drop", "tcp dport 22 accept"),
            ("ip", "firewalld", "accept", "counter reject"),
            ("inet", "harmless", "accept", "ip saddr 10.9.9.9 drop"),
        ] {
            sh(&format!(
                "nft add table {family} {table}; \
                 nft 'add chain {family} {table} c {{ type filter hook forward priority 0; policy {policy}; }}'; \
                 nft add rule {family} {table} c {last}"
            ));
        }
        let before = sh("nft list ruleset");
        assert_eq!(found("weft").await, Forwarding::NowAccepted);
        assert_eq!(found("weft").await, Forwarding::Accepted);
        let rules = sh("nft list ruleset");
        let ours = "iifname \"weft\" oifname \"weft\" accept comment \"weft\"";
        assert_eq!(rules.matches(ours).count(), 2, "{rules}");
        assert!(!sh("nft list table inet harmless").contains("weft"));
        assert_eq!(found("other").await, Forwarding::NowAccepted);
        remove("weft").await;
        remove("other").await;
        assert_eq!(sh("nft list ruleset"), before);
    });
}

#[test]
fn what_is_flushed_is_put_back() {
    for tool in ["iptables-legacy", "iptables-nft"] {
        in_namespace(async |_, _| {
            bridged_frames_are_filtered();
            let guard = Guard::start("weft");
            for _ in 0..2 {
                // The filter comes, or is emptied, while the guard is there.
                sh(&format!("{tool} -P FORWARD DROP; {tool} -F FORWARD"));
                let back = async {
                    while !sh(&format!("{tool} -S FORWARD")).contains("--comment weft") {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                };
                let back = tokio::time::timeout(Duration::from_secs(5), back).await;
                assert!(back.is_ok(), "{tool}: not put back");
            }
            assert_eq!(guard.trouble(), None);
        });
    }
}

#[test]
fn firewalld_that_keeps_others_out_is_told_of_with_what_to_do() {
    in_namespace(async |_, _| {
        bridged_frames_are_filtered();
        let chain =
            "add chain inet firewalld c { type filter hook forward priority 0; policy drop; }";
        // A table is its owner's alone as long as the owner's socket is open.
        let mut owner = Command::new("nft")
            .arg("-i")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mut input = owner.stdin.take().unwrap();
        let lines = format!("add table inet firewalld {{ flags owner; }}\n{chain}\n");
        std::io::Write::write_all(&mut input, lines.as_bytes()).unwrap();
        let there = async {
            while !sh("nft list chains").contains("policy drop") {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let there = tokio::time::timeout(Duration::from_secs(5), there).await;
        assert!(there.is_ok(), "the owner's chain is not there");
        let error = accept("weft").await.unwrap_err();
        assert!(
            error.to_string().contains("--add-interface=weft"),
            "{error}"
        );
        drop(input);
        owner.wait().unwrap();
    });
}
