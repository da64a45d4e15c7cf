//! Callbacks as Blnk sends them.

use std::sync::LazyLock;

use jiff::Timestamp;
use serde_json::{Value, json};

/// Later than every install, so that an installation that was ended had
/// superseded those before it; and not so late that it would not be believed.
pub(crate) static ENDED_AT: LazyLock<String> = LazyLock::new(|| ended_after(1));

/// So many hours after the test began.
pub(crate) fn ended_after(hours: i64) -> String {
    static BEGAN: LazyLock<Timestamp> = LazyLock::new(Timestamp::now);
    let at = BEGAN.as_second() + hours * 3_600;
    Timestamp::from_second(at).unwrap().to_string()
}

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
        "uninstalled_at": ENDED_AT.as_str(),
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
