//! One child process that we own. It writes to a log file, we stop it, and it is never left behind.
//!
//! A handle stops its child when it is dropped. But a test runner may kill us with SIGKILL, and then
//! nothing is dropped. So each child has a *guard*: a shell that reads from a pipe that only we hold
//! open. However we die, the pipe closes and the guard asks the child to stop.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use crate::{http, processes, wait};

/// How many lines of a log an error shows.
const TAIL_LINES: usize = 15;
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// How a child ended after it was asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// By itself, before the deadline.
    Cleanly(ExitStatus),
    /// It did not end in time and was killed.
    ByForce,
}

/// A running child.
pub(crate) struct ChildProcess {
    name: String,
    child: Child,
    guard: Option<Child>,
    stop_signal: Signal,
}

impl ChildProcess {
    /// Starts it with stdout and stderr appended to `log`. It gets its own process group, so Ctrl-C
    /// reaches only us and we decide in which order things stop.
    pub(crate) fn start(
        name: &str,
        command: &mut Command,
        log: &Path,
        stop_signal: Signal,
    ) -> Result<Self> {
        let out = append_to(log)?;
        let err = out.try_clone().with_context(|| format!("sharing {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0)
            .spawn()
            .with_context(|| {
            format!("starting {name} ({})", command.get_program().display())
        })?;
        // The handle comes first: if the guard cannot start, dropping the handle kills the child.
        let mut this = Self { name: name.to_owned(), child, guard: None, stop_signal };
        this.guard = Some(guard(this.pid(), stop_signal)?);
        Ok(this)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub(crate) fn exited(&mut self) -> Result<Option<ExitStatus>> {
        let ended = self
            .child
            .try_wait()
            .with_context(|| format!("asking whether {} has ended", self.name))?;
        if ended.is_some() {
            self.dismiss_guard(); // another process may soon have the same pid
        }
        Ok(ended)
    }

    /// Fails, with the end of its log, if it has ended.
    pub(crate) fn require_running(&mut self, log: &Path) -> Result<()> {
        if let Some(status) = self.exited()? {
            bail!("{} ended ({status}); its log {} ends:\n{}", self.name, log.display(), tail(log));
        }
        Ok(())
    }

    /// Polls `url` until it answers 200. Fails, with the end of its log, at the deadline or as soon as
    /// the child ends.
    pub(crate) fn wait_ready(&mut self, url: &str, deadline: Duration, log: &Path) -> Result<()> {
        let mut last = "nothing".to_owned();
        let ready = wait::until(deadline, || {
            self.require_running(log)?;
            match http::get(url, None, PROBE_TIMEOUT) {
                Ok(answer) if answer.status == 200 => return Ok(Some(())),
                Ok(answer) => last = format!("{}: {}", answer.status, answer.body.trim_end()),
                Err(error) => last = format!("{error:#}"),
            }
            Ok(None)
        })?;
        ready.with_context(|| {
            format!(
                "{} was not ready after {} s; {url} last answered: {last}; its log {} ends:\n{}",
                self.name,
                deadline.as_secs(),
                log.display(),
                tail(log)
            )
        })
    }

    /// Sends SIGKILL and reaps it.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.dismiss_guard();
        self.child.kill().with_context(|| format!("killing {}", self.name))?;
        self.child.wait().with_context(|| format!("reaping {}", self.name))?;
        Ok(())
    }

    /// Asks it to stop and waits. Returns `None` if it still runs at the deadline.
    pub(crate) fn ask_to_stop(&mut self, deadline: Duration) -> Result<Option<ExitStatus>> {
        if self.exited()?.is_none() {
            processes::signal(self.pid(), self.stop_signal)?;
        }
        // We are often stopping because of an interrupt, so it must not end this wait.
        wait::until_even_if_interrupted(deadline, || self.exited())
    }

    /// Asks it to stop, and kills it at the deadline.
    pub(crate) fn stop(&mut self, deadline: Duration) -> Result<Stopped> {
        if let Some(status) = self.ask_to_stop(deadline)? {
            return Ok(Stopped::Cleanly(status));
        }
        self.kill()?;
        Ok(Stopped::ByForce)
    }

    fn dismiss_guard(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            // It holds nothing, and an error means that it has ended already.
            drop(guard.kill());
            drop(guard.wait());
        }
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        drop(self.kill()); // it has ended already, or nobody is left to read the error
    }
}

fn guard(pid: u32, stop_signal: Signal) -> Result<Child> {
    Command::new("sh")
        .args(["-c", r#"read -r _; kill -"$1" "$2""#, "guard"])
        .arg(stop_signal.as_raw().to_string())
        .arg(pid.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .context("starting `sh`, which stops the child if this process dies")
}

/// Opens a log for appending. Creates its folder if it is missing.
pub(crate) fn append_to(log: &Path) -> Result<File> {
    if let Some(folder) = log.parent() {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    let opened = File::options().create(true).append(true).open(log);
    opened.with_context(|| format!("opening the log {}", log.display()))
}

/// Renames the log of an earlier run, so that a file shows one run and the disk does not fill up.
pub(crate) fn set_aside(log: &Path) -> Result<()> {
    let mut previous = log.as_os_str().to_owned();
    previous.push(".previous");
    match fs::rename(log, &previous) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("renaming the old log {}", log.display()))
        }
        _ => Ok(()),
    }
}

/// The last lines of a log, indented, for an error text.
pub(crate) fn tail(log: &Path) -> String {
    let Ok(bytes) = fs::read(log) else { return format!("    (no log at {})", log.display()) };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let skipped = lines.len().saturating_sub(TAIL_LINES);
    if lines.is_empty() {
        return "    (the log is empty)".to_owned();
    }
    lines.iter().skip(skipped).map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}
