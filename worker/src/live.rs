//! What a worker does all the time.

pub(crate) mod access;
pub(crate) mod active_key;
pub(crate) mod admission;
pub(crate) mod api;
pub(crate) mod archive;
pub(crate) mod archived_payloads;
pub(crate) mod archiving;
pub(crate) mod changes;
pub(crate) mod commit;
pub(crate) mod consume;
pub(crate) mod credential;
pub(crate) mod feed;
pub(crate) mod lease;
pub(crate) mod measure;
pub(crate) mod push;
pub(crate) mod readiness;
pub(crate) mod relay;
pub(crate) mod skipped;
pub(crate) mod token_renewal;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use domain::key_ring::KeyRing;
use eventlog::append::Writer;
use eventlog::connect::Connection;
use eventlog::keys::report::{self, Held};
use eventlog::keys::{Current, DataKeyPool, PoolSettings};
use futures_util::future::{OptionFuture, join4};
use service::clock;
use service::config::reload;
use service::server::Ports;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::live::access::record::Recorder;
use crate::live::access::{Door, record};
use crate::live::api::Api;
use crate::live::archived_payloads::ArchivedPayloads;
use crate::live::archiving::Archiving;
use crate::live::commit::Terms;
use crate::live::consume::Projector;
use crate::live::measure::Measurements;
use crate::live::readiness::Readiness;
use crate::live::relay::Relay;
use crate::live::token_renewal::TokenRenewal;
use crate::settings::{ArchiveAccess, RunSettings, TokenRenewalSettings};
use crate::store::database::service_pool;

/// Data keys that are kept ready for renewed tokens.
const DATA_KEYS_MAX: usize = 128;

/// Applies events and serves reads until `shutdown` is cancelled.
pub(crate) async fn run(settings: RunSettings, shutdown: CancellationToken) -> anyhow::Result<()> {
    let shutdown_timeout = settings.server.limits.shutdown_timeout;
    let ports = Ports::bind(settings.server, "worker", &shutdown).await?;
    let connection = Connection::open(&settings.nats, "worker").await;
    let connection = connection.context("connecting to NATS")?;
    let pool = service_pool(&settings.postgres);
    let measurements = Measurements::new(connection.clone(), pool.clone(), settings.sources);
    let projector = Projector {
        connection: connection.clone(),
        pool: pool.clone(),
        batch_events_max: settings.batch_events_max,
        terms: Terms { retention: settings.retention, event_keys: settings.event_keys },
        place_events_max: settings.place_events_max,
    };
    let (recorder, records) = record::start(pool.clone());
    let door = Door::follow(settings.callers, settings.path.clone(), shutdown.clone())?;
    let ring = reload::follow(settings.path.clone(), settings.ring, shutdown.clone());
    report::start(connection.clone(), "worker", held_by(ring.clone()), shutdown.clone());
    warn_if_unattended(settings.tokens_unattended);
    let renewal = match settings.token_renewal {
        None => None,
        Some(renewal) => {
            let (pool, connection, ring) = (pool.clone(), connection.clone(), ring.clone());
            let beside = Beside { pool, connection, ring, recorder: recorder.clone() };
            Some(token_renewal(renewal, settings.path, beside, &shutdown).await?)
        }
    };
    let renewing = OptionFuture::from(renewal.map(|renewal| renewal.run(shutdown.clone())));
    tokio::spawn(active_key::remember(pool.clone(), ring.clone(), shutdown.clone()));
    let archiving = archiving(settings.archive.as_ref(), &pool).await?;
    let pushing = push::run(pool.clone(), settings.push, shutdown.clone());
    let relay = Relay { pool: pool.clone(), connection: connection.clone() };
    let relaying = settings.changes_stream.then(|| relay.run(shutdown.clone()));
    let archiving = OptionFuture::from(archiving.map(|it| it.run(shutdown.clone())));
    let beside = join4(renewing, archiving, pushing, OptionFuture::from(relaying));
    let archived = ArchivedPayloads::new(settings.archive);
    let readiness =
        Readiness::start(connection.clone(), pool.clone(), ring.clone(), shutdown.clone());
    let feed = feed::start(pool.clone(), settings.changes_keep_for, shutdown.clone());
    let portals = settings.portals;
    let api = Api { pool, connection, ring, door, recorder, archived, feed, portals };
    let api = Arc::new(api);
    let in_flight = TaskTracker::new();
    let public = api::router(api).merge(readiness.clone().public());
    let serving = ports.serve(public, readiness.admin(), &in_flight, shutdown.clone());

    // Whichever ends first, by itself or by a fault, ends the others.
    let work = async {
        let (applied, (), (), _, (), ()) = tokio::join!(
            ending(&shutdown, projector.run(shutdown.clone())),
            ending(&shutdown, serving),
            measurements.run(shutdown.clone()),
            beside,
            records.run(),
            projector.net().run(shutdown.clone()),
        );
        applied.context("applying the log")
    };
    let too_late = async {
        shutdown.cancelled().await;
        tokio::time::sleep(shutdown_timeout).await;
    };
    tokio::select! {
        result = work => result?,
        () = too_late => bail!("not finished in time; what was not acknowledged comes again"),
    }
    tracing::info!("worker has stopped");
    Ok(())
}

fn warn_if_unattended(tokens: bool) {
    if tokens {
        tracing::warn!("[worker.token_renewal] is not given: this worker renews no OAuth tokens");
    }
}

/// `None` where workers are not to archive.
async fn archiving(
    access: Option<&ArchiveAccess>,
    pool: &PgPool,
) -> anyhow::Result<Option<Archiving>> {
    let Some(access) = access else { return Ok(None) };
    let Some(nats) = &access.nats else { return Ok(None) };
    let connection = Connection::open(nats, "archive").await?;
    Ok(Some(Archiving {
        connection,
        pool: pool.clone(),
        location: access.location.clone(),
        policy: access.policy,
        every: access.every,
    }))
}

fn held_by(ring: Current<KeyRing>) -> impl Fn() -> Held {
    move || {
        let ring = ring.get();
        Held::of(ring.sealing_key(), ring.key_ids().cloned().collect())
    }
}

/// What a worker has anyhow.
struct Beside {
    pool: PgPool,
    connection: Connection,
    ring: Current<KeyRing>,
    recorder: Recorder,
}

/// As a user of NATS of its own, with data keys of its own.
async fn token_renewal(
    settings: TokenRenewalSettings,
    path: PathBuf,
    Beside { pool, connection, ring, recorder }: Beside,
    shutdown: &CancellationToken,
) -> anyhow::Result<TokenRenewal> {
    let appender = Connection::open(&settings.nats, "token-renewal").await?;
    let key = reload::follow(path, settings.sealing_key, shutdown.clone());
    let held = {
        let key = key.clone();
        move || Held::of(&key.get(), Vec::new())
    };
    report::start(appender.clone(), "renewer", held, shutdown.clone());
    let keys = PoolSettings {
        ready_max: DATA_KEYS_MAX,
        unused_max: settings.data_key_unused_max,
        now: clock::now,
    };
    Ok(TokenRenewal {
        pool,
        connection,
        data_keys: DataKeyPool::start(&appender, key, keys, shutdown.clone()),
        writer: Writer::of_service(appender.clone(), settings.event_key),
        appender,
        ring,
        recorder,
        fingerprints: settings.fingerprints,
        apps: settings.apps,
        before_expiry: settings.before_expiry,
        every: settings.every,
    })
}

async fn ending<T>(shutdown: &CancellationToken, work: impl Future<Output = T>) -> T {
    let result = work.await;
    shutdown.cancel();
    result
}
