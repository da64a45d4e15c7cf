//! `cargo dev bench`: builds with optimisation and runs the program `bench`.

use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::Args;
use dev::progress::{chapter, heading};
use dev::services::{Profile, binary_of};
use dev::tools;

use super::cargo::{build, exit_code, require, run_here};

/// Measure Mooring beside its limits and its peers, with release builds
#[derive(Args)]
#[command(after_help = "Examples:
  cargo dev bench                    everything, five rounds, about half an hour
  cargo dev bench -- --quick         one short round, to see that it works
  cargo dev bench -- --help          the benchmark's own options

The Express peer needs `npm ci` in bench/peers/express. Without it, that peer is left out.")]
pub(crate) struct Bench {
    /// Arguments for the benchmark
    #[arg(last = true)]
    args: Vec<String>,
}

impl Bench {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let (nats_server, postgres) =
            chapter("tools", || Ok((tools::nats_server()?, tools::postgres()?)))?;
        chapter("release build", || {
            require(&mut build(&["bench", "ingest", "worker"], Profile::Release))
        })?;
        heading("benchmark");
        let mut bench = Command::new(binary_of("bench", Profile::Release)?);
        bench
            .args(&self.args)
            .env(tools::NATS_SERVER_ENV, nats_server)
            .env(tools::POSTGRES_BIN_ENV, postgres.folder);
        Ok(exit_code(run_here(&mut bench)?))
    }
}
