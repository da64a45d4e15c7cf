//! The unit that is locked and folded.

use std::collections::BTreeSet;

use domain::fold::Recorded;
use domain::id::{InvalidId, Place, SourceName};
use sha2::{Digest as _, Sha256};
use sqlx::PgConnection;

use crate::store::database::{LOCKS, PROJECTION_LOCK};

/// The unit that is locked and folded: one place of one source.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FoldUnit {
    pub(crate) source: SourceName,
    pub(crate) place: Place,
}

impl FoldUnit {
    /// `None` for an event that names no installation.
    pub(crate) fn of(recorded: &Recorded) -> Option<Self> {
        let event = &recorded.event;
        let place = event.fact.identity()?.place.clone();
        Some(Self { source: event.source.clone(), place })
    }

    pub(crate) fn from_stored(source: String, place: String) -> Result<Self, sqlx::Error> {
        let invalid = |error: InvalidId| sqlx::Error::Decode(error.into());
        let source = SourceName::parse(source).map_err(invalid)?;
        Ok(Self { source, place: Place::from_stored(place) })
    }

    /// Two places with one key only wait for each other.
    fn lock_key(&self) -> i64 {
        let digest = Sha256::new()
            .chain_update(self.source.as_str())
            .chain_update([0])
            .chain_update(self.place.as_str())
            .finalize();
        let first_eight = digest.iter().take(8);
        first_eight.fold(0, |key, byte| (key << 8) | i64::from(*byte))
    }
}

/// Sources and places, as two arrays of one statement.
pub(crate) fn arrays<'a>(
    units: impl IntoIterator<Item = &'a FoldUnit>,
) -> (Vec<&'a str>, Vec<&'a str>) {
    units.into_iter().map(|unit| (unit.source.as_str(), unit.place.as_str())).unzip()
}

/// Locks the places until the transaction ends, and the projection against being
/// swapped. The order of the keys is the same for every worker, so that two of
/// them cannot wait for each other.
pub(crate) async fn lock(
    connection: &mut PgConnection,
    units: &[FoldUnit],
) -> Result<(), sqlx::Error> {
    let keys: BTreeSet<i64> = units.iter().map(FoldUnit::lock_key).collect();
    let keys: Vec<i64> = keys.into_iter().collect();
    sqlx::query!(
        r#"
        SELECT pg_advisory_xact_lock_shared($2, $3)
        UNION ALL
        SELECT pg_advisory_xact_lock(key)
        FROM (SELECT key FROM unnest($1::bigint[]) AS keys (key) ORDER BY key) AS ordered
        "#,
        &keys,
        LOCKS,
        PROJECTION_LOCK,
    )
    .execute(connection)
    .await?;
    Ok(())
}
