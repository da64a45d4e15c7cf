//! OAuth 2.0 at install: a user grants access at the platform, whose redirect
//! brings a code. It is exchanged for tokens, which are sealed and appended like
//! the secret of a callback, before the user is told that all is well.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Redirect, Response};
use axum_extra::extract::CookieJar;
use domain::event::{Callback, Grant};
use domain::seal::SealingNonce;
use eventlog::audit::Outcome;
use eventlog::message::LogMessage;
use opentelemetry::KeyValue;
use secrecy::SecretString;
use serde::Deserialize;
use service::clock;
use service::oauth::{OAuth, StatePolicy, TokenError};
use service::telemetry::names::attribute;

use crate::app::App;
use crate::metrics::METRICS;
use crate::page::{self, InPath};
use crate::settings::Source;
use crate::ticket::{self, Purpose};

const STATE: &str = "oauth";
/// A user waits for it; the platform does not.
const APPEND_BUDGET: Duration = Duration::from_secs(10);

/// Why a user's step failed, and what is said of it.
pub(crate) struct Failed {
    status: StatusCode,
    /// For metrics, logs and the audit.
    reason: &'static str,
    title: &'static str,
    text: &'static str,
}

impl Failed {
    const fn new(
        status: StatusCode,
        reason: &'static str,
        title: &'static str,
        text: &'static str,
    ) -> Self {
        Self { status, reason, title, text }
    }

    pub(crate) fn page(&self) -> Response {
        page::message(self.status, self.title, self.text)
    }
}

const UNKNOWN: Failed = Failed::new(
    StatusCode::NOT_FOUND,
    "unknown-source",
    "There is nothing here",
    "No app is connected at this address.",
);
const NO_START: Failed = Failed::new(
    StatusCode::NOT_FOUND,
    "no-authorize-url",
    "Start in the marketplace",
    "This app is installed from the platform's own marketplace.",
);
const DENIED: Failed = Failed::new(
    StatusCode::BAD_REQUEST,
    "access-denied",
    "Access was not granted",
    "The platform says that access was not granted. Nothing was changed.",
);
const NO_CODE: Failed = Failed::new(
    StatusCode::BAD_REQUEST,
    "missing-code",
    "Something is missing",
    "The address holds no code. Please start the installation again.",
);
const BAD_STATE: Failed = Failed::new(
    StatusCode::FORBIDDEN,
    "invalid-state",
    "Please start again",
    "This page was not opened by the browser that began the installation, or it took longer than \
     an hour.",
);
const BAD_CODE: Failed = Failed::new(
    StatusCode::BAD_REQUEST,
    "invalid-grant",
    "Please start again",
    "The platform does not accept the code. It can be used once, and for a short time only.",
);
const NOT_UNDERSTOOD: Failed = Failed::new(
    StatusCode::BAD_GATEWAY,
    "token-endpoint-failed",
    "The platform could not be asked",
    "The platform did not answer as expected. This is not your fault; please tell the app's \
     developers.",
);
const AWAY: Failed = Failed::new(
    StatusCode::SERVICE_UNAVAILABLE,
    "token-endpoint-unavailable",
    "Please try again in a moment",
    "The platform could not be reached, so the app is not connected yet. Please start again.",
);
pub(crate) const BUSY: Failed = Failed::new(
    StatusCode::SERVICE_UNAVAILABLE,
    "overloaded",
    "Please try again in a moment",
    "Too many people are here at once. Nothing was changed.",
);
const NOT_SAVED: Failed = Failed::new(
    StatusCode::SERVICE_UNAVAILABLE,
    "log-unavailable",
    "Please try again in a moment",
    "What the platform granted could not be saved, so the app is not connected yet. Please start \
     again.",
);

/// Sends the browser to the platform, with a `state` that only it can bring back.
pub(crate) async fn authorize(
    State(app): State<Arc<App>>,
    source: InPath,
    cookies: CookieJar,
) -> Response {
    let Some((source, oauth)) = find(&app, source) else { return UNKNOWN.page() };
    let (state, cookies) = ticket::issue(&app.fingerprints, purpose(source), cookies);
    match oauth.authorize_url(&state) {
        Some(url) => (page::private(), cookies, Redirect::to(url.as_str())).into_response(),
        None => NO_START.page(),
    }
}

#[derive(Deserialize)]
pub(crate) struct Granted {
    code: Option<SecretString>,
    state: Option<String>,
    error: Option<String>,
}

