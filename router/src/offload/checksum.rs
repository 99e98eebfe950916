//! The internet checksum (RFC 1071): a sum of 16-bit words in ones' complement.
//!
//! Sums are kept wide and in the byte order of the machine, which ones' complement allows, and folded at
//! the end. Summing is most of what cutting and merging cost, so it is written for the compiler to make
//! vector instructions of it.

/// A sum under way. Parts that are added must begin at an even place of what is summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Sum(u64);

impl Sum {
    /// Adds bytes. If their number is odd they must be the last.
    pub(super) fn bytes(self, bytes: &[u8]) -> Self {
        let mut lanes = [0_u64; 8];
        let (blocks, rest) = bytes.as_chunks::<32>();
        for block in blocks {
            let (words, _) = block.as_chunks::<4>();
            for (lane, word) in lanes.iter_mut().zip(words) {
                *lane += u64::from(u32::from_ne_bytes(*word));
            }
        }
        let mut sum = fold_once(lanes.into_iter().fold(0, |sum, lane| sum + fold_once(lane)));
        let (pairs, odd) = rest.as_chunks::<2>();
        for pair in pairs {
            sum += u64::from(u16::from_ne_bytes(*pair));
        }
        if let [last] = odd {
            sum += u64::from(u16::from_ne_bytes([*last, 0]));
        }
        Self(fold_once(self.0 + sum))
    }

    /// Adds a number of the protocol.
    pub(super) fn word(self, word: u16) -> Self {
        Self(self.0 + u64::from(u16::from_ne_bytes(word.to_be_bytes())))
    }

    /// Adds 16 bits that stand in a packet.
    pub(super) fn pair(self, pair: [u8; 2]) -> Self {
        Self(self.0 + u64::from(u16::from_ne_bytes(pair)))
    }

    /// Takes a number of the protocol away.
    pub(super) fn less(self, word: u16) -> Self {
        self.word(!word)
    }

    /// The sum as it stands in a field that is yet to be completed.
    pub(super) fn folded(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        // Folded, it fits.
        (sum as u16).to_ne_bytes()
    }

    /// The checksum: what makes the sum over all, itself included, all ones.
    pub(super) fn complement(self) -> [u8; 2] {
        let [a, b] = self.folded();
        [!a, !b]
    }

    /// Whether a sum over all, the checksum included, says that nothing has changed.
    pub(super) fn is_whole(self) -> bool {
        self.folded() == [0xff; 2]
    }
}

fn fold_once(sum: u64) -> u64 {
    (sum & 0xffff_ffff) + (sum >> 32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing;
    use super::*;

    proptest! {
        #[test]
        fn the_sum_is_that_of_the_definition(bytes in prop::collection::vec(any::<u8>(), 0..400), first in prop::collection::vec(any::<[u8; 2]>(), 0..40)) {
            let first = first.concat();
            let sum = Sum::default().bytes(&first).bytes(&bytes);
            let expected = testing::naive_sum(&[first, bytes].concat());
            prop_assert_eq!(u16::from_be_bytes(sum.folded()) % 0xffff, expected % 0xffff);
        }

        #[test]
        fn what_is_taken_away_was_not_there(bytes: [u8; 20], word: u16) {
            let with = Sum::default().bytes(&bytes).word(word).less(word);
            let number = |sum: Sum| u16::from_be_bytes(sum.folded()) % 0xffff;
            prop_assert_eq!(number(with), number(Sum::default().bytes(&bytes)));
        }
    }

    #[test]
    fn the_longest_super_frame_does_not_overflow() {
        let sum = Sum::default().bytes(&[0xff; 70_000]);
        assert_eq!(sum.folded(), [0xff; 2]);
        assert!(sum.is_whole());
    }
}
