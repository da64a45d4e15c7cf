//! `cargo dev reset`.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use dev::data_dir::DataDir;

pub(crate) fn run(data_dir: Option<&Path>, yes: bool) -> Result<ExitCode> {
    let data = DataDir::at(data_dir)?;
    if !data.path().exists() {
        println!("nothing to delete: {} does not exist", data.path().display());
        return Ok(ExitCode::SUCCESS);
    }
    let lock = data.lock().context("the data is in use")?;
    if !yes && !confirmed(&data)? {
        println!("nothing was deleted");
        return Ok(ExitCode::FAILURE);
    }
    data.delete(lock)?;
    println!("deleted the data in {}", data.path().display());
    Ok(ExitCode::SUCCESS)
}

fn confirmed(data: &DataDir) -> Result<bool> {
    if !io::stdin().is_terminal() {
        bail!("no terminal to ask on: say --yes to delete the data in {}", data.path().display());
    }
    print!("delete the log, the database and the keys in {}? [y/N] ", data.path().display());
    io::stdout().flush().context("asking")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).context("reading the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
