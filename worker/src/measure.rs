//! What operators ask of the whole: how far the projection is behind the log,
//! how full the log is, what is in Postgres. It is measured now and then, and
//! told at each export, unless it could not be measured lately: no number is
//! better than one from before.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::Client;
use async_nats::connection::State;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::stream::Stream;
use async_nats::jetstream::{self};
use jiff::Timestamp;
use opentelemetry::metrics::AsyncInstrument;
use opentelemetry::{KeyValue, global};
use shared::id::SourceName;
use shared::log::SUBJECT_ROOT;
use shared::stream::{CONSUMER, STREAM};
use shared::telemetry::names::{Instrument, attribute, metric};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::{database, dead_letter, projection};

const MEASURE_EVERY: Duration = Duration::from_secs(5);
/// Counting installations reads an index from end to end.
const COUNT_EVERY: Duration = Duration::from_secs(60);
/// What is older is not told.
const FRESH_FOR: Duration = Duration::from_secs(20);

/// Something measured, and when.
struct Measured<T>(Mutex<Option<(Instant, T)>>);

impl<T> Measured<T> {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(None)))
    }

    fn set(&self, value: T) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), value));
    }

    fn with_fresh(&self, within: Duration, tell: impl FnOnce(&T)) {
        let found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, value)) = found.as_ref().filter(|(at, _)| at.elapsed() < within) {
            tell(value);
        }
    }
}

/// The log, and what of it is not applied.
struct Log {
    events: u64,
    bytes: u64,
    bytes_max: i64,
    lag_events: u64,
    lag_age_s: f64,
    lag_age_of_sources_s: Vec<(SourceName, f64)>,
}

type Labelled = (Vec<KeyValue>, f64);

pub(crate) struct Measurements {
    client: Client,
    pool: PgPool,
    sources: Vec<SourceName>,
    log: Arc<Measured<Log>>,
    postgres_up: Arc<Measured<bool>>,
    dead_letters: Arc<Measured<Vec<Labelled>>>,
    installations: Arc<Measured<Vec<Labelled>>>,
    tokens_expired: Arc<Measured<Vec<Labelled>>>,
}

impl Measurements {
    pub(crate) fn new(client: Client, pool: PgPool, sources: Vec<SourceName>) -> Self {
        let measurements = Self {
            client,
            pool,
            sources,
            log: Measured::new(),
            postgres_up: Measured::new(),
            dead_letters: Measured::new(),
            installations: Measured::new(),
            tokens_expired: Measured::new(),
        };
        measurements.tell();
        measurements
    }

    /// Registers what is told at each export.
    fn tell(&self) {
        let meter = &global::meter("mooring-worker");
        let of_log = |instrument: Instrument, value: fn(&Log) -> f64| {
            let log = Arc::clone(&self.log);
            instrument.observed(meter, move |gauge| {
                log.with_fresh(FRESH_FOR, |log| gauge.observe(value(log), &[]));
            });
        };
        of_log(metric::LOG_EVENTS, |log| float(log.events));
        of_log(metric::LOG_SIZE, |log| float(log.bytes));
        of_log(metric::LOG_SIZE_LIMIT, |log| float(u64::try_from(log.bytes_max).unwrap_or(0)));
        of_log(metric::PROJECTION_LAG_EVENTS, |log| float(log.lag_events));
        of_log(metric::PROJECTION_LAG_AGE, |log| log.lag_age_s);
        let log = Arc::clone(&self.log);
        metric::PROJECTION_SOURCE_LAG_AGE.observed(meter, move |gauge| {
            log.with_fresh(FRESH_FOR, |log| {
                for (source, age) in &log.lag_age_of_sources_s {
                    gauge.observe(*age, &[KeyValue::new(attribute::SOURCE, source.to_string())]);
                }
            });
        });

        let client = self.client.clone();
        metric::NATS_CONNECTED.observed(meter, move |gauge| {
            let connected = client.connection_state() == State::Connected;
            gauge.observe(f64::from(u8::from(connected)), &[]);
        });
        let postgres_up = Arc::clone(&self.postgres_up);
        metric::POSTGRES_UP.observed(meter, move |gauge| {
            postgres_up.with_fresh(FRESH_FOR, |up| gauge.observe(f64::from(u8::from(*up)), &[]));
        });

        let each = |instrument: Instrument, measured: &Arc<Measured<Vec<Labelled>>>| {
            let measured = Arc::clone(measured);
            instrument.observed(meter, move |gauge| {
                measured.with_fresh(FRESH_FOR + COUNT_EVERY, |values| observe(gauge, values));
            });
        };
        each(metric::DEAD_LETTERS, &self.dead_letters);
        each(metric::INSTALLATIONS, &self.installations);
        each(metric::TOKENS_EXPIRED, &self.tokens_expired);
        let dead_letters = Arc::clone(&self.dead_letters);
        metric::DEAD_LETTERS_UNRESOLVED.observed(meter, move |gauge| {
            dead_letters.with_fresh(FRESH_FOR, |values| {
                gauge.observe(values.iter().map(|(_, count)| count).sum(), &[]);
            });
        });
    }

