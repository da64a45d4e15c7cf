//! OpenTelemetry: traces, metrics and logs over OTLP, set up by the standard
//! `OTEL_*` variables and off without an endpoint
//! (<https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>).
//! Metrics for Prometheus to scrape, where `OTEL_METRICS_EXPORTER` says so.
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
use opentelemetry::{Context, KeyValue, global};
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

use domain::seal::random_token;

mod exporters;
pub mod names;
mod prometheus;

use exporters::{Protocol, Signal};
use names::attribute;

use crate::build;

/// How long the last spans, metrics and logs may take to leave.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// What runs until it is told to stop.
const SERVICES: [&str; 2] = ["mooring-ingest", "mooring-worker"];

type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The exporters; [`Telemetry::shutdown`] sends what they still hold.
#[derive(Default)]
struct Telemetry {
    traces: Option<SdkTracerProvider>,
    metrics: Option<SdkMeterProvider>,
    logs: Option<SdkLoggerProvider>,
}

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("setting up the OTLP exporter")]
    Exporter(#[from] ExporterBuildError),
    #[error("{variable} must be {expected}, not '{found}'")]
    Variable { variable: String, expected: &'static str, found: String },
    #[error("listening for Prometheus on {address}")]
    Prometheus { address: String, source: std::io::Error },
    #[error("setting up the metrics for Prometheus")]
    Reader(#[source] opentelemetry_sdk::error::OTelSdkError),
    #[error("telemetry was set up twice")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
    #[error("starting the runtime")]
    Runtime(#[from] std::io::Error),
}

/// Runs a process with telemetry: `work` on a runtime, and afterwards the last
/// export, which may need the runtime.
pub fn run<T, E: From<TelemetryError>>(
    service: &'static str,
    env: Env<'_>,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(TelemetryError::from)?;
    let telemetry = {
        let _entered = runtime.enter(); // gRPC spawns its connections here
        init(service, env)?
    };
    let result = runtime.block_on(work);
    telemetry.shutdown();
    result
}

/// Starts telemetry for the whole process.
fn init(service: &'static str, env: Env<'_>) -> Result<Telemetry, TelemetryError> {
    crate::http_client::use_ring();
    let instance = KeyValue::new("service.instance.id", random_token());
    let version = KeyValue::new(attribute::SERVICE_VERSION, build::version());
    // What the environment says of the resource counts before what we say.
    let resource = Resource::builder_empty()
        .with_service_name(service)
        .with_attributes([instance, version])
        .with_detectors(&exporters::resource_detectors())
        .build();
    let mut telemetry = Telemetry::default();
    if exporters::is_on(Signal::Traces, env) {
        let exporter = match exporters::protocol(Signal::Traces, env)? {
            Protocol::Grpc => SpanExporter::builder().with_tonic().build()?,
            Protocol::HttpProtobuf => SpanExporter::builder().with_http().build()?,
        };
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.clone())
            .with_batch_exporter(exporter)
            .build();
        telemetry.traces = Some(provider);
    }
    let mut metrics = SdkMeterProvider::builder().with_resource(resource.clone());
    let mut has_metrics = false;
    if exporters::is_on(Signal::Metrics, env) {
        let exporter = match exporters::protocol(Signal::Metrics, env)? {
            Protocol::Grpc => MetricExporter::builder().with_tonic().build()?,
            Protocol::HttpProtobuf => MetricExporter::builder().with_http().build()?,
        };
        metrics = metrics.with_periodic_exporter(exporter);
        has_metrics = true;
    }
    if let Some(reader) = prometheus::reader(SERVICES.contains(&service), env)? {
        metrics = metrics.with_reader(reader);
        has_metrics = true;
    }
    if has_metrics {
        let provider = metrics.build();
        global::set_meter_provider(provider.clone());
        if SERVICES.contains(&service) {
            build::observe();
        }
        telemetry.metrics = Some(provider);
    }
    if exporters::is_on(Signal::Logs, env) {
        let exporter = match exporters::protocol(Signal::Logs, env)? {
            Protocol::Grpc => LogExporter::builder().with_tonic().build()?,
            Protocol::HttpProtobuf => LogExporter::builder().with_http().build()?,
        };
        let provider = SdkLoggerProvider::builder()
            .with_resource(resource)
            .with_batch_exporter(exporter)
            .build();
        telemetry.logs = Some(provider);
    }
    telemetry.subscribe(service, env)?;
    Ok(telemetry)
}

impl Telemetry {
    fn subscribe(&self, service: &'static str, env: Env<'_>) -> Result<(), TelemetryError> {
        let level = env("RUST_LOG").unwrap_or_else(|| "info".to_owned());
        let filter = EnvFilter::builder().parse_lossy(level);
        // Lines only. To write the fields of every span as well, on the chance that a line
        // is written inside, costs a quarter of the callbacks per second.
        let lines = filter_fn(|metadata| metadata.is_event()).and(filter);
        // A layer that is not there must not stand here as `None`: spans would be made for it.
        let mut layers = vec![stderr(env).with_filter(lines).boxed()];
        if let Some(provider) = &self.traces {
            // The default extra attributes cost more than the span itself.
            let layer = tracing_opentelemetry::layer()
                .with_tracer(provider.tracer(service))
                .with_location(false)
                .with_threads(false)
                .with_tracked_inactivity(false)
                .with_target(false);
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

    /// Sends what is still held, for a bounded time. It blocks.
    fn shutdown(self) {
        // Errors have nowhere left to go: the exporters are what failed.
        self.traces.map(|provider| provider.shutdown_with_timeout(FLUSH_TIMEOUT).ok());
        self.metrics.map(|provider| provider.shutdown_with_timeout(FLUSH_TIMEOUT).ok());
        self.logs.map(|provider| provider.shutdown_with_timeout(FLUSH_TIMEOUT).ok());
    }
}

fn stderr<S>(env: Env<'_>) -> Box<dyn Layer<S> + Send + Sync>
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
pub use eventlog::message::TRACEPARENT;

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
