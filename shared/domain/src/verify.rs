//! Verification: is this callback from the platform?
//!
//! By signature where the platform signs. Otherwise the proof is a secret that
//! only the platform was told: an unguessable path segment of the callback URL,
//! a static header, or a password. Several values of each may be valid at once,
//! so that they can be rotated. It fails closed: a source without any
//! verification must say so.

use http::{HeaderMap, HeaderName, Method};
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::jwt::{Fetched, Jwt, TokenIn};
use crate::signature::{Hmac, PublicKeySignature, SignedTimestamp, StandardWebhooks, only_header};

/// A callback as it came over HTTP.
#[derive(Clone, Copy)]
pub struct Delivery<'a> {
    pub method: &'a Method,
    pub path_token: Option<&'a str>,
    pub query: Option<&'a str>,
    pub headers: &'a HeaderMap,
    pub body: &'a [u8],
    pub received_at: Timestamp,
}

/// A callback that passed verification. Parsing asks for it, so no handler can
/// skip the check.
pub struct Verified<'a> {
    delivery: Delivery<'a>,
    claims: Option<ProvenClaims>,
}

/// What a signed token says.
struct ProvenClaims {
    claims: Value,
    /// The body is the token.
    are_body: bool,
}

impl<'a> Verified<'a> {
    pub fn method(&self) -> &'a Method {
        self.delivery.method
    }

    pub fn body(&self) -> &'a [u8] {
        self.delivery.body
    }

    pub fn headers(&self) -> &'a HeaderMap {
        self.delivery.headers
    }

    pub fn query(&self) -> Option<&'a str> {
        self.delivery.query
    }

    pub fn received_at(&self) -> Timestamp {
        self.delivery.received_at
    }

    /// What the token says that proves it, if one does.
    pub fn claims(&self) -> Option<&Value> {
        self.claims.as_ref().map(|proven| &proven.claims)
    }

    /// The same where the token is the body.
    pub fn claims_in_body(&self) -> Option<&Value> {
        self.claims.as_ref().filter(|proven| proven.are_body).map(|proven| &proven.claims)
    }
}

/// How one source verifies its callbacks.
#[derive(Debug)]
pub enum Verification {
    /// Declared by the operator: everything is accepted.
    Unverified,
    /// Each of them must pass; without any, nothing does.
    All(Vec<Check>),
}

#[derive(Debug)]
pub enum Check {
    PathToken(Vec<SecretString>),
    /// A header that holds exactly one of these values.
    Header {
        name: HeaderName,
        values: Vec<SecretString>,
    },
    Hmac(Hmac),
    PublicKey(PublicKeySignature),
    StandardWebhooks(StandardWebhooks),
    Jwt(Jwt),
}

/// It says nothing more on purpose: which part was wrong helps only a forger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the callback does not carry the proof that this source requires")]
pub struct Unauthentic;

impl Verification {
    pub fn verify<'a>(&self, delivery: Delivery<'a>) -> Result<Verified<'a>, Unauthentic> {
        let Self::All(checks) = self else { return Ok(Verified { delivery, claims: None }) };
        let asks_for_token = checks.iter().any(|check| matches!(check, Check::PathToken(_)));
        let unasked_token = delivery.path_token.is_some() && !asks_for_token;
        let mut claims = None;
        let passes = !checks.is_empty()
            && !unasked_token
            // Each is made, so that the time does not tell which one failed.
            && checks.iter().fold(true, |all, check| check.passes(delivery, &mut claims) & all);
        if passes { Ok(Verified { delivery, claims }) } else { Err(Unauthentic) }
    }

    /// Asks for a key that the platform publishes, if this callback needs one that is not known.
    pub async fn fetch_key(&self, delivery: Delivery<'_>) -> Fetched {
        for check in self.checks() {
            if let Check::Jwt(jwt) = check
                && jwt.fetch_key(delivery.headers, delivery.body).await == Fetched::Unavailable
            {
                return Fetched::Unavailable;
            }
        }
        Fetched::Known
    }

    /// Whether the body is a token.
    pub fn reads_token_in_body(&self) -> bool {
        self.checks().any(|check| matches!(check, Check::Jwt(jwt) if jwt.token_in == TokenIn::Body))
    }
}

