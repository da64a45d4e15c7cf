//! Consuming the log: what is pulled is held until it is acknowledged, and
//! nothing that is held waits for its redelivery while this process lives.
//!
//! A pull of the client forgets what it has buffered some seconds after it
//! expired, and what it forgot comes again only after `ack_wait`. So one task
//! does nothing but move deliveries out of pulls as they arrive; it asks for no
//! more than it may hold. While a batch takes long, the server is told that work
//! on everything held goes on. What is held at the end is given back.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use async_nats::Subject;
use async_nats::jetstream::AckKind;
use async_nats::jetstream::consumer::PullConsumer;
use futures_util::stream::StreamExt as _;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::connect::Connection;
use crate::delivery::Delivery;
use crate::message::STREAM;

/// The one durable consumer, shared by all workers.
pub const CONSUMER: &str = "worker";

/// How long a pull waits for events, and so the longest that stopping waits for
/// an idle one.
const PULL_EXPIRES: Duration = Duration::from_secs(1);
/// The server ends a pull that expired. If it says nothing for so long, it
/// never got it, or has restarted since.
const PULL_LOST: Duration = Duration::from_secs(2);
/// Events that the server says are pending follow one another faster.
const NEXT_EVENT_WAIT: Duration = Duration::from_millis(10);
/// For the last answers to leave.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// Progress is reported so many times within `ack_wait`.
const REPORTS_IN_ACK_WAIT: u32 = 4;

/// Deliveries that are taken together, and acknowledged together.
pub struct Batch {
    pub deliveries: Vec<Delivery>,
    replies: Vec<Subject>,
}

/// Takes the log's events for this worker.
pub struct Consumer {
    shared: Arc<Shared>,
    batch_max: usize,
    puller: JoinHandle<()>,
    reporter: JoinHandle<()>,
    stop: CancellationToken,
    broken: watch::Receiver<Option<String>>,
}

struct Shared {
    connection: Connection,
    held: Mutex<Held>,
    arrived: Notify,
    taken: Notify,
}

/// Delivered to this process, and not acknowledged yet.
#[derive(Default)]
struct Held {
    waiting: VecDeque<Waiting>,
    /// Where the deliveries of the batch that is worked on are acknowledged.
    in_work: Vec<Subject>,
}

struct Waiting {
    delivery: Delivery,
    reply: Subject,
    /// The server has more behind it.
    more: bool,
}

impl Consumer {
    /// Starts pulling; at the most two batches are held at once.
    pub async fn open(connection: &Connection, batch_max: usize) -> anyhow::Result<Self> {
        let missing = "is there a stream and a consumer? `worker migrate` makes them";
        let stream = connection.jetstream.get_stream_no_info(STREAM).await.context(missing)?;
        let found = stream.get_consumer(CONSUMER).await;
        let consumer: PullConsumer = found.map_err(|error| anyhow!(error)).context(missing)?;
        let ack_wait = consumer.cached_info().config.ack_wait;
        let shared = Arc::new(Shared {
            connection: connection.clone(),
            held: Mutex::default(),
            arrived: Notify::new(),
            taken: Notify::new(),
        });
        let stop = CancellationToken::new();
        let (sender, broken) = watch::channel(None);
        let puller =
            tokio::spawn(pull(Arc::clone(&shared), consumer, batch_max, stop.clone(), sender));
        let reporter = tokio::spawn(report(Arc::clone(&shared), ack_wait / REPORTS_IN_ACK_WAIT));
        Ok(Self { shared, batch_max, puller, reporter, stop, broken })
    }

    /// Waits for one event and takes those that come at once behind it. An error
    /// when pulling has failed and nothing is left: open another consumer.
    ///
    /// If this is cancelled nothing is lost.
    pub async fn take(&mut self) -> anyhow::Result<Batch> {
        loop {
            let arrived = self.shared.arrived.notified();
            let (count, more) = self.shared.waiting();
            if count > 0 {
                let full = count >= self.batch_max;
                if !more || full || timeout(NEXT_EVENT_WAIT, arrived).await.is_err() {
                    return Ok(self.shared.take(self.batch_max));
                }
                continue;
            }
            if let Some(why) = self.broken.borrow().clone() {
                return Err(anyhow!(why));
            }
            tokio::select! {
                () = arrived => {}
                // An error means that the puller has ended, which says why before.
                changed = self.broken.changed() => changed.context("pulling has ended")?,
            }
        }
    }

