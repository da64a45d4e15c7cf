//! The argument of every command that works on the data of `up`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use dev::data_dir::DataDir;

#[derive(Args)]
pub(super) struct Data {
    /// The folder that holds the data [default: .mooring in the workspace]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl Data {
    pub(super) fn dir(&self) -> Result<DataDir> {
        DataDir::at(self.data_dir.as_deref())
    }
}
