//! What is fuzzed: every place where bytes from outside become meaning.
//!
//! Each target is a plain function, so that it runs under libFuzzer (`cargo xtask fuzz`) and, on the
//! corpus below and on seeded changes of it, in every `cargo test` (`tests/fuzzing.rs`). A target
//! fails by panicking: on its own assertions, or because what it calls does.

use std::net::SocketAddr;
use std::time::Instant;

use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use weft_dns::{Domain, NameTable, Transport, View};
use weft_gossip::{Entry, Gossip};
use weft_ipam::{Allocator, Init, RequestId, Saved};
use weft_router::session::RecvSession;
use weft_router::{Config, Event, Identity, Router};
use weft_wire::control::{Control, Hello, Preamble, Refusal, RefusalReason, Routed, Suite};
use weft_wire::message::{FloodHeader, FragmentHeader, Heartbeat, Message, Probe, UnicastHeader};
use weft_wire::packet::{Counter, Header, OVERHEAD, ReceiverIndex, TAG_LEN};
use weft_wire::relayed::{Part, Relayed};
use weft_wire::{Network, Nickname, PeerName, PeerUid};

/// A target with inputs that are right, to begin from.
pub struct Target {
    /// Its name, and that of its libFuzzer binary.
    pub name: &'static str,
    /// What runs on one input.
    pub run: fn(&[u8]),
    /// Inputs that get deep into it.
    pub corpus: fn() -> Vec<Vec<u8>>,
}

/// Every target.
pub const ALL: &[Target] = &[
    Target {
        name: "packet",
        run: packet,
        corpus: packet_corpus,
    },
    Target {
        name: "message",
        run: message,
        corpus: message_corpus,
    },
    Target {
        name: "control",
        run: control,
        corpus: control_corpus,
    },
    Target {
        name: "router",
        run: router,
        corpus: router_corpus,
    },
    Target {
        name: "gossip",
        run: gossip,
        corpus: gossip_corpus,
    },
    Target {
        name: "ring",
        run: ring,
        corpus: ring_corpus,
    },
    Target {
        name: "query",
        run: query,
        corpus: query_corpus,
    },
];

const US: PeerName = PeerName::from_bytes([2, 0, 0, 0, 0, 1]);
const THEM: PeerName = PeerName::from_bytes([2, 0, 0, 0, 0, 2]);

/// A datagram: its header is read back as it was, and nothing opens without the key.
pub fn packet(data: &[u8]) {
    if let Ok(header) = Header::parse(data) {
        assert_eq!(header.emit(), data[..header.emit().len()]);
    }
    let mut session = RecvSession::new(Suite::Aes256Gcm, &[7; 32]);
    assert!(
        session.open(&mut data.to_vec()).is_err(),
        "opened without having been sealed"
    );
}

fn packet_corpus() -> Vec<Vec<u8>> {
    let header = Header {
        receiver: ReceiverIndex(7),
        counter: Counter(1 << 40),
    };
    vec![[&header.emit()[..], &[0; TAG_LEN + 40]].concat()]
}

/// An opened message: what parses is written back as it was.
pub fn message(data: &[u8]) {
    let again = match Message::parse(data) {
        Ok(Message::Unicast(header, frame)) => [&header.emit()[..], frame].concat(),
        Ok(Message::Flood(header, frame)) => [&header.emit()[..], frame].concat(),
        Ok(Message::Heartbeat(heartbeat)) => heartbeat.emit().to_vec(),
        Ok(Message::Fragment(header, piece)) => [&header.emit()[..], piece].concat(),
        Ok(Message::Probe(probe)) => {
            let mut bytes = probe.emit().to_vec();
            if !probe.reply {
                bytes.resize(usize::from(probe.size) - OVERHEAD, 0);
            }
            bytes
        }
        Err(_) => return,
    };
    assert_eq!(again, data);
}

fn message_corpus() -> Vec<Vec<u8>> {
    let unicast = UnicastHeader {
        hops: 3,
        unfinished: false,
        network: Network::DEFAULT,
        source: US,
        destination: THEM,
    };
    let flood = FloodHeader {
        hops: 3,
        network: Network::DEFAULT,
        origin: US,
        number: 9,
    };
    let fragment = FragmentHeader {
        index: 0,
        count: 2,
        size: 60,
        number: 4,
    };
    let probe = Probe {
        reply: false,
        size: 140,
        number: 6,
    };
    vec![
        [&fragment.emit()[..], &[3; 60]].concat(),
        [&probe.emit()[..], &[0; 100]].concat(),
        Probe {
            reply: true,
            ..probe
        }
        .emit()
        .to_vec(),
        [&unicast.emit()[..], &[1; 60]].concat(),
        [&flood.emit()[..], &[2; 60]].concat(),
        Heartbeat {
            reply: true,
            stamp: 5,
        }
        .emit()
        .to_vec(),
    ]
}

