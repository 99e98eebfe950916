//! The reading of envelopes: nothing of chitchat's is lost, and no bytes are too bad.

use std::collections::BTreeMap;

use chitchat::{ChitchatMessage, Deserializable};
use proptest::collection::vec;
use proptest::prelude::*;

use super::switch::name;
use crate::envelope::{Census, Holding, Push, STATUS_DELETED, STATUS_SET, Set, admit};
use crate::run::Run;

fn run(n: u8) -> Run {
    Run {
        name: name(n),
        generation: 1,
    }
}

/// A census of a peer that nobody speaks of, which knows all versions of the others.
fn all_knowing() -> Census {
    let holding = Holding {
        keys: 0,
        max_version: u64::MAX,
    };
    let mut census = Census::new(run(99));
    let runs: BTreeMap<_, _> = (0..10).map(|n| (run(n), holding)).collect();
    census.replace(runs);
    census
}

/// What a message says, without how long it was.
fn meaning(message: &ChitchatMessage) -> String {
    let text = format!("{message:?}");
    let (head, tail) = text.split_once("serialized_len: ").unwrap_or((&text, ""));
    format!(
        "{head}{}",
        tail.trim_start_matches(|c: char| c.is_ascii_digit())
    )
}

/// Reads a message of chitchat's with and without us in between.
pub(super) fn assert_unchanged(bytes: &[u8]) {
    let direct = ChitchatMessage::deserialize(&mut &*bytes).unwrap();
    let admitted = admit(bytes, &mut all_knowing()).unwrap();
    assert_eq!(admitted.refused, 0);
    assert!(!admitted.behind && !admitted.full);
    assert_eq!(meaning(&admitted.message), meaning(&direct));
}

proptest! {
    #[test]
    fn a_push_is_read_by_chitchat(sets in vec(("[ -~]{1,40}", "\\PC{0,40}", any::<bool>()), 0..20)) {
        let mut push = Push::default();
        let sets: Vec<_> = sets.iter().zip(5..).map(|((key, value, deleted), version)| Set {
            key,
            value,
            version,
            status: if *deleted { STATUS_DELETED } else { STATUS_SET },
        }).collect();
        prop_assert!(push.add(run(1), 2, 4, sets.into_iter()));
        assert_unchanged(&push.into_bytes());
    }

    #[test]
    fn any_bytes_are_read_without_panic(kind in 0_u8..5, bytes in vec(any::<u8>(), 0..300)) {
        let message = [&[0x53, 0xb0, 0, kind][..], &bytes].concat();
        let _ = admit(&message, &mut all_knowing());
        let _ = admit(&bytes, &mut all_knowing());
    }
}

#[test]
fn a_push_ends_where_a_message_would_become_too_long() {
    let value = "x".repeat(10_000);
    let sets = (1..10).map(|version| Set {
        key: "key",
        value: &value,
        version,
        status: STATUS_SET,
    });
    let mut push = Push::default();
    assert!(!push.add(run(1), 0, 0, sets));
    let bytes = push.into_bytes();
    assert!(bytes.len() > 30_000 && bytes.len() < 33_000);
    assert_unchanged(&bytes);
}

#[test]
fn changes_without_a_basis_are_asked_for_and_known_ones_are_not() {
    let push = |from| {
        let mut push = Push::default();
        let set = Set {
            key: "key",
            value: "",
            version: from + 1,
            status: STATUS_SET,
        };
        push.add(run(1), 0, from, [set].into_iter());
        push.into_bytes()
    };
    let mut census = Census::new(run(99));
    let behind = |census: &mut Census, from| admit(&push(from), census).unwrap().behind;
    assert!(behind(&mut census, 0), "never heard of");
    let holding = Holding {
        keys: 3,
        max_version: 6,
    };
    census.replace(BTreeMap::from([(run(1), holding)]));
    assert!(behind(&mut census, 7));
    assert!(!behind(&mut census, 6));
    // The one just let through counts, before anybody looked.
    assert!(!behind(&mut census, 7));
    assert!(!behind(&mut census, 2));
    assert!(behind(&mut census, 9));
}
