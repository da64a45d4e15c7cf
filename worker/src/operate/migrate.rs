//! `worker migrate`: brings schema, streams and consumer to this version. Safe
//! to run again and again.

use std::time::Duration;

use anyhow::Context as _;
use backon::{ConstantBuilder, Retryable as _};
use clap::Args;
use domain::id::StreamSequence;
use eventlog::connect::{ConnectError, ConnectErrorKind, Endpoint};
use eventlog::topology::Wanted;
use eventlog::{audit, changes, consume, forward, keys, message, quota, topology};
use serde::Serialize;
use sqlx::PgConnection;
use sqlx::migrate::Migrator;
use sqlx::postgres::PgPoolOptions;

use crate::operate::backends;
use crate::operate::context::{Command, Context};
use crate::operate::output::Format;
use crate::settings::{BackendSettings, Postgres};
use crate::store::{database, journal};

/// NATS may start together with us.
const CONNECT_AGAIN_AFTER: Duration = Duration::from_millis(500);
const CONNECT_ATTEMPTS: usize = 40;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// Create or update the Postgres schema, the JetStream streams and their consumer
///
/// Needs a Postgres role that owns the database and a NATS user that may
/// manage streams: set MOORING__POSTGRES__URL and MOORING__NATS__USER for
/// this one command. Safe to run again.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    format: Format,
}

/// What is there, and what of it is new.
#[derive(Debug, Serialize)]
struct Report {
    schema_version: i64,
    /// Those that were not applied before.
    applied_migrations: Vec<i64>,
    streams: Vec<&'static str>,
    consumer: &'static str,
}

impl Command for Arguments {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let BackendSettings { nats, postgres, .. } = context.backend_settings()?;
        let applied = migrate_schema(&postgres).await.context("migrating the Postgres schema")?;
        let known_to = known_to(&postgres).await.context("reading the journal")?;
        let log = migrate_log(context, &nats, known_to).await;
        log.context("setting up the JetStream streams and their consumer")?;
        let report = Report {
            schema_version: MIGRATIONS.iter().map(|it| it.version).max().unwrap_or_default(),
            applied_migrations: applied,
            streams: streams(context),
            consumer: consume::CONSUMER,
        };
        self.format.print(&report, render)
    }
}

fn streams(context: &Context) -> Vec<&'static str> {
    let all = [
        message::STREAM,
        keys::STREAM,
        keys::NEW_STREAM,
        audit::STREAM,
        keys::report::STREAM,
        quota::STREAM,
    ];
    let forwarded = context.config.forwards().then_some(forward::STREAM);
    let changes = context.config.worker.changes_stream.then_some(changes::STREAM);
    all.into_iter().chain(forwarded).chain(changes).collect()
}

fn render(report: &Report) -> String {
    let Report { schema_version, applied_migrations, streams, consumer } = report;
    format!(
        "the Postgres schema is at version {schema_version}; {} migrations were applied now\n\
         the streams {} and the consumer {consumer} are up to date",
        applied_migrations.len(),
        streams.join(", "),
    )
}

async fn migrate_schema(postgres: &Postgres) -> anyhow::Result<Vec<i64>> {
    // Not our usual pool: a migration names every schema, and its own table is in the default one.
    let pool = PgPoolOptions::new().max_connections(1).connect_with(postgres.options.clone());
    let pool = pool.await.context("connecting to Postgres")?;
    // An empty database has no table of them.
    let before = applied(&mut *pool.acquire().await?).await.unwrap_or_default();
    MIGRATIONS.run(&pool).await?;
    let mut now = applied(&mut *pool.acquire().await?).await?;
    now.retain(|version| !before.contains(version));
    Ok(now)
}

/// How many migrations of this version are not applied.
pub(crate) async fn pending(connection: &mut PgConnection) -> Result<usize, sqlx::Error> {
    let applied = applied(connection).await?;
    Ok(MIGRATIONS.iter().filter(|migration| !applied.contains(&migration.version)).count())
}

async fn applied(connection: &mut PgConnection) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar("SELECT version FROM public._sqlx_migrations WHERE success ORDER BY version")
        .fetch_all(connection)
        .await
}

/// The last position that the journal knows. A log that is made anew begins behind it,
/// so that no sequence means two events.
async fn known_to(postgres: &Postgres) -> anyhow::Result<StreamSequence> {
    let pool = database::pool(postgres);
    let last = journal::last(&mut *database::acquire(&pool).await?).await?;
    Ok(last.map_or(StreamSequence(0), |(sequence, _)| sequence))
}

async fn migrate_log(
    context: &Context,
    nats: &Endpoint,
    known_to: StreamSequence,
) -> anyhow::Result<()> {
    let connect = || backends::connect(nats, "migrate");
    let connection = connect
        .retry(
            ConstantBuilder::new().with_delay(CONNECT_AGAIN_AFTER).with_max_times(CONNECT_ATTEMPTS),
        )
        .when(is_away)
        .notify(|error, _| tracing::warn!("waiting for NATS: {error:#}"))
        .await?;
    let ack_wait = Duration::from_millis(context.config.worker.ack_wait_ms);
    let config = &context.config;
    let days = u64::from(config.worker.changes_keep_days);
    let keep_for = Duration::from_secs(days * 86_400);
    let wanted = Wanted {
        forwarded: config.forwards(),
        changes: config.worker.changes_stream.then_some(keep_for),
    };
    topology::migrate(&connection, &config.stream, ack_wait, known_to, wanted).await
}

fn is_away(error: &anyhow::Error) -> bool {
    use ConnectErrorKind::{Dns, Io, TimedOut};
    let kind = error.downcast_ref::<ConnectError>().map(ConnectError::kind);
    matches!(kind, Some(Dns | Io | TimedOut))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::tests::assert_view;

    #[test]
    fn what_is_there_is_told() {
        let report = Report {
            schema_version: 6,
            applied_migrations: vec![5, 6],
            streams: vec!["INSTALLATIONS", "DATA_KEYS", "NEW_DATA_KEYS"],
            consumer: "worker",
        };
        assert_view("migrate", &render(&report));
    }
}
