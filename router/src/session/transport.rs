//! The seal itself: one key, one packet, in place.
//!
//! ```text
//!  | header (16), clear, associated data | message, sealed in place | tag (16) |
//! ```
//!
//! The nonce is four zero bytes and the packet's counter, so it is as unique as the counter is;
//! each direction of a session has a key of its own. Nothing here allocates or remembers anything:
//! counters are [`super::SendSession`]'s affair, replays [`super::ReplayWindow`]'s.
//!
//! A key is wiped when it is dropped. There are two libraries behind it, each for the processors on which it is
//! the faster one (`docs/decisions/0017`); what they write is the same, bit for bit.

use std::hint::black_box;

use aws_lc_rs::aead as wide;
use ring::aead as plain;
use weft_wire::control::Suite;
use weft_wire::packet::{Counter, HEADER_LEN, Header, TAG_LEN};

/// A key of one direction, shared by threads without a lock. It stays in one place, so that no copies are left where
/// its session was.
#[derive(Debug)]
pub(super) enum Key {
    /// With what AVX-512 brings, where it is. Wipes itself.
    Wide(Box<wide::LessSafeKey>),
    /// Everywhere else.
    Plain(Box<Overwritten>),
}

/// A key of ring's, which would leave it where it was.
#[derive(Debug)]
pub(super) struct Overwritten(plain::LessSafeKey);

/// A buffer that cannot hold a packet, or bytes that are not the packet they should be.
pub(super) struct Unsealable;

impl Key {
    /// A key for the library that is the faster one on this processor.
    pub(super) fn new(suite: Suite, key: &[u8; 32]) -> Self {
        if suite == Suite::Aes256Gcm && has_wide_aes() {
            Self::wide(suite, key)
        } else {
            Self::plain(suite, key)
        }
    }

    fn wide(suite: Suite, key: &[u8; 32]) -> Self {
        let algorithm = match suite {
            Suite::Aes256Gcm => &wide::AES_256_GCM,
            Suite::ChaCha20Poly1305 => &wide::CHACHA20_POLY1305,
        };
        // Fails only for a key of another length.
        #[expect(clippy::expect_used, reason = "both ciphers take a key of 32 bytes")]
        let key = wide::UnboundKey::new(algorithm, key).expect("a key of the right length");
        Self::Wide(Box::new(wide::LessSafeKey::new(key)))
    }

    fn plain(suite: Suite, key: &[u8; 32]) -> Self {
        let algorithm = match suite {
            Suite::Aes256Gcm => &plain::AES_256_GCM,
            Suite::ChaCha20Poly1305 => &plain::CHACHA20_POLY1305,
        };
        Self::Plain(Box::new(Overwritten(cipher(algorithm, key))))
    }

    /// Writes `header`, seals what stands between it and the last 16 bytes, writes the tag there.
    pub(super) fn seal(&self, header: Header, datagram: &mut [u8]) -> Result<(), Unsealable> {
        let (head, sealed) = datagram
            .split_first_chunk_mut::<HEADER_LEN>()
            .ok_or(Unsealable)?;
        let (message, tag_room) = sealed.split_last_chunk_mut::<TAG_LEN>().ok_or(Unsealable)?;
        *head = header.emit();
        let nonce = nonce(header.counter);
        let tag = match self {
            Self::Wide(key) => {
                let nonce = wide::Nonce::assume_unique_for_key(nonce);
                key.seal_in_place_separate_tag(nonce, wide::Aad::from(&*head), message)
                    .ok()
                    .and_then(|tag| tag.as_ref().try_into().ok())
            }
            Self::Plain(key) => {
                let nonce = plain::Nonce::assume_unique_for_key(nonce);
                key.0
                    .seal_in_place_separate_tag(nonce, plain::Aad::from(&*head), message)
                    .ok()
                    .and_then(|tag| tag.as_ref().try_into().ok())
            }
        };
        *tag_room = tag.ok_or(Unsealable)?;
        Ok(())
    }

    /// Opens the packet whose header says `counter`; returns its message. After a failure the
    /// bytes behind the header are anything.
    pub(super) fn open<'a>(
        &self,
        counter: Counter,
        datagram: &'a mut [u8],
    ) -> Result<&'a [u8], Unsealable> {
        let (head, sealed) = datagram
            .split_first_chunk_mut::<HEADER_LEN>()
            .ok_or(Unsealable)?;
        let nonce = nonce(counter);
        let opened = match self {
            Self::Wide(key) => {
                let nonce = wide::Nonce::assume_unique_for_key(nonce);
                key.open_in_place(nonce, wide::Aad::from(&*head), sealed)
                    .ok()
            }
            Self::Plain(key) => {
                let nonce = plain::Nonce::assume_unique_for_key(nonce);
                key.0
                    .open_in_place(nonce, plain::Aad::from(&*head), sealed)
                    .ok()
            }
        };
        opened.map(|message| &*message).ok_or(Unsealable)
    }
}

impl Drop for Overwritten {
    /// Another key is written over this: in the same place, and as long, because it is of the same cipher.
    fn drop(&mut self) {
        self.0 = cipher(self.0.algorithm(), &[0; 32]);
        // As if somebody looked at it, so that the compiler leaves the writing in.
        black_box(&self.0);
    }
}

fn cipher(algorithm: &'static plain::Algorithm, key: &[u8; 32]) -> plain::LessSafeKey {
    // Fails only for a key of another length.
    #[expect(clippy::expect_used, reason = "both ciphers take a key of 32 bytes")]
    let key = plain::UnboundKey::new(algorithm, key).expect("a key of the right length");
    plain::LessSafeKey::new(key)
}

