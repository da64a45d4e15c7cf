//! The read API, for callers with a bearer token (RFC 6750).

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Extension, FromRequestParts, MatchedPath, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use domain::id::InstallationId;
use domain::key_ring::KeyRing;
use domain::seal::OpenError;
use eventlog::connect::Connection;
use eventlog::keys::Current;
use opentelemetry::KeyValue;
use schemars::JsonSchema;
use secrecy::ExposeSecret as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use service::clock;
use service::config::Scope;
use service::problem::Problem;
use service::server::{ClientAddress, ClientGone};
use service::telemetry::{self, names::attribute};
use sha2::{Digest as _, Sha256};
use sqlx::PgPool;

use crate::error_chain::chain;
use crate::live::access::record::Recorder;
use crate::live::access::{Caller, Door, Who};
use crate::live::archived_payloads::{ArchivedPayloads, Unread};
use crate::live::changes;
use crate::live::credential::{self, CredentialError, Part};
use crate::live::feed::Feed;
use crate::live::openapi;
use crate::metrics::METRICS;
use crate::store::feed::{self, FeedError, NoCursor};
use crate::store::find::{self, Candidate, Filter, FindError, Which};

const RETRY_AFTER_S: u32 = 2;
/// Shorter than a load balancer waits for an answer.
const WAIT_MAX_S: u16 = 50;
/// An installation that is on its way is looked for again, less often each time.
const LOOK_FIRST: Duration = Duration::from_millis(50);
const LOOK_LAST: Duration = Duration::from_secs(1);
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

pub(crate) struct Api {
    pub(crate) pool: PgPool,
    pub(crate) connection: Connection,
    pub(crate) ring: Current<KeyRing>,
    pub(crate) door: Door,
    pub(crate) recorder: Recorder,
    pub(crate) archived: ArchivedPayloads,
    pub(crate) feed: Feed,
}

pub(crate) fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route("/v1/installations", get(list))
        .route("/v1/installations/{id}", get(show))
        .route("/v1/installations/{id}/events", get(events))
        .route("/v1/installations/{id}/credential", get(open_credential))
        .route("/v1/changes", get(follow))
        .route("/v1/openapi.json", get(openapi::show))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(api)
}

/// An answer that is not the expected one.
struct Refused(Problem);

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

/// A caller that may read installations. A handler that asks for it cannot skip the
/// check.
struct Reader(Caller);

/// A caller that may open credentials, and who it is for the record.
struct Opener(Caller, Who);

impl FromRequestParts<Arc<Api>> for Reader {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Refused> {
        caller_with(parts, api, Scope::ReadInstallations).await.map(|(caller, _)| Self(caller))
    }
}

impl FromRequestParts<Arc<Api>> for Opener {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Refused> {
        caller_with(parts, api, Scope::OpenCredentials).await.map(|(caller, who)| Self(caller, who))
    }
}

/// Lets a caller in, or records why not.
async fn caller_with(parts: &Parts, api: &Api, scope: Scope) -> Result<(Caller, Who), Refused> {
    let client = parts.extensions.get::<ClientAddress>();
    let traceparent = parts.headers.get(telemetry::TRACEPARENT);
    let trace = traceparent.and_then(|it| it.to_str().ok()).and_then(telemetry::remote);
    let mut who = Who {
        client_address: client.map(|ClientAddress(address)| address.to_string()),
        trace_id: trace.map(|trace| trace.trace_id().to_string()),
        route: parts.extensions.get::<MatchedPath>().map(|route| route.as_str().to_owned()),
        ..Who::default()
    };
    match api.door.admit(&parts.headers, scope, clock::now()).await {
        Ok(caller) => {
            who.caller = caller.name().to_owned();
            who.subject = caller.subject.clone();
            Ok((caller, who))
        }
        Err(denied) => {
            let problem = denied.problem();
            api.recorder.refused(denied.record(&who, problem.status()), who.trace_id);
            Err(Refused(problem))
        }
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

/// The id in the path. One that no platform could have sent, such as one that is
/// not UTF-8, is an id that is not there.
struct Id(InstallationId);

impl FromRequestParts<Arc<Api>> for Id {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Refused> {
        let path = Path::<InstallationId>::from_request_parts(parts, api).await;
        path.map(|Path(id)| Self(id)).map_err(|_| FindError::NotFound.into())
    }
}

/// The query. An unknown parameter is refused, so that a misspelt filter is not
/// ignored.
struct Parameters<T>(T);

impl<T: DeserializeOwned> FromRequestParts<Arc<Api>> for Parameters<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Refused> {
        match Query::<T>::from_request_parts(parts, api).await {
            Ok(Query(parameters)) => Ok(Self(parameters)),
            Err(rejection) => {
                let (status, detail) = (StatusCode::BAD_REQUEST, rejection.body_text());
                Err(Refused(Problem::new(status, "invalid-parameter", detail)))
            }
        }
    }
}

async fn list(
    Reader(caller): Reader,
    State(api): State<Arc<Api>>,
    Parameters(filter): Parameters<Filter>,
) -> Result<Response, Refused> {
    let page = find::list(&api.pool, caller.reach(), &filter).await?;
    Ok(Json(page).into_response())
}

/// [`Which`], and how long to wait. `deny_unknown_fields` does not go with `flatten`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ShowParameters {
    /// The one of this source.
    source: Option<String>,
    /// The one of this app.
    app_id: Option<String>,
    /// The one in this place.
    place: Option<String>,
    /// So many seconds it is waited for, if it is not there yet.
    #[schemars(range(max = WAIT_MAX_S))]
    wait: Option<u16>,
}

