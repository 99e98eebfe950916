//! One end of the fast datapath against a peer that does as it is told, on a virtual clock.

use aws_lc_rs::hmac::{self, HMAC_SHA256};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

use super::*;

const US: PeerName = PeerName::from_bytes([2, 0, 0, 0, 0, 1]);
const PEER: PeerName = PeerName::from_bytes([2, 0, 0, 0, 0, 2]);
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
const MTU: u16 = 1376;
const PORT: u16 = 6784;
const KEY: [u8; 32] = [7; 32];

struct World {
    fast: Fast,
    terms: Terms,
    support: Support,
    rng: ChaCha20Rng,
    now: Instant,
    start: Instant,
    connected: bool,
    /// Whether beats get through.
    carries: bool,
    /// Of which a number in every so many is lost.
    loses: Option<u64>,
    /// Whether another way leads to the peer.
    elsewhere: bool,
    /// Answers on their way.
    answers: VecDeque<(Instant, u64)>,
    sent: u64,
    said: Vec<Word>,
    carried: Vec<(Duration, Carrier)>,
    /// How often it was said again that the kernel carries.
    confirmed: u32,
    admitted: Option<Ipv4Addr>,
}

impl World {
    fn new() -> Self {
        let now = crate::clock::start();
        Self {
            fast: Fast::new(PEER),
            terms: Terms {
                conn: ConnId(0),
                addr: Some(HOST.into()),
                we_trust: true,
                they_trust: true,
                our_mtu: MTU,
                their_mtu: MTU,
                established: true,
            },
            support: Ok(PORT),
            rng: ChaCha20Rng::seed_from_u64(1),
            now,
            start: now,
            connected: false,
            carries: true,
            loses: None,
            elsewhere: false,
            answers: VecDeque::new(),
            sent: 0,
            said: vec![],
            carried: vec![],
            confirmed: 0,
            admitted: None,
        }
    }

    /// The kernel carries frames.
    fn up() -> Self {
        let mut world = Self::new();
        world.connect();
        world.run_ms(2000);
        assert!(world.by_kernel());
        world
    }

    fn connect(&mut self) {
        self.terms.conn = ConnId(self.terms.conn.0 + 1);
        self.connected = true;
        self.answers.clear();
        self.update();
        self.hear(Word::Open {
            port: PORT,
            key: KEY,
        });
    }

    fn break_off(&mut self, broke: bool) {
        self.connected = false;
        self.fast.handle_gone(broke, self.now);
        self.work();
    }

    fn update(&mut self) {
        self.fast
            .update(&self.terms, &self.support, &mut self.rng, self.now);
        self.work();
    }

    fn hear(&mut self, word: Word) {
        self.fast.handle_word(word, self.now);
        self.work();
    }

    fn work(&mut self) {
        while let Some(effect) = self.fast.poll_effect() {
            match effect {
                Effect::Say(conn, word) => {
                    assert!(self.connected && conn == self.terms.conn);
                    if matches!(word, Word::Open { .. }) {
                        assert!(self.admitted.is_some(), "open before anybody is let in");
                    }
                    self.said.push(word);
                }
                Effect::Admit(addr) => assert_eq!(self.admitted.replace(addr), None),
                Effect::Bar(addr) => assert_eq!(self.admitted.take(), Some(addr)),
                Effect::Beat { addr, port, frame } => self.take_beat(addr, port, &frame),
                Effect::Carry(Carrier::Kernel { .. }) if self.by_kernel() => self.confirmed += 1,
                Effect::Carry(carrier) => {
                    assert_ne!(self.carried.last().map(|(_, last)| *last), Some(carrier));
                    self.carried.push((self.now - self.start, carrier));
                }
            }
        }
    }

    fn take_beat(&mut self, addr: Ipv4Addr, port: u16, frame: &[u8]) {
        assert_eq!((Some(IpAddr::from(addr)), port), (self.terms.addr, PORT));
        assert_eq!(frame.len(), usize::from(MTU) + 14);
        assert_eq!(frame[..6], PEER.to_bytes());
        let (beat, tag) = Beat::parse(frame).unwrap();
        let key = hmac::Key::new(HMAC_SHA256, &KEY);
        assert!(hmac::verify(&key, &beat.signed(), &tag).is_ok());
        assert_eq!(beat.sender, US);
        self.sent += 1;
        let lost = self
            .loses
            .is_some_and(|every| self.sent.is_multiple_of(every));
        if self.carries && !lost {
            self.answers
                .push_back((self.now + Duration::from_millis(10), beat.number));
        }
    }

