//! Callbacks that are about no installation, for the app itself. A platform that
//! has one URL for everything sends them here, too; they are kept, as they came, in
//! a stream of their own until the app has taken them.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use domain::id::{IdempotencyKey, SourceName, percent_encode};
use jiff::Timestamp;

use crate::connect::Connection;

/// The stream.
pub const STREAM: &str = "FORWARDED";
/// By which the app takes from it.
pub(crate) const CONSUMER: &str = "app";
const SUBJECT_ROOT: &str = "forwarded";
const CONTENT_TYPE: &str = "content-type";
/// When ingest received it.
pub const RECEIVED_AT: &str = "mooring-received-at";
/// A longer type is left to the body.
const TYPE_BYTES_MAX: usize = 200;

/// Of every source.
pub(crate) fn all_subjects() -> String {
    format!("{SUBJECT_ROOT}.>")
}

/// A callback as it came, and what it was proven to be. No `Debug`: its body may hold secrets.
pub struct Forwarded {
    pub source: SourceName,
    /// Its type, as the platform names it.
    pub kind: String,
    pub idempotency_key: IdempotencyKey,
    pub received_at: Timestamp,
    pub content_type: Option<String>,
    pub body: Bytes,
}

/// Why it is not in the stream, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotForwarded {
    #[error("there is no stream {STREAM}: run `worker migrate`")]
    NoStream,
    #[error(
        "the stream {STREAM} did not acknowledge; it may be full, because nobody takes from it"
    )]
    NotAcknowledged,
}

impl Forwarded {
    /// `forwarded.<source>.<type>`.
    pub fn subject(&self) -> String {
        format!("{SUBJECT_ROOT}.{}.{}", self.source, tokens(&self.kind))
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let id = format!("{}:{}", self.source, self.idempotency_key);
        headers.insert(NATS_MESSAGE_ID, percent_encode(&id));
        headers.insert(RECEIVED_AT, self.received_at.to_string());
        if let Some(content_type) = &self.content_type {
            headers.insert(CONTENT_TYPE, content_type.as_str());
        }
        headers
    }
}

/// A dot in a type separates tokens, so that `contact.created` is found by `contact.*`.
fn tokens(kind: &str) -> String {
    let encoded = percent_encode(kind);
    let is_subject = encoded.split('.').all(|token| !token.is_empty());
    match encoded {
        long if long.len() > TYPE_BYTES_MAX => "-".to_owned(),
        encoded if is_subject => encoded,
        encoded if encoded.is_empty() => "-".to_owned(),
        encoded => encoded.replace('.', "%2E"),
    }
}

/// Says whether it was there before. It is in the stream, on disk, when this returns.
pub async fn publish(
    connection: &Connection,
    forwarded: &Forwarded,
    within: Duration,
) -> Result<bool, NotForwarded> {
    let message =
        PublishMessage::build().payload(forwarded.body.clone()).headers(forwarded.headers());
    let publish = async {
        let sent = connection.jetstream.send_publish(forwarded.subject(), message).await?;
        sent.await
    };
    match tokio::time::timeout(within, publish).await {
        Ok(Ok(ack)) if ack.stream == STREAM => Ok(ack.duplicate),
        Ok(Err(error)) if error.kind() == PublishErrorKind::StreamNotFound => {
            Err(NotForwarded::NoStream)
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "a callback was not forwarded");
            Err(NotForwarded::NotAcknowledged)
        }
        Ok(Ok(_)) | Err(_) => Err(NotForwarded::NotAcknowledged),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_makes_a_subject() {
        for (kind, subject) in [
            ("ContactCreate", "ContactCreate"),
            ("contact.created", "contact.created"),
            ("a b>*\r\n", "a%20b%3E%2A%0D%0A"),
            (".a..b.", "%2Ea%2E%2Eb%2E"),
            ("", "-"),
        ] {
            assert_eq!(tokens(kind), subject, "{kind:?}");
        }
        assert_eq!(tokens(&"x".repeat(300)), "-");
    }
}
