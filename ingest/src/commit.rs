//! Group commit: what waits is committed together.
//!
//! A server that syncs always pays one fsync for each message, but about four
//! for an atomic batch of any size. So while batches are on their way callbacks
//! gather, and then go as the next batch; with nothing on its way a callback
//! goes at once, and no timer ever delays it. On three or more replicas the
//! server groups by itself, and each event is published alone.
//!
//! One task owns all of this, so no two events with one message ID are ever on
//! their way at once: a batch that holds a duplicate is refused as a whole.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use domain::id::{MessageId, StreamSequence};
use eventlog::append::{Appended, CommitMode, Failure, Writer, Written};
use eventlog::contract::Contract;
use eventlog::message::LogMessage;
use lru::LruCache;
use opentelemetry::KeyValue;
use service::telemetry::names::attribute;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::metrics::METRICS;

const BACKOFF_MIN: Duration = Duration::from_millis(25);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// Events that wait to be sent. Past it the queue fills, and then callbacks are
/// refused.
const PENDING_MAX: usize = 8_192;
/// The server takes 1,000 members.
const BATCH_EVENTS_MAX: usize = 500;
const BATCH_BYTES_MAX: usize = 1 << 20;
/// With two, each held half of what waited, and cost as much.
const BATCHES_IN_FLIGHT_MAX: usize = 1;
const SINGLES_IN_FLIGHT_MAX: usize = 2_048;
/// Message IDs that are known to be in the log; about 200 bytes each.
const ACKNOWLEDGED_MAX: NonZeroUsize = NonZeroUsize::new(16_384).unwrap();

/// How many events go together, and how many requests are under way at once.
struct Batching {
    events_max: usize,
    in_flight_max: usize,
}

impl Batching {
    fn of(mode: CommitMode) -> Self {
        match mode {
            CommitMode::Group => {
                Self { events_max: BATCH_EVENTS_MAX, in_flight_max: BATCHES_IN_FLIGHT_MAX }
            }
            CommitMode::Single => Self { events_max: 1, in_flight_max: SINGLES_IN_FLIGHT_MAX },
        }
    }
}

pub(crate) enum Submission {
    /// An event to be appended, and whom to tell.
    Append { message: LogMessage, reply: Reply },
    /// Ask the server when this one comes again.
    Forget(MessageId),
    /// Ask the server whatever comes again.
    ForgetAll,
}

pub(crate) type Reply = oneshot::Sender<Result<Published, Failure>>;

/// The event is in the log, on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Published {
    pub(crate) sequence: StreamSequence,
    /// It was in the log before this callback.
    pub(crate) duplicate: bool,
    /// This process has answered the same event with a 2xx before.
    pub(crate) answered_before: bool,
}

impl Published {
    fn first(Appended { sequence, duplicate }: Appended) -> Self {
        Self { sequence, duplicate, answered_before: false }
    }

    fn again(sequence: StreamSequence) -> Self {
        Self { sequence, duplicate: true, answered_before: true }
    }
}

pub(crate) struct Committer {
    writer: Writer,
    contract: watch::Receiver<Contract>,
    queue: mpsc::Receiver<Submission>,
    acknowledged: LruCache<MessageId, StreamSequence>,
    /// Whom to tell, for each event that is pending or on its way.
    waiting: HashMap<MessageId, Vec<Reply>>,
    pending: VecDeque<LogMessage>,
    in_flight: JoinSet<Vec<Written>>,
    backoff: ExponentialBackoff,
    /// How long the next attempt waits, after one that failed.
    delay: Option<Duration>,
}

impl Committer {
    pub(crate) fn new(
        writer: Writer,
        contract: watch::Receiver<Contract>,
        queue: mpsc::Receiver<Submission>,
    ) -> Self {
        Self {
            writer,
            contract,
            queue,
            acknowledged: LruCache::new(ACKNOWLEDGED_MAX),
            waiting: HashMap::new(),
            pending: VecDeque::new(),
            in_flight: JoinSet::new(),
            backoff: backoff(),
            delay: None,
        }
    }

