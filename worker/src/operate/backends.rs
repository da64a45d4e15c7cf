//! NATS and Postgres, as commands of operators connect to them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use domain::event_key::EventKeys;
use domain::fold::Retention;
use domain::key_ring::KeyRing;
use eventlog::archive::{History, Location};
use eventlog::connect::{ConnectErrorKind, Connection, Endpoint};
use eventlog::status;
use service::config::ConfigError;
use sqlx::{PgConnection, PgPool};
use tokio_util::sync::CancellationToken;

use crate::operate::context::Context;
use crate::operate::exit::Interrupted;
use crate::operate::progress::note;
use crate::settings::{self, BackendSettings, Postgres};
use crate::store::{database, log_identity};

const WORKERS_POLL: Duration = Duration::from_millis(200);
const WORKERS_NOTE_EVERY: Duration = Duration::from_secs(5);

/// What a command that works on log and projection needs.
pub(crate) struct Backends {
    /// For further connections, which read the log in parallel.
    pub(crate) endpoint: Endpoint,
    pub(crate) connection: Connection,
    pub(crate) pool: PgPool,
    pub(crate) retention: Retention,
    /// Where old events are.
    pub(crate) archive: Option<Location>,
}

/// Log and archive. As long as it lives the log is not trimmed, so that nothing is
/// missed between the two.
pub(crate) struct Untrimmed {
    pub(crate) history: History,
    /// With it ends the lock.
    _postgres: PgConnection,
}

impl Backends {
    pub(crate) async fn history(&self) -> anyhow::Result<Untrimmed> {
        let postgres = database::connect_alone(&self.pool).await;
        let mut postgres = postgres.context("connecting to Postgres")?;
        database::keep_log_untrimmed(&mut postgres).await?;
        let history = History::find(&self.connection, self.archive.as_ref()).await?;
        let history = history.restored(log_identity::restored(&mut postgres).await?);
        Ok(Untrimmed { history, _postgres: postgres })
    }
}

impl Context {
    /// Connects to NATS, and to Postgres when it is first used.
    pub(crate) async fn backends(&self) -> anyhow::Result<Backends> {
        let BackendSettings { nats, postgres, retention, archive } = self.backend_settings()?;
        let connection = connect(&nats, "operator").await?;
        let pool = database::pool(&postgres);
        let archive = archive.map(|archive| archive.location);
        Ok(Backends { endpoint: nats, connection, pool, retention, archive })
    }

    pub(crate) fn backend_settings(&self) -> Result<BackendSettings, ConfigError> {
        BackendSettings::resolve(&self.config, &self.path, &self.env)
    }

    /// For what needs no NATS.
    pub(crate) fn pool(&self) -> Result<PgPool, ConfigError> {
        Ok(database::pool(&Postgres::resolve(&self.config, &self.path, &self.env)?))
    }

    /// What proves who wrote an event.
    pub(crate) fn event_keys(&self) -> Result<EventKeys, ConfigError> {
        settings::event_keys(&self.config, &self.path, &self.env)
    }

    pub(crate) fn key_ring(&self) -> Result<KeyRing, ConfigError> {
        settings::key_ring(&self.config, &self.path, &self.env)
    }
}

/// At once, or not at all: whoever runs a command is told why.
pub(crate) async fn connect(nats: &Endpoint, service: &str) -> anyhow::Result<Connection> {
    let connection = Connection::open_now(nats, service).await;
    connection.map_err(|error| {
        let why = match error.kind() {
            ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                "NATS does not accept nats.user with this nats.password"
            }
            _ => "connecting to NATS",
        };
        anyhow::Error::new(error).context(why)
    })
}

/// Up to where every event is committed.
pub(crate) async fn floor(connection: &Connection) -> anyhow::Result<u64> {
    Ok(status::consumer(connection).await?.applied_up_to())
}

/// Who reads the projection must not miss what is in the log already.
pub(crate) async fn wait_for_workers(
    backends: &Backends,
    target: u64,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let mut last_note: Option<Instant> = None;
    loop {
        let floor = floor(&backends.connection).await?;
        if floor >= target {
            return Ok(());
        }
        if last_note.is_none_or(|at| at.elapsed() >= WORKERS_NOTE_EVERY) {
            last_note = Some(Instant::now());
            note(&format!(
                "waiting for the workers: they have applied the log up to {floor}, {target} is needed (is one running?)"
            ));
        }
        tokio::select! {
            () = tokio::time::sleep(WORKERS_POLL) => {}
            () = shutdown.cancelled() => bail!(Interrupted),
        }
    }
}
