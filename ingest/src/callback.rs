//! One callback, from its bytes to its answer.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use domain::event::{Callback, Event, Payload};
use domain::id::IdempotencyKey;
use domain::jwt::Fetched;
use domain::platform::challenge::Answered;
use domain::platform::{Destination, MissedAck, Refusal, SuccessBody, accept_app, destination};
use domain::seal::SealingNonce;
use domain::verify::{Delivery, Unauthentic, Verification, Verified};
use eventlog::audit::Outcome;
use eventlog::forward::{self, Forwarded};
use eventlog::message::LogMessage;
use jiff::Timestamp;
use opentelemetry::KeyValue;
use serde_json::Value;
use service::clock;
use service::problem::Problem;
use service::server::ClientGone;
use service::telemetry::{self, names::attribute};
use tokio::sync::OwnedSemaphorePermit;
use tracing::Span;

use crate::app::{App, internal_error};
use crate::confirmation::{self, Receipt};
use crate::door::Closed;
use crate::metrics::METRICS;
use crate::publish::{NotAppended, Published};
use crate::settings::Source;

const RETRY_AFTER_S: u32 = 2;

/// A callback whose body has arrived.
struct Received {
    method: Method,
    headers: HeaderMap,
    uri: Uri,
    path_token: Option<String>,
    body: Bytes,
    received_at: Timestamp,
}

impl Received {
    fn delivery(&self) -> Delivery<'_> {
        Delivery {
            method: &self.method,
            path_token: self.path_token.as_deref(),
            query: self.uri.query(),
            headers: &self.headers,
            body: &self.body,
            received_at: self.received_at,
        }
    }
}

