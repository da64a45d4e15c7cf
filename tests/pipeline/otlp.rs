//! A receiver of OTLP over HTTP, as a collector is one.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::metrics::v1::{Metric, metric::Data, number_data_point};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::net::TcpListener;

use crate::world::Setup;

#[derive(Clone, Default)]
pub(crate) struct Receiver(Arc<Mutex<Received>>);

#[derive(Default)]
struct Received {
    bytes: Vec<u8>,
    spans: Vec<Span>,
    metrics: Vec<Metric>,
    logs: Vec<LogRecord>,
}

impl Receiver {
    /// Listens until the runtime of the test ends. The set-up makes services
    /// export to it, often.
    pub(crate) async fn start(setup: Setup) -> (Self, Setup) {
        let receiver = Self::default();
        let router = Router::new()
            .route("/v1/traces", post(traces))
            .route("/v1/metrics", post(metrics))
            .route("/v1/logs", post(logs))
            .with_state(receiver.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let setup = setup
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
            .env("OTEL_BSP_SCHEDULE_DELAY", 100)
            .env("OTEL_BLRP_SCHEDULE_DELAY", 100)
            .env("OTEL_METRIC_EXPORT_INTERVAL", 200);
        (receiver, setup)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().bytes.clone()
    }

    pub(crate) fn spans(&self, name: &str) -> Vec<Span> {
        let received = self.0.lock().unwrap();
        received.spans.iter().filter(|span| span.name == name).cloned().collect()
    }

    pub(crate) fn logs(&self, body: &str) -> Vec<LogRecord> {
        let received = self.0.lock().unwrap();
        let says = |log: &&LogRecord| {
            let found = log.body.as_ref().and_then(|found| found.value.clone());
            found == Some(Value::StringValue(body.to_owned()))
        };
        received.logs.iter().filter(says).cloned().collect()
    }

    /// The last value of a metric, where the attributes are as given: the sum of
    /// a counter, the count of a histogram, the value of a gauge.
    pub(crate) fn metric(&self, name: &str, attributes: &[(&str, &str)]) -> Option<f64> {
        let received = self.0.lock().unwrap();
        let metrics = received.metrics.iter().rev().filter(|metric| metric.name == name);
        metrics.filter_map(|metric| value(metric.data.as_ref()?, attributes)).next()
    }
}

fn value(data: &Data, attributes: &[(&str, &str)]) -> Option<f64> {
    let number = |points: &[opentelemetry_proto::tonic::metrics::v1::NumberDataPoint]| {
        let point = points.iter().find(|point| has(&point.attributes, attributes))?;
        match point.value? {
            number_data_point::Value::AsDouble(value) => Some(value),
            number_data_point::Value::AsInt(value) => Some(value as f64),
        }
    };
    match data {
        Data::Sum(sum) => number(&sum.data_points),
        Data::Gauge(gauge) => number(&gauge.data_points),
        Data::Histogram(histogram) => {
            let found = histogram.data_points.iter().find(|it| has(&it.attributes, attributes));
            found.map(|point| point.count as f64)
        }
        _ => None,
    }
}

fn has(found: &[KeyValue], expected: &[(&str, &str)]) -> bool {
    expected.iter().all(|(name, value)| attribute(found, name).as_deref() == Some(value))
}

/// An attribute as text.
pub(crate) fn attribute(attributes: &[KeyValue], name: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == name)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        Value::BoolValue(yes) => Some(yes.to_string()),
        other => Some(format!("{other:?}")),
    }
}

async fn traces(State(Receiver(received)): State<Receiver>, body: Bytes) {
    let request = ExportTraceServiceRequest::decode(body.clone()).unwrap();
    let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
    let mut received = received.lock().unwrap();
    received.spans.extend(scopes.flat_map(|scope| scope.spans));
    received.bytes.extend(body);
}

async fn metrics(State(Receiver(received)): State<Receiver>, body: Bytes) {
    let request = ExportMetricsServiceRequest::decode(body.clone()).unwrap();
    let scopes = request.resource_metrics.into_iter().flat_map(|resource| resource.scope_metrics);
    let mut received = received.lock().unwrap();
    received.metrics.extend(scopes.flat_map(|scope| scope.metrics));
    received.bytes.extend(body);
}

async fn logs(State(Receiver(received)): State<Receiver>, body: Bytes) {
    let request = ExportLogsServiceRequest::decode(body.clone()).unwrap();
    let scopes = request.resource_logs.into_iter().flat_map(|resource| resource.scope_logs);
    let mut received = received.lock().unwrap();
    received.logs.extend(scopes.flat_map(|scope| scope.log_records));
    received.bytes.extend(body);
}
