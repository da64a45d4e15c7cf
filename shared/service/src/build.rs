//! Which build this is, and that it lives.

use std::sync::LazyLock;

use axum::Json;
use opentelemetry::{KeyValue, global};
use serde_json::{Value, json};

use crate::telemetry::names::{attribute, metric};

/// The version of the release, and behind a `+` the commit where whoever built it told
/// `MOORING_REVISION`, as in <https://semver.org/#spec-item-10>.
pub fn version() -> &'static str {
    static VERSION: LazyLock<String> =
        LazyLock::new(|| text(env!("CARGO_PKG_VERSION"), option_env!("MOORING_REVISION")));
    &VERSION
}

fn text(release: &str, revision: Option<&str>) -> String {
    match revision {
        Some(revision) if !revision.is_empty() => format!("{release}+{revision}"),
        _ => release.to_owned(),
    }
}

/// For whoever comes.
pub async fn livez() -> &'static str {
    "ok\n"
}

/// For those who run it.
pub async fn livez_with_version() -> Json<Value> {
    Json(json!({ "version": version() }))
}

pub(crate) fn observe() {
    let version = [KeyValue::new(attribute::SERVICE_VERSION, version())];
    metric::BUILD_INFO.observed(&global::meter("mooring"), move |gauge| {
        gauge.observe(1.0, &version);
    });
}

#[cfg(test)]
mod tests {
    use super::text;

    #[test]
    fn the_commit_stands_behind_the_release() {
        assert_eq!(text("1.2.3", Some("0ab19529")), "1.2.3+0ab19529");
        assert_eq!(text("1.2.3", Some("")), "1.2.3");
        assert_eq!(text("1.2.3", None), "1.2.3");
    }
}
