//! Requests to JetStream: one message, or several as one atomic batch.
//!
//! async-nats has no batch publisher, so batches are written here as ADR-50
//! says (<https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-50.md>):
//! a batch id and a position in the headers of each message, and a commit mark
//! on the last one, which is answered for all.

use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::connection::State;
use async_nats::header::{
    NATS_BATCH_COMMIT, NATS_BATCH_COMMIT_FINAL, NATS_BATCH_ID, NATS_BATCH_SEQUENCE,
};
use async_nats::{Client, HeaderMap, Request};
use futures_util::future::join_all;
use serde::Deserialize;
use shared::id::StreamSequence;
use shared::log::LogMessage;
use shared::stream::STREAM;

/// More than our headers ever have.
const HEADERS_BYTES_MAX: usize = 8 * 1024;
/// One request. A server that lives answers in milliseconds; what is unknown
/// after this is tried again.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Answers of the server that mean "full or overloaded": trying on would add to
/// the load. Codes: server/errors.json of nats-server.
const OVERLOADED: [u64; 5] = [10_002, 10_023, 10_047, 10_077, 10_167];
/// A member of the batch is in the log already, so none was stored.
const BATCH_HOLDS_DUPLICATE: u64 = 10_201;

/// The acknowledgement: the event is in the log, on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Appended {
    pub(crate) sequence: StreamSequence,
    pub(crate) duplicate: bool,
    /// This process has answered the same event with a 2xx before.
    pub(crate) answered_before: bool,
}

/// Why an event was not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Whether it is in the log is unknown, or it is not there yet. The same
    /// message ID makes trying again safe.
    Unknown,
    Overloaded,
    TooLarge,
    /// Another stream has taken our subjects.
    OtherStream,
}

/// A message with what came of it.
pub(crate) type Written = (LogMessage, Result<Appended, Failure>);

#[derive(Clone)]
pub(crate) struct Writer {
    client: Client,
}

/// What the server answers to a publish, single or batch.
#[derive(Deserialize)]
struct PubAck {
    error: Option<ServerError>,
    #[serde(default)]
    stream: String,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
}

#[derive(Deserialize)]
struct ServerError {
    err_code: u64,
    description: String,
}

enum Refused {
    Failure(Failure),
    HoldsDuplicate,
}

impl Writer {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Appends the messages: all as one atomic batch if there are several. One
    /// that the server would refuse must not hold up the others.
    pub(crate) async fn write(&self, messages: Vec<LogMessage>) -> Vec<Written> {
        let max = self.client.server_info().max_payload.saturating_sub(HEADERS_BYTES_MAX);
        let (fit, too_large): (Vec<_>, Vec<_>) =
            messages.into_iter().partition(|message| message.body.len() <= max);
        let mut written = all(too_large, Failure::TooLarge);
        if !fit.is_empty() {
            written.extend(self.write_fit(fit).await);
        }
        written
    }

    async fn write_fit(&self, mut messages: Vec<LogMessage>) -> Vec<Written> {
        // The client would queue them until it has reconnected; then a callback
        // that was long answered with 503 would still be sent.
        if !self.is_connected() {
            return all(messages, Failure::Unknown);
        }
        if messages.len() == 1 {
            return join_all(messages.drain(..).map(|message| self.single(message))).await;
        }
        match self.batch(&messages).await {
            Ok(last) => {
                let first = last.0.saturating_sub(messages.len() as u64 - 1);
                let sequences = (first..).map(StreamSequence);
                let appended = sequences.map(|sequence| Appended {
                    sequence,
                    duplicate: false,
                    answered_before: false,
                });
                messages.into_iter().zip(appended.map(Ok)).collect()
            }
            Err(Refused::Failure(failure)) => all(messages, failure),
            // Which one it is the server does not say.
            Err(Refused::HoldsDuplicate) => {
                join_all(messages.drain(..).map(|message| self.single(message))).await
            }
        }
    }

    async fn single(&self, message: LogMessage) -> Written {
        let appended = match self.request(&message, message.headers()).await {
            Ok(ack) => {
                let (sequence, duplicate) = (StreamSequence(ack.seq), ack.duplicate);
                Ok(Appended { sequence, duplicate, answered_before: false })
            }
            Err(Refused::Failure(failure)) => Err(failure),
            Err(Refused::HoldsDuplicate) => Err(Failure::Unknown),
        };
        (message, appended)
    }

    /// The sequence of the last member. If this is cancelled the server forgets
    /// the batch.
    async fn batch(&self, messages: &[LogMessage]) -> Result<StreamSequence, Refused> {
        let inbox = self.client.new_inbox();
        let id = inbox.rsplit('.').next().unwrap_or(&inbox); // a NUID
        let mut ack = Err(Refused::Failure(Failure::Unknown));
        for (index, message) in messages.iter().enumerate() {
            let position = index + 1;
            let mut headers = message.headers();
            headers.insert(NATS_BATCH_ID, id);
            headers.insert(NATS_BATCH_SEQUENCE, position.to_string());
            if position == messages.len() {
                headers.insert(NATS_BATCH_COMMIT, NATS_BATCH_COMMIT_FINAL);
                ack = self.request(message, headers).await;
                break;
            }
            let (subject, body) = (message.subject.clone(), message.body.clone());
            let sent = self.client.publish_with_headers(subject, headers, body).await;
            if let Err(error) = sent {
                tracing::warn!(%error, "a batch was not sent");
                return Err(Refused::Failure(Failure::Unknown));
            }
        }
        ack.map(|ack| StreamSequence(ack.seq))
    }

    async fn request(&self, message: &LogMessage, headers: HeaderMap) -> Result<PubAck, Refused> {
        let (subject, body) = (message.subject.clone(), message.body.clone());
        let request = Request::new().headers(headers).payload(body).timeout(Some(REQUEST_TIMEOUT));
        let answer = self.client.send_request(subject, request).await.map_err(|error| {
            tracing::warn!(%error, "a publish was not acknowledged");
            Refused::Failure(match error.kind() {
                RequestErrorKind::MaxPayloadExceeded => Failure::TooLarge,
                _ => Failure::Unknown,
            })
        })?;
        let ack: PubAck = serde_json::from_slice(&answer.payload).map_err(|error| {
            tracing::error!(%error, "an answer to a publish cannot be read");
            Refused::Failure(Failure::Unknown)
        })?;
        if let Some(error) = &ack.error {
            return Err(refused(error));
        }
        if ack.stream != STREAM {
            tracing::error!(stream = ack.stream, "another stream has taken our subjects");
            return Err(Refused::Failure(Failure::OtherStream));
        }
        Ok(ack)
    }
}

fn refused(error: &ServerError) -> Refused {
    if error.err_code == BATCH_HOLDS_DUPLICATE {
        return Refused::HoldsDuplicate;
    }
    tracing::warn!(code = error.err_code, why = error.description, "a publish was refused");
    let overloaded = OVERLOADED.contains(&error.err_code);
    Refused::Failure(if overloaded { Failure::Overloaded } else { Failure::Unknown })
}

fn all(messages: Vec<LogMessage>, failure: Failure) -> Vec<Written> {
    messages.into_iter().map(|message| (message, Err(failure))).collect()
}
