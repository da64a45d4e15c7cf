//! The one place where a secret is opened. Every opening is recorded in
//! `mooring.credential_access` before the secret is answered.

use secrecy::SecretString;
use shared::id::{InstallationId, InvalidId, SourceName};
use shared::seal::{AssociatedData, KeyRing, OpenError};
use sqlx::{Connection as _, PgPool};

use crate::database;
use crate::projection::{self, InstallationView};

#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialError {
    /// It was removed when the installation ended, or never arrived.
    #[error("the installation is {status} and holds no credential")]
    None { status: String },
    #[error("opening the credential")]
    Open(#[from] OpenError),
    #[error("reading the projection")]
    Stored(#[from] InvalidId),
    #[error("reading the credential and recording the access")]
    Postgres(#[from] sqlx::Error),
}

/// Opens the credential of one installation for `caller`.
pub(crate) async fn open(
    pool: &PgPool,
    ring: &KeyRing,
    installation: &InstallationView,
    caller: &str,
) -> Result<SecretString, CredentialError> {
    let mut connection = database::acquire(pool).await?;
    let mut transaction = connection.begin().await?;
    let stored = projection::credential(&mut transaction, installation).await?;
    let Some(stored) = stored else {
        return Err(CredentialError::None { status: installation.status.clone() });
    };
    let key_id = stored.sealed.key_id()?;
    sqlx::query!(
        r#"
        INSERT INTO mooring.credential_access (caller, source, installation_id, generation, key_id)
        VALUES ($1, $2, $3, $4, $5)
        "#,
        caller,
        installation.source,
        installation.installation_id,
        installation.generation,
        key_id.as_str(),
    )
    .execute(&mut *transaction)
    .await?;
    // If this fails there is no record of it and no secret either.
    transaction.commit().await?;

    let source = SourceName::parse(&*installation.source)?;
    let id = InstallationId::parse(&*installation.installation_id)?;
    let bound_to = AssociatedData {
        source: &source,
        installation: Some(&id),
        event: &stored.event,
        field: &stored.field,
    };
    Ok(ring.open(&stored.sealed, bound_to)?)
}
