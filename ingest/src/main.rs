//! `ingest`: takes callbacks, makes them durable, answers.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use service::config::Config;
use service::manual::{Completions, ManPages};
use service::telemetry;

/// Receives app-marketplace callbacks, seals their secrets and appends them to
/// the log (NATS JetStream) before it answers 2xx.
#[derive(Parser)]
#[command(
    version = service::build::version(),
    after_help = "Exit codes: 0 stopped as asked, 1 failed, 78 the configuration is not usable."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve callbacks until SIGTERM or Ctrl-C
    Run(Run),
    Completions(Completions),
    Man(ManPages),
}

#[derive(Args)]
struct Run {
    /// The configuration file; MOORING__SECTION__SETTING variables override it
    #[arg(long, env = "MOORING_CONFIG", default_value = "mooring.toml")]
    config: PathBuf,
    /// Check the configuration and the secrets it refers to, then exit
    #[arg(long)]
    check_config: bool,
}

/// `EX_CONFIG` of sysexits.h.
const EXIT_CONFIG: u8 = 78;

fn main() -> ExitCode {
    let args = match Cli::parse().command {
        Command::Run(args) => args,
        Command::Completions(completions) => return say(completions.of(Cli::command()).trim_end()),
        Command::Man(pages) => {
            return pages
                .write(Cli::command())
                .map_or_else(|why| fail(1, &why), |()| ExitCode::SUCCESS);
        }
    };
    if let Err(error) = service::process::forbid_core_dumps() {
        return fail(1, &error);
    }
    let env = |name: &str| std::env::var(name).ok();
    let settings = Config::load(&args.config)
        .and_then(|config| ingest::Settings::resolve(&config, &args.config, &env));
    let settings = match settings {
        Ok(settings) => settings,
        Err(error) => return fail(EXIT_CONFIG, &error),
    };
    if args.check_config {
        return say(&format!("{} is usable by ingest", args.config.display()));
    }
    match run(settings, &env) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, error.as_ref()),
    }
}

fn run(settings: ingest::Settings, env: &dyn Fn(&str) -> Option<String>) -> anyhow::Result<()> {
    telemetry::run("mooring-ingest", env, async {
        let shutdown = service::shutdown::on_signal()?;
        ingest::run(settings, shutdown).await
    })
}

#[expect(clippy::print_stdout, reason = "the answer to --check-config")]
fn say(text: &str) -> ExitCode {
    println!("{text}");
    ExitCode::SUCCESS
}

#[expect(clippy::print_stderr, reason = "the last word of a process that failed")]
fn fail(code: u8, error: &(dyn std::error::Error + 'static)) -> ExitCode {
    let chain: Vec<String> = std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect();
    eprintln!("ingest: {}", chain.join(": "));
    ExitCode::from(code)
}
