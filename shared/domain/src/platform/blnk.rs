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

use super::fields::{self, Fields, id, is_present, optional_id, optional_text, present, text};
use super::{AckContract, MissedAck, Refusal, SuccessBody};
use crate::details::Details;
use crate::event::{Callback, Fact, Identity, Payload, PlainCredential, Reinstall};
use crate::id::{AppId, IdempotencyKey, InstallationId, Place};

pub(super) const ACK_CONTRACT: AckContract = AckContract {
    deadline: Duration::from_secs(10),
    budget: Duration::from_secs(8),
    success: StatusCode::OK,
    body: SuccessBody::Json,
    unavailable: StatusCode::SERVICE_UNAVAILABLE,
    missed: MissedAck::Cancels,
};

const API_KEY_BYTES_MAX: usize = 4096;
/// Blnk's prefixes have 8 characters. A longer "prefix" might be the key itself.
const API_KEY_PREFIX_CHARS_MAX: usize = 12;

const API_KEY: &str = "api_key";
const PERMISSIONS: &str = "granted_permissions";
const UNINSTALLED_AT: &str = "uninstalled_at";

/// Reads one callback.
pub(super) fn parse(body: &[u8]) -> Result<Callback, Refusal> {
    let fields = fields::object(body)?;
    let idempotency_key = id(&fields, "idempotency_key", IdempotencyKey::parse)?;
    match idempotency_key.as_str().split_once(':').map(|(kind, _)| kind) {
        Some("install") => install(fields, idempotency_key),
        Some("uninstall") => uninstall(fields, idempotency_key),
        other => {
            let kind = other.unwrap_or_default().to_owned();
            let identity = identity(&fields).ok();
            Ok(super::unrecognized(kind, identity, idempotency_key, None, fields))
        }
    }
}

fn install(mut fields: Fields, idempotency_key: IdempotencyKey) -> Result<Callback, Refusal> {
    if is_present(&fields, UNINSTALLED_AT) {
        return Err(Refusal::Contradiction { kind: "install", field: UNINSTALLED_AT });
    }
    let identity = identity(&fields)?;
    let granted_permissions = fields::permissions(present(&fields, PERMISSIONS)?, PERMISSIONS)?;
    let prefix = optional_text(&fields, "api_key_prefix")?.map(str::to_owned);
    let secret = take_api_key(&mut fields)?;

    // A prefix that is too long would be part of the secret, in clear.
    let chars_max = API_KEY_PREFIX_CHARS_MAX.min(secret.expose_secret().chars().count() / 2);
    let prefix = prefix.map(|prefix| {
        prefix.chars().filter(|letter| !letter.is_control()).take(chars_max).collect()
    });
    if let Some(prefix) = &prefix {
        fields.insert("api_key_prefix".to_owned(), Value::String(String::clone(prefix)));
    }
    let mut payload = Value::Object(fields);
    fields::replace_secret(&mut payload, secret.expose_secret(), API_KEY);
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
    let uninstalled_at = text(&fields, UNINSTALLED_AT)?;
    let uninstalled_at = fields::time(uninstalled_at)
        .ok_or_else(|| Refusal::invalid(UNINSTALLED_AT, fields::EXPECTED_TIME))?;
    Ok(Callback {
        app_id: Some(identity.app_id.clone()),
        idempotency_key,
        occurred_at: Some(uninstalled_at),
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
    if let Some(organization_id) = optional_id(fields, "organization_id")? {
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
    let marker = fields::sealed_marker(API_KEY);
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

#[cfg(test)]
mod tests;
