//! What neighbours say to each other over a control connection (TCP).
//!
//! A connection opens with a clear [`Preamble`] in both directions, so that a peer of another
//! version or cluster can be refused in words instead of by silence. Then each chunk on the stream is
//! a 16-bit length and that many bytes:
//!
//! ```text
//!  handshake   | 0 | Noise handshake message ...        |
//!  refusal     | 1 | reason (1) | text (16-bit length)  |   in clear, only before the handshake ends
//!  transport   | 2 | Noise transport message ...        |
//! ```
//!
//! A transport message holds one piece of a [`Control`] message: a byte that is 1 if more pieces
//! follow, then the piece. The first `Control` each way is [`Control::Hello`].

use std::fmt;

use thiserror::Error;

use crate::codec::{Reader, Writer};
use crate::fast::Fast;
use crate::packet::ReceiverIndex;
use crate::relayed::Relayed;
use crate::{Malformed, Nickname, PeerName, PeerUid};

/// Version of the control protocol this code speaks.
pub const PROTOCOL: u8 = 2;
/// The longest [`Control`] message, in bytes; a longer one is refused before it is buffered.
///
/// A gossip envelope is at most 65,507 bytes and a ring of a thousand peers about 100 KiB.
pub const MAX_CONTROL: usize = 1 << 20;
/// Bytes of a preamble.
pub const PREAMBLE_LEN: usize = 16;

const MAGIC: [u8; 4] = *b"weft";
const MAX_TEXT: usize = 512;
const MAX_POOLS: u16 = 64;

/// The first bytes each side sends, in clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preamble {
    /// Oldest protocol the sender speaks.
    pub oldest: u8,
    /// Newest protocol the sender speaks.
    pub newest: u8,
    /// Whether the sender was given a password.
    pub password: bool,
    /// First 8 bytes of a hash of the cluster's name.
    pub cluster: [u8; 8],
}

impl Preamble {
    /// The preamble's bytes.
    pub fn emit(self) -> Vec<u8> {
        let mut w = Writer::new();
        w.raw(&MAGIC).u8(self.oldest).u8(self.newest);
        w.bool(self.password).u8(0).raw(&self.cluster);
        w.into_bytes()
    }

    /// Reads a preamble.
    ///
    /// # Errors
    /// The other side does not speak weft at all.
    pub fn parse(bytes: &[u8; PREAMBLE_LEN]) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes);
        let magic: [u8; 4] = r.array("magic")?;
        if magic != MAGIC {
            let value = u32::from_be_bytes(magic).into();
            return Err(Malformed::Unknown {
                what: "magic",
                value,
            });
        }
        let oldest = r.u8("oldest protocol")?;
        let newest = r.u8("newest protocol")?;
        let password = r.bool("password flag")?;
        let _reserved = r.u8("reserved")?;
        let cluster = r.array("cluster tag")?;
        Ok(Self {
            oldest,
            newest,
            password,
            cluster,
        })
    }
}

/// Why a peer does not want a connection; shown to people on both ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RefusalReason {
    /// The passwords differ.
    WrongPassword,
    /// One side has a password and the other has none.
    PasswordOnOneSide,
    /// The cluster names differ.
    OtherCluster,
    /// No protocol version in common.
    Version,
    /// Another live peer has this name with another key.
    NameClash,
    /// Another live peer has the same name and the same key: a cloned disk image.
    Clone,
    /// The address dialled leads back to the dialler.
    OwnAddress,
    /// The connection limit is reached.
    Limit,
    /// Address pools overlap and are not the same.
    Range,
    /// Both dialled; the other connection was kept. Not a fault.
    Duplicate,
    /// Too many handshakes with a wrong password came from this address.
    Throttled,
    /// The control connection works, but no heartbeat comes back over UDP.
    NoHeartbeat,
    /// The sender is being stopped. Not a fault.
    Stopping,
    /// What the other side sent makes no sense here.
    Protocol,
    /// There are too many peers to be connected with all, and this connection carries nothing. Not a fault.
    Unneeded,
}

impl RefusalReason {
    /// Every reason, in wire order.
    pub const ALL: [Self; 15] = [
        Self::WrongPassword,
        Self::PasswordOnOneSide,
        Self::OtherCluster,
        Self::Version,
        Self::NameClash,
        Self::Clone,
        Self::OwnAddress,
        Self::Limit,
        Self::Range,
        Self::Duplicate,
        Self::Throttled,
        Self::NoHeartbeat,
        Self::Stopping,
        Self::Protocol,
        Self::Unneeded,
    ];

