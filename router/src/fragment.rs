//! Messages that do not fit the path to a neighbour: in pieces there, and put together by it.
//!
//! ```text
//!   message, 1407 bytes ─ Split ─▶ 2 pieces of 704 and 703, each sealed by itself ─▶ Reassembly ─▶ message
//! ```
//!
//! Pieces are one neighbour's affair with the next: whoever receives puts together, whoever passes on
//! splits anew, for another path may be wider. A piece that does not come costs its message and nothing
//! else.
//!
//! Invariants: what comes whole out of a [`Reassembly`] is what went into one [`Split`], whatever the order;
//! a place is written once per message, so nothing of another message can show in it. Memory is a few
//! slots per neighbour, made when the first piece comes, whatever is sent.

use std::ops::Range;
use std::time::{Duration, Instant};

use thiserror::Error;
use weft_wire::message::FragmentHeader;

/// How one message is split: into pieces of one size, the last of which may be shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split {
    len: usize,
    size: u16,
    count: u8,
}

impl Split {
    /// Splits `len` bytes into pieces of at most `room` bytes, as equal as they can be. `None` if there
    /// is nothing to split, or it would take more than 255 pieces.
    pub fn new(len: usize, room: usize) -> Option<Self> {
        let count = len.div_ceil(room.max(1));
        let size = len.div_ceil(count.max(1));
        // With pieces of that size fewer may do.
        let count = u8::try_from(len.div_ceil(size.max(1))).ok()?;
        let size = u16::try_from(size).ok()?;
        (count >= 2).then_some(Self { len, size, count })
    }

    /// The header of each piece, and where in the message it is.
    pub fn pieces(self, number: u32) -> impl Iterator<Item = (FragmentHeader, Range<usize>)> {
        (0..self.count).map(move |index| {
            let begin = usize::from(index) * usize::from(self.size);
            let end = self.len.min(begin + usize::from(self.size));
            let header = FragmentHeader {
                index,
                count: self.count,
                size: self.size,
                number,
            };
            (header, begin..end)
        })
    }
}

/// Messages of one neighbour whose pieces have not all come.
#[derive(Debug)]
pub struct Reassembly {
    slots: [Slot; SLOTS],
    lost: usize,
}

/// A piece that cannot be put where it says it belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PieceError {
    /// It was there before.
    #[error("this piece of the message was there before")]
    Repeated,
    /// Others of its message say otherwise.
    #[error("the pieces of the message do not agree on how it was split")]
    Other,
    /// No message is that long.
    #[error("the message would be longer than {LONGEST} bytes")]
    TooLong,
}

impl Reassembly {
    /// Room for the messages of one neighbour.
    pub fn new(now: Instant) -> Self {
        Self {
            slots: std::array::from_fn(|_| Slot::new(now)),
            lost: 0,
        }
    }

    /// Takes a piece; returns its message if it was the last one that was missing.
    ///
    /// # Errors
    /// The piece does not go with those that are there, which stay.
    pub fn push(
        &mut self,
        header: FragmentHeader,
        piece: &[u8],
        now: Instant,
    ) -> Result<Option<&[u8]>, PieceError> {
        let end = usize::from(header.index) * usize::from(header.size) + piece.len();
        if end > LONGEST {
            return Err(PieceError::TooLong);
        }
        self.expire(now);
        let at = self.slot_of(header, now);
        let slot = self.slots.get_mut(at);
        slot.map_or(Ok(None), |slot| slot.put(header, piece))
    }

    /// Gives up messages of which a piece is missing for too long.
    pub fn expire(&mut self, now: Instant) {
        let waiting = self.slots.iter_mut().filter(|slot| slot.is_waiting());
        for slot in waiting.filter(|slot| now >= slot.begun + PATIENCE) {
            slot.missing = 0;
            self.lost += 1;
        }
    }

    /// How many messages were given up since this was asked last.
    pub fn take_lost(&mut self) -> usize {
        std::mem::take(&mut self.lost)
    }

    /// Where the pieces of this message are; if there are none, a free slot is made ready for them, or
    /// the one of the message that waits longest.
    fn slot_of(&mut self, header: FragmentHeader, now: Instant) -> usize {
        let is_its = |slot: &Slot| slot.is_waiting() && slot.header.number == header.number;
        if let Some(at) = self.slots.iter().position(is_its) {
            return at;
        }
        // Free ones come first, then the oldest.
        let since = |slot: &Slot| slot.is_waiting().then_some(slot.begun);
        let slots = self.slots.iter_mut().enumerate();
        slots
            .min_by_key(|(_, slot)| since(slot))
            .map_or(0, |(at, slot)| {
                self.lost += usize::from(slot.is_waiting());
                slot.begin(header, now);
                at
            })
    }
}