/// Answers one callback.
pub(crate) async fn receive(
    app: &App,
    source_name: &str,
    path_token: Option<String>,
    request: Request,
) -> Response {
    // The platform's deadline counts from here.
    let started = Instant::now();
    let source = match app.source(source_name) {
        Ok(source) => source,
        Err(problem) => {
            let source = KeyValue::new(attribute::SOURCE, "");
            METRICS.refusals.add(1, &[source, KeyValue::new(attribute::REASON, problem.name)]);
            return problem.response();
        }
    };
    Span::current().record("mooring.source", source.name.as_str());

    let client = request.extensions().get::<ClientGone>().cloned();
    let read = match is_taken(source, request.method()) {
        Ok(()) => read(app, source, request, path_token).await,
        Err(problem) => Err(problem),
    };
    let read = match read {
        Ok(received) => with_key(source, received, started).await,
        Err(problem) => Err(problem),
    };
    let bytes = read.as_ref().map_or(0, |received| received.body.len());
    // What was received is dropped here: many wait for the log at once.
    let mut verified = false;
    let parsed = read.and_then(|received| {
        let proven = source.verification.verify(received.delivery());
        let proven = proven.map_err(|why| unauthentic(&why))?;
        verified = true;
        parse(source, &proven, &received)
    });
    let parsed = match parsed {
        Ok(Understood::Event(parsed)) => Ok(parsed),
        Ok(Understood::Challenge(answered)) => return challenged(answered),
        Ok(Understood::Ignored) => {
            METRICS.ignored.add(1, std::slice::from_ref(&source.attribute));
            return success(source, r#"{"ok":true,"ignored":true}"#);
        }
        Ok(Understood::Forward(forwarded)) => {
            return forward(app, source, *forwarded, started).await;
        }
        Err(problem) => Err(problem),
    };
    let event_type = parsed.as_ref().map_or("unknown", |(callback, _)| callback.fact.kind());
    let sealed = match parsed {
        Ok(parsed) => match admit(app, source, bytes, started).await {
            Ok(()) => seal(app, source, parsed, started).await,
            Err(problem) => Err(problem),
        },
        Err(problem) => Err(problem),
    };
    let result = match sealed {
        // The slot is held until there is an answer.
        Ok((event, _slot)) => append(app, source, event, started, client.as_ref()).await,
        Err(problem) => Err(problem),
    };
    let result = result.map(|appended| appended.duplicate);
    observe(source, started, event_type, &result);
    if let Err(problem) = &result
        && problem.is_refusal()
    {
        let (status, reason) = (problem.status().as_u16(), problem.name.to_owned());
        app.audit.record(&source.name, Outcome::Refused { status, reason, verified });
    }
    match result {
        Ok(duplicate) => acknowledgement(source, duplicate),
        Err(problem) => refusal(source, &problem),
    }
}

fn refusal(source: &Source, problem: &Problem) -> Response {
    let mut response: Response = problem.response();
    if problem.status() == StatusCode::METHOD_NOT_ALLOWED {
        let others = source.methods.iter().filter(|method| **method != Method::GET);
        let names: Vec<&str> =
            ["GET", "HEAD"].into_iter().chain(others.map(Method::as_str)).collect();
        if let Ok(allow) = names.join(", ").parse() {
            response.headers_mut().insert(header::ALLOW, allow);
        }
    }
    response
}

/// The success as the platform expects it.
fn acknowledgement(source: &Source, duplicate: bool) -> Response {
    success(
        source,
        match duplicate {
            true => r#"{"ok":true,"duplicate":true}"#,
            false => r#"{"ok":true,"duplicate":false}"#,
        },
    )
}

fn success(source: &Source, body: &'static str) -> Response {
    match source.ack.body {
        SuccessBody::Empty => source.ack.success.into_response(),
        SuccessBody::Json => {
            (source.ack.success, [(header::CONTENT_TYPE, "application/json")], body).into_response()
        }
    }
}

/// A callback as it was understood, and when it was received.
type Parsed = (Box<Callback>, Timestamp);

enum Understood {
    /// Boxed, because what many callbacks hold while they wait is to be small.
    Event(Parsed),
    /// The platform asks whether the URL is the app's.
    Challenge(Answered),
    /// It is for the app itself.
    Forward(Box<Forwarded>),
    /// It is none of the source's business.
    Ignored,
}

/// Keeps it for the app, and answers.
async fn forward(app: &App, source: &Source, forwarded: Forwarded, started: Instant) -> Response {
    let kept = match admit(app, source, forwarded.body.len(), started).await {
        Ok(()) => keep(app, source, &forwarded, started).await,
        Err(problem) => Err(problem),
    };
    observe(source, started, "forwarded", &kept);
    match kept {
        Ok(duplicate) => acknowledgement(source, duplicate),
        Err(problem) => refusal(source, &problem),
    }
}

/// Says whether it was kept before.
async fn keep(
    app: &App,
    source: &Source,
    forwarded: &Forwarded,
    started: Instant,
) -> Result<bool, Problem> {
    let slot = source.slots.try_acquire();
    let _slot = slot.map_err(|_| not_appended(source, &NotAppended::SourceBusy))?;
    let within = source.ack.budget.saturating_sub(started.elapsed());
    let kept = forward::publish(&app.connection, forwarded, within).await;
    kept.map_err(|why| {
        let detail = format!("{why}; the callback was not acknowledged and may be sent again");
        let problem = Problem::new(source.ack.unavailable, "not-forwarded", detail);
        problem.retry_after(RETRY_AFTER_S)
    })
}

fn challenged(answered: Answered) -> Response {
    let (content_type, body) = match answered {
        Answered::Text(text) => ("text/plain; charset=utf-8", text),
        Answered::Json(json) => ("application/json", json),
    };
    let headers =
        [(header::CONTENT_TYPE, content_type), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (headers, body).into_response()
}

/// Once the key that is to have signed it is known, or known not to be.
async fn with_key(
    source: &Source,
    received: Received,
    started: Instant,
) -> Result<Received, Problem> {
    let within = source.ack.budget.saturating_sub(started.elapsed());
    let fetching = source.verification.fetch_key(received.delivery());
    match tokio::time::timeout(within, fetching).await {
        Ok(Fetched::Known) => Ok(received),
        Ok(Fetched::Unavailable) | Err(_) => {
            let detail = "the platform's keys cannot be read now; the callback was not \
                          acknowledged and may be sent again";
            let problem = Problem::new(source.ack.unavailable, "keys-unavailable", detail);
            Err(problem.retry_after(RETRY_AFTER_S))
        }
    }
}

fn is_taken(source: &Source, method: &Method) -> Result<(), Problem> {
    if source.methods.contains(method) {
        return Ok(());
    }
    let names: Vec<&str> = source.methods.iter().map(Method::as_str).collect();
    let detail = format!("this source takes callbacks with {}", names.join(", "));
    Err(Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", detail))
}

fn parse(
    source: &Source,
    verified: &Verified<'_>,
    received: &Received,
) -> Result<Understood, Problem> {
    let answered = source.challenges.iter().find_map(|challenge| challenge.answer(verified));
    if let Some(answered) = answered {
        return Ok(Understood::Challenge(answered));
    }
    let callback = source.adapter.parse(verified).map_err(|why| refused(&why))?;
    let Source { adapter, app_ids, ignore, forward, .. } = source;
    match destination(&callback, &**adapter, app_ids, ignore, forward) {
        Destination::Nowhere => Ok(Understood::Ignored),
        Destination::App { kind } => {
            let kind = kind.to_owned();
            Ok(forwarded(source, kind, callback.idempotency_key, received))
        }
        Destination::Log => {
            accept_app(&callback, app_ids).map_err(|why| refused(&why))?;
            Ok(Understood::Event((Box::new(callback), received.received_at)))
        }
    }
}

fn forwarded(
    source: &Source,
    kind: String,
    idempotency_key: IdempotencyKey,
    received: &Received,
) -> Understood {
    let content_type = received.headers.get(header::CONTENT_TYPE);
    Understood::Forward(Box::new(Forwarded {
        source: source.name.clone(),
        kind,
        idempotency_key,
        received_at: received.received_at,
        content_type: content_type.and_then(|it| it.to_str().ok()).map(str::to_owned),
        body: received.body.clone(),
    }))
}

/// Where anybody may send callbacks, so many are taken. What has to prove that it
/// is the platform's is never counted.
async fn admit(app: &App, source: &Source, bytes: usize, started: Instant) -> Result<(), Problem> {
    let Verification::Unverified = source.verification else { return Ok(()) };
    let within = source.ack.budget.saturating_sub(started.elapsed());
    app.doors.enter(&source.name, &source.quota, bytes, within).await.map_err(|closed| {
        let status = match closed {
            Closed::QuotaUsed { .. } => StatusCode::TOO_MANY_REQUESTS,
            Closed::ShareUsed => source.ack.unavailable,
            Closed::Uncounted => return not_appended(source, &NotAppended::BudgetSpent),
        };
        app.refused(source, status, closed.reason());
        let detail = "anybody may send callbacks of this source, and it takes no more for now; the \
                      callback was not acknowledged and may be sent again";
        Problem::new(status, closed.reason(), detail).retry_after(closed.retry_after_s())
    })
}

/// Turns it into an event that holds only ciphertext, with one of the source's
/// slots: so many may wait for a data key and for the log.
async fn seal(
    app: &App,
    source: &Source,
    (callback, received_at): Parsed,
    started: Instant,
) -> Result<(Box<Event>, OwnedSemaphorePermit), Problem> {
    let slot = Arc::clone(&source.slots).try_acquire_owned();
    let slot = slot.map_err(|_| not_appended(source, &NotAppended::SourceBusy))?;
    let data_key = if callback.holds_secret() {
        let budget = source.ack.budget.saturating_sub(started.elapsed());
        let key = app.data_keys.take(budget).await;
        Some(key.ok_or_else(|| not_appended(source, &NotAppended::NoDataKey))?)
    } else {
        None
    };
    let (name, platform, key) = (source.name.clone(), source.platform.clone(), data_key.as_ref());
    let sealed =
        callback.seal(name, platform, received_at, &app.fingerprints, key, SealingNonce::random);
    if data_key.is_some() {
        let key_id = KeyValue::new(attribute::KEY_ID, app.sealing_key.get().id().to_string());
        METRICS.secrets_sealed.add(1, &[key_id]);
    }
    let event = sealed.map_err(|_| internal_error())?;
    if let Some(claimed) = event.occurred_at_claimed {
        let (source, key) = (source.name.as_str(), event.idempotency_key.as_str());
        tracing::warn!(source, key, %claimed, "a time far in the future was not believed");
    }
    Ok((Box::new(event), slot))
}

async fn append(
    app: &App,
    source: &Source,
    mut event: Box<Event>,
    started: Instant,
    client: Option<&ClientGone>,
) -> Result<Published, Problem> {
    let message = LogMessage::new(&event).map_err(|_| internal_error())?;
    event.payload = Payload::Clear(Value::Null); // it is in the message
    let budget = source.ack.budget.saturating_sub(started.elapsed());
    let result = app.publisher.append(message, budget).await;
    let result = result.map_err(|why| not_appended(source, &why));

    let has_gone = client.is_some_and(|ClientGone(gone)| gone.is_cancelled());
    let is_late = started.elapsed() >= source.ack.deadline;
    let receipt = if has_gone || is_late { Receipt::Missed } else { Receipt::InTime };
    if source.ack.missed == MissedAck::Cancels {
        confirmation::note(&app.publisher, &app.notes, &event, &result, receipt);
    }
    if let Ok(appended) = &result {
        if appended.duplicate {
            let identity = event.fact.identity();
            let duplicate = Outcome::Duplicate {
                installation_id: identity.map(|found| found.installation_id.to_string()),
                r#type: event.fact.kind().to_owned(),
                sequence: appended.sequence.0,
            };
            app.audit.record(&source.name, duplicate);
        }
        // Traces and metrics tell it too; a line for each would cost a quarter of the rate.
        tracing::debug!(
            source = source.name.as_str(),
            event.r#type = event.fact.kind(),
            installation = event.fact.identity().map(|found| found.installation_id.as_str()),
            sequence = appended.sequence.0,
            duplicate = appended.duplicate,
            "acknowledged"
        );
    }
    result
}

/// Reads the body, within its limits of type, size and time.
async fn read(
    app: &App,
    source: &Source,
    request: Request,
    path_token: Option<String>,
) -> Result<Received, Problem> {
    let (Parts { method, headers, uri, .. }, body) = request.into_parts();
    if !is_readable(source, &headers) {
        let detail = if source.adapter.reads_form() {
            "the Content-Type must be application/x-www-form-urlencoded"
        } else {
            "the Content-Type must be application/json"
        };
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported-media-type",
            detail,
        ));
    }
    let limit = source.body_bytes_max;
    let body = axum::body::to_bytes(body, limit);
    match tokio::time::timeout(app.http.read_timeout, body).await {
        Ok(Ok(body)) => {
            let received_at = clock::now();
            Ok(Received { method, headers, uri, path_token, body, received_at })
        }
        Ok(Err(error)) => Err(unreadable(&error, limit)),
        Err(_elapsed) => {
            let detail = "the body did not arrive in time";
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "request-timeout", detail))
        }
    }
}

