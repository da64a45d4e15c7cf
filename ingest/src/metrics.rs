//! The metrics of ingest. Their names stand in `shared::telemetry::names`.

use std::sync::LazyLock;

use opentelemetry::global;
use opentelemetry::metrics::{Counter, Histogram};
use shared::telemetry::names::{BATCH_BUCKETS, DURATION_BUCKETS_S, metric};

pub(crate) struct Metrics {
    pub(crate) request_duration: Histogram<f64>,
    pub(crate) ack_duration: Histogram<f64>,
    pub(crate) refusals: Counter<u64>,
    pub(crate) acks_missed: Counter<u64>,
    pub(crate) publish_retries: Counter<u64>,
    pub(crate) publish_batch_events: Histogram<u64>,
    pub(crate) oauth_requests: Counter<u64>,
}

/// First used after telemetry is set up; without an exporter it counts nothing.
pub(crate) static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    let meter = global::meter("mooring-ingest");
    Metrics {
        request_duration: meter
            .f64_histogram(metric::HTTP_SERVER_REQUEST_DURATION)
            .with_unit("s")
            .with_description("Duration of HTTP server requests.")
            .with_boundaries(DURATION_BUCKETS_S.to_vec())
            .build(),
        ack_duration: meter
            .f64_histogram(metric::CALLBACK_ACK_DURATION)
            .with_unit("s")
            .with_description(
                "Time from the headers of a callback to its answer, by source and result: \
                 appended, duplicate, refused or failed.",
            )
            .with_boundaries(DURATION_BUCKETS_S.to_vec())
            .build(),
        refusals: meter
            .u64_counter(metric::CALLBACK_REFUSALS)
            .with_unit("{callback}")
            .with_description("Callbacks answered 4xx, by source and reason.")
            .build(),
        acks_missed: meter
            .u64_counter(metric::CALLBACK_ACKS_MISSED)
            .with_unit("{callback}")
            .with_description("Callbacks whose 2xx the platform may not have got.")
            .build(),
        publish_retries: meter
            .u64_counter(metric::PUBLISH_RETRIES)
            .with_unit("{attempt}")
            .with_description("Attempts to append to the log that were not acknowledged.")
            .build(),
        publish_batch_events: meter
            .u64_histogram(metric::PUBLISH_BATCH_EVENTS)
            .with_unit("{event}")
            .with_description("Events that were sent to the log together.")
            .with_boundaries(BATCH_BUCKETS.to_vec())
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
