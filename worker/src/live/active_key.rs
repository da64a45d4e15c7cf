//! Remembers which keys were active, so that a worker that lacks one of them
//! knows that it cannot open everything.

use std::time::Duration;

use domain::id::KeyId;
use domain::key_ring::KeyRing;
use eventlog::keys::Current;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::store::{database, sealing_keys};

const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Until `shutdown`.
pub(crate) async fn remember(pool: PgPool, ring: Current<KeyRing>, shutdown: CancellationToken) {
    let mut remembered: Option<KeyId> = None;
    loop {
        let active = ring.get().active().clone();
        if remembered.as_ref() != Some(&active) {
            match activated(&pool, &active).await {
                Ok(()) => remembered = Some(active),
                Err(error) => tracing::debug!(%error, "the active key is not remembered yet"),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

async fn activated(pool: &PgPool, id: &KeyId) -> Result<(), sqlx::Error> {
    let mut connection = database::acquire(pool).await?;
    sealing_keys::activated(&mut connection, id).await
}

/// What is wrong with the ring, if it lacks a key that pages may need.
pub(crate) async fn missing(pool: &PgPool, ring: &KeyRing) -> Result<Option<String>, sqlx::Error> {
    let mut connection = database::acquire(pool).await?;
    let mut missing = sealing_keys::needed(&mut connection).await?;
    missing.retain(|id| !ring.key_ids().any(|known| known.as_str() == id));
    Ok((!missing.is_empty()).then(|| {
        let ids = missing.join(", ");
        format!(
            "pages may be sealed with {ids}, which is not in the key ring: put it back into \
             sealing.keys, or ask `worker keys retire` whether anything needs it"
        )
    }))
}
