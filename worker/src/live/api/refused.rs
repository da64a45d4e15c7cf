//! Answers that are not the expected one, as RFC 9457 says.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use domain::seal::OpenError;
use serde_json::json;
use service::problem::Problem;

use crate::error_chain::chain;
use crate::live::archived_payloads::Unread;
use crate::live::credential::CredentialError;
use crate::store::feed::FeedError;
use crate::store::find::{Candidate, FindError};

const RETRY_AFTER_S: u32 = 2;

/// An answer that is not the expected one.
pub(super) struct Refused(pub(super) Problem);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let mut response: Response = self.0.response();
        if self.0.status() == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer realm=\"mooring\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

impl From<FindError> for Refused {
    fn from(error: FindError) -> Self {
        let (status, name) = match &error {
            FindError::NotFound => (StatusCode::NOT_FOUND, "installation-not-found"),
            FindError::Ambiguous { candidates } => return ambiguous(candidates),
            FindError::UnknownStatus
            | FindError::ContainsNul
            | FindError::BadCursor
            | FindError::BadLimit => (StatusCode::BAD_REQUEST, "invalid-parameter"),
            FindError::Postgres(cause) => return unavailable(cause),
        };
        Self(Problem::new(status, name, error.to_string()))
    }
}

impl From<sqlx::Error> for Refused {
    fn from(error: sqlx::Error) -> Self {
        unavailable(&error)
    }
}

impl From<FeedError> for Refused {
    fn from(error: FeedError) -> Self {
        match &error {
            FeedError::Expired => {
                Self(Problem::new(StatusCode::GONE, "cursor-expired", error.to_string()))
            }
            FeedError::Postgres(cause) => unavailable(cause),
        }
    }
}

impl From<CredentialError> for Refused {
    fn from(error: CredentialError) -> Self {
        match &error {
            CredentialError::None { .. } => {
                Self(Problem::new(StatusCode::NOT_FOUND, "no-credential", error.to_string()))
            }
            CredentialError::Postgres(cause) => unavailable(cause),
            CredentialError::NotRecorded(why) => {
                tracing::warn!(%why, "a credential is not opened");
                let detail = "the access cannot be recorded, so it is refused; try again shortly";
                let status = StatusCode::SERVICE_UNAVAILABLE;
                let problem = Problem::new(status, "database-unavailable", detail);
                Self(problem.retry_after(RETRY_AFTER_S))
            }
            CredentialError::DataKey(cause) if !cause.is::<OpenError>() => {
                tracing::warn!(error = chain(&error), "a data key cannot be read");
                let detail = "the data key of the credential cannot be read; try again shortly";
                let status = StatusCode::SERVICE_UNAVAILABLE;
                let problem = Problem::new(status, "data-key-unavailable", detail);
                Self(problem.retry_after(RETRY_AFTER_S))
            }
            CredentialError::Open(_) | CredentialError::DataKey(_) | CredentialError::Stored(_) => {
                tracing::error!(error = chain(&error), "a credential cannot be opened");
                let detail = "the credential cannot be opened; the worker's log says why";
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                Self(Problem::new(status, "credential-not-opened", detail))
            }
        }
    }
}

fn unavailable(cause: &sqlx::Error) -> Refused {
    tracing::warn!(error = chain(cause), "a read failed");
    let detail = "Postgres does not answer; try again shortly";
    let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "database-unavailable", detail);
    Refused(problem.retry_after(RETRY_AFTER_S))
}

impl From<Unread> for Refused {
    fn from(error: Unread) -> Self {
        tracing::warn!(error = chain(&error), "archived events cannot be read");
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let problem = Problem::new(status, "archive-unavailable", error.to_string());
        Self(problem.retry_after(RETRY_AFTER_S))
    }
}

fn ambiguous(candidates: &[Candidate]) -> Refused {
    let detail = "several installations have this id: say which by source, app_id or place";
    let problem = Problem::new(StatusCode::CONFLICT, "ambiguous-installation", detail);
    Refused(problem.with("candidates", json!(candidates)))
}

impl Refused {
    pub(super) fn invalid(detail: impl Into<String>) -> Self {
        Self(Problem::new(StatusCode::BAD_REQUEST, "invalid-parameter", detail))
    }
}
