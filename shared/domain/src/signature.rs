//! Signatures over the raw body of a callback, with its time where platforms sign
//! one, in the forms that they use.

use std::borrow::Cow;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hmac::{KeyInit as _, Mac as _};
use http::{HeaderMap, HeaderName};
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::DecodingKey;
use ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey,
    VerificationAlgorithm,
};
use schemars::JsonSchema;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Sha256, Sha512};
use spki::SubjectPublicKeyInfoOwned;
use spki::der::DecodePem as _;

/// Of those in one header. A platform sends one for each secret, of which there are two.
const SIGNATURES_MAX: usize = 8;

/// The header's value; or, of a list such as `t=1,v1=ab`, the values of this name.
fn values<'a>(header: &'a str, field: Option<&'a str>) -> impl Iterator<Item = &'a str> {
    let whole = field.is_none().then_some(header);
    let pairs = header.split(',').filter_map(|pair| pair.trim().split_once('='));
    let named = pairs.filter(move |(name, _)| Some(*name) == field).map(|(_, value)| value);
    whole.into_iter().chain(named)
}

/// How the bytes of a signature stand in a header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Hexadecimal digits.
    #[default]
    Hex,
    /// Base64 with padding (RFC 4648, section 4).
    Base64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HmacAlgorithm {
    /// SHA-256.
    #[default]
    Sha256,
    /// SHA-512.
    Sha512,
    /// SHA-1, where a platform still signs with it: its collisions do not break an HMAC (RFC 6151,
    /// section 2.3).
    Sha1,
}

/// HMAC (RFC 2104): any of the headers with any of the secrets.
#[derive(Debug)]
pub struct Hmac {
    /// More than one where the platform signs with the old secret, too, while a
    /// new one is introduced.
    pub headers: Vec<HeaderName>,
    pub algorithm: HmacAlgorithm,
    pub encoding: Encoding,
    /// The prefix of the signature, such as `sha256=`.
    pub prefix: String,
    /// Where the header is a list such as `t=1,v1=ab,v1=cd`: the name of the signatures in it.
    pub field: Option<String>,
    pub secrets: Vec<SecretString>,
    /// The time that is signed with the body, where the scheme has one.
    pub timestamp: Option<SignedTimestamp>,
}

/// Signatures with published keys. The first scheme whose header is there
/// decides; if it fails, no other one is tried.
#[derive(Debug)]
pub struct PublicKeySignature {
    pub schemes: Vec<Scheme>,
    /// The time that is signed with the body, where the schemes have one.
    pub timestamp: Option<SignedTimestamp>,
}

#[derive(Debug)]
pub struct Scheme {
    pub header: HeaderName,
    pub encoding: Encoding,
    pub keys: Vec<PublicKey>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublicKey {
    Ed25519(Vec<u8>),
    /// RSASSA-PKCS1-v1_5 with SHA-256; the key as in PKCS #1.
    RsaSha256(Vec<u8>),
    /// ECDSA on P-256 with SHA-256; the key as an uncompressed point.
    P256(Vec<u8>),
}

/// A header with the time of sending, which is signed with the body. What is older
/// than the tolerance, or from the future, is a copy of what was sent once.
#[derive(Debug)]
pub struct SignedTimestamp {
    pub header: HeaderName,
    /// Where the header is a list such as `t=1,v1=ab`: the name of the time in it.
    pub field: Option<String>,
    /// What is signed: this, the header, that, the body.
    pub before: String,
    pub between: String,
    pub tolerance: SignedDuration,
}

impl SignedTimestamp {
    /// What was signed, if the time is of now.
    fn signed(&self, headers: &HeaderMap, body: &[u8], received_at: Timestamp) -> Option<Vec<u8>> {
        // Too many for seconds are milliseconds.
        const SECONDS_BELOW: i64 = 100_000_000_000;
        let value = std::str::from_utf8(only_header(headers, &self.header)?).ok()?;
        let mut texts = values(value, self.field.as_deref());
        let (Some(text), None) = (texts.next(), texts.next()) else { return None };
        let number: i64 = text.parse().ok()?;
        let sent_at = if number < SECONDS_BELOW {
            Timestamp::from_second(number)
        } else {
            Timestamp::from_millisecond(number)
        };
        let age = received_at.duration_since(sent_at.ok()?).abs();
        let parts = [self.before.as_bytes(), text.as_bytes(), self.between.as_bytes(), body];
        (age <= self.tolerance).then(|| parts.concat())
    }
}

/// What was signed: the body, or the body with a time, if that is of now.
fn signed<'a>(
    timestamp: Option<&SignedTimestamp>,
    headers: &HeaderMap,
    body: &'a [u8],
    received_at: Timestamp,
) -> Option<Cow<'a, [u8]>> {
    match timestamp {
        None => Some(Cow::Borrowed(body)),
        Some(timestamp) => timestamp.signed(headers, body, received_at).map(Cow::Owned),
    }
}

/// <https://www.standardwebhooks.com>: `v1` signatures, at most five minutes old.
pub struct StandardWebhooks {
    pub secrets: Vec<standardwebhooks::Webhook>,
}

impl std::fmt::Debug for StandardWebhooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StandardWebhooks").finish_non_exhaustive()
    }
}

impl Encoding {
    fn decode(self, text: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Hex => hex::decode(text).ok(),
            Self::Base64 => BASE64_STANDARD.decode(text).ok(),
        }
    }
}

