//! A real nats-server with the repository's own configuration, `deploy/nats/nats.conf`.

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::child::{self, ChildProcess, Stopped};
use crate::credentials::NatsCredentials;
use crate::{tools, workspace_root};

const READY_DEADLINE: Duration = Duration::from_secs(15);
/// How long it may take to write its state before it is killed. A log with `sync_interval: always`
/// survives that, too.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

const BATCHES: &str = "jetstream/$G/streams/INSTALLATIONS/batches";
const MEMORY: &str = "/dev/shm";

const MAX_FILE_ENV: &str = "MOORING_NATS_MAX_FILE";
const DEFAULT_MAX_FILE: &str = "8GB";

pub struct NatsOptions {
    /// Holds the streams (`jetstream/`) and `nats-server.log`. Created if missing.
    pub dir: PathBuf,
    pub port: u16,
    pub monitor_port: u16,
    pub credentials: NatsCredentials,
    /// False only for comparison: such a log loses acknowledged messages when the power fails.
    pub sync_always: bool,
    pub staging: Staging,
    /// `None` for a server that stands alone.
    pub cluster: Option<ClusterNode>,
}

/// Where one server keeps the members of an atomic batch until all are there. It is asked for no
/// durability: nothing is acknowledged before the stream itself has synced. On disk it takes most of
/// the time of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Staging {
    Disk,
    /// Where the machine has `/dev/shm`; otherwise on disk.
    Memory,
}

/// One node of a cluster on loopback.
#[derive(Clone)]
pub struct ClusterNode {
    pub name: String,
    /// Where the other nodes reach it.
    pub port: u16,
    /// The ports of all nodes, its own among them.
    pub routes: Vec<u16>,
}

/// A nats-server. It runs, or it is stopped and can start again on the same ports and data.
pub struct NatsServer {
    options: NatsOptions,
    program: PathBuf,
    running: Option<ChildProcess>,
    /// Batches are staged here, if in memory.
    staging: Option<TempDir>,
}

impl NatsServer {
    /// Starts it and waits until JetStream is ready.
    pub fn start(options: NatsOptions) -> Result<Self> {
        let mut this = Self::prepare(options)?;
        this.launch()?;
        Ok(this)
    }

    /// Starts the nodes of a cluster and waits until JetStream is ready on each.
    pub fn start_cluster(nodes: Vec<NatsOptions>) -> Result<Vec<Self>> {
        let mut nodes = nodes.into_iter().map(Self::prepare).collect::<Result<Vec<_>>>()?;
        // No node is ready before most of them run, so all start before the first wait.
        for node in &mut nodes {
            node.spawn()?;
        }
        for node in &mut nodes {
            node.wait_ready()?;
        }
        Ok(nodes)
    }

    fn prepare(options: NatsOptions) -> Result<Self> {
        options.credentials.require_plain()?;
        fs::create_dir_all(&options.dir)
            .with_context(|| format!("creating {}", options.dir.display()))?;
        let this = Self { program: tools::nats_server()?, options, running: None, staging: None };
        child::set_aside(&this.log_path())?;
        if this.options.changes_config() {
            let config = this.changed_config();
            fs::write(&config, this.options.render()?)
                .with_context(|| format!("writing {}", config.display()))?;
        }
        Ok(this)
    }

    /// Starts it after `kill` or `stop`, on the same ports and data.
    pub fn start_again(&mut self) -> Result<()> {
        if self.running.is_some() {
            bail!("nats-server is still running: kill or stop it first");
        }
        self.launch()
    }

    /// Sends SIGKILL: it ends as in a crash.
    pub fn kill(&mut self) -> Result<()> {
        self.running.take().map_or(Ok(()), |mut child| child.kill())
    }

    /// Sends SIGTERM, then SIGKILL if it takes too long.
    pub fn stop(&mut self) -> Result<Option<Stopped>> {
        self.running.take().map(|mut child| child.stop(STOP_DEADLINE)).transpose()
    }

