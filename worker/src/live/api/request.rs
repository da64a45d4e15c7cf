//! What requests bring: who asks, which installation, and what else.

use std::sync::{Arc, OnceLock};

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Extension, FromRequest, FromRequestParts, MatchedPath, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use domain::id::InstallationId;
use serde::de::DeserializeOwned;
use service::clock;
use service::config::Scope;
use service::problem::Problem;
use service::server::{ClientAddress, ClientGone};
use service::telemetry;

use crate::live::access::limit::Left;
use crate::live::access::{Caller, Who};
use crate::live::api::Api;
use crate::live::api::refused::Refused;
use crate::store::find::FindError;

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// A caller that may read installations. A handler that asks for it cannot skip the
/// check.
pub(super) struct Reader(pub(super) Caller);

/// A caller that may open credentials, and who it is for the record.
pub(super) struct Opener(pub(super) Caller, pub(super) Who);

/// A caller that may open an app's portal.
pub(super) struct PortalOpener(pub(super) Caller);

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

impl FromRequestParts<Arc<Api>> for PortalOpener {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Refused> {
        caller_with(parts, api, Scope::OpenPortalSessions).await.map(|(caller, _)| Self(caller))
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
        Ok((caller, left)) => {
            note(parts, left);
            who.caller = caller.name().to_owned();
            who.subject = caller.subject.clone();
            Ok((caller, who))
        }
        Err(denied) => {
            let problem = denied.problem();
            if let Some(left) = denied.left() {
                note(parts, left);
            }
            api.recorder.refused(denied.record(&who, problem.status()), who.trace_id);
            Err(Refused(problem))
        }
    }
}

/// The id in the path. One that no platform could have sent, such as one that is
/// not UTF-8, is an id that is not there.
pub(super) struct Id(pub(super) InstallationId);

impl FromRequestParts<Arc<Api>> for Id {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Refused> {
        let path = Path::<InstallationId>::from_request_parts(parts, api).await;
        path.map(|Path(id)| Self(id)).map_err(|_| FindError::NotFound.into())
    }
}

/// The query. An unknown parameter is refused, so that a misspelt filter is not
/// ignored.
pub(super) struct Parameters<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<Arc<Api>> for Parameters<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Refused> {
        match Query::<T>::from_request_parts(parts, api).await {
            Ok(Query(parameters)) => Ok(Self(parameters)),
            Err(rejection) => Err(Refused::invalid(rejection.body_text())),
        }
    }
}

/// The body, as JSON.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Arc<Api>> for Body<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, api: &Arc<Api>) -> Result<Self, Refused> {
        let rejection = match Json::<T>::from_request(request, api).await {
            Ok(Json(body)) => return Ok(Self(body)),
            Err(rejection) => rejection,
        };
        let (status, name) = match &rejection {
            JsonRejection::JsonSyntaxError(_) => (StatusCode::BAD_REQUEST, "malformed-json"),
            JsonRejection::JsonDataError(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid-field"),
            JsonRejection::MissingJsonContentType(_) => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type")
            }
            other if other.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                (StatusCode::PAYLOAD_TOO_LARGE, "payload-too-large")
            }
            _ => (StatusCode::BAD_REQUEST, "unreadable-body"),
        };
        Err(Refused(Problem::new(status, name, said_of(&rejection))))
    }
}

/// What the library says may repeat what the body holds, such as a token.
fn said_of(rejection: &JsonRejection) -> &'static str {
    match rejection {
        JsonRejection::JsonSyntaxError(_) => "the body is not JSON",
        JsonRejection::JsonDataError(_) => {
            "a field is missing, or is not of its type; /v1/openapi.json has the fields"
        }
        JsonRejection::MissingJsonContentType(_) => "send Content-Type: application/json",
        _ => "the body is too large, or ended early",
    }
}

/// The request of a client that has hung up is not worth waiting for.
pub(super) async fn is_gone(client: Option<Extension<ClientGone>>) {
    match client {
        Some(Extension(ClientGone(gone))) => gone.cancelled().await,
        None => std::future::pending().await,
    }
}

type Slot = Arc<OnceLock<Left>>;

fn note(parts: &Parts, left: Left) {
    if let Some(slot) = parts.extensions.get::<Slot>() {
        slot.get_or_init(|| left);
    }
}

/// Tells each caller how often it may still ask
/// (<https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/>).
pub(super) async fn tell_what_is_left(mut request: Request, next: Next) -> Response {
    let slot = Slot::default();
    request.extensions_mut().insert(Arc::clone(&slot));
    let mut response = next.run(request).await;
    if let Some(Left { quota, requests, again_in_s }) = slot.get() {
        let wait = again_in_s.map(|seconds| format!(";t={seconds}")).unwrap_or_default();
        let headers = [
            (RATE_LIMIT_POLICY, format!("\"caller\";q={quota};w=1")),
            (RATE_LIMIT, format!("\"caller\";r={requests}{wait}")),
        ];
        for (name, value) in headers {
            if let Ok(value) = HeaderValue::try_from(value) {
                response.headers_mut().insert(name, value);
            }
        }
    }
    response
}
