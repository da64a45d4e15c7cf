//! What is measured at each export, and counters that are there from the start.

use std::sync::Arc;

use eventlog::connect::Connection;
use eventlog::keys::DataKeyPool;
use opentelemetry::global;
use service::telemetry::names::metric;

use crate::metrics::METRICS;
use crate::publish::Publisher;
use crate::settings::Source;

pub(crate) fn observe(
    connection: Connection,
    publisher: Arc<Publisher>,
    data_keys: Arc<DataKeyPool>,
) {
    let meter = &global::meter("mooring-ingest");
    let flag = |is: bool| f64::from(u8::from(is));
    metric::NATS_CONNECTED.observed(meter, move |gauge| {
        gauge.observe(flag(connection.is_connected()), &[]);
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
    METRICS.log_losses.add(0, &[]);
    for source in sources {
        METRICS.acks_missed.add(0, std::slice::from_ref(&source.attribute));
    }
}
