//! docs/telemetry.md is made of the names in the code. `MOORING_WRITE_DOCS=1
//! cargo test -p service --test telemetry_docs` writes it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use service::telemetry::names::{Instrument, Kind, SPANS, attribute, metric};

const HEAD: &str = "\
# Telemetry

Made from `shared/service/src/telemetry/names.rs`; a test fails when they differ.

Names follow the OpenTelemetry semantic conventions 1.37 where they have one. The resource has `service.name`
(`mooring-ingest`, `mooring-worker`, `mooring-rebuild`, `mooring-operator`), `service.version` and a `service.instance.id` of each process;
`OTEL_RESOURCE_ATTRIBUTES` adds to it. [The runbooks](runbooks.md) say what to do when an alert fires.
";

/// As Prometheus has it: <https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/>.
fn prometheus_name(of: &Instrument) -> String {
    let mut name = of.name.replace('.', "_");
    match of.unit {
        "s" => name.push_str("_seconds"),
        "By" => name.push_str("_bytes"),
        "1" if of.kind == Kind::Gauge => name.push_str("_ratio"),
        _ => {}
    }
    if of.kind == Kind::Counter {
        name.push_str("_total");
    }
    name
}

fn document() -> String {
    let mut text = HEAD.to_owned();
    text.push_str("\n## Metrics\n\n| metric | in Prometheus | kind | unit | attributes | what it says |\n|---|---|---|---|---|---|\n");
    for found in metric::ALL {
        let kind = match found.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        };
        let attributes: Vec<String> = found.attributes.iter().map(|it| format!("`{it}`")).collect();
        writeln!(
            text,
            "| `{}` | `{}` | {kind} | `{}` | {} | {} |",
            found.name,
            prometheus_name(found),
            found.unit,
            attributes.join(", "),
            found.description
        )
        .unwrap();
    }
    text.push_str("\n## Attributes\n\n| attribute | values |\n|---|---|\n");
    for (name, values) in attribute::ALL {
        writeln!(text, "| `{name}` | {values} |").unwrap();
    }
    text.push_str("\n## Spans\n\n| span | kind | what it is |\n|---|---|---|\n");
    for (name, kind, what) in SPANS {
        writeln!(text, "| `{name}` | {kind} | {what} |").unwrap();
    }
    text
}

#[test]
fn docs_telemetry_md_says_what_the_code_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/telemetry.md");
    if std::env::var_os("MOORING_WRITE_DOCS").is_some() {
        fs::write(&path, document()).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == document(),
        "run: MOORING_WRITE_DOCS=1 cargo test -p service --test telemetry_docs"
    );
}

#[test]
fn every_attribute_of_a_metric_is_explained_and_every_name_is_used_once() {
    let known: Vec<&str> = attribute::ALL.iter().map(|(name, _)| *name).collect();
    let mut names = Vec::new();
    for found in metric::ALL {
        assert!(found.attributes.iter().all(|it| known.contains(it)), "{}", found.name);
        assert!(found.description.ends_with('.') && !found.unit.is_empty(), "{}", found.name);
        names.push(prometheus_name(found));
    }
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count);
}
