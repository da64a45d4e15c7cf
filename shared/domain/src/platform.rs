//! The platforms: each a module that reads its callbacks, and nothing else.
//!
//! Adding one: a module beside `blnk.rs`, a variant of [`Platform`], and an arm
//! in each `match` here. Ingest and worker do not change. A platform that only
//! differs in names and signatures needs no code: see [`generic`].

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use http::StatusCode;
use jiff::Timestamp;
use schemars::JsonSchema;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::event::{Callback, Fact, Identity, Payload};
use crate::id::{AppId, IdempotencyKey, PlatformName};
use crate::verify::Verified;

mod blnk;
mod fields;
pub mod generic;
pub mod highlevel;
pub mod securityscorecard;

use fields::Fields;

/// A marketplace whose callbacks we read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// Blnk Cloud.
    Blnk,
    /// HighLevel (GoHighLevel).
    HighLevel,
    /// SecurityScorecard.
    SecurityScorecard,
    /// Any other platform, read as the source's `mapping` says.
    Generic,
}

/// What a platform expects of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AckContract {
    /// The platform stops waiting after this long.
    pub deadline: Duration,
    /// How long ingest keeps trying to publish.
    pub budget: Duration,
    /// The status that tells the platform: stored.
    pub success: StatusCode,
    pub body: SuccessBody,
    /// The status that tells the platform: not stored, send it again.
    pub unavailable: StatusCode,
    pub missed: MissedAck,
}

/// The body of a success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SuccessBody {
    /// `{"ok":true,"duplicate":false}`.
    Json,
    /// No body.
    Empty,
}

/// What the platform does when no success arrives in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MissedAck {
    /// What it told us of may not have come to be: the installation is unconfirmed.
    Cancels,
    /// It has happened all the same; the platform tells us again, or never.
    Stands,
}

/// Where a platform grants tokens, unless a source's configuration says otherwise.
#[derive(Debug, Clone, Copy, Default)]
pub struct OAuthDefaults {
    pub authorize_url: Option<&'static str>,
    pub token_url: Option<&'static str>,
    pub location_token_url: Option<&'static str>,
    pub headers: &'static [(&'static str, &'static str)],
}

/// How the callbacks of one source are read.
#[derive(Debug)]
pub enum Adapter {
    Blnk,
    HighLevel,
    SecurityScorecard,
    Generic(Box<generic::Mapping>),
}

impl Platform {
    pub const ALL: [Self; 4] =
        [Self::Blnk, Self::HighLevel, Self::SecurityScorecard, Self::Generic];

    pub fn name(self) -> &'static str {
        match self {
            Self::Blnk => "blnk",
            Self::HighLevel => "highlevel",
            Self::SecurityScorecard => "securityscorecard",
            Self::Generic => "generic",
        }
    }

    /// As events carry it.
    pub fn to_name(self) -> PlatformName {
        PlatformName::of_known(self.name())
    }

    /// A source's configuration may change parts of it.
    pub fn ack_contract(self) -> AckContract {
        match self {
            Self::Blnk => blnk::ACK_CONTRACT,
            Self::HighLevel => highlevel::ACK_CONTRACT,
            Self::SecurityScorecard => securityscorecard::ACK_CONTRACT,
            Self::Generic => generic::ACK_CONTRACT,
        }
    }

    pub fn oauth_defaults(self) -> OAuthDefaults {
        match self {
            Self::HighLevel => highlevel::OAUTH,
            Self::Blnk | Self::SecurityScorecard | Self::Generic => OAuthDefaults::default(),
        }
    }
}

impl Adapter {
    /// Reads a verified callback.
    pub fn parse(&self, verified: &Verified<'_>) -> Result<Callback, Refusal> {
        match self {
            Self::Blnk => blnk::parse(verified.body()),
            Self::HighLevel => highlevel::parse(verified.body(), verified.received_at()),
            Self::SecurityScorecard => securityscorecard::parse(verified.body()),
            Self::Generic(mapping) => mapping.parse(verified),
        }
    }

