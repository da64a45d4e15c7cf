//! OAuth 2.0 at install: a user grants access at the platform, whose redirect
//! brings a code. It is exchanged for tokens, which are sealed and appended like
//! the secret of a callback, before the user is told that all is well.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Query, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Redirect, Response};
use axum_extra::extract::CookieJar;
use domain::event::{Callback, Grant};
use domain::fingerprint::FingerprintKeys;
use domain::seal::SealingNonce;
use eventlog::message::LogMessage;
use opentelemetry::KeyValue;
use secrecy::SecretString;
use serde::Deserialize;
use service::clock;
use service::oauth::{OAuth, Pkce, StatePolicy, TokenError};
use service::telemetry::names::attribute;

use crate::app::App;
use crate::door::{COUNT_BUDGET, Closed};
use crate::metrics::METRICS;
use crate::page::{self, InPath};
use crate::publish::Published;
use crate::settings::Source;
use crate::ticket::{self, Purpose};

const STATE: &str = "oauth";
/// Of a grant, whose size only the platform knows: what it counts as.
const GRANT_BYTES: usize = 8 * 1_024;
/// A user waits for it; the platform does not.
const APPEND_BUDGET: Duration = Duration::from_secs(10);

/// Why a user's step failed, and what is said of it.
pub(crate) struct Failed {
    status: StatusCode,
    /// For metrics, logs and the audit.
    reason: &'static str,
    title: &'static str,
    text: &'static str,
    /// Where a door is closed.
    closed: Option<Closed>,
}

impl Failed {
    const fn new(
        status: StatusCode,
        reason: &'static str,
        title: &'static str,
        text: &'static str,
    ) -> Self {
        Self { status, reason, title, text, closed: None }
    }

    /// Said to whoever finds a door closed.
    pub(crate) fn closed(closed: Closed) -> Self {
        let failed = match closed {
            Closed::QuotaUsed { .. } => QUOTA_USED,
            Closed::ShareUsed | Closed::Uncounted => NO_ROOM,
        };
        Self { reason: closed.reason(), closed: Some(closed), ..failed }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn text(&self) -> &'static str {
        self.text
    }

