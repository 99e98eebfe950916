//! The outside of a datagram: a clear header, then one sealed message.
//!
//! ```text
//!  0               1               2               3
//! +---------------+---------------+---------------+---------------+
//! |  version = 1  |   kind = 1    |          reserved = 0         |
//! +---------------+---------------+---------------+---------------+
//! |                        receiver index                         |
//! +---------------------------------------------------------------+
//! |                            counter                            |
//! |                                                               |
//! +---------------------------------------------------------------+
//! |  sealed message (see `message`) ...              | 16-byte tag |
//! +---------------------------------------------------------------+
//! ```
//!
//! The whole header is associated data of the seal, so a changed bit anywhere is found. The
//! receiver index was chosen by the receiver and told over the control connection; one it does not
//! know is dropped without an answer, so there is nothing to flood and nothing to amplify.

use std::fmt;

use crate::Malformed;

/// Version of the packet format; another one is dropped.
pub const VERSION: u8 = 1;
/// Bytes of the clear header.
pub const HEADER_LEN: usize = 16;
/// Bytes of the authentication tag behind the sealed message (AES-GCM and ChaCha20-Poly1305 alike).
pub const TAG_LEN: usize = 16;
/// What a datagram costs beyond its message.
pub const OVERHEAD: usize = HEADER_LEN + TAG_LEN;

const KIND_SEALED: u8 = 1;

/// Names a session at its receiver, who chose it at random.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReceiverIndex(pub u32);

impl fmt::Display for ReceiverIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// Counts the packets sealed with one key; a value is used once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Counter(pub u64);

/// The clear header of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The session this packet belongs to, at its receiver.
    pub receiver: ReceiverIndex,
    /// The sender's count, of which the nonce is made.
    pub counter: Counter,
}

impl Header {
    /// The header's bytes.
    pub fn emit(self) -> [u8; HEADER_LEN] {
        let [r0, r1, r2, r3] = self.receiver.0.to_be_bytes();
        let [c0, c1, c2, c3, c4, c5, c6, c7] = self.counter.0.to_be_bytes();
        [
            VERSION,
            KIND_SEALED,
            0,
            0,
            r0,
            r1,
            r2,
            r3,
            c0,
            c1,
            c2,
            c3,
            c4,
            c5,
            c6,
            c7,
        ]
    }

    /// Splits a datagram into its header and what is sealed.
    ///
    /// # Errors
    /// The datagram is too short to hold a header and a tag, or is of another version or kind.
    pub fn parse(datagram: &[u8]) -> Result<Self, Malformed> {
        let what = "packet header";
        let (head, sealed) = datagram
            .split_first_chunk::<HEADER_LEN>()
            .ok_or(Malformed::Truncated { what })?;
        let [
            version,
            kind,
            z0,
            z1,
            r0,
            r1,
            r2,
            r3,
            c0,
            c1,
            c2,
            c3,
            c4,
            c5,
            c6,
            c7,
        ] = *head;
        if sealed.len() < TAG_LEN {
            return Err(Malformed::Truncated { what: "packet tag" });
        }
        if version != VERSION {
            let value = version.into();
            return Err(Malformed::Unknown {
                what: "packet version",
                value,
            });
        }
        if kind != KIND_SEALED || (z0, z1) != (0, 0) {
            let value = u32::from_be_bytes([0, kind, z0, z1]).into();
            return Err(Malformed::Unknown {
                what: "packet kind",
                value,
            });
        }
        Ok(Self {
            receiver: ReceiverIndex(u32::from_be_bytes([r0, r1, r2, r3])),
            counter: Counter(u64::from_be_bytes([c0, c1, c2, c3, c4, c5, c6, c7])),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn header_is_read_back(receiver: u32, counter: u64) {
            let header = Header { receiver: ReceiverIndex(receiver), counter: Counter(counter) };
            let mut datagram = header.emit().to_vec();
            datagram.extend([0; TAG_LEN]);
            prop_assert_eq!(Header::parse(&datagram), Ok(header));
        }

        #[test]
        fn any_bytes_parse_without_panic(bytes: Vec<u8>) {
            let _ = Header::parse(&bytes);
        }
    }

    #[test]
    fn short_and_foreign_datagrams_are_refused() {
        let header = Header {
            receiver: ReceiverIndex(1),
            counter: Counter(2),
        };
        let mut datagram = header.emit().to_vec();
        datagram.extend([0; TAG_LEN - 1]);
        assert!(Header::parse(&datagram).is_err());
        datagram.push(0);
        assert!(Header::parse(&datagram).is_ok());
        for at in 0..4 {
            let mut other = datagram.clone();
            other[at] ^= 0x40;
            assert!(Header::parse(&other).is_err(), "byte {at}");
        }
    }
}
