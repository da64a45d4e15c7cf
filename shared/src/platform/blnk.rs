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

use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value, json};

use super::{AckContract, Refusal};
use crate::event::{Callback, Fact, Identity, Payload, PlainCredential};
use crate::id::{AppId, EXTERNAL_ID_BYTES_MAX, IdempotencyKey, InstallationId, Place};

pub(super) const ACK_CONTRACT: AckContract =
    AckContract { deadline: Duration::from_secs(10), default_budget: Duration::from_secs(8) };

/// Real callbacks have two levels.
const JSON_DEPTH_MAX: usize = 32;
const API_KEY_BYTES_MAX: usize = 4096;
const PERMISSIONS_MAX: usize = 256;
/// Blnk's prefixes have 8 characters. A longer "prefix" might be the key itself.
const API_KEY_PREFIX_CHARS_MAX: usize = 12;
/// Shorter strings stand in payloads by chance.
const SECRET_BYTES_MIN_TO_SEARCH: usize = 8;

const API_KEY: &str = "api_key";
const UNINSTALLED_AT: &str = "uninstalled_at";

/// Reads one callback.
pub(super) fn parse(body: &[u8]) -> Result<Callback, Refusal> {
    // serde_json's messages say where, never what; it stops at 128 levels.
    let value: Value = serde_json::from_slice(body).map_err(malformed)?;
    if depth(&value) > JSON_DEPTH_MAX {
        return Err(Refusal::TooDeep { max: JSON_DEPTH_MAX });
    }
    let Value::Object(fields) = value else {
        return Err(Refusal::NotAnObject);
    };
    let idempotency_key = id(&fields, "idempotency_key", IdempotencyKey::parse)?;
    match idempotency_key.as_str().split_once(':').map(|(kind, _)| kind) {
        Some("install") => install(fields, idempotency_key),
        Some("uninstall") => uninstall(fields, idempotency_key),
        other => Ok(unrecognized(other.unwrap_or_default().to_owned(), fields, idempotency_key)),
    }
}

fn malformed(error: serde_json::Error) -> Refusal {
    let reason = error.to_string();
    if reason.starts_with("recursion limit exceeded") {
        Refusal::TooDeep { max: JSON_DEPTH_MAX }
    } else {
        Refusal::MalformedJson { reason }
    }
}

fn install(
    mut fields: Map<String, Value>,
    idempotency_key: IdempotencyKey,
) -> Result<Callback, Refusal> {
    if is_present(&fields, UNINSTALLED_AT) {
        return Err(Refusal::Contradiction { kind: "install", field: UNINSTALLED_AT });
    }
    let identity = identity(&fields)?;
    let granted_permissions = granted_permissions(&fields)?;
    let prefix = optional_text(&fields, "api_key_prefix")?.map(str::to_owned);
    let secret = take_api_key(&mut fields)?;

    // A prefix that is too long would be part of the secret, in clear.
    let prefix = prefix.map(|prefix| prefix.chars().take(API_KEY_PREFIX_CHARS_MAX).collect());
    if let Some(prefix) = &prefix {
        fields.insert("api_key_prefix".to_owned(), Value::String(String::clone(prefix)));
    }
    let mut payload = Value::Object(fields);
    replace_secret(&mut payload, secret.expose_secret());
    Ok(Callback {
        idempotency_key,
        occurred_at: None,
        fact: Fact::Installed {
            identity,
            granted_permissions,
            credential: Some(PlainCredential { field: API_KEY, prefix, secret }),
        },
        payload: Payload::Clear(payload),
    })
}

fn uninstall(
    fields: Map<String, Value>,
    idempotency_key: IdempotencyKey,
) -> Result<Callback, Refusal> {
    if is_present(&fields, API_KEY) {
        return Err(Refusal::Contradiction { kind: "uninstall", field: API_KEY });
    }
    let identity = identity(&fields)?;
    let uninstalled_at = text(&fields, UNINSTALLED_AT)?;
    let uninstalled_at: Timestamp = uninstalled_at.parse().map_err(|_| Refusal::InvalidField {
        field: UNINSTALLED_AT,
        expected: "must be a time as in RFC 3339, such as 2026-04-21T12:00:00Z".to_owned(),
    })?;
    Ok(Callback {
        idempotency_key,
        occurred_at: Some(uninstalled_at),
        fact: Fact::Uninstalled { identity },
        payload: Payload::Clear(Value::Object(fields)),
    })
}

