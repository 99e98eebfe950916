//! Keys do not outlive their session: when one is dropped, its key is nowhere in the memory of the process that
//! was allocated. A program of its own, because it looks at all of it.
//!
//! The test keeps the key only behind a mask, so that what it looks for is not its own copy. The stack it runs on is
//! left out: what calls leave there is overwritten by the next ones, not wiped.
#![allow(clippy::unwrap_used, reason = "the whole file is a test")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};
use weft_router::session::{RecvSession, SendSession};
use weft_wire::control::Suite;
use weft_wire::packet::ReceiverIndex;

#[test]
fn a_key_is_wiped_when_its_session_is_dropped() {
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        for seed in [1, 2] {
            let masked = key(seed, &MASK);
            let with_key = |key: &[u8; 32]| match seed {
                1 => Session::Send(Box::new(SendSession::new(suite, key, ReceiverIndex(1)))),
                _ => Session::Receive(Box::new(RecvSession::new(suite, key))),
            };
            let session = with_key(&key(seed, &[0; 32]));
            assert!(
                in_memory(&masked) > 0,
                "{suite:?}: this test does not see a key that is there"
            );
            match session {
                Session::Send(session) => drop(session),
                Session::Receive(session) => drop(session),
            }
            assert_eq!(in_memory(&masked), 0, "{suite:?}: the key is still there");
        }
    }
}

enum Session {
    Send(Box<SendSession>),
    Receive(Box<RecvSession>),
}

const MASK: [u8; 32] = [0xa5; 32];

/// The same for the same seed, behind a mask.
fn key(seed: u64, mask: &[u8; 32]) -> [u8; 32] {
    let mut key = [0; 32];
    ChaCha20Rng::seed_from_u64(seed).fill_bytes(&mut key);
    for (byte, mask) in key.iter_mut().zip(mask) {
        *byte ^= mask;
    }
    key
}

/// How often a key is in memory that can be written to, but for this thread's stack.
fn in_memory(masked: &[u8; 32]) -> usize {
    let here = (&raw const masked).addr() as u64;
    let memory = File::open("/proc/self/mem").unwrap();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut found = 0;
    for line in maps.lines() {
        let (range, rest) = line.split_once(' ').unwrap();
        let (from, to) = range.split_once('-').unwrap();
        let [from, to] = [from, to].map(|at| u64::from_str_radix(at, 16).unwrap());
        if !rest.starts_with("rw") || (from..to).contains(&here) || rest.ends_with("[stack]") {
            continue;
        }
        // A page that was never written to may not be readable.
        let mut page = [0; 4096 + 31];
        for at in (from..to).step_by(4096) {
            let Ok(len) = memory.read_at(&mut page, at) else {
                continue;
            };
            let windows = page[..len].windows(32);
            found += windows
                .filter(|window| {
                    window
                        .iter()
                        .zip(&MASK)
                        .map(|(b, m)| b ^ m)
                        .eq(masked.iter().copied())
                })
                .count();
        }
    }
    found
}
