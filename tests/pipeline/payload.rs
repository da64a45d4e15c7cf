//! Callbacks as Blnk sends them.

use serde_json::{Value, json};

/// Later than every install, so that an installation that was ended had
/// superseded those before it.
pub(crate) const ENDED_AT: &str = "2100-01-01T00:00:00Z";

/// An install of `id` as the only installation of its instance.
pub(crate) fn install(id: &str) -> Value {
    install_in(id, &format!("inst_{id}"))
}

/// An install of `id` in a given instance. The key is made from the id.
pub(crate) fn install_in(id: &str, instance: &str) -> Value {
    json!({
        "installed_app_id": id,
        "app_id": "app_1",
        "instance_id": instance,
        "api_key": api_key(id),
        "api_key_prefix": "blnk_key",
        "granted_permissions": ["data:read", "data:write"],
        "idempotency_key": format!("install:{id}"),
    })
}

pub(crate) fn api_key(id: &str) -> String {
    format!("blnk_key_of_{id}_0123456789")
}

pub(crate) fn uninstall(id: &str) -> Value {
    uninstall_in(id, &format!("inst_{id}"))
}

pub(crate) fn uninstall_in(id: &str, instance: &str) -> Value {
    json!({
        "installed_app_id": id,
        "app_id": "app_1",
        "instance_id": instance,
        "uninstalled_at": ENDED_AT,
        "idempotency_key": format!("uninstall:{id}"),
    })
}

/// The same callback with another secret.
pub(crate) fn with_key(mut callback: Value, api_key: &str) -> Value {
    callback["api_key"] = json!(api_key);
    callback
}

pub(crate) fn without(mut callback: Value, field: &str) -> Value {
    callback.as_object_mut().unwrap().shift_remove(field).unwrap();
    callback
}

pub(crate) fn with(mut callback: Value, field: &str, value: impl Into<Value>) -> Value {
    callback[field] = value.into();
    callback
}
