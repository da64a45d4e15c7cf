//! Places to which something was appended that is not new in the log: a rebuild
//! folds them again. All SQL on `mooring.late_places`.

use std::collections::BTreeSet;

use sqlx::PgConnection;

use crate::store::fold_unit::FoldUnit;

/// Remembers places to which something was appended that is not new in the log.
pub(crate) async fn add(
    connection: &mut PgConnection,
    units: &BTreeSet<FoldUnit>,
) -> Result<(), sqlx::Error> {
    let sources: Vec<&str> = units.iter().map(|unit| unit.source.as_str()).collect();
    let places: Vec<&str> = units.iter().map(|unit| unit.place.as_str()).collect();
    sqlx::query!(
        r#"
        INSERT INTO mooring.late_places (source, place)
        SELECT * FROM unnest($1::text[], $2::text[])
        ON CONFLICT DO NOTHING
        "#,
        &sources as _,
        &places as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}
