//! `worker migrate`: brings schema, stream and consumer to this version. Safe
//! to run again and again.

use anyhow::Context as _;
use eventlog::connect::Connection;
use eventlog::topology;
use sqlx::migrate::Migrator;
use sqlx::{Connection as _, PgConnection};

use crate::settings::MigrateSettings;

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
    let connection = Connection::open(&settings.nats, "migrate").await?;
    topology::migrate(&connection, &settings.stream, settings.ack_wait).await
}
