//! OpenTelemetry: traces, metrics and logs over OTLP, set up by the standard
//! `OTEL_*` variables and off without an endpoint
//! (<https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>).
//! Readable lines on standard error in any case.
//!
//! An exporter that is slow or away never delays a callback: the SDK's batch
//! processors run on threads of their own and drop what does not fit.

use std::collections::HashMap;
use std::fmt;
use std::io::IsTerminal as _;
use std::time::Duration;

use opentelemetry::propagation::{Injector, TextMapPropagator};
use opentelemetry::trace::{SpanContext, TraceContextExt as _, TracerProvider as _};
use opentelemetry::{Context, global};
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_otlp::{ExporterBuildError, LogExporter, MetricExporter, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Span;
use tracing::field::Field;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{EnvFilter, FilterExt as _, FilterFn, LevelFilter, filter_fn};
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

pub mod names;

/// How long the last spans, metrics and logs may take to leave.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// The exporters; [`Telemetry::shutdown`] sends what they still hold.
#[derive(Default)]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
    metrics: Option<SdkMeterProvider>,
    logs: Option<SdkLoggerProvider>,
}

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("setting up the OTLP exporter")]
    Exporter(#[from] ExporterBuildError),
    #[error("telemetry was set up twice")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Starts telemetry for the whole process.
pub fn init(
    service: &'static str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Telemetry, TelemetryError> {
    crate::http_client::use_ring();
    let resource = || Resource::builder().with_service_name(service).build();
    let mut telemetry = Telemetry::default();
    if exports(Signal::Traces, env) {
        let exporter = SpanExporter::builder().with_http().build()?;
        let provider = SdkTracerProvider::builder()
            .with_resource(resource())
            .with_batch_exporter(exporter)
            .build();
        telemetry.traces = Some(provider);
    }
    if exports(Signal::Metrics, env) {
        let exporter = MetricExporter::builder().with_http().build()?;
        let provider = SdkMeterProvider::builder()
            .with_resource(resource())
            .with_periodic_exporter(exporter)
            .build();
        global::set_meter_provider(provider.clone());
        telemetry.metrics = Some(provider);
    }
    if exports(Signal::Logs, env) {
        let exporter = LogExporter::builder().with_http().build()?;
        let provider = SdkLoggerProvider::builder()
            .with_resource(resource())
            .with_batch_exporter(exporter)
            .build();
        telemetry.logs = Some(provider);
    }
    telemetry.subscribe(service, env)?;
    Ok(telemetry)
}

#[derive(Clone, Copy)]
enum Signal {
    Traces,
    Metrics,
    Logs,
}

fn exports(signal: Signal, env: &dyn Fn(&str) -> Option<String>) -> bool {
    let name = match signal {
        Signal::Traces => "TRACES",
        Signal::Metrics => "METRICS",
        Signal::Logs => "LOGS",
    };
    let is = |variable: &str, value: &str| env(variable).is_some_and(|found| found == value);
    let is_set = |variable: &str| env(variable).is_some_and(|found| !found.is_empty());
    let disabled = is("OTEL_SDK_DISABLED", "true") || is(&format!("OTEL_{name}_EXPORTER"), "none");
    let endpoint = is_set("OTEL_EXPORTER_OTLP_ENDPOINT")
        || is_set(&format!("OTEL_EXPORTER_OTLP_{name}_ENDPOINT"));
    endpoint && !disabled
}

impl Telemetry {
    fn subscribe(
        &self,
        service: &'static str,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(), TelemetryError> {
        let level = env("RUST_LOG").unwrap_or_else(|| "info".to_owned());
        let filter = EnvFilter::builder().parse_lossy(level);
        // Lines only. To write the fields of every span as well, on the chance that a line
        // is written inside, costs a quarter of the callbacks per second.
        let lines = filter_fn(|metadata| metadata.is_event()).and(filter);
        // A layer that is not there must not stand here as `None`: spans would be made for it.
        let mut layers = vec![stderr(env).with_filter(lines).boxed()];
        if let Some(provider) = &self.traces {
            let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer(service));
            let layer = layer.with_filter(LevelFilter::INFO).with_filter(ours());
            layers.push(layer.boxed());
        }
        if let Some(provider) = &self.logs {
            let layer = OpenTelemetryTracingBridge::new(provider);
            layers.push(layer.with_filter(LevelFilter::INFO).with_filter(ours()).boxed());
        }
        tracing_subscriber::registry().with(layers).try_init()?;
        Ok(())
    }

    /// Sends what is still held, for a bounded time. It blocks: call it after
    /// the runtime has ended.
    pub fn shutdown(self) {
        // Errors have nowhere left to go: the exporters are what failed.
        self.traces.map(|provider| provider.shutdown_with_timeout(FLUSH_TIMEOUT).ok());
        self.metrics.map(|provider| provider.shutdown_with_timeout(FLUSH_TIMEOUT).ok());
        self.logs.map(|provider| provider.shutdown_with_timeout(FLUSH_TIMEOUT).ok());
    }
}

fn stderr<S>(env: &dyn Fn(&str) -> Option<String>) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    if env("MOORING_LOG_FORMAT").is_some_and(|format| format == "json") {
        layer.json().boxed()
    } else {
        let ansi = std::io::stderr().is_terminal();
        layer.with_ansi(ansi).fmt_fields(debug_fn(readable)).boxed()
    }
}

/// `otel.*` speaks to the exporter, not to people.
fn readable(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    match field.name() {
        "message" => write!(writer, "{value:?} "),
        name if name.starts_with("otel.") => Ok(()),
        name => write!(writer, "{}={value:?} ", name.trim_start_matches("r#")),
    }
}

/// What the exporters do themselves is not exported, or each export would
/// cause the next one.
fn ours() -> FilterFn {
    const OF_THE_EXPORTERS: [&str; 5] = ["opentelemetry", "hyper", "reqwest", "h2", "tonic"];
    filter_fn(|metadata| {
        !OF_THE_EXPORTERS.iter().any(|target| metadata.target().starts_with(target))
    })
}

/// The `traceparent` among the headers of a context. We have no `tracestate`.
struct TraceParent(Option<String>);

impl Injector for TraceParent {
    fn set(&mut self, key: &str, value: String) {
        if key == TRACEPARENT {
            self.0 = Some(value);
        }
    }
}

/// The context of `span` as a header; none without an exporter.
pub fn traceparent(span: &Span) -> Option<String> {
    let mut found = TraceParent(None);
    TraceContextPropagator::new().inject_context(&span.context(), &mut found);
    found.0
}

/// The name of the header that carries a context (W3C Trace Context).
pub const TRACEPARENT: &str = "traceparent";

/// Reads a remote context out of a `traceparent`. It is for links only: a
/// caller must not be able to choose our trace id.
pub fn remote(traceparent: &str) -> Option<SpanContext> {
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier);
    let remote = context.span().span_context().clone();
    remote.is_valid().then_some(remote)
}

/// The trace id of `span` as it is written in logs; none without an exporter.
pub fn trace_id(span: &Span) -> Option<String> {
    let context = span.context();
    let span_context = context.span().span_context().clone();
    span_context.is_valid().then(|| span_context.trace_id().to_string())
}
