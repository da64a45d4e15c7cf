//! SecurityScorecard marketplace apps: the webhook to an app's `hook_url`.
//!
//! Everything is nested under `event`. It is not signed, has no id, and there is
//! no event for an uninstall. Properties are only ever added.
//! Source: <https://securityscorecard.readme.io/docs/app-installation-process>.
//!
//! An installation is an app of a user; a later `installed_at` is a reinstall.

use std::collections::BTreeMap;
use std::time::Duration;

use http::StatusCode;
use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::fields::{self, Fields, id, text};
use super::generic::mapping::Mapping;
use super::hint::{self, TimeHint};
use super::payload;
use super::refusal::Refusal;
use super::rules::{
    AckContract, Adapter, InstallPageRules, MissedAck, Problem, Rules, SuccessBody,
};
use crate::details::Details;
use crate::event::{Callback, Fact, Identity, Payload, Reinstall};
use crate::fingerprint::FingerprintKeys;
use crate::id::{AppId, IdempotencyKey, InstallationId, InvalidId, Place};
use crate::verify::Verified;

mod app_secrets;

pub use app_secrets::{APP_SECRETS_HEADER, AppSecrets, InvalidAppSecrets};

const INSTALLED: &str = "app.installed";

#[derive(Debug)]
pub(super) struct SecurityScorecard;

impl Rules for SecurityScorecard {
    /// No deadline and no retries are documented.
    fn ack_contract(&self) -> AckContract {
        AckContract {
            deadline: Duration::from_secs(10),
            budget: Duration::from_secs(5),
            success: StatusCode::OK,
            body: SuccessBody::Json,
            unavailable: StatusCode::SERVICE_UNAVAILABLE,
            missed: MissedAck::Stands,
        }
    }

    fn adapter(
        &self,
        _app_ids: &[AppId],
        _mapping: Option<&Mapping>,
    ) -> Result<Box<dyn Adapter>, Vec<Problem>> {
        Ok(Box::new(Self))
    }

    fn install_page(&self) -> Option<InstallPageRules> {
        Some(InstallPageRules {
            complete_url: "https://platform-api.securityscorecard.io/apps/installation-data",
            installation_parameters: &["installation", "installation_id"],
            redirect_hosts: &["https://*.securityscorecard.io"],
            identity: form_identity,
        })
    }
}

impl Adapter for SecurityScorecard {
    fn parse(&self, verified: &Verified<'_>) -> Result<Callback, Refusal> {
        parse(verified.body(), verified.received_at())
    }
}

/// The platform's id in the URL of the install page is a capability, so it is
/// named by a keyed digest. No callback of the platform repeats it.
fn form_identity(
    app_id: &AppId,
    installation: &InstallationId,
    keys: &FingerprintKeys,
) -> Result<Identity, InvalidId> {
    let digest = keys.fingerprint(&["install_url", installation.as_str()]).to_string();
    let parts = [app_id.as_str(), "install_url", &digest];
    Ok(Identity {
        installation_id: InstallationId::of(&parts)?,
        place: Place::of(&parts),
        app_id: app_id.clone(),
        scope: BTreeMap::new(),
        reinstall: Reinstall::NewId,
    })
}

fn parse(body: &[u8], received_at: Timestamp) -> Result<Callback, Refusal> {
    let fields = fields::object(body)?;
    let event = object(&fields, "event")?;
    let kind = text(event, "type").map_err(|why| why.under("event"))?.to_owned();
    if kind != INSTALLED {
        let key = key(&[&hex::encode(Sha256::digest(body))])?;
        return Ok(payload::unrecognized(kind, None, key, None, fields));
    }
    let (identity, installed_at) = installed(event).map_err(|why| why.under("event"))?;
    let username = identity.scope.get("username").map_or("", String::as_str);
    let at = match TimeHint::of(installed_at) {
        TimeHint::At(time) => time.to_string(),
        TimeHint::Unreadable => installed_at.map(Value::to_string).unwrap_or_default(),
        // Nothing tells a retry from a reinstall.
        TimeHint::Absent => received_at.as_nanosecond().to_string(),
    };
    let key = key(&[identity.app_id.as_str(), username, &at])?;
    let app_id = Some(identity.app_id.clone());
    let occurred_at = TimeHint::of(installed_at).at();
    let fact = Fact::Installed {
        identity,
        granted_permissions: Vec::new(),
        credential: None,
        details: Details::default(),
    };
    let payload = Payload::Clear(Value::Object(fields));
    Ok(Callback { app_id, idempotency_key: key, occurred_at, fact, payload })
}

/// Who installed which app, and what is said of the time.
fn installed(event: &Fields) -> Result<(Identity, Option<&Value>), Refusal> {
    let payload = object(event, "payload")?;
    let read = || {
        let app = object(payload, "app")?;
        let user = object(payload, "user")?;
        let app_id = id(app, "id", AppId::parse).map_err(|why| why.under("app"))?;
        let under_user = |why: Refusal| why.under("user");
        let username = id(user, "username", InstallationId::parse).map_err(under_user)?;
        let organization = hint::id(user, "organizationDomain");
        let parts = [app_id.as_str(), "user", username.as_str()];
        let installation_id =
            InstallationId::of(&parts).map_err(|why| Refusal::invalid("username", why))?;
        let place = Place::of(&parts);
        let names = [("username", Some(username.into())), ("organization_domain", organization)];
        let scope: BTreeMap<String, String> =
            names.into_iter().filter_map(|(name, id)| Some((name.to_owned(), id?))).collect();
        let reinstall = Reinstall::SameId;
        Ok(Identity { installation_id, place, app_id, scope, reinstall })
    };
    let identity = read().map_err(|why: Refusal| why.under("payload"))?;
    Ok((identity, payload.get("installed_at")))
}

fn key(parts: &[&str]) -> Result<IdempotencyKey, Refusal> {
    let digest = hex::encode(Sha256::digest(parts.join("\n").as_bytes()));
    IdempotencyKey::parse(format!("sha256:{digest}")).map_err(|why| Refusal::invalid("event", why))
}

fn object<'a>(fields: &'a Fields, field: &'static str) -> Result<&'a Fields, Refusal> {
    fields::present(fields, field)?
        .as_object()
        .ok_or_else(|| Refusal::invalid(field, "must be an object"))
}

#[cfg(test)]
mod tests;