    /// Fails, with the end of its log, if it ended without being asked to.
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
        self.spawn()?;
        let ready = self.wait_ready();
        if ready.is_err() {
            self.running = None; // dropping it stops it
        }
        ready?;
        self.stage_batches()
    }

    /// Whether batches are staged in memory now. Without it the server only is slower.
    #[must_use]
    pub fn stages_in_memory(&self) -> bool {
        self.options.dir.join(BATCHES).is_symlink()
    }

    /// Lets it stage batches in memory, if it is to. Call it when the stream has been made; after a
    /// start it is done, because the server removes our link when it recovers the stream.
    pub fn stage_batches(&mut self) -> Result<()> {
        let batches = self.options.dir.join(BATCHES);
        let has_stream = batches.parent().is_some_and(Path::is_dir);
        // The nodes of a cluster stage in memory by themselves.
        let is_asked = self.options.staging == Staging::Memory && self.options.cluster.is_none();
        if !is_asked || !has_stream || !Path::new(MEMORY).is_dir() {
            return Ok(());
        }
        let memory = tempfile::Builder::new().prefix("mooring-batches-").tempdir_in(MEMORY)?;
        // The server makes the folder again for a batch that comes in between.
        while !link_batches(memory.path(), &batches)? {}
        self.staging = Some(memory);
        Ok(())
    }

    fn spawn(&mut self) -> Result<()> {
        let log = self.log_path();
        let child = ChildProcess::start("nats-server", &mut self.command(), &log, Signal::TERM)?;
        self.running = Some(child);
        Ok(())
    }

    fn wait_ready(&mut self) -> Result<()> {
        let health = format!("{}/healthz?js-server-only=true", self.monitor_url());
        let log = self.log_path();
        let child = self.running.as_mut().context("nats-server is stopped")?;
        child.wait_ready(&health, READY_DEADLINE, &log)
    }

    fn changed_config(&self) -> PathBuf {
        self.options.dir.join("nats.conf")
    }

    fn command(&self) -> Command {
        let NatsOptions { dir, port, monitor_port, credentials, .. } = &self.options;
        let config =
            if self.options.changes_config() { self.changed_config() } else { repository_config() };
        let mut command = Command::new(&self.program);
        command
            .arg("-c")
            .arg(config)
            .env("MOORING_NATS_HOST", quoted("127.0.0.1"))
            .env("MOORING_NATS_PORT", port.to_string())
            .env("MOORING_NATS_HTTP", quoted(&format!("127.0.0.1:{monitor_port}")))
            .env("MOORING_NATS_STORE_DIR", quoted(&dir.to_string_lossy()))
            .env(
                MAX_FILE_ENV,
                env::var(MAX_FILE_ENV).unwrap_or_else(|_| DEFAULT_MAX_FILE.to_owned()),
            );
        for (user, password) in credentials.users() {
            let name = format!("MOORING_NATS_{}_PASSWORD", user.to_uppercase());
            command.env(name, quoted(password));
        }
        command
    }
}

impl NatsOptions {
    fn changes_config(&self) -> bool {
        self.cluster.is_some() || !self.sync_always
    }

    /// The repository's configuration with our changes. It is a copy because nats-server includes no
    /// file from outside the folder of its configuration.
    fn render(&self) -> Result<String> {
        let mut text = fs::read_to_string(repository_config()).context("reading nats.conf")?;
        if !self.sync_always {
            text = text.replace("sync_interval: always", "");
        }
        Ok(text + &self.cluster.as_ref().map(ClusterNode::render).unwrap_or_default())
    }
}

fn repository_config() -> PathBuf {
    workspace_root().join("deploy/nats/nats.conf")
}

impl ClusterNode {
    /// The settings that make a server a node of the cluster.
    fn render(&self) -> String {
        let routes: Vec<String> =
            self.routes.iter().map(|port| format!("nats-route://127.0.0.1:{port}")).collect();
        format!(
            "\nserver_name: {name}\ncluster {{\n  name: mooring\n  listen: {listen}\n  routes: {routes}\n}}\n",
            name = quoted(&self.name),
            listen = quoted(&format!("127.0.0.1:{}", self.port)),
            routes = serde_json::Value::from(routes),
        )
    }
}

/// nats-server reads a variable's value as configuration text. Without quotes, a space would end it
/// and digits would become a number. A JSON string is a valid quoted value.
fn quoted(value: &str) -> String {
    serde_json::Value::from(value).to_string()
}

/// `false` if the server was faster. A batch that is on its way fails, and is sent again.
fn link_batches(memory: &Path, batches: &Path) -> Result<bool> {
    let former = batches.with_extension("former");
    match fs::rename(batches, &former) {
        Ok(()) if former.is_symlink() => fs::remove_file(&former)?,
        Ok(()) => fs::remove_dir_all(&former)?,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).context("moving staged batches out of the way"),
    }
    match symlink(memory, batches) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error).context("linking staged batches to memory"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_for_the_configuration_are_quoted() {
        assert_eq!(quoted("/with space/42"), "\"/with space/42\"");
    }
}
