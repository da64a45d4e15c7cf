//! Bearer tokens that an OpenID issuer signed (RFC 7519, RFC 8725): whose they are,
//! if they are meant for us.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use domain::jwt::has_critical_extension;
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Validation, decode, decode_header};
use reqwest::Url;
use serde_json::{Map, Value};

mod algorithm;
mod keys;

pub use algorithm::Algorithm;
pub use keys::KeyCache;

/// Longer than any that is issued for a workload.
const TOKEN_BYTES_MAX: usize = 8 * 1_024;
/// By so much clocks may differ.
const LEEWAY_S: u64 = 30;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerOptions {
    pub issuer: String,
    pub audience: String,
    /// Without it the issuer's OpenID configuration names it.
    pub jwks_url: Option<Url>,
    pub algorithms: Vec<Algorithm>,
    /// A token that ends later from now is refused.
    pub lifetime_max: Duration,
}

/// One issuer, with its keys.
pub struct Issuer {
    options: IssuerOptions,
    keys: KeyCache,
}

/// What a token says, all of it signed.
#[derive(Debug, Clone, PartialEq)]
pub struct Identity {
    pub subject: String,
    claims: Map<String, Value>,
}

/// Why a token is not accepted. It repeats nothing of the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAccepted {
    Malformed,
    /// Another algorithm than those that are allowed.
    Algorithm,
    UnknownKey,
    Signature,
    Issuer,
    Audience,
    Expired,
    NotYetValid,
    /// It ends too far in the future.
    Lifetime,
    /// The issuer's keys are not known, and cannot be read now.
    KeysUnavailable,
}

impl NotAccepted {
    /// In records and metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Malformed => "jwt-malformed",
            Self::Algorithm => "jwt-algorithm",
            Self::UnknownKey => "jwt-unknown-key",
            Self::Signature => "jwt-signature",
            Self::Issuer => "jwt-issuer",
            Self::Audience => "jwt-audience",
            Self::Expired => "jwt-expired",
            Self::NotYetValid => "jwt-not-yet-valid",
            Self::Lifetime => "jwt-lifetime",
            Self::KeysUnavailable => "jwt-keys-unavailable",
        }
    }
}

impl Identity {
    /// Whether a claim is this text, or a list with it. A name that begins with `/` is a
    /// JSON Pointer.
    pub fn has(&self, claim: &str, text: &str) -> bool {
        let found = match claim.strip_prefix('/') {
            None => self.claims.get(claim),
            Some(pointer) => {
                let mut parts =
                    pointer.split('/').map(|it| it.replace("~1", "/").replace("~0", "~"));
                let first = parts.next().and_then(|first| self.claims.get(&first));
                parts.fold(first, |found, part| found?.get(part))
            }
        };
        match found {
            Some(Value::String(found)) => found == text,
            Some(Value::Array(found)) => found.iter().any(|it| it == text),
            _ => false,
        }
    }
}

/// Whether a text has the form of a signed token, and whom it names as its issuer.
/// Nothing of that is proven.
pub fn claimed_issuer(token: &str) -> Option<String> {
    let mut parts = token.split('.');
    let (_, claims, _) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || token.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let claims = BASE64_URL_SAFE_NO_PAD.decode(claims).ok()?;
    let claims: Map<String, Value> = serde_json::from_slice(&claims).ok()?;
    claims.get("iss")?.as_str().map(str::to_owned)
}

impl Issuer {
    pub fn new(options: IssuerOptions) -> reqwest::Result<Self> {
        let keys = KeyCache::new(options.issuer.clone(), options.jwks_url.clone())?;
        Ok(Self { options, keys })
    }

    pub fn options(&self) -> &IssuerOptions {
        &self.options
    }

    pub async fn verify(&self, token: &str, now: Timestamp) -> Result<Identity, NotAccepted> {
        let header = decode_header(token).map_err(|_| NotAccepted::Malformed)?;
        if has_critical_extension(token) {
            return Err(NotAccepted::Malformed);
        }
        let algorithm = Algorithm::of(header.alg).filter(|it| self.options.algorithms.contains(it));
        let algorithm = algorithm.ok_or(NotAccepted::Algorithm)?;
        let key = self.keys.find(header.kid.as_deref(), algorithm).await?;
        let mut validation = Validation::new(header.alg);
        validation.leeway = LEEWAY_S;
        validation.validate_nbf = true;
        validation.set_audience(&[&self.options.audience]);
        validation.set_issuer(&[&self.options.issuer]);
        validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        let decoded = decode::<Map<String, Value>>(token, &key, &validation);
        let claims = decoded.map_err(|error| not_accepted(error.kind()))?.claims;
        let text = |claim: &str| claims.get(claim).and_then(Value::as_str);
        // A list of issuers is no issuer.
        if text("iss") != Some(&self.options.issuer) {
            return Err(NotAccepted::Issuer);
        }
        let subject = text("sub").ok_or(NotAccepted::Malformed)?.to_owned();
        let lifetime_max = SignedDuration::try_from(self.options.lifetime_max);
        let latest = lifetime_max.ok().and_then(|max| now.checked_add(max).ok());
        let ends = claims.get("exp").and_then(Value::as_f64);
        let is_short = ends.zip(latest).is_none_or(|(ends, latest)| {
            ends <= latest.as_duration().as_secs_f64() + LEEWAY_S as f64
        });
        if is_short { Ok(Identity { subject, claims }) } else { Err(NotAccepted::Lifetime) }
    }
}

fn not_accepted(kind: &ErrorKind) -> NotAccepted {
    match kind {
        ErrorKind::ExpiredSignature => NotAccepted::Expired,
        ErrorKind::ImmatureSignature => NotAccepted::NotYetValid,
        ErrorKind::InvalidAudience => NotAccepted::Audience,
        ErrorKind::InvalidIssuer => NotAccepted::Issuer,
        ErrorKind::InvalidSignature => NotAccepted::Signature,
        ErrorKind::InvalidAlgorithm => NotAccepted::Algorithm,
        _ => NotAccepted::Malformed,
    }
}

#[cfg(test)]
mod tests;
