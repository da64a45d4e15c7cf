//! The record of rebuilds. All SQL on `mooring.rebuilds`.

use std::collections::BTreeSet;

use domain::id::{Place, SourceName};
use sqlx::PgConnection;

use crate::operate::rebuild::Origin;
use crate::store::convert::{sequence_from_sql, sequence_to_sql};
use crate::store::fold_unit::FoldUnit;

/// A rebuild that is not swapped in yet.
pub(crate) struct Rebuild {
    /// `None` for one that cannot be resumed.
    id: Option<i64>,
    pub(crate) origin: Origin,
    pub(crate) target: u64,
    pub(crate) is_loaded: bool,
    pub(crate) partitions_done: BTreeSet<u8>,
    pub(crate) last_place: Option<FoldUnit>,
}

/// The rebuild that is live.
pub(crate) struct Last {
    pub(crate) id: i64,
    pub(crate) swapped_sequence: u64,
}

/// To be run in the transaction of a swap.
pub(crate) struct MarkSwapped {
    id: Option<i64>,
    sequence: u64,
}

pub(crate) fn mark_swapped(id: i64, sequence: u64) -> MarkSwapped {
    MarkSwapped { id: Some(id), sequence }
}

impl MarkSwapped {
    pub(crate) async fn run(self, transaction: &mut PgConnection) -> Result<(), sqlx::Error> {
        sqlx::query!(
            "UPDATE mooring.rebuilds SET swapped_at = now(), swapped_sequence = $2 WHERE id = $1",
            self.id,
            sequence_to_sql(self.sequence),
        )
        .execute(transaction)
        .await?;
        Ok(())
    }
}

impl Rebuild {
    pub(crate) fn unrecorded(origin: Origin, target: u64) -> Self {
        let (partitions_done, last_place) = (BTreeSet::new(), None);
        Self { id: None, origin, target, is_loaded: false, partitions_done, last_place }
    }

    pub(crate) fn id(&self) -> Option<i64> {
        self.id
    }

    pub(crate) fn mark_swapped(&self, sequence: u64) -> MarkSwapped {
        MarkSwapped { id: self.id, sequence }
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
    target: u64,
) -> Result<Rebuild, sqlx::Error> {
    let id = sqlx::query_scalar!(
        "INSERT INTO mooring.rebuilds (origin, target_sequence) VALUES ($1, $2) RETURNING id",
        origin.name(),
        sequence_to_sql(target),
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
        SELECT id, origin, target_sequence, partitions_done, last_source, last_place,
               loaded_at IS NOT NULL AS "is_loaded!"
        FROM mooring.rebuilds
        WHERE swapped_at IS NULL AND abandoned_at IS NULL
        "#
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|row| Rebuild {
        id: Some(row.id),
        origin: if row.origin == Origin::Log.name() { Origin::Log } else { Origin::Journal },
        target: sequence_from_sql(row.target_sequence),
        is_loaded: row.is_loaded,
        partitions_done: row
            .partitions_done
            .into_iter()
            .filter_map(|partition| u8::try_from(partition).ok())
            .collect(),
        last_place: row.last_source.zip(row.last_place).and_then(|(source, place)| {
            let source = SourceName::parse(source).ok()?;
            Some(FoldUnit { source, place: Place::from_stored(place) })
        }),
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

pub(crate) async fn last_swapped(
    connection: &mut PgConnection,
) -> Result<Option<Last>, sqlx::Error> {
    let row = sqlx::query!(
        r#"
        SELECT id, swapped_sequence AS "swapped_sequence!"
        FROM mooring.rebuilds WHERE swapped_at IS NOT NULL
        ORDER BY swapped_at DESC LIMIT 1
        "#
    )
    .fetch_optional(connection)
    .await?;
    Ok(row
        .map(|row| Last { id: row.id, swapped_sequence: sequence_from_sql(row.swapped_sequence) }))
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
