//! `cargo dev bench`: builds everything with optimisation and runs the `bench` program.

use std::process::{Command, ExitCode};

use anyhow::Result;
use dev::progress::{chapter, heading};
use dev::{tools, workspace_root};

use super::{cargo, exit_code, require, run_here};

pub(crate) fn run(args: &[String]) -> Result<ExitCode> {
    let (nats_server, postgres) =
        chapter("tools", || Ok((tools::nats_server()?, tools::postgres()?)))?;
    chapter("release build", || {
        require(&mut cargo(&["build", "--workspace", "--bins", "--release", "--locked"]))
    })?;
    heading("benchmark");
    let mut bench = Command::new(workspace_root().join("target/release/bench"));
    bench
        .args(args)
        .env(tools::NATS_SERVER_ENV, nats_server)
        .env(tools::POSTGRES_BIN_ENV, postgres.folder);
    Ok(exit_code(run_here(&mut bench)?))
}
