//! What a neighbour that is no weft, or a bad one, can do to us: nothing.

use std::time::Duration;

use chitchat::ChitchatId;
use tokio::time::sleep;
use weft_wire::PeerName;
use weft_wire::codec::Writer;

use super::switch::{Peer, Switch, name, record};
use crate::envelope::{MAX_KEYS, MAX_RUNS};
use crate::run::{Run, address};

/// Writes envelopes by hand.
struct Forge(Writer);

impl Forge {
    fn new(kind: u8) -> Self {
        let mut w = Writer::new();
        w.raw(&[0x53, 0xb0, 0, kind]);
        Self(w)
    }

    fn digest(mut self, ids: &[ChitchatId]) -> Self {
        let count = u16::try_from(ids.len()).unwrap();
        self.0.raw(&count.to_le_bytes());
        for id in ids {
            write_id(&mut self.0, id);
            self.0.raw(&[9; 24]);
        }
        self
    }

    fn cluster(mut self) -> Vec<u8> {
        write_text(&mut self.0, "weft");
        self.0.into_bytes()
    }

    fn delta(mut self, ops: &[u8]) -> Vec<u8> {
        for block in ops.chunks(60_000) {
            let len = u16::try_from(block.len()).unwrap();
            self.0.u8(2).raw(&len.to_le_bytes()).raw(block);
        }
        self.0.u8(0);
        self.0.into_bytes()
    }
}

fn write_text(w: &mut Writer, text: &str) {
    let len = u16::try_from(text.len()).unwrap();
    w.raw(&len.to_le_bytes()).raw(text.as_bytes());
}

fn write_id(w: &mut Writer, id: &ChitchatId) {
    write_text(w, &id.node_id);
    w.raw(&id.generation_id.to_le_bytes());
    match id.gossip_advertise_addr {
        std::net::SocketAddr::V4(v4) => w.u8(4).raw(&v4.ip().octets()),
        std::net::SocketAddr::V6(v6) => w.u8(6).raw(&v6.ip().octets()),
    };
    w.raw(&id.gossip_advertise_addr.port().to_le_bytes());
}

fn node(run: Run, from: u64) -> Vec<u8> {
    let mut w = Writer::new();
    write_id(w.u8(0), &run.id());
    w.raw(&0_u64.to_le_bytes()).raw(&from.to_le_bytes());
    w.into_bytes()
}

fn set(key: &str, value: &str, version: u64) -> Vec<u8> {
    let mut w = Writer::new();
    write_text(w.u8(1), key);
    write_text(&mut w, value);
    w.raw(&version.to_le_bytes()).u8(0);
    w.into_bytes()
}

fn max(version: u64) -> Vec<u8> {
    let mut w = Writer::new();
    w.u8(2).raw(&version.to_le_bytes());
    w.into_bytes()
}

fn run(n: u8, generation: u64) -> Run {
    Run {
        name: name(n),
        generation,
    }
}

/// Two peers that know each other, and a stranger's messages to the first in the other's name.
async fn attacked(messages: Vec<Vec<u8>>) -> Vec<Peer> {
    let switch = Switch::default();
    let mut peers = switch.line(2).await;
    peers[0].until(2, &record("c2", 2), true).await;
    for message in messages {
        peers[0].gossip.handle_message(name(2), message);
        sleep(Duration::from_millis(5)).await;
    }
    // Both still hear of what the other says.
    sleep(Duration::from_secs(1)).await;
    for n in [1_u8, 2] {
        let entry = record("after", n);
        let (here, there) = (usize::from(n - 1), usize::from(2 - n));
        peers[here].gossip.publish(entry.clone()).await.unwrap();
        let took = peers[there].until(n, &entry, true).await;
        assert!(took < Duration::from_secs(2), "took {took:?}");
    }
    peers
}

