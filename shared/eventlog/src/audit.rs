//! What became of callbacks that are not in the log: refused ones, and repeated
//! ones. Kept for some days in a stream in memory, for people who ask why; it
//! may be lost, and nothing depends on it.

use std::time::Duration;

use domain::id::SourceName;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::connect::Connection;
use crate::read::{Reader, Selection, Start};

/// The stream.
pub const STREAM: &str = "CALLBACKS";
const SUBJECT_ROOT: &str = "callbacks";
/// Records that wait to be sent.
const QUEUE_MAX: usize = 256;
/// Records of a source that are looked through.
const RECORDS_MAX: usize = 100_000;
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// One callback. It holds nothing of a body that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub source: SourceName,
    pub received_at: Timestamp,
    /// In the logs and traces of ingest.
    pub trace_id: Option<String>,
    #[serde(flatten)]
    pub outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// Answered 4xx.
    Refused { status: u16, reason: String },
    /// Answered 2xx: the event was in the log before.
    Duplicate { installation_id: Option<String>, r#type: String, sequence: u64 },
}

impl Record {
    pub fn subject(&self) -> String {
        let outcome = match self.outcome {
            Outcome::Refused { .. } => "refused",
            Outcome::Duplicate { .. } => "duplicate",
        };
        format!("{SUBJECT_ROOT}.{}.{outcome}", self.source)
    }
}

/// The subjects of one source, or of all.
pub fn subjects(source: Option<&SourceName>) -> String {
    match source {
        Some(source) => format!("{SUBJECT_ROOT}.{source}.>"),
        None => format!("{SUBJECT_ROOT}.>"),
    }
}

/// Where records are sent to. Nobody waits for it: what does not fit is dropped.
#[derive(Clone)]
pub struct Recorder(mpsc::Sender<Record>);

impl Recorder {
    /// Starts the task that sends; it ends with the last recorder.
    pub fn start(connection: Connection) -> Self {
        let (sender, mut records) = mpsc::channel::<Record>(QUEUE_MAX);
        tokio::spawn(async move {
            while let Some(record) = records.recv().await {
                let Ok(body) = serde_json::to_vec(&record) else { continue };
                let sent = connection.client.publish(record.subject(), body.into()).await;
                if let Err(error) = sent {
                    tracing::debug!(%error, "a callback was not recorded");
                }
            }
        });
        Self(sender)
    }

    pub fn record(&self, record: Record) {
        if self.0.try_send(record).is_err() {
            tracing::debug!("too many callbacks to record each");
        }
    }
}

/// The records of one source, or of all, as far as they are remembered.
pub async fn records(
    connection: &Connection,
    source: Option<&SourceName>,
) -> anyhow::Result<Vec<Record>> {
    let selection = Selection {
        silence_max: SILENCE_MAX,
        ..Selection::of_all(STREAM, subjects(source), Start::Sequence(1))
    };
    let mut reader = Reader::open(connection, selection).await?;
    let mut found = Vec::new();
    // Some may have been dropped since they were counted, and then nothing more comes.
    while let Ok(Some(message)) = reader.next().await {
        // One of another version is none that we can show.
        found.extend(serde_json::from_slice::<Record>(&message.body).ok());
        if found.len() == RECORDS_MAX {
            break;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let source = SourceName::parse("blnk").unwrap();
        let outcomes = [
            Outcome::Refused { status: 401, reason: "unauthentic".into() },
            Outcome::Duplicate {
                installation_id: Some("a".into()),
                r#type: "installed".into(),
                sequence: 7,
            },
        ];
        for outcome in outcomes {
            let received_at = Timestamp::UNIX_EPOCH;
            let record = Record { source: source.clone(), received_at, trace_id: None, outcome };
            let text = serde_json::to_string(&record).unwrap();
            assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record, "{text}");
            assert!(record.subject().starts_with("callbacks.blnk."));
        }
    }
}
