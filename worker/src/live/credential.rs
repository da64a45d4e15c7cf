//! The one place where a secret is opened. Every opening is recorded in
//! `mooring.access_log` before the secret is answered.

use domain::id::{InstallationId, InvalidId, SourceName};
use domain::key_ring::KeyRing;
use domain::seal::{AssociatedData, OpenError, SealedUnder};
use domain::tokens::without_refresh_token;
use eventlog::connect::Connection;
use eventlog::keys;
use secrecy::SecretString;
use sqlx::PgPool;

use crate::live::access::Who;
use crate::live::access::record::{NotRecorded, Recorder};
use crate::store::access::{Entry, Opened, Outcome};
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
    #[error("reading the credential")]
    Postgres(#[from] sqlx::Error),
    #[error(transparent)]
    NotRecorded(#[from] NotRecorded),
}

/// What of a credential is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Whole,
    /// What can be used, and not what makes others of it.
    WithoutRefreshToken,
}

impl Part {
    /// In records.
    fn name(self) -> &'static str {
        match self {
            Self::Whole => "credential-with-refresh-token",
            Self::WithoutRefreshToken => "credential",
        }
    }
}

/// Opens the credential of one installation for `who`.
pub(crate) async fn open(
    pool: &PgPool,
    connection: &Connection,
    ring: &KeyRing,
    installation: &InstallationView,
    part: Part,
    recorder: &Recorder,
    who: &Who,
) -> Result<SecretString, CredentialError> {
    let mut postgres = database::acquire(pool).await?;
    let stored = installations::credential(&mut postgres, installation).await?;
    // The record needs a connection, too.
    drop(postgres);
    let Some(stored) = stored else {
        return Err(CredentialError::None { status: installation.status.clone() });
    };
    let under = stored.sealed.under()?;
    // If this fails there is no secret either.
    recorder.opened(opening(installation, part, &under.to_string(), who)).await?;

    let source = SourceName::parse(&*installation.source)?;
    let id = InstallationId::parse(&*installation.installation_id)?;
    let bound_to = AssociatedData {
        source: &source,
        installation: Some(&id),
        event: &stored.event,
        field: &stored.field,
    };
    let secret = match under {
        SealedUnder::SymmetricKey(_) | SealedUnder::KeyPair(_) => {
            ring.open(&stored.sealed, bound_to)?
        }
        SealedUnder::DataKey(id) => {
            let key = keys::key(connection, ring, &id).await.map_err(CredentialError::DataKey)?;
            key.ok_or(OpenError::Erased)?.open(&stored.sealed, bound_to)?
        }
    };
    Ok(match part {
        Part::Whole => secret,
        Part::WithoutRefreshToken => without_refresh_token(secret),
    })
}

fn opening(installation: &InstallationView, part: Part, key_id: &str, who: &Who) -> Entry {
    let Who { caller, subject, client_address, trace_id, route } = who.clone();
    Entry {
        outcome: Outcome::Opened,
        reason: part.name(),
        status: None,
        requests: 1,
        caller: Some(caller),
        subject,
        client_address,
        trace_id,
        route,
        opened: Some(Opened {
            source: installation.source.clone(),
            place: installation.place.clone(),
            installation_id: installation.installation_id.clone(),
            generation: installation.generation,
            key_id: key_id.to_owned(),
        }),
    }
}
