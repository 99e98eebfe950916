//! Several peers in one process, joined by a switch in memory, in virtual time.

mod envelope;
mod hostile;
mod switch;
mod view;

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use switch::{Switch, link, name, record};

use crate::key::tests::info;
use crate::{
    Change, Entry, Gossip, GossipConfig, MAX_CLUSTER, MAX_ENTRIES, PublishError, StartError, Topic,
};

#[tokio::test(start_paused = true)]
async fn two_peers_know_each_other_at_once() {
    let switch = Switch::default();
    let mut peers = switch.line(2).await;
    let [a, b] = &mut peers[..] else { panic!() };
    assert!(a.until(2, &record("c2", 2), true).await < Duration::from_millis(200));
    assert!(b.until(1, &record("c1", 1), true).await < Duration::from_millis(200));
    let who = Change::Published {
        peer: b.name,
        entry: Entry::Peer(info(1)),
    };
    let news = a.news();
    assert_eq!(news[..2], [Change::Live { peer: b.name }, who]);
}

#[tokio::test(start_paused = true)]
async fn all_of_a_line_know_all_soon_after_it_is_joined() {
    let switch = Switch::default();
    let mut peers = switch.line(5).await;
    sleep(Duration::from_secs(6)).await;
    for peer in &mut peers {
        peer.settle();
        assert_eq!(peer.table.peers.len(), 4, "{}", peer.name);
        assert!(peer.table.peers.values().all(|entries| entries.len() == 2));
    }
    assert_eq!(switch.strays(), []);
}

#[tokio::test(start_paused = true)]
async fn a_change_crosses_a_line_of_five_in_a_quarter_of_a_second() {
    let switch = Switch::default();
    let mut peers = switch.line(5).await;
    sleep(Duration::from_secs(10)).await;
    for (n, entry) in [(1, record("web", 9)), (2, record("db", 10))] {
        peers[0].gossip.publish(entry.clone()).await.unwrap();
        let took = peers[4].until(1, &entry, true).await;
        assert!(
            took < Duration::from_millis(250),
            "change {n} took {took:?}"
        );
    }
    let gone = record("web", 9);
    peers[0].gossip.withdraw(&gone.topic()).await;
    let took = peers[4].until(1, &gone, false).await;
    assert!(took < Duration::from_millis(250), "took {took:?}");
    assert!(peers[4].knows(1, &record("db", 10)));
    assert_eq!(switch.strays(), []);
}

#[tokio::test(start_paused = true)]
async fn a_value_replaces_the_one_before() {
    let switch = Switch::default();
    let mut peers = switch.line(2).await;
    let (before, after) = (link(name(2), false), link(name(2), true));
    peers[0].gossip.publish(before.clone()).await.unwrap();
    peers[1].until(1, &before, true).await;
    peers[1].news();
    peers[0].gossip.publish(after.clone()).await.unwrap();
    peers[1].until(1, &after, true).await;
    let told = Change::Published {
        peer: name(1),
        entry: after,
    };
    assert_eq!(peers[1].news(), [told]);
}

#[tokio::test(start_paused = true)]
async fn what_a_restarted_peer_still_has_is_never_withdrawn() {
    let switch = Switch::default();
    let mut peers = switch.line(3).await;
    sleep(Duration::from_secs(10)).await;
    switch.kill(peers.remove(0));
    sleep(Duration::from_secs(8)).await;
    for peer in &mut peers {
        peer.news();
    }
    let kept = record("c1", 1);
    let added = record("new", 11);
    let again = switch.start(1, 2, vec![kept, added.clone()]).await;
    switch.connect(1, 2);
    for peer in &mut peers {
        peer.until(1, &added, true).await;
        sleep(Duration::from_secs(40)).await;
        let published = |entry| Change::Published {
            peer: name(1),
            entry,
        };
        let who = published(Entry::Peer(info(2)));
        assert_eq!(peer.news(), [who, published(added.clone())]);
    }
    drop(again);
}

#[tokio::test(start_paused = true)]
async fn what_a_restarted_peer_has_no_more_is_withdrawn() {
    let switch = Switch::default();
    let mut peers = switch.line(2).await;
    sleep(Duration::from_secs(5)).await;
    switch.kill(peers.remove(0));
    peers[0].news();
    let _again = switch.start(1, 2, vec![]).await;
    switch.connect(1, 2);
    peers[0].until(1, &record("c1", 1), false).await;
    let gone = Change::Withdrawn {
        peer: name(1),
        entry: record("c1", 1),
    };
    let who = Change::Published {
        peer: name(1),
        entry: Entry::Peer(info(2)),
    };
    assert_eq!(peers[0].news(), [gone, who]);
}

