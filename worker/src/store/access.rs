//! Who opened which credential. All SQL on `mooring.credential_access`.

use sqlx::PgConnection;

use crate::store::installations::InstallationView;

/// One opening of a credential.
pub(crate) struct Opening<'a> {
    pub(crate) caller: &'a str,
    pub(crate) installation: &'a InstallationView,
    pub(crate) key_id: &'a str,
}

pub(crate) async fn record(
    connection: &mut PgConnection,
    opening: &Opening<'_>,
) -> Result<(), sqlx::Error> {
    let Opening { caller, installation, key_id } = opening;
    sqlx::query!(
        r#"
        INSERT INTO mooring.credential_access
            (caller, source, place, installation_id, generation, key_id)
        VALUES ($1, $2, $3, $4, $5, $6)
        "#,
        caller,
        installation.source,
        installation.place,
        installation.installation_id,
        installation.generation,
        key_id,
    )
    .execute(connection)
    .await?;
    Ok(())
}
