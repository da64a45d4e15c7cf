//! The metrics of ingest. What they mean stands in `shared::telemetry::names`.

use std::sync::{Arc, LazyLock};

use async_nats::Client;
use async_nats::connection::State;
use opentelemetry::global;
use opentelemetry::metrics::{Counter, Histogram};
use shared::data_key_pool::DataKeyPool;
use shared::telemetry::names::metric;

use crate::publish::Publisher;
use crate::settings::Source;

pub(crate) struct Metrics {
    pub(crate) request_duration: Histogram<f64>,
    pub(crate) ack_duration: Histogram<f64>,
    pub(crate) ack_deadline_used: Histogram<f64>,
    pub(crate) refusals: Counter<u64>,
    pub(crate) acks_missed: Counter<u64>,
    pub(crate) publish_retries: Counter<u64>,
    pub(crate) publish_batch_events: Histogram<f64>,
    pub(crate) secrets_sealed: Counter<u64>,
    pub(crate) oauth_requests: Counter<u64>,
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
        publish_retries: metric::PUBLISH_RETRIES.counter(meter),
        publish_batch_events: metric::PUBLISH_BATCH_EVENTS.histogram(meter),
        secrets_sealed: metric::SECRETS_SEALED.counter(meter),
        oauth_requests: metric::OAUTH_REQUESTS.counter(meter),
    }
});

/// Told at each export.
pub(crate) fn observe(client: Client, publisher: Arc<Publisher>, data_keys: Arc<DataKeyPool>) {
    let meter = &global::meter("mooring-ingest");
    let flag = |is: bool| f64::from(u8::from(is));
    metric::NATS_CONNECTED.observed(meter, move |gauge| {
        gauge.observe(flag(client.connection_state() == State::Connected), &[]);
    });
    metric::LOG_CONTRACT_MET.observed(meter, move |gauge| {
        gauge.observe(flag(publisher.contract().is_met()), &[]);
    });
    metric::DATA_KEYS_READY.observed(meter, move |gauge| {
        gauge.observe(f64::from(u32::try_from(data_keys.ready()).unwrap_or(u32::MAX)), &[]);
    });
}

/// Counters that alerts look at are there before the first of what they count:
/// nobody sees an increase from nothing.
pub(crate) fn zero<'a>(sources: impl Iterator<Item = &'a Source>) {
    for source in sources {
        METRICS.acks_missed.add(0, std::slice::from_ref(&source.attribute));
    }
}