    fn run_ms(&mut self, ms: u64) {
        let end = self.now + Duration::from_millis(ms);
        loop {
            let answer = self.answers.front().map(|(at, _)| *at);
            let next = [self.fast.poll_timeout(), answer]
                .into_iter()
                .flatten()
                .min();
            // What is over is taken away, and has nothing more to do.
            let Some(next) = next.filter(|next| *next <= end && !self.fast.is_over(self.now))
            else {
                break;
            };
            self.now = self.now.max(next);
            match self
                .answers
                .front()
                .copied()
                .filter(|(at, _)| *at <= self.now)
            {
                Some((_, number)) => {
                    self.answers.pop_front();
                    self.hear(Word::Came(number));
                }
                None => self.fast.handle_timeout(US, MTU, self.elsewhere, self.now),
            }
            self.work();
        }
        self.now = end;
    }

    fn by_kernel(&self) -> bool {
        let kernel = Carrier::Kernel {
            addr: HOST,
            port: PORT,
        };
        self.carried.last().is_some_and(|(_, last)| *last == kernel)
    }

    fn words(&self) -> String {
        match self.fast.carriage() {
            Carriage::Kernel => "kernel".to_owned(),
            Carriage::Sealed(why) => why.unwrap_or_default(),
        }
    }
}

/// Where the machine can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// One of the two does not trust.
    Sealed,
    /// Nothing was answered so far.
    Asking,
    Kernel,
    /// It was there, and beats are not answered any more.
    Fallen,
    /// The connection broke off.
    Held,
    /// It did, and there is a new one whose beats are not answered yet.
    HeldAsking,
}

/// What can happen there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Happening {
    BeatsAnswered,
    BeatsLost,
    PeerShuts,
    TrustEnds,
    SupportEnds,
    MtuDiffers,
    AddressMoves,
    AddressIsIpv6,
    NotEstablished,
    Breaks,
    EndsInOrder,
    Reconnects,
    AnotherWay,
    AMinutePasses,
}

const STATES: [State; 6] = [
    State::Sealed,
    State::Asking,
    State::Kernel,
    State::Fallen,
    State::Held,
    State::HeldAsking,
];
const HAPPENINGS: [Happening; 14] = [
    Happening::BeatsAnswered,
    Happening::BeatsLost,
    Happening::PeerShuts,
    Happening::TrustEnds,
    Happening::SupportEnds,
    Happening::MtuDiffers,
    Happening::AddressMoves,
    Happening::AddressIsIpv6,
    Happening::NotEstablished,
    Happening::Breaks,
    Happening::EndsInOrder,
    Happening::Reconnects,
    Happening::AnotherWay,
    Happening::AMinutePasses,
];

fn bring_to(state: State) -> World {
    let mut world = World::new();
    match state {
        State::Sealed => {
            world.terms.they_trust = false;
            world.connect();
        }
        State::Asking => {
            world.carries = false;
            world.connect();
            world.run_ms(300);
        }
        State::Kernel => world = World::up(),
        State::Fallen => {
            world = World::up();
            world.carries = false;
            world.run_ms(10_000);
        }
        State::Held => {
            world = World::up();
            world.break_off(true);
        }
        State::HeldAsking => {
            world = World::up();
            world.break_off(true);
            world.run_ms(1000);
            world.carries = false;
            world.connect();
            world.run_ms(100);
        }
    }
    world
}

/// Makes it happen and lets a moment pass; `None` where it cannot happen.
fn happen(world: &mut World, happening: Happening) -> Option<()> {
    let needs_connection = match happening {
        Happening::Reconnects | Happening::AnotherWay | Happening::AMinutePasses => false,
        Happening::BeatsAnswered
        | Happening::BeatsLost
        | Happening::PeerShuts
        | Happening::TrustEnds
        | Happening::SupportEnds
        | Happening::MtuDiffers
        | Happening::AddressMoves
        | Happening::AddressIsIpv6
        | Happening::NotEstablished
        | Happening::Breaks
        | Happening::EndsInOrder => true,
    };
    if needs_connection && !world.connected {
        return None;
    }
    match happening {
        Happening::BeatsAnswered => world.carries = true,
        Happening::BeatsLost => world.carries = false,
        Happening::PeerShuts => world.hear(Word::Shut("no".to_owned())),
        Happening::TrustEnds => world.terms.we_trust = false,
        Happening::SupportEnds => world.support = Err("no nft".to_owned()),
        Happening::MtuDiffers => world.terms.their_mtu = 9000,
        Happening::AddressMoves => world.terms.addr = Some(ELSEWHERE.into()),
        Happening::AddressIsIpv6 => world.terms.addr = Some("2001:db8::2".parse().unwrap()),
        Happening::NotEstablished => world.terms.established = false,
        Happening::Breaks => world.break_off(true),
        Happening::EndsInOrder => world.break_off(false),
        Happening::Reconnects => {
            world.carries = true;
            world.connect();
        }
        Happening::AnotherWay => world.elsewhere = true,
        Happening::AMinutePasses => world.run_ms(60_000),
    }
    if world.connected {
        world.update();
    }
    world.run_ms(6000);
    Some(())
}

