//! A real nats-server with the repository's own configuration, `deploy/nats/nats.conf`.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use crate::child::{self, ChildProcess, Stopped};
use crate::secrets::require_plain;
use crate::{http, tools, wait, workspace_root};

const READY_DEADLINE: Duration = Duration::from_secs(15);
/// Time to write its state; then it is killed, which a log that syncs always must survive anyway.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

const MAX_FILE_ENV: &str = "MOORING_NATS_MAX_FILE";
const DEFAULT_MAX_FILE: &str = "8GB";

/// The passwords of the three users in `nats.conf`. No `Debug`: they are secrets.
#[derive(Clone)]
pub struct NatsCredentials {
    pub admin: String,
    pub ingest: String,
    pub worker: String,
}

pub struct NatsOptions {
    /// Holds the streams (`jetstream/`) and `nats-server.log`. Created if missing.
    pub dir: PathBuf,
    pub port: u16,
    pub monitor_port: u16,
    pub credentials: NatsCredentials,
}

/// A nats-server: running, or stopped and ready to start again on the same ports and data.
pub struct NatsServer {
    options: NatsOptions,
    program: PathBuf,
    running: Option<ChildProcess>,
}

impl NatsServer {
    /// Starts it and waits until JetStream is ready.
    pub fn start(options: NatsOptions) -> Result<Self> {
        for password in
            [&options.credentials.admin, &options.credentials.ingest, &options.credentials.worker]
        {
            require_plain("a NATS password", password)?;
        }
        fs::create_dir_all(&options.dir)
            .with_context(|| format!("creating {}", options.dir.display()))?;
        let mut this = Self { program: tools::nats_server()?, options, running: None };
        child::set_aside(&this.log_path())?;
        this.launch()?;
        Ok(this)
    }

    /// Starts it after `kill` or `stop`: same ports, same data.
    pub fn start_again(&mut self) -> Result<()> {
        if self.running.is_some() {
            bail!("nats-server is still running: kill or stop it first");
        }
        self.launch()
    }

    /// SIGKILL, as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.running.take().map_or(Ok(()), |mut child| child.kill())
    }

    /// SIGTERM; SIGKILL if it takes too long.
    pub fn stop(&mut self) -> Result<Option<Stopped>> {
        self.running.take().map(|mut child| child.stop(STOP_DEADLINE)).transpose()
    }

    /// Fails, with the end of its log, if it ended without being asked.
    pub fn require_running(&mut self) -> Result<()> {
        let log = self.log_path();
        self.running.as_mut().map_or(Ok(()), |child| child.require_running(&log))
    }

    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.options.port)
    }

    #[must_use]
    pub fn monitor_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.options.monitor_port)
    }

    #[must_use]
    pub fn credentials(&self) -> &NatsCredentials {
        &self.options.credentials
    }

    /// `None` while it is stopped.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(ChildProcess::pid)
    }

    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.options.dir.join("nats-server.log")
    }

    fn launch(&mut self) -> Result<()> {
        let log = self.log_path();
        let mut child =
            ChildProcess::start("nats-server", &mut self.command(), &log, Signal::TERM)?;
        let health = format!("{}/healthz?js-enabled-only=true", self.monitor_url());
        let mut last = "no answer yet".to_owned();
        let ready = wait::until(READY_DEADLINE, || {
            child.require_running(&log)?;
            match http::get(&health, None, PROBE_TIMEOUT) {
                Ok(answer) if answer.status == 200 => return Ok(Some(())),
                Ok(answer) => last = format!("{}: {}", answer.status, answer.body),
                Err(error) => last = format!("{error:#}"),
            }
            Ok(None)
        })?;
        if ready.is_none() {
            bail!(
                "nats-server was not ready after {} s; {health} last answered: {last}; its log {} ends:\n{}",
                READY_DEADLINE.as_secs(),
                log.display(),
                child::tail(&log)
            );
        }
        self.running = Some(child);
        Ok(())
    }

    fn command(&self) -> Command {
        let NatsOptions { dir, port, monitor_port, credentials } = &self.options;
        let mut command = Command::new(&self.program);
        command
            .arg("-c")
            .arg(workspace_root().join("deploy/nats/nats.conf"))
            .env("MOORING_NATS_HOST", quoted("127.0.0.1"))
            .env("MOORING_NATS_PORT", port.to_string())
            .env("MOORING_NATS_HTTP", quoted(&format!("127.0.0.1:{monitor_port}")))
            .env("MOORING_NATS_STORE_DIR", quoted(&dir.to_string_lossy()))
            .env(
                MAX_FILE_ENV,
                env::var(MAX_FILE_ENV).unwrap_or_else(|_| DEFAULT_MAX_FILE.to_owned()),
            )
            .env("MOORING_NATS_ADMIN_PASSWORD", quoted(&credentials.admin))
            .env("MOORING_NATS_INGEST_PASSWORD", quoted(&credentials.ingest))
            .env("MOORING_NATS_WORKER_PASSWORD", quoted(&credentials.worker));
        command
    }
}

/// The server reads a variable's value as configuration text: unquoted, a space ends it and
/// something like a number becomes one. JSON's quoting is a part of its own.
fn quoted(value: &str) -> String {
    serde_json::Value::from(value).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_for_the_configuration_are_quoted() {
        assert_eq!(quoted("/with space/42"), "\"/with space/42\"");
    }
}