/// A control message: what parses is written so that it parses to the same.
pub fn control(data: &[u8]) {
    if let Ok(message) = Control::parse(data) {
        assert_eq!(Control::parse(&message.emit()).as_ref(), Ok(&message));
    }
}

fn control_corpus() -> Vec<Vec<u8>> {
    let hello = Hello {
        name: THEM,
        nickname: Nickname::new("host2"),
        uid: PeerUid(1),
        started: 2,
        port: 6783,
        aes: true,
        trusts: false,
        mtu: 1376,
        pools: vec!["10.32.0.0/12".to_owned()],
        version: "0.1.0".to_owned(),
    };
    let refusal = Refusal {
        reason: RefusalReason::Limit,
        text: "enough".to_owned(),
    };
    let routed = Routed {
        source: US,
        destination: THEM,
        hops: 16,
        body: vec![1, 2, 3],
    };
    let relayed = Relayed {
        source: US,
        destination: THEM,
        hops: 16,
        stream: 7,
        by_dialler: true,
        part: Part::Open(vec![1, 2, 3]),
    };
    [
        Control::Hello(hello),
        Control::Refusal(refusal),
        Control::Routed(routed),
        Control::Relayed(relayed),
        Control::Ready(true),
    ]
    .map(|message| message.emit())
    .to_vec()
}

/// Bytes from a stranger on the control port: the router answers or ends it, and keeps no connection
/// that it was not told of.
pub fn router(data: &[u8]) {
    let now = Instant::now();
    let identity = Identity::generate(&mut ChaCha20Rng::seed_from_u64(1)).expect("a key pair");
    let config = Config {
        name: identity.peer_name(),
        identity,
        nickname: Nickname::new("host1"),
        uid: PeerUid(1),
        started: 1,
        psk: None,
        cluster: "weft".to_owned(),
        port: 6783,
        mtu: 1376,
        version: "0.1.0".to_owned(),
        pools: vec!["10.32.0.0/12".to_owned()],
        conn_limit: 10,
        discovery: true,
        trusted: Vec::new(),
        aes: true,
    };
    let mut router = Router::new(config, [3; 32], now);
    let stranger = SocketAddr::from(([198, 18, 0, 9], 40_000));
    let Some(conn) = router.handle_accepted(stranger, now) else {
        panic!("the first connection was not taken");
    };
    for chunk in data.chunks(97) {
        router.handle_bytes(conn, chunk, now);
    }
    while let Some(event) = router.poll_event() {
        assert!(
            !matches!(event, Event::Connected { .. }),
            "a stranger got in"
        );
    }
}

fn router_corpus() -> Vec<Vec<u8>> {
    let preamble = Preamble {
        oldest: 1,
        newest: 1,
        password: false,
        cluster: [0; 8],
    };
    // A preamble, then a handshake chunk of 32 bytes.
    vec![[preamble.emit(), vec![0, 33, 0], vec![9; 32]].concat()]
}

/// A gossip message from a neighbour, and one published entry: gossip goes on, and answers in bounds.
pub fn gossip(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (key, value) = text.split_once('\n').unwrap_or((&text, ""));
    if let Ok(Some(entry)) = Entry::parse(key, value) {
        let (key, value) = entry.encode().expect("what was read can be written");
        assert_eq!(Entry::parse(&key, &value), Ok(Some(entry)));
    }
    thread_local! {
        static RUNNING: std::cell::RefCell<(Gossip, Instant)> = running().into();
    }
    RUNNING.with_borrow_mut(|(gossip, now)| {
        gossip.handle_message(THEM, data, *now);
        *now += weft_gossip::TICK;
        gossip.handle_timeout(*now);
        while let Some(event) = gossip.poll_event() {
            if let weft_gossip::Event::Send { to, bytes } = event {
                assert!(to == THEM && bytes.len() <= 65_507, "what it sends");
            }
        }
    });
}

/// Gossip that goes on from input to input, as it does in a router.
fn running() -> (Gossip, Instant) {
    let now = Instant::now();
    let mut gossip = Gossip::new(US, 1, Vec::new(), now).expect("gossip starts");
    gossip.set_neighbours(&[THEM].into(), now);
    (gossip, now)
}

