//! The limit of the log: atomic batches from a publisher that does nothing
//! else, one at a time.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use async_nats::header::{
    NATS_BATCH_COMMIT, NATS_BATCH_COMMIT_FINAL, NATS_BATCH_ID, NATS_BATCH_SEQUENCE, NATS_MESSAGE_ID,
};
use async_nats::{HeaderMap, Request};
use bytes::Bytes;

use crate::load::Outcome;
use crate::stack::Stack;

/// As large as an install from Blnk is in the log.
const BODY_BYTES: usize = 1_000;

/// `acks/s` counts events, latencies are those of batches.
pub(crate) async fn send(stack: &Stack, events: usize, duration: Duration) -> Result<Outcome> {
    let client = stack.client().await?;
    let body = Bytes::from(vec![b'x'; BODY_BYTES]);
    let mut outcome = Outcome::new()?;
    let start = Instant::now();
    let mut batches = 0_u64;
    while start.elapsed() < duration {
        let sent = Instant::now();
        let message = |position: usize| {
            let mut headers = HeaderMap::new();
            headers.insert(NATS_MESSAGE_ID, format!("{batches}-{position}"));
            headers.insert(NATS_BATCH_ID, format!("batch-{batches}"));
            headers.insert(NATS_BATCH_SEQUENCE, position.to_string());
            headers
        };
        let subject = "installations.bench.0";
        for position in 1..events {
            client.publish_with_headers(subject, message(position), body.clone()).await?;
        }
        let mut last = message(events);
        last.insert(NATS_BATCH_COMMIT, NATS_BATCH_COMMIT_FINAL);
        let last = Request::new().headers(last).payload(body.clone());
        let ack = client.send_request(subject, last).await.context("committing a batch")?;
        if ack.payload.starts_with(b"{\"error\"") {
            bail!("a batch was refused: {}", String::from_utf8_lossy(&ack.payload));
        }
        outcome.answered(sent.elapsed());
        batches += 1;
    }
    outcome.count(batches * events as u64, start.elapsed());
    Ok(outcome)
}