/// Blnk may add kinds. What fields hold secrets is not known then, so the
/// whole payload is sealed.
fn unrecognized(
    kind: String,
    fields: Map<String, Value>,
    idempotency_key: IdempotencyKey,
) -> Callback {
    let identity = identity(&fields).ok();
    let payload = SecretString::from(Value::Object(fields).to_string());
    Callback {
        idempotency_key,
        occurred_at: None,
        fact: Fact::Unrecognized { kind, identity },
        payload: Payload::Sealed(payload),
    }
}

fn identity(fields: &Map<String, Value>) -> Result<Identity, Refusal> {
    let installation_id = id(fields, "installed_app_id", InstallationId::parse)?;
    let app_id = id(fields, "app_id", AppId::parse)?;
    // The checks of an installation id are right for these ids too.
    let instance_id = id(fields, "instance_id", InstallationId::parse)?;
    let mut scope = BTreeMap::from([("instance_id".to_owned(), instance_id.to_string())]);
    if is_present(fields, "organization_id") {
        let organization_id = id(fields, "organization_id", InstallationId::parse)?;
        scope.insert("organization_id".to_owned(), organization_id.to_string());
    }
    let place = Place::of(&[app_id.as_str(), instance_id.as_str()]);
    Ok(Identity { installation_id, place, app_id, scope })
}

fn granted_permissions(fields: &Map<String, Value>) -> Result<Vec<String>, Refusal> {
    const FIELD: &str = "granted_permissions";
    let refused = || Refusal::InvalidField {
        field: FIELD,
        expected: format!(
            "must be an array of at most {PERMISSIONS_MAX} strings of 1 to \
             {EXTERNAL_ID_BYTES_MAX} bytes without control characters"
        ),
    };
    let value = present(fields, FIELD)?;
    let permissions = value.as_array().ok_or_else(refused)?;
    if permissions.len() > PERMISSIONS_MAX {
        return Err(refused());
    }
    let permission = |value: &Value| {
        let text = value.as_str().ok_or_else(refused)?;
        let checked = InstallationId::parse(text).map_err(|_| refused())?;
        Ok(checked.into())
    };
    permissions.iter().map(permission).collect()
}

/// Moves the key out of the fields, so that no second copy of it is made.
fn take_api_key(fields: &mut Map<String, Value>) -> Result<SecretString, Refusal> {
    let refused = || Refusal::InvalidField {
        field: API_KEY,
        expected: format!(
            "must be a string of 1 to {API_KEY_BYTES_MAX} bytes without control characters"
        ),
    };
    present(fields, API_KEY)?;
    let marker = json!({ "$sealed": API_KEY });
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

/// Replaces every string, field name or value, that contains the secret: a
/// field that we do not know might repeat it.
fn replace_secret(value: &mut Value, secret: &str) {
    if secret.len() < SECRET_BYTES_MIN_TO_SEARCH {
        return;
    }
    match value {
        Value::String(text) if text.contains(secret) => *value = json!({ "$sealed": API_KEY }),
        Value::Array(items) => items.iter_mut().for_each(|item| replace_secret(item, secret)),
        Value::Object(fields) => {
            fields.retain(|name, _| !name.contains(secret));
            fields.values_mut().for_each(|field| replace_secret(field, secret));
        }
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn is_present(fields: &Map<String, Value>, field: &str) -> bool {
    fields.get(field).is_some_and(|value| !value.is_null())
}

fn present<'a>(fields: &'a Map<String, Value>, field: &'static str) -> Result<&'a Value, Refusal> {
    fields.get(field).filter(|value| !value.is_null()).ok_or(Refusal::MissingField { field })
}

fn optional_text<'a>(
    fields: &'a Map<String, Value>,
    field: &'static str,
) -> Result<Option<&'a str>, Refusal> {
    if is_present(fields, field) { text(fields, field).map(Some) } else { Ok(None) }
}

fn text<'a>(fields: &'a Map<String, Value>, field: &'static str) -> Result<&'a str, Refusal> {
    let expected = "must be a string".to_owned();
    present(fields, field)?.as_str().ok_or(Refusal::InvalidField { field, expected })
}

fn id<T>(
    fields: &Map<String, Value>,
    field: &'static str,
    parse: impl Fn(String) -> Result<T, crate::id::InvalidId>,
) -> Result<T, Refusal> {
    parse(text(fields, field)?.to_owned()).map_err(|why| Refusal::invalid(field, &why))
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

#[cfg(test)]
mod tests;
