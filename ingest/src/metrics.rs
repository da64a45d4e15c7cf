//! The metrics of ingest. What they mean stands in `service::telemetry::names`.

use std::sync::LazyLock;

use opentelemetry::global;
use opentelemetry::metrics::{Counter, Histogram};
use service::telemetry::names::metric;

pub(crate) struct Metrics {
    pub(crate) request_duration: Histogram<f64>,
    pub(crate) ack_duration: Histogram<f64>,
    pub(crate) ack_deadline_used: Histogram<f64>,
    pub(crate) refusals: Counter<u64>,
    pub(crate) acks_missed: Counter<u64>,
    pub(crate) ignored: Counter<u64>,
    pub(crate) publish_retries: Counter<u64>,
    pub(crate) publish_batch_events: Histogram<f64>,
    pub(crate) secrets_sealed: Counter<u64>,
    pub(crate) oauth_requests: Counter<u64>,
    pub(crate) log_losses: Counter<u64>,
}

/// First used after telemetry is set up; without an exporter it counts nothing.
pub(crate) static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    let meter = &global::meter("mooring-ingest");
    Metrics {
        request_duration: metric::HTTP_SERVER_REQUEST_DURATION.histogram(meter),
        ack_duration: metric::CALLBACK_ACK_DURATION.histogram(meter),
        ack_deadline_used: metric::CALLBACK_ACK_DEADLINE_USED.histogram(meter),
        refusals: metric::CALLBACK_REFUSALS.counter(meter),
        acks_missed: metric::CALLBACK_ACKS_MISSED.counter(meter),
        ignored: metric::CALLBACKS_IGNORED.counter(meter),
        publish_retries: metric::PUBLISH_RETRIES.counter(meter),
        publish_batch_events: metric::PUBLISH_BATCH_EVENTS.histogram(meter),
        secrets_sealed: metric::SECRETS_SEALED.counter(meter),
        oauth_requests: metric::OAUTH_REQUESTS.counter(meter),
        log_losses: metric::LOG_LOSSES.counter(meter),
    }
});
