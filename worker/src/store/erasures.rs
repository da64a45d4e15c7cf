//! Which installations were erased, by whom and why. All SQL on
//! `mooring.erasures`.

use domain::id::{InstallationId, Place, SourceName};
use sqlx::PgConnection;

use crate::store::convert::sequence_to_sql;
use crate::store::find::Which;

/// What is to be erased.
#[derive(Debug, Clone)]
pub struct ErasureOrder {
    pub installation: InstallationId,
    pub which: Which,
    pub by: String,
    pub why: String,
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
