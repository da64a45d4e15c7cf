//! `cargo dev fuzz`: the fuzz targets, for longer than in `cargo dev test`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use dev::progress::heading;

use super::cargo::{cargo, exit_code, run_here};

/// Fuzz every parser of bytes from outside
#[derive(Args)]
#[command(after_help = "Examples:
  cargo dev fuzz                                  a minute for each target
  cargo dev fuzz --seconds 600 --only blnk        ten minutes for one
  cargo dev fuzz --only blnk --seed 3735928559    the inputs of a failure again

The targets are in tests/fuzz. A failure shows the smallest input found, and the seed.")]
pub(crate) struct Fuzz {
    /// How long each target runs
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Only the target of this name
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Begin with the inputs of this seed
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
}

impl Fuzz {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        heading("fuzz");
        // `--workspace` selects features, as in every build: nothing is compiled a second time.
        let mut tests = cargo(&["test", "--workspace", "--locked", "--test", "fuzz", "--"]);
        tests.arg("--nocapture").env("MOORING_FUZZ_SECONDS", self.seconds.to_string());
        if let Some(name) = &self.only {
            tests.args(["--exact", name]);
        }
        if let Some(seed) = self.seed {
            tests.env("MOORING_FUZZ_SEED", seed.to_string());
        }
        Ok(exit_code(run_here(&mut tests)?))
    }
}