    /// Acknowledges what was applied. A lost acknowledgement brings the event
    /// again, and again it changes nothing.
    pub async fn ack(&self, batch: Batch) {
        self.shared.held().in_work.clear();
        for reply in batch.replies {
            self.shared.answer(reply, AckKind::Ack).await;
        }
    }

    /// Stops pulling and gives back what is held, for another worker to take at
    /// once.
    pub async fn close(mut self) {
        self.stop.cancel();
        // A pull that is under way may still bring something.
        (&mut self.puller).await.ok();
        let held = std::mem::take(&mut *self.shared.held());
        let waiting = held.waiting.into_iter().map(|waiting| waiting.reply);
        for reply in held.in_work.into_iter().chain(waiting) {
            self.shared.answer(reply, AckKind::Nak(None)).await;
        }
        let flushed = timeout(FLUSH_TIMEOUT, self.shared.connection.flush()).await;
        if !matches!(flushed, Ok(Ok(()))) {
            tracing::warn!("the last batch may be delivered again");
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.puller.abort();
        self.reporter.abort();
    }
}

impl Shared {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many wait, and whether the server has more behind them.
    fn waiting(&self) -> (usize, bool) {
        let held = self.held();
        (held.waiting.len(), held.waiting.back().is_some_and(|last| last.more))
    }

    fn take(&self, max: usize) -> Batch {
        let mut held = self.held();
        let count = held.waiting.len().min(max);
        let (mut deliveries, mut replies) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for Waiting { delivery, reply, .. } in held.waiting.drain(..count) {
            deliveries.push(delivery);
            replies.push(reply);
        }
        held.in_work.clone_from(&replies);
        drop(held);
        self.taken.notify_one();
        Batch { deliveries, replies }
    }

    async fn answer(&self, reply: Subject, kind: AckKind) {
        if let Err(error) = self.connection.client.publish(reply, kind.into()).await {
            tracing::warn!(%error, "a delivery was not answered");
        }
    }
}

/// Moves deliveries out of pulls until `stop`, or until pulling fails.
async fn pull(
    shared: Arc<Shared>,
    consumer: PullConsumer,
    batch_max: usize,
    stop: CancellationToken,
    broken: watch::Sender<Option<String>>,
) {
    while !stop.is_cancelled() {
        let taken = shared.taken.notified();
        if shared.held().waiting.len() >= batch_max {
            tokio::select! {
                () = taken => {}
                () = stop.cancelled() => {}
            }
            continue;
        }
        if let Err(error) = pull_once(&shared, &consumer, batch_max).await {
            broken.send_replace(Some(format!("{error:#}")));
            return;
        }
    }
}

async fn pull_once(shared: &Shared, consumer: &PullConsumer, max: usize) -> anyhow::Result<()> {
    let mut messages = consumer.batch().max_messages(max).expires(PULL_EXPIRES).messages().await?;
    // Nothing arriving for so long ends the pull as its expiry does.
    while let Ok(Some(message)) = timeout(PULL_LOST, messages.next()).await {
        let message = message.map_err(|error| anyhow!(error))?;
        let Some(reply) = message.reply.clone() else { continue };
        let Some((delivery, pending)) = Delivery::of(message) else { continue };
        shared.held().waiting.push_back(Waiting { delivery, reply, more: pending > 0 });
        shared.arrived.notify_one();
    }
    Ok(())
}

/// Tells the server now and then that work on everything held goes on.
async fn report(shared: Arc<Shared>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let replies: Vec<Subject> = {
            let held = shared.held();
            let waiting = held.waiting.iter().map(|waiting| &waiting.reply);
            held.in_work.iter().chain(waiting).cloned().collect()
        };
        for reply in replies {
            shared.answer(reply, AckKind::Progress).await;
        }
    }
}
