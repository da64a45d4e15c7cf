//! Reading the fields of a payload that an event cannot do without. Every
//! refusal names the field and never shows its value, which might be a secret.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::refusal::Refusal;
use crate::id::{EXTERNAL_ID_BYTES_MAX, InstallationId, InvalidId};

pub(super) type Fields = Map<String, Value>;

/// Real callbacks have two to four levels.
const JSON_DEPTH_MAX: usize = 32;
const PERMISSIONS_MAX: usize = 256;
/// What stands in a payload for a value that cannot be read. It is no text and no
/// number, so nothing that is asked for can be one.
const UNREADABLE: &str = "$unreadable";
/// What stands in a payload beside a field that came more than once: RFC 8259, section 4, leaves
/// open which one counts. The last one does here, as for JavaScript.
const REPEATED: &str = "$repeated";

/// The body as a JSON object.
///
/// Not everything that JSON allows can be read: `"\ud800"` is no text, and a number
/// may be too large. Such a value must not cost the event if nobody asks for it.
pub(super) fn object(body: &[u8]) -> Result<Fields, Refusal> {
    // serde_json's messages say where, never what; it stops at 128 levels.
    let read = serde_json::from_slice(body);
    let value: Value = read.or_else(|error| readable(body).ok_or(error)).map_err(malformed)?;
    not_too_deep(&value)?;
    match value {
        Value::Object(fields) => Ok(with_repeated(fields, body)),
        _ => Err(Refusal::NotAnObject),
    }
}

/// Names the fields that came more than once.
fn with_repeated(mut fields: Fields, body: &[u8]) -> Fields {
    let names: Names = serde_json::from_slice(body).unwrap_or_default();
    if names.repeated.is_empty() {
        return fields;
    }
    fields.insert(REPEATED.to_owned(), json!(names.repeated));
    fields
}

/// Of a JSON object.
#[derive(Default)]
struct Names {
    all: BTreeSet<String>,
    repeated: BTreeSet<String>,
}

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(NamesVisitor)
    }
}

struct NamesVisitor;

impl<'de> Visitor<'de> for NamesVisitor {
    type Value = Names;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Names, A::Error> {
        let mut names = Names::default();
        while let Some((name, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
            if !names.all.insert(name.clone()) {
                names.repeated.insert(name);
            }
        }
        Ok(names)
    }
}

/// Field by field; one that cannot be read stays as it came. `None` if the body is not
/// JSON, not an object, or too deep.
fn readable(body: &[u8]) -> Option<Value> {
    let fields: BTreeMap<String, &RawValue> = serde_json::from_slice(body).ok()?;
    let read = |raw: &RawValue| match serde_json::from_str(raw.get()) {
        Err(error) if is_too_deep(&error) => None,
        read => Some(read.unwrap_or_else(|_| json!({ UNREADABLE: raw.get() }))),
    };
    let fields: Option<Fields> =
        fields.into_iter().map(|(name, raw)| Some((name, read(raw)?))).collect();
    fields.map(Value::Object)
}

fn malformed(error: serde_json::Error) -> Refusal {
    if is_too_deep(&error) {
        Refusal::TooDeep { max: JSON_DEPTH_MAX }
    } else {
        Refusal::MalformedJson { reason: error.to_string() }
    }
}

fn is_too_deep(error: &serde_json::Error) -> bool {
    error.to_string().starts_with("recursion limit exceeded")
}

pub(super) fn not_too_deep(value: &Value) -> Result<(), Refusal> {
    if depth(value) > JSON_DEPTH_MAX {
        return Err(Refusal::TooDeep { max: JSON_DEPTH_MAX });
    }
    Ok(())
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

/// Whether the field says something: platforms send null or an empty text where
/// they have nothing to say.
pub(super) fn is_present(fields: &Fields, field: &str) -> bool {
    fields.get(field).is_some_and(|value| !value.is_null() && value.as_str() != Some(""))
}

pub(super) fn present<'a>(fields: &'a Fields, field: &'static str) -> Result<&'a Value, Refusal> {
    let value = fields.get(field).filter(|value| !value.is_null());
    value.ok_or(Refusal::MissingField { field: field.into() })
}

pub(super) fn text<'a>(fields: &'a Fields, field: &'static str) -> Result<&'a str, Refusal> {
    present(fields, field)?.as_str().ok_or_else(|| Refusal::invalid(field, "must be a string"))
}

pub(super) fn id<T>(
    fields: &Fields,
    field: &'static str,
    parse: impl Fn(String) -> Result<T, InvalidId>,
) -> Result<T, Refusal> {
    parse(text(fields, field)?.to_owned()).map_err(|why| Refusal::invalid(field, why))
}

/// An id whose absence means something, so that a malformed one cannot pass for
/// an absent one.
pub(super) fn optional_id(fields: &Fields, field: &'static str) -> Result<Option<String>, Refusal> {
    if !is_present(fields, field) {
        return Ok(None);
    }
    // The checks of an installation id are right for every id from outside.
    id(fields, field, InstallationId::parse).map(|id| Some(id.into()))
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