pub(crate) async fn callback(
    State(app): State<Arc<App>>,
    source: InPath,
    Query(granted): Query<Granted>,
    cookies: CookieJar,
) -> Response {
    let Some((source, oauth)) = find(&app, source) else { return UNKNOWN.page() };
    tracing::Span::current().record("mooring.source", source.name.as_str());
    let Ok(_visit) = source.visits.try_acquire() else { return BUSY.page() };
    match connect(&app, source, oauth, granted, &cookies).await {
        Ok(()) => match &oauth.after_url {
            Some(url) => (page::private(), Redirect::to(url.as_str())).into_response(),
            None => page::message(StatusCode::OK, "Connected", "You may close this page."),
        },
        Err(failed) => {
            note(&app, source, &failed);
            failed.page()
        }
    }
}

fn find(app: &App, name: InPath) -> Option<(&Source, &OAuth)> {
    let source = app.source(&name.ok()?).ok()?;
    Some((source, source.oauth.as_ref()?))
}

fn purpose(source: &Source) -> Purpose<'_> {
    Purpose { step: STATE, source: &source.name, about: "" }
}

async fn connect(
    app: &App,
    source: &Source,
    oauth: &OAuth,
    Granted { code, state, error }: Granted,
    cookies: &CookieJar,
) -> Result<(), Failed> {
    let is_ours = match (&state, oauth.state) {
        (Some(state), _) => ticket::is_valid(&app.fingerprints, purpose(source), cookies, state),
        (None, StatePolicy::WhenPresent) => true,
        (None, StatePolicy::Required) => false,
    };
    if !is_ours {
        return Err(BAD_STATE);
    }
    if error.is_some() {
        return Err(DENIED);
    }
    let code = code.ok_or(NO_CODE)?;
    // A code can be used once: not before what it brings can be kept.
    let publisher = &app.publisher;
    if !publisher.is_connected() || !publisher.contract().is_met() || !app.data_keys.are_ready() {
        return Err(NOT_SAVED);
    }
    let exchanged = oauth.exchange(&code).await;
    let issued = exchanged.map_err(|error| {
        count(source, error.result());
        tracing::warn!(source = source.name.as_str(), %error, "a code was not exchanged");
        match error {
            TokenError::Refused { code, .. } if code == "invalid_grant" => BAD_CODE,
            TokenError::Refused { .. } | TokenError::Malformed { .. } => NOT_UNDERSTOOD,
            TokenError::Unavailable { .. } => AWAY,
        }
    })?;
    let owner = source.adapter.token_owner(&oauth.app_id, issued.response()).map_err(|why| {
        tracing::warn!(source = source.name.as_str(), %why, "the token answer names no installation");
        NOT_UNDERSTOOD
    })?;
    let callback = issued.callback(owner, Grant::AuthorizationCode, &app.fingerprints);
    let appended = append(app, source, callback.map_err(|_| NOT_UNDERSTOOD)?).await;
    count(source, if appended.is_ok() { "issued" } else { "failed" });
    appended
}

/// Seals what a user brought and appends it.
pub(crate) async fn append(app: &App, source: &Source, callback: Callback) -> Result<(), Failed> {
    let started = Instant::now();
    let key = app.data_keys.take(APPEND_BUDGET).await.ok_or(NOT_SAVED)?;
    let (name, keys) = (source.name.clone(), &app.fingerprints);
    let (now, nonce) = (clock::now(), SealingNonce::random);
    let event = callback.seal(name, source.platform.clone(), now, keys, Some(&key), nonce);
    let message = event.map_err(|_| NOT_SAVED)?;
    let key_id = KeyValue::new(attribute::KEY_ID, app.sealing_key.get().id().to_string());
    METRICS.secrets_sealed.add(1, &[key_id]);
    let message = LogMessage::new(&message).map_err(|_| NOT_SAVED)?;
    let budget = APPEND_BUDGET.saturating_sub(started.elapsed());
    let appended = app.publisher.append(message, budget).await;
    let appended = appended.map_err(|error| {
        tracing::error!(source = source.name.as_str(), %error, "a grant was not saved");
        NOT_SAVED
    })?;
    tracing::info!(
        source = source.name.as_str(),
        sequence = appended.sequence.0,
        "a grant was appended"
    );
    Ok(())
}

/// Refusals stand beside those of callbacks.
fn note(app: &App, source: &Source, failed: &Failed) {
    if failed.status.is_client_error() {
        let (status, reason) = (failed.status.as_u16(), failed.reason.to_owned());
        app.audit.record(&source.name, Outcome::Refused { status, reason });
        let reason = KeyValue::new(attribute::REASON, failed.reason);
        METRICS.refusals.add(1, &[source.attribute.clone(), reason]);
    }
}

fn count(source: &Source, result: &'static str) {
    let grant = KeyValue::new(attribute::GRANT, Grant::AuthorizationCode.name());
    let result = KeyValue::new(attribute::RESULT, result);
    METRICS.oauth_requests.add(1, &[source.attribute.clone(), grant, result]);
}
