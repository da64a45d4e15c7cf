//! Which keys of the ring pages may need: all that were active once and are not
//! retired. All SQL on `mooring.sealing_keys`.

use domain::id::KeyId;
use sqlx::PgConnection;

/// That a key is active: from now on pages may need it.
pub(crate) async fn activated(
    connection: &mut PgConnection,
    id: &KeyId,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        INSERT INTO mooring.sealing_keys AS known (id) VALUES ($1)
        ON CONFLICT (id) DO UPDATE SET activated_at = now(), retired_at = NULL
        WHERE known.retired_at IS NOT NULL
        "#,
        id.as_str(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// That nothing needs a key.
pub(crate) async fn retired(connection: &mut PgConnection, id: &KeyId) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE mooring.sealing_keys SET retired_at = now() WHERE id = $1 AND retired_at IS NULL",
        id.as_str(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Those that pages may need.
pub(crate) async fn needed(connection: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar!("SELECT id FROM mooring.sealing_keys WHERE retired_at IS NULL ORDER BY id")
        .fetch_all(connection)
        .await
}
