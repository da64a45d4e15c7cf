//! `cargo dev worker`: a command of the worker as an operator would run it, against the running `up`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use dev::config;
use dev::data_dir::DataDir;
use dev::secrets::Secrets;
use dev::services::{self, Profile, binary_of};

use super::{cargo, exit_code, require, run_here};

pub(crate) fn run(data_dir: Option<&Path>, release: bool, args: &[String]) -> Result<ExitCode> {
    let data = DataDir::at(data_dir)?;
    let running = data.running()?;
    let mut build = cargo(&["build", "--quiet", "--workspace", "--bins", "--locked"]);
    let profile = if release {
        build.arg("--release");
        Profile::Release
    } else {
        Profile::Own
    };
    require(&mut build)?;
    let secrets = Secrets::existing(data.secrets());
    let mut worker = services::command(&binary_of("worker", profile)?);
    worker
        .args(args)
        .env("MOORING_CONFIG", data.config())
        .envs(config::operator_envs(running.postgres_owner_url, &secrets));
    Ok(exit_code(run_here(&mut worker)?))
}
