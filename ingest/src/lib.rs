//! The ack path: verify, parse, seal, append to the log, answer 2xx.
//!
//! It must never need a database, answer 2xx before the append is
//! acknowledged, or let a secret leave in clear.

mod app;
mod audit;
mod callback;
mod commit;
mod confirmation;
mod door;
mod gauges;
mod install;
mod metrics;
mod oauth;
mod page;
mod publish;
mod router;
mod settings;
mod ticket;

use std::sync::Arc;

use anyhow::Context as _;
use eventlog::audit::Recorder;
use eventlog::connect::Connection;
use eventlog::contract::{self, Check};
use eventlog::keys::report::{self, Held};
use eventlog::keys::{DataKeyPool, PoolSettings};
use eventlog::loss::{self, Losses};
use service::clock;
use service::config::reload;
use service::http_client;
use service::server::Ports;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use settings::Settings;

use crate::app::App;
use crate::audit::Audit;
use crate::door::Doors;
use crate::metrics::METRICS;
use crate::publish::Publisher;
use crate::ticket::UsedTickets;

/// Data keys that are kept ready, for a burst of callbacks.
const DATA_KEYS_MAX: usize = 8_192;

/// Serves until `shutdown` is cancelled, then finishes what is in flight.
pub async fn run(settings: Settings, shutdown: CancellationToken) -> anyhow::Result<()> {
    let shutdown_timeout = settings.server.limits.shutdown_timeout;
    let ports = Ports::bind(settings.server, "ingest", &shutdown).await?;
    let connection = Connection::open(&settings.nats, "ingest").await;
    let connection = connection.context("connecting to NATS")?;
    let monitor = settings.monitor_url.as_deref().unwrap_or_default();
    let check = Check {
        connection: connection.clone(),
        http: http_client::builder_for(monitor).build().context("setting up TLS")?,
        monitor_url: settings.monitor_url.clone(),
        accepted: settings.accepted_breaches,
    };
    let contract = contract::watch(check, shutdown.clone());
    let doors = Doors::new(connection.clone(), contract.clone(), settings.open_log_percent_max);
    let publisher = Arc::new(Publisher::new(connection.clone(), settings.event_key, contract));
    let audit = Audit(Recorder::start(connection.clone()));
    let pool = PoolSettings {
        ready_max: DATA_KEYS_MAX,
        unused_max: settings.data_key_unused_max,
        now: clock::now,
    };
    let sealing_key = reload::follow(settings.path, settings.sealing_key, shutdown.clone());
    let data_keys = DataKeyPool::start(&connection, sealing_key.clone(), pool, shutdown.clone());
    let held = {
        let key = sealing_key.clone();
        move || Held::of(&key.get(), Vec::new())
    };
    report::start(connection.clone(), "ingest", held, shutdown.clone());
    gauges::observe(connection.clone(), Arc::clone(&publisher), Arc::clone(&data_keys));
    gauges::zero(settings.sources.values());
    let losses = loss::watch(connection.clone(), shutdown.clone());
    tokio::spawn(relearn(losses, Arc::clone(&publisher), Arc::clone(&data_keys)));
    // Requests, and notes about their answers.
    let in_flight = TaskTracker::new();
    let (sources, http, notes) = (settings.sources, settings.http, in_flight.clone());
    let fingerprints = settings.fingerprints;
    let used_tickets = UsedTickets::new();
    let app = App {
        sources,
        sealing_key,
        fingerprints,
        data_keys,
        audit,
        http,
        publisher,
        connection,
        doors,
        used_tickets,
        notes,
    };
    let app = Arc::new(app);
    let (public, admin) = (router::public(Arc::clone(&app)), router::admin(app));
    ports.serve(public, admin, &in_flight, shutdown).await;

    // Callbacks whose client has gone are still on their way to the log.
    in_flight.close();
    if tokio::time::timeout(shutdown_timeout, in_flight.wait()).await.is_err() {
        anyhow::bail!(
            "{} callbacks were not finished in time; none was acknowledged",
            in_flight.len()
        );
    }
    tracing::info!("ingest has stopped");
    Ok(())
}

/// After each loss: what this process remembers may not be true any more.
async fn relearn(mut losses: Losses, publisher: Arc<Publisher>, data_keys: Arc<DataKeyPool>) {
    while losses.changed().await.is_ok() {
        METRICS.log_losses.add(1, &[]);
        data_keys.discard();
        publisher.forget_all().await;
    }
}