async fn show(
    Reader(caller): Reader,
    State(api): State<Arc<Api>>,
    Id(id): Id,
    Parameters(parameters): Parameters<ShowParameters>,
    client: Option<Extension<ClientGone>>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let ShowParameters { source, app_id, place, wait } = parameters;
    let wait = checked_wait(wait)?;
    let which = Which { source, app_id, place };
    let (mut until, mut pause) = (Instant::now() + wait, LOOK_FIRST);
    let gone = is_gone(client);
    tokio::pin!(gone);
    let found = loop {
        match find::show_related(&api.pool, caller.reach(), &which, &id).await {
            Err(FindError::NotFound) if Instant::now() < until => {
                tokio::select! {
                    () = tokio::time::sleep(pause) => pause = (pause * 2).min(LOOK_LAST),
                    () = api.feed.ends() => until = Instant::now(),
                    () = &mut gone => return Ok(StatusCode::NO_CONTENT.into_response()), // to nobody
                }
            }
            found => break found?,
        }
    };
    let body = serde_json::to_vec(&found).map_err(|_| unreadable())?;
    Ok(unless_known(&headers, body))
}

/// 304 if the reader has just this (RFC 9110, section 13.1.2).
fn unless_known(headers: &HeaderMap, body: Vec<u8>) -> Response {
    let digest = hex::encode(Sha256::digest(&body));
    let etag = format!("\"{}\"", digest.get(..32).unwrap_or_default());
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let is_known = known.is_some_and(|tags| tags.split(',').any(|tag| is_tag(tag, &etag)));
    let tag = [(header::ETAG, etag)];
    if is_known {
        return (StatusCode::NOT_MODIFIED, tag).into_response();
    }
    (tag, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn is_tag(given: &str, etag: &str) -> bool {
    let given = given.trim();
    given == "*" || given.strip_prefix("W/").unwrap_or(given) == etag
}

fn unreadable() -> Refused {
    let detail = "the installation cannot be written as JSON";
    Refused(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal-error", detail))
}

fn checked_wait(seconds: Option<u16>) -> Result<Duration, Refused> {
    let seconds = seconds.unwrap_or_default();
    if seconds > WAIT_MAX_S {
        let detail = format!("wait must be at most {WAIT_MAX_S} seconds");
        return Err(Refused(Problem::new(StatusCode::BAD_REQUEST, "invalid-parameter", detail)));
    }
    Ok(Duration::from_secs(seconds.into()))
}

/// [`Which`], and a page. `deny_unknown_fields` does not go with `flatten`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HistoryParameters {
    /// The one of this source.
    source: Option<String>,
    /// The one of this app.
    app_id: Option<String>,
    /// The one in this place.
    place: Option<String>,
    /// `next_after` of the page before.
    after: Option<u64>,
    /// How many on a page; 50 if it is not given.
    #[schemars(range(min = 1, max = find::PAGE_MAX))]
    limit: Option<u16>,
}

async fn events(
    Reader(caller): Reader,
    State(api): State<Arc<Api>>,
    Id(id): Id,
    Parameters(parameters): Parameters<HistoryParameters>,
) -> Result<Response, Refused> {
    let HistoryParameters { source, app_id, place, after, limit } = parameters;
    let which = Which { source, app_id, place };
    let page =
        find::history(&api.pool, caller.reach(), &which, &id, after.unwrap_or_default(), limit);
    let mut page = page.await?;
    api.archived.fill(&mut page.events).await?;
    Ok(Json(page).into_response())
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FeedParameters {
    /// The `cursor` of the page before, or the `changes_cursor` of a list.
    after: Option<String>,
    /// Only this source.
    source: Option<String>,
    /// Only these types, separated by commas.
    r#type: Option<String>,
    /// How many on a page; 100 if it is not given.
    #[schemars(range(min = 1, max = feed::PAGE_MAX))]
    limit: Option<u16>,
    /// So many seconds a change is waited for.
    #[schemars(range(max = WAIT_MAX_S))]
    wait: Option<u16>,
}

impl FeedParameters {
    fn query(self, last_event_id: Option<&str>) -> Result<feed::Query, Refused> {
        let invalid = |detail: String| {
            Refused(Problem::new(StatusCode::BAD_REQUEST, "invalid-parameter", detail))
        };
        let after = last_event_id.map(str::to_owned).or(self.after);
        let after = after.map(|text| text.parse()).transpose();
        let after = after.map_err(|why: NoCursor| invalid(format!("after: {why}")))?;
        let types = self.r#type.map(|list| list.split(',').map(str::to_owned).collect::<Vec<_>>());
        if let Some(unknown) =
            types.iter().flatten().find(|it| !changes::TYPES.contains(&it.as_str()))
        {
            let known = changes::TYPES.join(", ");
            return Err(invalid(format!("type: there is no '{unknown}'; there are {known}")));
        }
        if self.source.as_ref().is_some_and(|source| source.contains('\0')) {
            return Err(FindError::ContainsNul.into());
        }
        let limit = self.limit.unwrap_or(feed::PAGE_DEFAULT);
        if !(1..=feed::PAGE_MAX).contains(&limit) {
            return Err(invalid(format!("the limit must be 1 to {}", feed::PAGE_MAX)));
        }
        Ok(feed::Query { after, source: self.source, types, limit })
    }
}

/// The request of a client that has hung up is not worth waiting for.
async fn is_gone(client: Option<Extension<ClientGone>>) {
    match client {
        Some(Extension(ClientGone(gone))) => gone.cancelled().await,
        None => std::future::pending().await,
    }
}

/// What became of installations: a page, or a stream if that is what the reader takes.
async fn follow(
    Reader(caller): Reader,
    State(api): State<Arc<Api>>,
    Parameters(parameters): Parameters<FeedParameters>,
    client: Option<Extension<ClientGone>>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let wait = checked_wait(parameters.wait)?;
    let query = parameters.query(text(LAST_EVENT_ID).filter(|id| !id.is_empty()))?;
    let reach = caller.reach().within(query.source.as_deref());
    if text(header::ACCEPT).is_some_and(|accept| accept.contains("text/event-stream")) {
        // A cursor that has expired is refused here, where it can be told.
        feed::read(&api.pool, &reach, &feed::Query { limit: 1, ..query.clone() }).await?;
        return Ok(api.feed.clone().stream(reach, query).into_response());
    }
    let gone = is_gone(client);
    let (changes, cursor) = tokio::select! {
        found = api.feed.next(&reach, query, wait) => found?,
        () = gone => return Ok(StatusCode::NO_CONTENT.into_response()), // to nobody
    };
    let page = feed::FeedPage { changes, cursor: cursor.to_string() };
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(page)).into_response())
}

/// A credential in clear.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Credential")]
pub(crate) struct OpenedCredential<'a> {
    source: &'a str,
    installation_id: &'a str,
    /// A string. Of OAuth, and where a source has several secrets, it holds a JSON object.
    credential: &'a str,
    /// When the access token ends, if it does.
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    expires_at: Option<jiff::Timestamp>,
}

