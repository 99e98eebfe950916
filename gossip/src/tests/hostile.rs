//! What a neighbour that is no weft, or a bad one, can do to us: nothing.

use std::time::Duration;

use super::switch::{Switch, link, name, record};
use crate::exchange::MAX_ANSWERS;
use crate::message::{News, Set, digest, want};
use crate::run::Run;
use crate::store::{Known, MAX_HELD, MAX_KEYS, MAX_RUNS};
use crate::{Change, Entry};

fn run(n: u16, generation: u64) -> Run {
    Run {
        name: name(n),
        generation,
    }
}

fn known(version: u64) -> Known {
    Known {
        version,
        collected: 0,
    }
}

fn news(run: Run, since: u64, sets: &[(&str, Option<&str>, u64)]) -> Vec<u8> {
    let last = sets.last().map_or(since, |(_, _, version)| *version);
    let mut news = News::default();
    let sets = sets.iter().map(|(key, value, version)| Set {
        key,
        value: *value,
        version: *version,
    });
    assert!(news.add(run, known(last), since, sets));
    news.into_bytes()
}

/// Two peers that know each other, and a stranger's messages to the first in the other's name; both
/// must still hear of what the other says.
fn attacked(messages: &[Vec<u8>]) -> Switch {
    let mut switch = Switch::line(2);
    switch.run_secs(1);
    for message in messages {
        switch.forge(2, 1, message);
        switch.run(Duration::from_millis(5));
    }
    switch.run_secs(1);
    for (here, there) in [(1, 2), (2, 1)] {
        let entry = record("after", 1);
        switch.publish(here, &entry);
        let took = switch.until(there, here, &entry, true);
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
    switch
}

#[test]
fn bytes_that_are_no_gossip_are_dropped_and_counted() {
    let real = news(run(3, 1), 0, &[("peer", Some("x"), 1), ("a", None, 2)]);
    // Every beginning of a real message, and every bit of it turned over.
    let mut messages: Vec<_> = (0..real.len()).map(|end| real[..end].to_vec()).collect();
    messages.extend([vec![0xff; 70_000], vec![]]);
    // A message that ends after a whole block is one.
    messages.retain(|message| message.len() != 3);
    let count = messages.len() as u64;
    let mut switch = attacked(&messages);
    assert_eq!(switch.peer(1).gossip.counters().undecodable, count);
    let flipped: Vec<_> = (0..real.len() * 8)
        .map(|bit| {
            let mut message = real.clone();
            message[bit / 8] ^= 1 << (bit % 8);
            message
        })
        .collect();
    attacked(&flipped);
}

#[test]
fn nobody_writes_our_keys_or_makes_us_take_them_back() {
    let ours = run(1, 1);
    let forged = [
        news(ours, 0, &[("peer", None, 1_000)]),
        news(run(1, 99), 0, &[("peer", Some("x"), 1)]),
        digest(
            u64::MAX,
            &[(ours, known(u64::MAX), true), (run(1, 7), known(3), true)],
        ),
        want(&[(ours, known(u64::MAX)), (run(77, 1), known(0))]),
    ];
    let mut switch = attacked(&forged);
    assert_eq!(switch.peer(1).gossip.counters().refused, 1);
    assert!(switch.knows(2, 1, &record("c1", 1)));
}

#[test]
fn a_peer_with_too_many_keys_is_cut_off_and_no_one_else() {
    let mut switch = Switch::line(2);
    let mut version = 0;
    while version < MAX_KEYS as u64 + 5_000 {
        let since = version;
        let keys: Vec<_> = (0..1_000).map(|n| format!("junk/{}", since + n)).collect();
        let sets: Vec<_> = keys
            .iter()
            .map(|key| {
                version += 1;
                (key.as_str(), Some(""), version)
            })
            .collect();
        switch.forge(2, 1, &news(run(3, 1), since, &sets));
    }
    assert_eq!(switch.peer(1).gossip.counters().refused, 5_000);
    switch.publish(2, &record("after", 1));
    switch.until(1, 2, &record("after", 1), true);
}

#[test]
fn more_peers_than_there_is_room_for_are_left_out_and_counted() {
    let mut switch = Switch::line(2);
    switch.run_secs(1);
    for n in 0..MAX_RUNS as u16 + 10 {
        switch.forge(2, 1, &news(run(100 + n, 1), 0, &[("peer", Some("x"), 1)]));
    }
    assert_eq!(switch.peer(1).gossip.counters().refused, 12);
    switch.publish(2, &record("after", 1));
    switch.until(1, 2, &record("after", 1), true);
    // They are within nobody's reach, so they are forgotten.
    switch.run_secs(400);
    assert_eq!(switch.known(1), [name(2)]);
    switch.start(3, 1, vec![]);
    switch.connect(3, 2);
    switch.run_secs(1);
    assert_eq!(switch.known(1), [name(2), name(3)]);
}

#[test]
fn entries_we_cannot_read_are_passed_over_and_counted() {
    let mut switch = Switch::line(2);
    switch.run_secs(1);
    let them = run(3, 1);
    let (peer, who) = Entry::Peer(crate::key::tests::info(1)).encode().unwrap();
    let (key, value) = link(name(2), true).encode().unwrap();
    let sets = [
        ("colour/red", Some("x"), 1),
        ("ring/%", Some("x"), 2),
        (key.as_str(), Some(value.as_str()), 3),
        (peer.as_str(), Some(who.as_str()), 4),
    ];
    switch.publish(2, &link(name(3), true));
    switch.run_secs(1);
    switch.forge(2, 1, &news(them, 0, &sets));
    switch.run_secs(1);
    let shown = &switch.peers[&name(1)].table.peers[&name(3)];
    assert_eq!(shown.len(), 2);
    assert_eq!(switch.peer(1).gossip.counters().ignored, 2);
    switch.news(1);
    switch.forge(2, 1, &news(them, 4, &[(key.as_str(), Some("nonsense"), 5)]));
    switch.run_secs(1);
    let gone = Change::Withdrawn {
        peer: name(3),
        entry: link(name(2), true),
    };
    assert_eq!(switch.news(1)[0], gone);
}

#[test]
fn a_neighbour_that_asks_without_end_gets_so_much_and_no_more() {
    let mut switch = Switch::line(2);
    switch.run_secs(1);
    let sent = switch.peer(1).gossip.counters().sent;
    for _ in 0..MAX_ANSWERS + 100 {
        switch.forge(2, 1, &want(&[(run(1, 1), known(0))]));
    }
    let counters = switch.peer(1).gossip.counters();
    assert_eq!(counters.sent - sent, u64::from(MAX_ANSWERS));
    assert_eq!(counters.throttled, 100);
    switch.run_secs(2);
    switch.forge(2, 1, &want(&[(run(1, 1), known(0))]));
    assert_eq!(switch.peer(1).gossip.counters().throttled, 100);
}

#[test]
fn what_is_said_in_endless_entries_fills_no_memory() {
    let mut switch = Switch::line(2);
    let value = "x".repeat(crate::MAX_VALUE);
    for n in 0..MAX_HELD as u64 / (3 * value.len() as u64) + 100 {
        let keys: Vec<_> = (1..=3).map(|key| format!("junk/{n}/{key}")).collect();
        let version = |at: usize| n * 3 + at as u64 + 1;
        let sets = keys.iter().enumerate();
        let sets: Vec<_> = sets
            .map(|(at, key)| (key.as_str(), Some(value.as_str()), version(at)))
            .collect();
        switch.forge(2, 1, &news(run(3, 1), n * 3, &sets));
    }
    assert!(switch.peer(1).gossip.counters().refused > 50);
    switch.publish(1, &record("after", 1));
    switch.until(2, 1, &record("after", 1), true);
    // Nobody has a connection with such a peer: it is forgotten, and there is room again.
    switch.run_secs(400);
    switch.publish(2, &record("later", 1));
    switch.until(1, 2, &record("later", 1), true);
}
