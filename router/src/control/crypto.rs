//! The primitives Noise is built from, by `aws-lc-rs`, and its randomness from our own seed.
//!
//! `snow` brings primitives of its own, several times slower, and draws from the system; with this
//! resolver a handshake is a function of its seed and can be replayed.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::digest::{Context, SHA256};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};
use snow::Error;
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::CryptoResolver;
use snow::types::{Cipher, Dh, Hash, Random};
use zeroize::{Zeroize, Zeroizing};

use crate::identity::public_of;

const KEY_LEN: usize = 32;
const TAG_LEN: usize = 16;

/// Resolves X25519, SHA-256 and ChaCha20-Poly1305, and randomness from a seed.
pub(super) struct Resolver {
    seed: Zeroizing<[u8; 32]>,
}

impl Resolver {
    /// The seed must serve one handshake only.
    pub(super) fn new(seed: Zeroizing<[u8; 32]>) -> Self {
        Self { seed }
    }
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Seeded(ChaCha20Rng::from_seed(*self.seed))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        match choice {
            DHChoice::Curve25519 => Some(Box::new(Agreement::default())),
            DHChoice::Curve448 => None,
        }
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        match choice {
            HashChoice::SHA256 => Some(Box::new(Sha256(Context::new(&SHA256)))),
            HashChoice::SHA512 | HashChoice::Blake2s | HashChoice::Blake2b => None,
        }
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        match choice {
            CipherChoice::ChaChaPoly => Some(Box::new(Aead::default())),
            CipherChoice::AESGCM => None,
        }
    }
}

struct Seeded(ChaCha20Rng);

impl Random for Seeded {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), Error> {
        self.0.fill_bytes(dest);
        Ok(())
    }
}

#[derive(Default)]
struct Agreement {
    secret: Zeroizing<[u8; KEY_LEN]>,
    public: [u8; KEY_LEN],
}

impl Dh for Agreement {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        KEY_LEN
    }

    fn priv_len(&self) -> usize {
        KEY_LEN
    }

    fn set(&mut self, privkey: &[u8]) {
        // Of another length or no key: the public half stays zero, and every agreement fails.
        if let Ok(secret) = privkey.try_into() {
            self.secret = Zeroizing::new(secret);
            self.public = public_of(&self.secret).unwrap_or_default();
        }
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), Error> {
        rng.try_fill_bytes(self.secret.as_mut_slice())?;
        self.public = public_of(&self.secret).ok_or(Error::Rng)?;
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        self.secret.as_slice()
    }

    fn dh(&self, pubkey: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let ours =
            PrivateKey::from_private_key(&X25519, self.secret.as_slice()).map_err(|_| Error::Dh)?;
        // Snow hands over a buffer of its largest key length, of which ours are the first bytes.
        let theirs = UnparsedPublicKey::new(&X25519, pubkey.get(..KEY_LEN).ok_or(Error::Dh)?);
        agree(&ours, theirs, Error::Dh, |shared| {
            out.get_mut(..KEY_LEN)
                .ok_or(Error::Dh)?
                .copy_from_slice(shared);
            Ok(())
        })
    }
}

struct Sha256(Context);

impl Hash for Sha256 {
    fn name(&self) -> &'static str {
        "SHA256"
    }

    fn block_len(&self) -> usize {
        64
    }

    fn hash_len(&self) -> usize {
        32
    }

    fn reset(&mut self) {
        self.0 = Context::new(&SHA256);
    }

    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn result(&mut self, out: &mut [u8]) {
        let hash = self.0.clone().finish();
        for (to, from) in out.iter_mut().zip(hash.as_ref()) {
            *to = *from;
        }
    }
}

/// Without a key before the first one is set, or if the library refused one: then nothing seals and
/// nothing opens.
#[derive(Default)]
struct Aead(Option<LessSafeKey>);

impl Aead {
    fn seal(&self, nonce: u64, ad: &[u8], plaintext: &[u8], out: &mut [u8]) -> Option<usize> {
        let (body, rest) = out.split_at_mut_checked(plaintext.len())?;
        body.copy_from_slice(plaintext);
        let sealed =
            self.0
                .as_ref()?
                .seal_in_place_separate_tag(nonce_of(nonce), Aad::from(ad), body);
        let (Ok(tag), Some(room)) = (sealed, rest.first_chunk_mut::<TAG_LEN>()) else {
            body.zeroize();
            return None;
        };
        room.copy_from_slice(tag.as_ref());
        Some(plaintext.len() + TAG_LEN)
    }
}

