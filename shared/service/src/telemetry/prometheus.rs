//! Metrics for Prometheus to scrape, where `OTEL_METRICS_EXPORTER` names
//! `prometheus`: at `OTEL_EXPORTER_PROMETHEUS_HOST` (localhost) and
//! `OTEL_EXPORTER_PROMETHEUS_PORT` (9464), under `/metrics`.

use std::io::ErrorKind;
use std::net::TcpListener as StdTcpListener;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use opentelemetry_prometheus::PrometheusExporter;
use prometheus::{Registry, TextEncoder};

use super::exporters::{Signal, exporters, is_disabled};
use super::{Env, TelemetryError};

const DEFAULT_PORT: u16 = 9464;

/// Starts the endpoint on the runtime of the caller; `None` where none is asked for.
pub(super) fn reader(
    is_service: bool,
    env: Env<'_>,
) -> Result<Option<PrometheusExporter>, TelemetryError> {
    let is_asked_for = exporters(Signal::Metrics, env).iter().any(|name| name == "prometheus");
    if !is_asked_for || is_disabled(env) {
        return Ok(None);
    }
    let host = env("OTEL_EXPORTER_PROMETHEUS_HOST").unwrap_or_else(|| "localhost".to_owned());
    let port = match env("OTEL_EXPORTER_PROMETHEUS_PORT") {
        None => DEFAULT_PORT,
        Some(text) => text.parse().map_err(|_| TelemetryError::Variable {
            variable: "OTEL_EXPORTER_PROMETHEUS_PORT".to_owned(),
            expected: "a port",
            found: text,
        })?,
    };
    let registry = Registry::new();
    let exporter = opentelemetry_prometheus::exporter().with_registry(registry.clone());
    let exporter = exporter.scope_info_enabled(false).build().map_err(TelemetryError::Reader)?;
    match serve(registry, &host, port) {
        Ok(()) => Ok(Some(exporter)),
        // A command that somebody runs beside a service, which has the port.
        Err(error) if !is_service && error.kind() == ErrorKind::AddrInUse => Ok(None),
        Err(source) => {
            Err(TelemetryError::Prometheus { address: format!("{host}:{port}"), source })
        }
    }
}

fn serve(registry: Registry, host: &str, port: u16) -> std::io::Result<()> {
    let listener = StdTcpListener::bind((host, port))?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let router = Router::new().route("/metrics", get(move || async move { metrics(&registry) }));
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(())
}

fn metrics(registry: &Registry) -> Response {
    match TextEncoder::new().encode_to_string(&registry.gather()) {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
