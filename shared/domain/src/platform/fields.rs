//! Reading the fields of a payload. Every refusal names the field and never
//! shows its value, which might be a secret.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::Refusal;
use crate::id::{EXTERNAL_ID_BYTES_MAX, InstallationId, InvalidId};

pub(super) type Fields = Map<String, Value>;

pub(super) const EXPECTED_TIME: &str =
    "must be a time as in RFC 3339 since 1970, such as 2026-04-21T12:00:00Z";
/// Real callbacks have two to four levels.
const JSON_DEPTH_MAX: usize = 32;
const PERMISSIONS_MAX: usize = 256;
/// Shorter strings stand in payloads by chance.
const SECRET_BYTES_MIN_TO_SEARCH: usize = 8;

/// The body as a JSON object.
pub(super) fn object(body: &[u8]) -> Result<Fields, Refusal> {
    // serde_json's messages say where, never what; it stops at 128 levels.
    let value: Value = serde_json::from_slice(body).map_err(malformed)?;
    if depth(&value) > JSON_DEPTH_MAX {
        return Err(Refusal::TooDeep { max: JSON_DEPTH_MAX });
    }
    match value {
        Value::Object(fields) => Ok(fields),
        _ => Err(Refusal::NotAnObject),
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

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

pub(super) fn is_present(fields: &Fields, field: &str) -> bool {
    fields.get(field).is_some_and(|value| !value.is_null())
}

pub(super) fn present<'a>(fields: &'a Fields, field: &'static str) -> Result<&'a Value, Refusal> {
    let found = fields.get(field).filter(|value| !value.is_null());
    found.ok_or(Refusal::MissingField { field: field.into() })
}

pub(super) fn text<'a>(fields: &'a Fields, field: &'static str) -> Result<&'a str, Refusal> {
    present(fields, field)?.as_str().ok_or_else(|| Refusal::invalid(field, "must be a string"))
}

pub(super) fn optional_text<'a>(
    fields: &'a Fields,
    field: &'static str,
) -> Result<Option<&'a str>, Refusal> {
    if is_present(fields, field) { text(fields, field).map(Some) } else { Ok(None) }
}

pub(super) fn id<T>(
    fields: &Fields,
    field: &'static str,
    parse: impl Fn(String) -> Result<T, InvalidId>,
) -> Result<T, Refusal> {
    parse(text(fields, field)?.to_owned()).map_err(|why| Refusal::invalid(field, why))
}

/// An id that the payload may lack.
pub(super) fn optional_id(fields: &Fields, field: &'static str) -> Result<Option<String>, Refusal> {
    if !is_present(fields, field) {
        return Ok(None);
    }
    // The checks of an installation id are right for every id from outside.
    id(fields, field, InstallationId::parse).map(|id| Some(id.into()))
}

/// A text for people, such as a company's name. One that cannot be stored is
/// left to the payload: it is not worth refusing an install for.
pub(super) fn detail(fields: &Fields, field: &str) -> Option<String> {
    fields.get(field).and_then(short_text)
}

pub(super) fn short_text(value: &Value) -> Option<String> {
    const BYTES_MAX: usize = 1024;
    let text = value.as_str()?;
    let is_fit = text.len() <= BYTES_MAX && !text.chars().any(char::is_control);
    is_fit.then(|| text.to_owned())
}

/// A time as in RFC 3339 that every store can hold.
pub(super) fn time(text: &str) -> Option<Timestamp> {
    text.parse().ok().filter(is_storable)
}

/// Postgres and others end where no event of a platform can lie.
pub(super) fn is_storable(time: &Timestamp) -> bool {
    *time >= Timestamp::UNIX_EPOCH
}

/// The strings of an array of permissions.
pub(super) fn permissions(value: &Value, field: &str) -> Result<Vec<String>, Refusal> {
    let refused = || {
        let expected = format!(
            "must be an array of at most {PERMISSIONS_MAX} strings of 1 to \
             {EXTERNAL_ID_BYTES_MAX} bytes without control characters"
        );
        Refusal::invalid(field.to_owned(), expected)
    };
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

/// What stands in a payload where a secret stood.
pub(super) fn sealed_marker(field: &str) -> Value {
    json!({ "$sealed": field })
}

/// Replaces every string, field name or value, that contains the secret: a
/// field that we do not know might repeat it.
pub(super) fn replace_secret(value: &mut Value, secret: &str, field: &str) {
    if secret.len() < SECRET_BYTES_MIN_TO_SEARCH {
        return;
    }
    match value {
        Value::String(text) if text.contains(secret) => *value = sealed_marker(field),
        Value::Array(items) => {
            items.iter_mut().for_each(|item| replace_secret(item, secret, field));
        }
        Value::Object(fields) => {
            fields.retain(|name, _| !name.contains(secret));
            fields.values_mut().for_each(|found| replace_secret(found, secret, field));
        }
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
