//! Applies the log: take what waits, commit it, acknowledge it.

use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use domain::id::StreamSequence;
use eventlog::connect::Connection;
use eventlog::consume::{Batch, CONSUMER, Consumer};
use eventlog::delivery::Delivery;
use eventlog::message::{STREAM, TRACEPARENT};
use eventlog::status;
use futures_util::future::try_join_all;
use opentelemetry::KeyValue;
use service::telemetry::{self, names::attribute};
use sqlx::PgPool;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span, field, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::error_chain::chain;
use crate::live::commit::{self, Arrival, CommitError, Committed, Terms};
use crate::live::skipped::Net;
use crate::metrics::METRICS;
use crate::store::log_identity::{self, OtherLog};

/// While Postgres works on the batch of one, the next is read and prepared by another. They are to
/// each other as workers are: places are locked.
const APPLIERS: usize = 2;
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A connection on which nothing comes any more says nothing of it either. After so long a batch
/// is tried again on another one.
const PATIENCE: Duration = Duration::from_secs(30);
/// A server can be restored under a running worker.
const CHECK_LOG_EVERY: Duration = Duration::from_secs(10);
/// So much of a burst is kept until the next time.
const ASK_FLOOR_EVERY: Duration = Duration::from_millis(200);
/// To know it saves work; nothing depends on it.
const ASK_FLOOR_TIMEOUT: Duration = Duration::from_millis(500);
/// A span with a link to every event of a large batch would be a burden.
const LINKS_MAX: usize = 64;

/// What applies the log.
pub(crate) struct Projector {
    pub(crate) connection: Connection,
    pub(crate) pool: PgPool,
    pub(crate) batch_events_max: usize,
    pub(crate) terms: Terms,
    pub(crate) place_events_max: usize,
}

enum Interrupted {
    Shutdown,
    /// Something is away; the consumer has to be opened again.
    Waiting {
        on: &'static str,
        why: String,
    },
    Fatal(anyhow::Error),
}

impl Interrupted {
    fn waiting_on_the_log(error: &anyhow::Error) -> Self {
        Self::Waiting { on: "the log", why: format!("{error:#}") }
    }
}

impl Projector {
    /// What looks after the consumer.
    pub(crate) fn net(&self) -> Net<'_> {
        Net { connection: &self.connection, pool: &self.pool, terms: &self.terms }
    }

    /// Applies events until `shutdown`. It waits, and says so, while NATS or
    /// Postgres is away; it fails only when going on would do harm.
    pub(crate) async fn run(&self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let appliers = (0..APPLIERS).map(|_| self.keep_applying(&shutdown));
        try_join_all(appliers).await.map(|_| ())
    }

    async fn keep_applying(&self, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let mut backoff = backoff();
        loop {
            let opened = tokio::select! {
                opened = Consumer::open(&self.connection, self.batch_events_max) => opened,
                () = shutdown.cancelled() => return Ok(()),
            };
            let interrupted = match opened {
                Ok(mut consumer) => {
                    tracing::info!("consuming {STREAM}");
                    backoff = self::backoff();
                    let interrupted = self.consume(&mut consumer, shutdown).await;
                    consumer.close().await;
                    interrupted
                }
                Err(error) => Interrupted::waiting_on_the_log(&error),
            };
            match interrupted {
                Interrupted::Shutdown => return Ok(()),
                Interrupted::Fatal(error) => return Err(error),
                Interrupted::Waiting { on, why } => {
                    let wait = backoff.next().unwrap_or(BACKOFF_MAX);
                    tracing::warn!(why, again_in_ms = wait.as_millis(), "waiting for {on}");
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = shutdown.cancelled() => return Ok(()),
                    }
                }
            }
        }
    }

    async fn consume(&self, consumer: &mut Consumer, shutdown: &CancellationToken) -> Interrupted {
        let mut checked: Option<Instant> = None;
        let mut floor = AckFloor::default();
        loop {
            if checked.is_none_or(|at| at.elapsed() >= CHECK_LOG_EVERY) {
                if let Err(interrupted) = self.check_log().await {
                    return interrupted;
                }
                checked = Some(Instant::now());
            }
            let taken = tokio::select! {
                taken = consumer.take() => taken,
                () = tokio::time::sleep(CHECK_LOG_EVERY) => continue,
                () = shutdown.cancelled() => return Interrupted::Shutdown,
            };
            let batch = match taken {
                Ok(batch) => batch,
                Err(error) => return Interrupted::waiting_on_the_log(&error),
            };
            let arrival = Arrival::Consumed {
                ack_floor: floor.get(&self.connection).await,
                place_events_max: self.place_events_max,
            };
            match self.commit(&batch, arrival, shutdown).await {
                Ok(()) => consumer.ack(batch).await,
                Err(interrupted) => return interrupted,
            }
        }
    }

    /// A log that was recreated or restored must not be mixed with the journal.
    async fn check_log(&self) -> Result<(), Interrupted> {
        log_identity::check(&self.connection, &self.pool).await.map_err(|error| {
            if error.is::<OtherLog>() {
                Interrupted::Fatal(error)
            } else if error.is::<sqlx::Error>() {
                Interrupted::Waiting { on: "Postgres", why: format!("{error:#}") }
            } else {
                Interrupted::waiting_on_the_log(&error)
            }
        })
    }

    async fn commit(
        &self,
        batch: &Batch,
        arrival: Arrival,
        shutdown: &CancellationToken,
    ) -> Result<(), Interrupted> {
        let span = batch_span(&batch.deliveries);
        let applied = self.apply(&batch.deliveries, arrival, shutdown);
        let committed = applied.instrument(span.clone()).await?;
        span.record("mooring.batch.appended", committed.appended);
        span.record("mooring.batch.duplicates", committed.duplicates);
        span.record("mooring.batch.dead_letters", committed.dead_letters);
        Ok(())
    }

    /// Applies the batch, waiting as long as Postgres is away.
    async fn apply(
        &self,
        deliveries: &[Delivery],
        arrival: Arrival,
        shutdown: &CancellationToken,
    ) -> Result<Committed, Interrupted> {
        let (mut backoff, mut patience) = (backoff(), PATIENCE);
        loop {
            let started = Instant::now();
            let applied = commit::apply(&self.pool, deliveries, &self.terms, arrival);
            let applied = timeout(patience, applied).await;
            match applied.unwrap_or_else(|_elapsed| Err(unanswered(&mut patience))) {
                Ok(committed) => {
                    observe(deliveries.len(), &committed, started);
                    return Ok(committed);
                }
                Err(CommitError::Retry(error)) => {
                    let wait = backoff.next().unwrap_or(BACKOFF_MAX);
                    let why = chain(&error);
                    tracing::warn!(why, again_in_ms = wait.as_millis(), "waiting for Postgres");
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        // Nothing was acknowledged, so it comes again.
                        () = shutdown.cancelled() => return Err(Interrupted::Shutdown),
                    }
                }
                Err(
                    error @ (CommitError::Unappliable(_)
                    | CommitError::SetAside { .. }
                    | CommitError::OtherLog(_)),
                ) => {
                    return Err(Interrupted::Fatal(error.into()));
                }
            }
        }
    }
}

