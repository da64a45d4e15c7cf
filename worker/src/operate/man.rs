//! `worker man`: what a package installs beside the program.

use anyhow::Context as _;
use clap::CommandFactory as _;
pub(crate) use service::manual::ManPages as Arguments;

use crate::operate::Cli;
use crate::operate::context::{self, Context};

impl context::Command for Arguments {
    fn without_configuration(&self) -> Option<anyhow::Result<()>> {
        Some(self.write(Cli::command()).context("writing man pages"))
    }

    async fn run(self, _: &Context) -> anyhow::Result<()> {
        Ok(())
    }
}
