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
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::fields::{self, Fields, detail, id, is_present, optional_id, optional_text, text};
use super::{AckContract, MissedAck, OAuthDefaults, Refusal, SuccessBody};
use crate::details::{Details, Trial, Whitelabel};
use crate::event::{Callback, Fact, Identity, Payload, Reinstall};
use crate::id::{AppId, IdempotencyKey, InstallationId, Place};

/// HighLevel documents no deadline. Until April 2026 it tried again after a 429
/// only; since then after every failure.
pub(super) const ACK_CONTRACT: AckContract = AckContract {
    deadline: Duration::from_secs(10),
    budget: Duration::from_secs(5),
    success: StatusCode::OK,
    body: SuccessBody::Json,
    unavailable: StatusCode::TOO_MANY_REQUESTS,
    missed: MissedAck::Stands,
};

/// The token of a company (agency) is exchanged for one of a location.
/// Source: <https://marketplace.gohighlevel.com/docs/Authorization/OAuth2.0>.
pub(super) const OAUTH: OAuthDefaults = OAuthDefaults {
    authorize_url: Some("https://marketplace.gohighlevel.com/v2/oauth/chooselocation"),
    token_url: Some("https://services.leadconnectorhq.com/oauth/token"),
    location_token_url: Some("https://services.leadconnectorhq.com/oauth/locationToken"),
    headers: &[("version", "2021-07-28")],
};

/// The headers that carry a signature over the raw body.
pub const SIGNATURE_HEADER: &str = "x-ghl-signature";
pub const LEGACY_SIGNATURE_HEADER: &str = "x-wh-signature";

/// HighLevel's published Ed25519 key, one for all apps.
/// Source: the webhook integration guide.
pub const ED25519_KEY: &str = include_str!("highlevel/ed25519.pem");
/// Its legacy key (RSA, 4096 bits), announced to end on 2026-09-01.
pub const RSA_KEY: &str = include_str!("highlevel/rsa.pem");

const APP_ID: &str = "appId";
const LOCATION_ID: &str = "locationId";
const COMPANY_ID: &str = "companyId";
const TIMESTAMP: &str = "timestamp";

/// Reads one callback.
pub(super) fn parse(body: &[u8], received_at: Timestamp) -> Result<Callback, Refusal> {
    let fields = fields::object(body)?;
    let kind = text(&fields, "type")?.to_owned();
    // The signing key is one for all apps, so the app is always asked for.
    let app_id = Some(id(&fields, APP_ID, AppId::parse)?);
    let occurred_at = optional_time(&fields, TIMESTAMP)?;
    let idempotency_key = idempotency_key(&fields, body, occurred_at, received_at)?;
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
            let details = Details { plan_id: detail(&fields, "newPlanId"), ..Details::default() };
            Fact::Updated { identity: installed_app(&fields)?, details }
        }
        _ => {
            let identity = installed_app(&fields).ok();
            let recorded =
                super::unrecognized(kind, identity, idempotency_key, occurred_at, fields);
            return Ok(Callback { app_id, ..recorded });
        }
    };
    let payload = Payload::Clear(Value::Object(fields));
    Ok(Callback { app_id, idempotency_key, occurred_at, fact, payload })
}

fn idempotency_key(
    fields: &Fields,
    body: &[u8],
    occurred_at: Option<Timestamp>,
    received_at: Timestamp,
) -> Result<IdempotencyKey, Refusal> {
    const WEBHOOK_ID: &str = "webhookId";
    if is_present(fields, WEBHOOK_ID) {
        return id(fields, WEBHOOK_ID, IdempotencyKey::parse);
    }
    let digest = hex::encode(Sha256::digest(body));
    let key = match occurred_at {
        Some(_) => format!("sha256:{digest}"),
        None => format!("sha256:{digest}:{}", received_at.as_nanosecond()),
    };
    IdempotencyKey::parse(key).map_err(|why| Refusal::invalid(WEBHOOK_ID, why))
}

fn installed_app(fields: &Fields) -> Result<Identity, Refusal> {
    identity(id(fields, APP_ID, AppId::parse)?, fields)
}

/// A callback and an answer with tokens name location and company alike.
pub(super) fn identity(app_id: AppId, fields: &Fields) -> Result<Identity, Refusal> {
    let location = optional_id(fields, LOCATION_ID)?;
    let company = optional_id(fields, COMPANY_ID)?;
    let parts = match (&location, &company) {
        (Some(location), _) => [app_id.as_str(), "location", location],
        (None, Some(company)) => [app_id.as_str(), "company", company],
        (None, None) => return Err(Refusal::missing(COMPANY_ID)),
    };
    let installation_id =
        InstallationId::of(&parts).map_err(|why| Refusal::invalid(APP_ID, why))?;
    let place = Place::of(&parts);
    let names = [("location_id", location), ("company_id", company)];
    let scope: BTreeMap<String, String> =
        names.into_iter().filter_map(|(name, id)| Some((name.to_owned(), id?))).collect();
    Ok(Identity { installation_id, place, app_id, scope, reinstall: Reinstall::SameId })
}

/// What cannot be read of them is left to the payload.
fn details(fields: &Fields) -> Details {
    Details {
        plan_id: detail(fields, "planId"),
        trial: fields.get("trial").and_then(Value::as_object).map(trial),
        whitelabel: fields.get("whitelabelDetails").and_then(Value::as_object).and_then(whitelabel),
        company_name: detail(fields, "companyName"),
        user_id: detail(fields, "userId"),
        version_id: detail(fields, "versionId"),
    }
}

/// An empty object is sent where there is no trial.
fn trial(trial: &Fields) -> Trial {
    let on_trial = trial.get("onTrial").and_then(Value::as_bool).unwrap_or(false);
    let starts_at = trial.get("trialStartDate").and_then(Value::as_str).and_then(fields::time);
    // A platform may count half days; what is no number of days has no end.
    let days = trial.get("trialDuration").and_then(Value::as_u64).and_then(|n| n.try_into().ok());
    Trial::new(on_trial, starts_at, days)
}

fn whitelabel(details: &Fields) -> Option<Whitelabel> {
    let (domain, logo_url) = (detail(details, "domain"), detail(details, "logoUrl"));
    (domain.is_some() || logo_url.is_some()).then_some(Whitelabel { domain, logo_url })
}

fn optional_time(fields: &Fields, field: &'static str) -> Result<Option<Timestamp>, Refusal> {
    let Some(text) = optional_text(fields, field)? else { return Ok(None) };
    let time = fields::time(text);
    time.map(Some).ok_or_else(|| Refusal::invalid(field, fields::EXPECTED_TIME))
}

#[cfg(test)]
mod tests;
