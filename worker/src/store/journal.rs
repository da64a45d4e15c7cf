//! The journal: every distinct event, once. All SQL that writes `mooring.journal`,
//! and what is read of it alone. Where it is joined with another table, the SQL is
//! with that one: `late_places`, `dead_letters`, `token_renewals`, `log_index`.

use std::collections::BTreeSet;

use domain::event::{Event, Identity, Payload};
use domain::fold::{Recorded, conflicts};
use domain::id::{InstallationId, MessageId, PlatformName, SourceName, StreamSequence};
use futures_util::TryStreamExt as _;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, FromRow, PgConnection};

use crate::store::convert::{sequence_from_sql, sequence_to_sql, to_sql};
use crate::store::fold_unit::{FoldUnit, arrays};
use crate::store::reach::{APP_OF_PLACE, Reach};

/// An event as it came from the log.
pub(crate) struct Entry {
    pub(crate) recorded: Recorded,
    /// Put back into the log by an operator, far behind its position.
    pub(crate) restored: bool,
    /// Nobody but an operator can have published it.
    pub(crate) by_operator: bool,
    pub(crate) traceparent: Option<String>,
    /// The body as in the log.
    pub(crate) body: Box<RawValue>,
}

/// What changed in the journal.
#[derive(Debug, Default)]
pub(crate) struct Appended {
    pub(crate) new: BTreeSet<MessageId>,
    /// There before, from a later place in the log, or as it stood at this one before
    /// the log was restored.
    pub(crate) moved: BTreeSet<MessageId>,
}

/// Appends what is not there yet.
///
/// Of two copies of one event the first in the log stays: which one a worker
/// sees first must not matter. After the log was put back to an older copy, a retry
/// may stand where the event stood before. Then the log is right.
pub(crate) async fn append(
    connection: &mut PgConnection,
    entries: &[&Entry],
) -> Result<Appended, sqlx::Error> {
    let events: Vec<&Event> = entries.iter().map(|entry| &entry.recorded.event).collect();
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
        identities.iter().map(|it| Some((*it)?.installation_id.as_str())).collect();
    let places: Vec<Option<&str>> =
        identities.iter().map(|it| Some((*it)?.place.as_str())).collect();
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
                event = excluded.event,
                event_sha256 = NULL
            WHERE excluded.stream_sequence < kept.stream_sequence
               OR excluded.stream_sequence = kept.stream_sequence
                  AND sha256(convert_to(excluded.event::text, 'UTF8'))
                      <> coalesce(kept.event_sha256, sha256(convert_to(kept.event::text, 'UTF8')))
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
    let mut appended = Appended::default();
    for row in rows {
        let into = if row.inserted { &mut appended.new } else { &mut appended.moved };
        into.insert(MessageId::from_stored(row.message_id));
    }
    Ok(appended)
}

/// Which of these the journal has, just as they stand in the log.
pub(crate) async fn has_as_they_are(
    connection: &mut PgConnection,
    entries: &[&Entry],
) -> Result<BTreeSet<MessageId>, sqlx::Error> {
    let recorded = entries.iter().map(|entry| &entry.recorded);
    let sequences: Vec<i64> = recorded.map(|it| sequence_to_sql(it.sequence.0)).collect();
    let ids: Vec<&str> =
        entries.iter().map(|entry| entry.recorded.event.message_id.as_str()).collect();
    let bodies: Vec<&str> = entries.iter().map(|entry| entry.body.get()).collect();
    let known = sqlx::query_scalar!(
        r#"
        SELECT journal.message_id
        FROM mooring.journal
             JOIN unnest($1::text[], $2::bigint[], $3::text[])
                 AS given (message_id, stream_sequence, event)
             USING (message_id, stream_sequence)
        WHERE coalesce(event_sha256, sha256(convert_to(journal.event::text, 'UTF8')))
              = sha256(convert_to(given.event, 'UTF8'))
        "#,
        &ids as _,
        &sequences,
        &bodies as _,
    )
    .fetch_all(connection)
    .await?;
    Ok(known.into_iter().map(MessageId::from_stored).collect())
}

/// What is kept of an event whose payload is proven to be in the archive.
pub(crate) struct Relieved {
    pub(crate) message_id: String,
    pub(crate) position: StreamSequence,
    /// Of its body, as it is in the archive.
    pub(crate) sha256: Vec<u8>,
    pub(crate) event: String,
}

