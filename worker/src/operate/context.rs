//! What runs a command: with configuration and telemetry, until it has ended or
//! is told to stop.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use service::config::Config;
use service::{shutdown, telemetry};
use tokio_util::sync::CancellationToken;

use crate::operate::exit::Interrupted;
use crate::settings::Env;

/// A command, by its arguments.
pub(crate) trait Command: Args + Send + 'static {
    /// What is logged, on standard error, unless `RUST_LOG` says otherwise. Of
    /// an operator's command the answer counts.
    const LOG_LEVEL: &'static str = "warn,async_nats=off";
    /// How long it may take to stop by itself once [`Context::shutdown`] is
    /// cancelled. Then it is dropped, at whatever it awaits.
    const STOPS_WITHIN: Duration = Duration::ZERO;

    /// Its name in telemetry.
    fn service(&self) -> &'static str {
        "mooring-operator"
    }

    /// What the command does without a configuration, if that is all it does.
    fn without_configuration(&self) -> Option<anyhow::Result<()>> {
        None
    }

    fn run(self, context: &Context) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// What a command has besides its arguments.
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) path: PathBuf,
    pub(crate) env: Env,
    /// Cancelled by Ctrl-C and by SIGTERM.
    pub(crate) shutdown: CancellationToken,
}

pub(crate) fn execute<C: Command>(command: C, path: PathBuf, env: Env) -> anyhow::Result<()> {
    service::process::forbid_core_dumps().context("forbidding core dumps")?;
    if let Some(done) = command.without_configuration() {
        return done;
    }
    let config = Config::load(&path)?;
    let env_of_telemetry = |name: &str| match name {
        "RUST_LOG" => env(name).or_else(|| Some(C::LOG_LEVEL.to_owned())),
        _ => env(name),
    };
    telemetry::run(command.service(), &env_of_telemetry, async move {
        // A task shares its thread with the connections that it waits for; the main thread would
        // have to be woken for each message.
        let task = tokio::spawn(async move {
            let shutdown = shutdown::on_signal()?;
            let context = Context { config, path, env, shutdown };
            tokio::select! {
                biased;
                ended = command.run(&context) => ended,
                () = too_late(&context.shutdown, C::STOPS_WITHIN) => bail!(Interrupted),
            }
        });
        task.await?
    })
}

async fn too_late(shutdown: &CancellationToken, within: Duration) {
    shutdown.cancelled().await;
    tokio::time::sleep(within).await;
}
