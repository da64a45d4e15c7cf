//! `worker migrate`: brings schema, stream and consumer to this version. Safe
//! to run again and again.

use std::time::Duration;

use anyhow::{Context as _, bail};
use async_nats::jetstream;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{CreateStreamError, CreateStreamErrorKind};
use async_nats::jetstream::stream::{Config as StreamConfig, Info as StreamInfo};
use backon::{ConstantBuilder, Retryable as _};
use shared::nats;
use shared::stream::{
    CONSUMER, STREAM, audit_stream_config, breaches, consumer_config, keys_stream_config,
    stream_config,
};
use sqlx::migrate::Migrator;
use sqlx::{Connection as _, PgConnection};

use crate::settings::MigrateSettings;

/// A cluster that has just started, or is choosing a leader, loses a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
const RETRY_DELAY: Duration = Duration::from_millis(500);
const RETRIES: usize = 20;

pub async fn migrate(settings: &MigrateSettings) -> anyhow::Result<()> {
    migrate_schema(settings).await.context("migrating the Postgres schema")?;
    migrate_log(settings).await.context("setting up the JetStream stream and consumer")
}

async fn migrate_schema(settings: &MigrateSettings) -> anyhow::Result<()> {
    // Not of the pool: a migration names every schema, and its own table is in the default one.
    let connection = PgConnection::connect_with(&settings.postgres.options).await;
    let mut connection = connection.context("connecting to Postgres")?;
    MIGRATIONS.run(&mut connection).await?;
    tracing::info!("the Postgres schema is up to date");
    Ok(())
}

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// How many migrations of this version are not applied.
pub(crate) async fn pending(connection: &mut PgConnection) -> Result<usize, sqlx::Error> {
    let applied: Vec<i64> =
        sqlx::query_scalar("SELECT version FROM public._sqlx_migrations WHERE success")
            .fetch_all(connection)
            .await?;
    Ok(MIGRATIONS.iter().filter(|migration| !applied.contains(&migration.version)).count())
}

async fn migrate_log(settings: &MigrateSettings) -> anyhow::Result<()> {
    let client = nats::connect(&settings.nats, "migrate").await?;
    let jetstream = jetstream::ContextBuilder::new().timeout(REQUEST_TIMEOUT).build(client);
    for config in [stream_config(&settings.stream), keys_stream_config(&settings.stream)] {
        let stream = migrate_stream(&jetstream, &config).await?;
        // The server may keep a setting that cannot be changed on a stream.
        let kept = breaches(&stream.config);
        if !kept.is_empty() {
            let why: Vec<String> = kept.iter().map(ToString::to_string).collect();
            let (name, why) = (&config.name, why.join("; "));
            bail!("stream {name} exists and keeps settings that break durability: {why}");
        }
    }
    migrate_stream(&jetstream, &audit_stream_config(&settings.stream)).await?;
    let stream = jetstream.get_stream(STREAM).await?;
    stream.create_consumer(consumer_config(&settings.worker)).await?;
    tracing::info!("consumer {CONSUMER} is up to date");
    Ok(())
}

/// Whether the cluster may only need a moment more.
fn is_starting(error: &CreateStreamError) -> bool {
    match error.kind() {
        CreateStreamErrorKind::TimedOut => true,
        CreateStreamErrorKind::JetStream(server) => matches!(
            server.error_code(),
            ErrorCode::CLUSTER_NO_PEERS | ErrorCode::CLUSTER_NOT_AVAILABLE
        ),
        _ => false,
    }
}

async fn migrate_stream(
    jetstream: &jetstream::Context,
    config: &StreamConfig,
) -> anyhow::Result<StreamInfo> {
    let name = &config.name;
    let create = || jetstream.create_or_update_stream(config.clone());
    let stream = create
        .retry(ConstantBuilder::new().with_delay(RETRY_DELAY).with_max_times(RETRIES))
        .when(is_starting)
        .notify(|error, _| tracing::warn!(%error, "waiting for the log"))
        .await
        .with_context(|| {
            format!("creating or updating stream {name} (see `stream` in the configuration)")
        })?;
    tracing::info!(replicas = stream.config.num_replicas, "stream {name} is up to date");
    Ok(stream)
}
