//! A message of the log as a line of a segment.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use domain::id::StreamSequence;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::delivery::{Delivery, Headers};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    sequence: u64,
    stored_at: Timestamp,
    subject: String,
    /// Sorted by name; a repeated header has an entry for each value.
    headers: Vec<(String, String)>,
    /// Every byte of it, where it is UTF-8, as all bodies of ours are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

/// Appends a message as a line of a segment.
pub fn encode(delivery: &Delivery, into: &mut Vec<u8>) -> serde_json::Result<()> {
    let text = std::str::from_utf8(&delivery.body).ok().map(str::to_owned);
    let record = Record {
        sequence: delivery.sequence.0,
        stored_at: delivery.published_at,
        subject: delivery.subject.clone(),
        headers: delivery.headers.pairs(),
        body_base64: text.is_none().then(|| STANDARD.encode(&delivery.body)),
        body: text,
    };
    serde_json::to_writer(&mut *into, &record)?;
    into.push(b'\n');
    Ok(())
}

pub(super) fn decode(line: &[u8]) -> Result<Delivery, String> {
    let record: Record = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let body = match (record.body, record.body_base64) {
        (Some(text), None) => Bytes::from(text),
        (None, Some(encoded)) => {
            STANDARD.decode(encoded).map(Bytes::from).map_err(|error| error.to_string())?
        }
        (Some(_), Some(_)) | (None, None) => return Err("a record needs one body".to_owned()),
    };
    Ok(Delivery {
        sequence: StreamSequence(record.sequence),
        subject: record.subject,
        headers: Headers::from_pairs(&record.headers)?,
        body,
        published_at: record.stored_at,
    })
}
