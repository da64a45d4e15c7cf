//! One child process that we own: started with a log file, stopped by us, never left behind.
//!
//! A handle stops its child when dropped, but a test runner may kill us with SIGKILL, and then
//! nothing is dropped. So beside each child stands a *guard*: a shell that waits for the end of a
//! pipe only we hold. However we die, the pipe closes, and the guard asks the child to stop.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use crate::{processes, wait};

/// Lines of a log that an error shows.
const TAIL_LINES: usize = 15;

/// How a child ended when it was asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// By itself, inside the deadline.
    Cleanly(ExitStatus),
    /// It did not, so it was killed.
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
    /// Starts it with stdout and stderr appended to `log`. It gets a process group of its own, so
    /// that Ctrl-C reaches only us and we decide the order in which things stop.
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
        // Made first, so that the child is killed with it if the guard can't be had.
        let mut this = Self { name: name.to_owned(), child, guard: None, stop_signal };
        this.guard = Some(guard(this.pid(), stop_signal)?);
        Ok(this)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub(crate) fn exited(&mut self) -> Result<Option<ExitStatus>> {
        let ended =
            self.child.try_wait().with_context(|| format!("looking after {}", self.name))?;
        if ended.is_some() {
            self.dismiss_guard(); // the pid may soon be another process's
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

    /// SIGKILL, and reaps it.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.dismiss_guard();
        self.child.kill().with_context(|| format!("killing {}", self.name))?;
        self.child.wait().with_context(|| format!("reaping {}", self.name))?;
        Ok(())
    }

    /// Asks it to stop and waits. `None`: it is still running at the deadline.
    pub(crate) fn ask_to_stop(&mut self, deadline: Duration) -> Result<Option<ExitStatus>> {
        if self.exited()?.is_none() {
            processes::signal(self.pid(), self.stop_signal)?;
        }
        // Not `wait::until`: this runs because we were interrupted, and must not be cut short by it.
        wait::until_even_if_interrupted(deadline, || self.exited())
    }

    /// Asks it to stop; kills it at the deadline.
    pub(crate) fn stop(&mut self, deadline: Duration) -> Result<Stopped> {
        if let Some(status) = self.ask_to_stop(deadline)? {
            return Ok(Stopped::Cleanly(status));
        }
        self.kill()?;
        Ok(Stopped::ByForce)
    }

    fn dismiss_guard(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            // It has nothing to lose; an error means that it is gone.
            drop(guard.kill());
            drop(guard.wait());
        }
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        drop(self.kill()); // gone already, or there is nobody left to tell
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
        .context("starting `sh` to stop the child if we die")
}

/// Opens a log for appending, and its folder if need be.
pub(crate) fn append_to(log: &Path) -> Result<File> {
    if let Some(folder) = log.parent() {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    let opened = File::options().create(true).append(true).open(log);
    opened.with_context(|| format!("opening the log {}", log.display()))
}

/// Moves the log of an earlier run aside, so that the file shows one run and disks don't fill.
pub(crate) fn set_aside(log: &Path) -> Result<()> {
    let mut previous = log.as_os_str().to_owned();
    previous.push(".previous");
    match fs::rename(log, &previous) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("moving the old log {} aside", log.display()))
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
