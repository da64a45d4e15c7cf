//! The log's contract: under which subject and with which headers an event
//! stands in the stream.
//!
//! Headers follow CloudEvents' NATS binding, binary mode
//! (<https://github.com/cloudevents/spec/blob/main/cloudevents/bindings/nats-protocol-binding.md>).
//! Identities from outside never stand raw in a subject or header.

use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_STREAM, NATS_MESSAGE_ID};
use bytes::Bytes;
use domain::event::{Event, Fact};
use domain::id::{InstallationId, MessageId, SourceName, StreamSequence, percent_encode};
use jiff::Timestamp;
use sha2::{Digest, Sha256};

/// The stream that is the log.
pub const STREAM: &str = "INSTALLATIONS";
/// First token of every subject of the stream.
const SUBJECT_ROOT: &str = "installations";
/// The header that carries the trace (<https://www.w3.org/TR/trace-context/>).
pub const TRACEPARENT: &str = "traceparent";
/// The header with the message ID of an event.
pub(crate) const CE_ID: &str = "ce-id";
/// The header that names the kind of an event.
pub(crate) const CE_TYPE: &str = "ce-type";
/// The header that names the installation of an event.
pub(crate) const CE_SUBJECT: &str = "ce-subject";
/// Where in the log a restored event stood at first. It counts only under a subject that
/// nobody but operators may publish to.
pub(crate) const POSITION: &str = "mooring-position";
/// The header that proves who wrote an event.
pub(crate) const PROOF: &str = "mooring-proof";
/// The header of an event that came back into the log as it was: without a proof that
/// counts. Nothing else under an operator's subject needs one.
pub(crate) const UNPROVEN: &str = "mooring-unproven";
/// Last token of the subjects that are the operators' alone.
const OPERATOR: &str = "operator";
/// Fixed for ever: it decides in which subject an event is found again.
pub const PARTITIONS: u8 = 64;

/// An event, ready to be published. Its headers are made for each attempt, out
/// of a few values: a map of headers is many small allocations.
#[derive(Debug, Clone)]
pub struct LogMessage {
    pub id: MessageId,
    pub subject: String,
    pub body: Bytes,
    pub traceparent: Option<String>,
    described: Described,
    restored: Option<Restored>,
}

/// What the headers say of the event.
#[derive(Debug, Clone)]
enum Described {
    New {
        source: SourceName,
        kind: &'static str,
        happened_at: Timestamp,
        installation: Option<InstallationId>,
    },
    /// As they were when it stood in the log before.
    Stored(HeaderMap),
}

/// What is told of an event that an operator puts back into the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// Where it stood; `None` where it takes a new place, at the end.
    pub position: Option<StreamSequence>,
    /// The event is in the log at another sequence, too, from where it will be deleted.
    /// The server must not take this for a duplicate, so the number is part of its ID.
    pub copy_of: Option<StreamSequence>,
}

impl LogMessage {
    pub fn new(event: &Event) -> Result<Self, serde_json::Error> {
        Ok(Self {
            id: event.message_id.clone(),
            subject: subject(event),
            body: Bytes::from(event.encode()?),
            traceparent: None,
            described: Described::New {
                source: event.source.clone(),
                kind: event.fact.kind(),
                happened_at: event.occurred_at.unwrap_or(event.received_at),
                installation: event.fact.identity().map(|found| found.installation_id.clone()),
            },
            restored: None,
        })
    }

    /// An event that was in the log before, with the body that it had there.
    pub fn restored(
        event: &Event,
        body: Bytes,
        traceparent: Option<String>,
        restored: Restored,
    ) -> Result<Self, serde_json::Error> {
        let subject = operators(subject(event));
        Ok(Self { subject, body, traceparent, restored: Some(restored), ..Self::new(event)? })
    }

    /// What was in the log before with these headers, whether it can be read or not.
    pub(crate) fn stored(
        id: MessageId,
        subject: String,
        body: Bytes,
        headers: HeaderMap,
        restored: Restored,
    ) -> Self {
        Self {
            id,
            subject: operators(subject),
            body,
            traceparent: None,
            described: Described::Stored(headers),
            restored: Some(restored),
        }
    }

    pub fn headers(&self) -> HeaderMap {
        let mut headers = match &self.described {
            Described::New { source, kind, happened_at, installation } => {
                self.describe(source, kind, *happened_at, installation.as_ref())
            }
            Described::Stored(headers) => headers.clone(),
        };
        match self.restored.and_then(|restored| restored.copy_of) {
            Some(sequence) => {
                headers.insert(NATS_MESSAGE_ID, format!("{}!copy_of@{sequence}", self.id));
            }
            None => headers.insert(NATS_MESSAGE_ID, self.id.as_str()),
        }
        if let Some(position) = self.restored.and_then(|restored| restored.position) {
            headers.insert(POSITION, position.to_string());
        }
        // A message that strays to another stream is refused by the server.
        headers.insert(NATS_EXPECTED_STREAM, STREAM);
        headers
    }

