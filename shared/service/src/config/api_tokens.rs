//! Who may call the read API: tokens, and what each of them reaches.

use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::secret_ref::SecretRef;
use domain::id::{AppId, InvalidId, SourceName};

/// Stands for every source.
const EVERY_SOURCE: &str = "*";
const HASH_BYTES: usize = 32;

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiTokenSettings {
    /// The SHA-256 of the token in hex, as `worker tokens create` prints it. Give this or
    /// `sha256_file`.
    pub sha256: Option<TokenHash>,
    /// The file that holds it.
    pub sha256_file: Option<PathBuf>,
    /// As versions before 0.2 had it. It is read to say what to write instead.
    #[schemars(skip)]
    pub token: Option<SecretRef>,
    /// What the caller may do.
    pub scopes: Vec<Scope>,
    /// The sources whose installations the caller reaches. `["*"]` is every source.
    #[schemars(required)]
    pub sources: Option<Vec<SourceChoice>>,
    /// The apps whose installations the caller reaches, by the platform's ids; empty is every app
    /// of `sources`.
    #[serde(default)]
    pub app_ids: Vec<AppId>,
    /// When the token ends, such as `"2027-01-31T00:00:00Z"`.
    #[schemars(required, with = "String", extend("format" = "date-time"))]
    pub expires_at: Option<Timestamp>,
    /// Requests a second that each worker answers. Further ones get 429.
    #[serde(default = "default_requests_per_second")]
    pub requests_per_second: NonZeroU32,
}

pub(super) fn default_requests_per_second() -> NonZeroU32 {
    NonZeroU32::MIN.saturating_add(99)
}

/// What a caller of the read API may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
pub enum Scope {
    /// Read installations and their events.
    #[serde(rename = "installations:read")]
    ReadInstallations,
    /// Read their credentials in plaintext: of OAuth the access token.
    #[serde(rename = "credentials:open")]
    OpenCredentials,
    /// With `credentials:open`: read the refresh token of OAuth, too. Only for an app that renews
    /// tokens itself.
    #[serde(rename = "refresh_tokens:open")]
    OpenRefreshTokens,
    /// Open sessions of the app's [portal](platforms.md#the-portal-of-an-app), and look them up.
    #[serde(rename = "portal_sessions:open")]
    OpenPortalSessions,
}

impl Scope {
    pub fn name(self) -> &'static str {
        match self {
            Self::ReadInstallations => "installations:read",
            Self::OpenCredentials => "credentials:open",
            Self::OpenRefreshTokens => "refresh_tokens:open",
            Self::OpenPortalSessions => "portal_sessions:open",
        }
    }

    pub const ALL: [Self; 4] = [
        Self::ReadInstallations,
        Self::OpenCredentials,
        Self::OpenRefreshTokens,
        Self::OpenPortalSessions,
    ];
}

/// The name of a source, or `*`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String", extend("pattern" = r"^(\*|[a-z0-9][a-z0-9_-]{0,31})$"))]
pub enum SourceChoice {
    Every,
    Named(SourceName),
}

impl TryFrom<String> for SourceChoice {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        if text == EVERY_SOURCE {
            Ok(Self::Every)
        } else {
            SourceName::parse(text).map(Self::Named)
        }
    }
}

/// The SHA-256 of a token. A token is 256 random bits, so nobody finds it by guessing, and a slow
/// hash as for passwords would only make requests slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String", extend("pattern" = "^[0-9a-f]{64}$"))]
pub struct TokenHash([u8; HASH_BYTES]);

/// It repeats nothing: what stands there may be the token itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be the SHA-256 of the token: 64 digits 0-9 and a-f, as `worker tokens create` prints it"
)]
pub struct NoTokenHash;

impl TokenHash {
    pub const fn new(digest: [u8; HASH_BYTES]) -> Self {
        Self(digest)
    }

    pub fn parse(text: &str) -> Result<Self, NoTokenHash> {
        let nibble = |digit: u8| match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            _ => Err(NoTokenHash),
        };
        let mut digest = [0; HASH_BYTES];
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != HASH_BYTES || !rest.is_empty() {
            return Err(NoTokenHash);
        }
        for (byte, [high, low]) in digest.iter_mut().zip(pairs) {
            *byte = (nibble(*high)? << 4) | nibble(*low)?;
        }
        Ok(Self(digest))
    }
}

impl TryFrom<String> for TokenHash {
    type Error = NoTokenHash;

    fn try_from(text: String) -> Result<Self, NoTokenHash> {
        Self::parse(&text)
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_read_as_it_is_written_and_anything_else_is_not_repeated() {
        let text = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
        assert_eq!(TokenHash::parse(text).unwrap().to_string(), text);
        for bad in ["", "mooring_secret", &text[1..], &text.to_uppercase(), &format!("{text}0")] {
            let error = TokenHash::parse(bad).unwrap_err().to_string();
            assert!(bad.is_empty() || !error.contains(bad), "{error}");
        }
    }

    #[test]
    fn every_source_is_written_out() {
        let choice = |text: &str| SourceChoice::try_from(text.to_owned());
        assert_eq!(choice("*"), Ok(SourceChoice::Every));
        assert!(matches!(choice("blnk"), Ok(SourceChoice::Named(_))));
        assert!(choice("").is_err() && choice("**").is_err());
    }

    #[test]
    fn a_scope_is_named_as_it_is_configured() {
        for scope in Scope::ALL {
            let read: Scope = serde_json::from_value(scope.name().into()).unwrap();
            assert_eq!(read, scope);
        }
    }
}
