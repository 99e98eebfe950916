//! Several peers in one process, joined by a switch in memory, in virtual time.

mod hostile;
mod newcomers;
mod switch;
mod tellers;

use std::time::{Duration, Instant};

use switch::{Switch, link, name, record};

use crate::key::tests::info;
use crate::{Change, Entry, Event, Gossip, Link, MAX_ENTRIES, PublishError, SILENCE, StartError};

#[test]
fn two_peers_know_each_other_at_once() {
    let mut switch = Switch::line(2);
    assert!(switch.until(1, 2, &record("c2", 2), true) < Duration::from_millis(200));
    assert!(switch.until(2, 1, &record("c1", 1), true) < Duration::from_millis(200));
    let who = Change::Published {
        peer: name(2),
        entry: Entry::Peer(info(1)),
    };
    let news = switch.news(1);
    assert_eq!(news[..2], [Change::Live { peer: name(2) }, who]);
}

#[test]
fn all_of_a_line_know_all_soon_after_it_is_joined() {
    let mut switch = Switch::line(5);
    switch.run_secs(1);
    for n in 1..=5 {
        assert_eq!(switch.known(n).len(), 4, "{n}");
    }
    switch.assert_rest();
}

#[test]
fn a_change_crosses_a_line_of_five_in_a_quarter_of_a_second() {
    let mut switch = Switch::line(5);
    switch.run_secs(10);
    for entry in [record("web", 9), record("db", 10)] {
        switch.publish(1, &entry);
        let took = switch.until(5, 1, &entry, true);
        assert!(took < Duration::from_millis(250), "{took:?}");
    }
    switch.withdraw(1, &record("web", 9));
    let took = switch.until(5, 1, &record("web", 9), false);
    assert!(took < Duration::from_millis(250), "{took:?}");
    assert!(switch.knows(5, 1, &record("db", 10)));
}

#[test]
fn a_value_replaces_the_one_before_and_the_same_is_not_told_again() {
    let mut switch = Switch::line(2);
    switch.run_secs(1);
    let after = link(name(2), false);
    switch.news(2);
    switch.publish(1, &after);
    switch.publish(1, &after);
    switch.until(2, 1, &after, true);
    let told = Change::Published {
        peer: name(1),
        entry: after,
    };
    assert_eq!(switch.news(2), [told]);
}

#[test]
fn what_a_restarted_peer_still_has_is_never_withdrawn() {
    let mut switch = Switch::line(3);
    switch.run_secs(10);
    switch.kill(1);
    switch.run_secs(8);
    switch.news(2);
    switch.news(3);
    let added = record("new", 11);
    switch.start(1, 2, vec![record("c1", 1), added.clone()]);
    switch.connect(1, 2);
    switch.run_secs(60);
    for n in [2, 3] {
        let names = switch.news(n).into_iter().filter(|change| match change {
            Change::Published { entry, .. } | Change::Withdrawn { entry, .. } => {
                matches!(entry, Entry::Name { .. })
            }
            Change::Live { .. } | Change::Dead { .. } | Change::Clash { .. } => {
                panic!("{change:?}")
            }
        });
        let entry = added.clone();
        let peer = name(1);
        assert_eq!(
            names.collect::<Vec<_>>(),
            [Change::Published { peer, entry }]
        );
    }
}

#[test]
fn what_a_restarted_peer_has_no_more_is_withdrawn() {
    let mut switch = Switch::line(2);
    switch.run_secs(5);
    switch.kill(1);
    switch.start(1, 2, vec![]);
    switch.connect(1, 2);
    let took = switch.until(2, 1, &record("c1", 1), false);
    assert!(took < Duration::from_millis(200), "{took:?}");
    assert_eq!(switch.known(2), [name(1)]);
}

