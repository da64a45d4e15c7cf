//! `worker completions`: for a shell.

use clap::CommandFactory as _;
pub(crate) use service::manual::Completions as Arguments;

use crate::operate::Cli;
use crate::operate::context::{self, Context};
use crate::operate::output::print;

impl context::Command for Arguments {
    fn without_configuration(&self) -> Option<anyhow::Result<()>> {
        Some(print(&self.of(Cli::command())))
    }

    async fn run(self, _: &Context) -> anyhow::Result<()> {
        Ok(())
    }
}
