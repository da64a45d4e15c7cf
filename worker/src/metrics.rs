//! The metrics of the worker. Their names stand in `shared::telemetry::names`.

use std::sync::LazyLock;

use opentelemetry::global;
use opentelemetry::metrics::{Counter, Gauge, Histogram};
use shared::telemetry::names::{BATCH_BUCKETS, DURATION_BUCKETS_S, metric};

pub(crate) struct Metrics {
    pub(crate) lag_events: Gauge<u64>,
    pub(crate) lag_age: Gauge<f64>,
    pub(crate) batch_events: Histogram<u64>,
    pub(crate) batch_duration: Histogram<f64>,
    pub(crate) events: Counter<u64>,
    pub(crate) conflicts: Counter<u64>,
    pub(crate) credentials_opened: Counter<u64>,
    pub(crate) oauth_requests: Counter<u64>,
}

/// First used after telemetry is set up; without an exporter it counts nothing.
pub(crate) static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    let meter = global::meter("mooring-worker");
    Metrics {
        lag_events: meter
            .u64_gauge(metric::LOG_LAG_EVENTS)
            .with_unit("{event}")
            .with_description("Events in the log that are not applied and acknowledged yet.")
            .build(),
        lag_age: meter
            .f64_gauge(metric::LOG_LAG_AGE)
            .with_unit("s")
            .with_description("Age of the oldest event that is not applied yet; 0 without one.")
            .build(),
        batch_events: meter
            .u64_histogram(metric::BATCH_EVENTS)
            .with_unit("{event}")
            .with_description("Events in one committed batch.")
            .with_boundaries(BATCH_BUCKETS.to_vec())
            .build(),
        batch_duration: meter
            .f64_histogram(metric::BATCH_DURATION)
            .with_unit("s")
            .with_description("Time to commit one batch.")
            .with_boundaries(DURATION_BUCKETS_S.to_vec())
            .build(),
        events: meter
            .u64_counter(metric::EVENTS_APPLIED)
            .with_unit("{event}")
            .with_description(
                "Events taken from the log, by result: appended, duplicate or dead_letter.",
            )
            .build(),
        conflicts: meter
            .u64_counter(metric::CONFLICTS)
            .with_unit("{event}")
            .with_description(
                "Events that an earlier one with the same idempotency key contradicts.",
            )
            .build(),
        credentials_opened: meter
            .u64_counter(metric::CREDENTIALS_OPENED)
            .with_unit("{credential}")
            .with_description("Credentials opened for callers of the read API.")
            .build(),
        oauth_requests: meter
            .u64_counter(metric::OAUTH_REQUESTS)
            .with_unit("{request}")
            .with_description(
                "Requests to platforms' token endpoints, by grant and result: issued, refused or \
                 failed.",
            )
            .build(),
    }
});
