//! HighLevel (GoHighLevel) marketplace apps.
//!
//! Flat JSON with a `type`, signed over its raw bytes. Sources:
//! <https://marketplace.gohighlevel.com/docs/webhook/AppInstall>,
//! `…/AppUninstall`, `…/AppUpdate`, `…/PlanChange` and
//! <https://marketplace.gohighlevel.com/docs/webhook/WebhookIntegrationGuide>.
//!
//! An installation is an app in a location (sub-account) or, without
//! `locationId`, in a company (agency): a location's uninstall names no company.
//! A reinstall has the same ids, so `timestamp` tells a late uninstall from one
//! that ends the new generation.
//!
//! Retries repeat the signed payload, `webhookId` and `timestamp` included.
//! Older payloads have neither. Then nothing tells a retry from a reinstall with
//! the same body: every delivery is an event, and the fold counts a repetition
//! once, in the order of receipt.

use std::collections::BTreeMap;
use std::time::Duration;

use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::fields::{self, Fields, id, optional_id, text};
use super::generic::mapping::Mapping;
use super::hint::{self, TimeHint};
use super::payload;
use super::refusal::Refusal;
use super::rules::{
    AckContract, Adapter, MissedAck, OAuthRules, Parent, Parentage, Problem, Rules, SuccessBody,
};
use crate::details::{Details, Trial, Whitelabel};
use crate::event::{Callback, Fact, Identity, Payload, Reinstall};
use crate::id::{AppId, IdempotencyKey, InstallationId, Place};
use crate::verify::{Check, Verified};

mod signature;

pub use signature::SignatureSettings;

const COMPANY: &str = "company";
const LOCATION: &str = "location";

/// The names of the ids in a payload, and in a scope.
const APP_ID: &str = "appId";
const LOCATION_ID: &str = "locationId";
const COMPANY_ID: &str = "companyId";
const TIMESTAMP: &str = "timestamp";
const LOCATION_SCOPE: &str = "location_id";
const COMPANY_SCOPE: &str = "company_id";

#[derive(Debug)]
pub(super) struct HighLevel;

impl Rules for HighLevel {
    /// HighLevel documents no deadline. Until April 2026 it tried again after a 429
    /// only; since then after every failure.
    fn ack_contract(&self) -> AckContract {
        AckContract {
            deadline: Duration::from_secs(10),
            budget: Duration::from_secs(5),
            success: StatusCode::OK,
            body: SuccessBody::Json,
            unavailable: StatusCode::TOO_MANY_REQUESTS,
            missed: MissedAck::Stands,
        }
    }

    fn adapter(
        &self,
        app_ids: &[AppId],
        _mapping: Option<&Mapping>,
    ) -> Result<Box<dyn Adapter>, Vec<Problem>> {
        if app_ids.is_empty() {
            let what = "list your apps: HighLevel signs for every app with the same key";
            return Err(vec![Problem::new("app_ids", what)]);
        }
        Ok(Box::new(Self))
    }

    fn default_check(&self) -> Option<Result<Check, String>> {
        Some(SignatureSettings::default().check())
    }

    /// The token of a company (agency) is exchanged for one of a location.
    /// Source: <https://marketplace.gohighlevel.com/docs/Authorization/OAuth2.0>.
    fn oauth(&self, _mapping: Option<&Mapping>) -> Option<OAuthRules> {
        Some(OAuthRules {
            authorize_url: Some("https://marketplace.gohighlevel.com/v2/oauth/chooselocation"),
            token_url: Some("https://services.leadconnectorhq.com/oauth/token"),
            location_token_url: Some("https://services.leadconnectorhq.com/oauth/locationToken"),
            headers: &[("version", "2021-07-28")],
            parentage: Some(Parentage {
                parent_key: COMPANY_SCOPE,
                part_key: LOCATION_SCOPE,
                parent_of: company_of,
            }),
        })
    }
}

impl Adapter for HighLevel {
    fn parse(&self, verified: &Verified<'_>) -> Result<Callback, Refusal> {
        parse(verified.body(), verified.received_at())
    }

    /// Of the 58 event types that are documented 55 have no `appId`. Each refusal costs 12
    /// retries, and may stop the installs, too.
    fn hears_of_others(&self) -> bool {
        true
    }

    /// An agency that installs an app for some of its locations gets tokens, and each location
    /// an INSTALL. The agency itself may hear of none.
    fn grant_installs(&self, owner: &Identity) -> bool {
        !owner.scope.contains_key(LOCATION_SCOPE)
    }

    fn token_owner(
        &self,
        app_id: &AppId,
        answer: &Map<String, Value>,
        _query: &str,
    ) -> Result<Identity, Refusal> {
        identity(app_id.clone(), answer)
    }
}

/// The types that say what becomes of an installation.
const OF_INSTALLATIONS: [&str; 4] = ["INSTALL", "UNINSTALL", "UPDATE", "PLAN_CHANGE"];

