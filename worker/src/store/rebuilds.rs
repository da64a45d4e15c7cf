//! The record of rebuilds: so that one goes on where it was interrupted, and one
//! that was swapped in can be taken back. All SQL on `mooring.rebuilds`, but for
//! the question which late places they need.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;
use sqlx::PgConnection;

use crate::store::convert::{sequence_from_sql, sequence_to_sql};
use crate::store::fold_unit::FoldUnit;
use crate::store::late_places::Mark;

/// What a rebuild reads the events from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    Log,
    Journal,
}

impl Origin {
    fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Journal => "journal",
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A rebuild that is not swapped in yet.
pub(crate) struct Rebuild {
    /// `None` for one that cannot be resumed.
    id: Option<i64>,
    pub(crate) origin: Origin,
    /// Up to here it reads its origin.
    pub(crate) target: Mark,
    pub(crate) is_loaded: bool,
    pub(crate) partitions_done: BTreeSet<u8>,
    pub(crate) last_place: Option<FoldUnit>,
}

/// The rebuild that was swapped in last.
pub(crate) struct LastSwap {
    pub(crate) id: i64,
    /// Up to here the former projection is complete.
    pub(crate) former: Mark,
}

/// In the transaction of the swap. `former` is up to where the projection is
/// complete that was live until then.
pub(crate) async fn mark_swapped(
    transaction: &mut PgConnection,
    id: Option<i64>,
    former: Mark,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        UPDATE mooring.rebuilds
        SET swapped_at = now(), swapped_sequence = $2, swapped_late = $3
        WHERE id = $1
        "#,
        id,
        sequence_to_sql(former.sequence),
        former.late,
    )
    .execute(transaction)
    .await?;
    Ok(())
}

impl Rebuild {
    pub(crate) fn unrecorded(origin: Origin, target: Mark) -> Self {
        let (partitions_done, last_place) = (BTreeSet::new(), None);
        Self { id: None, origin, target, is_loaded: false, partitions_done, last_place }
    }

    pub(crate) fn id(&self) -> Option<i64> {
        self.id
    }

    pub(crate) async fn mark_loaded(
        &mut self,
        connection: &mut PgConnection,
    ) -> Result<(), sqlx::Error> {
        self.is_loaded = true;
        sqlx::query!("UPDATE mooring.rebuilds SET loaded_at = now() WHERE id = $1", self.id)
            .execute(connection)
            .await?;
        Ok(())
    }
}

pub(crate) async fn begin(
    transaction: &mut PgConnection,
    origin: Origin,
    target: Mark,
) -> Result<Rebuild, sqlx::Error> {
    let id = sqlx::query_scalar!(
        r#"
        INSERT INTO mooring.rebuilds (origin, target_sequence, target_late) VALUES ($1, $2, $3)
        RETURNING id
        "#,
        origin.name(),
        sequence_to_sql(target.sequence),
        target.late,
    )
    .fetch_one(transaction)
    .await?;
    Ok(Rebuild { id: Some(id), ..Rebuild::unrecorded(origin, target) })
}

pub(crate) async fn unfinished(
    connection: &mut PgConnection,
) -> Result<Option<Rebuild>, sqlx::Error> {
    let row = sqlx::query!(
        r#"
        SELECT id, origin, target_sequence, target_late, partitions_done, last_source, last_place,
               loaded_at IS NOT NULL AS "is_loaded!"
        FROM mooring.rebuilds
        WHERE swapped_at IS NULL AND abandoned_at IS NULL
        "#
    )
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let partitions = row.partitions_done.into_iter();
    let last_place = row.last_source.zip(row.last_place);
    Ok(Some(Rebuild {
        id: Some(row.id),
        origin: if row.origin == Origin::Log.name() { Origin::Log } else { Origin::Journal },
        target: Mark { sequence: sequence_from_sql(row.target_sequence), late: row.target_late },
        is_loaded: row.is_loaded,
        partitions_done: partitions.filter_map(|number| u8::try_from(number).ok()).collect(),
        last_place: last_place
            .map(|(source, place)| FoldUnit::from_stored(source, place))
            .transpose()?,
    }))
}

pub(crate) async fn mark_partitions(
    transaction: &mut PgConnection,
    id: i64,
    partitions: &[u8],
) -> Result<(), sqlx::Error> {
    let partitions: Vec<i16> = partitions.iter().map(|partition| i16::from(*partition)).collect();
    sqlx::query!(
        "UPDATE mooring.rebuilds SET partitions_done = partitions_done || $2::smallint[] WHERE id = $1",
        id,
        &partitions,
    )
    .execute(transaction)
    .await?;
    Ok(())
}

pub(crate) async fn mark_place(
    transaction: &mut PgConnection,
    id: i64,
    last: &FoldUnit,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE mooring.rebuilds SET last_source = $2, last_place = $3 WHERE id = $1",
        id,
        last.source.as_str(),
        last.place.as_str(),
    )
    .execute(transaction)
    .await?;
    Ok(())
}

pub(crate) async fn last_swap(
    connection: &mut PgConnection,
) -> Result<Option<LastSwap>, sqlx::Error> {
    let row = sqlx::query!(
        r#"
        SELECT id, swapped_sequence AS "swapped_sequence!", swapped_late
        FROM mooring.rebuilds WHERE swapped_at IS NOT NULL
        ORDER BY swapped_at DESC LIMIT 1
        "#
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| LastSwap {
        id: row.id,
        former: Mark { sequence: sequence_from_sql(row.swapped_sequence), late: row.swapped_late },
    }))
}

/// Whether there was one to abandon.
pub(crate) async fn abandon(transaction: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let done = sqlx::query!(
        "UPDATE mooring.rebuilds SET abandoned_at = now()
         WHERE swapped_at IS NULL AND abandoned_at IS NULL"
    )
    .execute(transaction)
    .await?;
    Ok(done.rows_affected() > 0)
}
