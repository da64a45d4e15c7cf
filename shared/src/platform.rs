//! The platforms: each a module that reads its callbacks, and nothing else.
//!
//! Adding one: a module beside `blnk.rs`, a variant of [`Platform`], and an arm
//! in each `match` here. Ingest and worker do not change.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::event::Callback;
use crate::id::{AppId, InvalidId};
use crate::verify::Verified;

mod blnk;

/// A marketplace whose callbacks we read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Platform {
    Blnk,
}

/// What a platform expects of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AckContract {
    /// The platform stops waiting after this long.
    pub deadline: Duration,
    /// How long ingest keeps trying to publish, unless configured otherwise.
    pub default_budget: Duration,
}

impl Platform {
    pub fn name(self) -> &'static str {
        match self {
            Self::Blnk => "blnk",
        }
    }

    pub fn ack_contract(self) -> AckContract {
        match self {
            Self::Blnk => blnk::ACK_CONTRACT,
        }
    }

    /// Reads a verified callback.
    pub fn parse(self, verified: &Verified<'_>) -> Result<Callback, Refusal> {
        match self {
            Self::Blnk => blnk::parse(verified.body()),
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
    MissingField { field: &'static str },
    #[error("the field '{field}' {expected}")]
    InvalidField { field: &'static str, expected: String },
    #[error("'idempotency_key' says {kind}, but the field '{field}' says otherwise")]
    Contradiction { kind: &'static str, field: &'static str },
    #[error("this source does not accept callbacks for that 'app_id'")]
    ForeignApp,
}

impl Refusal {
    fn invalid(field: &'static str, why: &InvalidId) -> Self {
        Self::InvalidField { field, expected: why.to_string() }
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
    match callback.fact.identity() {
        Some(identity) if !accepted.is_empty() && !accepted.contains(&identity.app_id) => {
            Err(Refusal::ForeignApp)
        }
        _ => Ok(()),
    }
}
