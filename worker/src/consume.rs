//! From JetStream to the commit path and back: take what waits, apply it,
//! acknowledge it.

use std::time::{Duration, Instant};

use async_nats::Client;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::consumer::pull::Batch;
use async_nats::jetstream::{self, Message};
use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use futures_util::stream::StreamExt as _;
use opentelemetry::KeyValue;
use shared::fold::Retention;
use shared::stream::{CONSUMER, STREAM};
use shared::telemetry::names::attribute;
use shared::telemetry::{self, TRACEPARENT};
use sqlx::PgPool;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span, field, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::commit::{self, Arrival, CommitError, Committed, Delivery, chain};
use crate::log_identity::{self, OtherLog};
use crate::metrics::METRICS;

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How long a pull waits for events, and so the longest that stopping waits
/// for an idle one.
const PULL_EXPIRES: Duration = Duration::from_secs(1);
/// The server ends a pull that expired. If it says nothing for so long, it
/// never got it, or has restarted since.
const PULL_LOST: Duration = Duration::from_secs(2);
/// A server can be restored under a running worker.
const CHECK_LOG_EVERY: Duration = Duration::from_secs(10);
/// Events that the server says are pending follow one another faster.
const NEXT_EVENT_WAIT: Duration = Duration::from_millis(10);
/// A span with a link to every event of a large batch would be a burden.
const LINKS_MAX: usize = 64;

pub(crate) struct Consumer {
    pub(crate) client: Client,
    pub(crate) pool: PgPool,
    pub(crate) batch_events_max: usize,
    pub(crate) retention: Retention,
}

/// What was taken, and whether its pull is over.
struct Taken {
    batch: Vec<Message>,
    end: Option<PullEnd>,
}

enum PullEnd {
    Expired,
    Broken(String),
}

enum Interrupted {
    Shutdown,
    /// Pulling failed; the consumer has to be found again.
    Broken(String),
    Fatal(anyhow::Error),
}

