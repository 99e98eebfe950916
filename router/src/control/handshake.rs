//! What both sides must agree on before a word is sealed: preambles, then Noise `XXpsk3`.
//!
//! ```text
//!   dialling side                               accepting side
//!        preamble ───────────▶   ◀─────────── preamble      in clear: version, cluster, password?
//!        e        ─────────────────────────▶
//!                 ◀───────────────────────── e, ee, s, es
//!        s, se, psk ───────────────────────▶                wrong password shows here
//! ```
//!
//! The prologue holds both preambles as they were sent, so nobody in between can change one.

use aws_lc_rs::digest::{SHA256, digest};
use snow::params::NoiseParams;
use snow::{Builder, HandshakeState};
use thiserror::Error;
use weft_wire::Malformed;
use weft_wire::control::{PREAMBLE_LEN, PROTOCOL, Preamble, RefusalReason};
use zeroize::Zeroizing;

use super::crypto::Resolver;
use crate::{Identity, Psk};

/// Which side of a connection we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// We dialled.
    Initiator,
    /// We accepted.
    Responder,
}

/// What we bring to every handshake.
#[derive(Debug)]
pub(crate) struct Credentials {
    pub(crate) identity: Identity,
    /// None: anybody may come in.
    pub(crate) psk: Option<Psk>,
    pub(crate) cluster: String,
}

/// Why two preambles do not fit together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum PreambleError {
    #[error("not a weft router: {0}")]
    NotWeft(#[from] Malformed),
    #[error(
        "one end speaks protocol {PROTOCOL}, the other {oldest} to {newest}; upgrade the older weft"
    )]
    Version { oldest: u8, newest: u8 },
    #[error("the two cluster names differ; both ends need the same --cluster")]
    Cluster,
    #[error("only one end was given a password; both need the same --password")]
    PasswordOnOneSide,
}

impl PreambleError {
    /// As it is told to the other side; nothing is told to who does not speak weft.
    pub(crate) fn reason(self) -> Option<RefusalReason> {
        match self {
            Self::NotWeft(_) => None,
            Self::Version { .. } => Some(RefusalReason::Version),
            Self::Cluster => Some(RefusalReason::OtherCluster),
            Self::PasswordOnOneSide => Some(RefusalReason::PasswordOnOneSide),
        }
    }
}

impl Credentials {
    /// What we send first.
    pub(super) fn preamble(&self) -> Preamble {
        let hash = digest(
            &SHA256,
            &[b"weft-cluster-v1 ", self.cluster.as_bytes()].concat(),
        );
        Preamble {
            oldest: PROTOCOL,
            newest: PROTOCOL,
            password: self.psk.is_some(),
            cluster: hash.as_ref().first_chunk().copied().unwrap_or_default(),
        }
    }

    /// Checks the other side's preamble against ours and sets the handshake up.
    pub(super) fn handshake(
        &self,
        side: Side,
        theirs: &[u8; PREAMBLE_LEN],
        seed: Zeroizing<[u8; 32]>,
    ) -> Result<Result<HandshakeState, snow::Error>, PreambleError> {
        let ours = self.preamble();
        check(ours, Preamble::parse(theirs)?)?;
        let ours = ours.emit();
        let (first, second) = match side {
            Side::Initiator => (ours.as_slice(), theirs.as_slice()),
            Side::Responder => (theirs.as_slice(), ours.as_slice()),
        };
        let prologue = [&[PROTOCOL], self.cluster.as_bytes(), first, second].concat();
        Ok(self.build(side, &prologue, seed))
    }

    fn build(
        &self,
        side: Side,
        prologue: &[u8],
        seed: Zeroizing<[u8; 32]>,
    ) -> Result<HandshakeState, snow::Error> {
        let params: NoiseParams = PATTERN.parse()?;
        let open = Psk::open();
        let psk = self.psk.as_ref().unwrap_or(&open);
        let builder = Builder::with_resolver(params, Box::new(Resolver::new(seed)))
            .local_private_key(self.identity.secret().as_slice())?
            .psk(3, psk.bytes())?
            .prologue(prologue)?;
        match side {
            Side::Initiator => builder.build_initiator(),
            Side::Responder => builder.build_responder(),
        }
    }
}

/// The control connection carries little, so one cipher that is fast everywhere will do.
const PATTERN: &str = "Noise_XXpsk3_25519_ChaChaPoly_SHA256";

fn check(ours: Preamble, theirs: Preamble) -> Result<(), PreambleError> {
    let (oldest, newest) = (theirs.oldest, theirs.newest);
    if oldest > ours.newest || newest < ours.oldest {
        return Err(PreambleError::Version { oldest, newest });
    }
    if ours.cluster != theirs.cluster {
        return Err(PreambleError::Cluster);
    }
    if ours.password != theirs.password {
        return Err(PreambleError::PasswordOnOneSide);
    }
    Ok(())
}
