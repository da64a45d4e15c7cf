//! Why a callback is refused.

use std::borrow::Cow;
use std::fmt;

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
    pub(super) fn missing(field: impl Into<Cow<'static, str>>) -> Self {
        Self::MissingField { field: field.into() }
    }

    pub(super) fn invalid(
        field: impl Into<Cow<'static, str>>,
        expected: impl fmt::Display,
    ) -> Self {
        Self::InvalidField { field: field.into(), expected: expected.to_string() }
    }

    /// Names the field with the object that holds it.
    pub(super) fn under(self, parent: &str) -> Self {
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