fn parse(body: &[u8], received_at: Timestamp) -> Result<Callback, Refusal> {
    let fields = fields::object(body)?;
    let kind = text(&fields, "type")?.to_owned();
    // The signing key is one for all apps, so an event about an installation must name its app.
    // Most of the others name none.
    let app_id = id(&fields, APP_ID, AppId::parse);
    let app_id =
        if OF_INSTALLATIONS.contains(&kind.as_str()) { Some(app_id?) } else { app_id.ok() };
    let time = TimeHint::of(fields.get(TIMESTAMP));
    let occurred_at = time.at();
    let idempotency_key = idempotency_key(&fields, body, time, received_at)?;
    let fact = match kind.as_str() {
        "INSTALL" => Fact::Installed {
            identity: installed_app(&fields)?,
            granted_permissions: Vec::new(),
            credential: None,
            details: details(&fields),
        },
        "UNINSTALL" => Fact::Uninstalled { identity: installed_app(&fields)? },
        "UPDATE" => Fact::Updated { identity: installed_app(&fields)?, details: details(&fields) },
        "PLAN_CHANGE" => {
            let plan_id = hint::text(fields.get("newPlanId"));
            let details = Details { plan_id, ..Details::default() };
            Fact::Updated { identity: installed_app(&fields)?, details }
        }
        _ => {
            let identity = installed_app(&fields).ok();
            let recorded =
                payload::unrecognized(kind, identity, idempotency_key, occurred_at, fields);
            return Ok(Callback { app_id, ..recorded });
        }
    };
    let payload = Payload::Clear(Value::Object(fields));
    Ok(Callback { app_id, idempotency_key, occurred_at, fact, payload })
}

/// What a retry repeats and another event does not. Without an id that is the
/// body if it holds a time, in whatever form.
fn idempotency_key(
    fields: &Fields,
    body: &[u8],
    time: TimeHint,
    received_at: Timestamp,
) -> Result<IdempotencyKey, Refusal> {
    const WEBHOOK_ID: &str = "webhookId";
    if let Ok(webhook_id) = id(fields, WEBHOOK_ID, IdempotencyKey::parse) {
        return Ok(webhook_id);
    }
    let digest = hex::encode(Sha256::digest(body));
    let key = if time.tells_events_apart() {
        format!("sha256:{digest}")
    } else {
        format!("sha256:{digest}:{}", received_at.as_nanosecond())
    };
    IdempotencyKey::parse(key).map_err(|why| Refusal::invalid(WEBHOOK_ID, why))
}

fn installed_app(fields: &Fields) -> Result<Identity, Refusal> {
    identity(id(fields, APP_ID, AppId::parse)?, fields)
}

/// A callback and an answer with tokens name location and company alike.
fn identity(app_id: AppId, fields: &Fields) -> Result<Identity, Refusal> {
    let location = optional_id(fields, LOCATION_ID)?;
    // Beside a location it only says more.
    let company = match &location {
        Some(_) => hint::id(fields, COMPANY_ID),
        None => optional_id(fields, COMPANY_ID)?,
    };
    let parts = match (&location, &company) {
        (Some(location), _) => [app_id.as_str(), LOCATION, location],
        (None, Some(company)) => [app_id.as_str(), COMPANY, company],
        (None, None) => return Err(Refusal::missing(COMPANY_ID)),
    };
    let installation_id =
        InstallationId::of(&parts).map_err(|why| Refusal::invalid(APP_ID, why))?;
    let place = Place::of(&parts);
    let names = [(LOCATION_SCOPE, location), (COMPANY_SCOPE, company)];
    let scope: BTreeMap<String, String> =
        names.into_iter().filter_map(|(name, id)| Some((name.to_owned(), id?))).collect();
    Ok(Identity { installation_id, place, app_id, scope, reinstall: Reinstall::SameId })
}

/// The company of a location, if its install named one.
fn company_of(identity: &Identity) -> Option<Parent> {
    let location = identity.scope.get(LOCATION_SCOPE)?;
    let company = identity.scope.get(COMPANY_SCOPE)?;
    let installation_id = InstallationId::of(&[identity.app_id.as_str(), COMPANY, company]).ok()?;
    let request = vec![(COMPANY_ID, company.clone()), (LOCATION_ID, location.clone())];
    Some(Parent { installation_id, request })
}

fn details(fields: &Fields) -> Details {
    let text = |field: &str| hint::text(fields.get(field));
    Details {
        plan_id: text("planId"),
        trial: fields.get("trial").and_then(Value::as_object).map(trial),
        whitelabel: whitelabel(fields),
        company_name: text("companyName"),
        user_id: text("userId"),
        version_id: text("versionId"),
    }
}

/// An empty object is sent where there is no trial.
fn trial(trial: &Fields) -> Trial {
    let on_trial = trial.get("onTrial").and_then(Value::as_bool).unwrap_or(false);
    let starts_at = TimeHint::of(trial.get("trialStartDate")).at();
    Trial::new(on_trial, starts_at, hint::number(trial.get("trialDuration")))
}

/// A company without a brand of its own has the flag `false`, an object without
/// texts, or both. Without flag and object nothing is said of it.
fn whitelabel(fields: &Fields) -> Option<Whitelabel> {
    if fields.get("isWhitelabelCompany") == Some(&Value::Bool(false)) {
        return Some(Whitelabel::NONE);
    }
    let details = fields.get("whitelabelDetails")?.as_object()?;
    let text = |field: &str| hint::text(details.get(field));
    Some(Whitelabel { domain: text("domain"), logo_url: text("logoUrl") })
}

#[cfg(test)]
mod tests;
