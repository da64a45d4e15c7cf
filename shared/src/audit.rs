//! What became of callbacks that are not in the log: refused ones, and repeated
//! ones. Kept for some days in a stream in memory, for people who ask why; it
//! may be lost, and nothing depends on it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::SourceName;

/// The stream.
pub const STREAM: &str = "CALLBACKS";
const SUBJECT_ROOT: &str = "callbacks";

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
