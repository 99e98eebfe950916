//! A data session: one key that seals the packets towards one peer, or opens those from it.
//!
//! A pair of neighbours has a key in each direction. The receiver chose it and told it over the
//! control connection ([`weft_wire::control::SessionKey`]); with it go two halves that never meet:
//!
//! * [`SendSession`] counts and seals. Threads share it; the only thing they contend for is one
//!   atomic addition per packet.
//! * [`RecvSession`] checks, opens and marks. It belongs to the one thread that receives. Should
//!   several threads open packets of one session, they share an [`Opener`], and the thread that
//!   hands packets out keeps the [`ReplayWindow`].
//!
//! Invariants: a counter is used once per key, and no key seals more than [`REJECT_AFTER`] packets;
//! the replay window is checked before a packet is opened and marked only after it was found
//! authentic. Nothing here allocates per packet.

mod replay;
mod transport;

use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;
use weft_wire::Malformed;
use weft_wire::control::Suite;
use weft_wire::packet::{Counter, Header, OVERHEAD, ReceiverIndex};

use crate::drop_reason::DropReason;

pub use replay::{Replay, ReplayWindow};

/// After this many packets a key is to be replaced.
///
/// Two minutes, after which it is replaced anyway, at 560,000 packets a second.
pub const REKEY_AFTER: u64 = 1 << 26;
/// After this many packets a key seals nothing any more.
///
/// With AES-GCM the odds of telling sealed messages from noise grow with the square of the blocks
/// sealed by one key. Were each of these packets 64 KiB long, it would be 2⁴⁴ blocks and odds of
/// 2⁻⁴¹. It leaves 64 chances for a new key, over an hour at a million packets a second.
pub const REJECT_AFTER: u64 = 1 << 32;

/// Seals packets towards one peer.
#[derive(Debug)]
pub struct SendSession {
    key: transport::Key,
    receiver: ReceiverIndex,
    /// The counter of the next packet.
    next: AtomicU64,
}

/// Why a packet was not sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SealError {
    /// The buffer has no room for a header and a tag.
    #[error("a buffer of {len} bytes holds no packet, which needs {OVERHEAD} and its message")]
    TooShort {
        /// Its length in bytes.
        len: usize,
    },
    /// The key has sealed all it may; the connection needs a new one.
    #[error("the key has sealed {REJECT_AFTER} packets and may seal no more")]
    Expired,
}

impl SendSession {
    /// A session whose receiver knows it as `receiver`. The key must never have been used before.
    pub fn new(suite: Suite, key: &[u8; 32], receiver: ReceiverIndex) -> Self {
        Self {
            key: transport::Key::new(suite, key),
            receiver,
            next: AtomicU64::new(0),
        }
    }

    /// Makes a packet of `datagram`, which holds a message between `HEADER_LEN` bytes of room for the
    /// header and `TAG_LEN` bytes of room for the tag.
    ///
    /// # Errors
    /// There is no such room, or the key has sealed [`REJECT_AFTER`] packets; the buffer is as it
    /// was.
    pub fn seal(&self, datagram: &mut [u8]) -> Result<(), SealError> {
        let too_short = SealError::TooShort {
            len: datagram.len(),
        };
        if datagram.len() < OVERHEAD {
            return Err(too_short);
        }
        // It would take 500 years of refused packets at one a nanosecond to go around.
        let counter = self.next.fetch_add(1, Ordering::Relaxed);
        if counter >= REJECT_AFTER {
            return Err(SealError::Expired);
        }
        let header = Header {
            receiver: self.receiver,
            counter: Counter(counter),
        };
        self.key.seal(header, datagram).map_err(|_| too_short)
    }

    /// Whether the key has sealed so many packets that it is to be replaced.
    pub fn needs_rekey(&self) -> bool {
        self.next.load(Ordering::Relaxed) >= REKEY_AFTER
    }
}

impl SealError {
    /// As what a packet that was not sealed is counted.
    pub fn drop_reason(self) -> DropReason {
        match self {
            Self::TooShort { .. } => DropReason::MalformedFrame,
            Self::Expired => DropReason::SessionExpired,
        }
    }
}

/// Opens packets from one peer, each once.
#[derive(Debug)]
pub struct RecvSession {
    opener: Opener,
    window: ReplayWindow,
}

