//! `cargo dev bench`: Mooring, its limits and its peers, side by side in one
//! run. A figure alone says little on another machine; a ratio says more.
#![allow(clippy::disallowed_methods, reason = "a load reads the clock")]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line speaks on its terminal"
)]

mod callback;
mod chart;
mod cpu;
mod endpoint;
mod fill;
mod history;
mod load;
mod peers;
mod raw;
mod rebuild;
mod report;
mod results;
mod run;
mod scenario;
mod soak;
mod stack;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures Mooring beside its limits and its peers, and checks that every 2xx was stored.
#[derive(Parser)]
#[command(
    name = "cargo dev bench",
    after_help = "Examples:
  cargo dev bench                    five rounds of everything, about half an hour
  cargo dev bench -- --quick         one short round, to see that it works
  cargo dev bench -- --only burst    the scenarios with `burst` in their names
  cargo dev bench -- rebuild         how fast a projection is rebuilt
  cargo dev bench -- soak            a year in minutes
  cargo dev bench -- history         an event after many others

The table goes to the terminal and into bench/README.md, all figures to bench/results/latest.json."
)]
struct Cli {
    #[command(flatten)]
    run: Run,
    #[command(subcommand)]
    other: Option<Other>,
}

#[derive(Subcommand)]
enum Other {
    /// Measure how fast a projection is rebuilt
    Rebuild(rebuild::Rebuild),
    /// Measure what an event costs after many others
    History(history::History),
    /// Live through a year in minutes: what grows with it?
    Soak(soak::Soak),
    /// Fill the log of a running `cargo dev up`, to try commands on
    Fill(fill::Fill),
    #[command(flatten)]
    Peer(Peer),
}

#[derive(clap::Args)]
struct Run {
    /// Rounds; each scenario runs once in each, and medians are shown
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each scenario that runs for a time
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// One round of one second
    #[arg(long)]
    quick: bool,
    /// Only scenarios with this in their names
    #[arg(long)]
    only: Option<String>,
    /// Where bench/README.md and bench/results are
    #[arg(long, hide = true, default_value = concat!(env!("CARGO_MANIFEST_DIR")))]
    folder: PathBuf,
}

/// The peers in Rust run as processes of their own.
#[derive(Subcommand)]
enum Peer {
    /// axum, one publish for each request
    #[command(hide = true)]
    PlainPublish { port: u16, nats_url: String, password: String },
    /// axum, one insert for each request
    #[command(hide = true)]
    PostgresInsert { port: u16, postgres_url: String },
    /// axum, nothing but the answer
    #[command(hide = true)]
    Nothing { port: u16 },
    /// A receiver of OTLP that reads everything and keeps nothing
    #[command(hide = true)]
    Receiver { port: u16 },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.other {
        Some(Other::Peer(peer)) => peers::serve(peer),
        Some(Other::Fill(args)) => fill::run(&args),
        Some(Other::History(args)) => history::run(&args, &cli.run.folder),
        Some(Other::Soak(args)) => soak::run(&args, &cli.run.folder),
        Some(Other::Rebuild(args)) => rebuild::run(&args, &cli.run.folder),
        None => run::run(&cli.run),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