impl Verification {
    /// Whether a header could be changed in a captured callback, which is accepted all
    /// the same: it is signed, the header is no part of it, and no shared secret has to
    /// be known besides.
    pub fn leaves_open(&self, header: &HeaderName) -> bool {
        self.relies_on_signatures() && !self.checks().any(|check| check.covers(header))
    }

    /// The same of the body: a token in a header says nothing of it.
    pub fn leaves_body_open(&self) -> bool {
        let covers = |check: &Check| match check {
            Check::Hmac(_) | Check::PublicKey(_) | Check::StandardWebhooks(_) => true,
            Check::Jwt(jwt) => jwt.token_in == TokenIn::Body,
            Check::PathToken(_) | Check::Header { .. } => false,
        };
        self.relies_on_signatures() && !self.checks().any(covers)
    }

    /// The same of the query and the method, which no scheme covers.
    pub fn leaves_query_open(&self) -> bool {
        self.relies_on_signatures()
    }

    fn relies_on_signatures(&self) -> bool {
        let is_secret = |check: &Check| matches!(check, Check::PathToken(_) | Check::Header { .. });
        self.checks().next().is_some() && !self.checks().any(is_secret)
    }

    fn checks(&self) -> impl Iterator<Item = &Check> {
        match self {
            Self::Unverified => [].iter(),
            Self::All(checks) => checks.iter(),
        }
    }
}

impl Check {
    /// Whether the header is part of what is proven.
    fn covers(&self, header: &HeaderName) -> bool {
        let is_signed = |timestamp: &Option<SignedTimestamp>| {
            timestamp.as_ref().is_some_and(|timestamp| timestamp.header == *header)
        };
        match self {
            Self::PathToken(_) => false,
            Self::Header { name, .. } => name == header,
            Self::Hmac(hmac) => is_signed(&hmac.timestamp),
            Self::PublicKey(signature) => is_signed(&signature.timestamp),
            Self::StandardWebhooks(_) => StandardWebhooks::covers(header),
            Self::Jwt(_) => false,
        }
    }

    fn passes(&self, delivery: Delivery<'_>, claims: &mut Option<ProvenClaims>) -> bool {
        match self {
            Self::PathToken(tokens) => {
                delivery.path_token.is_some_and(|given| any_equals(tokens, given.as_bytes()))
            }
            Self::Header { name, values } => {
                only_header(delivery.headers, name).is_some_and(|given| any_equals(values, given))
            }
            Self::Hmac(hmac) => {
                hmac.verifies(delivery.headers, delivery.body, delivery.received_at)
            }
            Self::PublicKey(signature) => {
                signature.verifies(delivery.headers, delivery.body, delivery.received_at)
            }
            Self::StandardWebhooks(webhooks) => webhooks.verifies(delivery.headers, delivery.body),
            Self::Jwt(jwt) => {
                let said = jwt.claims(delivery.headers, delivery.body, delivery.received_at);
                let are_body = jwt.token_in == TokenIn::Body;
                *claims = said.map(|said| ProvenClaims { claims: Value::Object(said), are_body });
                claims.is_some()
            }
        }
    }
}