/// Whether the kernel carries frames to the peer's old address after that, and who is let in.
fn expected(state: State, happening: Happening) -> (bool, Option<Ipv4Addr>) {
    use Happening as H;
    use State as S;
    let carried = match (state, happening) {
        (S::Sealed, _) => false,
        // Where it was when the connection broke off, it goes on for a minute, unless there is better.
        (S::Kernel, H::Breaks) | (S::Held, H::Reconnects) => true,
        (S::Held, H::AnotherWay | H::AMinutePasses) => false,
        // On a connection nothing counts but answers.
        (S::Asking | S::Fallen, H::BeatsAnswered | H::Reconnects) => true,
        (S::HeldAsking, H::BeatsAnswered | H::Reconnects) => true,
        (S::Kernel, H::BeatsAnswered | H::Reconnects | H::AnotherWay | H::AMinutePasses) => true,
        (S::HeldAsking, H::Breaks) => true,
        (S::Asking | S::Kernel | S::Fallen | S::Held | S::HeldAsking, _) => false,
    };
    let admitted = match (state, happening) {
        (S::Sealed, _) => None,
        (_, H::TrustEnds | H::SupportEnds | H::MtuDiffers | H::AddressIsIpv6) => None,
        (_, H::EndsInOrder) => None,
        (_, H::AddressMoves) => Some(ELSEWHERE),
        (S::Held, H::AMinutePasses) => None,
        (S::Asking | S::Kernel | S::Fallen | S::Held | S::HeldAsking, _) => Some(HOST),
    };
    (carried, admitted)
}

#[test]
fn every_transition_is_as_the_table_says() {
    let mut seen = 0;
    for state in STATES {
        for happening in HAPPENINGS {
            let mut world = bring_to(state);
            if happen(&mut world, happening).is_none() {
                continue;
            }
            seen += 1;
            let found = (world.by_kernel(), world.admitted);
            let expected = expected(state, happening);
            assert_eq!(
                found,
                expected,
                "{state:?}, {happening:?}: {}",
                world.words()
            );
            let kernel = world.fast.carriage() == Carriage::Kernel;
            let moved = happening == Happening::AddressMoves;
            assert!(kernel == found.0 || moved, "{state:?}, {happening:?}");
        }
    }
    assert_eq!(seen, 5 * HAPPENINGS.len() + 3);
}

#[test]
fn it_takes_three_answers_and_frames_that_may_flow() {
    let mut world = World::new();
    world.terms.established = false;
    world.connect();
    world.run_ms(5000);
    assert!(world.carried.is_empty());
    assert_eq!(world.words(), "not proven yet");
    world.terms.established = true;
    world.update();
    assert!(world.by_kernel());
    let mut quick = World::new();
    quick.connect();
    quick.run_ms(215);
    assert!(
        quick.by_kernel(),
        "three beats 100 ms apart, and a round trip"
    );
}

#[test]
fn nothing_is_said_before_the_address_is_proven() {
    let mut world = World::new();
    world.terms.addr = None;
    world.connect();
    world.run_ms(5000);
    assert_eq!((world.said.len(), world.sent, world.admitted), (0, 0, None));
    world.terms.addr = Some(HOST.into());
    world.update();
    world.run_ms(1000);
    assert!(world.by_kernel());
}

#[test]
fn a_cut_is_noticed_within_four_seconds_and_its_end_too() {
    let mut world = World::up();
    world.run_ms(60_000);
    for _ in 0..3 {
        let cut = world.now - world.start;
        world.carries = false;
        world.run_ms(4000);
        assert!(!world.by_kernel());
        assert!(world.words().contains("1426 bytes"), "{}", world.words());
        assert!(world.carried.last().unwrap().0 - cut > Duration::from_secs(2));
        world.run_ms(120_000);
        world.carries = true;
        world.run_ms(6000);
        assert!(world.by_kernel());
        world.run_ms(61_000);
    }
}

#[test]
fn on_a_way_that_loses_one_in_five_it_stays() {
    let mut world = World::new();
    world.loses = Some(5);
    world.connect();
    world.run_ms(3_600_000);
    assert!(world.by_kernel());
    assert_eq!(world.carried.len(), 1);
}

