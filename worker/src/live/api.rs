//! The read API, for callers with a bearer token (RFC 6750).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{DefaultBodyLimit, Extension, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use domain::id::InstallationId;
use domain::key_ring::KeyRing;
use eventlog::connect::Connection;
use eventlog::keys::Current;
use opentelemetry::KeyValue;
use schemars::JsonSchema;
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use service::config::{Portal, Scope};
use service::problem::Problem;
use service::server::ClientGone;
use service::telemetry::names::attribute;
use sha2::{Digest as _, Sha256};
use sqlx::PgPool;

use self::refused::Refused;
use self::request::{Id, Opener, Parameters, Reader, is_gone};
use crate::live::access::record::Recorder;
use crate::live::access::{Caller, Door};
use crate::live::archived_payloads::ArchivedPayloads;
use crate::live::changes;
use crate::live::credential::{self, Part};
use crate::live::feed::Feed;
use crate::metrics::METRICS;
use crate::store::feed::{self, NoCursor};
use crate::store::find::{self, Filter, FindError, Which};
use crate::store::installations::InstallationView;

mod openapi;
mod portal;
mod reference;
mod refused;
mod request;

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
    /// By source.
    pub(crate) portals: BTreeMap<String, Portal>,
}

pub(crate) fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route("/v1/installations", get(list))
        .route("/v1/installations/{id}", get(show))
        .route("/v1/installations/{id}/events", get(events))
        .route("/v1/installations/{id}/credential", get(open_credential))
        .route("/v1/changes", get(follow))
        .route("/v1/portal-sessions", post(portal::open))
        .route("/v1/portal-sessions/introspect", post(portal::introspect))
        .route("/v1/openapi.json", get(openapi::show))
        .route("/v1/reference", get(reference::show))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(portal::BODY_BYTES_MAX))
        .layer(middleware::from_fn(request::tell_what_is_left))
        .with_state(api)
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
    let Some(found) = arrived(&api, &caller, &which, &id, wait, client).await? else {
        return Ok(to_nobody());
    };
    let found = find::related(&api.pool, found).await?;
    let body = serde_json::to_vec(&found).map_err(|_| unreadable())?;
    Ok(unless_known(&headers, body))
}

/// One installation, which is waited for if it is not there yet. `None` if the client has gone.
async fn arrived(
    api: &Api,
    caller: &Caller,
    which: &Which,
    id: &InstallationId,
    wait: Duration,
    client: Option<Extension<ClientGone>>,
) -> Result<Option<InstallationView>, Refused> {
    let (mut until, mut pause) = (Instant::now() + wait, LOOK_FIRST);
    let gone = is_gone(client);
    tokio::pin!(gone);
    loop {
        match find::show(&api.pool, caller.reach(), which, id).await {
            Err(FindError::NotFound) if Instant::now() < until => {
                tokio::select! {
                    () = tokio::time::sleep(pause) => pause = (pause * 2).min(LOOK_LAST),
                    () = api.feed.ends() => until = Instant::now(),
                    () = &mut gone => return Ok(None),
                }
            }
            found => return Ok(Some(found?)),
        }
    }
}

/// The answer to a client that has gone.
fn to_nobody() -> Response {
    StatusCode::NO_CONTENT.into_response()
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
        return Err(Refused::invalid(detail));
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
        let after = last_event_id.map(str::to_owned).or(self.after);
        let after = after.map(|text| text.parse()).transpose();
        let after = after.map_err(|why: NoCursor| Refused::invalid(format!("after: {why}")))?;
        let types = self.r#type.map(|list| list.split(',').map(str::to_owned).collect::<Vec<_>>());
        if let Some(unknown) =
            types.iter().flatten().find(|it| !changes::TYPES.contains(&it.as_str()))
        {
            let known = changes::TYPES.join(", ");
            return Err(Refused::invalid(format!(
                "type: there is no '{unknown}'; there are {known}"
            )));
        }
        if self.source.as_ref().is_some_and(|source| source.contains('\0')) {
            return Err(FindError::ContainsNul.into());
        }
        let limit = self.limit.unwrap_or(feed::PAGE_DEFAULT);
        if !(1..=feed::PAGE_MAX).contains(&limit) {
            return Err(Refused::invalid(format!("the limit must be 1 to {}", feed::PAGE_MAX)));
        }
        Ok(feed::Query { after, source: self.source, types, limit })
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
        () = gone => return Ok(to_nobody()),
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
    let detail = "use one of the methods that the header Allow names";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", detail).response()
}
