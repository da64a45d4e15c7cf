//! Whether the platform has got our answer is part of the history: one that has
//! not may have cancelled the installation and revoked the key.
//!
//! A missed answer is noted in the log as an event of its own, and so is a
//! later one that settles it.

use std::sync::Arc;
use std::time::Duration;

use domain::event::Event;
use eventlog::message::LogMessage;
use jiff::Timestamp;
use opentelemetry::KeyValue;
use service::clock;
use service::problem::Problem;
use service::telemetry::names::attribute;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, Span};

use crate::metrics::METRICS;
use crate::publish::{Published, Publisher};

/// Nobody waits for a note, and the log may be away when it is needed.
const NOTE_BUDGET: Duration = Duration::from_secs(60);

/// Whether the platform got our answer, as far as we can know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Receipt {
    /// The client was there in time. Whether it read the answer nobody knows.
    InTime,
    /// It had hung up, or its deadline had passed.
    Missed,
}

/// Appends a note about a missed answer, or one that settles it, where there is one.
pub(crate) fn note(
    publisher: &Arc<Publisher>,
    notes: &TaskTracker,
    event: &Event,
    result: &Result<Published, Problem>,
    receipt: Receipt,
) {
    let now = clock::now();
    let about = match (result, receipt) {
        (Ok(_), Receipt::Missed) => missed(publisher, event, now),
        // It may be in the log all the same.
        (Err(problem), _) if !problem.is_refusal() => missed(publisher, event, now),
        // The first delivery went to another process, or its answer was missed.
        (Ok(Published { duplicate: true, answered_before: false, .. }), Receipt::InTime) => {
            event.ack_delivered(now)
        }
        (Ok(_), Receipt::InTime) | (Err(_), _) => None,
    };
    if let Some(about) = about {
        let append = append(Arc::clone(publisher), about);
        notes.spawn(append.instrument(Span::current()));
    }
}

fn missed(publisher: &Publisher, event: &Event, now: Timestamp) -> Option<Event> {
    let source = KeyValue::new(attribute::SOURCE, event.source.to_string());
    METRICS.acks_missed.add(1, &[source]);
    publisher.forget(event.message_id.clone());
    event.ack_missed(now)
}

async fn append(publisher: Arc<Publisher>, note: Event) {
    let (kind, about) = (note.fact.kind(), note.idempotency_key.as_str());
    let Ok(message) = LogMessage::new(&note) else { return };
    match publisher.append(message, NOTE_BUDGET).await {
        Ok(_) => tracing::info!(event.r#type = kind, %about, "noted"),
        Err(why) => tracing::error!(event.r#type = kind, %about, %why, "not noted"),
    }
}
