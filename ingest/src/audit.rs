//! Tells the stream of callbacks what became of those that are not in the log.
//! No callback waits for it: what does not fit is dropped.

use async_nats::Client;
use jiff::Timestamp;
use shared::audit::{Outcome, Record};
use shared::id::SourceName;
use shared::telemetry;
use tokio::sync::mpsc;
use tracing::Span;

const QUEUE_MAX: usize = 256;

#[derive(Clone)]
pub(crate) struct Audit(mpsc::Sender<Record>);

impl Audit {
    /// Starts the task that sends; it ends with the last sender.
    pub(crate) fn start(client: Client) -> Self {
        let (sender, mut records) = mpsc::channel::<Record>(QUEUE_MAX);
        tokio::spawn(async move {
            while let Some(record) = records.recv().await {
                let Ok(body) = serde_json::to_vec(&record) else { continue };
                if let Err(error) = client.publish(record.subject(), body.into()).await {
                    tracing::debug!(%error, "a callback was not recorded");
                }
            }
        });
        Self(sender)
    }

    pub(crate) fn record(&self, source: &SourceName, outcome: Outcome) {
        let trace_id = telemetry::trace_id(&Span::current());
        let received_at = Timestamp::now();
        let record = Record { source: source.clone(), received_at, trace_id, outcome };
        if self.0.try_send(record).is_err() {
            tracing::debug!("too many callbacks to record each");
        }
    }
}
