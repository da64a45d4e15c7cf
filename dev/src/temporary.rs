//! Temporary folders for tests.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

/// A folder that is removed when the value is dropped. Its mode is 0711, so that others may pass
/// through it: when we are root, Postgres runs as another user and must reach its files inside.
pub fn folder() -> Result<TempDir> {
    let folder = tempfile::Builder::new()
        .prefix("mooring-")
        .tempdir()
        .context("creating a temporary folder (set TMPDIR to choose where)")?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711))
        .with_context(|| format!("opening {} to other users", folder.path().display()))?;
    Ok(folder)
}
