//! Errors over HTTP: RFC 9457 `application/problem+json`.

use std::collections::BTreeMap;

use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use serde::Serialize;

/// One refusal or failure as its caller sees it. It never holds a value out of
/// a callback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Of the client or of the server, never a success: see [`Problem::new`].
    status: StatusCode,
    /// Stable: the end of `type`, and the reason in metrics.
    pub name: &'static str,
    /// Says what was expected, what was found and what to do.
    pub detail: String,
    pub retry_after_s: Option<u32>,
    /// A member that this type of problem has besides (RFC 9457, section 3.2).
    pub extension: Option<Box<(&'static str, serde_json::Value)>>,
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: String,
    title: String,
    status: u16,
    detail: &'a str,
    #[serde(flatten)]
    extension: BTreeMap<&'static str, &'a serde_json::Value>,
}

impl Problem {
    /// A status that is no error would tell the caller that all is well. That is a
    /// fault of ours, and answered as one.
    pub fn new(status: StatusCode, name: &'static str, detail: impl Into<String>) -> Self {
        let is_error = status.is_client_error() || status.is_server_error();
        let status = if is_error { status } else { StatusCode::INTERNAL_SERVER_ERROR };
        Self { status, name, detail: detail.into(), retry_after_s: None, extension: None }
    }

    pub fn with(mut self, name: &'static str, value: serde_json::Value) -> Self {
        self.extension = Some(Box::new((name, value)));
        self
    }

    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Whether the caller was wrong, so that the same again is refused again.
    pub fn is_refusal(&self) -> bool {
        self.status.is_client_error() && self.status != StatusCode::TOO_MANY_REQUESTS
    }

    /// `missing-field` becomes "Missing field".
    fn title(&self) -> String {
        let words = self.name.replace('-', " ");
        let mut letters = words.chars();
        letters
            .next()
            .map(|first| first.to_uppercase().chain(letters).collect())
            .unwrap_or_default()
    }

    /// The answer, for any body type that a string can become.
    pub fn response<B: From<String>>(&self) -> Response<B> {
        let body = Body {
            r#type: format!("urn:mooring:problem:{}", self.name),
            title: self.title(),
            status: self.status.as_u16(),
            detail: &self.detail,
            extension: self.extension.iter().map(|member| (member.0, &member.1)).collect(),
        };
        let json = serde_json::to_string(&body).unwrap_or_default();
        let mut response = Response::new(B::from(json));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_never_a_success() {
        for status in [StatusCode::OK, StatusCode::NO_CONTENT, StatusCode::FOUND] {
            assert_eq!(Problem::new(status, "odd", "").response::<String>().status(), 500);
        }
    }

    #[test]
    fn a_problem_is_written_as_rfc_9457_says() {
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "log-full", "no room");
        let response: Response<String> = problem.retry_after(2).response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        assert_eq!(response.headers()[RETRY_AFTER], "2");
        let expected = r#"{"type":"urn:mooring:problem:log-full","title":"Log full","status":503,"detail":"no room"}"#;
        assert_eq!(response.body(), expected);
    }

    #[test]
    fn a_problem_may_have_a_member_of_its_own() {
        let problem = Problem::new(StatusCode::CONFLICT, "ambiguous", "which?");
        let response: Response<String> = problem.with("candidates", ["a"].into()).response();
        let expected = r#"{"type":"urn:mooring:problem:ambiguous","title":"Ambiguous","status":409,"detail":"which?","candidates":["a"]}"#;
        assert_eq!(response.body(), expected);
    }
}