/// Why a packet was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum OpenError {
    /// The datagram is not a packet.
    #[error("the packet is malformed")]
    Malformed(#[from] Malformed),
    /// The packet was received before.
    #[error("the packet was received before")]
    Replayed,
    /// The packet is too late to tell whether it was received before.
    #[error("the packet is more than {} packets late", ReplayWindow::SIZE)]
    TooOld,
    /// The packet's counter is beyond what one key may seal.
    #[error("the packet's counter is {REJECT_AFTER} or more, which no peer of ours seals")]
    Expired,
    /// The packet was not sealed with this key, or was changed on its way.
    #[error("the packet does not carry the seal of its session")]
    Forged,
}

impl RecvSession {
    /// A session that has received nothing.
    pub fn new(suite: Suite, key: &[u8; 32]) -> Self {
        Self {
            opener: Opener::new(suite, key),
            window: ReplayWindow::new(),
        }
    }

    /// Opens a packet in place and returns its message. The caller has found this session by the
    /// receiver index in the packet's header.
    ///
    /// # Errors
    /// The datagram is not an authentic packet of this session, or was received before. If it was
    /// changed on its way, its bytes are anything after that.
    pub fn open<'a>(&mut self, datagram: &'a mut [u8]) -> Result<&'a [u8], OpenError> {
        let counter = Header::parse(datagram)?.counter;
        self.window.check(counter)?;
        let message = self.opener.open(datagram)?;
        self.window.mark(counter)?;
        Ok(message)
    }
}

/// The part of receiving that several threads can do at once: telling whether a packet is
/// authentic. Whether it is new, a [`ReplayWindow`] has to say before and after.
#[derive(Debug)]
pub struct Opener {
    key: transport::Key,
}

impl Opener {
    /// Opens what was sealed with `key`.
    pub fn new(suite: Suite, key: &[u8; 32]) -> Self {
        let key = transport::Key::new(suite, key);
        Self { key }
    }

    /// Opens a packet in place, be it new or not, and returns its message.
    ///
    /// # Errors
    /// The datagram is not an authentic packet of this session.
    pub fn open<'a>(&self, datagram: &'a mut [u8]) -> Result<&'a [u8], OpenError> {
        let counter = Header::parse(datagram)?.counter;
        if counter.0 >= REJECT_AFTER {
            return Err(OpenError::Expired);
        }
        let opened = self.key.open(counter, datagram);
        opened.map_err(|_| OpenError::Forged)
    }
}

impl OpenError {
    /// As what a packet that was not opened is counted.
    pub fn drop_reason(self) -> DropReason {
        match self {
            Self::Malformed(_) => DropReason::MalformedPacket,
            Self::Replayed => DropReason::Replayed,
            Self::TooOld => DropReason::TooOld,
            Self::Expired => DropReason::SessionExpired,
            Self::Forged => DropReason::Forged,
        }
    }
}

