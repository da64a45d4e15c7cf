//! The routes, and what every request has: a span, metrics, a problem for every
//! refusal.

use std::ops::Not as _;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{MatchedPath, Path, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Json, Router};
use eventlog::contract::{Contract, Room};
use opentelemetry::KeyValue;
use serde::Deserialize;
use serde_json::{Value, json};
use service::build;
use service::problem::Problem;
use service::telemetry::{self, names::attribute};
use tower_http::catch_panic::CatchPanicLayer;
use tracing::{Instrument as _, field, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::app::{App, internal_error};
use crate::metrics::METRICS;
use crate::{callback, install, oauth, page};

/// For those who run it. It says why.
pub(crate) fn admin(app: Arc<App>) -> Router {
    Router::new()
        .route("/livez", get(build::livez_with_version))
        .route("/readyz", get(explained))
        .with_state(app)
}

pub(crate) fn public(app: Arc<App>) -> Router {
    let callback = || any(receive);
    Router::new()
        // A URL that was registered with a slash at its end is a callback's, too.
        .route("/callbacks/{source}", callback())
        .route("/callbacks/{source}/", callback())
        .route("/callbacks/{source}/{token}", callback())
        .route("/callbacks/{source}/{token}/", callback())
        .route("/oauth/{source}/authorize", get(oauth::authorize))
        // A platform may send its uninstalls where it sent the user.
        .route("/oauth/{source}/callback", get(oauth::callback).delete(receive))
        .route("/install/{source}", get(install::show).post(install::submit))
        .route("/assets/page.css", get(page::style))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(CatchPanicLayer::custom(|_| internal_error().response::<Body>()))
        .layer(middleware::from_fn(observe))
        // Below the layers: a probe every few seconds is not worth a span.
        .route("/livez", get(build::livez))
        .route("/readyz", get(readyz))
        .with_state(app)
}

/// The path of a callback. One that is not UTF-8 names no source.
#[derive(Deserialize)]
struct CallbackPath {
    source: String,
    token: Option<String>,
}

type InPath<T> = Result<Path<T>, PathRejection>;

async fn receive(
    State(app): State<Arc<App>>,
    path: InPath<CallbackPath>,
    request: Request,
) -> Response {
    let Ok(Path(path)) = path else { return not_found().await };
    // Platforms probe the URL when an app is registered. Whoever probes is not told which
    // sources there are.
    let is_probe = match *request.method() {
        Method::HEAD => true,
        Method::GET => {
            app.source(&path.source).is_ok_and(|source| source.methods.contains(&Method::GET)).not()
        }
        _ => false,
    };
    if is_probe {
        return StatusCode::NO_CONTENT.into_response();
    }
    callback::receive(&app, &path.source, path.token, request).await
}

/// Whoever comes is told whether, and no more.
async fn readyz(State(app): State<Arc<App>>) -> Response {
    let (status, _) = readiness(&app);
    (status, Json(json!({ "ready": status == StatusCode::OK }))).into_response()
}

async fn explained(State(app): State<Arc<App>>) -> Response {
    let (status, state) = readiness(&app);
    (status, Json(state)).into_response()
}

fn readiness(app: &App) -> (StatusCode, Value) {
    let connected = app.publisher.is_connected();
    let nats = if connected { "connected" } else { "not connected" };
    let (log, fit) = match app.publisher.contract() {
        Contract::Met { accepted, commit, fill } => {
            let (room, fit) = match fill.room() {
                Room::Enough => ("enough", true),
                Room::Scarce => ("scarce: raise stream.max_bytes and run `worker migrate`", true),
                Room::Full => ("none: raise stream.max_bytes and run `worker migrate`", false),
            };
            let met =
                json!({ "contract": "met", "accepted": accepted, "commit": commit, "room": room });
            (met, fit)
        }
        Contract::Unknown { why } => (json!({ "contract": "unknown", "why": why }), false),
        Contract::Broken { breaches } => {
            let why: Vec<String> = breaches.iter().map(ToString::to_string).collect();
            (json!({ "contract": "broken", "breaches": breaches, "why": why }), false)
        }
    };
    let has_keys = app.data_keys.are_ready();
    let data_keys = if has_keys { "ready" } else { "none could be stored yet" };
    let ready = connected && fit && has_keys;
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, json!({ "ready": ready, "nats": nats, "log": log, "data_keys": data_keys }))
}

async fn not_found() -> Response {
    let detail = "there is nothing here; callbacks go to POST /callbacks/{source}";
    Problem::new(StatusCode::NOT_FOUND, "not-found", detail).response()
}

async fn method_not_allowed() -> Response {
    let detail = "callbacks are taken with POST; GET and HEAD answer probes";
    let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", detail);
    let mut response: Response = problem.response();
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, POST"));
    response
}

/// The server span and the request metric. Neither holds the path: it may
/// carry a token.
async fn observe(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let route =
        request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str).to_owned();
    let method = known_method(request.method().as_str());
    let span = info_span!(
        "request",
        otel.name = format!("{} {route}", if method == OTHER_METHOD { "HTTP" } else { method }),
        otel.kind = "server",
        http.request.method = method,
        http.route = route,
        http.response.status_code = field::Empty,
        mooring.source = field::Empty,
        trace_id = field::Empty,
    );
    // The caller is not trusted to choose our trace id or sampling.
    let traceparent = request.headers().get(telemetry::TRACEPARENT);
    let remote = traceparent.and_then(|value| value.to_str().ok()).and_then(telemetry::remote);
    if let Some(remote) = remote {
        span.add_link(remote);
    }
    span.record("trace_id", telemetry::trace_id(&span));
    let response = next.run(request).instrument(span.clone()).await;
    let status = response.status().as_u16();
    span.record("http.response.status_code", status);
    METRICS.request_duration.record(
        started.elapsed().as_secs_f64(),
        &[
            KeyValue::new(attribute::HTTP_REQUEST_METHOD, method),
            KeyValue::new(attribute::HTTP_ROUTE, route),
            KeyValue::new(attribute::HTTP_RESPONSE_STATUS_CODE, i64::from(status)),
        ],
    );
    response
}

/// Of the semantic conventions.
const OTHER_METHOD: &str = "_OTHER";

/// A caller can invent methods; neither metrics nor traces may grow with them.
fn known_method(method: &str) -> &'static str {
    const KNOWN: [&str; 9] =
        ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    KNOWN.into_iter().find(|known| *known == method).unwrap_or(OTHER_METHOD)
}