async fn open_credential(
    Opener(caller, who): Opener,
    State(api): State<Arc<Api>>,
    Id(id): Id,
    Parameters(which): Parameters<Which>,
) -> Result<Response, Refused> {
    let installation = find::show(&api.pool, caller.reach(), &which, &id).await?;
    let ring = api.ring.get();
    let part = match caller.may(Scope::OpenRefreshTokens) {
        true => Part::Whole,
        false => Part::WithoutRefreshToken,
    };
    let (pool, nats, recorder) = (&api.pool, &api.connection, &api.recorder);
    let opened = credential::open(pool, nats, &ring, &installation, part, recorder, &who);
    let secret = opened.await?;
    METRICS.credentials_opened.add(1, &[KeyValue::new(attribute::CALLER, who.caller.clone())]);
    let id = &installation.installation_id;
    tracing::info!(caller = who.caller, installation = id, "a credential was opened");
    let opened = OpenedCredential {
        source: &installation.source,
        installation_id: id,
        credential: secret.expose_secret(),
        expires_at: installation.credential_expires_at,
    };
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(opened)).into_response())
}

async fn not_found() -> Response {
    let detail = "there is nothing here; installations are at /v1/installations";
    Problem::new(StatusCode::NOT_FOUND, "not-found", detail).response()
}

async fn method_not_allowed() -> Response {
    let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "use GET");
    let mut response: Response = problem.response();
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}
