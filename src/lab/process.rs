//! Finding the processes of a lab in `/proc`.
//!
//! A lab keeps no table of its processes: they are the descendants of its process number 1, and the
//! one that holds a place says so in its command line. A process is known by its number *and* its
//! start, so that a number given out again is never taken for ours.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::birth;
use super::layout::Place;

/// When a process started, in clock ticks since boot; none if it is gone, or ended and only waits
/// for its parent to notice.
pub(crate) fn started(pid: u32) -> Option<u64> {
    stat(pid)
        .filter(|stat| !stat.has_ended())
        .map(|stat| stat.started)
}

/// The process that holds a place, among the descendants of a lab's process number 1.
pub(crate) fn holder(root: u32, place: Place) -> Option<u32> {
    if place == Place::Lan {
        return Some(root);
    }
    // Nearest first: what somebody runs inside a place cannot stand before those who hold one.
    descendants(root).into_iter().find(|pid| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| birth::holds(&line, place))
    })
}

fn descendants(root: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for pid in all() {
        if let Some(stat) = stat(pid) {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    let mut found = vec![root];
    let mut seen = BTreeSet::from([root]);
    let mut at = 0;
    while let Some(pid) = found.get(at).copied() {
        at += 1;
        // The table is read while it changes, so it could hold a circle.
        found.extend(
            children
                .remove(&pid)
                .into_iter()
                .flatten()
                .filter(|child| seen.insert(*child)),
        );
    }
    found
}

fn all() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

struct Stat {
    state: char,
    parent: u32,
    threads: u64,
    started: u64,
}

impl Stat {
    /// Whether nothing of the process runs any more. The state is that of its first thread, which may
    /// end before others: of a process number 1 the last one still waits for the end of its whole pid
    /// namespace then.
    fn has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X') && self.threads <= 1
    }
}

fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Reads `/proc/PID/stat` (proc_pid_stat(5)); the name in parentheses may itself hold any character.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, after_name) = text.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    // `state` is field 3, `ppid` 4, `num_threads` 20, `starttime` 22.
    let threads = fields.nth(15)?.parse().ok()?;
    let started = fields.nth(1)?.parse().ok()?;
    Some(Stat {
        state,
        parent,
        threads,
        started,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_whatever_the_process_is_called() {
        let line = "42 (a) b (c) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 3 0 98765 1000 10";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.state, stat.parent, stat.started), ('S', 7, 98765));
        assert_eq!(stat.threads, 3);
    }

    #[test]
    fn a_process_has_ended_only_when_all_its_threads_have() {
        let ended = |state, threads| {
            let tail = format!("7 42 42 0 -1 0 1 2 3 4 5 6 7 8 20 0 {threads} 0 98765");
            parse_stat(&format!("42 (x) {state} {tail}"))
                .unwrap()
                .has_ended()
        };
        assert!(ended('Z', 1) && ended('X', 0));
        assert!(!ended('Z', 2), "another thread is still at work");
        assert!(!ended('S', 1));
    }

    #[test]
    fn half_a_stat_is_none() {
        for line in ["", "42 (x)", "42 (x) S", "42 (x) S 7 1 2 3"] {
            assert!(parse_stat(line).is_none(), "{line}");
        }
    }

    #[test]
    fn we_run_and_are_our_own_first_descendant() {
        let us = std::process::id();
        assert!(started(us).is_some());
        assert_eq!(descendants(us).first(), Some(&us));
        assert!(descendants(1).contains(&us) || us == 1);
    }

    #[test]
    fn a_child_that_ended_is_gone_before_it_is_reaped() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while started(child.id()).is_some() {
            assert!(std::time::Instant::now() < deadline, "still running");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        child.wait().unwrap();
    }
}
