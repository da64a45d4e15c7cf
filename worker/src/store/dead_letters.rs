//! Dead letters: events that cannot be applied, kept whole with their reason.
//! All SQL on `mooring.dead_letters`, but for `worker verify`'s in `log_index`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use domain::id::StreamSequence;
use eventlog::delivery::Delivery;
use eventlog::message::header_subject;
use futures_util::TryStreamExt as _;
use serde::Serialize;
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;

use crate::store::convert::{from_sql, sequence_from_sql, sequence_to_sql, to_sql};
use crate::store::database;
use crate::store::journal::EventsOf;

/// Why an event cannot be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The body is no event that this version can read.
    Undecodable,
    /// Postgres refuses the event or what is folded from it.
    Unappliable,
    /// Its place has more events that matter than a place may have.
    PlaceFull,
    /// Whoever published it may not say this.
    NotEntitled,
}

impl Reason {
    /// What [`Reason::name`] may say.
    pub(crate) const NAMES: [&'static str; 4] =
        ["undecodable", "unappliable", "place_full", "not_entitled"];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Undecodable => "undecodable",
            Self::Unappliable => "unappliable",
            Self::PlaceFull => "place_full",
            Self::NotEntitled => "not_entitled",
        }
    }
}

pub(crate) struct DeadLetter<'a> {
    pub(crate) delivery: &'a Delivery,
    pub(crate) reason: Reason,
    /// The error with its causes. Bodies hold only sealed secrets, and the
    /// causes hold no bodies.
    pub(crate) detail: String,
}

/// Keeps a dead letter. One that was resolved stays as it is.
pub(crate) async fn keep(
    connection: &mut PgConnection,
    letter: &DeadLetter<'_>,
) -> Result<(), sqlx::Error> {
    let Delivery { subject, headers, body, published_at, .. } = letter.delivery;
    let headers: BTreeMap<&str, &str> = headers.iter().collect();
    sqlx::query!(
        r#"
        INSERT INTO mooring.dead_letters AS kept
            (stream_sequence, subject, headers, body, reason, detail, published_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7)
        ON CONFLICT (stream_sequence) DO UPDATE
            SET reason = excluded.reason, detail = excluded.detail
            WHERE kept.resolution IS NULL
        "#,
        sequence_to_sql(letter.delivery.position().0),
        subject,
        Json(headers) as _,
        body.as_ref(),
        letter.reason.name(),
        letter.detail,
        to_sql(*published_at),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The sequences of those that are not in the journal.
pub(crate) async fn left_out(connection: &mut PgConnection) -> Result<BTreeSet<u64>, sqlx::Error> {
    let sequences = sqlx::query_scalar!(
        r#"
        SELECT stream_sequence FROM mooring.dead_letters
        WHERE NOT EXISTS (SELECT FROM mooring.journal
                          WHERE journal.stream_sequence = dead_letters.stream_sequence)
        "#
    )
    .fetch_all(connection)
    .await?;
    Ok(sequences.into_iter().map(sequence_from_sql).collect())
}

/// Those of an installation up to `end`, as far as they are JSON.
pub(crate) async fn bodies(
    connection: &mut PgConnection,
    of: &EventsOf<'_>,
    end: u64,
) -> Result<Vec<serde_json::Value>, sqlx::Error> {
    let bodies = sqlx::query_scalar!(
        r#"
        SELECT body FROM mooring.dead_letters
        WHERE split_part(subject, '.', 2) = $1 AND headers ->> 'ce-subject' = $2
          AND stream_sequence <= $3
        "#,
        of.source.as_str(),
        header_subject(of.installation),
        sequence_to_sql(end),
    )
    .fetch_all(connection)
    .await?;
    let bodies = bodies.iter().filter_map(|body| serde_json::from_slice(body).ok());
    Ok(bodies.filter(|body| of.includes(body)).collect())
}

/// Every body, resolved ones included.
pub(crate) async fn all_bodies(
    connection: &mut PgConnection,
    mut each: impl FnMut(&[u8]),
) -> Result<(), sqlx::Error> {
    let mut bodies = sqlx::query_scalar!("SELECT body FROM mooring.dead_letters").fetch(connection);
    while let Some(body) = bodies.try_next().await? {
        each(&body);
    }
    Ok(())
}

/// A dead letter as operators see it. Its body holds only sealed secrets.
#[derive(Debug, Serialize)]
pub(crate) struct DeadLetterView {
    pub(crate) sequence: u64,
    pub(crate) source: String,
    pub(crate) installation_id: Option<String>,
    pub(crate) r#type: Option<String>,
    pub(crate) message_id: Option<String>,
    pub(crate) reason: String,
    pub(crate) detail: String,
    pub(crate) published_at: jiff::Timestamp,
    pub(crate) dead_lettered_at: jiff::Timestamp,
    pub(crate) resolution: Option<String>,
    pub(crate) resolved_at: Option<jiff::Timestamp>,
    pub(crate) resolved_by: Option<String>,
    pub(crate) resolved_why: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) body: Option<String>,
}

/// Which dead letters.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection {
    /// Empty for all.
    pub(crate) sequences: Vec<u64>,
    pub(crate) source: Option<String>,
    pub(crate) reason: Option<String>,
    /// Those that were redriven or discarded, too.
    pub(crate) resolved: bool,
}