impl Consumer {
    /// Consumes until `shutdown`. It waits, and says so, while NATS or Postgres
    /// is away; it fails only when going on would do harm.
    pub(crate) async fn run(&self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let mut backoff = backoff();
        loop {
            let opened = tokio::select! {
                opened = self.open() => opened,
                () = shutdown.cancelled() => return Ok(()),
            };
            let interrupted = match opened {
                Ok(consumer) => {
                    tracing::info!("consuming {STREAM}");
                    backoff = self::backoff();
                    self.consume(&consumer, &shutdown).await
                }
                Err(why) => Interrupted::Broken(why),
            };
            match interrupted {
                Interrupted::Shutdown => return Ok(()),
                Interrupted::Fatal(error) => return Err(error),
                Interrupted::Broken(why) => {
                    let wait = backoff.next().unwrap_or(BACKOFF_MAX);
                    tracing::warn!(why, again_in_ms = wait.as_millis(), "waiting for the log");
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = shutdown.cancelled() => return Ok(()),
                    }
                }
            }
        }
    }

    async fn open(&self) -> Result<PullConsumer, String> {
        let jetstream = jetstream::new(self.client.clone());
        let missing = |error: &dyn std::error::Error| {
            format!(
                "{} (is there a stream and a consumer? `worker migrate` makes them)",
                chain(error)
            )
        };
        let stream = jetstream.get_stream_no_info(STREAM).await.map_err(|error| missing(&error))?;
        stream.get_consumer(CONSUMER).await.map_err(|error| missing(error.as_ref()))
    }

    /// Pulls, applies, and pulls again. Between two pulls the server has
    /// nothing to send us, so that is where we stop: what was delivered to a
    /// worker that has gone would be missing until `ack_wait_ms` is over.
    async fn consume(&self, consumer: &PullConsumer, shutdown: &CancellationToken) -> Interrupted {
        let mut checked: Option<Instant> = None;
        while !shutdown.is_cancelled() {
            if checked.is_none_or(|at| at.elapsed() >= CHECK_LOG_EVERY) {
                if let Err(interrupted) = self.check_log().await {
                    return interrupted;
                }
                checked = Some(Instant::now());
            }
            let pull = consumer.batch().max_messages(self.batch_events_max).expires(PULL_EXPIRES);
            let mut messages = match pull.messages().await {
                Ok(messages) => messages,
                Err(error) => return Interrupted::Broken(chain(&error)),
            };
            loop {
                let Taken { batch, end } = self.take(&mut messages).await;
                if let Err(interrupted) = self.apply_and_ack(&batch, shutdown).await {
                    return interrupted;
                }
                match end {
                    None => {}
                    Some(PullEnd::Expired) => break,
                    Some(PullEnd::Broken(why)) => return Interrupted::Broken(why),
                }
            }
        }
        // The last acknowledgements may not have left yet.
        if let Err(error) = self.client.flush().await {
            tracing::warn!(%error, "the last batch may be delivered again");
        }
        Interrupted::Shutdown
    }

    /// A log that was recreated or restored must not be mixed with the journal.
    async fn check_log(&self) -> Result<(), Interrupted> {
        log_identity::check(&self.client, &self.pool).await.map_err(|error| {
            if error.is::<OtherLog>() {
                Interrupted::Fatal(error)
            } else {
                Interrupted::Broken(format!("{error:#}"))
            }
        })
    }

    /// Waits for one event and takes those that come at once behind it.
    async fn take(&self, messages: &mut Batch) -> Taken {
        let (mut batch, mut patience) = (Vec::new(), PULL_LOST);
        while batch.len() < self.batch_events_max {
            match timeout(patience, messages.next()).await {
                Ok(Some(Ok(message))) => {
                    let more = message.info().is_ok_and(|info| info.pending > 0);
                    batch.push(message);
                    if !more {
                        break;
                    }
                    patience = NEXT_EVENT_WAIT;
                }
                Ok(Some(Err(error))) => {
                    let end = PullEnd::Broken(chain(error.as_ref()));
                    return Taken { batch, end: Some(end) };
                }
                Ok(None) => return Taken { batch, end: Some(PullEnd::Expired) },
                // Others took what was pending.
                Err(_elapsed) if !batch.is_empty() => break,
                Err(_elapsed) => return Taken { batch, end: Some(PullEnd::Expired) },
            }
        }
        Taken { batch, end: None }
    }

    async fn apply_and_ack(
        &self,
        batch: &[Message],
        shutdown: &CancellationToken,
    ) -> Result<(), Interrupted> {
        if batch.is_empty() {
            return Ok(());
        }
        let deliveries: Vec<Delivery> = batch.iter().filter_map(Delivery::of).collect();
        let span = batch_span(&deliveries);
        let committed = self.apply(&deliveries, shutdown).instrument(span.clone()).await?;
        span.record("mooring.batch.appended", committed.appended);
        span.record("mooring.batch.duplicates", committed.duplicates);
        span.record("mooring.batch.dead_letters", committed.dead_letters);
        for message in batch {
            // A lost ack brings the event again, and again it changes nothing.
            if let Err(error) = message.ack().await {
                tracing::warn!(error = %error, "an applied event was not acknowledged");
            }
        }
        Ok(())
    }

    /// Applies the batch, waiting as long as Postgres is away.
    async fn apply(
        &self,
        deliveries: &[Delivery],
        shutdown: &CancellationToken,
    ) -> Result<Committed, Interrupted> {
        let mut backoff = backoff();
        loop {
            let started = Instant::now();
            match commit::apply(&self.pool, deliveries, self.retention, Arrival::Consumed).await {
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
                Err(error @ (CommitError::Unappliable(_) | CommitError::OtherLog(_))) => {
                    return Err(Interrupted::Fatal(error.into()));
                }
            }
        }
    }
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
    for context in contexts.filter_map(|text| telemetry::remote(text)).take(LINKS_MAX) {
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