    /// The name of the reason as a metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::WrongPassword => "wrong_password",
            Self::PasswordOnOneSide => "password_on_one_side",
            Self::OtherCluster => "other_cluster",
            Self::Version => "version",
            Self::NameClash => "name_clash",
            Self::Clone => "clone",
            Self::OwnAddress => "own_address",
            Self::Limit => "limit",
            Self::Range => "range",
            Self::Duplicate => "duplicate",
            Self::Throttled => "throttled",
            Self::NoHeartbeat => "no_heartbeat",
            Self::Stopping => "stopping",
            Self::Protocol => "protocol",
            Self::Unneeded => "unneeded",
        }
    }

    /// The reason in a few words for people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::WrongPassword => "wrong password",
            Self::PasswordOnOneSide => "password on one side only",
            Self::OtherCluster => "other cluster",
            Self::Version => "no protocol version in common",
            Self::NameClash | Self::Clone => "name clash",
            Self::OwnAddress => "cannot connect to ourselves",
            Self::Limit => "connection limit reached",
            Self::Range => "address ranges differ",
            Self::Duplicate => "duplicate connection",
            Self::Throttled => "too many wrong passwords",
            Self::NoHeartbeat => "no UDP heartbeat",
            Self::Stopping => "stopping",
            Self::Protocol => "protocol error",
            Self::Unneeded => "not needed any more",
        }
    }

    const fn code(self) -> u8 {
        self as u8 + 1
    }

    fn parse(code: u8) -> Result<Self, Malformed> {
        Self::ALL
            .into_iter()
            .find(|reason| reason.code() == code)
            .ok_or(Malformed::Unknown {
                what: "refusal reason",
                value: code.into(),
            })
    }
}

/// A refusal as it is sent: the reason, and words with the values in them.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text}")]
pub struct Refusal {
    /// The kind of refusal.
    pub reason: RefusalReason,
    /// One sentence for people, at most 512 bytes.
    pub text: String,
}

impl Refusal {
    /// A refusal with its words, cut to what may be sent.
    pub fn new(reason: RefusalReason, text: impl Into<String>) -> Self {
        let mut text = text.into();
        let mut end = text.len().min(MAX_TEXT);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        Self { reason, text }
    }

    /// Appends the refusal's fields.
    pub fn write(&self, w: &mut Writer) {
        w.u8(self.reason.code()).text(&self.text);
    }

    /// Reads the refusal's fields; control characters in the text are left out.
    ///
    /// # Errors
    /// A field is cut short, too long or unknown.
    pub fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let reason = RefusalReason::parse(r.u8("refusal reason")?)?;
        let text = r.text(MAX_TEXT, "refusal text")?;
        let text = text.chars().filter(|c| !c.is_control()).collect();
        Ok(Self { reason, text })
    }
}

/// Who a peer is and what it can do; the first message each way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Its lasting name.
    pub name: PeerName,
    /// Its name for people.
    pub nickname: Nickname,
    /// The number of this run of it.
    pub uid: PeerUid,
    /// When this run started, Unix seconds; decides between two live clones, nothing else.
    pub started: u64,
    /// The port it listens on, TCP and UDP.
    pub port: u16,
    /// Whether it seals AES-256-GCM in hardware.
    pub aes: bool,
    /// Whether it trusts the subnet the connection runs over.
    pub trusts: bool,
    /// MTU of its default network, in bytes.
    pub mtu: u16,
    /// The address pools it was told of, in CIDR form; those of others that overlap them must be the same.
    pub pools: Vec<String>,
    /// The program's version, for people.
    pub version: String,
}

/// Which cipher seals a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Suite {
    /// AES-256-GCM, where both ends have it in hardware.
    Aes256Gcm,
    /// ChaCha20-Poly1305 (RFC 8439).
    ChaCha20Poly1305,
}

/// A key for sealing towards the sender of this message, chosen by it.
///
/// It goes over the control connection, whose own key is replaced right after it (Noise `REKEY`),
/// so a key read out later does not open what was sent before.
#[derive(Clone, PartialEq, Eq)]
pub struct SessionKey {
    /// The number the sender knows the session by.
    pub receiver: ReceiverIndex,
    /// The cipher to use.
    pub suite: Suite,
    /// The key.
    pub key: [u8; 32],
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionKey")
            .field("receiver", &self.receiver)
            .field("suite", &self.suite)
            .finish_non_exhaustive()
    }
}

