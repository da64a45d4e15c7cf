//! Sealing: envelopes, and the one module that names the cipher of secrets.
//!
//! A secret is sealed with AES-256-GCM-SIV (RFC 8452) as
//! `<version>.<key id>.<nonce>.<ciphertext and tag>` (base64url): version `v2`
//! under a data key (see [`crate::data_key`]), `v1` under a symmetric key of the
//! ring, as was done before there were key pairs. A page of data keys is sealed to
//! a key pair (see [`crate::key_pair`]), as `v3.<key id>.<encapsulated
//! key>.<ciphertext and tag>`. The associated data binds the ciphertext
//! to its source, installation, event and field: moved anywhere else it does
//! not open. The key is chosen by id, never by trial.
//!
//! It must never put a secret or a key into `Debug`, an error or a log.

use std::fmt;

use aes_gcm_siv::aead::{Aead, Generate, Key, KeyInit, Payload};
use aes_gcm_siv::{Aes256GcmSiv, Nonce};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use serde::{Deserialize, Serialize};

use crate::id::{DataKeyId, InstallationId, KeyId, MessageId, SourceName};

const UNDER_SYMMETRIC_KEY: &str = "v1";
const UNDER_DATA_KEY: &str = "v2";
const UNDER_KEY_PAIR: &str = "v3";
const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;

/// A sealed secret. It never held plaintext, so it may be stored and logged;
/// `Debug` still shows only which key sealed it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sealed(String);

impl Sealed {
    /// Takes an envelope as stored. Whether it is one shows when it is opened.
    pub fn from_stored(envelope: String) -> Self {
        Self(envelope)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn of(under: &SealedUnder, first: &[u8], ciphertext: &[u8]) -> Self {
        let encode = |bytes| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        Self(format!("{}.{under}.{}.{}", under.version(), encode(first), encode(ciphertext)))
    }

    /// The nonce or the encapsulated key, and the ciphertext.
    pub(crate) fn content(&self) -> Result<(Vec<u8>, Vec<u8>), OpenError> {
        let parts: Vec<&str> = self.0.split('.').collect();
        let [_, _, first, ciphertext] = parts[..] else { return Err(OpenError::Envelope) };
        let decode = |part| BASE64_URL_SAFE_NO_PAD.decode(part).map_err(|_| OpenError::Envelope);
        Ok((decode(first)?, decode(ciphertext)?))
    }

    /// Which key sealed it.
    pub fn under(&self) -> Result<SealedUnder, OpenError> {
        let mut parts = self.0.split('.');
        let under = match (parts.next(), parts.next()) {
            (Some(UNDER_SYMMETRIC_KEY), Some(id)) => {
                KeyId::parse(id).ok().map(SealedUnder::SymmetricKey)
            }
            (Some(UNDER_KEY_PAIR), Some(id)) => KeyId::parse(id).ok().map(SealedUnder::KeyPair),
            (Some(UNDER_DATA_KEY), Some(id)) => DataKeyId::parse(id).map(SealedUnder::DataKey),
            _ => None,
        };
        under.ok_or(OpenError::Envelope)
    }
}

/// The key that a secret is sealed under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SealedUnder {
    /// Of the ring, from before there were key pairs.
    SymmetricKey(KeyId),
    /// Of the ring.
    KeyPair(KeyId),
    DataKey(DataKeyId),
}

impl SealedUnder {
    fn version(&self) -> &'static str {
        match self {
            Self::SymmetricKey(_) => UNDER_SYMMETRIC_KEY,
            Self::KeyPair(_) => UNDER_KEY_PAIR,
            Self::DataKey(_) => UNDER_DATA_KEY,
        }
    }
}

impl fmt::Display for SealedUnder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SymmetricKey(id) | Self::KeyPair(id) => id.fmt(f),
            Self::DataKey(id) => id.fmt(f),
        }
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.under() {
            Ok(under) => write!(f, "Sealed(key {under})"),
            Err(_) => f.write_str("Sealed(malformed)"),
        }
    }
}

/// What a ciphertext is bound to.
#[derive(Debug, Clone, Copy)]
pub struct AssociatedData<'a> {
    pub source: &'a SourceName,
    /// `None` for an event that names no installation.
    pub installation: Option<&'a InstallationId>,
    pub event: &'a MessageId,
    pub field: &'a str,
}

impl<'a> AssociatedData<'a> {
    pub(crate) fn parts(&self, under: &SealedUnder) -> [&'a str; 5] {
        let installation = self.installation.map_or("", InstallationId::as_str);
        [under.version(), self.source.as_str(), installation, self.event.as_str(), self.field]
    }
}

