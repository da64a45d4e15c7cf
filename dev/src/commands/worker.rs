//! `cargo dev worker`: a command of the worker, as an operator would run it, against the running `up`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use dev::config;
use dev::secrets::Secrets;
use dev::services::{self, Profile, binary_of};

use super::cargo::{build, exit_code, require, run_here};
use super::data::Data;

/// Run a command of the worker against the running `up`, with an operator's rights
#[derive(Args)]
#[command(after_help = "Examples:
  cargo dev worker -- --help
  cargo dev worker -- verify
  cargo dev worker -- rebuild --no-swap")]
pub(crate) struct Worker {
    #[command(flatten)]
    data: Data,
    /// Build with optimisation
    #[arg(long)]
    release: bool,
    /// Arguments for the worker
    #[arg(last = true)]
    args: Vec<String>,
}

impl Worker {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let data = self.data.dir()?;
        let running = data.running()?;
        let profile = Profile::of(self.release);
        require(build(&["worker"], profile).arg("--quiet"))?;
        let secrets = Secrets::existing(data.secrets());
        let mut worker = services::command(&binary_of("worker", profile)?);
        worker
            .args(&self.args)
            .env("MOORING_CONFIG", data.config())
            .envs(config::operator_envs(running.postgres_owner_url, &secrets));
        Ok(exit_code(run_here(&mut worker)?))
    }
}
