//! A receiver of OTLP over HTTP and gRPC, as a collector is one.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{
    LogsService, LogsServiceServer,
};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
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
    instances: BTreeSet<String>,
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
        let setup = Self::serve(router, setup).await;
        (receiver, setup.env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"))
    }

    /// The same over gRPC.
    pub(crate) async fn start_grpc(setup: Setup) -> (Self, Setup) {
        let receiver = Self::default();
        let routes = tonic::service::Routes::new(TraceServiceServer::new(receiver.clone()))
            .add_service(MetricsServiceServer::new(receiver.clone()))
            .add_service(LogsServiceServer::new(receiver.clone()));
        let setup = Self::serve(routes.into_axum_router(), setup).await;
        (receiver, setup.env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"))
    }

    async fn serve(router: Router, setup: Setup) -> Setup {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        setup
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
            .env("OTEL_BSP_SCHEDULE_DELAY", 100)
            .env("OTEL_BLRP_SCHEDULE_DELAY", 100)
            .env("OTEL_METRIC_EXPORT_INTERVAL", 200)
    }

    fn keep_traces(&self, request: ExportTraceServiceRequest) {
        let mut received = self.0.lock().unwrap();
        received.bytes.extend(request.encode_to_vec());
        let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        received.spans.extend(scopes.flat_map(|scope| scope.spans));
    }

    fn keep_metrics(&self, request: ExportMetricsServiceRequest) {
        let mut received = self.0.lock().unwrap();
        received.bytes.extend(request.encode_to_vec());
        for resource in request.resource_metrics {
            let of = resource.resource.map(|found| found.attributes).unwrap_or_default();
            received.instances.extend(attribute(&of, "service.instance.id"));
            let scopes = resource.scope_metrics.into_iter();
            received.metrics.extend(scopes.flat_map(|scope| scope.metrics));
        }
    }

    fn keep_logs(&self, request: ExportLogsServiceRequest) {
        let mut received = self.0.lock().unwrap();
        received.bytes.extend(request.encode_to_vec());
        let scopes = request.resource_logs.into_iter().flat_map(|resource| resource.scope_logs);
        received.logs.extend(scopes.flat_map(|scope| scope.log_records));
    }

    /// How many processes there were.
    pub(crate) fn instances(&self) -> usize {
        self.0.lock().unwrap().instances.len()
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

async fn traces(State(receiver): State<Receiver>, body: Bytes) {
    receiver.keep_traces(ExportTraceServiceRequest::decode(body).unwrap());
}

async fn metrics(State(receiver): State<Receiver>, body: Bytes) {
    receiver.keep_metrics(ExportMetricsServiceRequest::decode(body).unwrap());
}

async fn logs(State(receiver): State<Receiver>, body: Bytes) {
    receiver.keep_logs(ExportLogsServiceRequest::decode(body).unwrap());
}

type Answer<T> = Result<tonic::Response<T>, tonic::Status>;

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Answer<ExportTraceServiceResponse> {
        self.keep_traces(request.into_inner());
        Ok(tonic::Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Receiver {
    async fn export(
        &self,
        request: tonic::Request<ExportMetricsServiceRequest>,
    ) -> Answer<ExportMetricsServiceResponse> {
        self.keep_metrics(request.into_inner());
        Ok(tonic::Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Receiver {
    async fn export(
        &self,
        request: tonic::Request<ExportLogsServiceRequest>,
    ) -> Answer<ExportLogsServiceResponse> {
        self.keep_logs(request.into_inner());
        Ok(tonic::Response::new(Default::default()))
    }
}
