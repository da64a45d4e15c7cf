//! The metrics of the worker. What they mean stands in
//! `service::telemetry::names`; what is measured now and then, in `measure`.

use std::sync::LazyLock;

use opentelemetry::global;
use opentelemetry::metrics::{Counter, Gauge, Histogram};
use service::telemetry::names::metric;

pub(crate) struct Metrics {
    pub(crate) batch_events: Histogram<f64>,
    pub(crate) batch_duration: Histogram<f64>,
    pub(crate) events: Counter<u64>,
    pub(crate) log_skipped: Counter<u64>,
    pub(crate) conflicts: Counter<u64>,
    pub(crate) credentials_opened: Counter<u64>,
    pub(crate) api_refusals: Counter<u64>,
    pub(crate) oauth_requests: Counter<u64>,
    pub(crate) archive_failing: Gauge<f64>,
    pub(crate) archive_sequence: Gauge<f64>,
    pub(crate) archive_segments: Gauge<f64>,
    pub(crate) archive_events: Counter<u64>,
    pub(crate) push_attempts: Counter<u64>,
    pub(crate) push_oldest_age: Gauge<f64>,
    pub(crate) push_paused: Gauge<f64>,
    pub(crate) rebuild_progress: Gauge<f64>,
    pub(crate) rebuild_events: Counter<u64>,
}

/// First used after telemetry is set up; without an exporter it counts nothing.
pub(crate) static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    let meter = &global::meter("mooring-worker");
    Metrics {
        batch_events: metric::PROJECTION_BATCH_EVENTS.histogram(meter),
        batch_duration: metric::PROJECTION_BATCH_DURATION.histogram(meter),
        events: metric::PROJECTION_EVENTS.counter(meter),
        log_skipped: metric::LOG_SKIPPED.counter(meter),
        conflicts: metric::PROJECTION_CONFLICTS.counter(meter),
        credentials_opened: metric::CREDENTIALS_OPENED.counter(meter),
        api_refusals: metric::API_REFUSALS.counter(meter),
        oauth_requests: metric::OAUTH_REQUESTS.counter(meter),
        archive_failing: metric::ARCHIVE_FAILING.gauge(meter),
        archive_sequence: metric::ARCHIVE_SEQUENCE.gauge(meter),
        archive_segments: metric::ARCHIVE_SEGMENTS.gauge(meter),
        archive_events: metric::ARCHIVE_EVENTS.counter(meter),
        push_attempts: metric::PUSH_ATTEMPTS.counter(meter),
        push_oldest_age: metric::PUSH_OLDEST_AGE.gauge(meter),
        push_paused: metric::PUSH_PAUSED.gauge(meter),
        rebuild_progress: metric::REBUILD_PROGRESS.gauge(meter),
        rebuild_events: metric::REBUILD_EVENTS.counter(meter),
    }
});