/// `application/json`, `application/anything+json`, or nothing: the platforms
/// do not document what they send. A token may come as anything.
fn is_readable(source: &Source, headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return true };
    let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
    let essence = essence.trim().to_ascii_lowercase();
    if source.content_types.contains(&essence) || source.verification.reads_token_in_body() {
        return true;
    }
    if source.adapter.reads_form() {
        return essence == "application/x-www-form-urlencoded";
    }
    essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
}

fn unreadable(error: &axum::Error, limit: usize) -> Problem {
    let too_large = std::iter::successors(Some(error as &dyn std::error::Error), |e| e.source())
        .any(|cause| cause.is::<http_body_util::LengthLimitError>());
    if too_large {
        let detail = format!("the body has more than {limit} bytes");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "payload-too-large", detail)
    } else {
        Problem::new(StatusCode::BAD_REQUEST, "unreadable-body", "the body ended early")
    }
}

fn unauthentic(why: &Unauthentic) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "unauthentic", why.to_string())
}

fn refused(why: &Refusal) -> Problem {
    let status = match why {
        Refusal::MalformedJson { .. } | Refusal::TooDeep { .. } | Refusal::NotAnObject => {
            StatusCode::BAD_REQUEST
        }
        Refusal::MissingField { .. }
        | Refusal::InvalidField { .. }
        | Refusal::Contradiction { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        Refusal::ForeignApp => StatusCode::FORBIDDEN,
    };
    Problem::new(status, why.name(), why.to_string())
}

fn not_appended(source: &Source, why: &NotAppended) -> Problem {
    let name = match why {
        NotAppended::BudgetSpent | NotAppended::NoDataKey => "log-unavailable",
        NotAppended::Overloaded => "log-overloaded",
        NotAppended::QueueFull | NotAppended::SourceBusy => "overloaded",
        NotAppended::ContractBroken => "durability-contract-broken",
        // The limit on the body should not let it come so far.
        NotAppended::TooLarge => return internal_error(),
    };
    let detail = format!("{why}; the callback was not acknowledged and may be sent again");
    Problem::new(source.ack.unavailable, name, detail).retry_after(RETRY_AFTER_S)
}

fn observe(
    source: &Source,
    started: Instant,
    event_type: &'static str,
    result: &Result<bool, Problem>,
) {
    let name = || source.attribute.clone();
    let result = match result {
        Ok(false) => "appended",
        Ok(true) => "duplicate",
        Err(problem) => {
            tracing::warn!(
                source = source.name.as_str(),
                trace_id = telemetry::trace_id(&Span::current()),
                status = problem.status().as_u16(),
                reason = problem.name,
                "not acknowledged"
            );
            if problem.is_refusal() {
                let reason = KeyValue::new(attribute::REASON, problem.name);
                METRICS.refusals.add(1, &[name(), reason]);
                "refused"
            } else {
                "failed"
            }
        }
    };
    let result = KeyValue::new(attribute::RESULT, result);
    let of = [name(), result, KeyValue::new(attribute::EVENT_TYPE, event_type)];
    let took = started.elapsed();
    METRICS.ack_duration.record(took.as_secs_f64(), &of);
    let deadline_used = took.as_secs_f64() / source.ack.deadline.as_secs_f64();
    METRICS.ack_deadline_used.record(deadline_used, &of);
}
