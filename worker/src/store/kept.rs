//! The events of a place that the fold still needs: `mooring.journal.kept`. What
//! a commit reads must not grow with the history of the place.

use std::collections::{BTreeMap, BTreeSet};

use domain::event::Event;
use domain::fold::{Recorded, kept};
use domain::id::{MessageId, StreamSequence};
use serde_json::value::RawValue;
use sqlx::PgConnection;
use sqlx::types::Json;

use crate::store::convert::sequence_from_sql;
use crate::store::fold_unit::{FoldUnit, arrays};

/// A place with no more than this is left as it is: to mark an event writes its
/// row again.
const EVENTS_LEFT: usize = 64;

/// What is folded when some events of these places have come.
pub(crate) struct Needed {
    pub(crate) history: Vec<Recorded>,
    /// Of the history, read only because an event that came has the same key.
    superseded: BTreeSet<MessageId>,
}

/// Reads what is kept of the places, and what has a key of `incoming`.
///
/// `OFFSET 0` keeps Postgres from reading the whole history of a place to find the few
/// events with these keys: it did, by statistics from when the journal was empty.
pub(crate) async fn read(
    connection: &mut PgConnection,
    units: &[FoldUnit],
    incoming: &[&Recorded],
) -> Result<Needed, sqlx::Error> {
    let (sources, places) = arrays(units);
    let of_events = |of: fn(&Event) -> &str| -> Vec<&str> {
        incoming.iter().map(|recorded| of(&recorded.event)).collect()
    };
    let rows = sqlx::query!(
        r#"
        WITH unit AS (SELECT * FROM unnest($1::text[], $2::text[]) AS unit (source, place)),
             incoming AS (
                 SELECT DISTINCT * FROM unnest($3::text[], $4::text[])
                     AS incoming (source, idempotency_key))
        SELECT stream_sequence AS "stream_sequence!", kept AS "kept!",
               event AS "event!: Json<Box<RawValue>>"
        FROM unit CROSS JOIN LATERAL (
            SELECT stream_sequence, kept, event FROM mooring.journal
            WHERE journal.source = unit.source AND journal.place = unit.place AND kept
            OFFSET 0) AS of_place
        UNION ALL
        SELECT stream_sequence, kept, event
        FROM incoming CROSS JOIN LATERAL (
            SELECT place, stream_sequence, kept, event FROM mooring.journal
            WHERE journal.source = incoming.source
              AND journal.idempotency_key = incoming.idempotency_key
            OFFSET 0) AS of_key
             JOIN unit USING (source, place)
        WHERE NOT kept
        "#,
        &sources as _,
        &places as _,
        &of_events(|event| event.source.as_str()) as _,
        &of_events(|event| event.idempotency_key.as_str()) as _,
    )
    .fetch_all(connection)
    .await?;
    let mut needed =
        Needed { history: Vec::with_capacity(rows.len()), superseded: BTreeSet::new() };
    for row in rows {
        let event = Event::decode_without_payload(row.event.get().as_bytes())
            .map_err(|error| sqlx::Error::Decode(error.into()))?;
        if !row.kept {
            needed.superseded.insert(event.message_id.clone());
        }
        let sequence = StreamSequence(sequence_from_sql(row.stream_sequence));
        needed.history.push(Recorded { sequence, event });
    }
    Ok(needed)
}

/// Marks what the fold needs no longer, and what it needs again. Every event up
/// to `complete_to` must have been committed before the history was read. Says which
/// places keep more events than `events_max` all the same.
pub(crate) async fn mark(
    connection: &mut PgConnection,
    needed: &Needed,
    complete_to: StreamSequence,
    events_max: usize,
) -> Result<BTreeSet<FoldUnit>, sqlx::Error> {
    let (mut again, mut no_longer) = (Vec::new(), Vec::new());
    let mut full = BTreeSet::new();
    let mut by_place: BTreeMap<FoldUnit, Vec<&Recorded>> = BTreeMap::new();
    for recorded in &needed.history {
        if let Some(unit) = FoldUnit::of(recorded) {
            by_place.entry(unit).or_default().push(recorded);
        }
    }
    for (unit, events) in by_place {
        let is_superseded =
            |recorded: &Recorded| needed.superseded.contains(&recorded.event.message_id);
        if events.len() <= EVENTS_LEFT && !events.iter().any(|it| is_superseded(it)) {
            continue;
        }
        let kept = kept(events.iter().copied(), complete_to);
        if kept.len() > events_max {
            full.insert(unit);
        }
        for recorded in events {
            let id = &recorded.event.message_id;
            match (kept.contains(id), is_superseded(recorded)) {
                (true, true) => again.push(id.as_str()),
                (false, false) => no_longer.push(id.as_str()),
                (true, false) | (false, true) => {}
            }
        }
    }
    if again.is_empty() && no_longer.is_empty() {
        return Ok(full);
    }
    sqlx::query!(
        r#"
        UPDATE mooring.journal
        SET kept = NOT kept
        WHERE message_id = ANY($1) AND NOT kept OR message_id = ANY($2) AND kept
        "#,
        &again as _,
        &no_longer as _,
    )
    .execute(connection)
    .await?;
    Ok(full)
}

/// What comes late may make anything in its place matter again.
pub(crate) async fn keep_all(
    connection: &mut PgConnection,
    units: &BTreeSet<FoldUnit>,
) -> Result<(), sqlx::Error> {
    let (sources, places) = arrays(units);
    sqlx::query!(
        r#"
        UPDATE mooring.journal
        SET kept = true
        FROM unnest($1::text[], $2::text[]) AS unit (source, place)
        WHERE journal.source = unit.source AND journal.place = unit.place AND NOT kept
        "#,
        &sources as _,
        &places as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}
