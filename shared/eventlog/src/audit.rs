//! What became of callbacks that are not in the log: refused ones, and repeated
//! ones. Kept for some days in a stream in memory, for people who ask why; it
//! may be lost, and nothing depends on it.
//!
//! Anybody can send callbacks that prove nothing. Their records have a subject, a
//! queue and a rate of their own in each source, so that a flood of them pushes out
//! nothing but themselves.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use domain::id::SourceName;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::connect::Connection;
use crate::read::{Reader, Selection, Start};

/// The stream.
pub const STREAM: &str = "CALLBACKS";
const SUBJECT_ROOT: &str = "callbacks";
/// Records that wait to be sent, of either kind.
const QUEUE_MAX: usize = 256;
/// Records of one kind of one source that are kept.
pub(crate) const RECORDS_OF_SUBJECT_MAX: i64 = 2_000;
/// Records a second of callbacks of one source that proved nothing.
const UNVERIFIED_PER_S: u64 = 20;
const SECOND: Duration = Duration::from_secs(1);
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
    /// Callbacks of this kind before this one that have no record, as there were too many.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub omitted: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// Answered 4xx.
    Refused {
        status: u16,
        reason: String,
        /// Whether it had the proof that its source asks for.
        #[serde(default)]
        verified: bool,
    },
    /// Answered 2xx: the event was in the log before.
    Duplicate { installation_id: Option<String>, r#type: String, sequence: u64 },
}

impl Record {
    pub fn subject(&self) -> String {
        let outcome = match self.outcome {
            Outcome::Refused { verified: true, .. } => "refused",
            Outcome::Refused { verified: false, .. } => "unverified",
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
pub struct Recorder {
    verified: mpsc::Sender<Record>,
    unverified: mpsc::Sender<Record>,
}

impl Recorder {
    /// Starts the task that sends; it ends with the last recorder.
    pub fn start(connection: Connection) -> Self {
        let (verified, mut of_verified) = mpsc::channel::<Record>(QUEUE_MAX);
        let (unverified, mut of_unverified) = mpsc::channel::<Record>(QUEUE_MAX);
        tokio::spawn(async move {
            let mut rates = BTreeMap::<SourceName, Rate>::new();
            loop {
                let record = tokio::select! {
                    biased;
                    Some(record) = of_verified.recv() => record,
                    Some(mut record) = of_unverified.recv() => {
                        let rate = rates.entry(record.source.clone()).or_default();
                        let Some(omitted) = rate.take(Instant::now()) else { continue };
                        record.omitted = omitted;
                        record
                    }
                    else => break,
                };
                let Ok(body) = serde_json::to_vec(&record) else { continue };
                let sent = connection.client.publish(record.subject(), body.into()).await;
                if let Err(error) = sent {
                    tracing::debug!(%error, "a callback was not recorded");
                }
            }
        });
        Self { verified, unverified }
    }

    pub fn record(&self, record: Record) {
        let proves_nothing = matches!(record.outcome, Outcome::Refused { verified: false, .. });
        let queue = if proves_nothing { &self.unverified } else { &self.verified };
        if queue.try_send(record).is_err() {
            tracing::debug!("too many callbacks to record each");
        }
    }
}

/// How many records of one source were sent in the present second.
#[derive(Default)]
struct Rate {
    began: Option<Instant>,
    sent: u64,
    omitted: u64,
}

impl Rate {
    /// Whether there may be a record now, and how many callbacks before have none.
    fn take(&mut self, now: Instant) -> Option<u64> {
        if self.began.is_none_or(|began| now.saturating_duration_since(began) >= SECOND) {
            (self.began, self.sent) = (Some(now), 0);
        }
        if self.sent == UNVERIFIED_PER_S {
            self.omitted += 1;
            return None;
        }
        self.sent += 1;
        Some(std::mem::take(&mut self.omitted))
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
            Outcome::Refused { status: 401, reason: "unauthentic".into(), verified: false },
            Outcome::Refused { status: 422, reason: "missing-field".into(), verified: true },
            Outcome::Duplicate {
                installation_id: Some("a".into()),
                r#type: "installed".into(),
                sequence: 7,
            },
        ];
        for outcome in outcomes {
            let received_at = Timestamp::UNIX_EPOCH;
            let source = source.clone();
            let record = Record { source, received_at, trace_id: None, outcome, omitted: 0 };
            let text = serde_json::to_string(&record).unwrap();
            assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record, "{text}");
            assert!(record.subject().starts_with("callbacks.blnk."));
        }
    }

    #[test]
    fn a_record_of_before_is_read() {
        let text = r#"{"source":"blnk","received_at":"1970-01-01T00:00:00Z","trace_id":null,"outcome":"refused","status":401,"reason":"unauthentic"}"#;
        let record: Record = serde_json::from_str(text).unwrap();
        assert_eq!((record.subject().as_str(), record.omitted), ("callbacks.blnk.unverified", 0));
    }

    #[test]
    fn too_many_in_a_second_are_counted_by_the_next_record() {
        let (mut rate, now) = (Rate::default(), Instant::now());
        let taken: Vec<_> = (0..100).map(|_| rate.take(now)).collect();
        assert_eq!(taken.iter().flatten().count(), 20);
        assert_eq!(rate.take(now + SECOND), Some(80));
        assert_eq!(rate.take(now + SECOND), Some(0));
    }
}
