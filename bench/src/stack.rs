//! The servers of one scenario: what is measured, and what it needs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Context as _, Result};
use dev::config::{self, Ports};
use dev::nats::{NatsOptions, NatsServer, Staging};
use dev::ports::free_port;
use dev::postgres::{Postgres, PostgresOptions, Role};
use dev::secrets::Secrets;
use dev::services::{self, Profile, Service};
use dev::temporary;
use eventlog::connect::{Connection, Endpoint};
use service::config::{Config, Resolver};
use sqlx::{Connection as _, PgConnection};
use tempfile::TempDir;

use crate::fill::Keys;
use crate::load::Target;

const READY: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(20);

/// What answers the callbacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    Mooring,
    /// Batches are staged on disk.
    MooringOnDisk,
    /// With traces, metrics and logs over OTLP, to a receiver that throws them away or to none.
    MooringTelling {
        reachable: bool,
    },
    /// axum, one publish for each request, to a log that syncs always.
    PlainPublish,
    /// The same to a log that syncs now and then.
    NonDurablePublish,
    PostgresInsert,
    Express {
        processes: u8,
    },
    /// axum alone.
    Nothing,
    /// The log alone, without HTTP.
    Log,
}

impl Subject {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Mooring => "Mooring",
            Self::MooringOnDisk => "Mooring, staging on disk",
            Self::MooringTelling { reachable: true } => "Mooring, telemetry on",
            Self::MooringTelling { reachable: false } => "Mooring, exporter unreachable",
            Self::PlainPublish => "axum, a publish each",
            Self::NonDurablePublish => "axum, a publish each, not durable",
            Self::PostgresInsert => "axum, a Postgres insert each",
            Self::Express { processes: 1 } => "Express, pg",
            Self::Express { .. } => "Express, pg, two processes",
            Self::Nothing => "axum alone",
            Self::Log => "the log alone",
        }
    }
}

/// Fields are dropped in this order.
pub(crate) struct Stack {
    pub(crate) subject: Service,
    pub(crate) worker: Option<Service>,
    _receiver: Option<Service>,
    pub(crate) nats: NatsServer,
    pub(crate) postgres: Postgres,
    pub(crate) kind: Subject,
    pub(crate) target: Target,
    secrets: Secrets,
    ports: Ports,
    folder: TempDir,
}

impl Stack {
    pub(crate) async fn start(kind: Subject) -> Result<Self> {
        let folder = temporary::folder()?;
        let secrets = Secrets::ensure(folder.path().join("secrets"), false)?;
        let ports = Ports {
            ingest: free_port()?,
            worker: free_port()?,
            nats: free_port()?,
            nats_monitor: free_port()?,
            postgres: free_port()?,
        };
        services::write_public_key(&secrets, Profile::Release)?;
        let text = config::render(&ports, &secrets, None);
        std::fs::write(folder.path().join("mooring.toml"), text)?;
        let mut postgres = Postgres::start(PostgresOptions {
            dir: folder.path().join("postgres"),
            port: ports.postgres,
            passwords: secrets.postgres()?,
        })?;
        keep_commit_times(&mut postgres).await?;
        let mut nats = NatsServer::start(NatsOptions {
            dir: folder.path().join("nats"),
            port: ports.nats,
            monitor_port: ports.nats_monitor,
            credentials: secrets.nats()?,
            cluster: None,
            sync_always: kind != Subject::NonDurablePublish,
            staging: match kind {
                Subject::MooringOnDisk => Staging::Disk,
                _ => Staging::Memory,
            },
        })?;
        prepare(kind, &folder, &ports, &secrets, &postgres).await?;
        nats.stage_batches()?;
        let otlp_port = free_port()?;
        let receiver = start_receiver(kind, &folder, otlp_port)?;
        let (subject, target) =
            start_subject(kind, &folder, &ports, &secrets, &nats, &postgres, otlp_port)?;
        Ok(Self {
            subject,
            worker: None,
            _receiver: receiver,
            nats,
            postgres,
            kind,
            target,
            secrets,
            ports,
            folder,
        })
    }

