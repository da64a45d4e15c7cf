//! Our own binaries, `ingest` and `worker`, as child processes.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use crate::child::{self, ChildProcess, Stopped};
use crate::durable;
use crate::secrets::{PRIVATE_KEY, PUBLIC_KEY, Secrets};
use crate::wait;

/// New tables are quick. A migration that rewrites much data has no business at a start.
const COMMAND_DEADLINE: Duration = Duration::from_secs(60);

/// Which build of the binaries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// The profile that this program was built with.
    Own,
    Release,
}

impl Profile {
    #[must_use]
    pub fn of(release: bool) -> Self {
        if release { Self::Release } else { Self::Own }
    }
}

/// The path of one of our binaries, as cargo last built it. This program is in `target/<profile>/`
/// itself, or in `deps/` below it when it is a test.
pub fn binary(name: &str) -> Result<PathBuf> {
    binary_of(name, Profile::Own)
}

/// As [`binary`], for a profile.
pub fn binary_of(name: &str, profile: Profile) -> Result<PathBuf> {
    let here = env::current_exe().context("finding out where this program is")?;
    for folder in here.ancestors().skip(1).take(3) {
        let own = folder.join(name);
        let found = match profile {
            Profile::Own => own,
            Profile::Release => folder.with_file_name("release").join(name),
        };
        if found.is_file() {
            return Ok(found);
        }
    }
    bail!(
        "there is no binary `{name}` near {}: run `cargo build --workspace` or use `cargo dev test`",
        here.display()
    );
}

/// A command for one of our binaries, without the variables that are meant for this crate alone: in
/// tests they include the database's superuser. `MOORING__…` is configuration, and stays.
#[must_use]
pub fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        let bytes = name.as_encoded_bytes();
        if bytes.starts_with(b"MOORING_") && !bytes.starts_with(b"MOORING__") {
            command.env_remove(&name);
        }
    }
    command
}

/// Writes the public half of the key pair in `secrets` beside the private one.
pub fn write_public_key(secrets: &Secrets, profile: Profile) -> Result<()> {
    let mut worker = command(&binary_of("worker", profile)?);
    worker.args(["keys", "public", "--file"]).arg(secrets.path(PRIVATE_KEY));
    let output = worker.output().context("asking `worker keys public`")?;
    if !output.status.success() {
        bail!("`worker keys public` failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    durable::write(&secrets.path(PUBLIC_KEY), &String::from_utf8_lossy(&output.stdout))
}

/// Runs a command of ours to its end, with stdout and stderr in `log`. Unless it succeeds, the error
/// shows the end of the log.
pub fn run_to_end(
    program: &Path,
    args: &[&str],
    envs: &[(&str, String)],
    log: &Path,
) -> Result<()> {
    child::set_aside(log)?;
    let mut command = command(program);
    command.args(args).envs(envs.iter().map(|(key, value)| (key, value)));
    let what = format!("{} {}", program.display(), args.join(" "));
    let mut child = ChildProcess::start(&what, &mut command, log, Signal::TERM)?;
    let outcome = match wait::until(COMMAND_DEADLINE, || child.exited())? {
        Some(status) if status.success() => return Ok(()),
        Some(status) => format!("failed ({status})"),
        None => format!("was still running after {} s", COMMAND_DEADLINE.as_secs()),
    };
    bail!("`{what}` {outcome}; its log {} ends:\n{}", log.display(), child::tail(log));
}

/// A service. It runs, or it is stopped and can start again with the same arguments.
pub struct Service {
    name: String,
    program: PathBuf,
    args: Vec<String>,
    envs: Vec<(String, String)>,
    log: PathBuf,
    running: Option<ChildProcess>,
}

impl Service {
    /// Starts the binary `name` (see [`binary`]) with stdout and stderr in `log`. Returns before it
    /// is ready: see [`Service::wait_ready`].
    pub fn start(name: &str, args: &[&str], envs: &[(&str, &str)], log: &Path) -> Result<Self> {
        Self::start_program(name, binary(name)?, args, envs, log)
    }

    /// As [`Service::start`], for a program that is elsewhere.
    pub fn start_program(
        name: &str,
        program: PathBuf,
        args: &[&str],
        envs: &[(&str, &str)],
        log: &Path,
    ) -> Result<Self> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let mut this = Self {
            name: name.to_owned(),
            program,
            args: args.iter().map(ToString::to_string).collect(),
            envs: envs.iter().map(owned).collect(),
            log: log.to_owned(),
            running: None,
        };
        child::set_aside(log)?;
        this.launch()?;
        Ok(this)
    }

    /// Starts it after `kill` or `stop`. It continues the same log file.
    pub fn start_again(&mut self) -> Result<()> {
        if self.running.is_some() {
            bail!("{} is still running: kill or stop it first", self.name);
        }
        self.launch()
    }

    /// Polls `url` until it answers 200. Fails, with the end of the log, at the deadline or as soon as
    /// the service ends.
    pub fn wait_ready(&mut self, url: &str, deadline: Duration) -> Result<()> {
        let child = self.running.as_mut().with_context(|| format!("{} is stopped", self.name))?;
        child.wait_ready(url, deadline, &self.log)
    }

    /// Sends SIGKILL: it ends as in a crash.
    pub fn kill(&mut self) -> Result<()> {
        self.running.take().map_or(Ok(()), |mut child| child.kill())
    }

    /// Sends SIGTERM, then SIGKILL at the deadline.
    pub fn stop(&mut self, deadline: Duration) -> Result<Option<Stopped>> {
        self.running.take().map(|mut child| child.stop(deadline)).transpose()
    }

    /// Fails, with the end of its log, if it ended without being asked to.
    pub fn require_running(&mut self) -> Result<()> {
        self.running.as_mut().map_or(Ok(()), |child| child.require_running(&self.log))
    }

    /// `None` while it is stopped.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(ChildProcess::pid)
    }

    /// Everything it wrote since `start`, including what it wrote before a `start_again`.
    pub fn log(&self) -> Result<String> {
        let bytes =
            fs::read(&self.log).with_context(|| format!("reading {}", self.log.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn launch(&mut self) -> Result<()> {
        let mut command = command(&self.program);
        command.args(&self.args).envs(self.envs.iter().map(|(key, value)| (key, value)));
        self.running =
            Some(ChildProcess::start(&self.name, &mut command, &self.log, Signal::TERM)?);
        Ok(())
    }
}
