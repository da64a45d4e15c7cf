//! The journal: every distinct event, once. All SQL on `mooring.journal`.

use std::collections::BTreeSet;

use domain::event::{Event, Identity, Payload};
use domain::fold::{Recorded, conflicts};
use domain::id::{InstallationId, MessageId, Place, PlatformName, SourceName, StreamSequence};
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::PgConnection;
use sqlx::types::Json;

use crate::store::convert::{self, sequence_to_sql, to_sql};
use crate::store::fold_unit::FoldUnit;

/// An event as it came from the log.
pub(crate) struct Entry {
    pub(crate) recorded: Recorded,
    pub(crate) traceparent: Option<String>,
    /// The body as in the log.
    pub(crate) body: Box<RawValue>,
}

/// Appends what is not there yet and says which events that were.
///
/// Of two copies of one event the first in the log stays: which one a worker
/// sees first must not matter.
pub(crate) async fn append(
    connection: &mut PgConnection,
    entries: &[&Entry],
) -> Result<BTreeSet<MessageId>, sqlx::Error> {
    let event = |entry: &&Entry| -> Event { entry.recorded.event.clone() };
    let events: Vec<Event> = entries.iter().map(event).collect();
    let ids: Vec<&str> = events.iter().map(|event| event.message_id.as_str()).collect();
    let sequences: Vec<i64> =
        entries.iter().map(|entry| sequence_to_sql(entry.recorded.sequence.0)).collect();
    let sources: Vec<&str> = events.iter().map(|event| event.source.as_str()).collect();
    let keys: Vec<&str> = events.iter().map(|event| event.idempotency_key.as_str()).collect();
    let secrets: Vec<Option<String>> = events
        .iter()
        .map(|event| event.secret_fingerprint.as_ref().map(ToString::to_string))
        .collect();
    let types: Vec<&str> = events.iter().map(|event| event.fact.kind()).collect();
    let identities: Vec<_> = events.iter().map(|event| event.fact.identity()).collect();
    let installations: Vec<Option<&str>> =
        identities.iter().map(|found| found.map(|it| it.installation_id.as_str())).collect();
    let places: Vec<Option<&str>> =
        identities.iter().map(|found| found.map(|it| it.place.as_str())).collect();
    let received: Vec<_> = events.iter().map(|event| to_sql(event.received_at)).collect();
    let occurred: Vec<_> = events.iter().map(|event| event.occurred_at.map(to_sql)).collect();
    let traceparents: Vec<Option<&str>> =
        entries.iter().map(|entry| entry.traceparent.as_deref()).collect();
    let bodies: Vec<&str> = entries.iter().map(|entry| entry.body.get()).collect();
    let rows = sqlx::query!(
        r#"
        INSERT INTO mooring.journal AS kept
            (message_id, stream_sequence, source, idempotency_key, secret_fingerprint, event_type,
             installation_id, place, received_at, occurred_at, traceparent, event)
        SELECT message_id, stream_sequence, source, idempotency_key, secret_fingerprint, event_type,
             installation_id, place, received_at, occurred_at, traceparent, event::json
        FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[],
                    $7::text[], $8::text[], $9::timestamptz[], $10::timestamptz[], $11::text[],
                    $12::text[])
            AS incoming (message_id, stream_sequence, source, idempotency_key, secret_fingerprint,
                         event_type, installation_id, place, received_at, occurred_at, traceparent,
                         event)
        ON CONFLICT (message_id) DO UPDATE
            SET stream_sequence = excluded.stream_sequence,
                received_at = excluded.received_at,
                traceparent = excluded.traceparent,
                event = excluded.event
            WHERE excluded.stream_sequence < kept.stream_sequence
        RETURNING message_id, (xmax = 0) AS "inserted!"
        "#,
        &ids as _,
        &sequences,
        &sources as _,
        &keys as _,
        &secrets as _,
        &types as _,
        &installations as _,
        &places as _,
        &received,
        &occurred as _,
        &traceparents as _,
        &bodies as _,
    )
    .fetch_all(connection)
    .await?;
    let inserted = rows.into_iter().filter(|row| row.inserted);
    Ok(inserted.map(|row| MessageId::from_stored(row.message_id)).collect())
}

