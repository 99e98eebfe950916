//! What two peers say about the fast datapath, where their kernels hand frames to each other by VXLAN.
//!
//! Over the control connection each says whether it takes frames that way ([`Fast::Open`]). Whether the
//! way there carries them is asked through the VXLAN itself, by a *beat*, a frame as long as the
//! network's MTU allows; that it came is said over the control connection ([`Fast::Came`]).
//!
//! ```text
//!  0                  6                  12      14
//! | receiver's bridge | sender's bridge   | 88 B5 |                       Ethernet
//! | "weft" (4) | sender (6) | number (8) | tag (32)  | zeroes ...         up to the MTU
//! ```
//!
//! The tag is made, with a key the receiver chose, over all that stands before it behind the Ethernet
//! header, and the length of the frame.

use std::fmt;

use crate::codec::{Reader, Writer};
use crate::frame::ETHERNET_HEADER;
use crate::{Malformed, PeerName};

/// The ethertype of beats: IEEE 802's first one for experiments within one network.
pub const BEAT_ETHERTYPE: u16 = 0x88b5;
/// Bytes of a beat's tag.
pub const TAG_LEN: usize = 32;

const MAGIC: [u8; 4] = *b"weft";
const MAX_TEXT: usize = 512;

/// What a peer says about the fast datapath over a control connection.
#[derive(Clone, PartialEq, Eq)]
pub enum Fast {
    /// The sender's kernel takes frames from the receiver's address. In place of what it said before.
    Open {
        /// The UDP port its VXLAN listens on.
        port: u16,
        /// What the tags of beats to it are made with.
        key: [u8; 32],
    },
    /// It takes none, and why, in a sentence for people.
    Shut(String),
    /// The beat of this number came.
    Came(u64),
}

const OPEN: u8 = 1;
const SHUT: u8 = 2;
const CAME: u8 = 3;

impl Fast {
    /// Appends the fields.
    pub(crate) fn write(&self, w: &mut Writer) {
        match self {
            Self::Open { port, key } => w.u8(OPEN).u16(*port).raw(key),
            Self::Shut(why) => {
                let mut end = why.len().min(MAX_TEXT);
                while !why.is_char_boundary(end) {
                    end -= 1;
                }
                w.u8(SHUT).text(why.get(..end).unwrap_or_default())
            }
            Self::Came(number) => w.u8(CAME).u64(*number),
        };
    }

    /// Reads the fields; control characters in a text are left out.
    ///
    /// # Errors
    /// A field is cut short, too long or unknown.
    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        match r.u8("fast datapath message")? {
            OPEN => Ok(Self::Open {
                port: r.u16("VXLAN port")?,
                key: r.array("beat key")?,
            }),
            SHUT => {
                let why = r.text(MAX_TEXT, "fast datapath refusal")?;
                Ok(Self::Shut(
                    why.chars().filter(|c| !c.is_control()).collect(),
                ))
            }
            CAME => Ok(Self::Came(r.u64("beat number")?)),
            value => Err(Malformed::Unknown {
                what: "fast datapath message",
                value: value.into(),
            }),
        }
    }
}

impl fmt::Debug for Fast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { port, .. } => f
                .debug_struct("Open")
                .field("port", port)
                .finish_non_exhaustive(),
            Self::Shut(why) => f.debug_tuple("Shut").field(why).finish(),
            Self::Came(number) => f.debug_tuple("Came").field(number).finish(),
        }
    }
}

/// The question whether a frame of this length gets through the VXLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// Who asks.
    pub sender: PeerName,
    /// Of this question; those to one receiver count up.
    pub number: u64,
    /// Bytes of the whole frame.
    pub len: u16,
}

impl Beat {
    /// The longest beat of a network with this MTU.
    pub fn len_for(mtu: u16) -> u16 {
        mtu.saturating_add(ETHERNET_HEADER as u16)
    }

    /// What the tag is made over.
    pub fn signed(self) -> Vec<u8> {
        let mut w = Writer::new();
        w.raw(&MAGIC)
            .peer(self.sender)
            .u64(self.number)
            .u16(self.len);
        w.into_bytes()
    }

    /// The frame. One whose length is too small for what must be in it is longer than it says, and no
    /// receiver takes it.
    pub fn emit(self, receiver: PeerName, tag: [u8; TAG_LEN]) -> Vec<u8> {
        let mut w = Writer::new();
        w.peer(receiver).peer(self.sender).u16(BEAT_ETHERTYPE);
        w.raw(&MAGIC).peer(self.sender).u64(self.number).raw(&tag);
        let mut frame = w.into_bytes();
        frame.resize(frame.len().max(self.len.into()), 0);
        frame
    }

    /// Reads a frame that came: the question and its tag.
    ///
    /// # Errors
    /// It is no beat, or cut short.
    pub fn parse(frame: &[u8]) -> Result<(Self, [u8; TAG_LEN]), Malformed> {
        let mut r = Reader::new(frame);
        let _macs = r.take(ETHERNET_HEADER - 2, "Ethernet header")?;
        let ethertype = r.u16("Ethernet header")?;
        let magic: [u8; 4] = r.array("magic")?;
        if ethertype != BEAT_ETHERTYPE || magic != MAGIC {
            return Err(Malformed::Unknown {
                what: "beat",
                value: ethertype.into(),
            });
        }
        let beat = Self {
            sender: r.peer("sender")?,
            number: r.u64("beat number")?,
            len: u16::try_from(frame.len()).unwrap_or(u16::MAX),
        };
        Ok((beat, r.array("tag")?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BEAT: Beat = Beat {
        sender: PeerName::from_bytes([2, 0, 0, 0, 0, 1]),
        number: 7,
        len: 1390,
    };
    const RECEIVER: PeerName = PeerName::from_bytes([2, 0, 0, 0, 0, 2]);

    #[test]
    fn a_beat_is_as_long_as_it_says_and_is_read_back() {
        assert_eq!(Beat::len_for(1376), 1390);
        let frame = BEAT.emit(RECEIVER, [9; TAG_LEN]);
        assert_eq!(frame.len(), 1390);
        assert_eq!(frame[..6], [2, 0, 0, 0, 0, 2]);
        assert_eq!(frame[12..14], [0x88, 0xb5]);
        assert_eq!(Beat::parse(&frame), Ok((BEAT, [9; TAG_LEN])));
    }

    #[test]
    fn a_beat_that_was_cut_or_padded_on_its_way_is_another_one() {
        let frame = BEAT.emit(RECEIVER, [9; TAG_LEN]);
        let (cut, _) = Beat::parse(&frame[..1000]).unwrap();
        assert_ne!(cut.signed(), BEAT.signed());
        assert!(Beat::parse(&frame[..ETHERNET_HEADER + 18 + TAG_LEN - 1]).is_err());
    }

    #[test]
    fn keys_do_not_show_and_long_words_are_cut() {
        let open = Fast::Open {
            port: 6784,
            key: [0xab; 32],
        };
        assert!(!format!("{open:?}").contains("171"));
        let mut w = Writer::new();
        Fast::Shut("é".repeat(400)).write(&mut w);
        let bytes = w.into_bytes();
        let read = Fast::read(&mut Reader::new(&bytes)).unwrap();
        assert_eq!(read, Fast::Shut("é".repeat(256)));
    }

    proptest! {
        #[test]
        fn any_bytes_parse_without_panic(bytes: Vec<u8>) {
            let _ = Beat::parse(&bytes);
            let _ = Fast::read(&mut Reader::new(&bytes));
        }
    }
}