impl From<Replay> for OpenError {
    fn from(replay: Replay) -> Self {
        match replay {
            Replay::Seen => Self::Replayed,
            Replay::TooOld => Self::TooOld,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use weft_wire::packet::HEADER_LEN;

    use super::*;

    #[test]
    fn no_key_seals_more_than_it_may() {
        let (send, mut receive) = pair();
        send.next.store(REJECT_AFTER - 1, Ordering::Relaxed);
        let mut last = packet(&send, b"last");
        assert_eq!(receive.open(&mut last), Ok(&b"last"[..]));
        let before = vec![0xaa; OVERHEAD + 4];
        for _ in 0..3 {
            let mut datagram = before.clone();
            assert_eq!(send.seal(&mut datagram), Err(SealError::Expired));
            assert_eq!(datagram, before);
        }
    }

    #[test]
    fn a_new_key_is_wanted_long_before_the_old_one_ends() {
        let (send, _) = pair();
        send.next.store(REKEY_AFTER - 1, Ordering::Relaxed);
        assert!(!send.needs_rekey());
        packet(&send, b"");
        assert!(send.needs_rekey());
    }

    #[test]
    fn a_packet_is_opened_once() {
        let (send, mut receive) = pair();
        let sealed = packet(&send, b"hello");
        assert_eq!(receive.open(&mut sealed.clone()), Ok(&b"hello"[..]));
        assert_eq!(receive.open(&mut sealed.clone()), Err(OpenError::Replayed));
    }

    #[test]
    fn a_forged_packet_does_not_move_the_window() {
        let (send, mut receive) = pair();
        let honest = packet(&send, b"first");
        let mut forged = honest.clone();
        let far = Header {
            receiver: RECEIVER,
            counter: Counter(REJECT_AFTER - 1),
        };
        forged[..HEADER_LEN].copy_from_slice(&far.emit());
        assert_eq!(receive.open(&mut forged), Err(OpenError::Forged));
        let mut changed = honest.clone();
        changed[HEADER_LEN] ^= 1;
        assert_eq!(receive.open(&mut changed), Err(OpenError::Forged));
        assert_eq!(receive.open(&mut honest.clone()), Ok(&b"first"[..]));
    }

    #[test]
    fn a_packet_that_comes_too_late_is_not_opened() {
        let (send, mut receive) = pair();
        let mut late = packet(&send, b"late");
        send.next.store(ReplayWindow::SIZE, Ordering::Relaxed);
        assert!(receive.open(&mut packet(&send, b"new")).is_ok());
        assert_eq!(receive.open(&mut late), Err(OpenError::TooOld));
    }

    #[test]
    fn a_counter_that_no_peer_seals_is_not_opened() {
        let (_, mut receive) = pair();
        let header = Header {
            receiver: RECEIVER,
            counter: Counter(REJECT_AFTER),
        };
        let mut datagram = header.emit().to_vec();
        datagram.extend([0; 20]);
        assert_eq!(receive.open(&mut datagram), Err(OpenError::Expired));
    }

    #[test]
    fn a_buffer_without_room_costs_no_counter() {
        let (send, mut receive) = pair();
        let mut short = [0; OVERHEAD - 1];
        let len = short.len();
        assert_eq!(send.seal(&mut short), Err(SealError::TooShort { len }));
        let mut sealed = packet(&send, b"");
        assert_eq!(Header::parse(&sealed).unwrap().counter, Counter(0));
        assert_eq!(receive.open(&mut sealed), Ok(&b""[..]));
    }

    #[test]
    fn threads_sharing_a_session_never_use_a_counter_twice() {
        let (send, _) = pair();
        let counters: Vec<_> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|_| {
                    let seal = || Header::parse(&packet(&send, b"x")).unwrap().counter;
                    scope.spawn(move || (0..500).map(|_| seal()).collect::<Vec<_>>())
                })
                .collect();
            let counters = workers.into_iter().map(|worker| worker.join().unwrap());
            counters.collect::<Vec<_>>().concat()
        });
        let different: BTreeSet<_> = counters.into_iter().collect();
        assert_eq!(different.len(), 2000);
    }

    #[test]
    fn an_opener_tells_authentic_packets_without_remembering_them() {
        let opener = Opener::new(Suite::Aes256Gcm, &KEY);
        let (send, _) = pair();
        let sealed = packet(&send, b"hello");
        for _ in 0..2 {
            assert_eq!(opener.open(&mut sealed.clone()), Ok(&b"hello"[..]));
        }
    }

    #[test]
    fn keys_do_not_show_in_debug_output() {
        let (send, receive) = pair();
        let text = format!("{send:?}{receive:?}");
        assert!(!text.contains("77, 77") && !text.contains("4d4d"), "{text}");
    }

    proptest! {
        #[test]
        fn in_any_order_each_packet_is_opened_exactly_once(order in prop::collection::vec(0..64_usize, 0..300)) {
            let (send, mut receive) = pair();
            let sealed: Vec<_> = (0..64_u8).map(|n| packet(&send, &[n])).collect();
            let mut opened = BTreeSet::new();
            for n in order {
                let result = receive.open(&mut sealed[n].clone()).map(<[u8]>::to_vec);
                let expected = if opened.insert(n) { Ok(vec![n as u8]) } else { Err(OpenError::Replayed) };
                prop_assert_eq!(result, expected);
            }
        }

        #[test]
        fn any_bytes_are_refused_without_panic(mut datagram: Vec<u8>) {
            let (_, mut receive) = pair();
            prop_assert!(receive.open(&mut datagram).is_err());
        }
    }

    const RECEIVER: ReceiverIndex = ReceiverIndex(9);
    const KEY: [u8; 32] = [77; 32];

    fn pair() -> (SendSession, RecvSession) {
        let suite = Suite::Aes256Gcm;
        (
            SendSession::new(suite, &KEY, RECEIVER),
            RecvSession::new(suite, &KEY),
        )
    }

    fn packet(send: &SendSession, message: &[u8]) -> Vec<u8> {
        let mut datagram = vec![0; message.len() + OVERHEAD];
        datagram[HEADER_LEN..HEADER_LEN + message.len()].copy_from_slice(message);
        send.seal(&mut datagram).unwrap();
        datagram
    }
}
