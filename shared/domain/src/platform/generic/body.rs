//! What a callback says, in whatever form it comes, as a JSON object.

use http::Method;
use serde_json::{Map, Value};

use super::mapping::{BodyFormat, Locator};
use crate::platform::fields;
use crate::platform::refusal::Refusal;
use crate::verify::Verified;

/// What a token says of itself and not of the event.
const TOKEN_CLAIMS: [&str; 4] = ["iat", "exp", "nbf", "jti"];

pub(super) fn read(
    verified: &Verified<'_>,
    format: BodyFormat,
    json_strings: &[Locator],
) -> Result<Value, Refusal> {
    let fields = match verified.claims_in_body() {
        Some(claims) => {
            let mut said = claims.as_object().cloned().unwrap_or_default();
            said.retain(|name, _| !TOKEN_CLAIMS.contains(&name.as_str()));
            said
        }
        None if verified.body().is_empty() && verified.method() == Method::GET => {
            form(verified.query().unwrap_or_default().as_bytes())
        }
        None if verified.body().is_empty() && verified.method() == Method::DELETE => Map::new(),
        None => match format {
            BodyFormat::Json => fields::object(verified.body())?,
            BodyFormat::Form => form(verified.body()),
        },
    };
    let mut body = Value::Object(fields);
    for locator in json_strings {
        let Locator::Body(pointer) = locator else { continue };
        if let Some(found) = body.pointer_mut(pointer)
            && let Some(inner) = found.as_str().and_then(|text| serde_json::from_str(text).ok())
        {
            *found = inner;
        }
    }
    fields::not_too_deep(&body)?;
    Ok(body)
}

/// A field that is repeated is a list.
fn form(text: &[u8]) -> Map<String, Value> {
    let mut fields = Map::new();
    for (name, value) in form_urlencoded::parse(text) {
        let value = Value::from(value);
        match fields.get_mut(name.as_ref()) {
            None => {
                fields.insert(name.into_owned(), value);
            }
            Some(Value::Array(values)) => values.push(value),
            Some(first) => *first = Value::Array(vec![first.take(), value]),
        }
    }
    fields
}