    pub(crate) fn start_worker(&mut self) -> Result<()> {
        let envs = config::worker_envs(&self.secrets);
        let envs: Vec<(&str, &str)> = envs.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let config = path(&self.folder, "mooring.toml");
        let args = ["run", "--config", config.as_str()];
        let mut worker =
            Service::start("worker", &args, &envs, &self.folder.path().join("worker.log"))?;
        worker.wait_ready(&format!("{}/readyz", self.ports.worker_url()), READY)?;
        self.worker = Some(worker);
        Ok(())
    }

    pub(crate) fn stop_subject(&mut self) -> Result<()> {
        self.subject.stop(STOP).map(|_| ())
    }

    /// The processes that do the work.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let worker = self.worker.as_ref().and_then(Service::pid);
        let all = [self.subject.pid(), worker, self.nats.pid(), self.postgres.pid()];
        all.into_iter().flatten().collect()
    }

    pub(crate) async fn database(&self) -> Result<PgConnection> {
        Ok(PgConnection::connect(&self.postgres.url(Role::Superuser, "mooring")).await?)
    }

    /// Connected as ingest is.
    pub(crate) async fn client(&self) -> Result<async_nats::Client> {
        let options = async_nats::ConnectOptions::new()
            .user_and_password("ingest".to_owned(), self.nats.credentials().ingest.clone())
            .custom_inbox_prefix("_INBOX_ingest");
        Ok(options.connect(self.nats_url()).await?)
    }

    /// The same, as our own crate connects.
    pub(crate) async fn connection(&self) -> Result<Connection> {
        let password = self.nats.credentials().ingest.clone().into();
        let to = Endpoint {
            url: self.nats_url(),
            user: Some("ingest".into()),
            password: Some(password),
            nkey_seed: None,
            tls: None,
        };
        Ok(Connection::open(&to, "fill").await?)
    }

    /// What ingest and token renewal have.
    pub(crate) fn keys(&self) -> Result<Keys> {
        let config = Config::load(&self.config())?;
        let env = |name: &str| std::env::var(name).ok();
        let mut resolver = Resolver::new(&env);
        let keys = Keys::resolve(&mut resolver, &config);
        Ok(resolver.finish(&self.config(), keys)?)
    }

    /// Connected as operators are.
    pub(crate) async fn operator(&self) -> Result<Connection> {
        let to = Endpoint {
            url: self.nats_url(),
            user: Some("admin".into()),
            password: Some(self.nats.credentials().admin.clone().into()),
            nkey_seed: None,
            tls: None,
        };
        Ok(Connection::open(&to, "bench").await?)
    }

    /// An operator's command, ready to be run.
    pub(crate) fn worker_command(&self, args: &[&str]) -> Result<Command> {
        let mut command = services::command(&services::binary("worker")?);
        command
            .args(args)
            .env("MOORING_CONFIG", self.config())
            .envs(config::migrate_envs(self.ports(), self.secrets()))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(command)
    }

    /// Adds to the configuration, for what starts from now on.
    pub(crate) fn configure(&self, section: &str) -> Result<()> {
        let text = std::fs::read_to_string(self.config())?;
        Ok(std::fs::write(self.config(), text + section)?)
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.folder.path().join("mooring.toml")
    }

    pub(crate) fn ports(&self) -> &Ports {
        &self.ports
    }

    pub(crate) fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    pub(crate) fn nats_url(&self) -> String {
        self.nats.url()
    }
}

/// So that the time from a callback to its row can be read from the rows.
async fn keep_commit_times(postgres: &mut Postgres) -> Result<()> {
    let mut connection = PgConnection::connect(&postgres.superuser_url()).await?;
    sqlx::query("ALTER SYSTEM SET track_commit_timestamp = on").execute(&mut connection).await?;
    connection.close().await?;
    postgres.stop()?;
    postgres.start_again()
}

