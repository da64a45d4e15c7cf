//! What cannot be undone is shown, and done only after consent. Who gave it is
//! kept.

use std::io::{self, IsTerminal as _, Write as _};
use std::thread;

use anyhow::bail;
use clap::Args;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::operate::exit::{Interrupted, WrongArguments};

#[derive(Debug, Args)]
pub(crate) struct By {
    /// Who does it, for the record
    #[arg(long, env = "USER", hide_env_values = true, default_value = "unknown")]
    pub(crate) by: String,
}

#[derive(Debug, Args)]
pub(crate) struct Consent {
    /// Show what would happen, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do not ask
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) yes: bool,
}

impl Consent {
    /// An error if consent is needed and nobody can be asked.
    pub(crate) fn can_be_given(&self) -> Result<(), WrongArguments> {
        if self.dry_run || self.yes || io::stdin().is_terminal() {
            return Ok(());
        }
        let what = "there is no terminal to ask on; pass --yes, or look first with --dry-run";
        Err(WrongArguments(what.to_owned()))
    }
}

/// Asks on the terminal. Anything but yes is no.
pub(crate) async fn ask(question: &str, shutdown: &CancellationToken) -> anyhow::Result<bool> {
    write!(io::stderr(), "{question} [y/N] ")?;
    let (said, answer) = oneshot::channel();
    // Not a task: the runtime would wait for it after Ctrl-C. A thread ends with the process.
    thread::spawn(move || {
        let mut line = String::new();
        said.send(io::stdin().read_line(&mut line).map(|_| line)).ok();
    });
    tokio::select! {
        answer = answer => Ok(matches!(answer??.trim(), "y" | "Y" | "yes")),
        () = shutdown.cancelled() => bail!(Interrupted),
    }
}