#[test]
fn a_way_that_comes_and_goes_is_not_taken_each_time() {
    let mut world = World::up();
    for _ in 0..60 {
        world.carries = false;
        world.run_ms(5000);
        world.carries = true;
        world.run_ms(5000);
    }
    // To and fro each time would be 120.
    assert!(world.carried.len() < 12, "{}", world.carried.len());
    world.run_ms(60_000);
    assert!(world.by_kernel());
}

#[test]
fn who_is_held_goes_on_without_a_word_when_it_is_back() {
    let mut world = World::up();
    world.break_off(true);
    world.run_ms(20_000);
    world.connect();
    world.run_ms(10_000);
    assert_eq!((world.carried.len(), world.confirmed), (1, 1));
    assert!(world.by_kernel());
    // With a new key, and the old one is of no use.
    let open = |word: &&Word| matches!(word, Word::Open { .. });
    let keys: Vec<_> = world.said.iter().filter(open).collect();
    assert_eq!(keys.len(), 2);
    assert_ne!(keys[0], keys[1]);
}

#[test]
fn a_beat_is_answered_once_and_only_if_it_is_whole_and_meant_for_us() {
    let mut world = World::up();
    let Some(Word::Open { key, .. }) = world.said.first().cloned() else {
        panic!("{:?}", world.said);
    };
    let sign = |beat: Beat, key: &[u8]| -> [u8; TAG_LEN] {
        let tag = hmac::sign(&hmac::Key::new(HMAC_SHA256, key), &beat.signed());
        tag.as_ref().try_into().unwrap()
    };
    let beat = |number, len| Beat {
        sender: PEER,
        number,
        len,
    };
    let whole = Beat::len_for(MTU);
    let mut take = |beat: Beat, tag: [u8; TAG_LEN]| {
        world.fast.handle_beat(beat, &tag, MTU);
        world.fast.poll_effect()
    };
    let came = |number| Some(Effect::Say(ConnId(1), Word::Came(number)));
    assert_eq!(take(beat(1, whole), sign(beat(1, whole), &key)), came(1));
    assert_eq!(
        take(beat(1, whole), sign(beat(1, whole), &key)),
        None,
        "a replay"
    );
    assert_eq!(
        take(beat(2, whole), sign(beat(2, whole), &KEY)),
        None,
        "another key"
    );
    assert_eq!(
        take(beat(3, whole), sign(beat(2, whole), &key)),
        None,
        "another number"
    );
    assert_eq!(
        take(beat(4, whole - 1), sign(beat(4, whole - 1), &key)),
        None,
        "cut short"
    );
    assert_eq!(take(beat(5, whole), sign(beat(5, whole), &key)), came(5));
    assert_eq!(
        take(beat(4, whole), sign(beat(4, whole), &key)),
        None,
        "overtaken"
    );
}

#[test]
fn answers_to_what_was_not_asked_count_for_nothing() {
    let mut world = World::new();
    world.carries = false;
    world.connect();
    for number in [0, 1, 1, 1, 99, 100, 101, u64::MAX] {
        world.hear(Word::Came(number));
    }
    assert!(world.carried.is_empty());
}

#[test]
fn each_reason_is_said_in_words() {
    type Change = fn(&mut World);
    let cases: [(Change, &str); 7] = [
        (
            |w| (w.terms.we_trust, w.terms.they_trust) = (false, false),
            "",
        ),
        (|w| w.terms.we_trust = false, "by the peer only"),
        (|w| w.terms.they_trust = false, "by us only"),
        (|w| w.support = Err("no nft".to_owned()), "no nft"),
        (
            |w| w.terms.their_mtu = 9000,
            "--mtu is 1376 here and 9000 there",
        ),
        (
            |w| w.terms.addr = Some("2001:db8::2".parse().unwrap()),
            "IPv4",
        ),
        (
            |w| w.hear(Word::Shut("no nft".to_owned())),
            "peer says: no nft",
        ),
    ];
    for (change, words) in cases {
        let mut world = World::new();
        world.connect();
        change(&mut world);
        world.update();
        world.run_ms(1);
        assert!(
            world.words().contains(words),
            "{:?}: {words}",
            world.words()
        );
        assert_eq!(world.words().is_empty(), words.is_empty());
    }
}

#[test]
fn the_peer_is_told_why_if_it_waits_for_us() {
    let mut world = World::new();
    world.support = Err("no nft".to_owned());
    world.connect();
    world.update();
    assert_eq!(world.said, [Word::Shut("no nft".to_owned())]);
    // One that does not trust us does not wait.
    let mut alone = World::new();
    alone.terms.they_trust = false;
    alone.connect();
    assert_eq!(alone.said, []);
}