/// Up to where every event of the log has been committed. An old answer is right,
/// too, because the floor only rises.
#[derive(Default)]
struct AckFloor {
    known: StreamSequence,
    asked: Option<Instant>,
}

impl AckFloor {
    async fn get(&mut self, connection: &Connection) -> StreamSequence {
        if self.asked.is_none_or(|at| at.elapsed() >= ASK_FLOOR_EVERY) {
            self.asked = Some(Instant::now());
            match timeout(ASK_FLOOR_TIMEOUT, status::consumer(connection)).await {
                Ok(Ok(consumer)) => self.known = StreamSequence(consumer.acknowledged_up_to),
                Ok(Err(error)) => tracing::debug!(%error, "the ack floor is not known"),
                Err(_) => tracing::debug!("the ack floor is not known in time"),
            }
        }
        self.known
    }
}

/// The next time it may take longer, because this may have been work and no silence.
fn unanswered(patience: &mut Duration) -> CommitError {
    let why = format!("a batch was not committed within {} s", patience.as_secs());
    *patience = patience.saturating_mul(2);
    CommitError::Retry(sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, why)))
}

fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_jitter()
        .with_min_delay(BACKOFF_MIN)
        .with_max_delay(BACKOFF_MAX)
        .without_max_times()
        .build()
}

fn batch_span(deliveries: &[Delivery]) -> Span {
    let span = info_span!(
        "batch",
        otel.name = format!("process {STREAM}"),
        otel.kind = "consumer",
        messaging.system = "nats",
        messaging.operation.name = "process",
        messaging.operation.r#type = "process",
        messaging.destination.name = STREAM,
        messaging.consumer.group.name = CONSUMER,
        messaging.batch.message_count = deliveries.len(),
        mooring.batch.appended = field::Empty,
        mooring.batch.duplicates = field::Empty,
        mooring.batch.dead_letters = field::Empty,
    );
    let contexts = deliveries.iter().filter_map(|delivery| delivery.headers.get(TRACEPARENT));
    for context in contexts.filter_map(telemetry::remote).take(LINKS_MAX) {
        span.add_link(context);
    }
    span
}

fn observe(events: usize, committed: &Committed, started: Instant) {
    for ((source, kind, result), count) in &committed.by_kind {
        let of = [
            KeyValue::new(attribute::SOURCE, source.clone()),
            KeyValue::new(attribute::EVENT_TYPE, *kind),
            KeyValue::new(attribute::RESULT, *result),
        ];
        METRICS.events.add(*count, &of);
    }
    if committed.conflicts > 0 {
        METRICS.conflicts.add(u64::try_from(committed.conflicts).unwrap_or(u64::MAX), &[]);
    }
    METRICS.batch_events.record(small(events), &[]);
    METRICS.batch_duration.record(started.elapsed().as_secs_f64(), &[]);
    tracing::debug!(events, ?committed, "applied a batch");
}

/// A batch has a few hundred events.
fn small(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}
