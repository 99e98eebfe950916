//! What there is of things that could pile up, before and after.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use crate::support::{Lab, eventually};

/// How much memory a router may have gained, in KiB.
const GROWTH: u64 = 16 * 1024;

/// What each host has.
#[derive(Debug)]
pub(crate) struct Census {
    hosts: BTreeMap<String, Counts>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Counts {
    links: BTreeSet<String>,
    rules: BTreeSet<String>,
    files: usize,
    memory: u64,
    zombies: Vec<String>,
    processes: usize,
    namespaces: usize,
}

impl Census {
    pub(crate) fn take(lab: &Lab, hosts: u16) -> Self {
        let hosts = (1..=hosts).map(|n| format!("host{n}"));
        let hosts = hosts.map(|host| (host.clone(), Counts::of(lab, &host)));
        Self {
            hosts: hosts.collect(),
        }
    }

    /// Compares with what there is now: how many things were compared, and what is wrong.
    pub(crate) fn compare(&self, lab: &Lab, hosts: u16) -> Vec<(u64, Vec<String>)> {
        let compare = |host: String| {
            let before = &self.hosts[&host];
            let mut wrong = Vec::new();
            // What is on its way out may take a moment.
            for _ in 0..10 {
                wrong = before.compare(&Counts::of(lab, &host), &host);
                if wrong.is_empty() {
                    break;
                }
                std::thread::sleep(Duration::from_secs(1));
            }
            (7, wrong)
        };
        (1..=hosts).map(|n| compare(format!("host{n}"))).collect()
    }
}

impl Counts {
    fn of(lab: &Lab, host: &str) -> Self {
        let ok = |words: &[&str]| lab.ok(host, words);
        // A router that was launched a moment ago opens its files one after the other.
        let pid = eventually("a router runs", Duration::from_secs(10), || {
            let pid = lab.exec(host, &["cat", "/run/weft/weft.pid"]);
            (pid.code == Some(0))
                .then(|| pid.printed.trim().to_owned())
                .ok_or("none")
        });
        let links = ok(&["ip", "-o", "link"]);
        let links = links.lines().filter_map(|line| line.split(": ").nth(1));
        let rules = ok(&["nft", "-s", "list", "ruleset"]);
        let files = ok(&["ls", &format!("/proc/{pid}/fd")]).lines().count();
        let status = ok(&["cat", &format!("/proc/{pid}/status")]);
        let memory = status.lines().find_map(|line| {
            let rest = line.strip_prefix("VmRSS:")?;
            rest.split_whitespace().next()?.parse().ok()
        });
        let states = ok(&["sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null; true"]);
        let zombies = states
            .lines()
            .filter(|line| line.contains(") Z "))
            .map(str::to_owned);
        Self {
            links: links.map(str::to_owned).collect(),
            rules: rules.lines().map(|line| line.trim().to_owned()).collect(),
            files,
            memory: memory.unwrap(),
            zombies: zombies.collect(),
            processes: states.lines().count(),
            namespaces: ok(&["sh", "-c", NAMESPACES]).lines().count(),
        }
    }

    fn compare(&self, now: &Self, host: &str) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut check = |holds: bool, what: &str, before: String, now: String| {
            if !holds {
                wrong.push(format!("{host}: {what}: {before} before, {now} now"));
            }
        };
        let sets = |what: &str, a: &BTreeSet<String>, b: &BTreeSet<String>| {
            let gone: Vec<_> = a.difference(b).collect();
            let new: Vec<_> = b.difference(a).collect();
            (
                a == b,
                what.to_owned(),
                format!("gone {gone:?}"),
                format!("new {new:?}"),
            )
        };
        for (holds, what, before, after) in [
            sets("links", &self.links, &now.links),
            sets("firewall rules", &self.rules, &now.rules),
        ] {
            check(holds, &what, before, after);
        }
        // One for each connection, and connections may be being made anew.
        let files = now.files <= self.files + 8;
        check(
            files,
            "open files",
            self.files.to_string(),
            now.files.to_string(),
        );
        let memory = now.memory <= self.memory + GROWTH;
        check(
            memory,
            "KiB of memory",
            self.memory.to_string(),
            now.memory.to_string(),
        );
        check(
            now.zombies.is_empty(),
            "zombies",
            "none".into(),
            format!("{:?}", now.zombies),
        );
        let processes = now.processes <= self.processes;
        check(
            processes,
            "processes",
            self.processes.to_string(),
            now.processes.to_string(),
        );
        let (before, after) = (self.namespaces, now.namespaces);
        check(
            after == before,
            "network namespaces",
            before.to_string(),
            after.to_string(),
        );
        wrong
    }
}

/// Lists the network namespaces that processes of a host are in.
const NAMESPACES: &str = "for p in /proc/[0-9]*; do readlink $p/ns/net; done 2>/dev/null | sort -u";

/// What a lab that is down has left: processes that carry its name.
pub(crate) fn left_outside() -> Vec<String> {
    let us = format!("chaos-{}", std::process::id());
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let left = processes.filter_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let words = fs::read(process.path().join("cmdline")).ok()?;
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        (pid != std::process::id() && words.contains(&us)).then(|| format!("left behind: {words}"))
    });
    left.collect()
}