/// All events of the given places, to be folded.
pub(crate) async fn of_places(
    connection: &mut PgConnection,
    units: &[FoldUnit],
) -> Result<Vec<Recorded>, sqlx::Error> {
    let sources: Vec<&str> = units.iter().map(|unit| unit.source.as_str()).collect();
    let places: Vec<&str> = units.iter().map(|unit| unit.place.as_str()).collect();
    let rows = sqlx::query!(
        r#"
        SELECT stream_sequence, event AS "event: Json<Box<RawValue>>"
        FROM mooring.journal
        JOIN unnest($1::text[], $2::text[]) AS unit (source, place) USING (source, place)
        "#,
        &sources as _,
        &places as _,
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(|row| recorded(row.stream_sequence, &row.event)).collect()
}

/// Where something was appended after sequence `after`, or late.
pub(crate) async fn changed_places(
    connection: &mut PgConnection,
    after: u64,
) -> Result<Vec<FoldUnit>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        SELECT source AS "source!", place AS "place!"
        FROM mooring.journal
        WHERE stream_sequence > $1 AND place IS NOT NULL
        UNION
        SELECT source, place FROM mooring.late_places
        "#,
        sequence_to_sql(after),
    )
    .fetch_all(connection)
    .await?;
    let unit = |source: String, place: String| {
        let source =
            SourceName::parse(source).map_err(|error| sqlx::Error::Decode(error.into()))?;
        Ok(FoldUnit { source, place: Place::from_stored(place) })
    };
    rows.into_iter().map(|row| unit(row.source, row.place)).collect()
}

/// Events that name a place, place by place, from behind the place `after`.
pub(crate) async fn after_place(
    connection: &mut PgConnection,
    after: Option<&FoldUnit>,
    limit: i64,
) -> Result<Vec<Recorded>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        SELECT stream_sequence, event AS "event: Json<Box<RawValue>>"
        FROM mooring.journal
        WHERE place IS NOT NULL AND (source, place) > ($1, $2)
        ORDER BY source, place
        LIMIT $3
        "#,
        after.map_or("", |unit| unit.source.as_str()),
        after.map_or("", |unit| unit.place.as_str()),
        limit,
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(|row| recorded(row.stream_sequence, &row.event)).collect()
}

pub(crate) async fn count(connection: &mut PgConnection) -> Result<u64, sqlx::Error> {
    let count = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM mooring.journal WHERE place IS NOT NULL"#
    )
    .fetch_one(connection)
    .await?;
    Ok(u64::try_from(count).unwrap_or_default())
}

fn recorded(sequence: i64, event: &RawValue) -> Result<Recorded, sqlx::Error> {
    let event = Event::decode_without_payload(event.get().as_bytes())
        .map_err(|error| sqlx::Error::Decode(error.into()))?;
    Ok(Recorded { sequence: StreamSequence(convert::sequence_from_sql(sequence)), event })
}

/// Where an installation was ever said to be.
pub(crate) async fn identities(
    connection: &mut PgConnection,
    source: &SourceName,
    installation: &InstallationId,
) -> Result<Vec<(PlatformName, Identity)>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        SELECT DISTINCT ON (place) stream_sequence, event AS "event: Json<Box<RawValue>>"
        FROM mooring.journal
        WHERE source = $1 AND installation_id = $2
        ORDER BY place, stream_sequence
        "#,
        source.as_str(),
        installation.as_str(),
    )
    .fetch_all(connection)
    .await?;
    let identity = |sequence, event: &RawValue| {
        let event = recorded(sequence, event)?.event;
        Ok(event.fact.identity().map(|identity| (event.platform.clone(), identity.clone())))
    };
    rows.into_iter()
        .filter_map(|row| identity(row.stream_sequence, &row.event).transpose())
        .collect()
}

/// The events of an installation up to `end`, as JSON.
pub(crate) async fn bodies(
    connection: &mut PgConnection,
    source: &SourceName,
    installation: &InstallationId,
    end: u64,
) -> Result<Vec<serde_json::Value>, sqlx::Error> {
    let rows = sqlx::query_scalar!(
        r#"
        SELECT event AS "event: Json<serde_json::Value>"
        FROM mooring.journal
        WHERE source = $1 AND installation_id = $2 AND stream_sequence <= $3
        "#,
        source.as_str(),
        installation.as_str(),
        sequence_to_sql(end),
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|event| event.0).collect())
}

