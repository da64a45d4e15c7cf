//! Callbacks whose proof is a token that the platform signed (RFC 7519), in a header
//! beside the body or as the body itself.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderName};
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::{DecodingKey, Validation, decode, decode_header};
use schemars::JsonSchema;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::signature::{PublicKey, only_header};

mod signature;

pub use signature::install as use_ring;

/// Longer than a header may be.
const HEADER_TOKEN_BYTES_MAX: usize = 16 * 1_024;

/// How the token of a callback is signed (RFC 7518).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum Algorithm {
    /// HMAC with SHA-256: platform and app share a secret.
    #[serde(rename = "HS256")]
    Hs256,
    /// RSA with SHA-256.
    #[serde(rename = "RS256")]
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    #[serde(rename = "ES256")]
    Es256,
}

impl Algorithm {
    fn theirs(self) -> jsonwebtoken::Algorithm {
        match self {
            Self::Hs256 => jsonwebtoken::Algorithm::HS256,
            Self::Rs256 => jsonwebtoken::Algorithm::RS256,
            Self::Es256 => jsonwebtoken::Algorithm::ES256,
        }
    }
}

/// Keys that a platform publishes and changes.
pub trait PublishedKeys: fmt::Debug + Send + Sync {
    /// Of those that are known, the one of this name. A token without a name is of the only
    /// key there is.
    fn known(&self, id: Option<&str>, algorithm: jsonwebtoken::Algorithm) -> Option<DecodingKey>;

    /// Asks for it if it is not known. Anybody can send a token that names a key nobody has, so
    /// it must not ask each time.
    fn fetch<'a>(
        &'a self,
        id: Option<&'a str>,
        algorithm: jsonwebtoken::Algorithm,
    ) -> Pin<Box<dyn Future<Output = Fetched> + Send + 'a>>;
}

/// Whether a key that is not known is none, or could not be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetched {
    Known,
    /// Nothing says that the callback is not the platform's: it is to come again.
    Unavailable,
}

/// Any of them may have signed.
#[derive(Debug, Clone)]
pub enum Keys {
    /// For `HS256`, and for nothing else.
    Secrets(Vec<SecretString>),
    Public(Vec<PublicKey>),
    Published(Arc<dyn PublishedKeys>),
}

/// Where the token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenIn {
    /// After `Bearer`, or alone.
    Header(HeaderName),
    Body,
}

/// The token that a callback must carry.
#[derive(Debug, Clone)]
pub struct Jwt {
    pub token_in: TokenIn,
    pub algorithm: Algorithm,
    pub keys: Keys,
    pub issuer: Option<String>,
    pub audience: Option<String>,
    /// By so much clocks may differ.
    pub tolerance: SignedDuration,
}

pub type Claims = Map<String, Value>;

impl Jwt {
    /// What the token says, all of it signed; `None` if it proves nothing.
    pub(crate) fn claims(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        received_at: Timestamp,
    ) -> Option<Claims> {
        let token = self.token(headers, body)?;
        let keys = self.candidates(token);
        let validation = self.validation();
        let decoded = keys.iter().find_map(|key| decode::<Claims>(token, key, &validation).ok());
        let claims = decoded?.claims;
        let names = |claim: &str, expected: &Option<String>| {
            let said = claims.get(claim).and_then(Value::as_str);
            expected.is_none() || said == expected.as_deref()
        };
        // A list of issuers is no issuer.
        let is_ours = !has_critical_extension(token) && names("iss", &self.issuer);
        (is_ours && self.is_of_now(&claims, received_at)).then_some(claims)
    }

    /// Asks for the key that signed, if it is published and not known.
    pub(crate) async fn fetch_key(&self, headers: &HeaderMap, body: &[u8]) -> Fetched {
        let Keys::Published(keys) = &self.keys else { return Fetched::Known };
        let header = self.token(headers, body).and_then(|token| decode_header(token).ok());
        match header.filter(|header| header.alg == self.algorithm.theirs()) {
            Some(header) => keys.fetch(header.kid.as_deref(), header.alg).await,
            None => Fetched::Known,
        }
    }

    fn token<'a>(&self, headers: &'a HeaderMap, body: &'a [u8]) -> Option<&'a str> {
        match &self.token_in {
            TokenIn::Body => Some(std::str::from_utf8(body).ok()?.trim()),
            TokenIn::Header(name) => {
                let text = std::str::from_utf8(only_header(headers, name)?).ok()?;
                let token = text.strip_prefix("Bearer ").unwrap_or(text);
                (token.len() <= HEADER_TOKEN_BYTES_MAX).then_some(token)
            }
        }
    }

    fn candidates(&self, token: &str) -> Vec<DecodingKey> {
        match &self.keys {
            Keys::Secrets(secrets) => {
                let key = |secret: &SecretString| {
                    DecodingKey::from_secret(secret.expose_secret().as_bytes())
                };
                secrets.iter().map(key).collect()
            }
            Keys::Public(keys) => keys.iter().filter_map(PublicKey::for_tokens).collect(),
            Keys::Published(keys) => {
                let header = decode_header(token).ok();
                let key = header.and_then(|header| keys.known(header.kid.as_deref(), header.alg));
                key.into_iter().collect()
            }
        }
    }

    /// The times are checked by when the callback was received, and not by a clock.
    fn validation(&self) -> Validation {
        let mut validation = Validation::new(self.algorithm.theirs());
        validation.validate_exp = false;
        validation.validate_nbf = false;
        let mut required = vec!["exp"];
        match &self.audience {
            Some(audience) => {
                validation.set_audience(&[audience]);
                required.push("aud");
            }
            None => validation.validate_aud = false,
        }
        validation.set_required_spec_claims(&required);
        validation
    }

    fn is_of_now(&self, claims: &Claims, received_at: Timestamp) -> bool {
        let now = received_at.as_duration().as_secs_f64();
        let tolerance = self.tolerance.as_secs_f64();
        let time = |claim: &str| claims.get(claim).map(|time| time.as_f64());
        let has_begun = |claim| match time(claim) {
            None => true,
            Some(time) => time.is_some_and(|time| time <= now + tolerance),
        };
        let has_not_ended = time("exp").flatten().is_some_and(|ends| now <= ends + tolerance);
        has_not_ended && has_begun("nbf") && has_begun("iat")
    }
}

/// We know no extension, and must not ignore one (RFC 7515, section 4.1.11).
pub fn has_critical_extension(token: &str) -> bool {
    let header = token.split('.').next().and_then(|it| BASE64_URL_SAFE_NO_PAD.decode(it).ok());
    let header = header.and_then(|it| serde_json::from_slice::<Claims>(&it).ok());
    header.is_none_or(|header| header.contains_key("crit"))
}

#[cfg(test)]
mod tests;
