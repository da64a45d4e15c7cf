//! Late places: those to which an operator appended what had been in the log for
//! long. Whoever looks for what came after some sequence would not find them, so
//! they are numbered, and a rebuild folds those again that it has not read. All
//! SQL on `mooring.late_places`; it also looks into the journal and the record of
//! rebuilds.

use std::collections::BTreeSet;

use sqlx::PgConnection;

use crate::store::convert::sequence_to_sql;
use crate::store::database::{LATE_LOCK, LOCKS};
use crate::store::fold_unit::{FoldUnit, arrays};

/// Up to where a projection is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    /// In the log.
    pub(crate) sequence: u64,
    /// The number of a late place.
    pub(crate) late: i64,
}

/// Remembers places as the last ones that became late.
///
/// One transaction at a time until it ends: who sees a number sees all before it.
/// It is the last lock that a transaction takes.
pub(crate) async fn add(
    connection: &mut PgConnection,
    units: &BTreeSet<FoldUnit>,
) -> Result<(), sqlx::Error> {
    if units.is_empty() {
        return Ok(());
    }
    sqlx::query!("SELECT pg_advisory_xact_lock($1, $2)", LOCKS, LATE_LOCK)
        .execute(&mut *connection)
        .await?;
    let (sources, places) = arrays(units);
    sqlx::query!(
        r#"
        INSERT INTO mooring.late_places (source, place)
        SELECT * FROM unnest($1::text[], $2::text[])
        ON CONFLICT (source, place) DO UPDATE SET number = DEFAULT
        "#,
        &sources as _,
        &places as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The number of the last one, to be read before what it stands for.
pub(crate) async fn last(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(r#"SELECT coalesce(max(number), 0) AS "last!" FROM mooring.late_places"#)
        .fetch_one(connection)
        .await
}

/// Where something was appended after `mark`, in the log or late.
pub(crate) async fn changed_since(
    connection: &mut PgConnection,
    mark: Mark,
) -> Result<Vec<FoldUnit>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        SELECT source AS "source!", place AS "place!"
        FROM mooring.journal
        WHERE stream_sequence > $1 AND place IS NOT NULL
        UNION
        SELECT source, place FROM mooring.late_places WHERE number > $2
        "#,
        sequence_to_sql(mark.sequence),
        mark.late,
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(|row| FoldUnit::from_stored(row.source, row.place)).collect()
}

/// Forgets those that neither an unfinished rebuild nor the former projection
/// lacks. Only who holds the lock of rebuilds may do this: `worker verify` has no
/// record.
pub(crate) async fn forget(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        DELETE FROM mooring.late_places
        WHERE number <= ALL (
            SELECT target_late FROM mooring.rebuilds
            WHERE swapped_at IS NULL AND abandoned_at IS NULL
            UNION ALL
            (SELECT swapped_late FROM mooring.rebuilds
             WHERE swapped_at IS NOT NULL AND to_regnamespace('projection_previous') IS NOT NULL
             ORDER BY swapped_at DESC LIMIT 1)
        )
        "#
    )
    .execute(connection)
    .await?;
    Ok(())
}