#[test]
fn a_restart_with_more_than_fits_a_message_withdraws_nothing() {
    let many = |n: u32| Entry::Name {
        fqdn: format!("{:016x}", u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        container: format!("{:016x}", u64::from(n).wrapping_mul(0xd6e8_feb8_6659_fd93)),
        addr: (n + 0x0a20_0000).to_be_bytes().into(),
    };
    let names: Vec<Entry> = (0..6000).map(many).collect();
    let mut switch = Switch::new();
    switch.start(1, 1, names.clone());
    switch.start(2, 1, vec![]);
    switch.connect(1, 2);
    let took = switch.until(2, 1, &many(5999), true);
    assert!(took < Duration::from_secs(1), "{took:?}");
    switch.run_secs(1);
    let (_, bytes) = switch.take_traffic();
    assert!(bytes < 700_000, "{bytes} bytes for 6000 names");
    switch.kill(1);
    switch.run_secs(5);
    switch.news(2);
    switch.start(1, 2, names);
    switch.connect(1, 2);
    switch.until(2, 1, &Entry::Peer(info(2)), true);
    switch.assert_rest();
    let withdrawn = |change: &Change| matches!(change, Change::Withdrawn { .. });
    assert!(!switch.news(2).iter().any(withdrawn));
}

#[test]
fn a_peer_out_of_reach_is_dead_after_fifteen_seconds() {
    let mut switch = Switch::line(3);
    switch.run_secs(30);
    switch.kill(1);
    for n in [2, 3] {
        switch.news(n);
    }
    let took = switch.until(3, 1, &record("c1", 1), false);
    assert!(
        took > SILENCE && took < SILENCE + Duration::from_secs(2),
        "{took:?}"
    );
    switch.run_secs(1);
    for n in [2, 3] {
        assert_eq!(switch.news(n).last(), Some(&Change::Dead { peer: name(1) }));
    }
    switch.run_secs(900);
    for n in [2, 3] {
        assert_eq!(switch.news(n), []);
    }
    switch.assert_rest();
}

#[test]
fn a_peer_that_leaves_is_gone_at_once_and_needs_no_answer() {
    let mut switch = Switch::line(3);
    switch.run_secs(10);
    // From here on it hears nothing.
    switch.cut_one_way(2, 1);
    switch.withdraw_all(1);
    let took = switch.until(3, 1, &record("c1", 1), false);
    assert!(took < Duration::from_millis(150), "{took:?}");
    assert_eq!(switch.known(3), [name(2)]);
    switch.kill(1);
    switch.run_secs(1);
    switch.news(3);
    switch.run_secs(900);
    assert_eq!(switch.news(3), []);
}

#[test]
fn a_peer_that_left_may_come_back() {
    let mut switch = Switch::line(2);
    switch.run_secs(5);
    switch.withdraw_all(1);
    switch.until(2, 1, &record("c1", 1), false);
    switch.kill(1);
    switch.start(1, 2, vec![record("c1", 1)]);
    switch.connect(1, 2);
    let took = switch.until(2, 1, &record("c1", 1), true);
    assert!(took < Duration::from_millis(200), "{took:?}");
}

#[test]
fn halves_parted_for_long_know_all_of_each_other_again() {
    for parted in [30, 400] {
        let mut switch = Switch::line(4);
        switch.run_secs(10);
        switch.cut(2, 3);
        switch.run_secs(parted);
        switch.withdraw(1, &record("c1", 1));
        switch.publish(1, &record("late", 12));
        assert_eq!(switch.known(4), [name(3)]);
        switch.run_secs(parted);
        switch.connect(2, 3);
        let took = switch.until(4, 1, &record("late", 12), true);
        assert!(took < Duration::from_secs(1), "{took:?}");
        assert!(!switch.knows(4, 1, &record("c1", 1)));
        switch.until(1, 4, &record("c4", 4), true);
        switch.assert_rest();
    }
}

#[test]
fn a_joiner_does_not_hear_of_the_dead() {
    let mut switch = Switch::line(3);
    switch.run_secs(10);
    switch.kill(1);
    switch.run_secs(20);
    switch.start(9, 1, vec![]);
    switch.connect(9, 3);
    switch.run_secs(30);
    assert_eq!(switch.known(9), [name(2), name(3)]);
}

#[test]
fn what_one_that_was_away_remembers_brings_nobody_back() {
    let mut switch = Switch::mesh(4);
    switch.run_secs(5);
    for n in 1..=3 {
        switch.cut(n, 4);
    }
    switch.run_secs(1);
    switch.kill(1);
    switch.run_secs(60);
    assert_eq!(switch.known(4), []);
    for n in 2..=4 {
        switch.news(n);
    }
    switch.connect(2, 4);
    // The third has nothing new to say, nor has anybody told it anything.
    for (here, there) in [(4, 3), (3, 4)] {
        let took = switch.until(here, there, &Entry::Peer(info(1)), true);
        assert!(took < Duration::from_millis(500), "{took:?}");
    }
    switch.run_secs(30);
    for n in 2..=4 {
        let is_back = |c: &Change| matches!(c, Change::Live { peer } if *peer == name(1));
        assert!(!switch.news(n).iter().any(is_back), "at {n}");
    }
    switch.assert_rest();
}

#[test]
fn a_restarted_peer_whose_old_connection_was_not_missed_hears_all_at_once() {
    for n in [1, 3] {
        let mut switch = Switch::line(3);
        switch.run_secs(10);
        switch.comes_anew(n, 2, 2);
        let other = 4 - n;
        let entry = record(&format!("c{other}"), other as u8);
        let took = switch.until(n, other, &entry, true);
        assert!(took < Duration::from_millis(200), "{took:?}");
        let took = switch.until(other, n, &Entry::Peer(info(2)), true);
        assert!(took < Duration::from_millis(200), "{took:?}");
    }
}

#[test]
fn what_is_lost_on_the_way_is_repaired() {
    let mut switch = Switch::line(4);
    switch.loss = 3;
    for n in 0..40 {
        switch.publish(1, &record("x", n));
        switch.run(Duration::from_millis(70));
        switch.withdraw(1, &record("x", n));
    }
    let last = record("last", 1);
    switch.publish(1, &last);
    let took = switch.until(4, 1, &last, true);
    assert!(took < Duration::from_secs(40), "{took:?}");
    switch.loss = 0;
    switch.assert_rest();
    assert_eq!(switch.peers[&name(4)].table.peers[&name(1)].len(), 4);
}

/// Two that reach each other by frames alone, over a third, hear of each other from the third.
#[test]
fn what_is_relayed_carries_no_news() {
    let mut switch = Switch::line(3);
    for (one, other) in [(1, 3), (3, 1)] {
        let Entry::Link(to, link) = link(name(other), true) else {
            unreachable!("a link is one")
        };
        let relayed = true;
        switch.publish(one, &Entry::Link(to, Link { relayed, ..link }));
    }
    switch.run_secs(20);
    let entry = record("web", 9);
    switch.publish(1, &entry);
    let took = switch.until(3, 1, &entry, true);
    assert!(took < Duration::from_millis(250), "{took:?}");
    // Nor is anybody within reach by it.
    switch.cut(1, 2);
    switch.run(SILENCE + Duration::from_secs(3));
    assert_eq!(switch.known(3), [name(2)]);
}

#[test]
fn many_peers_in_a_sparse_mesh_find_the_part_that_differs() {
    let mut switch = Switch::apart(120);
    for n in 1..=120_u16 {
        for step in [1, 17, 53] {
            switch.connect(n, 1 + (n - 1 + step) % 120);
        }
    }
    switch.run_secs(5);
    for n in 1..=120 {
        assert_eq!(switch.known(n).len(), 119, "{n}");
    }
    switch.assert_rest();
    // One that all is lost for hears of a change by comparison alone.
    let entry = record("x", 1);
    for other in 1..=120 {
        switch.cut_one_way(other, 120);
    }
    switch.publish(7, &entry);
    switch.run_secs(2);
    assert!(!switch.knows(120, 7, &entry));
    switch.take_traffic();
    for other in [119, 103, 67, 1, 17, 53] {
        switch.connect(other, 120);
    }
    switch.until(120, 7, &entry, true);
    switch.run_secs(1);
    let (_, bytes) = switch.take_traffic();
    assert!(bytes < 30_000, "{bytes} bytes to find one change");
}

#[test]
fn what_others_could_not_take_is_not_published() {
    let mut switch = Switch::line(2);
    let now = switch.now;
    let mut big = info(1);
    big.addresses = vec![([10, 0, 0, 1], 1).into(); 2000];
    for entry in [record(&"x".repeat(2000), 1), Entry::Peer(big)] {
        let refused = switch.peer(1).gossip.publish(&entry, now);
        assert!(
            matches!(refused, Err(PublishError::Entry(_))),
            "{refused:?}"
        );
    }
    switch.publish(1, &record("ok", 1));
    switch.until(2, 1, &record("ok", 1), true);
    assert!(switch.knows(2, 1, &Entry::Peer(info(1))));
}

#[test]
fn a_peer_publishes_no_more_than_others_show() {
    let now = Instant::now();
    let mut entries: Vec<_> = (0..MAX_ENTRIES)
        .map(|n| record(&n.to_string(), 1))
        .collect();
    let mut gossip = Gossip::new(name(1), 1, entries.clone(), now).unwrap();
    let refused = gossip.publish(&record("more", 1), now);
    assert_eq!(refused, Err(PublishError::TooMany));
    gossip.publish(&record("0", 1), now).unwrap();
    gossip.withdraw(&record("0", 1).topic(), now);
    gossip.publish(&record("more", 1), now).unwrap();
    entries.push(record("a", 1));
    let refused = Gossip::new(name(1), 1, entries, now).err();
    assert!(matches!(refused, Some(StartError::TooMany(_))));
    let long = vec![record(&"a".repeat(3000), 1)];
    let refused = Gossip::new(name(1), 1, long, now).err();
    assert!(matches!(refused, Some(StartError::Entry(_))));
}

#[test]
fn a_peer_that_only_one_end_tells_of_is_not_shown() {
    let mut switch = Switch::line(3);
    switch.run_secs(1);
    // Nobody else tells of a connection with the fourth, and what it says came over the second.
    switch.start(4, 1, vec![link(name(2), true)]);
    switch.publish(2, &link(name(5), true));
    switch.connect(4, 3);
    switch.run_secs(1);
    assert_eq!(switch.known(1), [name(2), name(3), name(4)]);
    switch.withdraw(3, &link(name(4), true));
    switch.run_secs(20);
    assert_eq!(switch.known(1), [name(2), name(3)]);
    assert_eq!(
        switch.known(3),
        [name(1), name(2), name(4)],
        "its neighbour sees it"
    );
}

#[test]
fn who_asks_many_for_much_is_told_different_runs() {
    let mut switch = Switch::new();
    let text = "x".repeat(200);
    for n in 1..=80 {
        switch.start(
            n,
            1,
            (0..30).map(|k| record(&format!("{text}{k}"), 1)).collect(),
        );
        if n > 1 {
            switch.connect(n, n - 1);
            switch.connect(n, 1 + n / 3);
        }
    }
    switch.run_secs(20);
    switch.start(900, 1, vec![]);
    switch.take_traffic();
    for n in [10, 30, 50, 70] {
        switch.connect(900, n);
    }
    switch.run_secs(1);
    assert_eq!(switch.known(900).len(), 80);
    let (_, bytes) = switch.take_traffic();
    let all = 80 * 30 * 250;
    assert!(bytes < 3 * all, "{bytes} bytes for {all}");
    switch.assert_rest();
}

/// Halves of every kind come together: what was changed, withdrawn, started again and left meanwhile.
#[test]
fn a_cluster_in_turmoil_agrees_once_it_is_over() {
    for seed in 1..=10_u64 {
        let mut random = seed;
        let mut pick = move |below: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let mut switch = Switch::line(8);
        let mut generations = [1; 9];
        for _ in 0..60 {
            let n = 1 + pick(8) as u16;
            let other = 1 + pick(8) as u16;
            let entry = record(&format!("x{}", pick(4)), 1);
            let is_up = switch.peers.contains_key(&name(n));
            match pick(6) {
                0 if is_up => switch.publish(n, &entry),
                1 if is_up => switch.withdraw(n, &entry),
                2 if is_up && n != other && switch.peers.contains_key(&name(other)) => {
                    match pick(2) {
                        0 => switch.cut(n, other),
                        _ => switch.connect(n, other),
                    }
                }
                3 if is_up => switch.kill(n),
                3 => {
                    let generation = &mut generations[usize::from(n)];
                    *generation += 1;
                    let (generation, entries) = (*generation, vec![record("again", 1)]);
                    switch.start(n, generation, entries);
                }
                _ => switch.loss = pick(4) * 2,
            }
            switch.run(Duration::from_millis(pick(9_000)));
        }
        switch.loss = 0;
        for n in 1..=8 {
            if !switch.peers.contains_key(&name(n)) {
                let generation = generations[usize::from(n)] + 1;
                switch.start(n, generation, vec![]);
            }
        }
        for n in 1..8 {
            switch.connect(n, n + 1);
        }
        switch.run_secs(20);
        for n in 1..=8 {
            for other in (1..=8).filter(|other| *other != n) {
                let said = switch.peer(other).gossip.says();
                let shown = switch.peers[&name(n)]
                    .table
                    .peers
                    .get(&name(other))
                    .cloned();
                assert_eq!(shown, Some(said), "seed {seed}: {other} at {n}");
            }
        }
        switch.assert_rest();
    }
}

#[test]
fn another_run_with_our_name_is_told_of_while_it_lives() {
    let mut switch = Switch::line(4);
    switch.run_secs(1);
    // What the first one says in a newer run comes to the third, which was started with its name.
    let now = switch.now;
    let entries = vec![Entry::Peer(info(1))];
    let mut clone = Gossip::new(name(1), 0, entries, now).unwrap();
    let clashes = |clone: &mut Gossip| {
        let events = std::iter::from_fn(|| clone.poll_event()).collect::<Vec<_>>();
        let is_clash = |e: &&Event| matches!(e, Event::Change(Change::Clash { generation: 1, .. }));
        events.iter().filter(is_clash).count()
    };
    let told = |switch: &mut Switch, clone: &mut Gossip| {
        let mut all = 0;
        for _ in 0..40 {
            let now = switch.now;
            let bytes = switch.peer(4).gossip.everything();
            clone.handle_message(name(4), &bytes, now);
            switch.run_secs(1);
            clone.handle_timeout(switch.now);
            all += clashes(clone);
        }
        all
    };
    clone.set_neighbours(&[name(4)].into(), now);
    let often = told(&mut switch, &mut clone);
    assert!((2..=3).contains(&often), "{often} times in 40 s");
    // Nobody has a connection with it any more.
    switch.kill(1);
    switch.run_secs(1);
    told(&mut switch, &mut clone);
    assert_eq!(told(&mut switch, &mut clone), 0);
}

#[test]
fn a_newer_run_with_our_name_that_is_gone_is_heard_of_from_whoever_remembers_it() {
    let mut switch = Switch::new();
    switch.start(1, 5, vec![]);
    switch.start(2, 1, vec![]);
    switch.connect(1, 2);
    switch.run_secs(5);
    switch.kill(1);
    switch.run_secs(60);
    // The one whose copy that was had been out of reach all the while.
    switch.start(1, 1, vec![]);
    switch.connect(1, 2);
    switch.run_secs(10);
    let is_clash = |change: &Change| matches!(change, Change::Clash { generation: 5, .. });
    assert!(switch.news(1).iter().any(is_clash));
}
