//! What the log has lost, by what is known elsewhere: for `worker restore`. It
//! compares the table of `log_index` with the journal, the dead letters and the
//! archive. All SQL on `projection_verify.known`.

use std::collections::BTreeMap;

use anyhow::Context as _;
use domain::event::Event;
use domain::id::StreamSequence;
use eventlog::delivery::Delivery;
use eventlog::message::{LogMessage, Restored};
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::store::convert::{sequence_from_sql, sequence_to_sql};
use crate::store::schema::Schema;

const SCRATCH: Schema = Schema::Scratch;

/// What there is, and what is missing where.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Comparison {
    /// Events that the journal has.
    pub(crate) in_journal: u64,
    /// Events that the archive has, of this log or of one before it.
    pub(crate) in_archive: u64,
    /// The first and the last position that is known.
    pub(crate) known_from: u64,
    pub(crate) known_to: u64,
    /// Known, and not in the log at their position.
    pub(crate) lost: u64,
    /// In the log, at sequences that belong to what was lost.
    pub(crate) misplaced: u64,
    /// Positions since the log was last restored of which nothing is known. Copies of
    /// events leave such, too.
    pub(crate) unknown: u64,
}

pub(crate) async fn create(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let sql = format!(
        "CREATE UNLOGGED TABLE {SCRATCH}.known (position bigint, message_id text, by text)"
    );
    sqlx::query(AssertSqlSafe(sql)).execute(connection).await.map(|_| ())
}

/// Where a segment is: of the log that is there, or of one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ArchiveOf {
    ThisLog,
    Former,
}

/// Adds what the archive has to the table of what is known.
pub(crate) async fn add_archived(
    connection: &mut PgConnection,
    events: &[Delivery],
    of: ArchiveOf,
) -> Result<(), sqlx::Error> {
    let positions: Vec<i64> = events.iter().map(|it| sequence_to_sql(it.position().0)).collect();
    let ids: Vec<&str> = events.iter().map(|it| it.message_id().unwrap_or_default()).collect();
    let by = match of {
        ArchiveOf::ThisLog => "archive",
        ArchiveOf::Former => "former archive",
    };
    let sql = format!(
        "INSERT INTO {SCRATCH}.known
         SELECT *, $3 FROM unnest($1::bigint[], $2::text[])"
    );
    let insert = sqlx::query(AssertSqlSafe(sql)).bind(positions).bind(ids).bind(by);
    insert.execute(connection).await.map(|_| ())
}

/// Adds what the journal and the dead letters have.
pub(crate) async fn index(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let sql = format!(
        "INSERT INTO {SCRATCH}.known
             SELECT stream_sequence, message_id, 'journal' FROM mooring.journal
             UNION ALL
             SELECT stream_sequence, headers ->> 'ce-id', 'dead letters'
             FROM mooring.dead_letters
             WHERE NOT EXISTS (SELECT FROM mooring.journal
                               WHERE journal.stream_sequence = dead_letters.stream_sequence);
         CREATE INDEX ON {SCRATCH}.known (position);
         CREATE INDEX ON {SCRATCH}.known (message_id);
         CREATE INDEX ON {SCRATCH}.log (message_id);
         CREATE INDEX ON {SCRATCH}.log (position);
         ANALYZE {SCRATCH}.known, {SCRATCH}.log"
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.map(|_| ())
}

/// Known at a position at which neither the log nor its archive has it.
fn lost() -> String {
    format!(
        "FROM (SELECT DISTINCT position, message_id FROM {SCRATCH}.known) AS known
         WHERE NOT EXISTS (
             SELECT FROM {SCRATCH}.log
             WHERE log.position = known.position AND log.message_id = known.message_id)
         AND NOT EXISTS (
             SELECT FROM {SCRATCH}.known AS archived
             WHERE archived.position = known.position
               AND archived.message_id = known.message_id AND archived.by = 'archive')"
    )
}

/// From the first sequence on at which the log has another event than the one that is
/// known to stand there, up to the last one that is known: what is not known to stand
/// where it does. Appended meanwhile, it is younger than what was lost.
fn misplaced() -> String {
    format!(
        "FROM {SCRATCH}.log
         WHERE sequence = position
           AND sequence <= (SELECT max(position) FROM {SCRATCH}.known)
           AND sequence >= (
               SELECT min(other.position)
               FROM {SCRATCH}.log AS other JOIN {SCRATCH}.known USING (position)
               WHERE other.sequence = other.position AND other.message_id <> known.message_id)
           AND NOT EXISTS (
               SELECT FROM {SCRATCH}.known
               WHERE known.position = log.position AND known.message_id = log.message_id)"
    )
}

pub(crate) async fn compare(connection: &mut PgConnection) -> Result<Comparison, sqlx::Error> {
    let mut number = async |sql: String| -> Result<u64, sqlx::Error> {
        let sql = AssertSqlSafe(sql);
        let number: i64 = sqlx::query_scalar(sql).fetch_one(&mut *connection).await?;
        Ok(sequence_from_sql(number))
    };
    let in_journal =
        number(format!("SELECT count(*) FROM {SCRATCH}.known WHERE by = 'journal'")).await?;
    let in_archive = "SELECT count(DISTINCT message_id)";
    let in_archive =
        number(format!("{in_archive} FROM {SCRATCH}.known WHERE by LIKE '%archive'")).await?;
    let every = format!(
        "FROM (SELECT position FROM {SCRATCH}.known UNION ALL SELECT position FROM {SCRATCH}.log)
             AS every"
    );
    let known_from = number(format!("SELECT coalesce(min(position), 1) {every}")).await?;
    let known_to =
        number(format!("SELECT coalesce(max(position), 0) FROM {SCRATCH}.known")).await?;
    // What was restored stands at other sequences than its positions.
    let from = "(SELECT coalesce(max(restored_to), 0) FROM mooring.log_identity)";
    let from = number(format!("SELECT greatest({known_from}, {from} + 1)")).await?;
    let known = number(format!(
        "SELECT count(DISTINCT position) {every} WHERE position BETWEEN {from} AND {known_to}"
    ))
    .await?;
    Ok(Comparison {
        in_journal,
        in_archive,
        known_from,
        known_to,
        lost: number(format!("SELECT count(*) {}", lost())).await?,
        misplaced: number(format!("SELECT count(*) {}", misplaced())).await?,
        unknown: (known_to + 1).saturating_sub(from).saturating_sub(known),
    })
}

/// An event that the log lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lost {
    pub(crate) position: StreamSequence,
    /// It came again, and stands in the log elsewhere.
    came_again: bool,
}