    pub(crate) fn page(&self) -> Response {
        let seconds = self.closed.map(Closed::retry_after_s);
        page::retry_after(page::message(self.status, self.title, self.text), seconds)
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
const QUOTA_USED: Failed = Failed::new(
    StatusCode::TOO_MANY_REQUESTS,
    "quota-exceeded",
    "Please try again later",
    "More people have come in this hour than this app takes. Nothing was changed.",
);
const NO_ROOM: Failed = Failed::new(
    StatusCode::SERVICE_UNAVAILABLE,
    "log-share-used",
    "Please try again later",
    "There is no room to save it at the moment. Nothing was changed.",
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
    RawQuery(query): RawQuery,
    cookies: CookieJar,
) -> Response {
    let Some((source, oauth)) = find(&app, source) else { return UNKNOWN.page() };
    let tenant = oauth.tenant(query.as_deref().unwrap_or_default());
    let (of, valid_for) = (purpose(source), app.http.ticket_valid_for);
    let (state, number, cookies) = ticket::issue(&app.fingerprints, of, valid_for, cookies);
    let pkce = oauth.pkce.then(|| verifier(&app.fingerprints, &number));
    match oauth.authorize_url(tenant.as_ref(), &state, pkce.as_ref()) {
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
    RawQuery(query): RawQuery,
    cookies: CookieJar,
) -> Response {
    let Some((source, oauth)) = find(&app, source) else { return UNKNOWN.page() };
    tracing::Span::current().record("mooring.source", source.name.as_str());
    let Ok(_visit) = source.visits.try_acquire() else { return BUSY.page() };
    let query = query.as_deref().unwrap_or_default();
    match connect(&app, source, oauth, granted, query, &cookies).await {
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
    query: &str,
    cookies: &CookieJar,
) -> Result<(), Failed> {
    let ticket = match (&state, oauth.state) {
        (Some(state), _) => {
            let ticket = ticket::check(&app.fingerprints, purpose(source), cookies, state);
            let unused = ticket.filter(|ticket| !app.used_tickets.contains(ticket));
            Some(unused.ok_or(BAD_STATE)?)
        }
        (None, StatePolicy::WhenPresent) => None,
        (None, StatePolicy::Required) => return Err(BAD_STATE),
    };
    if error.is_some() {
        return Err(DENIED);
    }
    let code = code.ok_or(NO_CODE)?;
    // A code can be used once: not before what it brings can be kept.
    let publisher = &app.publisher;
    if !publisher.is_connected() || !publisher.contract().is_met() || !app.data_keys.are_ready() {
        return Err(NOT_SAVED);
    }
    app.doors.are_open(&source.quota).map_err(Failed::closed)?;
    let pkce = ticket.as_ref().filter(|_| oauth.pkce);
    let pkce = pkce.map(|number| verifier(&app.fingerprints, number));
    let exchanged = oauth.exchange(oauth.tenant(query).as_ref(), &code, pkce.as_ref()).await;
    let issued = exchanged.map_err(|error| {
        count(source, error.result());
        tracing::warn!(source = source.name.as_str(), %error, "a code was not exchanged");
        match error {
            TokenError::Refused { code, .. } if code == "invalid_grant" => BAD_CODE,
            TokenError::Refused { .. } | TokenError::Malformed { .. } => NOT_UNDERSTOOD,
            TokenError::Unavailable { .. } => AWAY,
        }
    })?;
    let owner = source.adapter.token_owner(&oauth.app_id, issued.response(), query).map_err(|why| {
        tracing::warn!(source = source.name.as_str(), %why, "the token answer names no installation");
        NOT_UNDERSTOOD
    })?;
    let is_install = source.adapter.grant_installs(&owner);
    let issued = if is_install { issued.as_install() } else { issued };
    let (grant, keys) = (Grant::AuthorizationCode, &app.fingerprints);
    let callback = match &ticket {
        Some(ticket) => issued.callback_with_ticket(owner, grant, keys, ticket.as_str()),
        None => issued.callback(owner, grant, keys),
    };
    let appended = append_grant(app, source, callback.map_err(|_| NOT_UNDERSTOOD)?, ticket).await;
    count(source, if appended.is_ok() { "issued" } else { "failed" });
    appended
}

/// Nothing is stored: the verifier follows from the ticket, by a key that only we have.
fn verifier(keys: &FingerprintKeys, ticket: &ticket::Number) -> Pkce {
    let half = |name| keys.fingerprint(&["pkce", name, ticket.as_str()]);
    Pkce::new(format!("{}{}", half("first"), half("second")).into())
}

/// A state is good for one grant. Another one with it is not in the log.
async fn append_grant(
    app: &App,
    source: &Source,
    callback: Callback,
    ticket: Option<ticket::Number>,
) -> Result<(), Failed> {
    // Only the platform gives codes: what comes without one has cost nothing so far.
    let entered = app.doors.enter(&source.name, &source.quota, GRANT_BYTES, COUNT_BUDGET).await;
    entered.map_err(Failed::closed)?;
    let appended = append(app, source, callback).await?;
    if let Some(ticket) = ticket {
        if appended.duplicate {
            return Err(BAD_STATE);
        }
        let content = app.fingerprints.fingerprint(&[ticket.as_str()]);
        app.used_tickets.note(&ticket, &content);
    }
    Ok(())
}

/// Seals what a user brought and appends it.
pub(crate) async fn append(
    app: &App,
    source: &Source,
    callback: Callback,
) -> Result<Published, Failed> {
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
        duplicate = appended.duplicate,
        "a grant was appended"
    );
    Ok(appended)
}

/// Refusals stand beside those of callbacks.
pub(crate) fn note(app: &App, source: &Source, failed: &Failed) {
    if failed.status.is_client_error() || failed.closed.is_some() {
        app.refused(source, failed.status, failed.reason);
    }
}

fn count(source: &Source, result: &'static str) {
    let grant = KeyValue::new(attribute::GRANT, Grant::AuthorizationCode.name());
    let result = KeyValue::new(attribute::RESULT, result);
    METRICS.oauth_requests.add(1, &[source.attribute.clone(), grant, result]);
}