fn gossip_corpus() -> Vec<Vec<u8>> {
    let name = Entry::Name {
        fqdn: "web.weft.local.".to_owned(),
        container: "c1".to_owned(),
        addr: [10, 32, 0, 1].into(),
    };
    let (key, value) = name.encode().expect("an entry");
    vec![
        format!("{key}\n{value}").into_bytes(),
        b"mac/0/02:00:00:00:00:01\nregistered=1 addresses=10.32.0.1,fd00::1".to_vec(),
        b"ring/10.32.0.0%2F12\ndigest=00000000000000000000000000000000".to_vec(),
        [vec![1, 0], vec![7; 16]].concat(),
        [vec![1, 2], vec![0xff; 8], vec![2, 0, 0, 0, 0, 9, 1, 3, 0]].concat(),
        // One run with one entry.
        [vec![
            1, 4, 0, 2, 0, 0, 0, 0, 9, 1, 1, 0, 0, 1, 1, 1, 1, b'k', 1, b'v', 0,
        ]]
        .concat(),
    ]
}

/// An address message from a peer, and a saved state: nothing is believed that does not fit.
pub fn ring(data: &[u8]) {
    let now = Instant::now();
    let pool = "10.32.0.0/24".parse().expect("a subnet");
    let config = weft_ipam::Config {
        us: US,
        pool,
        default_subnet: pool,
        init: Init::Seed(vec![US, THEM]),
        targets: 1,
        reserved: Vec::new(),
        times: weft_ipam::Times::DEFAULT,
        rules: weft_ipam::Rules::KEPT,
        uptime: std::time::Duration::ZERO,
    };
    let mut allocator = Allocator::new(config, None, [5; 32], now).expect("an allocator");
    allocator.set_reachable([THEM].into(), now);
    allocator.prime(RequestId(1), now);
    let _ = allocator.handle_message(THEM, data, now);
    while allocator.poll_event().is_some() {}
    let owned: u128 = allocator
        .status()
        .owners
        .iter()
        .map(|owner| owner.addresses)
        .sum();
    assert_eq!(owned, 256, "space was lost or made");
    if let Ok(saved) = Saved::parse(data) {
        assert_eq!(Saved::parse(&saved.emit()), Ok(saved));
    }
}

fn ring_corpus() -> Vec<Vec<u8>> {
    let now = Instant::now();
    let pool = "10.32.0.0/24".parse().expect("a subnet");
    let config = weft_ipam::Config {
        us: THEM,
        pool,
        default_subnet: pool,
        init: Init::Seed(vec![US, THEM]),
        targets: 1,
        reserved: Vec::new(),
        times: weft_ipam::Times::DEFAULT,
        rules: weft_ipam::Rules::KEPT,
        uptime: std::time::Duration::ZERO,
    };
    let mut allocator = Allocator::new(config, None, [6; 32], now).expect("an allocator");
    allocator.set_reachable([US].into(), now);
    allocator.handle_connected(US, now);
    allocator.prime(RequestId(1), now);
    let mut corpus = Vec::new();
    while let Some(event) = allocator.poll_event() {
        match event {
            weft_ipam::Event::Send { bytes, .. } => corpus.push(bytes),
            weft_ipam::Event::Persist(saved) => corpus.push(saved.emit()),
            weft_ipam::Event::Answer { .. }
            | weft_ipam::Event::Announce { .. }
            | weft_ipam::Event::Joined(_)
            | weft_ipam::Event::Forget(_)
            | weft_ipam::Event::Synced { .. }
            | weft_ipam::Event::Conflict { .. } => {}
        }
    }
    assert!(corpus.len() > 1, "nothing to begin from");
    corpus
}

/// A DNS query: whatever it is, there is at most one answer, and it is one.
pub fn query(data: &[u8]) {
    let domain: Domain = "weft.local.".parse().expect("a domain");
    let mut table = NameTable::new(US);
    let name = weft_dns::Name::new("web", &domain).expect("a name");
    table
        .add_own(name, "c1", [10, 32, 0, 1].into())
        .expect("room for one");
    let view = View {
        table: &table,
        domain: &domain,
        ttl: 1,
    };
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    for transport in [Transport::Udp, Transport::Tcp] {
        if let weft_dns::Answer::Reply { bytes, .. } =
            weft_dns::answer(data, transport, &view, &mut rng)
        {
            assert_eq!(bytes[..2], data[..2], "the answer to another question");
            assert_ne!(bytes[2] & 0x80, 0, "an answer that is a question");
        }
    }
}

fn query_corpus() -> Vec<Vec<u8>> {
    let mut a = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    a.extend(b"\x03web\x04weft\x05local\x00\x00\x01\x00\x01");
    let mut ptr = vec![0x12, 0x35, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    ptr.extend(b"\x011\x010\x0232\x0210\x07in-addr\x04arpa\x00\x00\x0c\x00\x01");
    ptr.extend([0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 0]);
    vec![a, ptr]
}
