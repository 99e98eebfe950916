//! Who we are and what lets us in: the static key pair, and the key made from the password.
//!
//! The static key authenticates, with all its 32 bytes; the [`PeerName`] made from it is a label.
//! Both secrets are wiped from memory when dropped and never show in debug output.

use std::fmt;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use aws_lc_rs::agreement::{PrivateKey, X25519};
use aws_lc_rs::digest::{SHA256, digest};
use rand_core::CryptoRng;
use thiserror::Error;
use weft_wire::PeerName;
use zeroize::Zeroizing;

/// A peer's static key pair (X25519).
#[derive(Clone)]
pub struct Identity {
    secret: Zeroizing<[u8; 32]>,
    public: [u8; 32],
}

/// Bytes that are no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("these 32 bytes cannot serve as an X25519 key")]
pub struct IdentityError;

impl Identity {
    /// A new key pair.
    ///
    /// # Errors
    /// The library refused the random bytes; never seen.
    pub fn generate(rng: &mut impl CryptoRng) -> Result<Self, IdentityError> {
        let mut secret = Zeroizing::new([0; 32]);
        rng.fill_bytes(secret.as_mut_slice());
        Self::from_secret(secret)
    }

    /// The key pair of a secret that was kept.
    ///
    /// # Errors
    /// The bytes are no X25519 key.
    pub fn from_secret(secret: Zeroizing<[u8; 32]>) -> Result<Self, IdentityError> {
        let public = public_of(&secret).ok_or(IdentityError)?;
        Ok(Self { secret, public })
    }

    /// The secret half, to be kept where only root can read.
    pub fn secret(&self) -> &Zeroizing<[u8; 32]> {
        &self.secret
    }

    /// The public half.
    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// The name that follows from the key: the first 48 bits of its SHA-256.
    pub fn peer_name(&self) -> PeerName {
        name_of_key(&self.public)
    }
}

/// The name that follows from a public key.
pub(crate) fn name_of_key(public: &[u8; 32]) -> PeerName {
    let hash = digest(&SHA256, public);
    let first = hash.as_ref().first_chunk().copied();
    PeerName::from_hash(first.unwrap_or_default())
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("name", &self.peer_name())
            .finish_non_exhaustive()
    }
}

/// The public half of an X25519 secret.
pub(crate) fn public_of(secret: &[u8; 32]) -> Option<[u8; 32]> {
    let key = PrivateKey::from_private_key(&X25519, secret).ok()?;
    key.compute_public_key().ok()?.as_ref().try_into().ok()
}

/// The pre-shared key that lets a peer into the cluster.
#[derive(Clone)]
pub struct Psk(Zeroizing<[u8; 32]>);

/// A password no key can be made from.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PskError {
    /// An empty password would look like protection and be none.
    #[error("the password is empty; leave it out to let anybody in, or set one")]
    Empty,
    /// Longer than Argon2 takes (4 GiB).
    #[error("the password or the cluster name is too long")]
    TooLong,
}

impl Psk {
    /// Stretches a password, so that whoever has recorded a handshake pays for every guess.
    ///
    /// Takes about 20 ms and 19 MiB; done once at the start. The cluster's name is in the salt: one
    /// password in two clusters makes two keys.
    ///
    /// # Errors
    /// The password is empty or absurdly long.
    pub fn derive(password: &str, cluster: &str) -> Result<Self, PskError> {
        if password.is_empty() {
            return Err(PskError::Empty);
        }
        let params = Params::new(MEMORY_KIB, PASSES, LANES, None).map_err(|_| PskError::TooLong)?;
        let mut memory = vec![Block::new(); params.block_count()];
        let mut key = Zeroizing::new([0; 32]);
        let salt = [SALT, cluster.as_bytes()].concat();
        let hashed = Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into_with_memory(
                password.as_bytes(),
                &salt,
                key.as_mut_slice(),
                &mut memory,
            );
        memory.fill(Block::new());
        // Keeps the wiping above from being optimised away.
        std::hint::black_box(&memory);
        hashed.map_err(|_| PskError::TooLong)?;
        Ok(Self(key))
    }

    /// What stands in for a key in a cluster without a password: known to all.
    pub(crate) fn open() -> Self {
        Self(Zeroizing::new([0; 32]))
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Psk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Psk(..)")
    }
}

const SALT: &[u8] = b"weft-psk-v1";
/// 19 MiB, two passes, one lane: the least OWASP recommends for Argon2id.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    use super::*;

    #[test]
    fn an_identity_comes_back_from_its_secret() {
        let one = Identity::generate(&mut ChaCha20Rng::seed_from_u64(1)).unwrap();
        let back = Identity::from_secret(one.secret().clone()).unwrap();
        assert_eq!(back.public(), one.public());
        assert_eq!(back.peer_name(), one.peer_name());
        let other = Identity::generate(&mut ChaCha20Rng::seed_from_u64(2)).unwrap();
        assert_ne!(other.peer_name(), one.peer_name());
    }

    #[test]
    fn the_public_key_is_what_rfc_7748_says() {
        let secret = hex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a");
        let public = hex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a");
        assert_eq!(public_of(&secret), Some(public));
    }

    #[test]
    fn a_psk_depends_on_password_and_cluster_alone() {
        let key = |password, cluster| *Psk::derive(password, cluster).unwrap().bytes();
        assert_eq!(key("secret", "weft"), key("secret", "weft"));
        assert_ne!(key("secret", "weft"), key("Secret", "weft"));
        assert_ne!(key("secret", "weft"), key("secret", "other"));
        assert_ne!(&key("secret", "weft"), Psk::open().bytes());
        assert_eq!(Psk::derive("", "weft").unwrap_err(), PskError::Empty);
    }

    #[test]
    fn secrets_do_not_show_in_debug_output() {
        let one = Identity::from_secret(Zeroizing::new([0xab; 32])).unwrap();
        let psk = Psk::derive("secret", "weft").unwrap();
        assert!(!format!("{one:?}{psk:?}").contains("171"));
    }

    fn hex(text: &str) -> [u8; 32] {
        std::array::from_fn(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
    }
}
