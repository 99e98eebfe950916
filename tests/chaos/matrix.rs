//! Everybody pings everybody by name, until all are answered.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::{Lab, finish};

/// Waits until every container reaches every other by name; how long that took, or what is lacking.
pub(crate) fn whole(lab: &Lab, hosts: u16, within: Duration) -> Result<Duration, String> {
    let began = Instant::now();
    let mut left: Vec<u16> = (1..=hosts).collect();
    loop {
        let lacking = ping(lab, hosts, &left);
        let took = began.elapsed();
        if lacking.is_empty() {
            return Ok(took);
        }
        if took >= within {
            let lacks = lacking
                .iter()
                .map(|(from, what)| format!("c{from}: {what}"));
            return Err(lacks.collect::<Vec<_>>().join("; "));
        }
        left = lacking.into_iter().map(|(from, _)| from).collect();
    }
}

/// These containers ping all others once; those that were not answered by all, and what they say.
fn ping(lab: &Lab, hosts: u16, from: &[u16]) -> Vec<(u16, String)> {
    let started: Vec<_> = from
        .iter()
        .map(|n| {
            let mut words = vec!["weft", "lab", "ping", "--timeout", "1000"];
            let others: Vec<_> = (1..=hosts)
                .filter(|m| m != n)
                .map(|m| format!("c{m}"))
                .collect();
            words.extend(others.iter().map(String::as_str));
            let place = format!("c{n}");
            let mut command = lab.command(&place, &words);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            (*n, command.spawn().unwrap())
        })
        .collect();
    let outcomes = started
        .into_iter()
        .map(|(n, child)| (n, finish(child, "a ping")));
    outcomes
        .filter(|(_, outcome)| outcome.code != Some(0))
        .map(|(n, outcome)| {
            (
                n,
                format!("{} {}", outcome.printed.trim(), outcome.said.trim()),
            )
        })
        .collect()
}
