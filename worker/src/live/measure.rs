//! What operators ask of the whole: how far the projection is behind the log,
//! how full the log is, what is in Postgres. It is measured now and then, and
//! told at each export, unless it could not be measured lately: no number is
//! better than one from before.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use domain::id::SourceName;
use eventlog::connect::Connection;
use eventlog::message::{all_subjects, subjects_of};
use eventlog::{read, status};
use opentelemetry::metrics::AsyncInstrument;
use opentelemetry::{KeyValue, global};
use service::clock;
use service::telemetry::names::{Instrument, attribute, metric};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::store::database;
use crate::store::dead_letters;
use crate::store::installations;

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
    last_sequence: u64,
    bytes: u64,
    bytes_max: u64,
    age_s: f64,
    lag_events: u64,
    lag_age_s: f64,
    lag_age_of_sources_s: Vec<(SourceName, f64)>,
}

type Labelled = (Vec<KeyValue>, f64);

pub(crate) struct Measurements {
    connection: Connection,
    pool: PgPool,
    sources: Vec<SourceName>,
    log: Arc<Measured<Log>>,
    postgres_up: Arc<Measured<bool>>,
    dead_letters: Arc<Measured<Vec<Labelled>>>,
    installations: Arc<Measured<Vec<Labelled>>>,
    tokens_expired: Arc<Measured<Vec<Labelled>>>,
}

impl Measurements {
    pub(crate) fn new(connection: Connection, pool: PgPool, sources: Vec<SourceName>) -> Self {
        let measurements = Self {
            connection,
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
        of_log(metric::LOG_LAST_SEQUENCE, |log| float(log.last_sequence));
        of_log(metric::LOG_SIZE, |log| float(log.bytes));
        of_log(metric::LOG_SIZE_LIMIT, |log| float(log.bytes_max));
        of_log(metric::LOG_AGE, |log| log.age_s);
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

        let connection = self.connection.clone();
        metric::NATS_CONNECTED.observed(meter, move |gauge| {
            let connected = connection.is_connected();
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
            match log(&self.connection, &self.sources).await {
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
        let mut postgres = database::acquire(&self.pool).await?;
        let labelled = |name: &'static str, label: String, count: i64| {
            (vec![KeyValue::new(name, label)], float(u64::try_from(count).unwrap_or(0)))
        };
        let letters = dead_letters::count_unresolved(&mut postgres).await?;
        let letters = letters.into_iter();
        self.dead_letters
            .set(letters.map(|(why, count)| labelled(attribute::REASON, why, count)).collect());
        if !count_installations {
            return Ok(());
        }
        let counts = installations::counts(&mut postgres).await?.into_iter();
        let count = |(source, status, count): (String, String, i64)| {
            let (mut labels, count) = labelled(attribute::SOURCE, source, count);
            labels.push(KeyValue::new(attribute::STATUS, status));
            (labels, count)
        };
        self.installations.set(counts.map(count).collect());
        let expired = installations::expired_tokens(&mut postgres).await?.into_iter();
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

async fn log(connection: &Connection, sources: &[SourceName]) -> anyhow::Result<Log> {
    let stream = status::log(connection).await?;
    let consumer = status::consumer(connection).await?;
    let lag_events = consumer.behind();
    // Everything before is applied.
    let oldest = consumer.acknowledged_up_to + 1;
    let age_of = async |subjects: String, from| -> anyhow::Result<f64> {
        let published = read::next_published_at(connection, subjects, from).await?;
        let age = published.map(|at| clock::now().duration_since(at).as_secs_f64());
        Ok(age.unwrap_or_default().max(0.0))
    };
    let age_of_next = async |subjects: String| match lag_events {
        0 => Ok(0.0),
        _ => age_of(subjects, oldest).await,
    };
    let mut lag_age_of_sources_s = Vec::new();
    for source in sources {
        lag_age_of_sources_s.push((source.clone(), age_of_next(subjects_of(source)).await?));
    }
    Ok(Log {
        events: stream.messages,
        last_sequence: stream.last_sequence,
        bytes: stream.bytes,
        bytes_max: stream.bytes_max.unwrap_or_default(),
        age_s: age_of(all_subjects(), stream.first_sequence.max(1)).await?,
        lag_events,
        lag_age_s: age_of_next(all_subjects()).await?,
        lag_age_of_sources_s,
    })
}

#[expect(clippy::cast_precision_loss, reason = "metrics are floats")]
fn float(number: u64) -> f64 {
    number as f64
}