struct Stored {
    stream_sequence: i64,
    subject: String,
    headers: Json<BTreeMap<String, String>>,
    body: Vec<u8>,
    reason: String,
    detail: String,
    published_at: OffsetDateTime,
    dead_lettered_at: OffsetDateTime,
    resolution: Option<String>,
    resolved_at: Option<OffsetDateTime>,
    resolved_by: Option<String>,
    resolved_why: Option<String>,
}

impl Stored {
    fn view(self, with_body: bool) -> DeadLetterView {
        let header = |name: &str| self.headers.get(name).cloned();
        let decode = |text: String| {
            percent_encoding::percent_decode_str(&text).decode_utf8_lossy().into_owned()
        };
        DeadLetterView {
            sequence: sequence_from_sql(self.stream_sequence),
            source: self.subject.split('.').nth(1).unwrap_or_default().to_owned(),
            installation_id: header("ce-subject").map(decode),
            r#type: header("ce-type"),
            message_id: header("ce-id"),
            reason: self.reason,
            detail: self.detail,
            published_at: from_sql(self.published_at),
            dead_lettered_at: from_sql(self.dead_lettered_at),
            resolution: self.resolution,
            resolved_at: self.resolved_at.map(from_sql),
            resolved_by: self.resolved_by,
            resolved_why: self.resolved_why,
            body: with_body.then(|| String::from_utf8_lossy(&self.body).into_owned()),
        }
    }

    fn delivery(self) -> Delivery {
        Delivery {
            sequence: StreamSequence(sequence_from_sql(self.stream_sequence)),
            subject: self.subject,
            headers: self.headers.iter().map(|(name, value)| (&**name, &**value)).collect(),
            body: self.body.into(),
            published_at: from_sql(self.published_at),
        }
    }
}

async fn select(
    connection: &mut PgConnection,
    selection: &Selection,
    limit: i64,
) -> Result<Vec<Stored>, sqlx::Error> {
    let sequences: Vec<i64> = selection.sequences.iter().map(|it| sequence_to_sql(*it)).collect();
    sqlx::query_as!(
        Stored,
        r#"
        SELECT stream_sequence, subject, headers AS "headers: Json<BTreeMap<String, String>>", body,
               reason, detail, published_at, dead_lettered_at, resolution, resolved_at, resolved_by,
               resolved_why
        FROM mooring.dead_letters
        WHERE (cardinality($1::bigint[]) = 0 OR stream_sequence = ANY ($1))
          AND ($2::text IS NULL OR split_part(subject, '.', 2) = $2)
          AND ($3::text IS NULL OR reason = $3)
          AND ($4 OR resolution IS NULL)
        ORDER BY stream_sequence
        LIMIT $5
        "#,
        &sequences,
        selection.source,
        selection.reason,
        selection.resolved,
        limit,
    )
    .fetch_all(connection)
    .await
}

/// Oldest first.
pub(crate) async fn list(
    pool: &PgPool,
    selection: &Selection,
    limit: u32,
) -> anyhow::Result<Vec<DeadLetterView>> {
    let mut connection = database::acquire(pool).await?;
    let letters = select(&mut connection, selection, i64::from(limit)).await?;
    Ok(letters.into_iter().map(|stored| stored.view(false)).collect())
}

/// To be applied again.
pub(crate) async fn deliveries(
    connection: &mut PgConnection,
    selection: &Selection,
) -> Result<Vec<Delivery>, sqlx::Error> {
    let letters = select(connection, selection, i64::MAX).await?;
    Ok(letters.into_iter().map(Stored::delivery).collect())
}

/// One, with its body.
pub(crate) async fn show(pool: &PgPool, sequence: u64) -> anyhow::Result<DeadLetterView> {
    let selection = Selection { sequences: vec![sequence], resolved: true, ..Selection::default() };
    let mut connection = database::acquire(pool).await?;
    let letter = select(&mut connection, &selection, 1).await?.pop();
    let letter =
        letter.with_context(|| format!("there is no dead letter with sequence {sequence}"));
    Ok(letter?.view(true))
}

/// Notes what became of those that are open. Says how many there were.
pub(crate) async fn resolve(
    connection: &mut PgConnection,
    sequences: &[u64],
    resolution: &str,
    by: &str,
    why: Option<&str>,
) -> Result<u64, sqlx::Error> {
    let sequences: Vec<i64> = sequences.iter().map(|sequence| sequence_to_sql(*sequence)).collect();
    let done = sqlx::query!(
        r#"
        UPDATE mooring.dead_letters
        SET resolution = $2, resolved_at = now(), resolved_by = $3, resolved_why = $4
        WHERE stream_sequence = ANY ($1) AND resolution IS NULL
        "#,
        &sequences,
        resolution,
        by,
        why,
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}

/// By reason, those that nobody has redriven or discarded.
pub(crate) async fn count_unresolved(
    connection: &mut PgConnection,
) -> Result<Vec<(String, i64)>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        SELECT reason, count(*) AS "count!"
        FROM mooring.dead_letters
        WHERE resolution IS NULL
        GROUP BY reason
        "#
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (row.reason, row.count)).collect())
}