/// Each part with its length in front, so that no two lists of parts give the
/// same bytes.
pub(crate) fn encode(parts: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(part.as_bytes());
    }
    bytes
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error(
        "a key must be {KEY_BYTES} bytes in standard base64 (make one: `openssl rand -base64 {KEY_BYTES}`)"
    )]
    Malformed,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("not a sealed secret of a version that is known")]
    Envelope,
    #[error("sealed with key '{0}', which is not in the key ring")]
    UnknownKey(KeyId),
    #[error("its data key was destroyed: the secret was erased")]
    Erased,
    #[error("the sealed secret is damaged or belongs to another event")]
    Authentication,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the secret is too long to be sealed")]
pub struct SealError;

/// The random value that goes into one sealing. GCM-SIV survives a repeated
/// one (it would only show that two equal secrets are equal).
pub struct SealingNonce(Nonce);

impl SealingNonce {
    pub fn random() -> Self {
        Self(Nonce::generate())
    }

    pub fn from_bytes(bytes: [u8; NONCE_BYTES]) -> Self {
        Self(bytes.into())
    }

    pub(crate) fn to_hex(&self) -> String {
        hex::encode(self.0)
    }
}

/// A key of the ring from before there were key pairs. It opens what it sealed
/// then.
pub struct SymmetricKey {
    id: KeyId,
    cipher: Aes256GcmSiv,
}

impl SymmetricKey {
    pub fn new(id: KeyId, key: &SecretSlice<u8>) -> Result<Self, KeyError> {
        let cipher =
            Aes256GcmSiv::new_from_slice(key.expose_secret()).map_err(|_| KeyError::Malformed)?;
        Ok(Self { id, cipher })
    }

    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// As versions from before key pairs did. None does any more, but tests of
    /// what those stored.
    pub fn seal(
        &self,
        secret: &SecretString,
        bound_to: AssociatedData<'_>,
        nonce: &SealingNonce,
    ) -> Result<Sealed, SealError> {
        let under = SealedUnder::SymmetricKey(self.id.clone());
        self.seal_parts(secret, &bound_to.parts(&under), nonce)
    }

    pub(crate) fn seal_parts(
        &self,
        secret: &SecretString,
        bound_to: &[&str],
        nonce: &SealingNonce,
    ) -> Result<Sealed, SealError> {
        let under = SealedUnder::SymmetricKey(self.id.clone());
        seal_under(&self.cipher, &under, secret, bound_to, nonce)
    }

    pub(crate) fn open_parts(
        &self,
        sealed: &Sealed,
        bound_to: &[&str],
    ) -> Result<SecretString, OpenError> {
        open_under(&self.cipher, sealed, bound_to)
    }
}

/// Parses a key as written in the configuration.
pub fn parse_key(base64: &SecretString) -> Result<SecretSlice<u8>, KeyError> {
    let bytes =
        BASE64_STANDARD.decode(base64.expose_secret().trim()).map_err(|_| KeyError::Malformed)?;
    let key = SecretSlice::from(bytes);
    if key.expose_secret().len() == KEY_BYTES { Ok(key) } else { Err(KeyError::Malformed) }
}

/// A new key, as written in the configuration.
pub fn new_key() -> SecretString {
    BASE64_STANDARD.encode(Key::<Aes256GcmSiv>::generate()).into()
}

/// 256 random bits as hexadecimal digits, for what must not be guessed.
pub fn random_token() -> String {
    hex::encode(Key::<Aes256GcmSiv>::generate())
}

pub(crate) fn seal_under(
    cipher: &Aes256GcmSiv,
    under: &SealedUnder,
    secret: &SecretString,
    bound_to: &[&str],
    nonce: &SealingNonce,
) -> Result<Sealed, SealError> {
    let aad = encode(bound_to);
    let payload = Payload { msg: secret.expose_secret().as_bytes(), aad: &aad };
    let ciphertext = cipher.encrypt(&nonce.0, payload).map_err(|_| SealError)?;
    Ok(Sealed::of(under, &nonce.0, &ciphertext))
}

/// What is not text was not sealed by us.
pub(crate) fn text_of(plaintext: Zeroizing<Vec<u8>>) -> Result<SecretString, OpenError> {
    let text = std::str::from_utf8(&plaintext).map_err(|_| OpenError::Authentication)?;
    Ok(SecretString::from(text))
}

pub(crate) fn open_under(
    cipher: &Aes256GcmSiv,
    sealed: &Sealed,
    bound_to: &[&str],
) -> Result<SecretString, OpenError> {
    let (nonce, ciphertext) = sealed.content()?;
    let nonce: [u8; NONCE_BYTES] = nonce.try_into().map_err(|_| OpenError::Envelope)?;
    let aad = encode(bound_to);
    let payload = Payload { msg: &ciphertext, aad: &aad };
    let plaintext =
        cipher.decrypt(&nonce.into(), payload).map_err(|_| OpenError::Authentication)?;
    text_of(Zeroizing::new(plaintext))
}

#[cfg(test)]
mod tests;