/// Keeps this of events, where the body that the journal has is the archived one.
pub(crate) async fn relieve(
    connection: &mut PgConnection,
    events: &[Relieved],
) -> Result<(), sqlx::Error> {
    let ids: Vec<&str> = events.iter().map(|it| it.message_id.as_str()).collect();
    let positions: Vec<i64> = events.iter().map(|it| sequence_to_sql(it.position.0)).collect();
    let hashes: Vec<&[u8]> = events.iter().map(|it| it.sha256.as_slice()).collect();
    let left: Vec<&str> = events.iter().map(|it| it.event.as_str()).collect();
    sqlx::query!(
        r#"
        UPDATE mooring.journal
        SET event_sha256 = relieved.sha256, event = relieved.event::json
        FROM unnest($1::text[], $2::bigint[], $3::bytea[], $4::text[])
            AS relieved (message_id, stream_sequence, sha256, event)
        WHERE journal.message_id = relieved.message_id
          AND journal.stream_sequence = relieved.stream_sequence
          AND event_sha256 IS NULL
          AND sha256(convert_to(journal.event::text, 'UTF8')) = relieved.sha256
        "#,
        &ids as _,
        &positions,
        &hashes as _,
        &left as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Deletes renewed tokens that were replaced, among the archived events from `first` to
/// `last`. Says how many.
pub(crate) async fn forget_renewals(
    connection: &mut PgConnection,
    first: u64,
    last: u64,
) -> Result<u64, sqlx::Error> {
    let forgotten = sqlx::query_scalar!(
        r#"SELECT mooring.forget_renewals($1, $2) AS "forgotten!""#,
        sequence_to_sql(first),
        sequence_to_sql(last),
    )
    .fetch_one(connection)
    .await?;
    Ok(u64::try_from(forgotten).unwrap_or_default())
}

/// All events of the given places, to be folded.
pub(crate) async fn of_places(
    connection: &mut PgConnection,
    units: &[FoldUnit],
) -> Result<Vec<Recorded>, sqlx::Error> {
    let (sources, places) = arrays(units);
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
    Ok(Recorded { sequence: StreamSequence(sequence_from_sql(sequence)), event })
}

/// The last event, and where it stands in the log.
pub(crate) async fn last(
    connection: &mut PgConnection,
) -> Result<Option<(StreamSequence, MessageId)>, sqlx::Error> {
    let row = sqlx::query!(
        "SELECT stream_sequence, message_id FROM mooring.journal ORDER BY stream_sequence DESC LIMIT 1"
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| {
        let sequence = StreamSequence(sequence_from_sql(row.stream_sequence));
        (sequence, MessageId::from_stored(row.message_id))
    }))
}

/// Where an installation was ever said to be.
pub(crate) struct Known {
    pub(crate) source: SourceName,
    pub(crate) platform: PlatformName,
    pub(crate) identity: Identity,
}

/// A row of the journal.
#[derive(FromRow)]
struct Row {
    stream_sequence: i64,
    source: String,
    idempotency_key: String,
    traceparent: Option<String>,
    event: Json<Box<RawValue>>,
    /// The payload is in the archive, and not here.
    is_relieved: bool,
}

/// What a [`Row`] is read from.
const ROW: &str = "stream_sequence, source, idempotency_key, traceparent, event, \
                   event_sha256 IS NOT NULL AS is_relieved";

/// One for each place of each source that has an event of this id and is reached.
pub(crate) async fn known(
    connection: &mut PgConnection,
    reach: &Reach,
    installation: &InstallationId,
) -> Result<Vec<Known>, sqlx::Error> {
    let sql = format!(
        "SELECT known.*
         FROM {parts}
         CROSS JOIN LATERAL (
             SELECT DISTINCT ON (source, place) {ROW}
             FROM mooring.journal
             WHERE installation_id = $1 AND {is_of_part}
             ORDER BY source, place, stream_sequence) AS known",
        parts = reach.parts(2),
        is_of_part = reach.is_of_part(APP_OF_PLACE, 2),
    );
    let rows: Vec<Row> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(installation.as_str())
        .bind(reach.sources())
        .bind(reach.app_parts())
        .fetch_all(connection)
        .await?;
    let mut places = Vec::new();
    for row in rows {
        let Event { source, platform, fact, .. } = recorded(row.stream_sequence, &row.event)?.event;
        if let Some(identity) = fact.identity() {
            places.push(Known { source, platform, identity: identity.clone() });
        }
    }
    Ok(places)
}

/// The events of one installation. Several of one source may have its id, in other
/// places; what names none of these places is taken to be about this one.
#[derive(Debug)]
pub(crate) struct EventsOf<'a> {
    pub(crate) source: &'a SourceName,
    pub(crate) installation: &'a InstallationId,
    pub(crate) other_places: &'a [String],
}

impl EventsOf<'_> {
    /// Whether an event of the source and the id, as JSON, is one of them.
    pub(crate) fn includes(&self, event: &serde_json::Value) -> bool {
        let place = event.pointer("/fact/identity/place").and_then(|place| place.as_str());
        place.is_none_or(|place| !self.is_elsewhere(place))
    }

    pub(crate) fn is_elsewhere(&self, place: &str) -> bool {
        self.other_places.iter().any(|other| other == place)
    }
}

