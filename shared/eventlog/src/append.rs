//! Appending to the log: one event, several as one atomic batch, or one that is
//! tried again for a while. Whatever happens, an event is called appended only
//! when the server has acknowledged it.
//!
//! async-nats has no batch publisher, so batches are written here as ADR-50
//! says (<https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-50.md>):
//! a batch id and a position in the headers of each message, and a commit mark
//! on the last one, which is answered for all.

use std::sync::Arc;
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::header::{
    NATS_BATCH_COMMIT, NATS_BATCH_COMMIT_FINAL, NATS_BATCH_ID, NATS_BATCH_SEQUENCE,
};
use async_nats::{HeaderMap, Request};
use backon::{ConstantBuilder, Retryable as _};
use domain::event_key::EventKey;
use domain::id::StreamSequence;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::connect::Connection;
use crate::message::{LogMessage, PROOF, STREAM};

/// More than our headers ever have.
const HEADERS_BYTES_MAX: usize = 8 * 1024;
/// One request. A server that lives answers in milliseconds; what is unknown
/// after this is tried again.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// While there is no connection. What waits is sent as soon as there is one.
const RECONNECT_WAIT: Duration = Duration::from_millis(500);
const APPEND_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Answers of the server that mean "full or overloaded": trying on would add to
/// the load. Codes: server/errors.json of nats-server.
const OVERLOADED: [u64; 5] = [10_002, 10_023, 10_047, 10_077, 10_167];
/// A member of the batch is in the log already, so none was stored.
const BATCH_HOLDS_DUPLICATE: u64 = 10_201;

/// How events are appended, by the settings of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CommitMode {
    /// What waits, as an atomic batch: one replica pays a few fsyncs for it.
    Group,
    /// Each event by itself: three replicas group by themselves.
    Single,
}

impl CommitMode {
    pub fn of(replicas: usize, allows_atomic_publish: bool) -> Self {
        if replicas < 3 && allows_atomic_publish { Self::Group } else { Self::Single }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Group => "group",
            Self::Single => "single",
        }
    }
}

/// The acknowledgement: the event is in the log, on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    pub sequence: StreamSequence,
    /// It was there before.
    pub duplicate: bool,
}

/// Why an event was not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Whether it is in the log is unknown, or it is not there yet. The same
    /// message ID makes trying again safe.
    #[error("the log did not acknowledge")]
    Unknown,
    #[error("the log is full or overloaded")]
    Overloaded,
    #[error("the event exceeds the server's max_payload")]
    TooLarge,
    #[error("another stream has taken the subjects of the log")]
    OtherStream,
}

/// A message with what came of it.
pub type Written = (LogMessage, Result<Appended, Failure>);

#[derive(Clone)]
pub struct Writer {
    connection: Connection,
    /// What it proves with that it wrote an event.
    key: Option<Arc<EventKey>>,
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
    /// An operator's, whose subjects say whose events they are.
    pub fn new(connection: Connection) -> Self {
        Self { connection, key: None }
    }

    /// A service's.
    pub fn of_service(connection: Connection, key: Option<EventKey>) -> Self {
        Self { connection, key: key.map(Arc::new) }
    }

    pub fn is_connected(&self) -> bool {
        self.connection.is_connected()
    }

    /// Appends one event, again and again until it is acknowledged or the time
    /// is over. For what nobody sends again.
    pub async fn append(
        &self,
        message: &LogMessage,
        within: Duration,
    ) -> Result<Appended, Failure> {
        let send = || async { self.single(message).await };
        let again = ConstantBuilder::new().with_delay(APPEND_AGAIN_AFTER).without_max_times();
        let sent = send
            .retry(again)
            .when(|failure| matches!(failure, Failure::Unknown | Failure::Overloaded));
        timeout(within, sent).await.unwrap_or(Err(Failure::Unknown))
    }

