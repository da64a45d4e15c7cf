//! `cargo dev up`: builds and starts everything, prints how to use it, and stops it on Ctrl-C.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Args;
use dev::config::Ports;
use dev::data_dir::{DataDir, Running};
use dev::environment::{AdminPorts, Environment, PROGRAMS};
use dev::ports::{Needed, require_all_free};
use dev::progress::{say, step};
use dev::secrets::{Secrets, new_token};
use dev::services::Profile;
use dev::{interrupt, tools, wait};

use super::cargo::{build, require};
use super::data::Data;

/// How much of a key a platform shows.
pub(super) const PREFIX_LENGTH: usize = "blnk_abcd".len();

/// Start everything, print how to send a callback, and run until Ctrl-C
#[derive(Args)]
#[command(after_help = "Examples:
  cargo dev up
  cargo dev up --data-dir /tmp/second --ingest-port 9080 --worker-port 9081 \\
      --nats-port 5222 --nats-monitor-port 9222 --postgres-port 6433

The data survives a stop; `cargo dev reset` deletes it.")]
pub(crate) struct Up {
    #[command(flatten)]
    data: Data,
    /// Port of the callback endpoint
    #[arg(long, default_value_t = 8080, value_name = "PORT")]
    ingest_port: u16,
    /// Port of the read API
    #[arg(long, default_value_t = 8081, value_name = "PORT")]
    worker_port: u16,
    /// Port at which ingest says why it is not ready; 100 above --ingest-port unless given
    #[arg(long, value_name = "PORT")]
    ingest_admin_port: Option<u16>,
    /// The same of the worker; 100 above --worker-port unless given
    #[arg(long, value_name = "PORT")]
    worker_admin_port: Option<u16>,
    /// Port of nats-server
    #[arg(long, default_value_t = 4222, value_name = "PORT")]
    nats_port: u16,
    /// Port of nats-server's monitoring
    #[arg(long, default_value_t = 8222, value_name = "PORT")]
    nats_monitor_port: u16,
    /// Port of Postgres
    #[arg(long, default_value_t = 5433, value_name = "PORT")]
    postgres_port: u16,
    /// Build ingest and worker with optimisation
    #[arg(long)]
    release: bool,
    /// Also start Prometheus and otelite, where they are in PATH, to show telemetry
    #[arg(long)]
    observe: bool,
}

impl Up {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let start = Instant::now();
        let data = self.data.dir()?;
        let lock = data.lock()?;
        require_all_free(&self.needed_ports())?;
        let profile = Profile::of(self.release);
        step("build", || require(&mut build(&PROGRAMS, profile)))?;
        // Not as steps: the first time these download, and report that themselves.
        tools::nats_server()?;
        tools::postgres()?;

        let ports = self.ports();
        let started = Environment::start(&data, &ports, self.admin_ports(), profile, self.observe);
        if interrupt::requested() {
            drop(started);
            say("interrupted while starting; everything is stopped");
            return Ok(ExitCode::FAILURE);
        }
        let mut environment =
            started.context("starting failed, and everything is stopped again")?;
        let running = Running {
            ingest_url: ports.ingest_url(),
            worker_url: ports.worker_url(),
            postgres_owner_url: ports.postgres_url("mooring_owner"),
        };
        lock.announce(&running)?;
        say(&format!("everything is ready ({:.1} s)", start.elapsed().as_secs_f64()));
        println!("{}", guide(&data, &running)?);
        for line in environment.telemetry_guide() {
            println!("  {line}");
        }
        say("Ctrl-C stops everything and keeps the data.");

        let ended = wait_for_the_end(&mut environment);
        say("\nstopping ...");
        let stopped = environment.stop();
        ended?; // first the cause, then what followed from it
        stopped?;
        say(
            "everything is stopped; `cargo dev up` starts again with the same data, `cargo dev reset` deletes it",
        );
        Ok(ExitCode::SUCCESS)
    }

    fn ports(&self) -> Ports {
        Ports {
            ingest: self.ingest_port,
            worker: self.worker_port,
            nats: self.nats_port,
            nats_monitor: self.nats_monitor_port,
            postgres: self.postgres_port,
        }
    }

    fn admin_ports(&self) -> AdminPorts {
        const ABOVE: u16 = 100;
        let of = |given: Option<u16>, port: u16| given.unwrap_or(port.saturating_add(ABOVE));
        AdminPorts {
            ingest: of(self.ingest_admin_port, self.ingest_port),
            worker: of(self.worker_admin_port, self.worker_port),
        }
    }

    fn needed_ports(&self) -> [Needed; 7] {
        let needed = |port, by, flag| Needed { port, by, flag };
        let admin = self.admin_ports();
        [
            needed(self.ingest_port, "ingest", "--ingest-port"),
            needed(self.worker_port, "worker", "--worker-port"),
            needed(admin.ingest, "ingest's admin port", "--ingest-admin-port"),
            needed(admin.worker, "the worker's admin port", "--worker-admin-port"),
            needed(self.nats_port, "nats-server", "--nats-port"),
            needed(self.nats_monitor_port, "nats-server's monitoring", "--nats-monitor-port"),
            needed(self.postgres_port, "Postgres", "--postgres-port"),
        ]
    }
}

/// Returns when we are asked to stop (`Ok`) or when one of them ends (the error says which).
fn wait_for_the_end(environment: &mut Environment) -> Result<()> {
    let ended = wait::until(Duration::MAX, || environment.require_running().map(|()| None::<()>));
    if interrupt::requested() {
        return Ok(());
    }
    ended.map(drop).context("a part of the environment ended, so everything is stopped")
}

/// What a person can do now, as commands to paste.
fn guide(data: &DataDir, running: &Running) -> Result<String> {
    let secrets = Secrets::existing(data.secrets());
    let callback =
        format!("{}/callbacks/blnk/{}", running.ingest_url, secrets.read("blnk-path-token")?);
    let read = format!("{}/v1/installations", running.worker_url);
    let token_file = secrets.path("read-token");
    let api_key = format!("blnk_{}", new_token());
    Ok(format!(
        r#"
  callback URL   {callback}
  read URL       {read}
  data           {data}
  logs           {data}/*/*.log

Send an install callback, as Blnk would:

curl -sS -X POST '{callback}' \
  -H 'Content-Type: application/json' \
  -d '{{
    "installed_app_id": "instapp_demo",
    "app_id": "app_demo",
    "instance_id": "inst_demo",
    "api_key": "{api_key}",
    "api_key_prefix": "{prefix}",
    "granted_permissions": ["data:read", "data:write"],
    "idempotency_key": "install:instapp_demo"
  }}'

Read it back:

curl -sS -H "Authorization: Bearer $(cat '{token_file}')" \
  '{read}/instapp_demo'

Or run `cargo dev demo` in a second terminal.
"#,
        data = data.path().display(),
        token_file = token_file.display(),
        prefix = api_key.get(..PREFIX_LENGTH).unwrap_or_default(),
    ))
}