/// The events of an installation up to `end`, as JSON.
pub(crate) async fn bodies(
    connection: &mut PgConnection,
    of: &EventsOf<'_>,
    end: u64,
) -> Result<Vec<serde_json::Value>, sqlx::Error> {
    let rows = sqlx::query_scalar!(
        r#"
        SELECT event AS "event: Json<serde_json::Value>"
        FROM mooring.journal
        WHERE source = $1 AND installation_id = $2 AND (place = ANY ($3)) IS NOT TRUE
          AND stream_sequence <= $4
        "#,
        of.source.as_str(),
        of.installation.as_str(),
        of.other_places,
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
              FROM mooring.journal) AS sealed
        WHERE key_id IS NOT NULL
        GROUP BY key_id
        "#
    )
    .fetch_all(connection)
    .await?;
    let count = |events| u64::try_from(events).unwrap_or_default();
    Ok(rows.into_iter().map(|row| (row.key_id, count(row.events))).collect())
}

/// The name of every data key in any event, wherever in it and however often.
pub(crate) async fn data_keys(
    connection: &mut PgConnection,
    mut each: impl FnMut(&str),
) -> Result<(), sqlx::Error> {
    let mut names = sqlx::query_scalar!(
        r#"
        SELECT (regexp_matches(event::text, 'v2\.([a-z0-9_]+-[0-9]+)\.', 'g'))[1] AS "name!"
        FROM mooring.journal
        "#
    )
    .fetch(connection);
    while let Some(name) = names.try_next().await? {
        each(&name);
    }
    Ok(())
}

/// One event as the read API shows it: history without sealed bytes.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Event")]
pub(crate) struct HistoryEntry {
    /// In the log.
    #[schemars(with = "u64")]
    pub(crate) sequence: StreamSequence,
    #[schemars(with = "String")]
    pub(crate) source: SourceName,
    pub(crate) r#type: &'static str,
    /// As the platform sent it, or what tells its callbacks apart.
    pub(crate) idempotency_key: String,
    pub(crate) message_id: String,
    /// By our clock.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub(crate) received_at: jiff::Timestamp,
    /// By the platform's clock, where it says.
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub(crate) occurred_at: Option<jiff::Timestamp>,
    /// The W3C trace context of the callback.
    pub(crate) traceparent: Option<String>,
    /// Another event with this key and secret says otherwise, and counts.
    pub(crate) conflict: bool,
    /// As received; null where it is sealed as a whole.
    pub(crate) payload: serde_json::Value,
    /// The payload is in the archive, and not here.
    #[serde(skip)]
    pub(crate) is_relieved: bool,
}

/// What is reached of the history of one installation, in log order, from after
/// `after`.
pub(crate) async fn history(
    connection: &mut PgConnection,
    reach: &Reach,
    of: &EventsOf<'_>,
    after: u64,
    limit: i64,
) -> Result<Vec<HistoryEntry>, sqlx::Error> {
    let sql = format!(
        "SELECT history.*
         FROM {parts}
         CROSS JOIN LATERAL (
             SELECT {ROW}
             FROM mooring.journal
             WHERE source = $1 AND installation_id = $2 AND (place = ANY ($3)) IS NOT TRUE
               AND stream_sequence > $4 AND {is_of_part}
             ORDER BY stream_sequence
             LIMIT $5) AS history
         ORDER BY stream_sequence
         LIMIT $5",
        parts = reach.parts(6),
        is_of_part = reach.is_of_part(APP_OF_PLACE, 6),
    );
    let rows: Vec<Row> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(of.source.as_str())
        .bind(of.installation.as_str())
        .bind(of.other_places)
        .bind(sequence_to_sql(after))
        .bind(limit)
        .bind(reach.sources())
        .bind(reach.app_parts())
        .fetch_all(&mut *connection)
        .await?;
    let keys: BTreeSet<(&str, &str)> =
        rows.iter().map(|row| (row.source.as_str(), row.idempotency_key.as_str())).collect();
    let attempts = of_keys(connection, reach, &keys).await?;
    let conflicts = conflicts(&attempts);
    let entry = |sequence, traceparent, is_relieved, event: &RawValue| {
        let event: Event = Event::decode(event.get().as_bytes())
            .map_err(|error| sqlx::Error::Decode(error.into()))?;
        Ok(HistoryEntry {
            sequence: StreamSequence(sequence_from_sql(sequence)),
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
            is_relieved,
        })
    };
    let entries = rows.into_iter();
    entries
        .map(|row| entry(row.stream_sequence, row.traceparent, row.is_relieved, &row.event))
        .collect()
}

/// What is reached of the events with these idempotency keys, and the notes about
/// them.
async fn of_keys(
    connection: &mut PgConnection,
    reach: &Reach,
    keys: &BTreeSet<(&str, &str)>,
) -> Result<Vec<Recorded>, sqlx::Error> {
    let (sources, keys): (Vec<&str>, Vec<&str>) = keys.iter().copied().unzip();
    let sql = format!(
        "SELECT {ROW}
         FROM mooring.journal
         JOIN unnest($1::text[], $2::text[]) AS wanted (source, idempotency_key)
             USING (source, idempotency_key)
         WHERE {}",
        reach.condition("journal", APP_OF_PLACE, 3)
    );
    let rows: Vec<Row> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(sources)
        .bind(keys)
        .bind(reach.sources())
        .bind(reach.app_parts())
        .fetch_all(connection)
        .await?;
    rows.into_iter().map(|row| recorded(row.stream_sequence, &row.event)).collect()
}
