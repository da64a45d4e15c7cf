//! The callbacks that are sent: installs as Blnk sends them, each of its own.

use serde_json::json;

/// The key of an install callback, by its number.
pub(crate) fn key(number: u64) -> String {
    format!("install:instapp_{number:09}")
}

pub(crate) fn install(number: u64) -> Vec<u8> {
    let callback = json!({
        "installed_app_id": format!("instapp_{number:09}"),
        "app_id": "app_bench",
        "instance_id": format!("inst_{number:09}"),
        "api_key": format!("blnk_{number:040}"),
        "api_key_prefix": "blnk_000",
        "granted_permissions": ["data:read", "data:write", "alerts:read"],
        "idempotency_key": key(number),
    });
    callback.to_string().into_bytes()
}