#[tokio::test(start_paused = true)]
async fn bytes_that_are_no_gossip_are_dropped_and_counted() {
    let mut messages = vec![vec![], vec![0], vec![0x53], vec![0xff; 70_000]];
    // Every beginning of a real message, and every byte of it turned over.
    let real = Forge::new(1).digest(&[run(3, 1).id()]);
    let ops = [node(run(3, 1), 0), set("peer", "x", 1), max(1)].concat();
    let real = real.delta(&ops);
    messages.extend((0..real.len()).map(|end| real[..end].to_vec()));
    let count = messages.len();
    let peers = attacked(messages).await;
    let counted = peers[0].gossip.counters();
    assert_eq!(counted.undecodable, u64::try_from(count).unwrap());
    let flipped = (0..real.len() * 8).map(|bit| {
        let mut message = real.clone();
        message[bit / 8] ^= 1 << (bit % 8);
        message
    });
    attacked(flipped.collect()).await;
}

#[tokio::test(start_paused = true)]
async fn operations_that_would_end_chitchat_are_left_out() {
    let them = run(2, 1);
    let harmful = [
        // A key that does not begin with ASCII.
        [node(them, 0), set("étranger", "", 900)].concat(),
        [node(them, 0), set("", "", 900)].concat(),
        // Versions that run backwards.
        [node(them, 0), set("a", "", 901), max(1)].concat(),
        [node(them, 0), set("a", "", 903), set("b", "", 902)].concat(),
        // Entries that would not fit beside the others ever after.
        [node(them, 0), set("a", &"x".repeat(60_000), 904)].concat(),
        [node(them, 0), set(&"k".repeat(60_000), "x", 905)].concat(),
        // Our own keys, up to the last version there is.
        [node(run(1, 1), 0), set("peer", "", u64::MAX)].concat(),
        [node(run(1, 1), 0), max(u64::MAX)].concat(),
        // Without a node, twice the same, from the future, of nobody.
        set("a", "", 1),
        max(3),
        [node(them, 0), node(them, 0)].concat(),
        [node(them, 1 << 40), set("a", "", 1 << 41)].concat(),
        [node(run(77, 1), 0), set("a", "", 1)].concat(),
    ];
    let messages = harmful.iter().map(|ops| Forge::new(2).delta(ops));
    let switch = Switch::default();
    let mut victim = switch.start(1, 1, vec![]).await;
    let _them = switch.start(2, 1, vec![]).await;
    switch.connect(1, 2);
    sleep(Duration::from_secs(1)).await;
    for message in messages {
        victim.gossip.handle_message(name(2), message);
        sleep(Duration::from_millis(50)).await;
    }
    victim.gossip.publish(record("still", 1)).await.unwrap();
    victim.gossip.withdraw_all().await;
    victim.settle();
    assert!(!victim.table.stopped);
    let counters = victim.gossip.counters();
    assert!(counters.refused >= 6, "{counters:?}");
    assert!(counters.undecodable >= 2, "{counters:?}");
}