/// Compares digests, so that neither content nor length shows in the time.
fn any_equals(secrets: &[SecretString], given: &[u8]) -> bool {
    let given = Sha256::digest(given);
    let found = secrets.iter().fold(Choice::from(0), |found, secret| {
        found | Sha256::digest(secret.expose_secret().as_bytes()).ct_eq(&given)
    });
    found.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "the-token-of-today";
    const NEXT: &str = "the-token-of-tomorrow";

    fn by_path() -> Verification {
        Verification::All(vec![token()])
    }

    fn by_header() -> Verification {
        Verification::All(vec![header()])
    }

    fn token() -> Check {
        Check::PathToken(vec![NOW.into(), NEXT.into()])
    }

    fn header() -> Check {
        let name = HeaderName::from_static("x-mooring-token");
        Check::Header { name, values: vec![NOW.into(), NEXT.into()] }
    }

    fn passes(verification: &Verification, path_token: Option<&str>, headers: &HeaderMap) -> bool {
        let (body, received_at) = (b"".as_slice(), Timestamp::UNIX_EPOCH);
        let method = &Method::POST;
        let delivery = Delivery { method, path_token, query: None, headers, body, received_at };
        verification.verify(delivery).is_ok()
    }

    fn headers(values: &[&str]) -> HeaderMap {
        let name = HeaderName::from_static("x-mooring-token");
        values.iter().map(|value| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn both_values_are_valid_during_rotation_and_no_other() {
        let none = HeaderMap::new();
        for (token, valid) in [(NOW, true), (NEXT, true), ("other", false), ("", false)] {
            assert_eq!(passes(&by_path(), Some(token), &none), valid, "path {token}");
            assert_eq!(passes(&by_header(), None, &headers(&[token])), valid, "{token}");
        }
    }

    #[test]
    fn what_is_missing_repeated_or_not_asked_for_is_refused() {
        assert!(!passes(&by_path(), None, &HeaderMap::new()));
        assert!(!passes(&by_header(), None, &HeaderMap::new()));
        assert!(!passes(&by_header(), None, &headers(&[NOW, NOW])));
        assert!(!passes(&by_header(), Some(NOW), &headers(&[NOW])));
    }

    #[test]
    fn with_path_and_header_configured_both_must_match() {
        let both = Verification::All(vec![token(), header()]);
        assert!(passes(&both, Some(NOW), &headers(&[NOW])));
        assert!(!passes(&both, Some(NOW), &HeaderMap::new()));
        assert!(!passes(&both, None, &headers(&[NOW])));
    }

    #[test]
    fn a_verification_that_checks_nothing_refuses() {
        let nothing = Verification::All(vec![]);
        assert!(!passes(&nothing, None, &HeaderMap::new()));
    }

    #[test]
    fn what_no_proof_covers_is_left_open_unless_a_secret_is_asked_for() {
        let name = |text: &'static str| HeaderName::from_static(text);
        let signed = |timestamp: Option<SignedTimestamp>| {
            Check::Hmac(Hmac {
                headers: vec![name("x-signature")],
                algorithm: crate::signature::HmacAlgorithm::Sha256,
                encoding: crate::signature::Encoding::Hex,
                prefix: String::new(),
                field: None,
                secrets: vec![NOW.into()],
                timestamp,
            })
        };
        let timestamp = SignedTimestamp {
            header: name("x-time"),
            field: None,
            before: String::new(),
            between: String::new(),
            tolerance: jiff::SignedDuration::from_mins(5),
        };
        let alone = Verification::All(vec![signed(None)]);
        assert!(alone.leaves_open(&name("x-event")) && alone.leaves_query_open());
        let timed = Verification::All(vec![signed(Some(timestamp))]);
        assert!(!timed.leaves_open(&name("x-time")) && timed.leaves_open(&name("x-event")));
        let webhooks = StandardWebhooks { secrets: Vec::new() };
        let standard = Verification::All(vec![Check::StandardWebhooks(webhooks)]);
        assert!(!standard.leaves_open(&name("webhook-id")) && standard.leaves_query_open());
        for beside in [token(), header()] {
            let both = Verification::All(vec![signed(None), beside]);
            assert!(!both.leaves_open(&name("x-event")) && !both.leaves_query_open());
        }
        assert!(!Verification::Unverified.leaves_query_open());
    }

    #[test]
    fn debug_shows_no_token() {
        assert!(!format!("{:?}{:?}", by_path(), by_header()).contains("the-token"));
    }
}