    /// Whose tokens they are, by the answer that brought them.
    pub fn token_owner(
        &self,
        app_id: &AppId,
        answer: &Map<String, Value>,
    ) -> Result<Identity, Refusal> {
        match self {
            Self::HighLevel => highlevel::identity(app_id.clone(), answer),
            Self::Generic(mapping) => mapping.token_owner(app_id.clone(), answer),
            // The configuration is refused.
            Self::Blnk | Self::SecurityScorecard => Err(Refusal::ForeignApp),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a callback is refused. A retry of the same bytes would be refused
/// again, so each is a 4xx. None of them holds a value out of the callback,
/// which might be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the body is not JSON: {reason}")]
    MalformedJson { reason: String },
    #[error("the body is nested deeper than {max} levels")]
    TooDeep { max: usize },
    #[error("the body must be a JSON object")]
    NotAnObject,
    #[error("the field '{field}' is missing")]
    MissingField { field: Cow<'static, str> },
    #[error("the field '{field}' {expected}")]
    InvalidField { field: Cow<'static, str>, expected: String },
    #[error("'idempotency_key' says {kind}, but the field '{field}' says otherwise")]
    Contradiction { kind: &'static str, field: &'static str },
    #[error("this source does not accept callbacks for that app")]
    ForeignApp,
}

impl Refusal {
    fn missing(field: impl Into<Cow<'static, str>>) -> Self {
        Self::MissingField { field: field.into() }
    }

    fn invalid(field: impl Into<Cow<'static, str>>, expected: impl fmt::Display) -> Self {
        Self::InvalidField { field: field.into(), expected: expected.to_string() }
    }

    /// Names the field with the object that holds it.
    fn under(self, parent: &str) -> Self {
        let nested = |field: Cow<'static, str>| Cow::Owned(format!("{parent}.{field}"));
        match self {
            Self::MissingField { field } => Self::MissingField { field: nested(field) },
            Self::InvalidField { field, expected } => {
                Self::InvalidField { field: nested(field), expected }
            }
            other => other,
        }
    }

    /// The stable name of the reason: the end of the problem's `type`, and the
    /// label in metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::MalformedJson { .. } => "malformed-json",
            Self::TooDeep { .. } => "json-too-deep",
            Self::NotAnObject => "not-an-object",
            Self::MissingField { .. } => "missing-field",
            Self::InvalidField { .. } => "invalid-field",
            Self::Contradiction { .. } => "contradiction",
            Self::ForeignApp => "foreign-app",
        }
    }
}

/// Refuses a callback for an app that the source does not list. An empty list
/// accepts every app.
pub fn accept_app(callback: &Callback, accepted: &[AppId]) -> Result<(), Refusal> {
    match &callback.app_id {
        Some(app_id) if !accepted.is_empty() && !accepted.contains(app_id) => {
            Err(Refusal::ForeignApp)
        }
        _ => Ok(()),
    }
}

/// An event of a kind that the platform added. What fields hold secrets is not
/// known then, so the whole payload is sealed.
fn unrecognized(
    kind: String,
    identity: Option<Identity>,
    idempotency_key: IdempotencyKey,
    occurred_at: Option<Timestamp>,
    fields: Fields,
) -> Callback {
    let payload = sealed(Value::Object(fields));
    Callback {
        app_id: identity.as_ref().map(|found| found.app_id.clone()),
        idempotency_key,
        occurred_at,
        fact: Fact::Unrecognized { kind, identity },
        payload,
    }
}

/// A payload to be sealed as a whole, in a form that does not depend on the order
/// of its fields: a retry must not look different.
fn sealed(mut payload: Value) -> Payload<SecretString> {
    payload.sort_all_objects();
    Payload::Sealed(payload.to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_contract_answers_before_its_deadline() {
        for platform in Platform::ALL {
            let contract = platform.ack_contract();
            assert!(contract.budget < contract.deadline, "{platform}");
            assert!(contract.success.is_success(), "{platform}");
            let unavailable = contract.unavailable;
            assert!(unavailable.is_server_error() || unavailable == 429, "{platform}");
        }
    }

    #[test]
    fn a_platform_has_one_name() {
        for platform in Platform::ALL {
            assert_eq!(serde_json::to_value(platform).unwrap(), platform.name());
            assert_eq!(PlatformName::parse(platform.name()).unwrap(), platform.to_name());
        }
    }
}
