//! The folder in which `cargo dev up` keeps everything, and the lock that says who uses it.
//!
//! ```text
//! .mooring/
//!   up.pid         locked while `up` runs
//!   state.json     where the running services listen
//!   mooring.toml   configuration of ingest and worker, generated
//!   secrets/       keys, passwords and tokens, one file each, mode 0600
//!   nats/          the log (JetStream's files) and nats-server.log
//!   postgres/      cluster/ and postgres.log
//!   ingest/ worker/   their logs
//!   observe/       Prometheus and otelite: configuration, data and logs
//!   tools/         downloaded binaries; they are not data, and `reset` keeps them
//! ```

use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{durable, workspace_root};

/// Everything that `up` makes and `reset` deletes. It goes by name, so that `reset` with a wrong
/// `--data-dir` deletes nothing else.
const MADE_BY_UP: [&str; 9] = [
    "state.json",
    "mooring.toml",
    "secrets",
    "nats",
    "postgres",
    "ingest",
    "worker",
    "observe",
    "up.pid",
];

/// The folder, which need not exist yet.
#[derive(Clone, Debug)]
pub struct DataDir(PathBuf);

impl DataDir {
    /// The folder that the person named, or `.mooring` in the workspace.
    pub fn at(named: Option<&Path>) -> Result<Self> {
        let path = named.map_or_else(|| workspace_root().join(".mooring"), Path::to_path_buf);
        let path =
            std::path::absolute(&path).with_context(|| format!("finding {}", path.display()))?;
        Ok(Self(path))
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.0.join("mooring.toml")
    }

    #[must_use]
    pub fn secrets(&self) -> PathBuf {
        self.0.join("secrets")
    }

    #[must_use]
    pub fn nats(&self) -> PathBuf {
        self.0.join("nats")
    }

    #[must_use]
    pub fn postgres(&self) -> PathBuf {
        self.0.join("postgres")
    }

    #[must_use]
    pub fn observe(&self) -> PathBuf {
        self.0.join("observe")
    }

    /// The log of one of our services.
    #[must_use]
    pub fn log_of(&self, service: &str) -> PathBuf {
        self.0.join(service).join(format!("{service}.log"))
    }

    fn state(&self) -> PathBuf {
        self.0.join("state.json")
    }

    fn pid_file(&self) -> PathBuf {
        self.0.join("up.pid")
    }

    /// Whether there is a log or a database in it.
    pub fn holds_data(&self) -> Result<bool> {
        Ok(!is_fresh(&self.nats())? || !is_fresh(&self.postgres().join("cluster"))?)
    }

    /// Locks the folder for this process, or fails with the pid of the `up` that has it.
    ///
    /// Only the lock counts; the pid in the file merely says who holds it. The system releases the
    /// lock when its process ends, so a pid file that was left behind is harmless.
    pub fn lock(&self) -> Result<Lock> {
        fs::create_dir_all(&self.0).with_context(|| format!("creating {}", self.0.display()))?;
        let path = self.pid_file();
        let opened = File::options().create(true).truncate(false).write(true).open(&path);
        let mut file = opened.with_context(|| format!("opening {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!(
                "`cargo dev up` already uses {} ({}): stop it with Ctrl-C or `kill`, or choose another --data-dir",
                self.0.display(),
                self.owner()
            ),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("locking {}", path.display()));
            }
        }
        file.set_len(0).context("emptying the pid file")?;
        write!(file, "{}", std::process::id()).context("writing the pid file")?;
        drop(fs::remove_file(self.state())); // left by an `up` that was killed
        Ok(Lock { _file: file, state: self.state() })
    }

    /// Where the services of the running `up` listen.
    pub fn running(&self) -> Result<Running> {
        let not_running =
            || format!("no `cargo dev up` uses {}: start one first", self.0.display());
        let path = self.pid_file();
        let file = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => bail!(not_running()),
            other => other.with_context(|| format!("opening {}", path.display()))?,
        };
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => {
                return Err(error)
                    .with_context(|| format!("testing the lock of {}", path.display()));
            }
            Ok(()) => bail!(not_running()),
        }
        match fs::read_to_string(self.state()) {
            Err(error) if error.kind() == ErrorKind::NotFound => bail!(
                "`cargo dev up` ({}) is still starting: try again when it has printed the callback URL",
                self.owner()
            ),
            other => Running::parse(
                &other.with_context(|| format!("reading {}", self.state().display()))?,
            ),
        }
    }

    /// Deletes what `up` made. The caller holds the lock.
    pub fn delete(&self, lock: Lock) -> Result<()> {
        for name in MADE_BY_UP {
            let path = self.0.join(name);
            let deleted =
                if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            match deleted {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("deleting {}", path.display()));
                }
                _ => {}
            }
        }
        drop(lock);
        drop(fs::remove_dir(&self.0)); // it stays if something else, such as the tools, is in it
        Ok(())
    }

    fn owner(&self) -> String {
        let pid = fs::read_to_string(self.pid_file()).unwrap_or_default();
        if pid.trim().is_empty() { "pid unknown".to_owned() } else { format!("pid {}", pid.trim()) }
    }
}

