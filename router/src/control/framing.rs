//! The chunks on a control connection: a 16-bit length, a kind, and bytes.
//!
//! Invariant: a chunk longer than allowed at that time is refused by its length, before its bytes are
//! waited for.

use thiserror::Error;
use weft_wire::control::PREAMBLE_LEN;

/// One chunk's kind and what is in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    Handshake(Vec<u8>),
    Refusal(Vec<u8>),
    Transport(Vec<u8>),
}

/// Bytes that are no chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum ChunkError {
    #[error("a chunk of {0} bytes is longer than allowed at this time")]
    TooLong(usize),
    #[error("a chunk is empty")]
    Empty,
    #[error("a chunk has the unknown kind {0}")]
    Kind(u8),
    #[error("more than {MAX_HELD} bytes came while none could be taken")]
    Overrun,
}

/// The longest chunk there can be, its kind included.
pub(super) const MAX_CHUNK: usize = u16::MAX as usize;

/// Received bytes that are not taken yet.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
    /// Where the untaken ones begin.
    at: usize,
}

impl Inbox {
    /// Adds what was received.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), ChunkError> {
        self.bytes.drain(..self.at.min(self.bytes.len()));
        self.at = 0;
        if self.bytes.is_empty() && self.bytes.capacity() > MAX_IDLE {
            self.bytes = Vec::new();
        }
        if self.bytes.len() + bytes.len() > MAX_HELD {
            return Err(ChunkError::Overrun);
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Takes the preamble, once it is there whole.
    pub(super) fn preamble(&mut self) -> Option<[u8; PREAMBLE_LEN]> {
        let preamble = self.rest().first_chunk().copied()?;
        self.at += PREAMBLE_LEN;
        Some(preamble)
    }

    /// Takes the next chunk, of at most `limit` bytes, once it is there whole.
    pub(super) fn chunk(&mut self, limit: usize) -> Result<Option<Chunk>, ChunkError> {
        let Some((len, rest)) = self.rest().split_first_chunk() else {
            return Ok(None);
        };
        let len = usize::from(u16::from_be_bytes(*len));
        if len > limit {
            return Err(ChunkError::TooLong(len));
        }
        let Some(chunk) = rest.get(..len) else {
            return Ok(None);
        };
        let (kind, body) = chunk.split_first().ok_or(ChunkError::Empty)?;
        let chunk = match *kind {
            HANDSHAKE => Chunk::Handshake(body.to_vec()),
            REFUSAL => Chunk::Refusal(body.to_vec()),
            TRANSPORT => Chunk::Transport(body.to_vec()),
            kind => return Err(ChunkError::Kind(kind)),
        };
        self.at += 2 + len;
        Ok(Some(chunk))
    }

    fn rest(&self) -> &[u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }
}

impl Chunk {
    /// Appends the chunk as it goes on the stream; `body` is short enough by its maker's care.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let (kind, body) = match self {
            Self::Handshake(body) => (HANDSHAKE, body),
            Self::Refusal(body) => (REFUSAL, body),
            Self::Transport(body) => (TRANSPORT, body),
        };
        let len = u16::try_from(body.len() + 1).unwrap_or(u16::MAX);
        out.extend_from_slice(&len.to_be_bytes());
        out.push(kind);
        out.extend_from_slice(body.get(..usize::from(len) - 1).unwrap_or(body));
    }
}

const HANDSHAKE: u8 = 0;
const REFUSAL: u8 = 1;
const TRANSPORT: u8 = 2;
/// Four of the longest messages; reached only while a connection is held back for some seconds.
const MAX_HELD: usize = 4 * weft_wire::control::MAX_CONTROL;
/// What is kept to receive into while nothing is held: more was for one long message.
const MAX_IDLE: usize = 4096;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_overlong_chunk_is_refused_by_its_length_alone() {
        let mut inbox = Inbox::default();
        inbox.push(&[4, 1]).unwrap();
        assert_eq!(inbox.chunk(1024), Err(ChunkError::TooLong(1025)));
        assert_eq!(inbox.chunk(1025), Ok(None));
    }

    #[test]
    fn an_empty_chunk_and_an_unknown_kind_are_refused() {
        let mut inbox = Inbox::default();
        inbox.push(&[0, 0]).unwrap();
        assert_eq!(inbox.chunk(10), Err(ChunkError::Empty));
        let mut inbox = Inbox::default();
        inbox.push(&[0, 1, 9]).unwrap();
        assert_eq!(inbox.chunk(10), Err(ChunkError::Kind(9)));
    }

    #[test]
    fn bytes_held_back_are_bounded() {
        let mut inbox = Inbox::default();
        for _ in 0..4 {
            inbox.push(&vec![0; MAX_HELD / 4]).unwrap();
        }
        assert_eq!(inbox.push(&[0]), Err(ChunkError::Overrun));
    }

    #[test]
    fn room_for_a_long_message_is_given_back_after_it() {
        let mut inbox = Inbox::default();
        let mut long = vec![TRANSPORT, 0, 0, 0];
        long.splice(..0, 60_000_u16.to_be_bytes());
        long.resize(2 + 60_000, 7);
        inbox.push(&long).unwrap();
        assert!(matches!(inbox.chunk(60_000), Ok(Some(_))));
        inbox.push(&[0]).unwrap();
        assert!(inbox.bytes.capacity() <= MAX_IDLE);
    }

    proptest! {
        #[test]
        fn chunks_come_out_as_they_went_in_however_they_are_cut(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..8),
            cut in 1usize..50,
        ) {
            let mut stream = vec![];
            for body in &bodies {
                Chunk::Transport(body.clone()).write(&mut stream);
            }
            let mut inbox = Inbox::default();
            let mut read = vec![];
            for part in stream.chunks(cut) {
                inbox.push(part).unwrap();
                while let Some(chunk) = inbox.chunk(MAX_CHUNK).unwrap() {
                    read.push(chunk);
                }
            }
            let sent: Vec<_> = bodies.into_iter().map(Chunk::Transport).collect();
            prop_assert_eq!(read, sent);
        }
    }
}
