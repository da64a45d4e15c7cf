//! Reads the log beside the workers' consumer: for replay, rebuild and verify.
//! It acknowledges nothing and leaves nothing behind.

use std::time::Duration;

use anyhow::{Context as _, bail};
use async_nats::Client;
use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::consumer::pull::{Ordered, OrderedConfig};
use async_nats::jetstream::consumer::{Consumer, DeliverPolicy};
use async_nats::jetstream::stream::{Info, Stream};
use async_nats::jetstream::{self, Message};
use futures_util::stream::StreamExt as _;
use jiff::Timestamp;
use shared::log::SUBJECT_ROOT;
use shared::stream::STREAM;
use time::OffsetDateTime;
use tokio::time::timeout;

/// Messages that the server may send ahead of us.
const READ_AHEAD: i64 = 4_000;
/// The client itself recovers from a lost connection; past this nobody answers.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Where reading begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    Sequence(u64),
    Time(Timestamp),
}

/// The subjects of every event.
pub(crate) fn all_subjects() -> String {
    format!("{SUBJECT_ROOT}.>")
}

/// The stream as it is now.
pub(crate) async fn stream(client: &Client) -> anyhow::Result<Stream> {
    let stream = jetstream::new(client.clone()).get_stream(STREAM).await;
    stream.with_context(|| {
        format!("asking for stream {STREAM}: is NATS up, and was `worker migrate` run?")
    })
}

pub(crate) async fn info(client: &Client) -> anyhow::Result<Info> {
    Ok(stream(client).await?.cached_info().clone())
}

/// Messages in log order up to and with sequence `end`.
pub(crate) struct LogReader {
    messages: Option<Ordered>,
    end: u64,
}

impl LogReader {
    pub(crate) async fn open(
        client: &Client,
        start: Start,
        end: u64,
        subject: String,
    ) -> anyhow::Result<Self> {
        let deliver_policy = match start {
            Start::Sequence(from) => DeliverPolicy::ByStartSequence { start_sequence: from.max(1) },
            Start::Time(from) => DeliverPolicy::ByStartTime {
                start_time: OffsetDateTime::from_unix_timestamp_nanos(from.as_nanosecond())?,
            },
        };
        let config = OrderedConfig {
            description: Some("reads the log once".to_owned()),
            filter_subject: subject,
            deliver_policy,
            max_batch: READ_AHEAD,
            ..OrderedConfig::default()
        };
        let consumer: Consumer<OrderedConfig> = stream(client)
            .await?
            .create_consumer(config)
            .await
            .context("reading the log needs a NATS user that may create consumers")?;
        let is_empty = consumer.cached_info().num_pending == 0;
        let messages = if is_empty { None } else { Some(consumer.messages().await?) };
        Ok(Self { messages, end })
    }

    /// The next message and its sequence.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<(u64, Message)>> {
        let Some(messages) = &mut self.messages else { return Ok(None) };
        let message = match timeout(SILENCE_MAX, messages.next()).await {
            Ok(Some(message)) => message.context("reading the log")?,
            Ok(None) => bail!("the log ended too early"),
            Err(_elapsed) => bail!("the log has been silent for {} s", SILENCE_MAX.as_secs()),
        };
        let (sequence, pending) = position(&message)?;
        if pending == 0 || sequence >= self.end {
            self.messages = None;
        }
        Ok((sequence <= self.end).then_some((sequence, message)))
    }
}

/// The sequence of a message, and how many come after it.
fn position(message: &Message) -> anyhow::Result<(u64, u64)> {
    match message.info() {
        Ok(info) => Ok((info.stream_sequence, info.pending)),
        Err(error) => bail!("a message without a sequence: {error}"),
    }
}

pub(crate) fn message_id(message: &Message) -> String {
    let headers = message.headers.as_ref();
    let id = headers.and_then(|headers| headers.get(NATS_MESSAGE_ID));
    id.map(ToString::to_string).unwrap_or_default()
}