/// A message of one machine to its like on another peer, passed on by peers in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routed {
    /// Who sent it.
    pub source: PeerName,
    /// Whom it is for.
    pub destination: PeerName,
    /// How many more times it may be passed on.
    pub hops: u8,
    /// The machine's own message.
    pub body: Vec<u8>,
}

/// One message on a control connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// Who the sender is; first and only once.
    Hello(Hello),
    /// The sender ends the connection, and why.
    Refusal(Refusal),
    /// The sender lives.
    Heartbeat,
    /// Seal what you send me with this from here on.
    Key(SessionKey),
    /// Frames may flow as far as the sender is concerned (`true`), or must not any more.
    Ready(bool),
    /// A gossip envelope for the receiver.
    Gossip(Vec<u8>),
    /// A message for some peer.
    Routed(Routed),
    /// About the fast datapath.
    Fast(Fast),
    /// A piece of a control connection between two other peers, or between one and the receiver.
    Relayed(Relayed),
}

const HELLO: u8 = 1;
const REFUSAL: u8 = 2;
const HEARTBEAT: u8 = 3;
const KEY: u8 = 4;
const READY: u8 = 5;
const GOSSIP: u8 = 6;
const ROUTED: u8 = 7;
const FAST: u8 = 8;
const RELAYED: u8 = 9;

impl Control {
    /// The message's bytes.
    pub fn emit(&self) -> Vec<u8> {
        let mut w = Writer::new();
        match self {
            Self::Hello(hello) => hello.write(w.u8(HELLO)),
            Self::Refusal(refusal) => refusal.write(w.u8(REFUSAL)),
            Self::Heartbeat => {
                w.u8(HEARTBEAT);
            }
            Self::Key(key) => {
                let suite = match key.suite {
                    Suite::Aes256Gcm => 1,
                    Suite::ChaCha20Poly1305 => 2,
                };
                w.u8(KEY).u32(key.receiver.0).u8(suite).raw(&key.key);
            }
            Self::Ready(ready) => {
                w.u8(READY).bool(*ready);
            }
            Self::Gossip(bytes) => {
                w.u8(GOSSIP).raw(bytes);
            }
            Self::Routed(routed) => {
                w.u8(ROUTED).u8(routed.hops);
                w.peer(routed.source).peer(routed.destination);
                w.raw(&routed.body);
            }
            Self::Fast(fast) => fast.write(w.u8(FAST)),
            Self::Relayed(relayed) => relayed.write(w.u8(RELAYED)),
        }
        w.into_bytes()
    }

    /// Reads a message.
    ///
    /// # Errors
    /// A field is cut short, too long, not text where text is due, or unknown.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes);
        let message = match r.u8("control message kind")? {
            HELLO => Self::Hello(Hello::read(&mut r)?),
            REFUSAL => Self::Refusal(Refusal::read(&mut r)?),
            HEARTBEAT => Self::Heartbeat,
            KEY => Self::Key(SessionKey {
                receiver: ReceiverIndex(r.u32("receiver index")?),
                suite: match r.u8("suite")? {
                    1 => Suite::Aes256Gcm,
                    2 => Suite::ChaCha20Poly1305,
                    value => {
                        let value = value.into();
                        return Err(Malformed::Unknown {
                            what: "suite",
                            value,
                        });
                    }
                },
                key: r.array("session key")?,
            }),
            READY => Self::Ready(r.bool("ready flag")?),
            GOSSIP => Self::Gossip(r.rest().to_vec()),
            ROUTED => Self::Routed(Routed {
                hops: r.u8("hop limit")?,
                source: r.peer("source peer")?,
                destination: r.peer("destination peer")?,
                body: r.rest().to_vec(),
            }),
            FAST => Self::Fast(Fast::read(&mut r)?),
            RELAYED => Self::Relayed(Relayed::read(&mut r)?),
            value => {
                return Err(Malformed::Unknown {
                    what: "control message kind",
                    value: value.into(),
                });
            }
        };
        r.finish("control message")?;
        Ok(message)
    }
}