#[tokio::test(start_paused = true)]
async fn a_restart_with_more_than_fits_a_message_withdraws_nothing() {
    let switch = Switch::default();
    let many = |n: u32| Entry::Name {
        // Hard to compress, so that it takes many messages.
        fqdn: format!("{:016x}", u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        container: format!("{:016x}", u64::from(n).wrapping_mul(0xd6e8_feb8_6659_fd93)),
        addr: (n + 0x0a20_0000).to_be_bytes().into(),
    };
    let names: Vec<Entry> = (0..6000).map(many).collect();
    let first = switch.start(1, 1, names.clone()).await;
    let mut other = switch.start(2, 1, vec![]).await;
    switch.connect(1, 2);
    let took = other.until(1, &many(5999), true).await;
    let (_, bytes) = switch.take_traffic();
    assert!(bytes < 500_000, "{bytes} bytes for 6000 names");
    assert!(took < Duration::from_secs(5), "took {took:?}");
    other.listen(Duration::from_secs(5)).await;
    assert_eq!(other.table.peers[&name(1)].len(), 6001);
    switch.kill(first);
    sleep(Duration::from_secs(5)).await;
    other.news();
    let _again = switch.start(1, 2, names).await;
    switch.connect(1, 2);
    other.until(1, &Entry::Peer(info(2)), true).await;
    switch.assert_rest(2).await;
    assert!(other.knows(1, &Entry::Peer(info(2))));
    let who = Change::Published {
        peer: name(1),
        entry: Entry::Peer(info(2)),
    };
    assert_eq!(other.news(), [who]);
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_dead_after_fifteen_seconds() {
    let switch = Switch::default();
    let mut peers = switch.line(3).await;
    sleep(Duration::from_secs(30)).await;
    switch.kill(peers.remove(0));
    for peer in &mut peers {
        peer.news();
    }
    let killed = Instant::now();
    for peer in &mut peers {
        peer.until(1, &record("c1", 1), false).await;
        let took = killed.elapsed();
        assert!(took > Duration::from_secs(11), "{} {took:?}", peer.name);
        assert!(took < Duration::from_secs(19), "{} {took:?}", peer.name);
        sleep(Duration::from_millis(10)).await;
        assert_eq!(peer.news().last(), Some(&Change::Dead { peer: name(1) }));
    }
    switch.assert_rest(2).await;
    sleep(Duration::from_secs(900)).await;
    for peer in &mut peers {
        assert_eq!(peer.news(), []);
    }
    switch.assert_rest(2).await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_leaves_is_gone_at_once_and_needs_no_answer() {
    let switch = Switch::default();
    let mut peers = switch.line(3).await;
    sleep(Duration::from_secs(10)).await;
    // From here on it hears nothing.
    switch.cut_one_way(2, 1);
    peers[0].gossip.withdraw_all().await;
    let took = peers[2].until(1, &record("c1", 1), false).await;
    assert!(took < Duration::from_millis(150), "took {took:?}");
    assert!(!peers[2].table.peers.contains_key(&name(1)));
    switch.kill(peers.remove(0));
    peers[1].news();
    sleep(Duration::from_secs(900)).await;
    assert_eq!(peers[1].news(), []);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_left_may_come_back() {
    let switch = Switch::default();
    let mut peers = switch.line(2).await;
    sleep(Duration::from_secs(5)).await;
    peers[0].gossip.withdraw_all().await;
    peers[1].until(1, &record("c1", 1), false).await;
    switch.kill(peers.remove(0));
    let _again = switch.start(1, 2, vec![record("c1", 1)]).await;
    switch.connect(1, 2);
    let took = peers[0].until(1, &record("c1", 1), true).await;
    assert!(took < Duration::from_millis(200), "took {took:?}");
}

#[tokio::test(start_paused = true)]
async fn halves_parted_for_long_know_all_of_each_other_again() {
    for parted in [30, 400] {
        let switch = Switch::default();
        let mut peers = switch.line(4).await;
        sleep(Duration::from_secs(10)).await;
        switch.cut(2, 3);
        sleep(Duration::from_secs(parted)).await;
        peers[0].gossip.withdraw(&record("c1", 1).topic()).await;
        peers[0].gossip.publish(record("late", 12)).await.unwrap();
        peers[3].settle();
        let known: Vec<_> = peers[3].table.peers.keys().copied().collect();
        assert_eq!(known, [name(3)]);
        sleep(Duration::from_secs(parted)).await;
        switch.connect(2, 3);
        let took = peers[3].until(1, &record("late", 12), true).await;
        assert!(took < Duration::from_secs(8), "took {took:?}");
        assert!(!peers[3].knows(1, &record("c1", 1)));
        peers[0].until(4, &record("c4", 4), true).await;
        switch.assert_rest(4).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_joiner_does_not_hear_of_the_dead() {
    let switch = Switch::default();
    let mut peers = switch.line(3).await;
    sleep(Duration::from_secs(10)).await;
    switch.kill(peers.remove(0));
    sleep(Duration::from_secs(20)).await;
    let mut joiner = switch.start(9, 1, vec![]).await;
    switch.connect(9, 3);
    sleep(Duration::from_secs(30)).await;
    joiner.settle();
    let known: Vec<_> = joiner.table.peers.keys().copied().collect();
    assert_eq!(known, [name(2), name(3)]);
}

#[tokio::test(start_paused = true)]
async fn what_is_lost_on_the_way_is_repaired() {
    let switch = Switch::default();
    switch.lose_every(3);
    let mut peers = switch.line(4).await;
    for n in 0..40 {
        peers[0].gossip.publish(record("x", n)).await.unwrap();
        sleep(Duration::from_millis(70)).await;
        peers[0].gossip.withdraw(&record("x", n).topic()).await;
    }
    let last = record("last", 1);
    peers[0].gossip.publish(last.clone()).await.unwrap();
    let took = peers[3].until(1, &last, true).await;
    assert!(took < Duration::from_secs(10), "took {took:?}");
    peers[3].settle();
    assert_eq!(peers[3].table.peers[&name(1)].len(), 3);
    switch.assert_rest(4).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_does_not_listen_misses_nothing() {
    let switch = Switch::default();
    let mut peers = switch.line(3).await;
    let many = |n: u16| record(&format!("m{n}"), 1);
    for n in 0..3000 {
        peers[0].gossip.publish(many(n)).await.unwrap();
    }
    // Peer 2 takes nothing meanwhile, and still passes on to peer 3.
    peers[2].until(1, &many(2999), true).await;
    for n in 0..2000 {
        peers[0].gossip.withdraw(&many(n).topic()).await;
    }
    sleep(Duration::from_secs(5)).await;
    peers[1].until(1, &many(2999), true).await;
    peers[1].until(1, &many(1999), false).await;
    peers[1].listen(Duration::from_secs(1)).await;
    assert_eq!(peers[1].table.peers[&name(1)].len(), 1002);
    switch.assert_rest(3).await;
}

#[tokio::test(start_paused = true)]
async fn in_a_full_mesh_a_change_is_told_once_to_each() {
    let switch = Switch::default();
    let mut peers = switch.mesh(8).await;
    sleep(Duration::from_secs(10)).await;
    for peer in &mut peers {
        peer.settle();
        assert_eq!(peer.table.peers.len(), 7);
    }
    switch.assert_rest(8).await;
    sleep(Duration::from_millis(500)).await;
    switch.take_traffic();
    peers[0].gossip.publish(record("x", 1)).await.unwrap();
    for peer in &mut peers[1..] {
        peer.until(1, &record("x", 1), true).await;
    }
    sleep(Duration::from_millis(200)).await;
    let (messages, _) = switch.take_traffic();
    assert!(messages <= 7, "{messages} messages for one change");
}

#[tokio::test(start_paused = true)]
async fn what_others_could_not_take_is_not_published() {
    let switch = Switch::default();
    let mut peers = switch.line(2).await;
    let long = record(&"x".repeat(2000), 1);
    let refused = peers[0].gossip.publish(long).await;
    assert!(
        matches!(refused, Err(PublishError::Entry(_))),
        "{refused:?}"
    );
    let mut big = info(1);
    big.addresses = vec![([10, 0, 0, 1], 1).into(); 2000];
    let refused = peers[0].gossip.publish(Entry::Peer(big)).await;
    assert!(
        matches!(refused, Err(PublishError::Entry(_))),
        "{refused:?}"
    );
    peers[0].gossip.publish(record("ok", 1)).await.unwrap();
    peers[1].until(1, &record("ok", 1), true).await;
    assert!(peers[1].knows(1, &Entry::Peer(info(1))));
}

#[tokio::test(start_paused = true)]
async fn a_peer_publishes_no_more_than_others_show() {
    let entries = (0..MAX_ENTRIES - 1).map(|n| record(&n.to_string(), 1));
    let switch = Switch::default();
    let peer = switch.start(1, 1, entries.collect()).await;
    let refused = peer.gossip.publish(record("more", 1)).await;
    assert_eq!(refused, Err(PublishError::TooMany));
    peer.gossip.publish(record("0", 1)).await.unwrap();
    peer.gossip.withdraw(&record("0", 1).topic()).await;
    peer.gossip.publish(record("more", 1)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn settings_out_of_bounds_are_refused() {
    let start = async |config: GossipConfig, entries| {
        let (outbox, _outgoing) = mpsc::channel(1);
        Gossip::start(config, entries, outbox).await.err()
    };
    let config = |cluster: &str| GossipConfig::new(name(1), 1, cluster);
    let refused = start(config(&"x".repeat(MAX_CLUSTER + 1)), vec![]).await;
    assert!(matches!(refused, Some(StartError::Cluster(_))));
    let many = vec![record("a", 1); MAX_ENTRIES + 1];
    let refused = start(config("weft"), many).await;
    assert!(matches!(refused, Some(StartError::TooMany(_))));
    let refused = start(config("weft"), vec![record(&"a".repeat(3000), 1)]).await;
    assert!(matches!(refused, Some(StartError::Entry(_))));
    let mut never = config("weft");
    never.interval = Duration::ZERO;
    let refused = start(never, vec![]).await;
    assert!(matches!(refused, Some(StartError::Interval)));
}

#[tokio::test(start_paused = true)]
async fn when_chitchat_ends_all_is_withdrawn_and_the_node_is_told() {
    let switch = Switch::default();
    let mut peers = switch.line(2).await;
    peers[1].until(1, &record("c1", 1), true).await;
    peers[1].gossip.inner.chitchat.abort();
    sleep(Duration::from_secs(1)).await;
    peers[1].settle();
    assert!(peers[1].table.stopped);
    // What is left of it does no harm.
    peers[1].gossip.publish(record("x", 1)).await.unwrap();
    peers[1].gossip.handle_message(name(1), vec![0; 10]);
    peers[1].gossip.withdraw_all().await;
}

#[tokio::test(start_paused = true)]
async fn gossip_ends_with_its_last_handle() {
    let (outbox, mut outgoing) = mpsc::channel(1);
    let config = GossipConfig::new(name(1), 1, "weft");
    let (gossip, changes) = Gossip::start(config, vec![], outbox).await.unwrap();
    let other = gossip.clone();
    drop(gossip);
    sleep(Duration::from_secs(5)).await;
    assert!(!changes.is_closed());
    other.withdraw(&Topic::Peer).await;
    drop(other);
    assert_eq!(outgoing.recv().await, None);
    drop(changes);
}

#[tokio::test(start_paused = true)]
async fn peers_of_another_cluster_learn_nothing() {
    let (outbox, mut outgoing) = mpsc::channel(8);
    let config = GossipConfig::new(name(9), 1, "other");
    let entries = vec![Entry::Peer(info(1)), record("secret", 1)];
    let (gossip, mut changes) = Gossip::start(config, entries, outbox).await.unwrap();
    let switch = Switch::default();
    let mut peer = switch.start(1, 1, vec![]).await;
    gossip.set_neighbours([name(1)].into());
    let (inner, target) = (gossip.clone(), peer.gossip.clone());
    tokio::spawn(async move {
        while let Some(out) = outgoing.recv().await {
            target.handle_message(name(9), out.bytes);
        }
    });
    sleep(Duration::from_secs(20)).await;
    peer.settle();
    assert!(peer.table.peers.is_empty());
    assert!(changes.try_recv().is_err());
    drop(inner);
}

#[tokio::test(start_paused = true)]
async fn peers_that_only_hear_of_each_other_by_links_are_live_at_once() {
    let switch = Switch::default();
    let mut peers = switch.line(4).await;
    for (n, others) in [
        (1_u8, vec![2]),
        (2, vec![1, 3]),
        (3, vec![2, 4]),
        (4, vec![3]),
    ] {
        for other in others {
            let entry = link(name(other), true);
            peers[usize::from(n - 1)]
                .gossip
                .publish(entry)
                .await
                .unwrap();
        }
    }
    sleep(Duration::from_secs(10)).await;
    let mut joiner = switch.start(9, 1, vec![link(name(1), true)]).await;
    switch.connect(9, 1);
    peers[0].gossip.publish(link(name(9), true)).await.unwrap();
    let took = joiner.until(4, &record("c4", 4), true).await;
    assert!(took < Duration::from_millis(250), "took {took:?}");
    let took = peers[3].until(9, &Entry::Peer(info(1)), true).await;
    assert!(took < Duration::from_millis(500), "took {took:?}");
}

#[tokio::test(start_paused = true)]
async fn what_chitchat_writes_passes_unchanged() {
    let switch = Switch::default();
    switch.keep_traffic();
    let mut peers = switch.mesh(4).await;
    for n in 0..200 {
        peers[0]
            .gossip
            .publish(record(&format!("n{n}"), 1))
            .await
            .unwrap();
    }
    for n in 0..100 {
        let topic = record(&format!("n{n}"), 1).topic();
        peers[0].gossip.withdraw(&topic).await;
    }
    peers[3].until(1, &record("n99", 1), false).await;
    // Long enough for the tombstones to be collected and the keys to be told anew to a late peer.
    sleep(Duration::from_secs(330)).await;
    let _late = switch.start(5, 1, vec![]).await;
    switch.connect(5, 2);
    switch.assert_rest(5).await;
    let traffic = switch.kept_traffic();
    assert!(traffic.len() > 1000);
    for bytes in traffic {
        envelope::assert_unchanged(&bytes);
    }
}