/// How many events hold a secret that a key of the ring itself seals, by key.
pub(crate) async fn sealed_by_ring_keys(
    connection: &mut PgConnection,
) -> Result<Vec<(String, u64)>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        SELECT key_id AS "key_id!", count(*) AS "events!"
        FROM (SELECT substring(event::text FROM '"sealed": ?"v1\.([a-z0-9_-]+)\.[A-Za-z0-9_-]{16}\.') AS key_id
              FROM mooring.journal) AS found
        WHERE key_id IS NOT NULL
        GROUP BY key_id
        "#
    )
    .fetch_all(connection)
    .await?;
    let count = |events| u64::try_from(events).unwrap_or_default();
    Ok(rows.into_iter().map(|row| (row.key_id, count(row.events))).collect())
}

/// One event as the read API shows it: history without sealed bytes.
#[derive(Debug, Serialize)]
pub struct HistoryEntry {
    pub sequence: StreamSequence,
    pub source: SourceName,
    pub r#type: &'static str,
    pub idempotency_key: String,
    pub message_id: String,
    pub received_at: jiff::Timestamp,
    pub occurred_at: Option<jiff::Timestamp>,
    pub traceparent: Option<String>,
    /// Another event with this key and secret says otherwise, and counts.
    pub conflict: bool,
    /// As received; null where it is sealed as a whole.
    pub payload: serde_json::Value,
}

/// The history of one installation, in log order, from after `after`.
pub(crate) async fn history(
    connection: &mut PgConnection,
    source: Option<&str>,
    installation: &InstallationId,
    after: u64,
    limit: i64,
) -> Result<Vec<HistoryEntry>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        SELECT stream_sequence, traceparent, source, idempotency_key,
               event AS "event: Json<Box<RawValue>>"
        FROM mooring.journal
        WHERE installation_id = $1 AND source = coalesce($2, source) AND stream_sequence > $3
        ORDER BY stream_sequence
        LIMIT $4
        "#,
        installation.as_str(),
        source,
        sequence_to_sql(after),
        limit,
    )
    .fetch_all(&mut *connection)
    .await?;
    let keys: BTreeSet<(&str, &str)> =
        rows.iter().map(|row| (row.source.as_str(), row.idempotency_key.as_str())).collect();
    let attempts = of_keys(connection, &keys).await?;
    let conflicts = conflicts(&attempts);
    let entry = |sequence, traceparent, event: &RawValue| {
        let event: Event = Event::decode(event.get().as_bytes())
            .map_err(|error| sqlx::Error::Decode(error.into()))?;
        Ok(HistoryEntry {
            sequence: StreamSequence(convert::sequence_from_sql(sequence)),
            r#type: event.fact.kind(),
            source: event.source,
            idempotency_key: event.idempotency_key.into(),
            message_id: event.message_id.to_string(),
            received_at: event.received_at,
            occurred_at: event.occurred_at,
            traceparent,
            conflict: conflicts.contains(&event.message_id),
            payload: match event.payload {
                Payload::Clear(payload) => payload,
                Payload::Sealed(_) => serde_json::Value::Null,
            },
        })
    };
    rows.into_iter().map(|row| entry(row.stream_sequence, row.traceparent, &row.event)).collect()
}

/// The events with these idempotency keys, and the notes about them.
async fn of_keys(
    connection: &mut PgConnection,
    keys: &BTreeSet<(&str, &str)>,
) -> Result<Vec<Recorded>, sqlx::Error> {
    let (sources, keys): (Vec<&str>, Vec<&str>) = keys.iter().copied().unzip();
    let rows = sqlx::query!(
        r#"
        SELECT stream_sequence, event AS "event: Json<Box<RawValue>>"
        FROM mooring.journal
        JOIN unnest($1::text[], $2::text[]) AS wanted (source, idempotency_key)
            USING (source, idempotency_key)
        "#,
        &sources as _,
        &keys as _,
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(|row| recorded(row.stream_sequence, &row.event)).collect()
}