    /// Commits until the queue is closed and nobody waits any more. If it is
    /// dropped, whoever waits is told that the outcome is unknown.
    pub(crate) async fn run(mut self) {
        let mut open = true;
        while open || !self.in_flight.is_empty() {
            let has_room = self.pending.len() < PENDING_MAX;
            tokio::select! {
                submission = self.queue.recv(), if open && has_room => match submission {
                    Some(submission) => self.admit_all(submission),
                    None => open = false,
                },
                Some(written) = self.in_flight.join_next() => {
                    for (message, result) in written.unwrap_or_default() {
                        self.settle(message, result);
                    }
                }
            }
            self.dispatch();
        }
    }

    fn admit_all(&mut self, first: Submission) {
        self.admit(first);
        while self.pending.len() < PENDING_MAX {
            let Ok(submission) = self.queue.try_recv() else { return };
            self.admit(submission);
        }
    }

    fn admit(&mut self, submission: Submission) {
        let (message, reply) = match submission {
            Submission::Append { message, reply } => (message, reply),
            Submission::Forget(id) => {
                self.acknowledged.pop(&id);
                return;
            }
            Submission::ForgetAll => {
                self.acknowledged.clear();
                return;
            }
        };
        if let Some(&sequence) = self.acknowledged.get(&message.id) {
            reply.send(Ok(Published::again(sequence))).ok();
            return;
        }
        let waiting = self.waiting.entry(message.id.clone()).or_default();
        waiting.push(reply);
        // Equal events are appended once.
        if waiting.len() == 1 {
            self.pending.push_back(message);
        }
    }

    /// Sends as much as may be on its way.
    fn dispatch(&mut self) {
        let mode = self.contract.borrow().commit_mode();
        let Batching { events_max, in_flight_max } = Batching::of(mode);
        while self.in_flight.len() < in_flight_max {
            let batch = self.take_batch(events_max);
            if batch.is_empty() {
                return;
            }
            let how = KeyValue::new(attribute::COMMIT_MODE, mode.name());
            METRICS.publish_batch_events.record(batch.len() as f64, &[how]);
            let (writer, delay) = (self.writer.clone(), self.delay.take());
            self.in_flight.spawn(async move {
                if let Some(delay) = delay {
                    tokio::time::sleep(delay).await;
                }
                let (events, started) = (batch.len(), Instant::now());
                let written = writer.write(batch).await;
                let took_us = started.elapsed().as_micros();
                tracing::debug!(events, took_us, "published");
                written
            });
        }
    }

    fn take_batch(&mut self, events_max: usize) -> Vec<LogMessage> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < events_max
            && bytes < BATCH_BYTES_MAX
            && let Some(message) = self.pending.pop_front()
        {
            if self.is_awaited(&message.id) {
                bytes += message.body.len();
                batch.push(message);
            } else {
                // Its callback was answered 503, so the platform takes it as not installed.
                self.waiting.remove(&message.id);
            }
        }
        batch
    }

    fn is_awaited(&self, id: &MessageId) -> bool {
        self.waiting.get(id).is_some_and(|waiting| waiting.iter().any(|reply| !reply.is_closed()))
    }

    fn settle(&mut self, message: LogMessage, result: Result<Appended, Failure>) {
        if result == Err(Failure::Unknown) {
            METRICS.publish_retries.add(1, &[]);
            self.delay = self.delay.or_else(|| self.backoff.next());
            self.pending.push_front(message);
            return;
        }
        let mut outcome = result.map(Published::first);
        let mut told = false;
        for reply in self.waiting.remove(&message.id).unwrap_or_default() {
            told |= reply.send(outcome).is_ok();
            outcome = outcome.map(|published| Published::again(published.sequence));
        }
        if let Ok(Appended { sequence, .. }) = result {
            self.backoff = backoff();
            // Nobody waited any more: its callback was answered 503.
            if told {
                self.acknowledged.put(message.id, sequence);
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
