//! Sessions of an app's portal. Blnk asks the app for a URL each time that a user launches the
//! app (<https://docs.blnkfinance.com/cloud/apps/launch-app>). The app passes on what Blnk asks,
//! and its page gives back the token of that URL to learn who it is for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use domain::fold::Status;
use domain::id::InstallationId;
use domain::seal::random_token;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use service::problem::Problem;
use service::server::ClientGone;
use sha2::{Digest as _, Sha256};

use super::refused::Refused;
use super::request::{Body, Parameters, PortalOpener};
use super::{Api, arrived, to_nobody};
use crate::store::database;
use crate::store::find::{self, FindError, Which};
use crate::store::installations::InstallationView;
use crate::store::portal_sessions::{self as sessions, PortalSession};

pub(super) const BODY_BYTES_MAX: usize = 16 * 1024;
/// A user may launch an app that was installed just now. Blnk waits about 10 seconds.
const WAIT: Duration = Duration::from_secs(5);

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LaunchParameters {
    /// The installation of this source.
    source: Option<String>,
}

/// What Blnk posts when a user launches the app. Other fields are passed over.
#[derive(Deserialize, JsonSchema)]
pub(super) struct PortalLaunch {
    installed_app_id: String,
    app_id: String,
    instance_id: String,
    /// Sent until May 2026.
    organization_id: Option<String>,
    /// Sent until June 2026.
    user_id: Option<String>,
}

/// What Blnk expects as the answer.
#[derive(Serialize, JsonSchema)]
pub(super) struct PortalUrl {
    /// Of the app's page, with the session's token.
    #[schemars(extend("format" = "uri"))]
    portal_url: String,
    #[schemars(with = "String", extend("format" = "date-time"))]
    expires_at: Option<Timestamp>,
}

/// What the app's page was given.
#[derive(Deserialize, JsonSchema)] // no `Debug`: it is a secret
pub(super) struct PortalToken {
    /// The query parameter `token` of the page.
    token: String,
}

/// Who launched the app, and for which installation.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "PortalSession")]
pub(super) struct PortalSessionView {
    source: String,
    app_id: String,
    installation_id: String,
    place: String,
    /// The platform's names for that place.
    scope: BTreeMap<String, String>,
    /// Where the platform names the user.
    user_id: Option<String>,
    #[schemars(with = "String", extend("format" = "date-time"))]
    expires_at: Option<Timestamp>,
}

pub(super) async fn open(
    PortalOpener(caller): PortalOpener,
    State(api): State<Arc<Api>>,
    Parameters(LaunchParameters { source }): Parameters<LaunchParameters>,
    client: Option<Extension<ClientGone>>,
    Body(launch): Body<PortalLaunch>,
) -> Result<Response, Refused> {
    let id = InstallationId::parse(&*launch.installed_app_id);
    let id = id.map_err(|_| FindError::NotFound)?;
    if launch.user_id.as_ref().is_some_and(|user| user.contains('\0')) {
        return Err(FindError::ContainsNul.into());
    }
    let which = Which { source, app_id: Some(launch.app_id.clone()), place: None };
    let Some(found) = arrived(&api, &caller, &which, &id, WAIT, client).await? else {
        return Ok(to_nobody());
    };
    if !launch.is_of(&found) {
        return Err(FindError::NotFound.into());
    }
    let Some(portal) = api.portals.get(&found.source) else {
        let detail = format!("sources.{}.portal is not configured", found.source);
        return Err(not_found("portal-not-configured", detail));
    };
    if !is_open(&found) {
        let detail = format!("the installation is {}, so nobody can launch its app", found.status);
        let problem = Problem::new(StatusCode::CONFLICT, "installation-not-active", detail);
        return Err(Refused(problem));
    }
    let token = random_token();
    let mut connection = database::acquire(&api.pool).await?;
    let (key, user_id) = (digest(&token), launch.user_id.as_deref());
    let added = sessions::add(&mut connection, &key, &found, user_id, portal.lifetime);
    let expires_at = added.await?;
    let mut url = portal.url.clone();
    url.query_pairs_mut().append_pair("token", &token);
    Ok(secret(PortalUrl { portal_url: url.into(), expires_at }))
}

pub(super) async fn introspect(
    PortalOpener(caller): PortalOpener,
    State(api): State<Arc<Api>>,
    Body(PortalToken { token }): Body<PortalToken>,
) -> Result<Response, Refused> {
    let unknown = || not_found("no-portal-session", "no session has this token");
    let mut connection = database::acquire(&api.pool).await?;
    let session = sessions::find(&mut connection, &digest(&token)).await?.ok_or_else(unknown)?;
    drop(connection);
    let (source, place) = (session.source.clone(), session.place.clone());
    let which = Which { source: Some(source), place: Some(place), app_id: None };
    let id = InstallationId::parse(&*session.installation_id).map_err(|_| unknown())?;
    // One that the caller does not reach is not there for it.
    let found = match find::show(&api.pool, caller.reach(), &which, &id).await {
        Err(FindError::NotFound) => return Err(unknown()),
        found => found?,
    };
    let is_same = found.generation == session.generation && is_open(&found);
    if session.has_ended || !is_same {
        let detail = match is_same {
            true => "the session has ended; the user launches the app again",
            false => "the installation is no longer active",
        };
        let problem = Problem::new(StatusCode::GONE, "portal-session-expired", detail);
        return Err(Refused(problem));
    }
    let PortalSession { source, app_id, place, installation_id, user_id, expires_at, .. } = session;
    let scope = found.scope;
    let view =
        PortalSessionView { source, app_id, installation_id, place, scope, user_id, expires_at };
    Ok(secret(view))
}

impl PortalLaunch {
    /// Anybody may post this to the app, so that every id must be right.
    fn is_of(&self, found: &InstallationView) -> bool {
        let organizations = self.organization_id.as_ref().zip(found.scope.get("organization_id"));
        found.scope.get("instance_id") == Some(&self.instance_id)
            && organizations.is_none_or(|(given, known)| given == known)
    }
}

/// That it is launched shows that the platform has not cancelled it.
fn is_open(found: &InstallationView) -> bool {
    [Status::Active.name(), Status::Unconfirmed.name()].contains(&found.status.as_str())
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

fn not_found(name: &'static str, detail: impl Into<String>) -> Refused {
    Refused(Problem::new(StatusCode::NOT_FOUND, name, detail))
}

fn secret(view: impl Serialize) -> Response {
    ([(header::CACHE_CONTROL, "no-store")], Json(view)).into_response()
}