/// Whether AES-256-GCM can be had 512 bits at a time.
fn has_wide_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("vaes")
        && is_x86_feature_detected!("vpclmulqdq");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

fn nonce(Counter(counter): Counter) -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    if let Some(low) = nonce.last_chunk_mut() {
        *low = counter.to_be_bytes();
    }
    nonce
}

/// Bytes of a nonce of both ciphers (RFC 5116 and RFC 8439).
const NONCE_LEN: usize = 12;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use weft_wire::packet::{OVERHEAD, ReceiverIndex};

    use super::*;

    const SUITES: [Suite; 2] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

    /// The key in either library, whichever this processor would have.
    fn both(suite: Suite, key: &[u8; 32]) -> [Key; 2] {
        [Key::wide(suite, key), Key::plain(suite, key)]
    }

    proptest! {
        #[test]
        fn what_one_library_seals_either_opens(key: [u8; 32], receiver: u32, counter: u64, message: Vec<u8>) {
            let header = Header { receiver: ReceiverIndex(receiver), counter: Counter(counter) };
            for suite in SUITES {
                let keys = both(suite, &key);
                let sealed = keys.each_ref().map(|key| {
                    let mut datagram = room_for(&message);
                    assert!(key.seal(header, &mut datagram).is_ok());
                    datagram
                });
                prop_assert_eq!(&sealed[0], &sealed[1]);
                for key in keys {
                    let mut datagram = sealed[0].clone();
                    prop_assert_eq!(Header::parse(&datagram), Ok(header));
                    let opened = key.open(Counter(counter), &mut datagram).ok();
                    prop_assert_eq!(opened, Some(&message[..]));
                }
            }
        }
    }

    #[test]
    fn a_changed_bit_anywhere_is_found() {
        for key in SUITES.iter().flat_map(|suite| both(*suite, &[7; 32])) {
            let mut sealed = room_for(b"a message");
            assert!(key.seal(HEADER, &mut sealed).is_ok());
            for bit in 0..sealed.len() * 8 {
                let mut changed = sealed.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert!(
                    key.open(HEADER.counter, &mut changed).is_err(),
                    "{key:?}, bit {bit}"
                );
            }
            for len in 0..sealed.len() {
                let mut cut = sealed[..len].to_vec();
                assert!(key.open(HEADER.counter, &mut cut).is_err(), "cut at {len}");
            }
        }
    }

    #[test]
    fn another_key_counter_or_cipher_opens_nothing() {
        let mut sealed = room_for(b"a message");
        let key = Key::new(Suite::Aes256Gcm, &[7; 32]);
        assert!(key.seal(HEADER, &mut sealed).is_ok());
        let others = [
            (Suite::Aes256Gcm, 8, HEADER.counter),
            (Suite::ChaCha20Poly1305, 7, HEADER.counter),
            (Suite::Aes256Gcm, 7, Counter(0)),
        ];
        for (suite, key, counter) in others {
            for key in both(suite, &[key; 32]) {
                assert!(key.open(counter, &mut sealed.clone()).is_err());
            }
        }
    }

    #[test]
    fn the_message_does_not_show_in_the_packet() {
        for key in SUITES.iter().flat_map(|suite| both(*suite, &[7; 32])) {
            let mut sealed = room_for(b"a message that is long enough");
            assert!(key.seal(HEADER, &mut sealed).is_ok());
            assert!(!sealed.windows(8).any(|w| w == b"message "));
        }
    }

    #[test]
    fn the_nonce_is_what_the_wire_format_says() {
        let nonce = nonce(Counter(0x0102_0304_0506_0708));
        assert_eq!(nonce, [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn the_packet_is_the_one_another_implementation_makes() {
        // Made with OpenSSL from the same key, nonce and header: were both of our ends to change
        // alike, it would show.
        let made = [
            (Suite::ChaCha20Poly1305, CHACHA_SEALED),
            (Suite::Aes256Gcm, AES_SEALED),
        ];
        for (suite, expected) in made {
            for key in both(suite, &[7; 32]) {
                let mut sealed = room_for(b"weft");
                assert!(key.seal(HEADER, &mut sealed).is_ok());
                assert_eq!(sealed[HEADER_LEN..], expected);
            }
        }
    }

    const HEADER: Header = Header {
        receiver: ReceiverIndex(3),
        counter: Counter(5),
    };
    const CHACHA_SEALED: [u8; 20] = [
        0x64, 0xc4, 0xf0, 0xe6, 0xaf, 0xfc, 0xd8, 0x78, 0x39, 0xbc, 0x7a, 0x27, 0x3c, 0xa2, 0xbc,
        0xe3, 0x99, 0xd9, 0xad, 0x9f,
    ];
    const AES_SEALED: [u8; 20] = [
        0xd3, 0xc7, 0xfa, 0x73, 0x4e, 0x17, 0xd7, 0x5b, 0xfc, 0x29, 0x4f, 0x07, 0x21, 0xb5, 0xb6,
        0xaa, 0xd5, 0xa6, 0x42, 0x61,
    ];

    fn room_for(message: &[u8]) -> Vec<u8> {
        let mut datagram = vec![0; message.len() + OVERHEAD];
        datagram[HEADER_LEN..HEADER_LEN + message.len()].copy_from_slice(message);
        datagram
    }
}