/// One message, as far as it has come.
#[derive(Debug)]
struct Slot {
    header: FragmentHeader,
    begun: Instant,
    /// Pieces yet to come; none: the slot is free.
    missing: u8,
    /// Which have come, a bit each.
    came: [u64; 4],
    /// Bytes of the message, once the last piece has come.
    len: usize,
    bytes: Box<[u8]>,
}

impl Slot {
    fn new(now: Instant) -> Self {
        Self {
            header: FragmentHeader {
                index: 0,
                count: 0,
                size: 0,
                number: 0,
            },
            begun: now,
            missing: 0,
            came: [0; 4],
            len: 0,
            // The kernel gives memory for it as far as it is written to.
            bytes: vec![0; LONGEST].into(),
        }
    }

    fn is_waiting(&self) -> bool {
        self.missing > 0
    }

    fn begin(&mut self, header: FragmentHeader, now: Instant) {
        self.header = header;
        self.begun = now;
        self.missing = header.count;
        self.came = [0; 4];
    }

    fn put(&mut self, header: FragmentHeader, piece: &[u8]) -> Result<Option<&[u8]>, PieceError> {
        if (self.header.count, self.header.size) != (header.count, header.size) {
            return Err(PieceError::Other);
        }
        let bit = 1 << (header.index % 64);
        let word = self.came.get_mut(usize::from(header.index / 64));
        let Some(word) = word.filter(|word| **word & bit == 0) else {
            return Err(PieceError::Repeated);
        };
        let begin = usize::from(header.index) * usize::from(header.size);
        let end = begin + piece.len();
        // Longer messages are not let in.
        if let Some(room) = self.bytes.get_mut(begin..end) {
            room.copy_from_slice(piece);
        }
        *word |= bit;
        self.missing -= 1;
        if header.index + 1 == header.count {
            self.len = end;
        }
        Ok(match self.missing {
            0 => self.bytes.get(..self.len),
            _ => None,
        })
    }
}

