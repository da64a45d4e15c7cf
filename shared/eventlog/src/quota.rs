//! How much was written where anybody may write: counted in the broker, so that
//! every ingest adds to the same numbers and no restart of one forgets them.
//!
//! The counters are those of ADR-49
//! (<https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-49.md>):
//! a header adds, and the acknowledgement says the sum. There is one for each
//! source and hour; the stream forgets those of earlier hours.

use std::time::Duration;

use anyhow::{Context as _, bail};
use async_nats::{HeaderMap, Request};
use domain::id::SourceName;
use serde::Deserialize;

use crate::connect::Connection;

/// The stream.
pub const STREAM: &str = "QUOTAS";
const SUBJECT_ROOT: &str = "quotas";
const INCREMENT: &str = "Nats-Incr";
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// What was written in an hour, by all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    pub events: u64,
    pub bytes: u64,
}

/// Of every counter.
pub(crate) fn all_subjects() -> String {
    format!("{SUBJECT_ROOT}.>")
}

/// Adds an event of so many bytes to what `source` took in `hour`.
pub async fn add(
    connection: &Connection,
    source: &SourceName,
    hour: i64,
    bytes: usize,
) -> anyhow::Result<Used> {
    let subject = |what| format!("{SUBJECT_ROOT}.{source}.{hour}.{what}");
    let (events, bytes) = tokio::try_join!(
        increment(connection, subject("events"), 1),
        increment(connection, subject("bytes"), bytes),
    )?;
    Ok(Used { events, bytes })
}

async fn increment(connection: &Connection, subject: String, by: usize) -> anyhow::Result<u64> {
    #[derive(Deserialize)]
    struct Counted {
        error: Option<Refusal>,
        val: Option<String>,
    }
    #[derive(Deserialize)]
    struct Refusal {
        description: String,
    }
    let mut headers = HeaderMap::new();
    headers.insert(INCREMENT, format!("+{by}"));
    let request = Request::new().headers(headers).timeout(Some(ANSWER_TIMEOUT));
    let asked = connection.client.send_request(subject.clone(), request);
    let answer = connection.unless_refused("a counter", &subject, asked).await?;
    let answer = answer.with_context(|| format!("counting in the stream {STREAM}"))?;
    let counted: Counted = serde_json::from_slice(&answer.payload).context("reading a count")?;
    match counted {
        Counted { error: None, val: Some(sum) } => sum.parse().context("reading a count"),
        Counted { error: Some(refusal), .. } => bail!("{}", refusal.description),
        Counted { error: None, val: None } => bail!("the stream {STREAM} does not count"),
    }
}
