//! Which installations were erased, by whom and why. All SQL on
//! `mooring.erasures`, and on the journal's erasures.

use domain::id::{InstallationId, Place, SourceName};
use sqlx::PgConnection;

use crate::store::convert::{sequence_from_sql, sequence_to_sql};
use crate::store::find::Which;

/// What is to be erased.
#[derive(Debug, Clone)]
pub(crate) struct ErasureOrder {
    pub(crate) installation: InstallationId,
    pub(crate) which: Which,
    pub(crate) by: String,
    pub(crate) why: String,
}

/// An erasure, as the log tells it.
#[derive(Debug, Clone)]
pub(crate) struct Erased {
    pub(crate) source: SourceName,
    pub(crate) installation: InstallationId,
    pub(crate) place: Place,
    /// What is behind it came later.
    pub(crate) position: u64,
}

/// The last erasure of each installation in each place. It goes by the log and not by
/// this table, which a backup of Postgres may lack.
pub(crate) async fn told(connection: &mut PgConnection) -> anyhow::Result<Vec<Erased>> {
    let rows = sqlx::query!(
        r#"
        SELECT source, installation_id AS "installation_id!", place AS "place!",
               max(stream_sequence) AS "position!"
        FROM mooring.journal
        WHERE event_type = 'erased'
        GROUP BY source, installation_id, place
        "#
    )
    .fetch_all(connection)
    .await?;
    let erased = rows.into_iter().map(|row| {
        Ok(Erased {
            source: SourceName::parse(row.source)?,
            installation: InstallationId::parse(row.installation_id)?,
            place: Place::from_stored(row.place),
            position: sequence_from_sql(row.position),
        })
    });
    erased.collect()
}

/// Before the first key is destroyed, so that an interrupted erasure is known.
pub(crate) async fn begin(
    connection: &mut PgConnection,
    order: &ErasureOrder,
    source: &SourceName,
    places: &[&Place],
) -> Result<i64, sqlx::Error> {
    let places: Vec<&str> = places.iter().map(|place| place.as_str()).collect();
    sqlx::query_scalar!(
        r#"
        INSERT INTO mooring.erasures (source, installation_id, places, erased_by, why)
        VALUES ($1, $2, $3, $4, $5)
        RETURNING id
        "#,
        source.as_str(),
        order.installation.as_str(),
        &places as _,
        order.by,
        order.why,
    )
    .fetch_one(connection)
    .await
}

pub(crate) async fn end(
    connection: &mut PgConnection,
    erasure: i64,
    sequence: u64,
    keys_destroyed: usize,
) -> anyhow::Result<()> {
    sqlx::query!(
        r#"
        UPDATE mooring.erasures
        SET finished_at = now(), stream_sequence = $2, keys_destroyed = $3
        WHERE id = $1
        "#,
        erasure,
        sequence_to_sql(sequence),
        i32::try_from(keys_destroyed)?,
    )
    .execute(connection)
    .await?;
    Ok(())
}
