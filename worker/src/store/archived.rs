//! What was proven of the archive, and what was let go of after that. All SQL on
//! `mooring.archived_segments`, and the comparison of a segment with the journal.

use eventlog::delivery::Delivery;
use sha2::{Digest as _, Sha256};
use sqlx::PgConnection;

use crate::store::convert::{sequence_from_sql, sequence_to_sql};

/// How far it is with a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Archived {
    pub(crate) first_sequence: u64,
    pub(crate) last_sequence: u64,
    pub(crate) manifest_sha256: String,
    pub(crate) trimmed: bool,
    pub(crate) journal_relieved: bool,
}

/// Every segment that was proven, in the order of the log.
pub(crate) async fn all(connection: &mut PgConnection) -> Result<Vec<Archived>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        SELECT first_sequence, last_sequence, manifest_sha256,
               trimmed_at IS NOT NULL AS "trimmed!",
               journal_relieved_at IS NOT NULL AS "journal_relieved!"
        FROM mooring.archived_segments ORDER BY first_sequence
        "#
    )
    .fetch_all(connection)
    .await?;
    let rows = rows.into_iter().map(|row| Archived {
        first_sequence: sequence_from_sql(row.first_sequence),
        last_sequence: sequence_from_sql(row.last_sequence),
        manifest_sha256: row.manifest_sha256,
        trimmed: row.trimmed,
        journal_relieved: row.journal_relieved,
    });
    Ok(rows.collect())
}

/// Up to here everything was proven to be in the archive; 0 if nothing was.
pub(crate) async fn last_sequence(connection: &mut PgConnection) -> Result<u64, sqlx::Error> {
    let last = sqlx::query_scalar!("SELECT max(last_sequence) FROM mooring.archived_segments")
        .fetch_one(connection)
        .await?;
    Ok(last.map_or(0, sequence_from_sql))
}

/// Up to here the journal has let go of what is archived; 0 if of nothing.
pub(crate) async fn relieved_to(connection: &mut PgConnection) -> Result<u64, sqlx::Error> {
    let segments = all(connection).await?;
    let relieved = segments.iter().take_while(|segment| segment.journal_relieved);
    Ok(relieved.last().map_or(0, |last| last.last_sequence))
}

/// Its segment was read back and compared with the journal.
pub(crate) async fn record_proven(
    connection: &mut PgConnection,
    first_sequence: u64,
    last_sequence: u64,
    manifest_sha256: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        INSERT INTO mooring.archived_segments (first_sequence, last_sequence, manifest_sha256)
        VALUES ($1, $2, $3) ON CONFLICT DO NOTHING
        "#,
        sequence_to_sql(first_sequence),
        sequence_to_sql(last_sequence),
        manifest_sha256,
    )
    .execute(connection)
    .await?;
    Ok(())
}

pub(crate) async fn record_trimmed(
    connection: &mut PgConnection,
    first_sequence: u64,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE mooring.archived_segments SET trimmed_at = now() WHERE first_sequence = $1",
        sequence_to_sql(first_sequence),
    )
    .execute(connection)
    .await?;
    Ok(())
}

pub(crate) async fn record_relieved(
    connection: &mut PgConnection,
    first_sequence: u64,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE mooring.archived_segments SET journal_relieved_at = now() WHERE first_sequence = $1",
        sequence_to_sql(first_sequence),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Where archived events and the journal disagree, each by its first sequence.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Disagreement {
    /// Neither the journal nor a dead letter has it.
    pub(crate) unknown: Option<u64>,
    /// The journal or a dead letter has something else at its sequence.
    pub(crate) different: Option<u64>,
    /// The journal has an event there, and the archive none.
    pub(crate) only_in_journal: Option<u64>,
}

/// Compares the events of a part of a segment, which covers everything from
/// `first` to `last`. The journal may lack those that are not required.
pub(crate) async fn compare(
    connection: &mut PgConnection,
    first: u64,
    last: u64,
    events: &[Delivery],
    is_required: impl Fn(&Delivery) -> bool,
) -> Result<Disagreement, sqlx::Error> {
    let sequences: Vec<i64> = events.iter().map(|it| sequence_to_sql(it.position().0)).collect();
    let ids: Vec<&str> = events.iter().map(|it| it.message_id().unwrap_or_default()).collect();
    let hashes: Vec<Vec<u8>> = events.iter().map(|it| Sha256::digest(&it.body).to_vec()).collect();
    let required: (Vec<i64>, Vec<&str>) = events
        .iter()
        .filter(|it| is_required(it))
        .map(|it| (sequence_to_sql(it.position().0), it.message_id().unwrap_or_default()))
        .unzip();
    let unknown = sqlx::query_scalar!(
        r#"
        SELECT min(sequence)
        FROM unnest($1::bigint[], $2::text[]) AS archived (sequence, message_id)
        WHERE NOT EXISTS (SELECT FROM mooring.journal
                          WHERE journal.message_id = archived.message_id)
          AND NOT EXISTS (SELECT FROM mooring.dead_letters
                          WHERE stream_sequence = archived.sequence)
        "#,
        &required.0,
        &required.1 as _,
    )
    .fetch_one(&mut *connection)
    .await?;
    let different = sqlx::query_scalar!(
        r#"
        SELECT min(sequence)
        FROM unnest($1::bigint[], $2::text[], $3::bytea[]) AS archived (sequence, message_id, hash)
             LEFT JOIN mooring.journal ON journal.stream_sequence = sequence
             LEFT JOIN mooring.dead_letters ON dead_letters.stream_sequence = sequence
        WHERE journal.message_id <> archived.message_id
           OR coalesce(event_sha256, sha256(convert_to(event::text, 'UTF8'))) <> hash
           OR sha256(body) <> hash
        "#,
        &sequences,
        &ids as _,
        &hashes,
    )
    .fetch_one(&mut *connection)
    .await?;
    let only_in_journal = sqlx::query_scalar!(
        r#"
        SELECT min(stream_sequence)
        FROM mooring.journal
             LEFT JOIN unnest($3::bigint[]) AS archived (sequence) ON sequence = stream_sequence
        WHERE stream_sequence BETWEEN $1 AND $2 AND sequence IS NULL
          -- Restored, it stands elsewhere in the log.
          AND NOT EXISTS (SELECT FROM mooring.log_identity
                          WHERE stream_sequence BETWEEN restored_from AND restored_to)
        "#,
        sequence_to_sql(first),
        sequence_to_sql(last),
        &sequences,
    )
    .fetch_one(connection)
    .await?;
    Ok(Disagreement {
        unknown: unknown.map(sequence_from_sql),
        different: different.map(sequence_from_sql),
        only_in_journal: only_in_journal.map(sequence_from_sql),
    })
}