    /// Measures until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut counted: Option<Instant> = None;
        loop {
            match log(&self.client, &self.sources).await {
                Ok(log) => self.log.set(log),
                Err(error) => tracing::debug!(error = %error, "the lag is not known"),
            }
            let is_time = counted.is_none_or(|at| at.elapsed() >= COUNT_EVERY);
            let of_postgres = self.measure_postgres(is_time).await;
            if let Err(error) = &of_postgres {
                tracing::debug!(error = %error, "Postgres cannot be measured");
            } else if is_time {
                counted = Some(Instant::now());
            }
            self.postgres_up.set(of_postgres.is_ok());
            tokio::select! {
                () = tokio::time::sleep(MEASURE_EVERY) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn measure_postgres(&self, count_installations: bool) -> Result<(), sqlx::Error> {
        let mut connection = database::acquire(&self.pool).await?;
        let labelled = |name: &'static str, label: String, count: i64| {
            (vec![KeyValue::new(name, label)], float(u64::try_from(count).unwrap_or(0)))
        };
        let letters = dead_letter::count_unresolved(&mut connection).await?;
        let letters = letters.into_iter();
        self.dead_letters
            .set(letters.map(|(why, count)| labelled(attribute::REASON, why, count)).collect());
        if !count_installations {
            return Ok(());
        }
        let counts = projection::counts(&mut connection).await?.into_iter();
        let count = |(source, status, count): (String, String, i64)| {
            let (mut labels, count) = labelled(attribute::SOURCE, source, count);
            labels.push(KeyValue::new(attribute::STATUS, status));
            (labels, count)
        };
        self.installations.set(counts.map(count).collect());
        let expired = projection::expired_tokens(&mut connection).await?.into_iter();
        self.tokens_expired.set(
            expired.map(|(source, count)| labelled(attribute::SOURCE, source, count)).collect(),
        );
        Ok(())
    }
}

fn observe(gauge: &dyn AsyncInstrument<f64>, values: &[Labelled]) {
    for (labels, value) in values {
        gauge.observe(*value, labels);
    }
}

async fn log(client: &Client, sources: &[SourceName]) -> Result<Log, async_nats::Error> {
    let stream = jetstream::new(client.clone()).get_stream(STREAM).await?;
    let (state, config) = (&stream.cached_info().state, &stream.cached_info().config);
    let consumer: PullConsumer = stream.get_consumer(CONSUMER).await?;
    let info = consumer.cached_info();
    let unacknowledged = u64::try_from(info.num_ack_pending).unwrap_or_default();
    let lag_events = info.num_pending + unacknowledged;
    // Everything up to the ack floor is applied.
    let oldest = info.ack_floor.stream_sequence + 1;
    let mut lag_age_of_sources_s = Vec::new();
    for source in sources {
        let age = if lag_events == 0 {
            Some(0.0)
        } else {
            age_of_next(&stream, format!("{SUBJECT_ROOT}.{source}.>"), oldest).await?
        };
        lag_age_of_sources_s.push((source.clone(), age.unwrap_or_default()));
    }
    let lag_age_s = if lag_events == 0 {
        0.0
    } else {
        age_of_next(&stream, format!("{SUBJECT_ROOT}.>"), oldest).await?.unwrap_or_default()
    };
    Ok(Log {
        events: state.messages,
        bytes: state.bytes,
        bytes_max: config.max_bytes,
        lag_events,
        lag_age_s,
        lag_age_of_sources_s,
    })
}

/// `None` if there is none.
async fn age_of_next(
    stream: &Stream,
    subjects: String,
    from: u64,
) -> Result<Option<f64>, async_nats::Error> {
    use async_nats::jetstream::stream::DirectGetErrorKind;
    let message = match stream.direct_get_next_for_subject(subjects, Some(from)).await {
        Ok(message) => message,
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let published = Timestamp::from_nanosecond(message.time.unix_timestamp_nanos())?;
    Ok(Some(Timestamp::now().duration_since(published).as_secs_f64().max(0.0)))
}

#[expect(clippy::cast_precision_loss, reason = "metrics are floats")]
fn float(number: u64) -> f64 {
    number as f64
}
