//! Runs every fuzz target on its corpus and on seeded changes of it, so that each test run is a short
//! fuzz run too. What `cargo xtask fuzz` finds goes into the corpus of its target as a test.

#[path = "../fuzz/targets.rs"]
#[expect(
    unreachable_pub,
    clippy::expect_used,
    clippy::panic,
    reason = "the fuzz crate uses these from outside; a target fails by panicking"
)]
mod targets;

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};

/// Changed inputs tried per target.
const ROUNDS: usize = 4_000;

#[test]
fn no_input_breaks_a_target() {
    for target in targets::ALL {
        let corpus = (target.corpus)();
        for input in &corpus {
            (target.run)(input);
            for cut in 0..input.len() {
                (target.run)(&input[..cut]);
            }
        }
        let mut rng = ChaCha20Rng::seed_from_u64(6783);
        for round in 0..ROUNDS {
            let mut input = corpus[below(&mut rng, corpus.len())].clone();
            for _ in 0..=below(&mut rng, 4) {
                change(&mut input, &mut rng);
            }
            let tried = std::panic::catch_unwind(|| (target.run)(&input));
            assert!(
                tried.is_ok(),
                "target {}, round {round}, input {input:02x?}",
                target.name
            );
        }
    }
}

/// One small damage: a bit, a byte, a cut, an insertion, a repetition.
fn change(input: &mut Vec<u8>, rng: &mut ChaCha20Rng) {
    let at = below(rng, input.len() + 1);
    match (rng.next_u32() % 5, input.get_mut(at)) {
        (0, Some(byte)) => *byte ^= 1 << (rng.next_u32() % 8),
        (1, Some(byte)) => *byte = [0, 1, 0x7f, 0x80, 0xff][below(rng, 5)],
        (2, _) => input.truncate(at),
        (3, _) => input.insert(at, rng.next_u32().to_be_bytes()[0]),
        _ => {
            let tail = input[at..].to_vec();
            input.extend(tail.into_iter().take(64));
        }
    }
}

fn below(rng: &mut ChaCha20Rng, bound: usize) -> usize {
    rng.next_u32() as usize % bound.max(1)
}
