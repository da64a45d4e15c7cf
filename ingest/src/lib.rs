//! The ack path: verify, parse, seal, append to the log, answer 2xx.
//!
//! It must never need a database, answer 2xx before the append is
//! acknowledged, or let a secret leave in clear.

mod audit;
mod callback;
mod commit;
mod confirmation;
mod install;
mod metrics;
mod oauth;
mod page;
mod publish;
mod readiness;
mod router;
mod serve;
mod settings;
mod ticket;
mod writer;

use std::sync::Arc;

use anyhow::Context as _;
use shared::config::CurrentRing;
use shared::data_key_pool::DataKeyPool;
use shared::{http_client, nats};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use settings::Settings;

use crate::audit::Audit;
use crate::publish::Publisher;
use crate::router::App;

/// Data keys that are kept ready, for a burst of callbacks.
const DATA_KEYS_MAX: usize = 8_192;

/// Serves until `shutdown` is cancelled, then finishes what is in flight.
pub async fn run(settings: Settings, shutdown: CancellationToken) -> anyhow::Result<()> {
    let listen = settings.http.listen;
    let listener = TcpListener::bind(listen).await.with_context(|| {
        format!("listening on {listen} (ingest.listen): is it taken by another process?")
    })?;
    let client = nats::connect(&settings.nats, "ingest").await.context("connecting to NATS")?;
    let http = http_client::builder_for(settings.monitor_url.as_deref().unwrap_or_default())
        .build()
        .context("setting up TLS")?;
    let contract = readiness::watch_contract(&client, http, &settings, shutdown.clone());
    let publisher = Publisher::new(client.clone(), contract);
    let audit = Audit::start(client.clone());
    let ring = CurrentRing::follow(settings.path, settings.ring, shutdown.clone());
    let data_keys = DataKeyPool::start(&client, ring.clone(), DATA_KEYS_MAX, shutdown.clone());
    tracing::info!(listen = %listen, sources = settings.sources.len(), "ingest is listening");

    // Requests, and notes about their answers.
    let in_flight = TaskTracker::new();
    let (sources, http) = (settings.sources, settings.http);
    let (publisher, notes) = (Arc::new(publisher), in_flight.clone());
    metrics::observe(client, Arc::clone(&publisher), Arc::clone(&data_keys));
    metrics::zero(sources.values());
    let app = App { sources, ring, data_keys, audit, http: http.clone(), publisher, notes };
    let router = router::router(Arc::new(app));
    serve::serve(listener, router, &http, &in_flight, shutdown).await;

    // Callbacks whose client has gone are still on their way to the log.
    in_flight.close();
    if tokio::time::timeout(http.shutdown_timeout, in_flight.wait()).await.is_err() {
        anyhow::bail!(
            "{} callbacks were not finished in time; none was acknowledged",
            in_flight.len()
        );
    }
    tracing::info!("ingest has stopped");
    Ok(())
}
