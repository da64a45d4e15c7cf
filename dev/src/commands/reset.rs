//! `cargo dev reset`: deletes the data of `up`.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use dev::data_dir::DataDir;

use super::data::Data;

/// Delete the data of `up`; the downloaded tools are kept
#[derive(Args)]
pub(crate) struct Reset {
    #[command(flatten)]
    data: Data,
    /// Delete without asking
    #[arg(long)]
    yes: bool,
}

impl Reset {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let data = self.data.dir()?;
        if !data.path().exists() {
            println!("{} does not exist: there is nothing to delete", data.path().display());
            return Ok(ExitCode::SUCCESS);
        }
        let lock = data.lock()?;
        if !self.yes && !confirmed(&data)? {
            println!("nothing was deleted");
            return Ok(ExitCode::FAILURE);
        }
        data.delete(lock)?;
        println!("the log, the database and the keys in {} are deleted", data.path().display());
        Ok(ExitCode::SUCCESS)
    }
}

fn confirmed(data: &DataDir) -> Result<bool> {
    if !io::stdin().is_terminal() {
        bail!(
            "there is no terminal to ask on: add --yes to delete the data in {}",
            data.path().display()
        );
    }
    print!("Delete the log, the database and the keys in {}? [y/N] ", data.path().display());
    io::stdout().flush().context("asking")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).context("reading the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