/// Messages of one neighbour that may wait for pieces at a time. Pieces leave one after another, so it
/// takes a path that mixes up their order for more than one.
const SLOTS: usize = 4;
/// The longest message: the largest frame, its tags and its header.
const LONGEST: usize = 65_536 + 64;
/// How long a piece may come after the first of its message. Even the slowest path mixes up less.
const PATIENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    fn message(len: usize, seed: u8) -> Vec<u8> {
        (0..len)
            .map(|n| (n * 7 + usize::from(seed)) as u8)
            .collect()
    }

    fn pieces(message: &[u8], room: usize, number: u32) -> Vec<(FragmentHeader, Vec<u8>)> {
        let split = Split::new(message.len(), room).unwrap();
        let pieces = split.pieces(number);
        pieces
            .map(|(header, at)| (header, message[at].to_vec()))
            .collect()
    }

    fn start() -> (Reassembly, Instant) {
        let now = crate::clock::start();
        (Reassembly::new(now), now)
    }

    #[test]
    fn every_length_and_room_gives_the_message_back() {
        let (mut reassembly, now) = start();
        for room in [1, 7, 460, 507, 700, 1191] {
            for len in room + 1..(room * 255).min(3000) {
                let message = message(len, room as u8);
                let mut whole = None;
                for (header, piece) in pieces(&message, room, len as u32) {
                    assert!(whole.is_none(), "whole before its last piece");
                    assert!(piece.len() <= room && !piece.is_empty());
                    let came = reassembly.push(header, &piece, now).unwrap();
                    whole = came.map(<[u8]>::to_vec);
                }
                assert_eq!(whole, Some(message), "{len} bytes in pieces of {room}");
            }
        }
        assert_eq!(reassembly.take_lost(), 0);
    }

    #[test]
    fn what_fits_or_takes_too_many_pieces_is_not_split() {
        assert_eq!(Split::new(500, 500), None);
        assert_eq!(Split::new(0, 500), None);
        assert_eq!(Split::new(10, 0).unwrap().count, 10);
        assert_eq!(Split::new(255 * 500, 500).unwrap().count, 255);
        assert_eq!(Split::new(255 * 500 + 1, 500), None);
        // The longest message over the narrowest path.
        assert!(Split::new(LONGEST, 507).is_some());
    }

    proptest! {
        #[test]
        fn messages_come_whole_in_whatever_order_their_pieces_do(lens in prop::collection::vec(2_usize..4000, 1..=SLOTS), room in 20_usize..1500, order: Vec<Index>) {
            let (mut reassembly, now) = start();
            let mut sent = vec![];
            let mut expected = vec![];
            for (number, len) in lens.into_iter().enumerate().filter(|(_, len)| *len > room) {
                let message = message(len, number as u8);
                sent.extend(pieces(&message, room, number as u32));
                expected.push(message);
            }
            for (at, with) in order.iter().enumerate().take(sent.len()) {
                let with = with.index(sent.len());
                sent.swap(at, with);
            }
            let mut came = vec![];
            for (header, piece) in &sent {
                came.extend(reassembly.push(*header, piece, now).unwrap().map(<[u8]>::to_vec));
            }
            came.sort();
            expected.sort();
            prop_assert!(came == expected);
            prop_assert_eq!(reassembly.take_lost(), 0);
        }

        #[test]
        fn whatever_pieces_come_nothing_breaks_and_nothing_is_invented(all in prop::collection::vec((0_u8..6, 2_u8..6, 1_u16..9, 0_u32..6, 0_u64..900), 0..200)) {
            let (mut reassembly, start) = start();
            let mut now = start;
            let mut begun = 0;
            let mut ended = 0;
            for (index, count, size, number, passed) in all {
                let header = FragmentHeader { index, count, size, number };
                now += Duration::from_millis(passed);
                // Each byte tells which message it belongs to.
                let piece = vec![number as u8; size.into()];
                if index >= count {
                    continue;
                }
                begun += 1;
                if let Ok(Some(whole)) = reassembly.push(header, &piece, now) {
                    ended += 1;
                    prop_assert!(whole.iter().all(|byte| *byte == number as u8));
                    prop_assert_eq!(whole.len() % usize::from(size), 0);
                }
            }
            prop_assert!(reassembly.take_lost() + ended <= begun);
            reassembly.expire(now + PATIENCE);
            prop_assert!(reassembly.slots.iter().all(|slot| !slot.is_waiting()));
        }
    }

    #[test]
    fn a_missing_piece_costs_its_message_alone() {
        let (mut reassembly, now) = start();
        let (one, two) = (message(900, 1), message(900, 2));
        let lost = pieces(&one, 500, 1);
        assert_eq!(reassembly.push(lost[0].0, &lost[0].1, now), Ok(None));
        let later = now + PATIENCE - Duration::from_millis(1);
        for (header, piece) in pieces(&two, 500, 2) {
            let came = reassembly.push(header, &piece, later).unwrap();
            assert!(came.is_none_or(|whole| whole == two));
        }
        assert_eq!(reassembly.take_lost(), 0);
        reassembly.expire(now + PATIENCE);
        assert_eq!((reassembly.take_lost(), reassembly.take_lost()), (1, 0));
        // Too late, it begins a message that never ends.
        let late = reassembly.push(lost[1].0, &lost[1].1, now + PATIENCE);
        assert_eq!(late, Ok(None));
    }

    #[test]
    fn when_there_is_no_slot_the_oldest_message_is_given_up() {
        let (mut reassembly, now) = start();
        let begin = |number: u32, reassembly: &mut Reassembly| {
            let at = now + Duration::from_millis(number.into());
            let (header, piece) = &pieces(&message(900, 0), 500, number)[0];
            assert_eq!(reassembly.push(*header, piece, at), Ok(None));
        };
        for number in 0..SLOTS as u32 + 1 {
            begin(number, &mut reassembly);
        }
        assert_eq!(reassembly.take_lost(), 1);
        let (header, piece) = &pieces(&message(900, 0), 500, 1)[1];
        assert!(reassembly.push(*header, piece, now).unwrap().is_some());
    }

    #[test]
    fn a_piece_that_does_not_go_with_the_others_changes_nothing() {
        let (mut reassembly, now) = start();
        let message = message(1400, 1);
        let [first, second, third] = pieces(&message, 500, 1).try_into().unwrap();
        assert_eq!(reassembly.push(first.0, &first.1, now), Ok(None));
        let again = reassembly.push(first.0, &[0; 467], now);
        assert_eq!(again, Err(PieceError::Repeated));
        let other = FragmentHeader {
            count: 2,
            ..second.0
        };
        let other = reassembly.push(other, &second.1, now);
        assert_eq!(other, Err(PieceError::Other));
        let far = FragmentHeader {
            index: 250,
            count: 255,
            size: 500,
            number: 9,
        };
        let far = reassembly.push(far, &[0; 500], now);
        assert_eq!(far, Err(PieceError::TooLong));
        assert_eq!(reassembly.push(third.0, &third.1, now), Ok(None));
        let whole = reassembly.push(second.0, &second.1, now).unwrap();
        assert_eq!(whole, Some(&message[..]));
    }
}
