//! `cargo dev up`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use dev::config::Ports;
use dev::data_dir::{DataDir, Running};
use dev::environment::Environment;
use dev::ports::{Needed, require_all_free};
use dev::progress::{say, step};
use dev::secrets::{Secrets, new_token};
use dev::services::Profile;
use dev::{interrupt, tools, wait};

use super::{cargo, run_here};
use crate::Up;

/// What a platform shows of a key.
pub(super) const PREFIX_LENGTH: usize = "blnk_abcd".len();
/// Long enough for "for ever", short enough to add to a clock.
const LOOK_DEADLINE: Duration = Duration::from_secs(60 * 60);

pub(crate) fn run(up: &Up) -> Result<ExitCode> {
    let start = Instant::now();
    let data = DataDir::at(up.data.data_dir.as_deref())?;
    let lock = data.lock()?;
    require_all_free(&needed(up))?;
    let profile = if up.release { Profile::Release } else { Profile::Own };
    build(profile)?;
    // Before the steps: the first time this downloads, and says so itself.
    tools::nats_server()?;
    tools::postgres()?;

    let ports = ports(up);
    let started = Environment::start(&data, &ports, profile, up.observe);
    if interrupt::requested() {
        drop(started);
        say("interrupted while starting; everything is stopped");
        return Ok(ExitCode::FAILURE);
    }
    let mut environment = started.context("starting (all that had started is stopped again)")?;
    let running = Running {
        ingest_url: ports.ingest_url(),
        worker_url: ports.worker_url(),
        postgres_owner_url: ports.postgres_url("mooring_owner"),
    };
    lock.announce(&running)?;
    say(&format!("everything is ready ({:.1} s)", start.elapsed().as_secs_f64()));
    println!("{}", guide(&data, &running)?);
    for line in environment.where_to_look() {
        println!("  {line}");
    }
    say("Ctrl-C stops everything; the data is kept.");

    let ended = stay(&mut environment);
    say("\nstopping ...");
    let stopped = environment.stop();
    ended?; // the cause, before what followed from it
    stopped?;
    say("stopped cleanly; `cargo dev up` goes on from here, `cargo dev reset` forgets the data");
    Ok(ExitCode::SUCCESS)
}

/// Until we are asked to stop (`Ok`) or a child ends (the error says which).
fn stay(environment: &mut Environment) -> Result<()> {
    loop {
        let looked =
            wait::until(LOOK_DEADLINE, || environment.require_running().map(|()| None::<()>));
        if interrupt::requested() {
            return Ok(());
        }
        looked.context("the environment is not complete any more, so the rest is stopped")?;
    }
}

fn ports(up: &Up) -> Ports {
    Ports {
        ingest: up.ingest_port,
        worker: up.worker_port,
        nats: up.nats_port,
        nats_monitor: up.nats_monitor_port,
        postgres: up.postgres_port,
    }
}

fn needed(up: &Up) -> [Needed; 5] {
    let needed = |port, by, flag| Needed { port, by, flag };
    [
        needed(up.ingest_port, "ingest", "--ingest-port"),
        needed(up.worker_port, "worker", "--worker-port"),
        needed(up.nats_port, "nats-server", "--nats-port"),
        needed(up.nats_monitor_port, "nats-server's monitoring", "--nats-monitor-port"),
        needed(up.postgres_port, "Postgres", "--postgres-port"),
    ]
}

fn build(profile: Profile) -> Result<()> {
    let mut command = cargo(&["build", "--workspace", "--bins", "--locked"]);
    if profile == Profile::Release {
        command.arg("--release");
    }
    step("ingest and worker built", || {
        let status = run_here(&mut command)?;
        if interrupt::requested() {
            bail!("interrupted");
        }
        if !status.success() {
            bail!("`cargo build` failed ({status}): see its output above");
        }
        Ok(())
    })
}

/// What to do now, ready to paste.
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
