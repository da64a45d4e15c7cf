//! Commands of the worker, run to their end as an operator runs them.

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use dev::config;
use dev::services;
use serde_json::Value;

use crate::world::World;

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

impl World {
    fn operator_command(&self, args: &[&str]) -> Command {
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

    /// Runs a command of the worker with an operator's rights.
    pub(crate) async fn operate(&self, args: &[&str]) -> Done {
        let mut command = self.operator_command(args);
        tokio::task::spawn_blocking(move || Done::from(command.output().unwrap())).await.unwrap()
    }

    /// The same, killed after some time unless it has ended.
    pub(crate) async fn operate_and_kill(&self, args: &[&str], milliseconds: u64) -> String {
        let mut child = self.operator_command(args).spawn().unwrap();
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        child.kill().ok();
        let left = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
        format!("{:?}", Done::from(left.await.unwrap()))
    }
}
