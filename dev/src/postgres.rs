//! A real Postgres server on loopback. It keeps its default durability, because tests kill it and
//! expect the data to survive.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use crate::child::{self, ChildProcess, Stopped};
use crate::cluster::{self, Programs};
use crate::credentials::PostgresPasswords;
use crate::{processes, run_as, tools, wait};

pub use crate::credentials::Role;

/// Includes the recovery after a kill.
const READY_DEADLINE: Duration = Duration::from_secs(30);
const STOP_DEADLINE: Duration = Duration::from_secs(15);
/// How long the children of a killed postmaster may take to end.
const GONE_DEADLINE: Duration = Duration::from_secs(10);
/// Many tests share one server, and each has its own pools.
const MAX_CONNECTIONS: &str = "max_connections=200";

pub struct PostgresOptions {
    /// Holds `cluster/` and `postgres.log`. Created if missing.
    pub dir: PathBuf,
    pub port: u16,
    pub passwords: PostgresPasswords,
}

/// A Postgres server. It runs, or it is stopped and can start again on the same port and data.
pub struct Postgres {
    options: PostgresOptions,
    programs: Programs,
    cluster: PathBuf,
    running: Option<ChildProcess>,
}

impl Postgres {
    /// Makes the cluster (with roles and the database `mooring`) if there is none, starts the server
    /// and waits until it accepts connections.
    pub fn start(mut options: PostgresOptions) -> Result<Self> {
        options.passwords.require_plain()?;
        options.dir =
            std::path::absolute(&options.dir).context("finding the folder for Postgres")?;
        let programs = Programs { tools: tools::postgres()?, run_as: run_as::unprivileged()? };
        prepare_folder(&programs, &options.dir)?;
        child::set_aside(&options.dir.join("postgres.log"))?;
        let cluster = cluster::ensure(&programs, &options.dir, &options.passwords)?;
        let mut this = Self { options, programs, cluster, running: None };
        this.launch()?;
        Ok(this)
    }

    /// Starts it after `kill` or `stop`, on the same port and data.
    pub fn start_again(&mut self) -> Result<()> {
        if self.running.is_some() {
            bail!("Postgres is still running: kill or stop it first");
        }
        self.launch()
    }

    /// Sends SIGKILL to the server and all its processes, as if the power failed. None of them is left
    /// when this returns, so the server can start again at once.
    pub fn kill(&mut self) -> Result<()> {
        let Some(mut child) = self.running.take() else { return Ok(()) };
        // A stopped postmaster neither forks nor reaps, so the list stays complete and no pid in it
        // can come to mean another process.
        processes::signal(child.pid(), Signal::STOP)?;
        let backends = processes::children(child.pid())?;
        for backend in &backends {
            processes::signal(*backend, Signal::KILL)?;
        }
        child.kill()?;
        let gone = wait::until_even_if_interrupted(GONE_DEADLINE, || {
            Ok((!backends.iter().any(|backend| processes::alive(*backend))).then_some(()))
        })?;
        gone.with_context(|| {
            format!(
                "processes of the killed Postgres still run after {} s",
                GONE_DEADLINE.as_secs()
            )
        })
    }

    /// Sends SIGINT, which rolls back open transactions (a "fast" shutdown). Kills it if that takes too
    /// long.
    pub fn stop(&mut self) -> Result<Option<Stopped>> {
        let Some(child) = self.running.as_mut() else { return Ok(None) };
        if let Some(status) = child.ask_to_stop(STOP_DEADLINE)? {
            self.running = None;
            return Ok(Some(Stopped::Cleanly(status)));
        }
        self.kill()?;
        Ok(Some(Stopped::ByForce))
    }

    /// Fails, with the end of its log, if it ended without being asked to.
    pub fn require_running(&mut self) -> Result<()> {
        let log = self.log_path();
        self.running.as_mut().map_or(Ok(()), |child| child.require_running(&log))
    }

    /// A URL with the password in it. It is for tests, and never for configuration or logs.
    #[must_use]
    pub fn url(&self, role: Role, database: &str) -> String {
        let password = self.options.passwords.of(role);
        format!("postgres://{}:{password}@127.0.0.1:{}/{database}", role.name(), self.options.port)
    }

    /// The superuser, in the database `postgres`.
    #[must_use]
    pub fn superuser_url(&self) -> String {
        self.url(Role::Superuser, "postgres")
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.options.port
    }

    /// `None` while it is stopped.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(ChildProcess::pid)
    }

    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.options.dir.join("postgres.log")
    }

    fn launch(&mut self) -> Result<()> {
        let log = self.log_path();
        let mut command = self.programs.command(&self.programs.tools.postgres());
        command
            .arg("-D")
            .arg(&self.cluster)
            .args(["-p", &self.options.port.to_string()])
            // No Unix socket: it would need a writable folder with a short path.
            .args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="])
            .args(["-c", MAX_CONNECTIONS, "-c", "timezone=UTC", "-c", "log_timezone=UTC"]);
        let mut child = ChildProcess::start("Postgres", &mut command, &log, Signal::INT)?;
        let state = self.cluster.join("postmaster.pid");
        let pid = child.pid().to_string();
        let ready = wait::until(READY_DEADLINE, || {
            child.require_running(&log)?;
            let lines = fs::read_to_string(&state).unwrap_or_default();
            Ok(says_ready(&lines, &pid).then_some(()))
        })?;
        if ready.is_none() {
            bail!(
                "Postgres was not ready after {} s; its log {} ends:\n{}",
                READY_DEADLINE.as_secs(),
                log.display(),
                child::tail(&log)
            );
        }
        self.running = Some(child);
        Ok(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.stop()); // nobody is left to read the error
    }
}

fn prepare_folder(programs: &Programs, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let Some(run_as) = &programs.run_as else { return Ok(()) };
    run_as.require_way_to(
        dir,
        "run `chmod o+x` on it, or choose another folder with --data-dir (in tests, with TMPDIR)",
    )?;
    run_as.require_way_to(
        &programs.tools.postgres(),
        "run `chmod o+x` on it, move the repository, or install Postgres on the system",
    )?;
    run_as.give(dir)
}

/// Reads what `pg_ctl --wait` reads: line 1 of postmaster.pid is the pid, and line 8 is the state. A
/// file left by a killed server has another pid.
fn says_ready(postmaster_pid: &str, pid: &str) -> bool {
    let mut lines = postmaster_pid.lines();
    lines.next().map(str::trim) == Some(pid) && lines.nth(6).map(str::trim) == Some("ready")
}

#[cfg(test)]
mod tests {
    use super::*;

    const READY: &str = "42\n/data\n1700000000\n5433\n\n127.0.0.1\n  1234 5\nready   \n";

    #[test]
    fn ready_is_read_from_the_pid_file() {
        assert!(says_ready(READY, "42"));
        assert!(!says_ready(&READY.replace("ready   ", "starting"), "42"));
        assert!(!says_ready("", "42"));
    }

    #[test]
    fn the_pid_file_of_a_killed_server_is_not_ready() {
        assert!(!says_ready(READY, "43"));
    }
}
