//! Blnk Cloud Custom Apps.
//!
//! One URL takes installs and uninstalls. There is no type field: the prefix of
//! `idempotency_key` says the kind. Callbacks are not signed. If no 2xx comes
//! within 10 seconds, an install is cancelled and its `api_key`, sent this
//! once, is revoked.
//! Source: <https://docs.blnkfinance.com/cloud/apps/installation>.
//!
//! `organization_id` was sent until May 2026 and is still accepted.

use std::collections::BTreeMap;
use std::time::Duration;

use http::StatusCode;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use super::fields::{self, Fields, id, is_present, present};
use super::generic::mapping::Mapping;
use super::hint::{self, TimeHint};
use super::payload;
use super::refusal::Refusal;
use super::rules::{AckContract, Adapter, MissedAck, Problem, Rules, SuccessBody};
use crate::details::Details;
use crate::event::{Callback, Fact, Identity, Payload, PlainCredential, Reinstall};
use crate::id::{AppId, IdempotencyKey, InstallationId, Place};
use crate::verify::Verified;

const API_KEY_BYTES_MAX: usize = 4096;
/// Blnk's prefixes have 8 characters. A longer "prefix" might be the key itself.
const API_KEY_PREFIX_CHARS_MAX: usize = 12;

const API_KEY: &str = "api_key";
const API_KEY_PREFIX: &str = "api_key_prefix";
const PERMISSIONS: &str = "granted_permissions";
const UNINSTALLED_AT: &str = "uninstalled_at";

#[derive(Debug)]
pub(super) struct Blnk;

impl Rules for Blnk {
    fn ack_contract(&self) -> AckContract {
        AckContract {
            deadline: Duration::from_secs(10),
            budget: Duration::from_secs(8),
            success: StatusCode::OK,
            body: SuccessBody::Json,
            unavailable: StatusCode::SERVICE_UNAVAILABLE,
            missed: MissedAck::Cancels,
        }
    }

    fn adapter(
        &self,
        _app_ids: &[AppId],
        _mapping: Option<&Mapping>,
    ) -> Result<Box<dyn Adapter>, Vec<Problem>> {
        Ok(Box::new(Self))
    }
}

impl Adapter for Blnk {
    fn parse(&self, verified: &Verified<'_>) -> Result<Callback, Refusal> {
        parse(verified.body())
    }
}

fn parse(body: &[u8]) -> Result<Callback, Refusal> {
    let fields = fields::object(body)?;
    let idempotency_key = id(&fields, "idempotency_key", IdempotencyKey::parse)?;
    match idempotency_key.as_str().split_once(':').map(|(kind, _)| kind) {
        Some("install") => install(fields, idempotency_key),
        Some("uninstall") => uninstall(fields, idempotency_key),
        other => {
            let kind = other.unwrap_or_default().to_owned();
            let identity = identity(&fields).ok();
            Ok(payload::unrecognized(kind, identity, idempotency_key, None, fields))
        }
    }
}

fn install(mut fields: Fields, idempotency_key: IdempotencyKey) -> Result<Callback, Refusal> {
    if is_present(&fields, UNINSTALLED_AT) {
        return Err(Refusal::Contradiction { kind: "install", field: UNINSTALLED_AT });
    }
    let identity = identity(&fields)?;
    let granted_permissions = fields::permissions(present(&fields, PERMISSIONS)?, PERMISSIONS)?;
    let secret = take_api_key(&mut fields)?;
    let prefix = publishable_prefix(&mut fields, &secret);
    let mut payload = Value::Object(fields);
    payload::replace_secret(&mut payload, secret.expose_secret(), API_KEY);
    Ok(Callback {
        app_id: Some(identity.app_id.clone()),
        idempotency_key,
        occurred_at: None,
        fact: Fact::Installed {
            identity,
            granted_permissions,
            credential: Some(PlainCredential { field: API_KEY.to_owned(), prefix, secret }),
            details: Details::default(),
        },
        payload: Payload::Clear(payload),
    })
}

fn uninstall(fields: Fields, idempotency_key: IdempotencyKey) -> Result<Callback, Refusal> {
    if is_present(&fields, API_KEY) {
        return Err(Refusal::Contradiction { kind: "uninstall", field: API_KEY });
    }
    let identity = identity(&fields)?;
    Ok(Callback {
        app_id: Some(identity.app_id.clone()),
        idempotency_key,
        occurred_at: TimeHint::of(fields.get(UNINSTALLED_AT)).at(),
        fact: Fact::Uninstalled { identity },
        payload: Payload::Clear(Value::Object(fields)),
    })
}

fn identity(fields: &Fields) -> Result<Identity, Refusal> {
    let installation_id = id(fields, "installed_app_id", InstallationId::parse)?;
    let app_id = id(fields, "app_id", AppId::parse)?;
    // The checks of an installation id are right for these ids too.
    let instance_id = id(fields, "instance_id", InstallationId::parse)?;
    let mut scope = BTreeMap::from([("instance_id".to_owned(), instance_id.to_string())]);
    if let Some(organization_id) = hint::id(fields, "organization_id") {
        scope.insert("organization_id".to_owned(), organization_id);
    }
    let place = Place::of(&[app_id.as_str(), instance_id.as_str()]);
    Ok(Identity { installation_id, place, app_id, scope, reinstall: Reinstall::NewId })
}

/// Moves the key out of the fields, so that no second copy of it is made.
fn take_api_key(fields: &mut Fields) -> Result<SecretString, Refusal> {
    let refused = || {
        let expected = format!(
            "must be a string of 1 to {API_KEY_BYTES_MAX} bytes without control characters"
        );
        Refusal::invalid(API_KEY, expected)
    };
    present(fields, API_KEY)?;
    let marker = payload::sealed_marker(API_KEY);
    let Some(Value::String(key)) = fields.insert(API_KEY.to_owned(), marker) else {
        return Err(refused());
    };
    let key = SecretString::from(key);
    let text = key.expose_secret();
    if text.is_empty() || text.len() > API_KEY_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(refused());
    }
    Ok(key)
}

/// The start of the key as Blnk publishes it, in the fields as well. What is
/// too long for that, or is no text, might be the key itself.
fn publishable_prefix(fields: &mut Fields, secret: &SecretString) -> Option<String> {
    let chars_max = API_KEY_PREFIX_CHARS_MAX.min(secret.expose_secret().chars().count() / 2);
    let field = fields.get_mut(API_KEY_PREFIX)?;
    let given = hint::text(Some(&std::mem::take(field)))?;
    let prefix: String = given.chars().take(chars_max).collect();
    *field = Value::String(prefix.clone());
    Some(prefix)
}

#[cfg(test)]
mod tests;
