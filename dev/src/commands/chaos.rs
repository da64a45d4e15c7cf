//! `cargo dev chaos`: the campaigns of faults.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use dev::progress::{chapter, heading};
use dev::tools;

use super::cargo::{cargo, exit_code, require, run_here};

/// Kill, stop and cut off processes under load, and check what is left
#[derive(Args)]
#[command(after_help = "Examples:
  cargo dev chaos                              two minutes with one NATS server, and with three
  cargo dev chaos --seconds 3600 --only three  an hour with three
  cargo dev chaos --seed 42                    the schedule of a failure again

A seed decides faults, their order and the load. The operating system decides the rest, so a
failure may need several runs. docs/proof.md has what is checked, and what was found.")]
pub(crate) struct Chaos {
    /// How long each campaign strikes
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Only campaigns whose name contains this, such as `three`
    #[arg(long, value_name = "NAME", default_value = "")]
    only: String,
    /// The seed of the schedule [default: 1]
    #[arg(long, value_name = "SEED", default_value_t = 1, hide_default_value = true)]
    seed: u64,
}

impl Chaos {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let (nats_server, postgres) =
            chapter("tools", || Ok((tools::nats_server()?, tools::postgres()?)))?;
        chapter("build", || require(&mut cargo(&["build", "--workspace", "--locked"])))?;
        heading("chaos");
        // `--workspace` selects features, as in every build: nothing is compiled a second time.
        let mut tests = cargo(&["test", "--workspace", "--locked", "--test", "pipeline", "--"]);
        tests.args(["--nocapture", "--test-threads", "1", &format!("chaos::{}", self.only)]);
        if self.only.is_empty() {
            tests.args(["--skip", "a_campaign_sees"]);
        }
        tests.env("MOORING_CHAOS_SECONDS", self.seconds.to_string());
        tests.env("MOORING_CHAOS_SEED", self.seed.to_string());
        tests.env(tools::NATS_SERVER_ENV, nats_server);
        tests.env(tools::POSTGRES_BIN_ENV, postgres.folder);
        Ok(exit_code(run_here(&mut tests)?))
    }
}
