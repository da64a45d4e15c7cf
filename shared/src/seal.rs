//! Sealing: the one module that names the cipher.
//!
//! A secret is sealed with AES-256-GCM-SIV (RFC 8452) under the active key of
//! the key ring, as `v1.<key id>.<nonce>.<ciphertext and tag>` (base64url).
//! The associated data binds the ciphertext to its source, installation, event
//! and field: moved anywhere else it does not open. The key is chosen by id,
//! never by trial.
//!
//! It must never put a secret or a key into `Debug`, an error or a log.

use std::collections::BTreeMap;
use std::fmt;

use aes_gcm_siv::aead::{Aead, Generate, KeyInit, Payload};
use aes_gcm_siv::{Aes256GcmSiv, Nonce};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::id::{InstallationId, KeyId, MessageId, SourceName};

const VERSION: &str = "v1";
const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;
const FINGERPRINT_BYTES: usize = 16;

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

    /// The id of the key that sealed it.
    pub fn key_id(&self) -> Result<KeyId, OpenError> {
        let mut parts = self.0.split('.');
        match (parts.next(), parts.next()) {
            (Some(VERSION), Some(id)) => KeyId::parse(id).map_err(|_| OpenError::Envelope),
            _ => Err(OpenError::Envelope),
        }
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key_id() {
            Ok(id) => write!(f, "Sealed(key {id})"),
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

impl AssociatedData<'_> {
    /// Each part with its length in front, so that no two lists of parts give
    /// the same bytes.
    fn encode(&self) -> Vec<u8> {
        let installation = self.installation.map_or("", InstallationId::as_str);
        let parts = [VERSION, self.source.as_str(), installation, self.event.as_str(), self.field];
        let mut bytes = Vec::new();
        for part in parts {
            bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
            bytes.extend_from_slice(part.as_bytes());
        }
        bytes
    }
}

/// A keyed digest (HMAC-SHA-256, cut to 128 bits): tells what was repeated from
/// what is new, and lets nobody without the key test a guess.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(String);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error(
        "a key must be {KEY_BYTES} bytes in standard base64 (make one: `openssl rand -base64 {KEY_BYTES}`)"
    )]
    Malformed,
    #[error("the active key '{0}' is not among the keys of the ring")]
    NoActiveKey(KeyId),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("not a sealed secret of version {VERSION}")]
    Envelope,
    #[error("sealed with key '{0}', which is not in the key ring")]
    UnknownKey(KeyId),
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
}

/// The active key, the retired ones, and the fingerprint key.
pub struct KeyRing {
    active: KeyId,
    ciphers: BTreeMap<KeyId, Aes256GcmSiv>,
    fingerprint_key: SecretSlice<u8>,
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyRing(active {}, {} keys)", self.active, self.ciphers.len())
    }
}

/// Reads a key as it stands in configuration.
pub fn parse_key(base64: &SecretString) -> Result<SecretSlice<u8>, KeyError> {
    let bytes =
        BASE64_STANDARD.decode(base64.expose_secret().trim()).map_err(|_| KeyError::Malformed)?;
    let key = SecretSlice::from(bytes);
    if key.expose_secret().len() == KEY_BYTES { Ok(key) } else { Err(KeyError::Malformed) }
}

impl KeyRing {
    pub fn new(
        active: KeyId,
        keys: &BTreeMap<KeyId, SecretSlice<u8>>,
        fingerprint_key: SecretSlice<u8>,
    ) -> Result<Self, KeyError> {
        let mut ciphers = BTreeMap::new();
        for (id, key) in keys {
            let cipher = Aes256GcmSiv::new_from_slice(key.expose_secret())
                .map_err(|_| KeyError::Malformed)?;
            ciphers.insert(id.clone(), cipher);
        }
        if !ciphers.contains_key(&active) {
            return Err(KeyError::NoActiveKey(active));
        }
        Ok(Self { active, ciphers, fingerprint_key })
    }

    /// Of several parts, which are kept apart by their lengths.
    pub fn fingerprint(&self, parts: &[&str]) -> Fingerprint {
        #[expect(clippy::expect_used, reason = "HMAC takes a key of any length")]
        let mut mac = Hmac::<Sha256>::new_from_slice(self.fingerprint_key.expose_secret())
            .expect("HMAC takes a key of any length");
        for part in parts {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        let digest: Vec<u8> =
            mac.finalize().into_bytes().into_iter().take(FINGERPRINT_BYTES).collect();
        Fingerprint(hex::encode(digest))
    }

    pub fn seal(
        &self,
        secret: &SecretString,
        bound_to: AssociatedData<'_>,
        nonce: &SealingNonce,
    ) -> Result<Sealed, SealError> {
        let cipher = self.ciphers.get(&self.active).ok_or(SealError)?;
        let aad = bound_to.encode();
        let payload = Payload { msg: secret.expose_secret().as_bytes(), aad: &aad };
        let ciphertext = cipher.encrypt(&nonce.0, payload).map_err(|_| SealError)?;
        Ok(Sealed(format!(
            "{VERSION}.{}.{}.{}",
            self.active,
            BASE64_URL_SAFE_NO_PAD.encode(nonce.0),
            BASE64_URL_SAFE_NO_PAD.encode(ciphertext),
        )))
    }

    pub fn open(
        &self,
        sealed: &Sealed,
        bound_to: AssociatedData<'_>,
    ) -> Result<SecretString, OpenError> {
        let key_id = sealed.key_id()?;
        let parts: Vec<&str> = sealed.0.split('.').collect();
        let [_, _, nonce, ciphertext] = parts[..] else {
            return Err(OpenError::Envelope);
        };
        let decode = |part: &str| BASE64_URL_SAFE_NO_PAD.decode(part);
        let nonce = decode(nonce).map_err(|_| OpenError::Envelope)?;
        let nonce: [u8; NONCE_BYTES] = nonce.try_into().map_err(|_| OpenError::Envelope)?;
        let ciphertext = decode(ciphertext).map_err(|_| OpenError::Envelope)?;

        let cipher = self.ciphers.get(&key_id).ok_or(OpenError::UnknownKey(key_id))?;
        let aad = bound_to.encode();
        let payload = Payload { msg: &ciphertext, aad: &aad };
        let plaintext =
            cipher.decrypt(&nonce.into(), payload).map_err(|_| OpenError::Authentication)?;
        let text = String::from_utf8(plaintext).map_err(|_| OpenError::Authentication)?;
        Ok(SecretString::from(text))
    }
}

#[cfg(test)]
mod tests;
