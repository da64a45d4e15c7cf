//! The one place where a secret is opened. Every opening is recorded in
//! `mooring.credential_access` before the secret is answered.

use domain::id::{InstallationId, InvalidId, SourceName};
use domain::key_ring::KeyRing;
use domain::seal::{AssociatedData, OpenError, SealedUnder};
use eventlog::connect::Connection;
use eventlog::keys;
use secrecy::SecretString;
use sqlx::{Connection as _, PgPool};

use crate::store::access::{self, Opening};
use crate::store::database;
use crate::store::installations::{self, InstallationView};

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
    connection: &Connection,
    ring: &KeyRing,
    installation: &InstallationView,
    caller: &str,
) -> Result<SecretString, CredentialError> {
    let mut postgres = database::acquire(pool).await?;
    let mut transaction = postgres.begin().await?;
    let stored = installations::credential(&mut transaction, installation).await?;
    let Some(stored) = stored else {
        return Err(CredentialError::None { status: installation.status.clone() });
    };
    let under = stored.sealed.under()?;
    let opening = Opening { caller, installation, key_id: &under.to_string() };
    access::record(&mut transaction, &opening).await?;
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
        SealedUnder::SymmetricKey(_) | SealedUnder::KeyPair(_) => {
            Ok(ring.open(&stored.sealed, bound_to)?)
        }
        SealedUnder::DataKey(id) => {
            let key = keys::key(connection, ring, &id).await.map_err(CredentialError::DataKey)?;
            Ok(key.ok_or(OpenError::Erased)?.open(&stored.sealed, bound_to)?)
        }
    }
}
