//! One run of a peer.
//!
//! A restarted peer begins to say everything anew, so what it says is kept apart from what it said
//! before: a run is the peer's name and a generation that grows with each start.

use weft_wire::PeerName;

/// One run of a peer. Ordered by name, then by generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Run {
    pub(crate) name: PeerName,
    pub(crate) generation: u64,
}

impl Run {
    /// Which of the [`BUCKETS`] it is compared in.
    pub(crate) fn bucket(self) -> u32 {
        // Below BUCKETS, so the cast keeps the value.
        (mix(name_bits(self.name)) % u64::from(BUCKETS)) as u32
    }

    /// A number for this run at this version, such that sums of them differ when the runs do.
    pub(crate) fn print(self, version: u64) -> u128 {
        let seed = mix(name_bits(self.name) ^ mix(self.generation));
        let (high, low) = (
            mix(seed ^ version),
            mix(seed.rotate_left(32) ^ mix(version)),
        );
        (u128::from(high) << 64) | u128::from(low)
    }
}

/// Runs are compared in so many parts.
pub(crate) const BUCKETS: u32 = 64;

/// A number for these three, which says whose turn it is.
pub(crate) fn lot(of: PeerName, to: PeerName, teller: PeerName) -> u64 {
    let pair = mix(name_bits(of) ^ name_bits(to).rotate_left(16));
    mix(pair ^ name_bits(teller))
}

fn name_bits(name: PeerName) -> u64 {
    let [a, b, c, d, e, f] = name.to_bytes();
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}

/// Spreads every bit over all: the finisher of SplitMix64.
fn mix(bits: u64) -> u64 {
    let bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn runs_and_versions_are_told_apart_and_spread_over_all_buckets() {
        let mut prints = BTreeSet::new();
        let mut buckets = BTreeSet::new();
        for n in 0..500_u16 {
            let [high, low] = n.to_be_bytes();
            for generation in 0..3 {
                let name = PeerName::from_bytes([2, 0, 0, 0, high, low]);
                let run = Run { name, generation };
                buckets.insert(run.bucket());
                prints.extend((0..5).map(|version| run.print(version)));
            }
        }
        assert_eq!(prints.len(), 500 * 3 * 5);
        assert_eq!(buckets.len(), BUCKETS as usize);
    }
}