    fn describe(
        &self,
        source: &SourceName,
        kind: &str,
        happened_at: Timestamp,
        installation: Option<&InstallationId>,
    ) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("ce-specversion", "1.0");
        headers.insert(CE_ID, self.id.as_str());
        headers.insert("ce-source", format!("/sources/{source}"));
        headers.insert(CE_TYPE, format!("mooring.installation.{kind}"));
        headers.insert("ce-time", happened_at.to_string());
        if let Some(installation) = installation {
            headers.insert(CE_SUBJECT, header_subject(installation));
        }
        headers.insert("content-type", "application/json");
        if let Some(traceparent) = &self.traceparent {
            headers.insert(TRACEPARENT, traceparent.as_str());
        }
        headers
    }
}

/// `installations.<source>.<partition>`. Everything that is folded together
/// has one partition.
fn subject(event: &Event) -> String {
    let partitioned = match event.fact.identity() {
        Some(identity) => subject_of(&event.source, identity.place.as_str()),
        None => subject_of(&event.source, event.message_id.as_str()),
    };
    match event.fact {
        Fact::Erased { .. } => operators(partitioned),
        _ => partitioned,
    }
}

/// The subject of the same partition that only operators may publish to.
fn operators(subject: String) -> String {
    if is_operators(&subject) { subject } else { format!("{subject}.{OPERATOR}") }
}

/// The subjects of every event.
pub fn all_subjects() -> String {
    format!("{SUBJECT_ROOT}.>")
}

/// The subjects of the events of one source.
pub fn subjects_of(source: &SourceName) -> String {
    format!("{SUBJECT_ROOT}.{source}.>")
}

/// The subject of the events about one place.
pub fn subject_of(source: &SourceName, place: &str) -> String {
    let partition = Sha256::digest(place.as_bytes()).first().map_or(0, |byte| byte % PARTITIONS);
    format!("{SUBJECT_ROOT}.{source}.{partition}")
}

/// The `ce-subject` of an event about this installation.
pub fn header_subject(installation: &InstallationId) -> String {
    percent_encode(installation.as_str())
}

/// The source in a subject of the log.
pub fn source_of(subject: &str) -> Option<&str> {
    subject.split('.').nth(1)
}

/// The partition in a subject of the log.
pub fn partition_of(subject: &str) -> Option<u8> {
    subject.split('.').nth(2)?.parse().ok().filter(|partition| *partition < PARTITIONS)
}

/// Whether only an operator can have published under it.
pub(crate) fn is_operators(subject: &str) -> bool {
    subject.split('.').nth(3) == Some(OPERATOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(installation: &str) -> Event {
        let body = include_str!("../../domain/src/event/installed.v1.json");
        let body = body.replace("\"installation_id\": \"instapp_1\"", installation);
        Event::decode(body.as_bytes()).unwrap()
    }

    #[test]
    fn subject_and_headers_are_as_the_contract_says() {
        let message = LogMessage::new(&golden("\"installation_id\": \"instapp_1\"")).unwrap();
        // 64 partitions of SHA-256: this value must never change.
        assert_eq!(message.subject, "installations.blnk.31");
        let header =
            |name: &str| message.headers().get(name).map(|value| value.as_str().to_owned());
        let id = Some("blnk:install:instapp_1#00112233445566778899aabbccddeeff".to_owned());
        assert_eq!(header("Nats-Msg-Id"), id);
        assert_eq!(header("ce-id"), id);
        assert_eq!(header("Nats-Expected-Stream").as_deref(), Some("INSTALLATIONS"));
        assert_eq!(header("ce-type").as_deref(), Some("mooring.installation.installed"));
        assert_eq!(header("ce-subject").as_deref(), Some("instapp_1"));
        assert_eq!(header("ce-time").as_deref(), Some("2026-07-01T10:00:00.123456789Z"));
    }

    #[test]
    fn an_identity_from_outside_is_encoded_in_a_header() {
        let message = LogMessage::new(&golden("\"installation_id\": \"käse: 1.>\"")).unwrap();
        let headers = message.headers();
        assert_eq!(headers.get("ce-subject").unwrap().as_str(), "k%C3%A4se%3A%201.%3E");
    }
}
