//! `worker run`: the service itself.

use std::time::Duration;

use clap::Args;

use crate::live;
use crate::operate::context::{Command, Context};
use crate::operate::output;
use crate::settings::RunSettings;

/// Apply events and serve the read API until SIGTERM or Ctrl-C
#[derive(Args)]
pub(crate) struct Arguments {
    /// Check the configuration and the secrets it refers to, then exit
    #[arg(long)]
    check_config: bool,
}

impl Command for Arguments {
    const LOG_LEVEL: &'static str = "info";
    /// It has a limit of its own, from the configuration.
    const STOPS_WITHIN: Duration = Duration::MAX;

    fn service(&self) -> &'static str {
        // A check beside a running worker must not take the port of its metrics.
        if self.check_config { "mooring-operator" } else { "mooring-worker" }
    }

    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let settings = RunSettings::resolve(&context.config, &context.path, &context.env)?;
        if self.check_config {
            return output::print(&format!("{} is usable by the worker", context.path.display()));
        }
        Box::pin(live::run(settings, context.shutdown.clone())).await
    }
}
