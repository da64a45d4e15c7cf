//! The read API, for callers with a bearer token (RFC 6750).

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use domain::id::InstallationId;
use domain::key_ring::KeyRing;
use domain::seal::OpenError;
use eventlog::connect::Connection;
use eventlog::keys::Current;
use secrecy::ExposeSecret as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use service::config::Scope;
use service::problem::Problem;
use sha2::{Digest as _, Sha256};
use sqlx::PgPool;
use subtle::ConstantTimeEq as _;

use crate::live::active_key;
use crate::live::archived_payloads::{ArchivedPayloads, Unread};
use crate::live::commit::chain;
use crate::live::credential::{self, CredentialError};
use crate::metrics::METRICS;
use crate::settings::Caller;
use crate::store::find::{self, Candidate, Filter, FindError, Which};
use crate::store::{database, installations};

const READINESS_TIMEOUT: Duration = Duration::from_secs(4);
const RETRY_AFTER_S: u32 = 2;

pub(crate) struct Api {
    pub(crate) pool: PgPool,
    pub(crate) connection: Connection,
    pub(crate) ring: Current<KeyRing>,
    pub(crate) callers: Vec<Caller>,
    pub(crate) archived: ArchivedPayloads,
}

pub(crate) fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route("/v1/installations", get(list))
        .route("/v1/installations/{id}", get(show))
        .route("/v1/installations/{id}/events", get(events))
        .route("/v1/installations/{id}/credential", get(open_credential))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
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

/// The name of a caller that may read installations. A handler that asks for it
/// cannot skip the check.
struct Reader;

/// The name of a caller that may open credentials.
struct Opener(String);

impl FromRequestParts<Arc<Api>> for Reader {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Refused> {
        caller_with(&parts.headers, api, Scope::ReadInstallations).map(|_| Self)
    }
}

impl FromRequestParts<Arc<Api>> for Opener {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Refused> {
        caller_with(&parts.headers, api, Scope::OpenCredentials).map(|c| Self(c.name.clone()))
    }
}

fn caller_with<'a>(headers: &HeaderMap, api: &'a Api, scope: Scope) -> Result<&'a Caller, Refused> {
    let header = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = header.and_then(|value| value.split_once(' '));
    let token = token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let given = Sha256::digest(token.map(|(_, token)| token.trim()).unwrap_or_default());
    let matches =
        |caller: &&Caller| bool::from(Sha256::digest(caller.token.expose_secret()).ct_eq(&given));
    let Some(caller) = api.callers.iter().find(matches) else {
        let detail = "send 'Authorization: Bearer <token>' with a token of worker.api_tokens";
        return Err(Refused(Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)));
    };
    if caller.scopes.contains(&scope) {
        return Ok(caller);
    }
    let detail = format!("the token '{}' does not have the scope for this", caller.name);
    Err(Refused(Problem::new(StatusCode::FORBIDDEN, "insufficient-scope", detail)))
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

impl From<CredentialError> for Refused {
    fn from(error: CredentialError) -> Self {
        match &error {
            CredentialError::None { .. } => {
                Self(Problem::new(StatusCode::NOT_FOUND, "no-credential", error.to_string()))
            }
            CredentialError::Postgres(cause) => unavailable(cause),
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
    _: Reader,
    State(api): State<Arc<Api>>,
    Parameters(filter): Parameters<Filter>,
) -> Result<Response, Refused> {
    let page = find::list(&api.pool, &filter).await?;
    Ok(Json(page).into_response())
}

async fn show(
    _: Reader,
    State(api): State<Arc<Api>>,
    Id(id): Id,
    Parameters(which): Parameters<Which>,
) -> Result<Response, Refused> {
    let installation = find::show(&api.pool, &which, &id).await?;
    Ok(Json(installation).into_response())
}

/// [`Which`], and a page. `deny_unknown_fields` does not go with `flatten`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HistoryParameters {
    source: Option<String>,
    app_id: Option<String>,
    place: Option<String>,
    after: Option<u64>,
    limit: Option<u16>,
}

async fn events(
    _: Reader,
    State(api): State<Arc<Api>>,
    Id(id): Id,
    Parameters(parameters): Parameters<HistoryParameters>,
) -> Result<Response, Refused> {
    let HistoryParameters { source, app_id, place, after, limit } = parameters;
    let which = Which { source, app_id, place };
    let mut page = find::history(&api.pool, &which, &id, after.unwrap_or_default(), limit).await?;
    api.archived.fill(&mut page.events).await?;
    Ok(Json(page).into_response())
}

async fn open_credential(
    Opener(caller): Opener,
    State(api): State<Arc<Api>>,
    Id(id): Id,
    Parameters(which): Parameters<Which>,
) -> Result<Response, Refused> {
    let installation = find::show(&api.pool, &which, &id).await?;
    let ring = api.ring.get();
    let secret =
        credential::open(&api.pool, &api.connection, &ring, &installation, &caller).await?;
    METRICS.credentials_opened.add(1, &[]);
    tracing::info!(caller, installation = installation.installation_id, "a credential was opened");
    let body = Json(json!({
        "source": installation.source,
        "installation_id": installation.installation_id,
        "credential": secret.expose_secret(),
    }));
    Ok(([(header::CACHE_CONTROL, "no-store")], body).into_response())
}

async fn readyz(State(api): State<Arc<Api>>) -> Response {
    let nats = if api.connection.is_connected() { Ok(()) } else { Err("not connected".to_owned()) };
    let postgres = match tokio::time::timeout(READINESS_TIMEOUT, can_read(&api.pool)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(why_unreadable(&error)),
        Err(_elapsed) => Err("no answer in time".to_owned()),
    };
    let keys = match &postgres {
        Ok(()) => lacks_no_key(&api).await,
        Err(_) => Err("not known".to_owned()),
    };
    let ready = nats.is_ok() && postgres.is_ok() && keys.is_ok();
    let say = |state: Result<(), String>| state.map_or_else(|why| why, |()| "ready".to_owned());
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body =
        json!({ "ready": ready, "nats": say(nats), "postgres": say(postgres), "keys": say(keys) });
    (status, Json(body)).into_response()
}

async fn lacks_no_key(api: &Api) -> Result<(), String> {
    let ring = api.ring.get();
    let missing = active_key::missing(&api.pool, &ring);
    match tokio::time::timeout(READINESS_TIMEOUT, missing).await {
        Ok(Ok(None)) => Ok(()),
        Ok(Ok(Some(missing))) => Err(missing),
        Ok(Err(error)) => Err(why_unreadable(&error)),
        Err(_elapsed) => Err("no answer in time".to_owned()),
    }
}

async fn can_read(pool: &PgPool) -> Result<(), sqlx::Error> {
    let mut connection = database::acquire(pool).await?;
    installations::can_be_read(&mut connection).await
}

fn why_unreadable(error: &sqlx::Error) -> String {
    /// `undefined_table` of Postgres.
    const NO_SUCH_TABLE: &str = "42P01";
    let code = error.as_database_error().and_then(|error| error.code());
    if code.as_deref() == Some(NO_SUCH_TABLE) {
        return "the schema is not there: run `worker migrate`".to_owned();
    }
    chain(error)
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