impl Cipher for Aead {
    fn name(&self) -> &'static str {
        "ChaChaPoly"
    }

    fn set(&mut self, key: &[u8; KEY_LEN]) {
        self.0 = UnboundKey::new(&CHACHA20_POLY1305, key)
            .ok()
            .map(LessSafeKey::new);
    }

    /// Snow leaves no way to fail; 0 bytes written is a message the other side refuses.
    fn encrypt(&self, nonce: u64, authtext: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        self.seal(nonce, authtext, plaintext, out).unwrap_or(0)
    }

    fn decrypt(
        &self,
        nonce: u64,
        authtext: &[u8],
        ciphertext: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Error> {
        let key = self.0.as_ref().ok_or(Error::Decrypt)?;
        // Not in `out`, which has no room for the tag; and nothing forged is left in it.
        let mut buffer = Zeroizing::new(ciphertext.to_vec());
        let opened = key
            .open_in_place(nonce_of(nonce), Aad::from(authtext), &mut buffer)
            .map_err(|_| Error::Decrypt)?;
        out.get_mut(..opened.len())
            .ok_or(Error::Decrypt)?
            .copy_from_slice(opened);
        Ok(opened.len())
    }

    fn rekey(&mut self) {
        let mut sealed = Zeroizing::new([0; KEY_LEN + TAG_LEN]);
        self.encrypt(u64::MAX, &[], &[0; KEY_LEN], sealed.as_mut_slice());
        if let Some(key) = sealed.first_chunk() {
            self.set(key);
        }
    }
}

/// Four zero bytes and the counter, little-endian (Noise specification, section 12.3).
fn nonce_of(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    if let Some(end) = nonce.last_chunk_mut() {
        *end = counter.to_le_bytes();
    }
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests {
    use snow::resolvers::CryptoResolver;

    use super::*;

    fn resolver(seed: u8) -> Resolver {
        Resolver::new(Zeroizing::new([seed; 32]))
    }

    #[test]
    fn both_ends_of_an_agreement_get_the_same_secret() {
        let mut rng = resolver(1).resolve_rng().unwrap();
        let mut a = resolver(1).resolve_dh(&DHChoice::Curve25519).unwrap();
        let mut b = resolver(1).resolve_dh(&DHChoice::Curve25519).unwrap();
        a.generate(rng.as_mut()).unwrap();
        b.generate(rng.as_mut()).unwrap();
        let (mut ab, mut ba) = ([0; 56], [0; 56]);
        a.dh(b.pubkey(), &mut ab).unwrap();
        b.dh(a.pubkey(), &mut ba).unwrap();
        assert_eq!(ab, ba);
        assert_ne!(ab, [0; 56]);
        assert!(a.dh(&[0; 32], &mut ab).is_err(), "a point of small order");
        assert!(a.dh(&[1; 3], &mut ab).is_err());
    }

    #[test]
    fn what_is_sealed_opens_with_the_same_counter_and_data_only() {
        let mut cipher = resolver(1)
            .resolve_cipher(&CipherChoice::ChaChaPoly)
            .unwrap();
        let mut out = [0; 64];
        assert_eq!(cipher.encrypt(0, b"ad", b"text", &mut out), 0, "no key yet");
        cipher.set(&[7; 32]);
        let len = cipher.encrypt(3, b"ad", b"text", &mut out);
        assert_eq!(len, 20);
        let mut back = [0; 64];
        assert_eq!(cipher.decrypt(3, b"ad", &out[..len], &mut back), Ok(4));
        assert_eq!(&back[..4], b"text");
        assert!(cipher.decrypt(4, b"ad", &out[..len], &mut back).is_err());
        assert!(cipher.decrypt(3, b"other", &out[..len], &mut back).is_err());
        assert_eq!(
            cipher.encrypt(3, b"ad", b"text", &mut out[..19]),
            0,
            "no room"
        );
        cipher.rekey();
        assert!(cipher.decrypt(3, b"ad", &out[..len], &mut back).is_err());
    }

    #[test]
    fn randomness_is_a_function_of_the_seed() {
        let draw = |seed| {
            let mut bytes = [0; 40];
            let mut rng = resolver(seed).resolve_rng().unwrap();
            rng.try_fill_bytes(&mut bytes).unwrap();
            bytes
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn the_hash_is_sha_256() {
        let mut hash = resolver(1).resolve_hash(&HashChoice::SHA256).unwrap();
        let mut out = [0; 32];
        hash.input(b"abc");
        hash.result(&mut out);
        assert_eq!(out[..4], [0xba, 0x78, 0x16, 0xbf]);
        assert_eq!(out[28..], [0xf2, 0x00, 0x15, 0xad]);
    }
}
