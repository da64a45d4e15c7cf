//! Applies the log to Postgres and serves what comes of it.
//!
//! It must never acknowledge an event before its effect is committed, drop one
//! that it cannot apply, or answer with a sealed or clear secret anywhere but
//! at the credential endpoint.

mod api;
mod commit;
mod consume;
mod credential;
mod dead_letter;
pub mod installations;
mod journal;
mod lag;
mod metrics;
mod migrate;
mod projection;
mod settings;
mod timestamp;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use shared::nats;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use migrate::migrate;
pub use settings::{MigrateSettings, Postgres, RunSettings};

use crate::api::Api;
use crate::consume::Consumer;

/// A caller of the read API is told quickly that the database is away.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);

/// A pool that connects when it is first used, so that a worker starts, and
/// says that it is not ready, while Postgres is away.
pub fn pool(settings: &Postgres) -> PgPool {
    PgPoolOptions::new()
        .max_connections(settings.connections_max)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect_lazy_with(settings.options.clone())
}

/// Applies events and serves reads until `shutdown` is cancelled.
pub async fn run(settings: RunSettings, shutdown: CancellationToken) -> anyhow::Result<()> {
    let listen = settings.listen;
    let listener = TcpListener::bind(listen).await.with_context(|| {
        format!("listening on {listen} (worker.listen): is it taken by another process?")
    })?;
    let client = nats::connect(&settings.nats, "worker").await.context("connecting to NATS")?;
    let pool = pool(&settings.postgres);
    tracing::info!(listen = %listen, "worker is listening");

    let consumer = Consumer {
        client: client.clone(),
        pool: pool.clone(),
        batch_events_max: settings.batch_events_max,
        retention: settings.retention,
    };
    let api = Arc::new(Api {
        pool,
        client: client.clone(),
        ring: settings.ring,
        callers: settings.callers,
    });
    let stopping = shutdown.clone();
    let serving = axum::serve(listener, api::router(api))
        .with_graceful_shutdown(async move { stopping.cancelled().await });

    // Ends at shutdown, between two samples.
    let lag = tokio::spawn(lag::measure(client.clone(), shutdown.clone()));
    let consuming = consumer.run(shutdown.clone());
    let result = tokio::select! {
        result = consuming => result.map_err(anyhow::Error::from),
        result = serving => match result {
            // The consumer ends a moment later; it has a batch to finish.
            Ok(()) => Ok(()),
            Err(error) => Err(anyhow::Error::from(error).context("serving the read API")),
        },
    };
    shutdown.cancel();
    lag.abort();
    result
}