impl Hello {
    fn write(&self, w: &mut Writer) {
        w.peer(self.name).text(self.nickname.as_str());
        w.u64(self.uid.0).u64(self.started).u16(self.port);
        w.bool(self.aes).bool(self.trusts).u16(self.mtu);
        let pools = self.pools.iter().take(MAX_POOLS.into());
        w.u16(u16::try_from(pools.len()).unwrap_or(MAX_POOLS));
        for pool in pools {
            w.text(pool);
        }
        w.text(&self.version);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            name: r.peer("peer name")?,
            nickname: Nickname::new(r.text(Nickname::MAX, "nickname")?),
            uid: PeerUid(r.u64("peer uid")?),
            started: r.u64("start time")?,
            port: r.u16("port")?,
            aes: r.bool("aes flag")?,
            trusts: r.bool("trust flag")?,
            mtu: r.u16("mtu")?,
            pools: {
                let count = r.u16("pool count")?;
                if count > MAX_POOLS {
                    return Err(Malformed::TooLong {
                        what: "pool list",
                        value: count.into(),
                        limit: MAX_POOLS.into(),
                    });
                }
                (0..count)
                    .map(|_| r.text(64, "pool").map(str::to_owned))
                    .collect::<Result<_, _>>()?
            },
            version: r.text(MAX_TEXT, "version")?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::relayed::{MAX_RELAYED, Part};

    fn hello() -> Hello {
        Hello {
            name: PeerName::from_bytes([2, 0, 0, 0, 0, 1]),
            nickname: Nickname::new("host1"),
            uid: PeerUid(7),
            started: 1_800_000_000,
            port: 6783,
            aes: true,
            trusts: false,
            mtu: 1376,
            pools: vec!["10.32.0.0/12".to_owned()],
            version: "0.1.0".to_owned(),
        }
    }

    #[test]
    fn every_message_is_read_back() {
        let name = PeerName::from_bytes([1; 6]);
        let key = SessionKey {
            receiver: ReceiverIndex(9),
            suite: Suite::ChaCha20Poly1305,
            key: [3; 32],
        };
        let refusals = RefusalReason::ALL.map(|reason| {
            let text = format!("because of {}", reason.label());
            Control::Refusal(Refusal { reason, text })
        });
        let others = [
            Control::Hello(hello()),
            Control::Heartbeat,
            Control::Key(key),
            Control::Ready(true),
            Control::Gossip(vec![1, 2, 3]),
            Control::Routed(Routed {
                source: name,
                destination: name,
                hops: 16,
                body: vec![4],
            }),
            Control::Fast(Fast::Open {
                port: 6784,
                key: [5; 32],
            }),
            Control::Fast(Fast::Shut("no nft".to_owned())),
            Control::Fast(Fast::Came(u64::MAX)),
        ]
        .into_iter()
        .chain([Part::Open(vec![1, 2]), Part::Bytes(vec![3]), Part::End].map(relayed));
        for message in refusals.into_iter().chain(others) {
            assert_eq!(Control::parse(&message.emit()), Ok(message));
        }
    }

    #[test]
    fn a_relayed_piece_is_bounded() {
        let fits = relayed(Part::Bytes(vec![0; MAX_RELAYED])).emit();
        assert!(Control::parse(&fits).is_ok());
        let long = relayed(Part::Bytes(vec![0; MAX_RELAYED + 1])).emit();
        assert!(Control::parse(&long).is_err());
    }

    fn relayed(part: Part) -> Control {
        Control::Relayed(Relayed {
            source: PeerName::from_bytes([1; 6]),
            destination: PeerName::from_bytes([2; 6]),
            hops: 16,
            stream: u64::MAX,
            by_dialler: true,
            part,
        })
    }

    #[test]
    fn every_cut_of_a_message_is_refused() {
        let whole = Control::Hello(hello()).emit();
        for len in 0..whole.len() {
            assert!(Control::parse(&whole[..len]).is_err(), "cut at {len}");
        }
        let longer = [&whole[..], &[0]].concat();
        assert!(Control::parse(&longer).is_err());
    }

    #[test]
    fn keys_do_not_show_in_debug_output() {
        let key = SessionKey {
            receiver: ReceiverIndex(9),
            suite: Suite::Aes256Gcm,
            key: [0xab; 32],
        };
        assert!(!format!("{key:?}").contains("171"));
    }

    #[test]
    fn overlong_words_of_a_refusal_are_cut_and_read_back() {
        let refusal = Refusal::new(RefusalReason::Range, "é".repeat(400));
        let message = Control::Refusal(refusal);
        assert_eq!(Control::parse(&message.emit()), Ok(message));
    }

    proptest! {
        #[test]
        fn preamble_is_read_back(oldest: u8, newest: u8, password: bool, cluster: [u8; 8]) {
            let preamble = Preamble { oldest, newest, password, cluster };
            let bytes: [u8; PREAMBLE_LEN] = preamble.emit().try_into().unwrap();
            prop_assert_eq!(Preamble::parse(&bytes), Ok(preamble));
        }

        #[test]
        fn any_bytes_parse_without_panic(bytes: Vec<u8>) {
            let _ = Control::parse(&bytes);
        }
    }
}
