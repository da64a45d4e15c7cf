//! Connections to Postgres.

use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnection, PgPoolOptions};
use sqlx::{Connection as _, PgPool, Postgres};
use tokio::time::timeout;

use crate::settings;

/// A caller of the read API is told quickly that the database is away.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// To find out why there was no connection.
const DIAGNOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The class of our advisory locks, so that they are not those of the places.
pub(crate) const LOCKS: i32 = 0x6d6f;
/// Shared by whoever writes the live projection, exclusive for who swaps it.
pub(crate) const PROJECTION_LOCK: i32 = 1;
const REBUILD_LOCK: i32 = 2;

/// A pool that connects when it is first used, so that a worker starts, and
/// says that it is not ready, while Postgres is away.
pub fn pool(settings: &settings::Postgres) -> PgPool {
    PgPoolOptions::new()
        .max_connections(settings.connections_max)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        // What a rebuild writes to another schema has no schema in its statement.
        .after_connect(|connection, _| {
            Box::pin(async move {
                sqlx::query("SET search_path TO projection, public").execute(connection).await?;
                Ok(())
            })
        })
        .connect_lazy_with(settings.options.clone())
}

/// A connection, or why there is none: the pool itself only says that it waited.
pub(crate) async fn acquire(pool: &PgPool) -> Result<PoolConnection<Postgres>, sqlx::Error> {
    match pool.acquire().await {
        Err(waited @ sqlx::Error::PoolTimedOut) => Err(diagnose(pool).await.unwrap_or(waited)),
        acquired => acquired,
    }
}

async fn diagnose(pool: &PgPool) -> Option<sqlx::Error> {
    let options = pool.connect_options();
    match timeout(DIAGNOSE_TIMEOUT, PgConnection::connect_with(&options)).await {
        Ok(Ok(connection)) => {
            connection.close().await.ok();
            None // it can be reached: all connections of the pool are busy
        }
        Ok(Err(cause)) => Some(cause),
        Err(_elapsed) => None,
    }
}

/// For the session; false if another one has it.
pub(crate) async fn try_lock_rebuild(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(r#"SELECT pg_try_advisory_lock($1, $2) AS "locked!""#, LOCKS, REBUILD_LOCK)
        .fetch_one(connection)
        .await
}

/// Until the transaction ends no worker commits.
pub(crate) async fn lock_out_workers(transaction: &mut PgConnection) -> Result<(), sqlx::Error> {
    // While it waits, workers wait behind it.
    sqlx::query("SET LOCAL lock_timeout TO '5s'").execute(&mut *transaction).await?;
    sqlx::query!("SELECT pg_advisory_xact_lock($1, $2)", LOCKS, PROJECTION_LOCK)
        .execute(transaction)
        .await?;
    Ok(())
}
