//! `cargo dev test`: what must be green before a merge.

use std::process::{Command, ExitCode, Stdio};

use anyhow::Result;
use dev::progress::{chapter, heading, say};
use dev::tools;

use super::{cargo, exit_code, require, run_here};

pub(crate) fn run(skip_lints: bool, args: &[String]) -> Result<ExitCode> {
    let (nats_server, postgres_tools) =
        chapter("tools", || Ok((tools::nats_server()?, tools::postgres()?)))?;
    if skip_lints {
        say("\n== lints skipped (--skip-lints)");
    } else {
        lint()?;
    }
    chapter("build", || require(&mut cargo(&["build", "--workspace", "--locked"])))?;
    heading("tests"); // each starts the servers that it needs, and ends them
    let mut runner = runner(args);
    runner.env(tools::NATS_SERVER_ENV, nats_server);
    runner.env(tools::POSTGRES_BIN_ENV, postgres_tools.folder);
    Ok(exit_code(run_here(&mut runner)?))
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