#[tokio::test(start_paused = true)]
async fn no_mixture_of_operations_ends_chitchat() {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut pick = |below: u64| {
        // xorshift: the same mixture at each run.
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let versions = [0, 1, 2, 3, 7, 8, 1 << 20, u64::MAX - 1, u64::MAX];
    let keys = ["peer", "link/x", "a", "\u{20ac}", "", "name/%"];
    let runs = [run(1, 1), run(3, 1), run(3, 2), run(4, 1), run(1, 0)];
    let mut messages = vec![Forge::new(0).digest(&runs.map(Run::id)).cluster()];
    for _ in 0..3000 {
        let mut ops = Vec::new();
        for _ in 0..pick(8) {
            let version = versions[usize::try_from(pick(9)).unwrap()];
            let run = runs[usize::try_from(pick(5)).unwrap()];
            let key = keys[usize::try_from(pick(6)).unwrap()];
            ops.extend(match pick(4) {
                0 => node(run, version),
                1 => max(version),
                _ => set(key, "nickname=x", version),
            });
        }
        messages.push(Forge::new(2).delta(&ops));
    }
    let peers = attacked(messages).await;
    let counters = peers[0].gossip.counters();
    assert!(counters.received > 1000, "{counters:?}");
}

/// Digests that speak of this many peers nobody ever saw.
fn invented(count: u32) -> Vec<Vec<u8>> {
    let id = |n: u32| {
        let [_, a, b, c] = n.to_be_bytes();
        let name = PeerName::from_bytes([6, 6, 6, a, b, c]);
        let run = Run {
            name,
            generation: 1,
        };
        run.id()
    };
    let ids: Vec<_> = (0..count).map(id).collect();
    let digest = |ids: &[_]| Forge::new(0).digest(ids).cluster();
    ids.chunks(900).map(digest).collect()
}

/// How many runs chitchat keeps.
async fn held(peer: &Peer) -> usize {
    let count = |c: &mut chitchat::Chitchat| c.node_states().len();
    peer.gossip.inner.chitchat.with_chitchat(count).await
}

#[tokio::test(start_paused = true)]
async fn invented_peers_do_not_fill_us_up() {
    let peers = attacked(invented(9000)).await;
    let counters = peers[0].gossip.counters();
    let surplus = u64::try_from(9000 - MAX_RUNS).unwrap();
    assert!(counters.refused >= surplus, "{counters:?}");
    assert!(held(&peers[0]).await <= MAX_RUNS);
}

#[tokio::test(start_paused = true)]
async fn invented_peers_are_not_shown_and_are_forgotten() {
    let mut peers = attacked(invented(20)).await;
    peers[0].settle();
    assert_eq!(peers[0].table.peers.len(), 1);
    assert_eq!(held(&peers[0]).await, 22);
    sleep(Duration::from_secs(400)).await;
    assert_eq!(held(&peers[0]).await, 2);
    peers[0].settle();
    assert_eq!(peers[0].table.peers.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn ids_no_weft_has_are_left_out() {
    let good = run(2, 1).id();
    let bad = [
        ChitchatId::new("x".repeat(60_000), 1, address(name(3))),
        ChitchatId::new("020000000003", 1, ([10, 0, 0, 1], 1).into()),
        ChitchatId::new("020000000004", 1, address(name(3))),
    ];
    let messages = bad.map(|bad| Forge::new(0).digest(&[good.clone(), bad]).cluster());
    let peers = attacked(messages.into()).await;
    assert_eq!(peers[0].gossip.counters().refused, 3);
    assert_eq!(held(&peers[0]).await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_block_that_inflates_a_thousandfold_is_cut_short() {
    let zeros = zstd::bulk::compress(&[0; 65_535], 19).unwrap();
    let mut bomb = vec![0x53, 0xb0, 0, 2];
    while bomb.len() + zeros.len() + 4 < 65_000 {
        bomb.push(1);
        bomb.extend(u16::try_from(zeros.len()).unwrap().to_le_bytes());
        bomb.extend(&zeros);
    }
    bomb.push(0);
    let mut damaged = bomb.clone();
    damaged[8] ^= 0xff;
    let peers = attacked(vec![bomb, damaged]).await;
    assert_eq!(peers[0].gossip.counters().undecodable, 2);
}

#[tokio::test(start_paused = true)]
async fn a_peer_with_too_many_keys_is_cut_off_and_no_one_else() {
    let mut messages = vec![Forge::new(0).digest(&[run(3, 1).id()]).cluster()];
    let mut version = 1;
    while version < 70_000 {
        let mut ops = node(run(3, 1), 0);
        for _ in 0..1_000 {
            ops.extend(set(&format!("junk/{version}"), "", version));
            version += 1;
        }
        messages.push(Forge::new(2).delta(&ops));
    }
    let peers = attacked(messages).await;
    let count = |c: &mut chitchat::Chitchat| {
        let states = c.node_states().values();
        states.map(|s| s.key_values().count()).max().unwrap_or(0)
    };
    let held = peers[0].gossip.inner.chitchat.with_chitchat(count).await;
    assert!(held <= MAX_KEYS, "{held} keys");
    assert!(peers[0].gossip.counters().refused > 0);
}

#[tokio::test(start_paused = true)]
async fn more_messages_than_can_be_handled_are_dropped_and_counted() {
    let switch = Switch::default();
    let peer = switch.start(1, 1, vec![]).await;
    for _ in 0..1000 {
        peer.gossip.handle_message(name(2), vec![0; 10]);
    }
    let counters = peer.gossip.counters();
    assert_eq!(counters.inbox_full, 1000 - 128);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(peer.gossip.counters().undecodable, 128);
}
