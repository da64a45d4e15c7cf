//! Commands of the worker, run to their end as an operator runs them.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use dev::config;
use dev::services;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;

use crate::world::World;

pub(crate) const WRONG_ARGUMENTS: i32 = 2;
pub(crate) const INTERRUPTED: i32 = 130;

/// What a command left.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Done {
    /// What it printed, if it ended with this code.
    pub(crate) fn json(&self, code: i32) -> Value {
        assert_eq!(self.code, code, "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        // A signal leaves no code.
        let code = output.status.code().unwrap_or(-1);
        Self { code, stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

/// A terminal on which somebody types.
pub(crate) struct Terminal(File);

impl Terminal {
    /// And the end of it that a command has as its standard input.
    pub(crate) fn open() -> (Self, File) {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, vec![]).unwrap();
        let slave = OpenOptions::new().read(true).open(OsStr::from_bytes(name.to_bytes()));
        (Self(master.into()), slave.unwrap())
    }

    pub(crate) fn type_in(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).unwrap();
    }
}

pub(crate) fn terminate(child: &Child) {
    kill_process(Pid::from_child(child), Signal::TERM).unwrap();
}

/// Waits for its end.
pub(crate) async fn ended(child: Child) -> Done {
    let left = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    Done::from(left.await.unwrap())
}

impl World {
    /// A command of the worker with an operator's rights.
    pub(crate) fn operator_command(&self, args: &[&str]) -> Command {
        let mut command = services::command(&services::binary("worker").unwrap());
        command
            .args(args)
            .env("MOORING_CONFIG", self.config())
            .envs(self.overrides())
            .envs(config::migrate_envs(&self.ports, &self.secrets))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs a command to its end.
    pub(crate) async fn operate(&self, args: &[&str]) -> Done {
        ended(self.operator_command(args).spawn().unwrap()).await
    }

    /// The same, with other configuration.
    pub(crate) async fn operate_with(&self, args: &[&str], envs: &[(&str, &str)]) -> Done {
        let mut command = self.operator_command(args);
        ended(command.envs(envs.iter().copied()).spawn().unwrap()).await
    }

    /// The same, with a terminal on which somebody types this.
    pub(crate) async fn operate_on_a_terminal(&self, args: &[&str], typed: &str) -> Done {
        let (mut terminal, stdin) = Terminal::open();
        let child = self.operator_command(args).stdin(stdin).spawn().unwrap();
        terminal.type_in(typed);
        ended(child).await
    }

    /// The same, killed after some time unless it has ended.
    pub(crate) async fn operate_and_kill(&self, args: &[&str], milliseconds: u64) -> String {
        let mut child = self.operator_command(args).spawn().unwrap();
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        child.kill().ok();
        format!("{:?}", ended(child).await)
    }
}
