//! Everything that `cargo dev up` runs, started and stopped in order.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::child::Stopped;
use crate::config::{self, Ports};
use crate::data_dir::DataDir;
use crate::durable;
use crate::nats::{NatsOptions, NatsServer, Staging};
use crate::observe::Observers;
use crate::postgres::{Postgres, PostgresOptions};
use crate::progress::step;
use crate::secrets::Secrets;
use crate::services::{self, Profile, Service};

const READY_DEADLINE: Duration = Duration::from_secs(20);
/// Ingest and worker finish what they hold, while the database and the log still run.
const STOP_DEADLINE: Duration = Duration::from_secs(15);

/// The programs of ours that [`Environment::start`] needs: the two services, and `simulate` for the
/// public half of the key that it signs HighLevel's callbacks with.
pub const PROGRAMS: [&str; 3] = ["ingest", "worker", "simulate"];

/// Where the services tell those who run them why they are not ready, on 127.0.0.1.
#[derive(Clone, Copy, Debug)]
pub struct AdminPorts {
    pub ingest: u16,
    pub worker: u16,
}

/// The running environment. Fields are dropped in this order, which is the order to stop in: those
/// that write come before those that store.
pub struct Environment {
    observers: Option<Observers>,
    ingest: Service,
    worker: Service,
    nats: NatsServer,
    postgres: Postgres,
}

impl Environment {
    /// Starts everything, and returns when both services report that they are ready.
    pub fn start(
        data: &DataDir,
        ports: &Ports,
        admin: AdminPorts,
        profile: Profile,
        observe: bool,
    ) -> Result<Self> {
        let secrets = Secrets::ensure(data.secrets(), data.holds_data()?)?;
        services::write_public_key(&secrets, profile)?;
        let sources = config::simulated_sources(&secrets, &highlevel_key(&secrets, profile)?);
        let before = fs::read_to_string(data.config()).ok();
        let config = config::render(ports, &secrets, before.as_deref());
        durable::write(&data.config(), &(config + &sources))?;

        let launch = Launch { data, ports, secrets: &secrets, profile };
        let postgres = step("Postgres", || launch.postgres())?;
        let mut nats = step("nats-server", || launch.nats())?;
        step("schema, stream and consumer (worker migrate)", || launch.migrate())?;
        nats.stage_batches()?;
        let observers = if observe {
            Some(step("Prometheus and otelite", || Observers::start(&data.observe()))?)
        } else {
            None
        };
        let mut worker_envs = config::worker_envs(&secrets);
        worker_envs.extend(observers.iter().flat_map(|it| it.worker_envs.clone()));
        let mut ingest_envs: Vec<_> =
            observers.iter().flat_map(|it| it.ingest_envs.clone()).collect();
        let on_loopback = |port: u16| format!("127.0.0.1:{port}");
        worker_envs.push(("MOORING__WORKER__ADMIN_LISTEN", on_loopback(admin.worker)));
        ingest_envs.push(("MOORING__INGEST__ADMIN_LISTEN", on_loopback(admin.ingest)));
        // Both start at once, and then we wait for each.
        let mut worker = launch.service("worker", &worker_envs)?;
        let mut ingest = launch.service("ingest", &ingest_envs)?;
        step("worker", || {
            worker.wait_ready(&format!("{}/readyz", ports.worker_url()), READY_DEADLINE)
        })?;
        step("ingest", || {
            ingest.wait_ready(&format!("{}/readyz", ports.ingest_url()), READY_DEADLINE)
        })?;
        Ok(Self { observers, ingest, worker, nats, postgres })
    }

    /// Where telemetry is shown, line by line.
    #[must_use]
    pub fn telemetry_guide(&self) -> &[String] {
        self.observers.as_ref().map_or(&[], |observers| &observers.guide)
    }

    /// Fails, with the end of its log, if one of them ended.
    pub fn require_running(&mut self) -> Result<()> {
        self.ingest.require_running()?;
        self.worker.require_running()?;
        self.nats.require_running()?;
        self.postgres.require_running()
    }

    /// Stops everything in order, each with time to finish. A failure is reported when all the others
    /// are stopped, too.
    pub fn stop(mut self) -> Result<()> {
        let results = [
            step("ingest stopped", || self.ingest.stop(STOP_DEADLINE)),
            step("worker stopped", || self.worker.stop(STOP_DEADLINE)),
            step("nats-server stopped", || self.nats.stop()),
            step("Postgres stopped", || self.postgres.stop()),
        ];
        if let Some(observers) = &mut self.observers {
            observers.stop().context("stopping Prometheus and otelite")?;
        }
        let names = ["ingest", "worker", "nats-server", "Postgres"];
        for (name, result) in names.iter().zip(results) {
            if result.with_context(|| format!("stopping {name}"))? == Some(Stopped::ByForce) {
                bail!("{name} did not stop when asked, and was killed");
            }
        }
        Ok(())
    }
}

/// The public half of the key that `simulate` signs HighLevel's callbacks with.
fn highlevel_key(secrets: &Secrets, profile: Profile) -> Result<String> {
    let mut simulate = services::command(&services::binary_of("simulate", profile)?);
    simulate.args(["highlevel", "install", "--public-key", "--secret-file"]);
    let output = simulate.arg(secrets.path("highlevel-signing-seed")).output();
    let output = output.context("asking `simulate` for its public key")?;
    if !output.status.success() {
        bail!("`simulate` gave no public key: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What every start needs to know.
struct Launch<'a> {
    data: &'a DataDir,
    ports: &'a Ports,
    secrets: &'a Secrets,
    profile: Profile,
}

impl Launch<'_> {
    fn postgres(&self) -> Result<Postgres> {
        Postgres::start(PostgresOptions {
            dir: self.data.postgres(),
            port: self.ports.postgres,
            passwords: self.secrets.postgres()?,
        })
    }

    fn nats(&self) -> Result<NatsServer> {
        NatsServer::start(NatsOptions {
            dir: self.data.nats(),
            port: self.ports.nats,
            monitor_port: self.ports.nats_monitor,
            credentials: self.secrets.nats()?,
            cluster: None,
            sync_always: true,
            staging: Staging::Memory,
        })
    }

    fn config(&self) -> String {
        self.data.config().to_string_lossy().into_owned()
    }

    fn service(&self, name: &str, envs: &[(&str, String)]) -> Result<Service> {
        let program = services::binary_of(name, self.profile)?;
        let envs: Vec<(&str, &str)> =
            envs.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let args = ["run", "--config", &self.config()];
        Service::start_program(name, program, &args, &envs, &self.data.log_of(name))
    }

    /// Makes tables and stream, with rights that no service has while it runs.
    fn migrate(&self) -> Result<()> {
        let worker = services::binary_of("worker", self.profile)?;
        let envs = config::migrate_envs(self.ports, self.secrets);
        let log = self.data.path().join("worker/migrate.log");
        services::run_to_end(&worker, &["migrate", "--config", &self.config()], &envs, &log)
    }
}
