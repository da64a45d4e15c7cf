//! `worker`: applies the log to Postgres, serves reads.

mod cli;

use std::process::ExitCode;

use clap::Parser as _;
use service::config::{Config, ConfigError};
use service::telemetry;
use worker::operate::backends::Interrupted;
use worker::{BackendSettings, KeySettings, MigrateSettings, Postgres, RunSettings};

use crate::cli::{Cli, Command, Differs, Installations, KeyOperation, Operation};

/// `EX_CONFIG` of sysexits.h.
const EXIT_CONFIG: u8 = 78;
/// As `diff` and `cmp` have 1 for it, which is taken.
const EXIT_DIFFERS: u8 = 3;
/// 128 and the number of SIGINT, as shells have it.
const EXIT_INTERRUPTED: u8 = 130;

type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let env = |name: &str| std::env::var(name).ok();
    match execute(cli, &env) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn execute(cli: Cli, env: Env<'_>) -> anyhow::Result<()> {
    let path = cli.config;
    let config = Config::load(&path)?;
    // Of an operation its answer counts; that it has connected is not worth a line.
    let quiet = |name: &str| match name {
        "RUST_LOG" => env(name).or_else(|| Some("warn".to_owned())),
        _ => env(name),
    };
    match cli.command {
        Command::Run { check_config } => {
            let settings = RunSettings::resolve(&config, &path, env)?;
            if check_config {
                cli::say(&format!("{} is usable by the worker", path.display()));
                return Ok(());
            }
            telemetry::run(
                "mooring-worker",
                env,
                as_task(async move {
                    let shutdown = service::shutdown::on_signal()?;
                    Box::pin(worker::run(settings, shutdown)).await
                }),
            )
        }
        Command::Migrate => {
            let settings = MigrateSettings::resolve(&config, &path, env)?;
            telemetry::run("mooring-operator", env, worker::migrate(&settings))
        }
        Command::Installations { command } => {
            let postgres = Postgres::resolve(&config, &path, env)?;
            runtime()?.block_on(read(&postgres, command))
        }
        Command::Operation(operation) => {
            let settings = BackendSettings::resolve(&config, &path, env)?;
            let is_rebuild = matches!(operation, Operation::Rebuild(_));
            let service = if is_rebuild { "mooring-rebuild" } else { "mooring-operator" };
            telemetry::run(service, &quiet, as_task(operate(settings, operation)))
        }
        Command::KeyOperation(operation) => {
            let settings = KeySettings::resolve(&config, &path, env)?;
            let work = as_task(operate_keys(config, settings, operation));
            telemetry::run("mooring-operator", &quiet, work)
        }
    }
}

async fn operate(settings: BackendSettings, operation: Operation) -> anyhow::Result<()> {
    let shutdown = service::shutdown::on_signal()?;
    let backends = settings.connect().await?;
    match operation {
        Operation::Replay(args) => cli::replay::replay(&backends, args, &shutdown).await,
        Operation::Rebuild(args) => cli::rebuild::rebuild(&backends, args, &shutdown).await,
        Operation::Verify(args) => cli::rebuild::verify(&backends, args, &shutdown).await,
        Operation::Explain(args) => cli::explain::explain(&backends, args).await,
        Operation::Callbacks(args) => cli::explain::callbacks(&backends, args).await,
        Operation::DeadLetters { command } => cli::dead_letters::run(&backends, command).await,
    }
}

async fn operate_keys(
    config: Config,
    settings: KeySettings,
    operation: KeyOperation,
) -> anyhow::Result<()> {
    let shutdown = service::shutdown::on_signal()?;
    let KeySettings { backends, ring } = settings;
    let backends = backends.connect().await?;
    match operation {
        KeyOperation::Keys { command } => {
            cli::keys::run(&backends, &ring, command, &shutdown).await
        }
        KeyOperation::Doctor(args) => {
            cli::doctor::doctor(&backends, &ring, &config, args, &shutdown).await
        }
        KeyOperation::Erase(args) => cli::keys::erase(&backends, &ring, args, &shutdown).await,
    }
}

async fn read(postgres: &Postgres, command: Installations) -> anyhow::Result<()> {
    let pool = worker::pool(postgres);
    match command {
        Installations::List { filter, json } => {
            let page = worker::store::find::list(&pool, &filter.into()).await?;
            cli::print_page(&page, json)
        }
        Installations::Show { id, which, json } => {
            let found = worker::store::find::show(&pool, &which.into(), &id).await?;
            cli::print_fields(&found, json)
        }
    }
}

/// A task shares its thread with the connections that it waits for; the main
/// thread would have to be woken for each message.
async fn as_task(
    work: impl Future<Output = anyhow::Result<()>> + Send + 'static,
) -> anyhow::Result<()> {
    tokio::spawn(work).await?
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

#[expect(clippy::print_stderr, reason = "the last word of a process that failed")]
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("worker: {error:#}");
    if error.is::<ConfigError>() {
        ExitCode::from(EXIT_CONFIG)
    } else if error.is::<Differs>() {
        ExitCode::from(EXIT_DIFFERS)
    } else if error.is::<Interrupted>() {
        ExitCode::from(EXIT_INTERRUPTED)
    } else {
        ExitCode::FAILURE
    }
}