/// Whether nothing was ever stored in a folder: it is missing or empty, as a mount is at first.
fn is_fresh(folder: &Path) -> Result<bool> {
    let listing = || format!("listing {}", folder.display());
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
        other => other.with_context(listing)?,
    };
    for entry in entries {
        if entry.with_context(listing)?.file_name() != "lost+found" {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Held while the folder is ours.
pub struct Lock {
    _file: File,
    state: PathBuf,
}

impl Lock {
    /// Tells other commands that everything is ready, and where it listens.
    pub fn announce(&self, running: &Running) -> Result<()> {
        durable::write(&self.state, &running.render())
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.state)); // it is missing before `announce`
    }
}

/// The content of `state.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    pub ingest_url: String,
    pub worker_url: String,
    /// The database's URL for its owner, without a password.
    pub postgres_owner_url: String,
}

impl Running {
    fn render(&self) -> String {
        let text = |url: &str| Value::String(url.to_owned());
        let fields = [
            ("ingest_url", text(&self.ingest_url)),
            ("worker_url", text(&self.worker_url)),
            ("postgres_owner_url", text(&self.postgres_owner_url)),
        ];
        let fields = fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Value::Object(fields).to_string()
    }

    fn parse(text: &str) -> Result<Self> {
        let state: Value =
            serde_json::from_str(text).context("state.json is not JSON: start `up` again")?;
        let url = |name: &str| {
            let found = state.get(name).and_then(Value::as_str).map(str::to_owned);
            found.with_context(|| format!("state.json has no `{name}`: start `up` again"))
        };
        Ok(Self {
            ingest_url: url("ingest_url")?,
            worker_url: url("worker_url")?,
            postgres_owner_url: url("postgres_owner_url")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running() -> Running {
        Running {
            ingest_url: "http://127.0.0.1:1".into(),
            worker_url: "http://127.0.0.1:2".into(),
            postgres_owner_url: "postgres://owner@127.0.0.1:3/mooring".into(),
        }
    }

    #[test]
    fn a_second_up_is_refused_with_the_pid_of_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::at(Some(folder.path())).unwrap();
        let _first = data.lock().unwrap();
        let error = data.lock().err().unwrap().to_string();
        assert!(error.contains(&format!("(pid {})", std::process::id())), "{error}");
    }

    #[test]
    fn a_pid_file_left_behind_is_harmless() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("up.pid"), "1").unwrap(); // alive, but not an `up`
        DataDir::at(Some(folder.path())).unwrap().lock().unwrap();
    }

    #[test]
    fn the_state_is_there_from_announce_until_the_lock_goes() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::at(Some(folder.path())).unwrap();
        assert!(data.running().unwrap_err().to_string().contains("no `cargo dev up` uses"));
        let lock = data.lock().unwrap();
        assert!(data.running().unwrap_err().to_string().contains("still starting"));
        lock.announce(&running()).unwrap();
        assert_eq!(data.running().unwrap(), running());
        drop(lock);
        assert!(data.running().unwrap_err().to_string().contains("no `cargo dev up` uses"));
    }

    #[test]
    fn a_mount_without_data_is_fresh() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::at(Some(folder.path())).unwrap();
        assert!(!data.holds_data().unwrap(), "an empty data folder");
        fs::create_dir_all(data.nats()).unwrap();
        assert!(!data.holds_data().unwrap(), "an empty nats/");
        fs::create_dir_all(data.nats().join("lost+found")).unwrap();
        assert!(!data.holds_data().unwrap(), "nats/ with nothing but lost+found");
        fs::create_dir_all(data.nats().join("jetstream")).unwrap();
        assert!(data.holds_data().unwrap(), "nats/ with a log");
    }

    #[test]
    fn a_cluster_of_postgres_is_data() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::at(Some(folder.path())).unwrap();
        fs::create_dir_all(data.postgres()).unwrap();
        assert!(!data.holds_data().unwrap(), "an empty postgres/");
        fs::create_dir_all(data.postgres().join("cluster/base")).unwrap();
        assert!(data.holds_data().unwrap());
    }

    #[test]
    fn delete_takes_only_what_up_made() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::at(Some(folder.path())).unwrap();
        fs::create_dir_all(folder.path().join("secrets")).unwrap();
        fs::create_dir_all(folder.path().join("observe/prometheus")).unwrap();
        fs::create_dir_all(folder.path().join("tools")).unwrap();
        fs::write(folder.path().join("precious"), "").unwrap();
        data.delete(data.lock().unwrap()).unwrap();
        let mut left: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["precious", "tools"]);
    }
}
