//! Applies the log to Postgres and serves what comes of it.
//!
//! It must never acknowledge an event before its effect is committed, drop one
//! that it cannot apply, or answer with a sealed or clear secret anywhere but
//! at the credential endpoint.

mod api;
mod commit;
mod consume;
mod credential;
mod data_keys;
mod database;
pub mod dead_letter;
pub mod doctor;
pub mod erase;
pub mod explain;
pub mod installations;
mod journal;
pub mod keys;
mod log_identity;
mod log_reader;
mod measure;
mod metrics;
mod migrate;
pub mod operator;
mod pace;
mod progress;
mod projection;
pub mod rebuild;
pub mod replay;
mod settings;
mod timestamp;
mod token_renewal;
pub mod verify;

use std::sync::Arc;

use anyhow::{Context as _, bail};
use shared::config::CurrentRing;
use shared::data_key_pool::DataKeyPool;
use shared::nats;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use database::pool;
pub use migrate::migrate;
pub use settings::{BackendSettings, KeySettings, MigrateSettings, Postgres, RunSettings};

use crate::api::Api;
use crate::consume::Consumer;
use crate::measure::Measurements;
use crate::settings::TokenRenewalSettings;
use crate::token_renewal::TokenRenewal;

/// Data keys that are kept ready for renewed tokens.
const DATA_KEYS_MAX: usize = 128;

/// Applies events and serves reads until `shutdown` is cancelled.
pub async fn run(settings: RunSettings, shutdown: CancellationToken) -> anyhow::Result<()> {
    let listen = settings.listen;
    let listener = TcpListener::bind(listen).await.with_context(|| {
        format!("listening on {listen} (worker.listen): is it taken by another process?")
    })?;
    let client = nats::connect(&settings.nats, "worker").await.context("connecting to NATS")?;
    let pool = pool(&settings.postgres);
    tracing::info!(listen = %listen, "worker is listening");

    let measurements = Measurements::new(client.clone(), pool.clone(), settings.sources);
    let consumer = Consumer {
        client: client.clone(),
        pool: pool.clone(),
        batch_events_max: settings.batch_events_max,
        retention: settings.retention,
    };
    let ring = CurrentRing::follow(settings.path, settings.ring, shutdown.clone());
    if settings.tokens_unattended {
        tracing::warn!(
            "[worker.token_renewal] is not given: this worker renews no tokens of OAuth"
        );
    }
    let renewal = match settings.token_renewal {
        None => None,
        Some(TokenRenewalSettings { nats, apps, before_expiry, every }) => {
            let appender = nats::connect(&nats, "token-renewal").await?;
            let (ring, shutdown) = (ring.clone(), shutdown.clone());
            let data_keys = DataKeyPool::start(&appender, ring.clone(), DATA_KEYS_MAX, shutdown);
            let (pool, client) = (pool.clone(), client.clone());
            Some(TokenRenewal {
                pool,
                client,
                appender,
                ring,
                data_keys,
                apps,
                before_expiry,
                every,
            })
        }
    };
    let renewing = async {
        if let Some(renewal) = renewal {
            renewal.run(shutdown.clone()).await;
        }
    };
    let api = Arc::new(Api { pool, client: client.clone(), ring, callers: settings.callers });
    let stopping = shutdown.clone();
    let serving = axum::serve(listener, api::router(api))
        .with_graceful_shutdown(async move { stopping.cancelled().await });

    // Whichever ends first, by itself or by a fault, ends the others.
    let work = async {
        let (consumed, served, (), ()) = tokio::join!(
            ending(&shutdown, consumer.run(shutdown.clone())),
            ending(&shutdown, serving.into_future()),
            measurements.run(shutdown.clone()),
            renewing,
        );
        consumed.context("applying the log")?;
        served.context("serving the read API")
    };
    let too_late = async {
        shutdown.cancelled().await;
        tokio::time::sleep(settings.shutdown_timeout).await;
    };
    tokio::select! {
        result = work => result?,
        () = too_late => bail!("not finished in time; what was not acknowledged comes again"),
    }
    tracing::info!("worker has stopped");
    Ok(())
}

async fn ending<T>(shutdown: &CancellationToken, work: impl Future<Output = T>) -> T {
    let result = work.await;
    shutdown.cancel();
    result
}