    /// Appends the messages: all as one atomic batch if there are several. One
    /// that the server would refuse must not hold up the others.
    pub async fn write(&self, messages: Vec<LogMessage>) -> Vec<Written> {
        let max =
            self.connection.client.server_info().max_payload.saturating_sub(HEADERS_BYTES_MAX);
        let (fit, too_large): (Vec<_>, Vec<_>) =
            messages.into_iter().partition(|message| message.body.len() <= max);
        let mut written = all(too_large, Failure::TooLarge);
        if !fit.is_empty() {
            written.extend(self.write_fit(fit).await);
        }
        written
    }

    async fn write_fit(&self, messages: Vec<LogMessage>) -> Vec<Written> {
        // The client would queue them until it has reconnected; then a callback
        // that was long answered with 503 would still be sent.
        if timeout(RECONNECT_WAIT, self.connection.connected()).await.is_err() {
            return all(messages, Failure::Unknown);
        }
        if messages.len() == 1 {
            return self.each(messages).await;
        }
        match self.batch(&messages).await {
            Ok(last) => {
                let first = last.0.saturating_sub(messages.len() as u64 - 1);
                let sequences = (first..).map(StreamSequence);
                let appended = sequences.map(|sequence| Appended { sequence, duplicate: false });
                messages.into_iter().zip(appended.map(Ok)).collect()
            }
            Err(Refused::Failure(failure)) => all(messages, failure),
            // Which one it is the server does not say.
            Err(Refused::HoldsDuplicate) => self.each(messages).await,
        }
    }

    async fn each(&self, messages: Vec<LogMessage>) -> Vec<Written> {
        let written = messages.into_iter().map(|message| async move {
            let appended = self.single(&message).await;
            (message, appended)
        });
        join_all(written).await
    }

    async fn single(&self, message: &LogMessage) -> Result<Appended, Failure> {
        match self.request(message, self.headers(message)).await {
            Ok(ack) => Ok(Appended { sequence: StreamSequence(ack.seq), duplicate: ack.duplicate }),
            Err(Refused::Failure(failure)) => Err(failure),
            Err(Refused::HoldsDuplicate) => Err(Failure::Unknown),
        }
    }

    /// The sequence of the last member. If this is cancelled the server forgets
    /// the batch.
    async fn batch(&self, messages: &[LogMessage]) -> Result<StreamSequence, Refused> {
        let inbox = self.connection.client.new_inbox();
        let id = inbox.rsplit('.').next().unwrap_or(&inbox); // a NUID
        let mut ack = Err(Refused::Failure(Failure::Unknown));
        for (index, message) in messages.iter().enumerate() {
            let position = index + 1;
            let mut headers = self.headers(message);
            headers.insert(NATS_BATCH_ID, id);
            headers.insert(NATS_BATCH_SEQUENCE, position.to_string());
            if position == messages.len() {
                headers.insert(NATS_BATCH_COMMIT, NATS_BATCH_COMMIT_FINAL);
                ack = self.request(message, headers).await;
                break;
            }
            let (subject, body) = (message.subject.clone(), message.body.clone());
            let sent = self.connection.client.publish_with_headers(subject, headers, body).await;
            if let Err(error) = sent {
                tracing::warn!(%error, "a batch was not sent");
                return Err(Refused::Failure(Failure::Unknown));
            }
        }
        ack.map(|ack| StreamSequence(ack.seq))
    }

    fn headers(&self, message: &LogMessage) -> HeaderMap {
        let mut headers = message.headers();
        if let Some(key) = &self.key {
            headers.insert(PROOF, key.prove(&message.body));
        }
        headers
    }

    async fn request(&self, message: &LogMessage, headers: HeaderMap) -> Result<PubAck, Refused> {
        let (subject, body) = (message.subject.clone(), message.body.clone());
        let request = Request::new().headers(headers).payload(body).timeout(Some(REQUEST_TIMEOUT));
        let asked = self.connection.client.send_request(subject, request);
        let answer = tokio::select! {
            answer = asked => answer,
            // The answer is lost with the connection: it is asked again at once.
            () = self.connection.lost() => {
                return Err(Refused::Failure(Failure::Unknown));
            }
        };
        let answer = answer.map_err(|error| {
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
        self.connection.has_appended(StreamSequence(ack.seq));
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
