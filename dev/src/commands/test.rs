//! `cargo dev test`: what must pass before a merge.

use std::process::{Command, ExitCode, Stdio};

use anyhow::Result;
use clap::Args;
use dev::progress::{chapter, heading, say};
use dev::tools;

use super::cargo::{cargo, exit_code, require, run_here};

/// Check and test everything, as CI does
#[derive(Args)]
#[command(after_help = "Examples:
  cargo dev test                          everything
  cargo dev test --skip-lints             build and tests only
  cargo dev test -- -p worker             the tests of one crate
  cargo dev test -- a_late_uninstall      tests by name

The tests run with cargo-nextest if it is installed, and with `cargo test` if not.")]
pub(crate) struct Test {
    /// Skip format, clippy and cargo-deny
    #[arg(long)]
    skip_lints: bool,
    /// Arguments for the test runner
    #[arg(last = true)]
    args: Vec<String>,
}

impl Test {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let (nats_server, postgres) =
            chapter("tools", || Ok((tools::nats_server()?, tools::postgres()?)))?;
        if self.skip_lints {
            say("\n== lints skipped (--skip-lints)");
        } else {
            lint()?;
        }
        chapter("build", || require(&mut cargo(&["build", "--workspace", "--locked"])))?;
        heading("tests"); // each starts the servers that it needs, and stops them
        let mut runner = runner(&self.args);
        runner.env(tools::NATS_SERVER_ENV, nats_server);
        runner.env(tools::POSTGRES_BIN_ENV, postgres.folder);
        Ok(exit_code(run_here(&mut runner)?))
    }
}

fn lint() -> Result<()> {
    chapter("format", || require(&mut cargo(&["fmt", "--all", "--check"])))?;
    chapter("clippy", || {
        let scope = ["clippy", "--workspace", "--all-targets", "--locked"];
        require(cargo(&scope).args(["--", "-D", "warnings"]))
    })?;
    if is_installed("deny") {
        chapter("dependencies", || {
            require(&mut cargo(&["deny", "check", "bans", "licenses", "sources"]))
        })
    } else {
        say(
            "\n== dependencies skipped: cargo-deny is missing (`cargo install --locked cargo-deny`)",
        );
        Ok(())
    }
}

fn runner(args: &[String]) -> Command {
    let mut command = if is_installed("nextest") {
        cargo(&["nextest", "run", "--workspace", "--locked"])
    } else {
        cargo(&["test", "--workspace", "--locked"])
    };
    command.args(args);
    command
}

/// Whether cargo knows this subcommand.
fn is_installed(subcommand: &str) -> bool {
    let tried =
        cargo(&[subcommand, "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    tried.is_ok_and(|status| status.success())
}
