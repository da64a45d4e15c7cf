//! Reads a stream once, in its order, beside the workers' consumer. It
//! acknowledges nothing and leaves nothing behind.

use std::time::Duration;

use anyhow::{Context as _, bail};
use async_nats::jetstream::consumer::pull::{Ordered, OrderedConfig};
use async_nats::jetstream::consumer::{Consumer, DeliverPolicy};
use async_nats::jetstream::stream::DirectGetErrorKind;
use domain::id::StreamSequence;
use futures_util::stream::StreamExt as _;
use jiff::Timestamp;
use time::OffsetDateTime;
use tokio::time::timeout;

use crate::connect::Connection;
use crate::delivery::Delivery;
use crate::message::STREAM;

/// Messages that the server may send ahead of us.
const READ_AHEAD: i64 = 4_000;
/// The client itself recovers from a lost connection; past this nobody answers.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Where reading begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    Sequence(u64),
    Time(Timestamp),
    /// Only the last message of each subject.
    LastOfEachSubject,
}

/// What is read.
#[derive(Debug, Clone)]
pub struct Selection {
    pub stream: &'static str,
    pub subjects: String,
    pub start: Start,
    /// The last sequence that is read; the end of the stream without.
    pub end: Option<u64>,
    pub silence_max: Duration,
}

impl Selection {
    /// Messages of the log.
    pub fn of_log(subjects: String, start: Start, end: u64) -> Self {
        Self { stream: STREAM, subjects, start, end: Some(end), silence_max: SILENCE_MAX }
    }

    /// All of another stream, up to its end as it is now.
    pub(crate) fn of_all(stream: &'static str, subjects: String, start: Start) -> Self {
        Self { stream, subjects, start, end: None, silence_max: SILENCE_MAX }
    }
}

/// Messages in the order of the stream, up to an end that is fixed at the start.
pub struct Reader {
    /// `None` when everything is read.
    messages: Option<Ordered>,
    end: u64,
    silence_max: Duration,
    /// How many there were to read.
    pub count: u64,
}

impl Reader {
    pub async fn open(connection: &Connection, selection: Selection) -> anyhow::Result<Self> {
        let Selection { stream, subjects, start, end, silence_max } = selection;
        let deliver_policy = match start {
            Start::Sequence(from) => DeliverPolicy::ByStartSequence { start_sequence: from.max(1) },
            Start::Time(from) => DeliverPolicy::ByStartTime {
                start_time: OffsetDateTime::from_unix_timestamp_nanos(from.as_nanosecond())?,
            },
            Start::LastOfEachSubject => DeliverPolicy::LastPerSubject,
        };
        let config = OrderedConfig {
            description: Some("reads the stream once".to_owned()),
            filter_subject: subjects,
            deliver_policy,
            max_batch: READ_AHEAD,
            ..OrderedConfig::default()
        };
        let (of, api) = (connection.stream(stream).await?, format!("CONSUMER.CREATE.{stream}"));
        let what = format!("what stream {stream} holds");
        let created = connection.unless_refused(&what, &api, of.create_consumer(config)).await?;
        let consumer: Consumer<OrderedConfig> =
            created.with_context(|| format!("reading stream {stream}"))?;
        let count = consumer.cached_info().num_pending;
        let messages = if count == 0 { None } else { Some(consumer.messages().await?) };
        Ok(Self { messages, end: end.unwrap_or(u64::MAX), silence_max, count })
    }

    pub async fn next(&mut self) -> anyhow::Result<Option<Delivery>> {
        let Some(messages) = &mut self.messages else { return Ok(None) };
        let message = match timeout(self.silence_max, messages.next()).await {
            Ok(Some(message)) => message.context("reading a stream")?,
            Ok(None) => bail!("the stream ended too early"),
            Err(_elapsed) => {
                bail!("the stream has been silent for {} s", self.silence_max.as_secs())
            }
        };
        let (delivery, pending) = Delivery::of(message).context("a message without a sequence")?;
        if pending == 0 || delivery.sequence.0 >= self.end {
            self.messages = None;
        }
        Ok((delivery.sequence.0 <= self.end).then_some(delivery))
    }
}

/// What stands in the log at this sequence, read from any replica.
pub async fn message_at(
    connection: &Connection,
    sequence: StreamSequence,
) -> anyhow::Result<Option<Delivery>> {
    let stream = connection.jetstream.get_stream_no_info(STREAM).await?;
    match stream.direct_get(sequence.0).await {
        Ok(message) => Ok(Some(Delivery::of_answer(message))),
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Deletes from the log what stands in it at another sequence, too.
pub async fn delete_copy(connection: &Connection, sequence: StreamSequence) -> anyhow::Result<()> {
    let stream = connection.stream(STREAM).await?;
    stream
        .delete_message(sequence.0)
        .await
        .with_context(|| format!("deleting message {sequence}"))?;
    Ok(())
}

/// When the first event of these subjects from this sequence on was appended.
pub async fn next_published_at(
    connection: &Connection,
    subjects: String,
    from: u64,
) -> anyhow::Result<Option<Timestamp>> {
    let stream = connection.jetstream.get_stream_no_info(STREAM).await?;
    match stream.direct_get_next_for_subject(subjects, Some(from)).await {
        Ok(message) => Ok(Some(Timestamp::from_nanosecond(message.time.unix_timestamp_nanos())?)),
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}
