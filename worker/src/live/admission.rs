//! Which messages of a batch are events that count: what can be read, and was written
//! by who may.

use domain::event::{Event, Fact};
use domain::event_key::{EventKeys, Unproven};
use domain::fold::Recorded;
use eventlog::delivery::Delivery;
use eventlog::message::TRACEPARENT;
use serde_json::value::RawValue;
use sqlx::PgConnection;

use crate::error_chain::chain;
use crate::store::dead_letters::{DeadLetter, Reason};
use crate::store::journal::{self, Entry};

/// Events, and what is none or is not proven to be one.
pub(super) async fn admit<'a>(
    connection: &mut PgConnection,
    batch: &'a [Delivery],
    keys: &EventKeys,
) -> Result<(Vec<Entry>, Vec<DeadLetter<'a>>), sqlx::Error> {
    let (mut entries, mut dead_letters) = (Vec::with_capacity(batch.len()), Vec::new());
    let mut unproven = Vec::new();
    for delivery in batch {
        match entry(delivery) {
            Ok(entry) => match require_proof(delivery, &entry.recorded.event.fact, keys) {
                Ok(()) => entries.push(entry),
                Err(why) => unproven.push((entry, delivery, why)),
            },
            Err(detail) => {
                dead_letters.push(DeadLetter { delivery, reason: Reason::Undecodable, detail });
            }
        }
    }
    if !unproven.is_empty() {
        // It came before there were keys, or its key has ended; or an operator let it in.
        let known: Vec<&Entry> = unproven.iter().map(|(entry, ..)| entry).collect();
        let known = journal::has_as_they_are(connection, &known).await?;
        for (entry, delivery, why) in unproven {
            if known.contains(&entry.recorded.event.message_id) {
                entries.push(entry);
            } else {
                let (reason, detail) = (Reason::NotEntitled, why.to_string());
                dead_letters.push(DeadLetter { delivery, reason, detail });
            }
        }
    }
    for DeadLetter { delivery, reason, detail } in &dead_letters {
        let sequence = delivery.sequence.0;
        tracing::error!(sequence, reason = reason.name(), detail, "dead letter");
    }
    Ok((entries, dead_letters))
}

fn entry(delivery: &Delivery) -> Result<Entry, String> {
    let event = Event::decode(&delivery.body).map_err(|error| chain(&error))?;
    let text = String::from_utf8(delivery.body.to_vec()).map_err(|error| chain(&error))?;
    let body = RawValue::from_string(text).map_err(|error| chain(&error))?;
    let traceparent = delivery.headers.get(TRACEPARENT).map(str::to_owned);
    let (restored, by_operator) = (delivery.is_restored(), delivery.is_by_operator());
    let recorded = Recorded { sequence: delivery.position(), event };
    Ok(Entry { recorded, restored, by_operator, traceparent, body })
}

/// Whether who wrote an event is proven: by its code, or by a subject that only
/// operators may publish to.
pub(crate) fn require_proof<C>(
    delivery: &Delivery,
    fact: &Fact<C>,
    keys: &EventKeys,
) -> Result<(), Unproven> {
    if delivery.is_vouched_for() {
        return Ok(());
    }
    keys.check(delivery.proof(), &delivery.body, fact, delivery.published_at)
}
