//! Reading and writing of fixed-order binary fields, big-endian.
//!
//! [`Reader`] and [`Writer`] are all that the formats of this crate, and the messages other crates
//! send through [`crate::control::Control::Routed`], are built from. A `Reader` never reads past
//! its end and never allocates more than the bytes it was given.

use crate::{Malformed, PeerName};

/// A cursor over received bytes; every method says what it was reading when it fails.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Takes exactly `n` bytes.
    pub fn take(&mut self, n: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self
            .rest
            .split_at_checked(n)
            .ok_or(Malformed::Truncated { what })?;
        self.rest = rest;
        Ok(head)
    }

    /// Takes a fixed-size array.
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Malformed> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(Malformed::Truncated { what })?;
        self.rest = rest;
        Ok(*head)
    }

    /// Takes one byte.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, Malformed> {
        Ok(u8::from_be_bytes(self.array(what)?))
    }

    /// Takes one byte that must be 0 or 1.
    pub fn bool(&mut self, what: &'static str) -> Result<bool, Malformed> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(Malformed::Unknown {
                what,
                value: value.into(),
            }),
        }
    }

    /// Takes two bytes.
    pub fn u16(&mut self, what: &'static str) -> Result<u16, Malformed> {
        Ok(u16::from_be_bytes(self.array(what)?))
    }

    /// Takes four bytes.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        Ok(u32::from_be_bytes(self.array(what)?))
    }

    /// Takes eight bytes.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(self.array(what)?))
    }

    /// Takes sixteen bytes.
    pub fn u128(&mut self, what: &'static str) -> Result<u128, Malformed> {
        Ok(u128::from_be_bytes(self.array(what)?))
    }

    /// Takes a peer's name, six bytes.
    pub fn peer(&mut self, what: &'static str) -> Result<PeerName, Malformed> {
        Ok(PeerName::from_bytes(self.array(what)?))
    }

    /// Takes bytes preceded by their 16-bit length, at most `limit`.
    pub fn bytes16(&mut self, limit: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let len = usize::from(self.u16(what)?);
        self.bounded(len, limit, what)
    }

    /// Takes bytes preceded by their 32-bit length, at most `limit`.
    pub fn bytes32(&mut self, limit: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let len = usize::try_from(self.u32(what)?).unwrap_or(usize::MAX);
        self.bounded(len, limit, what)
    }

    /// Takes UTF-8 text preceded by its 16-bit length, at most `limit` bytes.
    pub fn text(&mut self, limit: usize, what: &'static str) -> Result<&'a str, Malformed> {
        let bytes = self.bytes16(limit, what)?;
        std::str::from_utf8(bytes).map_err(|_| Malformed::NotText { what })
    }

    /// Takes all that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// How many bytes are left.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Fails if anything is left over behind the structure `what`.
    pub fn finish(self, what: &'static str) -> Result<(), Malformed> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(Malformed::Trailing { what, extra }),
        }
    }

    fn bounded(
        &mut self,
        len: usize,
        limit: usize,
        what: &'static str,
    ) -> Result<&'a [u8], Malformed> {
        if len > limit {
            return Err(Malformed::TooLong {
                what,
                value: len,
                limit,
            });
        }
        self.take(len, what)
    }
}

/// Appends fields to a growing buffer, the mirror of [`Reader`].
///
/// Lengths are the caller's to keep within what the reader accepts; longer ones are cut at the
/// width of their length field, so that what is written always parses.
#[derive(Debug, Default, Clone)]
pub struct Writer {
    out: Vec<u8>,
}

impl Writer {
    /// An empty writer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.extend_from_slice(bytes);
        self
    }

    /// Appends one byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.raw(&[value])
    }

    /// Appends one byte, 0 or 1.
    pub fn bool(&mut self, value: bool) -> &mut Self {
        self.u8(value.into())
    }

    /// Appends two bytes.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// Appends four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// Appends eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// Appends sixteen bytes.
    pub fn u128(&mut self, value: u128) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// Appends a peer's name.
    pub fn peer(&mut self, name: PeerName) -> &mut Self {
        self.raw(&name.to_bytes())
    }

    /// Appends bytes behind their 16-bit length.
    pub fn bytes16(&mut self, bytes: &[u8]) -> &mut Self {
        let len = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        self.u16(len)
            .raw(bytes.get(..len.into()).unwrap_or_default())
    }

    /// Appends bytes behind their 32-bit length.
    pub fn bytes32(&mut self, bytes: &[u8]) -> &mut Self {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let end = usize::try_from(len).unwrap_or(usize::MAX);
        self.u32(len).raw(bytes.get(..end).unwrap_or_default())
    }

    /// Appends text behind its 16-bit length, cut at a character boundary if it is too long.
    pub fn text(&mut self, text: &str) -> &mut Self {
        let mut end = text.len().min(u16::MAX.into());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.bytes16(text.get(..end).unwrap_or_default().as_bytes())
    }

    /// The bytes written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut w = Writer::new();
        w.u8(7).bool(true).u16(300).u32(70_000).u64(1 << 40).u128(9);
        w.text("name").bytes32(b"long").bytes16(b"").raw(b"tail");
        let bytes = w.into_bytes();
        let mut r = Reader::new(&bytes);
        assert_eq!(r.u8("a"), Ok(7));
        assert_eq!(r.bool("b"), Ok(true));
        assert_eq!(r.u16("c"), Ok(300));
        assert_eq!(r.u32("d"), Ok(70_000));
        assert_eq!(r.u64("e"), Ok(1 << 40));
        assert_eq!(r.u128("f"), Ok(9));
        assert_eq!(r.text(10, "g"), Ok("name"));
        assert_eq!(r.bytes32(10, "h"), Ok(&b"long"[..]));
        assert_eq!(r.bytes16(10, "i"), Ok(&b""[..]));
        assert_eq!(r.remaining(), 4);
        assert_eq!(r.rest(), b"tail");
        assert_eq!(r.finish("all"), Ok(()));
    }

    #[test]
    fn a_length_above_the_bytes_or_the_limit_is_refused() {
        let mut short = Reader::new(&[0, 9, 1]);
        assert_eq!(
            short.bytes16(100, "x"),
            Err(Malformed::Truncated { what: "x" })
        );
        let mut long = Reader::new(&[0, 0, 0, 3, 1, 2, 3]);
        assert_eq!(
            long.bytes32(2, "y"),
            Err(Malformed::TooLong {
                what: "y",
                value: 3,
                limit: 2
            })
        );
    }

    #[test]
    fn overlong_text_is_cut_between_characters() {
        let text = "é".repeat(40_000);
        let mut w = Writer::new();
        w.text(&text);
        let bytes = w.into_bytes();
        let read = Reader::new(&bytes).text(usize::MAX, "t").unwrap().len();
        assert_eq!(read, 65_534);
    }
}
