//! What weft puts on the wire, and the small types every other crate speaks in.
//!
//! Two kinds of bytes leave a router. A *datagram* (UDP) holds one [`packet`]: a clear header and a
//! sealed [`message`], which is a frame on its way or a heartbeat. A *control connection* (TCP)
//! carries [`control`] messages inside Noise: gossip, keys, refusals, and requests that may be
//! passed on for others. Where both ends trust what is between them, kernels carry frames by VXLAN
//! ([`fast`]).
//!
//! Everything here is bytes in, types out and back. Nothing allocates while frames are parsed,
//! nothing panics on any input, and `parse(emit(x)) == x` holds for each format.
//!
//! Start with [`packet`], then [`message`], then [`control`].
#![forbid(unsafe_code)]

pub mod codec;
pub mod control;
mod error;
pub mod fast;
pub mod frame;
mod mac;
pub mod message;
mod network;
pub mod packet;
mod peer;
pub mod relayed;
pub mod resolution;

pub use error::Malformed;
pub use frame::{Frame, Network};
pub use mac::{MacAddr, ParseMacError};
pub use network::{Label, NetworkKey, NetworkKeyError};
pub use peer::{Nickname, ParsePeerNameError, PeerName, PeerUid};
