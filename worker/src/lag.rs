//! How far the projection is behind the log, in events and in time.

use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::{self};
use jiff::Timestamp;
use shared::log::SUBJECT_ROOT;
use shared::stream::{CONSUMER, STREAM};
use tokio_util::sync::CancellationToken;

use crate::metrics::METRICS;

const MEASURE_EVERY: Duration = Duration::from_secs(5);

struct Lag {
    events: u64,
    age_s: f64,
}

/// Measures until `shutdown`.
pub(crate) async fn measure(client: Client, shutdown: CancellationToken) {
    let jetstream = jetstream::new(client);
    loop {
        match lag(&jetstream).await {
            Ok(lag) => {
                METRICS.lag_events.record(lag.events, &[]);
                METRICS.lag_age.record(lag.age_s, &[]);
            }
            Err(error) => tracing::debug!(error = %error, "the lag is not known"),
        }
        tokio::select! {
            () = tokio::time::sleep(MEASURE_EVERY) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

async fn lag(jetstream: &jetstream::Context) -> Result<Lag, async_nats::Error> {
    let stream = jetstream.get_stream_no_info(STREAM).await?;
    let consumer: PullConsumer = stream.get_consumer(CONSUMER).await?;
    let info = consumer.cached_info();
    let unacknowledged = u64::try_from(info.num_ack_pending).unwrap_or_default();
    let events = info.num_pending + unacknowledged;
    if events == 0 {
        return Ok(Lag { events, age_s: 0.0 });
    }
    // Everything up to the ack floor is applied.
    let oldest = info.ack_floor.stream_sequence + 1;
    let subjects = format!("{SUBJECT_ROOT}.>");
    let message = stream.direct_get_next_for_subject(subjects, Some(oldest)).await?;
    let published = Timestamp::from_nanosecond(message.time.unix_timestamp_nanos())?;
    Ok(Lag { events, age_s: Timestamp::now().duration_since(published).as_secs_f64().max(0.0) })
}
