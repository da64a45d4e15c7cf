//! The one place where a secret is opened. Every opening is recorded in
//! `mooring.credential_access` before the secret is answered.

use async_nats::Client;
use secrecy::SecretString;
use shared::id::{InstallationId, InvalidId, SourceName};
use shared::seal::{AssociatedData, KeyRing, OpenError, SealedUnder};
use sqlx::{Connection as _, PgPool};

use crate::projection::{self, InstallationView};
use crate::{data_keys, database};

#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialError {
    /// It was removed when the installation ended, or never arrived.
    #[error("the installation is {status} and holds no credential")]
    None { status: String },
    #[error("opening the credential")]
    Open(#[from] OpenError),
    #[error("reading the data key of the credential: {0:#}")]
    DataKey(anyhow::Error),
    #[error("reading the projection")]
    Stored(#[from] InvalidId),
    #[error("reading the credential and recording the access")]
    Postgres(#[from] sqlx::Error),
}

/// Opens the credential of one installation for `caller`.
pub(crate) async fn open(
    pool: &PgPool,
    client: &Client,
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
    let under = stored.sealed.under()?;
    sqlx::query!(
        r#"
        INSERT INTO mooring.credential_access (caller, source, installation_id, generation, key_id)
        VALUES ($1, $2, $3, $4, $5)
        "#,
        caller,
        installation.source,
        installation.installation_id,
        installation.generation,
        under.to_string(),
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
    match under {
        SealedUnder::RingKey(_) => Ok(ring.open(&stored.sealed, bound_to)?),
        SealedUnder::DataKey(id) => {
            let key = data_keys::key(client, ring, &id).await.map_err(CredentialError::DataKey)?;
            Ok(key.ok_or(OpenError::Erased)?.open(&stored.sealed, bound_to)?)
        }
    }
}
