//! A short stand-in for a ring: equal digests mean equal rings.
//!
//! FNV-1a over 128 bits: deterministic on every machine and in every version. It tells states
//! apart; it is no defence against somebody who makes two rings collide on purpose, which only
//! those could who hold the network's password and may change the ring anyway.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::addr::Addr;

/// What stands for a ring in gossip; [`Digest::NONE`] for a peer without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub(crate) u128);

impl Digest {
    /// The digest of having no ring.
    pub const NONE: Self = Self(0);

    /// From bytes in wire order.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }

    /// Bytes in wire order.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Text that is no digest.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is not a ring digest of 32 hex digits")]
pub struct ParseDigestError(String);

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hex = text.len() == 32 && text.bytes().all(|c| c.is_ascii_hexdigit());
        u128::from_str_radix(text, 16)
            .ok()
            .filter(|_| hex)
            .map(Self)
            .ok_or_else(|| ParseDigestError(text.to_owned()))
    }
}

/// FNV-1a, 128 bits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fnv(u128);

impl Fnv {
    pub(crate) const fn new() -> Self {
        Self(OFFSET)
    }

    pub(crate) fn write(mut self, bytes: &[u8]) -> Self {
        for byte in bytes {
            self.0 = (self.0 ^ u128::from(*byte)).wrapping_mul(PRIME);
        }
        self
    }

    /// As many bytes as the address' family has.
    pub(crate) fn write_addr(self, addr: Addr) -> Self {
        match addr.to_v4() {
            Some(v4) => self.write(&v4.octets()),
            None => self.write(&addr.to_bits().to_be_bytes()),
        }
    }

    pub(crate) const fn finish(self) -> u128 {
        self.0
    }
}

// The constants of the FNV specification for 128 bits.
const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_published_one() {
        // Known values of FNV-1a 128.
        assert_eq!(Fnv::new().finish(), OFFSET);
        let a = Fnv::new().write(b"a").finish();
        assert_eq!(a, 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
    }

    #[test]
    fn a_digest_is_read_back_from_text_and_bytes() {
        let digest = Digest(Fnv::new().write(b"ring").finish());
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!(Digest::from_bytes(digest.to_bytes()), digest);
        for text in ["", "0", "+0000000000000000000000000000000", "g"] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }
}