async fn prepare(
    kind: Subject,
    folder: &TempDir,
    ports: &Ports,
    secrets: &Secrets,
    postgres: &Postgres,
) -> Result<()> {
    // Stream and schema. The peers use the same stream.
    let mut envs = config::migrate_envs(ports, secrets);
    envs.push(("MOORING_CONFIG", path(folder, "mooring.toml")));
    let log = folder.path().join("migrate.log");
    services::run_to_end(&services::binary("worker")?, &["migrate"], &envs, &log)?;
    if matches!(kind, Subject::PostgresInsert | Subject::Express { .. }) {
        let url = postgres.url(Role::Superuser, "mooring");
        let mut connection = PgConnection::connect(&url).await?;
        sqlx::query(
            "CREATE TABLE installs (installed_app_id text PRIMARY KEY, app_id text, instance_id text, \
             api_key_encrypted text, api_key_prefix text, granted_permissions jsonb, status text, \
             idempotency_key text UNIQUE)",
        )
        .execute(&mut connection)
        .await?;
    }
    Ok(())
}

fn start_receiver(kind: Subject, folder: &TempDir, port: u16) -> Result<Option<Service>> {
    if kind != (Subject::MooringTelling { reachable: true }) {
        return Ok(None);
    }
    let own = std::env::current_exe().context("finding this program")?;
    let (port, log) = (port.to_string(), folder.path().join("receiver.log"));
    let args = ["receiver", port.as_str()];
    let mut receiver = Service::start_program("receiver", own, &args, &[], &log)?;
    receiver.wait_ready(&format!("http://127.0.0.1:{port}/readyz"), READY)?;
    Ok(Some(receiver))
}

fn start_subject(
    kind: Subject,
    folder: &TempDir,
    ports: &Ports,
    secrets: &Secrets,
    nats: &NatsServer,
    postgres: &Postgres,
    otlp_port: u16,
) -> Result<(Service, Target)> {
    let port = ports.ingest.to_string();
    let postgres_url = postgres.url(Role::Superuser, "mooring");
    let own = std::env::current_exe().context("finding this program")?;
    let config = path(folder, "mooring.toml");
    let express = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/express/server.js");
    let (program, args): (PathBuf, Vec<String>) = match kind {
        Subject::Mooring | Subject::MooringOnDisk | Subject::MooringTelling { .. } => {
            (services::binary("ingest")?, vec!["run".into(), "--config".into(), config])
        }
        Subject::PlainPublish | Subject::NonDurablePublish => {
            let password = nats.credentials().ingest.clone();
            (own, vec!["plain-publish".into(), port, nats.url(), password])
        }
        Subject::PostgresInsert => (own, vec!["postgres-insert".into(), port, postgres_url]),
        Subject::Express { processes } => {
            let script = express.to_string_lossy().into_owned();
            (PathBuf::from("node"), vec![script, port, postgres_url, processes.to_string()])
        }
        // The log needs no process beside it; this one idles.
        Subject::Nothing | Subject::Log => (own, vec!["nothing".into(), port]),
    };
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let log = folder.path().join("subject.log");
    let endpoint = format!("http://127.0.0.1:{otlp_port}");
    let mut envs = vec![("NODE_ENV", "production")];
    if matches!(kind, Subject::MooringTelling { .. }) {
        envs.push(("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()));
        envs.push(("OTEL_METRIC_EXPORT_INTERVAL", "1000"));
    }
    let mut service = Service::start_program(kind.name(), program, &args, &envs, &log)?;
    service.wait_ready(&format!("{}/readyz", ports.ingest_url()), READY)?;
    let path = match kind {
        Subject::Mooring | Subject::MooringOnDisk | Subject::MooringTelling { .. } => {
            format!("/callbacks/blnk/{}", secrets.read("blnk-path-token")?)
        }
        _ => "/callback".to_owned(),
    };
    let host = format!("127.0.0.1:{}", ports.ingest);
    Ok((service, Target { host, path, next: Arc::new(AtomicU64::new(1)) }))
}

fn path(folder: &TempDir, name: &str) -> String {
    folder.path().join(name).to_string_lossy().into_owned()
}

/// Whether this machine can run the Express peer.
pub(crate) fn has_express() -> bool {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/express/node_modules").is_dir()
}
