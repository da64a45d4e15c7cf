//! Key pairs of the ring: who has the public half can seal, and only who has
//! the private half can open. The one module that names HPKE (RFC 9180): base
//! mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305.
//!
//! The halves are written with a name in front, so that none is taken for the
//! other, or for a symmetric key.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{
    Deserializable, Kem, OpModeR, OpModeS, Serializable, single_shot_open, single_shot_seal,
};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};

use crate::seal::{OpenError, SealError};

const PUBLIC: &str = "x25519-public.";
const PRIVATE: &str = "x25519-private.";
/// What all that is sealed here is for.
const INFO: &[u8] = b"mooring: pages of data keys";

/// The public half: it seals, and opens nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey(<X25519HkdfSha256 as Kem>::PublicKey);

/// The private half. It is wiped from memory when it is dropped.
pub struct PrivateKey(<X25519HkdfSha256 as Kem>::PrivateKey);

/// Both halves, as they are written in the configuration.
pub struct NewPair {
    pub public: PublicKey,
    pub private: SecretString,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyPairError {
    #[error(
        "a public key looks like {PUBLIC}… (make a pair: `worker keys rotate`); its private half must not stand here"
    )]
    NotPublic,
    #[error(
        "a private key looks like {PRIVATE}… (make a pair: `worker keys rotate`); a key of another form has other uses"
    )]
    NotPrivate,
}

impl NewPair {
    pub fn generate() -> Self {
        let (private, public) = X25519HkdfSha256::gen_keypair();
        let bytes = Zeroizing::new(<[u8; 32]>::from(private.to_bytes()));
        let text = Zeroizing::new(BASE64_URL_SAFE_NO_PAD.encode(*bytes));
        let private = SecretString::from(format!("{PRIVATE}{}", *text));
        Self { public: PublicKey(public), private }
    }
}

impl PublicKey {
    pub fn parse(text: &str) -> Result<Self, KeyPairError> {
        let bytes = decoded(text, PUBLIC).ok_or(KeyPairError::NotPublic)?;
        let key = Deserializable::from_bytes(&bytes).map_err(|_| KeyPairError::NotPublic)?;
        Ok(Self(key))
    }

    /// The encapsulated key, and the ciphertext with its tag.
    pub(crate) fn seal(
        &self,
        plaintext: &[u8],
        bound_to: &[u8],
    ) -> Result<(Vec<u8>, Vec<u8>), SealError> {
        let sealed = single_shot_seal::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
            &OpModeS::Base,
            &self.0,
            INFO,
            plaintext,
            bound_to,
        );
        let (encapsulated, ciphertext) = sealed.map_err(|_| SealError)?;
        Ok((encapsulated.to_bytes().to_vec(), ciphertext))
    }
}

impl PrivateKey {
    pub fn parse(text: &SecretString) -> Result<Self, KeyPairError> {
        let bytes =
            decoded(text.expose_secret().trim(), PRIVATE).ok_or(KeyPairError::NotPrivate)?;
        let key = Deserializable::from_bytes(&bytes).map_err(|_| KeyPairError::NotPrivate)?;
        Ok(Self(key))
    }

    pub fn public(&self) -> PublicKey {
        PublicKey(X25519HkdfSha256::sk_to_pk(&self.0))
    }

    pub(crate) fn open(
        &self,
        encapsulated: &[u8],
        ciphertext: &[u8],
        bound_to: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let encapsulated =
            Deserializable::from_bytes(encapsulated).map_err(|_| OpenError::Envelope)?;
        let opened = single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Base,
            &self.0,
            &encapsulated,
            INFO,
            ciphertext,
            bound_to,
        );
        opened.map(Zeroizing::new).map_err(|_| OpenError::Authentication)
    }
}

fn decoded(text: &str, prefix: &str) -> Option<Zeroizing<Vec<u8>>> {
    BASE64_URL_SAFE_NO_PAD.decode(text.strip_prefix(prefix)?).ok().map(Zeroizing::new)
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PUBLIC}{}", BASE64_URL_SAFE_NO_PAD.encode(self.0.to_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(of {})", self.public())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_public_half_seals_only_the_private_half_opens() {
        let pair = NewPair::generate();
        let public = PublicKey::parse(&pair.public.to_string()).unwrap();
        let private = PrivateKey::parse(&pair.private).unwrap();
        assert_eq!(private.public(), public);

        let (encapsulated, ciphertext) = public.seal(b"page", b"bound to").unwrap();
        assert_eq!(**private.open(&encapsulated, &ciphertext, b"bound to").unwrap(), *b"page");
        assert!(private.open(&encapsulated, &ciphertext, b"another").is_err());
        let other = PrivateKey::parse(&NewPair::generate().private).unwrap();
        assert!(other.open(&encapsulated, &ciphertext, b"bound to").is_err());
    }

    #[test]
    fn neither_half_is_taken_for_the_other_nor_for_a_symmetric_key() {
        let NewPair { public, private } = NewPair::generate();
        let refused = PublicKey::parse(private.expose_secret()).unwrap_err();
        assert!(!refused.to_string().contains(private.expose_secret()));
        assert!(PrivateKey::parse(&public.to_string().into()).is_err());
        let symmetric = crate::seal::new_key();
        assert!(PrivateKey::parse(&symmetric).is_err());
        assert!(PublicKey::parse(symmetric.expose_secret()).is_err());
        let shown = format!("{:?}", PrivateKey::parse(&private).unwrap());
        assert_eq!(shown, format!("PrivateKey(of {public})"));
    }

    /// RFC 9180, appendix A.2.1: another implementation opens what we seal.
    #[test]
    fn the_private_key_of_the_rfc_gives_its_public_key() {
        let half = |prefix: &str, hex: &str| {
            format!("{prefix}{}", BASE64_URL_SAFE_NO_PAD.encode(hex::decode(hex).unwrap()))
        };
        let private = "8057991eef8f1f1af18f4a9491d16a1ce333f695d4db8e38da75975c4478e0fb";
        let public = "4310ee97d88cc1f088a5576c77ab0cf5c3ac797f3d95139c6c84b5429c59662a";
        let private = PrivateKey::parse(&half(PRIVATE, private).into()).unwrap();
        assert_eq!(private.public().to_string(), half(PUBLIC, public));
    }
}