impl Lost {
    /// How it is put back. The server must not take it for a duplicate of what came again.
    pub(crate) fn restored(self) -> Restored {
        let copy_of = self.came_again.then_some(self.position);
        Restored { position: Some(self.position), copy_of }
    }
}

/// What was lost, in the order in which it stood.
pub(crate) async fn lost_events(connection: &mut PgConnection) -> Result<Vec<Lost>, sqlx::Error> {
    let sql = format!(
        "SELECT position, EXISTS (
             SELECT FROM {SCRATCH}.log WHERE log.message_id = known.message_id)
         {} ORDER BY position",
        lost()
    );
    let found: Vec<(i64, bool)> = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(connection).await?;
    let lost = |(position, came_again)| Lost {
        position: StreamSequence(sequence_from_sql(position)),
        came_again,
    };
    Ok(found.into_iter().map(lost).collect())
}

/// Where in the log events stand that do not belong there, in that order.
pub(crate) async fn sequences_of_misplaced(
    connection: &mut PgConnection,
) -> Result<Vec<StreamSequence>, sqlx::Error> {
    let sql = format!("SELECT sequence {} ORDER BY sequence", misplaced());
    sequences(connection, sql).await
}

async fn sequences(
    connection: &mut PgConnection,
    sql: String,
) -> Result<Vec<StreamSequence>, sqlx::Error> {
    let found: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(connection).await?;
    Ok(found.into_iter().map(|it| StreamSequence(sequence_from_sql(it))).collect())
}

/// These events of the journal, to be put back into the log, by position.
pub(crate) async fn from_journal(
    connection: &mut PgConnection,
    lost: &BTreeMap<StreamSequence, Restored>,
) -> anyhow::Result<Vec<LogMessage>> {
    let positions: Vec<i64> = lost.keys().map(|it| sequence_to_sql(it.0)).collect();
    let rows = sqlx::query!(
        r#"
        SELECT stream_sequence, traceparent, event AS "event: Json<Box<RawValue>>"
        FROM mooring.journal
        WHERE stream_sequence = ANY ($1) AND event_sha256 IS NULL
        ORDER BY stream_sequence
        "#,
        &positions,
    )
    .fetch_all(connection)
    .await?;
    let message = |position: i64, traceparent, body: &RawValue| -> anyhow::Result<LogMessage> {
        let body = body.get().as_bytes().to_vec();
        let event = Event::decode(&body)?;
        let position = StreamSequence(sequence_from_sql(position));
        let restored = *lost.get(&position).context("an event that nobody asked for")?;
        Ok(LogMessage::restored(&event, body.into(), traceparent, restored)?)
    };
    let rows = rows.into_iter();
    rows.map(|row| message(row.stream_sequence, row.traceparent, &row.event)).collect()
}

/// Which of these positions the journal has.
pub(crate) async fn in_journal(
    connection: &mut PgConnection,
    lost: &BTreeMap<StreamSequence, Restored>,
) -> Result<Vec<StreamSequence>, sqlx::Error> {
    let positions: Vec<i64> = lost.keys().map(|it| sequence_to_sql(it.0)).collect();
    let found = sqlx::query_scalar!(
        "SELECT stream_sequence FROM mooring.journal WHERE stream_sequence = ANY ($1)",
        &positions,
    )
    .fetch_all(connection)
    .await?;
    Ok(found.into_iter().map(|it| StreamSequence(sequence_from_sql(it))).collect())
}

/// What left the journal for an archive comes back with the log.
pub(crate) async fn give_back(
    connection: &mut PgConnection,
    events: &[Delivery],
) -> Result<(), sqlx::Error> {
    let ids: Vec<&str> = events.iter().map(|it| it.message_id().unwrap_or_default()).collect();
    let bodies: Vec<&str> =
        events.iter().map(|it| std::str::from_utf8(&it.body).unwrap_or_default()).collect();
    sqlx::query!(
        r#"
        UPDATE mooring.journal
        SET event = archived.event::json, event_sha256 = NULL
        FROM unnest($1::text[], $2::text[]) AS archived (message_id, event)
        WHERE journal.message_id = archived.message_id
          AND event_sha256 = sha256(convert_to(archived.event, 'UTF8'))
        "#,
        &ids as _,
        &bodies as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Whether this event was lost and came again.
pub(crate) async fn is_known(
    connection: &mut PgConnection,
    message_id: &str,
) -> Result<bool, sqlx::Error> {
    let sql = format!("SELECT EXISTS (SELECT FROM {SCRATCH}.known WHERE message_id = $1)");
    sqlx::query_scalar(AssertSqlSafe(sql)).bind(message_id).fetch_one(connection).await
}
