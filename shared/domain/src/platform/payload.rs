//! What is kept of a payload: everything but its secrets in plaintext.

use jiff::Timestamp;
use secrecy::SecretString;
use serde_json::{Value, json};

use super::fields::Fields;
use crate::event::{Callback, Fact, Identity, Payload};
use crate::id::IdempotencyKey;

/// Shorter strings stand in payloads by chance.
const SECRET_BYTES_MIN_TO_SEARCH: usize = 8;

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
            fields.values_mut().for_each(|value| replace_secret(value, secret, field));
        }
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A payload to be sealed as a whole, in a form that does not depend on the order
/// of its fields: a retry must not look different.
pub(super) fn sealed(mut payload: Value) -> Payload<SecretString> {
    payload.sort_all_objects();
    Payload::Sealed(payload.to_string().into())
}

/// An event of a kind that the platform added. Which of its fields hold secrets
/// is not known, so the whole payload is sealed.
pub(super) fn unrecognized(
    kind: String,
    identity: Option<Identity>,
    idempotency_key: IdempotencyKey,
    occurred_at: Option<Timestamp>,
    fields: Fields,
) -> Callback {
    Callback {
        app_id: identity.as_ref().map(|identity| identity.app_id.clone()),
        idempotency_key,
        occurred_at,
        fact: Fact::Unrecognized { kind, identity },
        payload: sealed(Value::Object(fields)),
    }
}
