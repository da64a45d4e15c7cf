//! Records who opened which credential before it is answered, and who was refused soon
//! after. All that waits goes into Postgres together, so the chain of records costs one
//! commit for many.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry::KeyValue;
use service::telemetry::names::attribute;
use sqlx::PgPool;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use super::denials::{Denial, Denials};
use crate::error_chain::chain;
use crate::metrics::METRICS;
use crate::store::access::{self, Entry};
use crate::store::database;

/// Openings that wait to be recorded; who comes later is told to come again.
const QUEUE_MAX: usize = 1_024;
/// Recorded together. Postgres takes a thousand.
const BATCH_MAX: usize = 256;
/// Refusals are recorded so often.
const DENIALS_EVERY: Duration = Duration::from_secs(10);
const RECORD_TIMEOUT: Duration = Duration::from_secs(5);

/// The access could not be recorded, so it does not happen.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum NotRecorded {
    #[error("too many openings wait to be recorded")]
    Busy,
    #[error("recording the access: {0}")]
    Postgres(Arc<sqlx::Error>),
    #[error("recording the access: no answer in time")]
    TimedOut,
}

struct Opening {
    entry: Entry,
    recorded: oneshot::Sender<Result<(), NotRecorded>>,
}

/// Where accesses are told.
#[derive(Clone)]
pub(crate) struct Recorder {
    openings: mpsc::Sender<Opening>,
    denials: Arc<Mutex<Denials>>,
}

/// What writes them down.
pub(crate) struct Writer {
    pool: PgPool,
    openings: mpsc::Receiver<Opening>,
    denials: Arc<Mutex<Denials>>,
    /// Refusals that could not be recorded yet: as many as one take gives.
    unrecorded: Vec<Entry>,
}

pub(crate) fn start(pool: PgPool) -> (Recorder, Writer) {
    let (sender, openings) = mpsc::channel(QUEUE_MAX);
    let denials = Arc::<Mutex<Denials>>::default();
    let recorder = Recorder { openings: sender, denials: Arc::clone(&denials) };
    (recorder, Writer { pool, openings, denials, unrecorded: Vec::new() })
}

impl Recorder {
    /// Returns when it is committed.
    pub(crate) async fn opened(&self, entry: Entry) -> Result<(), NotRecorded> {
        let (recorded, answer) = oneshot::channel();
        let sent = self.openings.try_send(Opening { entry, recorded });
        sent.map_err(|_| NotRecorded::Busy)?;
        answer.await.unwrap_or(Err(NotRecorded::TimedOut))
    }

    /// Nobody waits for it.
    pub(crate) fn refused(&self, denial: Denial, trace_id: Option<String>) {
        let caller = denial.caller.clone().unwrap_or_default();
        let of = [
            KeyValue::new(attribute::CALLER, caller),
            KeyValue::new(attribute::REASON, denial.reason),
        ];
        METRICS.api_refusals.add(1, &of);
        let mut denials = self.denials.lock().unwrap_or_else(PoisonError::into_inner);
        denials.note(denial, trace_id, Instant::now());
    }
}

impl Writer {
    /// Until nobody is left who could tell anything.
    pub(crate) async fn run(mut self) {
        let mut tick = tokio::time::interval(DENIALS_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut openings = Vec::new();
            tokio::select! {
                received = self.openings.recv_many(&mut openings, BATCH_MAX) => {
                    if received == 0 {
                        break;
                    }
                    self.record_openings(openings).await;
                }
                _ = tick.tick() => self.record_denials().await,
            }
        }
        self.record_denials().await;
    }

    async fn record_openings(&self, openings: Vec<Opening>) {
        // Who has given up waiting gets no secret, and has no record.
        let waiting = openings.into_iter().filter(|opening| !opening.recorded.is_closed());
        let (entries, answers): (Vec<Entry>, Vec<_>) =
            waiting.map(|Opening { entry, recorded }| (entry, recorded)).unzip();
        let result = self.record(&entries).await;
        for answer in answers {
            answer.send(result.clone()).ok(); // nobody waits any more
        }
    }

    async fn record_denials(&mut self) {
        // What could not be recorded comes first. Meanwhile the others are counted.
        if self.unrecorded.is_empty() {
            let mut denials = self.denials.lock().unwrap_or_else(PoisonError::into_inner);
            self.unrecorded = denials.take();
        }
        while !self.unrecorded.is_empty() {
            let batch: Vec<Entry> = self.unrecorded.iter().take(BATCH_MAX).cloned().collect();
            match self.record(&batch).await {
                Ok(()) => drop(self.unrecorded.drain(..batch.len())),
                Err(error) => {
                    tracing::warn!(%error, "refused requests are recorded later");
                    return;
                }
            }
        }
    }

    async fn record(&self, entries: &[Entry]) -> Result<(), NotRecorded> {
        if entries.is_empty() {
            return Ok(());
        }
        let recording = async {
            let mut connection = database::acquire(&self.pool).await?;
            access::record(&mut connection, entries).await
        };
        match tokio::time::timeout(RECORD_TIMEOUT, recording).await {
            Ok(recorded) => recorded.map_err(|error| {
                tracing::debug!(error = chain(&error), "an access was not recorded");
                NotRecorded::Postgres(Arc::new(error))
            }),
            Err(_elapsed) => Err(NotRecorded::TimedOut),
        }
    }
}
