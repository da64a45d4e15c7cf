//! What became of installations, as a stream: a copy of the change feed for whoever
//! follows it over NATS. The stream itself says how far it is, and the server refuses
//! a message that does not follow the last one, so that two relays at once make no
//! second copy and no other order.

use anyhow::Context as _;
use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_LAST_MESSAGE_ID, NATS_MESSAGE_ID};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::DirectGetErrorKind;
use bytes::Bytes;
use domain::id::percent_encode;

use crate::connect::Connection;

/// The stream.
pub const STREAM: &str = "INSTALLATION_CHANGES";
const SUBJECT_ROOT: &str = "installation_changes";

/// Of every source.
pub(crate) fn all_subjects() -> String {
    format!("{SUBJECT_ROOT}.>")
}

/// A change as it is published.
#[derive(Debug)]
pub struct Change {
    /// No other has it, and the last one in the stream tells what comes next.
    pub id: String,
    pub source: String,
    pub app_id: String,
    pub r#type: String,
    /// Of which installation.
    pub installation_id: String,
    /// When it was recorded, as RFC 3339.
    pub time: Option<String>,
    pub body: Bytes,
}

impl Change {
    /// `installation_changes.<source>.<app>.<type>`; the type has two tokens.
    fn subject(&self) -> String {
        let token = |text: &str| percent_encode(text).replace('.', "%2E");
        format!("{SUBJECT_ROOT}.{}.{}.{}", self.source, token(&self.app_id), self.r#type)
    }

    /// CloudEvents in the binary mode of its NATS binding
    /// (<https://github.com/cloudevents/spec/blob/main/cloudevents/bindings/nats-protocol-binding.md>).
    fn headers(&self, last: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, self.id.as_str());
        if let Some(last) = last {
            headers.insert(NATS_EXPECTED_LAST_MESSAGE_ID, last);
        }
        headers.insert("ce-specversion", "1.0");
        headers.insert("ce-id", self.id.as_str());
        headers.insert("ce-source", percent_encode(&self.source));
        headers.insert("ce-type", self.r#type.as_str());
        headers.insert("ce-subject", percent_encode(&self.installation_id));
        if let Some(time) = &self.time {
            headers.insert("ce-time", time.as_str());
        }
        headers.insert("content-type", "application/json");
        headers
    }
}

/// The id of the last change in the stream; `None` if it has none.
pub async fn last(connection: &Connection) -> anyhow::Result<Option<String>> {
    let stream = connection.stream(STREAM).await?;
    let last = stream.cached_info().state.last_sequence;
    if last == 0 {
        return Ok(None);
    }
    let message = match stream.direct_get(last).await {
        Ok(message) => message,
        // Nothing has happened for so long that even the last one is too old to be kept.
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| format!("reading the end of the stream {STREAM}"));
        }
    };
    let id = message.headers.get(NATS_MESSAGE_ID).map(|id| id.as_str().to_owned());
    id.context("the last change has no message ID").map(Some)
}

/// Publishes changes that follow `last`, in this order. After a failure some of them may be
/// in the stream: ask for its [`last`] again.
pub async fn publish(
    connection: &Connection,
    mut last: Option<String>,
    changes: Vec<Change>,
) -> anyhow::Result<Option<String>> {
    let mut acks = Vec::with_capacity(changes.len());
    for change in changes {
        let message = PublishMessage::build()
            .payload(change.body.clone())
            .headers(change.headers(last.as_deref()));
        acks.push(connection.jetstream.send_publish(change.subject(), message).await?);
        last = Some(change.id);
    }
    for ack in acks {
        ack.await.with_context(|| format!("appending to the stream {STREAM}"))?;
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_is_one_token_of_the_subject() {
        let change = Change {
            id: "chg_a_1".to_owned(),
            source: "blnk".to_owned(),
            app_id: "my.app *>".to_owned(),
            r#type: "installation.activated".to_owned(),
            installation_id: "i\r\n1".to_owned(),
            time: None,
            body: Bytes::new(),
        };
        let subject = "installation_changes.blnk.my%2Eapp%20%2A%3E.installation.activated";
        assert_eq!(change.subject(), subject);
        assert!(change.headers(None).get(NATS_EXPECTED_LAST_MESSAGE_ID).is_none());
        assert!(change.headers(Some("chg_a_0")).get("ce-subject").is_some());
    }
}
