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

/// A pool that connects when it is first used, so that a worker starts, and
/// says that it is not ready, while Postgres is away.
pub fn pool(settings: &settings::Postgres) -> PgPool {
    PgPoolOptions::new()
        .max_connections(settings.connections_max)
        .acquire_timeout(ACQUIRE_TIMEOUT)
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
