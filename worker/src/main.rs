//! `worker`: applies the log to Postgres, serves reads, and is the operators'
//! tool for both.

use std::process::ExitCode;

use clap::Parser as _;
use worker::Cli;

fn main() -> ExitCode {
    let env = |name: &str| std::env::var(name).ok();
    Cli::parse().execute(env)
}