impl Hmac {
    pub(crate) fn verifies(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        received_at: Timestamp,
    ) -> bool {
        let Some(body) = signed(self.timestamp.as_ref(), headers, body, received_at) else {
            return false;
        };
        let given = self.headers.iter().filter_map(|name| only_header(headers, name));
        let given = given.filter_map(|value| std::str::from_utf8(value).ok());
        let listed = given.flat_map(|value| values(value, self.field.as_deref()));
        let signatures = listed.take(SIGNATURES_MAX).filter_map(|text| {
            self.encoding.decode(text.strip_prefix(self.prefix.as_str())?.as_bytes())
        });
        signatures.fold(false, |found, signature| {
            let matches = |secret: &SecretString| {
                self.algorithm.verifies(secret.expose_secret().as_bytes(), &body, &signature)
            };
            self.secrets.iter().fold(found, |found, secret| matches(secret) | found)
        })
    }
}

impl HmacAlgorithm {
    /// In constant time.
    fn verifies(self, secret: &[u8], body: &[u8], signature: &[u8]) -> bool {
        // A key of any length is one for HMAC.
        match self {
            Self::Sha256 => hmac::Hmac::<Sha256>::new_from_slice(secret)
                .is_ok_and(|mac| mac.chain_update(body).verify_slice(signature).is_ok()),
            Self::Sha512 => hmac::Hmac::<Sha512>::new_from_slice(secret)
                .is_ok_and(|mac| mac.chain_update(body).verify_slice(signature).is_ok()),
            Self::Sha1 => {
                let key = ring::hmac::Key::new(HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret);
                ring::hmac::verify(&key, body, signature).is_ok()
            }
        }
    }
}

impl PublicKeySignature {
    pub(crate) fn verifies(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        received_at: Timestamp,
    ) -> bool {
        let Some(body) = signed(self.timestamp.as_ref(), headers, body, received_at) else {
            return false;
        };
        let is_sent = |scheme: &&Scheme| scheme.is_sent(headers);
        self.schemes.iter().find(is_sent).is_some_and(|scheme| scheme.verifies(headers, &body))
    }
}

impl Scheme {
    /// `N/A` is sent where there is no signature.
    fn is_sent(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(&self.header).iter();
        values.any(|value| !matches!(value.as_bytes(), b"" | b"N/A"))
    }

    fn verifies(&self, headers: &HeaderMap, body: &[u8]) -> bool {
        let given = only_header(headers, &self.header);
        let signature = given.and_then(|text| self.encoding.decode(text));
        signature
            .is_some_and(|signature| self.keys.iter().any(|key| key.verifies(body, &signature)))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum InvalidKey {
    #[error("is not a public key in PEM (-----BEGIN PUBLIC KEY-----)")]
    NotPem,
    #[error("is a public key of another kind than Ed25519, RSA or P-256")]
    OtherKind,
}

impl PublicKey {
    /// From a `SubjectPublicKeyInfo` (RFC 5280) in PEM.
    pub fn from_pem(pem: &str) -> Result<Self, InvalidKey> {
        const ED25519_OID: &str = "1.3.101.112";
        const RSA_OID: &str = "1.2.840.113549.1.1.1";
        const EC_OID: &str = "1.2.840.10045.2.1";
        const P256_POINT_BYTES: usize = 65;
        let info = SubjectPublicKeyInfoOwned::from_pem(pem).map_err(|_| InvalidKey::NotPem)?;
        let key = info.subject_public_key.raw_bytes().to_vec();
        match info.algorithm.oid.to_string().as_str() {
            ED25519_OID => Ok(Self::Ed25519(key)),
            RSA_OID => Ok(Self::RsaSha256(key)),
            EC_OID if key.len() == P256_POINT_BYTES => Ok(Self::P256(key)),
            _ => Err(InvalidKey::OtherKind),
        }
    }

    /// Each of them, and at least one.
    pub fn all_from_pem(pems: &[String]) -> Result<Vec<Self>, String> {
        if pems.is_empty() {
            return Err("give at least one public key".to_owned());
        }
        let keys = pems.iter().map(|pem| Self::from_pem(pem));
        keys.collect::<Result<_, InvalidKey>>().map_err(|why| format!("a key {why}"))
    }

    /// The same key, for tokens.
    pub(crate) fn for_tokens(&self) -> Option<DecodingKey> {
        match self {
            Self::Ed25519(_) => None,
            Self::RsaSha256(key) => Some(DecodingKey::from_rsa_der(key)),
            Self::P256(key) => Some(DecodingKey::from_ec_der(key)),
        }
    }

    fn verifies(&self, body: &[u8], signature: &[u8]) -> bool {
        let (algorithm, key): (&dyn VerificationAlgorithm, _) = match self {
            Self::Ed25519(key) => (&ED25519, key),
            Self::RsaSha256(key) => (&RSA_PKCS1_2048_8192_SHA256, key),
            Self::P256(key) => (&ECDSA_P256_SHA256_ASN1, key),
        };
        UnparsedPublicKey::new(algorithm, key).verify(body, signature).is_ok()
    }
}

impl StandardWebhooks {
    /// It signs its id and its time with the body.
    pub(crate) fn covers(header: &HeaderName) -> bool {
        [standardwebhooks::HEADER_WEBHOOK_ID, standardwebhooks::HEADER_WEBHOOK_TIMESTAMP]
            .contains(&header.as_str())
    }

    pub(crate) fn verifies(&self, headers: &HeaderMap, body: &[u8]) -> bool {
        // The library reads the first of a repeated header.
        let once = [
            standardwebhooks::HEADER_WEBHOOK_ID,
            standardwebhooks::HEADER_WEBHOOK_TIMESTAMP,
            standardwebhooks::HEADER_WEBHOOK_SIGNATURE,
        ];
        once.iter().all(|name| headers.get_all(*name).iter().count() == 1)
            && self.secrets.iter().any(|secret| secret.verify(body, headers).is_ok())
    }
}

/// The value of a header that stands there once. A header that is repeated
/// could be read in two ways.
pub(crate) fn only_header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(only), None) => Some(only.as_bytes()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
