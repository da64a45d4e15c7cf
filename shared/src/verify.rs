//! Verification: is this callback from the platform?
//!
//! For platforms that do not sign, the proof is a secret that only the platform
//! was told: an unguessable path segment of the callback URL, a static header,
//! or both. Two values of each may be valid at once, so that they can be
//! rotated. It fails closed: a source without any verification must say so.

use http::{HeaderMap, HeaderName};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

/// A body that passed verification. Parsing asks for it, so no handler can
/// skip the check.
pub struct Verified<'a> {
    body: &'a [u8],
}

impl<'a> Verified<'a> {
    pub fn body(&self) -> &'a [u8] {
        self.body
    }
}

/// How one source verifies its callbacks.
#[derive(Debug)]
pub enum Verification {
    /// Declared by the operator: everything is accepted.
    Unverified,
    /// All that is configured must match.
    SharedSecret { path_tokens: Vec<SecretString>, header: Option<HeaderSecret> },
}

#[derive(Debug)]
pub struct HeaderSecret {
    pub name: HeaderName,
    pub values: Vec<SecretString>,
}

/// It says nothing more on purpose: which part was wrong helps only a forger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the callback does not carry the secret that this source was configured with")]
pub struct Unauthentic;

impl Verification {
    pub fn verify<'a>(
        &self,
        path_token: Option<&str>,
        headers: &HeaderMap,
        body: &'a [u8],
    ) -> Result<Verified<'a>, Unauthentic> {
        match self {
            Self::Unverified => Ok(Verified { body }),
            Self::SharedSecret { path_tokens, header } => {
                let path_matches = match (path_tokens.is_empty(), path_token) {
                    (true, None) => Choice::from(1),
                    (true, Some(_)) | (false, None) => Choice::from(0),
                    (false, Some(given)) => any_equals(path_tokens, given.as_bytes()),
                };
                let header_matches = match header {
                    None => Choice::from(1),
                    Some(HeaderSecret { name, values }) => {
                        let mut given = headers.get_all(name).iter();
                        match (given.next(), given.next()) {
                            (Some(only), None) => any_equals(values, only.as_bytes()),
                            _ => Choice::from(0),
                        }
                    }
                };
                let something_to_check = !path_tokens.is_empty() || header.is_some();
                let matches =
                    path_matches & header_matches & Choice::from(u8::from(something_to_check));
                if bool::from(matches) { Ok(Verified { body }) } else { Err(Unauthentic) }
            }
        }
    }
}

/// Compares digests, so that neither content nor length shows in the time.
fn any_equals(secrets: &[SecretString], given: &[u8]) -> Choice {
    let given = Sha256::digest(given);
    secrets.iter().fold(Choice::from(0), |found, secret| {
        found | Sha256::digest(secret.expose_secret().as_bytes()).ct_eq(&given)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "the-token-of-today";
    const NEXT: &str = "the-token-of-tomorrow";

    fn by_path() -> Verification {
        Verification::SharedSecret { path_tokens: vec![NOW.into(), NEXT.into()], header: None }
    }

    fn by_header() -> Verification {
        let name = HeaderName::from_static("x-mooring-token");
        let header = Some(HeaderSecret { name, values: vec![NOW.into(), NEXT.into()] });
        Verification::SharedSecret { path_tokens: vec![], header }
    }

    fn headers(values: &[&str]) -> HeaderMap {
        let name = HeaderName::from_static("x-mooring-token");
        values.iter().map(|value| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn both_values_are_valid_during_rotation_and_no_other() {
        let none = HeaderMap::new();
        for (token, valid) in [(NOW, true), (NEXT, true), ("other", false), ("", false)] {
            assert_eq!(by_path().verify(Some(token), &none, b"").is_ok(), valid, "path {token}");
            assert_eq!(by_header().verify(None, &headers(&[token]), b"").is_ok(), valid, "{token}");
        }
    }

    #[test]
    fn what_is_missing_repeated_or_not_asked_for_is_refused() {
        assert!(by_path().verify(None, &HeaderMap::new(), b"").is_err());
        assert!(by_header().verify(None, &HeaderMap::new(), b"").is_err());
        assert!(by_header().verify(None, &headers(&[NOW, NOW]), b"").is_err());
        assert!(by_header().verify(Some(NOW), &headers(&[NOW]), b"").is_err());
    }

    #[test]
    fn with_path_and_header_configured_both_must_match() {
        let Verification::SharedSecret { header, .. } = by_header() else { unreachable!() };
        let both = Verification::SharedSecret { path_tokens: vec![NOW.into()], header };
        assert!(both.verify(Some(NOW), &headers(&[NOW]), b"").is_ok());
        assert!(both.verify(Some(NOW), &HeaderMap::new(), b"").is_err());
        assert!(both.verify(None, &headers(&[NOW]), b"").is_err());
    }

    #[test]
    fn a_verification_that_checks_nothing_refuses() {
        let nothing = Verification::SharedSecret { path_tokens: vec![], header: None };
        assert!(nothing.verify(None, &HeaderMap::new(), b"").is_err());
    }

    #[test]
    fn debug_shows_no_token() {
        assert!(!format!("{:?}{:?}", by_path(), by_header()).contains("the-token"));
    }
}
